"""PyTorch's operator database: each sample of the six convolutions gives PyTorch's result, each error its error.

Results in float64 and complex128 are PyTorch's to 1e-10. Those in float32 and complex64 are held to the oracle's bound
around PyTorch's float64 result; a convolution and its gradients are linear in each tensor, so the bound's Σ|terms| is
the same function of the absolute values, and its number of terms the same function of ones.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lanes import INTERPRETING, Lane, each_lane
from torch import Tensor

from gpuconv import functional
from gpuconv.reference import Exact, as_numpy, assert_close_to_oracle

FUNCTIONS = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
DTYPES = [torch.float64, torch.float32, torch.complex128, torch.complex64]
each_function = pytest.mark.parametrize("function", FUNCTIONS)
# PyTorch says it once in a process, and so do we; the database does not say which samples do.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


@functools.cache
def database() -> dict[str, Any]:
    """The entries by name. Imported when needed: it takes seconds."""
    from torch.testing._internal.common_methods_invocations import op_db

    entries = {op.name.removeprefix("nn.functional."): op for op in op_db if "functional.conv" in op.name}
    return {name: entries[name] for name in FUNCTIONS}


def with_gradients(f: Callable[..., Tensor], tensors: list[Tensor], grad_output: Tensor | None = None) -> list[Tensor]:
    """f of the tensors, and the gradients of all of them; grad_output: ones where it is not given."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = f(*tensors)
    grad_output = torch.ones_like(y) if grad_output is None else grad_output
    return [y.detach(), *torch.autograd.grad(y, tensors, grad_output)]


def absolute(t: Tensor) -> Tensor:
    """|re| + |im|"""
    return (t.real.abs() + t.imag.abs() if t.is_complex() else t.abs()).double()


def hold_to_the_bound(got: list[Tensor], theirs: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> None:
    tf32 = grad.is_cuda and torch.backends.cudnn.conv.fp32_precision == "tf32"
    wide = torch.complex128 if grad.is_complex() else torch.float64
    values = with_gradients(theirs, [t.to(wide) for t in tensors], grad.to(wide))
    magnitudes = with_gradients(theirs, [absolute(t) for t in tensors], absolute(grad))
    terms = with_gradients(theirs, [torch.ones_like(absolute(t)) for t in tensors])
    for g, value, magnitude, count in zip(got, values, magnitudes, terms, strict=True):
        n = max(1, int(count.max())) if count.numel() else 1
        if not g.is_complex():
            assert_close_to_oracle(g, Exact(as_numpy(value), as_numpy(magnitude), n), tf32=tf32)
            continue
        # Three real ones: with M = Σ(|a| + |b|)(|c| + |d|), ac and bd have terms of M together, (a + b)(c + d) of M
        # again; five sums before and after add a rounding of at most M each, and γ ≥ 4·u: 2γM + 5uM ≤ 4γM.
        for part, exactly in ((g.real, value.real), (g.imag, value.imag)):
            exact = Exact(as_numpy(exactly), 4 * as_numpy(magnitude), n)
            assert_close_to_oracle(part.resolve_neg(), exact, tf32=tf32)


def some(samples: list[Any], lane: Lane, function: str, dtype: torch.dtype) -> list[Any]:
    """All, or a part where a sample takes long. Every other one is unbatched, so odd steps take both kinds."""
    if INTERPRETING:
        small = [sample for sample in samples if sample.args[0][0, 0].numel() <= 30]
        complex_ones = small[1:2] if "2d" in function else []  # the kernels see real numbers alone
        return {torch.float32: small[::7], torch.complex64: complex_ones}.get(dtype, [])
    return samples[DTYPES.index(dtype) % 3 :: 3] if lane == Lane("cuda", "cpu") else samples


@each_lane
@each_function
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_sample_is_pytorchs(
    lane: Lane, function: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    samples = list(database()[function].sample_inputs(lane.device, dtype))
    if not request.config.getoption("--full"):
        samples = some(samples, lane, function, dtype)
        if not samples:
            pytest.skip("the interpreter is slow: a part of the samples; all of them with --full")
    theirs = getattr(torch.nn.functional, function)
    for sample in samples:
        # biases of None and all settings are bound, so that what is left are tensors
        tensors = [t for t in (sample.input, *sample.args) if t is not None]
        expected = theirs(*tensors, **sample.kwargs)
        grad_output = torch.randn(expected.shape, dtype=dtype, device=lane.device)
        bound = functools.partial(theirs, **sample.kwargs)
        ours = functools.partial(getattr(functional, function), backend=lane.backend, **sample.kwargs)
        got = with_gradients(ours, tensors, grad_output)
        assert got[0].dtype is dtype
        if dtype in (torch.float64, torch.complex128):
            for g, e in zip(got, with_gradients(bound, tensors, grad_output), strict=True):
                assert g.shape == e.shape and g.stride() == e.stride()
                torch.testing.assert_close(g, e, rtol=0, atol=1e-10 * max(1.0, float(e.abs().max())))
        elif lane.backend != "aten":
            hold_to_the_bound(got, bound, tensors, grad_output)


# Where our message differs: it names the argument in the same way for all three functions.
REWORDED = {
    "weight should have at least three dimensions": r"Expected 3D weight for conv1d, but got weight of size: \[1, 2\]",
    "Expected 3-dimensional input for 3-dimensional weight": "Expected 4D weight for conv2d, but got weight of size",
    "Expected 4-dimensional input for 4-dimensional weight": "Expected 5D weight for conv3d, but got weight of size",
}


@each_lane
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if "transpose" not in name])  # for which it has none
def test_every_error_is_pytorchs(lane: Lane, function: str) -> None:
    entry = database()[function]
    errors = list(entry.error_inputs(lane.device))
    assert len(errors) >= 10
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            entry.op(sample.input, *sample.args, **sample.kwargs)
        regex = REWORDED.get(error.error_regex, error.error_regex)
        with pytest.raises(error.error_type, match=regex):
            getattr(functional, function)(sample.input, *sample.args, **sample.kwargs, backend=lane.backend)
