"""Which arithmetic this machine's processor has. Imports PyTorch, so only whoever computes imports
this."""

from __future__ import annotations

import torch


def eight_bits() -> bool:
    """Whether it multiplies eight-bit numbers without saturating (AVX-512 VNNI)."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni"))


def bfloat16() -> bool:
    """Whether a product of bfloat16 matrices is no slower than one of 32 bits.

    Without AVX-512 PyTorch multiplies them number by number: 18 times slower, measured.
    """
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_f"))
