"""Norms by kernels: the same numbers, and vLLM's own way wherever a kernel does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from vllm.ir import ops

from serve_app.engine.norms import use_kernels

ROWS, WIDTH, EPSILON = 7, 64, 1e-5


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> Iterator[None]:
    before = {op: op.get_priority() for op in (ops.rms_norm, ops.fused_add_rms_norm)}
    use_kernels()
    yield
    for op, priority in before.items():
        op.set_default(priority or ["native"])


def provider(op: object, *arguments: object) -> str:
    found: str = op.dispatch(*arguments).provider  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernels_compute_what_vllm_computes(dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(1)
    x, residual = torch.randn(2, ROWS, WIDTH).to(dtype)
    weight = torch.rand(WIDTH).to(dtype)
    assert provider(ops.rms_norm, x, weight, EPSILON) == "headrace_cpu"
    native = ops.rms_norm.impls["native"].impl_fn(x, weight, EPSILON)
    found = ops.rms_norm(x, weight, EPSILON)
    torch.testing.assert_close(found, native, rtol=near, atol=near)
    assert provider(ops.fused_add_rms_norm, x, residual, weight, EPSILON) == "headrace_cpu"
    native, added = ops.fused_add_rms_norm.impls["native"].impl_fn(x, residual, weight, EPSILON)
    found, kept = ops.fused_add_rms_norm(x, residual, weight, EPSILON)
    torch.testing.assert_close(found, native, rtol=near, atol=near)
    torch.testing.assert_close(kept, added, rtol=near, atol=near)


def test_what_a_kernel_cannot_do_is_left_to_vllm() -> None:
    x, weight = torch.randn(ROWS, WIDTH), torch.rand(WIDTH)
    strided = torch.randn(ROWS, 2 * WIDTH)[:, :WIDTH]
    assert provider(ops.rms_norm, strided, weight, EPSILON) == "native"
    assert provider(ops.rms_norm, x, weight.bfloat16(), EPSILON) == "native"
    assert provider(ops.rms_norm, x, None, EPSILON) == "native"
    assert provider(ops.rms_norm, x, weight, EPSILON, WIDTH // 2) == "native"
    assert provider(ops.fused_add_rms_norm, x, strided, weight, EPSILON) == "native"
