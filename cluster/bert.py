"""A BERT encoder with mean pooling (Devlin 2019; Reimers and Gurevych 2019), made to be fast here.

Owns the forward pass of sentence embeddings on a CPU. Imports PyTorch, so only processes that embed
imports this. What it is for is eight-bit layers and fewer of them: one short text takes 1.7 ms in
eight bits where bfloat16 takes 5.3, here as in the library's own model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cluster.processor import bfloat16, pairs_saturate

Weights = Mapping[str, Tensor]
Network = Callable[[Tensor, Tensor], Tensor]
_EPS = 1e-12


class _Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight, self.bias)  # type: ignore[arg-type]


class _EightBit(nn.Module):
    """One scale for each output; the inputs' one scale is found at each call."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        largest = weight.abs()
        if pairs_saturate():
            # The processor sums the products of neighbours: 255 times 127, and what rounding adds,
            # still fit in 16 bits.
            largest = largest[:, ::2] + largest[:, 1::2]
        scale = (largest.amax(dim=1) / 127).double().clamp(min=1e-9)
        zero = torch.zeros(len(weight), dtype=torch.long)
        packed = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(packed, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        # PyTorch's own layer keeps inputs to seven bits, for processors without VNNI: a cosine of
        # .980 to the model's own vectors where eight give .994.
        result: Tensor = torch.ops.quantized.linear_dynamic(inputs, self.packed, False)
        return result


class _Norm(nn.Module):
    def __init__(self, weights: Weights, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weights[f"{name}.weight"].to(dtype))
        self.register_buffer("bias", weights[f"{name}.bias"].to(dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        return functional.layer_norm(inputs, inputs.shape[-1:], weight, bias, _EPS)  # type: ignore[arg-type]


class _Layer(nn.Module):
    """Post-norm transformer layer; queries, keys and values come from one product."""

    def __init__(
        self, weights: Weights, name: str, heads: int, dtype: torch.dtype, *, quantise: bool
    ) -> None:
        super().__init__()
        self.heads = heads

        def linear(*parts: str) -> nn.Module:
            weight = torch.cat([weights[f"{name}.{part}.weight"].float() for part in parts])
            bias = torch.cat([weights[f"{name}.{part}.bias"].float() for part in parts])
            return _EightBit(weight, bias) if quantise else _Linear(weight, bias, dtype)

        self.attend = linear(*(f"attention.self.{part}" for part in ("query", "key", "value")))
        self.gather = linear("attention.output.dense")
        self.after_attention = _Norm(weights, f"{name}.attention.output.LayerNorm", dtype)
        self.widen = linear("intermediate.dense")
        self.narrow = linear("output.dense")
        self.after = _Norm(weights, f"{name}.output.LayerNorm", dtype)

    def forward(self, states: Tensor, bias: Tensor, texts: int, length: int) -> Tensor:
        """`states` of shape (texts * length, width)."""
        width = states.shape[-1]
        parts = self.attend(states).view(texts, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(texts * length, width)
        states = self.after_attention(states + self.gather(mixed))
        return self.after(states + self.narrow(functional.gelu(self.widen(states))))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    def __init__(self, weights: Weights, heads: int, depth: int, *, quantise: bool) -> None:
        super().__init__()
        self.dtype = torch.float32 if quantise or not bfloat16() else torch.bfloat16
        words, places, kinds = (
            weights[f"embeddings.{kind}_embeddings.weight"].float()
            for kind in ("word", "position", "token_type")
        )
        self.register_buffer("words", words.to(self.dtype))
        self.register_buffer("places", (places + kinds[0]).to(self.dtype))
        self.first = _Norm(weights, "embeddings.LayerNorm", self.dtype)
        self.layers = nn.ModuleList(
            _Layer(weights, f"encoder.layer.{i}", heads, self.dtype, quantise=quantise)
            for i in range(depth)
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (texts, width) of token ids and their mask, both (texts, length)."""
        texts, length = ids.shape[0], ids.shape[1]
        bias = ((1.0 - mask.to(self.dtype)) * -1e9)[:, None, None, :]
        states = functional.embedding(ids, self.words) + self.places[:length]  # type: ignore[arg-type,index]
        states = self.first(states).reshape(texts * length, -1)
        for layer in self.layers:
            states = layer(states, bias, texts, length)
        weight = mask.unsqueeze(-1).float()
        total = (states.view(texts, length, -1).float() * weight).sum(1)
        return functional.normalize(total / weight.sum(1), dim=1)


def network(weights: Weights, heads: int, depth: int, *, quantise: bool) -> Network:
    """The first `depth` layers of `weights` as one frozen TorchScript module of (ids, mask).

    Traced, it runs without the interpreter, which a busy event loop in the same process would
    otherwise take away after each small operation.
    """
    example = torch.tensor([[101, 2616, 102], [101, 102, 0]])
    with torch.inference_mode(), warnings.catch_warnings():
        # The tracer notes each value it takes as fixed, and PyTorch that its quantised tensors will
        # move; that texts of any length come out right is a test's to say.
        warnings.simplefilter("ignore")
        encoder = _Encoder(weights, heads, depth, quantise=quantise).eval()
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            encoder, (example, (example > 0).long()), check_trace=False
        )
        frozen = torch.jit.freeze(traced.eval())
        for _ in range(3):
            frozen(example, (example > 0).long())  # the first runs are spent on optimisation
    return frozen  # type: ignore[no-any-return]
