"""The model's norms on a CPU, by the kernels that vLLM has for CPUs and does not take there.

7 us instead of 55 for 32 rows of 256, twelve times in each step of a model of six layers. The
kernels round once, at the end, where vLLM's own way rounds to the model's precision in between.
Owns nothing but that choice; a process that computes no model never makes it.
"""

from __future__ import annotations

import torch
from vllm.ir import ops
from vllm.platforms import current_platform

_PROVIDER = "headrace_cpu"


def use_kernels() -> None:
    """Have this process compute norms by the kernels wherever they fit."""
    current_platform.import_kernels()
    ops.rms_norm.register_impl(_PROVIDER, supports_args=_fits)(_norm)
    ops.fused_add_rms_norm.register_impl(_PROVIDER, supports_args=_fits_added, inplace=True)(_added)
    for op in (ops.rms_norm, ops.fused_add_rms_norm):
        op.set_default([_PROVIDER, "native"])


def _fits(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return (
        variance_size is None
        and weight is not None
        and weight.dtype == x.dtype
        and x.dim() == 2
        and x.is_contiguous()
    )


def _fits_added(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return x_residual.is_contiguous() and _fits(x, weight, epsilon, variance_size)


def _norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    output = torch.empty_like(x)
    torch.ops._C.rms_norm(output, x, weight, epsilon)
    return output


def _added(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
