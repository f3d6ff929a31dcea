"""Which arithmetic this machine's processor has, and what a model is computed in for it. Imports
PyTorch, so only processes that compute import this."""

from __future__ import annotations

import torch


def eight_bits() -> bool:
    """Whether PyTorch multiplies numbers of eight bits faster than others."""
    return bool(torch.cpu.get_capabilities().get("avx2"))


def pairs_saturate() -> bool:
    """Whether two products of eight-bit numbers are summed in 16 bits, which they may not fit in
    (without AVX-512 VNNI)."""
    return not torch.cpu.get_capabilities().get("avx512_vnni")


def bfloat16() -> bool:
    """Whether a product of bfloat16 matrices is no slower than one of 32 bits.

    Without AVX-512 PyTorch multiplies them number by number: 18 times slower, measured.
    """
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_f"))


def precision(wanted: str, *, gpu: bool) -> str:
    """Name of the type a base model's weights are computed in: what is wanted, or for `auto` what
    is fast here."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if gpu or bfloat16() else "float32"
