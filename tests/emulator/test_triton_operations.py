"""Triton's operations, compiled, beside PyTorch: mathematics, casts, products of every type, layouts, print."""

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from gpuconv.emulator import EmulationError, UnknownInstruction, triton_gpu, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no GPU can be emulated: {why_not()}")

N = 256
EVERY = pytest.mark.parametrize("gpu", ["h100", pytest.param("a100", marks=pytest.mark.full)])


@triton.jit
def pointwise_kernel(x, out, N: tl.constexpr, OP: tl.constexpr):
    """Several operations on x, results added up; float32 in and out."""
    o = tl.arange(0, N)
    v = tl.load(x + o)
    if OP == "exponentials":
        r = tl.exp(v) + tl.exp2(v) + tl.sigmoid(v) + libdevice.expm1(v)
    elif OP == "logarithms":
        r = tl.log(v) + tl.log2(v) + libdevice.log1p(v)
    elif OP == "trigonometry":
        r = tl.sin(v) + tl.cos(v) + tl.sin(v * 100000.0)
    elif OP == "hyperbolic":
        r = libdevice.tanh(v) + libdevice.atan2(v, 2.0)
    elif OP == "erf":
        r = tl.erf(v)
    elif OP == "power":
        r = libdevice.pow(v, v)
    elif OP == "roots":
        r = tl.rsqrt(v) + tl.sqrt(v) + tl.sqrt_rn(v) + tl.div_rn(v, v + 1) + v / 3.0
    elif OP == "rounding":
        r = tl.floor(v * 4) + tl.ceil(v * 4) + libdevice.rint(v * 4) + tl.abs(-v)
    elif OP == "clamp":
        r = tl.clamp(v, 0.5, 1.5) + tl.fma(v, v, 1.0) + tl.maximum(v, 1.0) + tl.minimum(v, 0.25)
    elif OP == "integer division":
        i = (v * 1000).to(tl.int32) - 700
        k = i.to(tl.int64) * 1000003
        r = (i // 7 + i % 7 + (k // (i.to(tl.int64) + 5003)).to(tl.int32) + tl.cdiv(i, 5)).to(tl.float32)
    elif OP == "high products":
        u = (v * 1000000000).to(tl.uint32)
        r = (tl.umulhi(u, u) >> 8).to(tl.float32) + (tl.umulhi(u.to(tl.uint64) << 32, u.to(tl.uint64)) >> 8).to(
            tl.float32
        )
    elif OP == "16-bit integers":
        s = ((v - 1) * 3000).to(tl.int16)
        r = (s * s + (s >> 3) + s // 5).to(tl.float32) + ((v * 100).to(tl.uint8) + (v * 30).to(tl.int8)).to(tl.float32)
    elif OP == "16-bit floats":
        h, b = v.to(tl.float16), v.to(tl.bfloat16)
        r = (h * h + h).to(tl.float32) + (b * b).to(tl.float32) + tl.maximum(b, 1.0).to(tl.float32)
    elif OP == "float64":
        r = (tl.exp(v.to(tl.float64)) * tl.sqrt(v.to(tl.float64)) - 1.0 / v.to(tl.float64)).to(tl.float32)
    elif OP == "gather":
        r = tl.gather(v, N - 1 - o, 0)
    elif OP == "transpose":
        r = tl.reshape(tl.trans(tl.reshape(v, (N // 8, 8))), (N,))
    elif OP == "flip":
        r = tl.flip(v, 0)
    elif OP == "products so far":
        r = tl.cumprod(v * 0.01 + 0.99, 0)
    elif OP == "the largest":
        r = tl.where(tl.max(v, 0, return_indices=True)[1] == o, v, 0.0)
    else:
        tl.static_assert(OP == "print")
        tl.device_print("value", v)
        r = v
    tl.store(out + o, r)


def _integers(v: torch.Tensor) -> torch.Tensor:
    i = (v * 1000).int() - 700  # Triton's // and % are C's

    def quotient(a: torch.Tensor, b: torch.Tensor | int) -> torch.Tensor:
        return torch.div(a, b, rounding_mode="trunc")

    k = i.long() * 1000003
    return quotient(i, 7) + torch.fmod(i, 7) + quotient(k, i.long() + 5003).int() + quotient(i + 4, 5)


def _high(v: torch.Tensor) -> torch.Tensor:
    u = (v * 1000000000).long()
    return (u * u >> 32 >> 8).float() + (u * u >> 32 >> 8).float()


def _small(v: torch.Tensor) -> torch.Tensor:
    s = ((v - 1) * 3000).short()
    fifth = torch.div(s, 5, rounding_mode="trunc")
    return (s * s + (s >> 3) + fifth).float() + ((v * 100).byte() + (v * 30).to(torch.int8)).to(torch.int16).float()


def _half(v: torch.Tensor) -> torch.Tensor:
    h, b = v.half(), v.bfloat16()
    return (h.double() * h.double() + h.double()).half().float() + (b * b).float() + b.clamp(min=1).float()


POINTWISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exponentials": lambda v: v.exp() + v.exp2() + v.sigmoid() + v.expm1(),
    "logarithms": lambda v: v.log() + v.log2() + v.log1p(),
    "trigonometry": lambda v: v.sin() + v.cos() + (v.float() * 100000.0).double().sin(),
    "hyperbolic": lambda v: v.tanh() + torch.atan2(v, torch.tensor(2.0)),
    "erf": torch.erf,
    "power": lambda v: v**v,
    "roots": lambda v: v.rsqrt() + 2 * v.sqrt() + v / (v + 1) + v / 3,
    "rounding": lambda v: (v * 4).floor() + (v * 4).ceil() + (v * 4).round() + v,
    "clamp": lambda v: v.clamp(0.5, 1.5) + (v * v + 1) + v.clamp(min=1) + v.clamp(max=0.25),
    "integer division": lambda v: _integers(v.float()),
    "high products": lambda v: _high(v.float()),
    "16-bit integers": lambda v: _small(v.float()),
    "16-bit floats": lambda v: _half(v.float()),
    "float64": lambda v: v.exp() * v.sqrt() - 1 / v,
    "gather": lambda v: v.flip(0),
    "transpose": lambda v: v.view(N // 8, 8).T.reshape(N),
    "flip": lambda v: v.flip(0),
    "products so far": lambda v: (v * 0.01 + 0.99).cumprod(0),
    "the largest": lambda v: torch.where(v == v.max(), v, 0.0),
}


@EVERY
@pytest.mark.parametrize("operation", POINTWISE)
def test_pointwise(gpu: str, operation: str) -> None:
    torch.manual_seed(3)
    x, out = torch.rand(N) * 1.9 + 0.05, torch.empty(N)
    with triton_gpu(gpu):
        pointwise_kernel[(1,)](x, out, N=N, OP=operation)
    torch.testing.assert_close(out.double(), POINTWISE[operation](x.double()).double(), rtol=1e-6, atol=2e-6)


@triton.jit
def dot_kernel(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    b_a, b_b = tl.load(a + o_m[:, None] * K + o_k[None, :]), tl.load(b + o_k[:, None] * N + o_n[None, :])
    ACC: tl.constexpr = c.dtype.element_ty
    tl.store(c + o_m[:, None] * N + o_n[None, :], tl.dot(b_a, b_b, input_precision=PRECISION, out_dtype=ACC))


@EVERY
@pytest.mark.parametrize("dtype, precision", [
    (torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "tf32x3"),
    (torch.float32, "ieee"), (torch.float64, "ieee"), (torch.int8, "ieee"),
], ids=lambda v: str(v).removeprefix("torch."))  # fmt: skip
def test_products(gpu: str, dtype: torch.dtype, precision: str) -> None:
    torch.manual_seed(3)
    M, N, K = 64, 32, 64
    a, b = torch.randn(M, K, dtype=torch.float64), torch.randn(K, N, dtype=torch.float64)
    a, b = ((t * 20).to(dtype) if dtype is torch.int8 else t.to(dtype) for t in (a, b))
    c = torch.empty(M, N, dtype={torch.int8: torch.int32, torch.float64: dtype}.get(dtype, torch.float32))
    with triton_gpu(gpu):
        dot_kernel[(1,)](a, b, c, M=M, N=N, K=K, PRECISION=precision)
    exact = a.double() @ b.double()
    unit = {"tf32": 2.0**-10}.get(precision, 2.0**-52 if dtype is torch.float64 else 2.0**-23)
    assert ((c.double() - exact).abs() <= 4 * unit * (a.double().abs() @ b.double().abs())).all()
    assert dtype is not torch.int8 or torch.equal(c.double(), exact)


def test_an_instruction_that_is_not_known_is_named_with_its_line() -> None:
    a, c = torch.zeros(64, 64).to(torch.float8_e4m3fn), torch.empty(64, 64)
    with (
        triton_gpu("h100"),
        pytest.raises(UnknownInstruction, match=r"dot_kernel: PTX line .*wgmma.*f32.e4m3.e4m3") as caught,
    ):
        dot_kernel[(1,)](a, a, c, M=64, N=64, K=64, PRECISION="ieee")
    assert caught.value.kind == "unknown instruction" and caught.value.source in str(caught.value)
    assert caught.value.source.startswith("test_triton_operations.py:")


@triton.jit
def assert_kernel(x, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    tl.device_assert(v > 0, "must be positive")
    tl.store(x + tl.arange(0, N), v + 1)


@EVERY
def test_a_device_assertion_that_fails_is_a_trap_of_its_thread(gpu: str) -> None:
    x = torch.ones(N)
    with triton_gpu(gpu):
        assert_kernel[(1,)](x, N=N, debug=True)
        assert x.eq(2).all()
        x[77] = -1
        with pytest.raises(EmulationError, match="assert_kernel") as caught:
            assert_kernel[(1,)](x, N=N, debug=True)
    assert caught.value.kind == "trap"


@EVERY
def test_printing_kernels_run(gpu: str) -> None:
    x, out = torch.rand(N), torch.empty(N)
    with triton_gpu(gpu):
        pointwise_kernel[(1,)](x, out, N=N, OP="print")
    assert torch.equal(x, out)
