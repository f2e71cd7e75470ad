"""The CUDA kernels beyond 2³¹ elements, without that many: operands whose elements lie far apart, and last blocks."""

import dataclasses
import math

import pytest
import sparse
import torch
from host_cuda import COMPILER, HostRuntime, build

from gpuconv import reference
from gpuconv.activations import IDENTITY
from gpuconv.backends import derived
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import backend as cuda
from gpuconv.backends.cuda.launch import source
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import as_numpy, assert_close_to_oracle

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")

PROBLEM = ConvProblem.of((3, 16, 4, 6), (16, 8, 3, 3), padding=1, groups=2)
TILES = {
    "simt": Tile(64, 16, 16, warps=2, stages=2, kernel="simt"),
    "tensor": Tile(64, 16, 32, warps=4, stages=3, kernel="tensor"),
    "halo": Tile(64, 16, 32, warps=4, stages=3, kernel="halo", halo=100),
}
RUNTIME = HostRuntime()


def exact(problem: ConvProblem, direction: Direction, t: dict[str, torch.Tensor]) -> reference.Exact:
    n = {name: as_numpy(value) for name, value in t.items()}
    if direction == "forward":
        return reference.forward(problem, n["input"], n["weight"], n["bias"], n["residual"])
    return getattr(reference, direction)(problem, *(n[name] for name in OPERANDS[direction]))


def kinds() -> list[tuple[Direction, str]]:
    return [(d, k) for d in DIRECTIONS for k in TILES if (d, k) != ("grad_weight", "halo")]


@pytest.mark.parametrize(("direction", "kernel"), kinds())
def test_operands_with_strides_beyond_32_bits(direction: Direction, kernel: str) -> None:
    """Every axis of every operand in turn, the channels in the kernel that takes them one by one."""
    dtype = torch.float32 if kernel == "simt" else torch.bfloat16
    order, memory_format = sparse.CHANNELS_LAST, torch.channels_last
    if kernel == "simt":
        order, memory_format = sparse.CONTIGUOUS, torch.contiguous_format
    problem = dataclasses.replace(PROBLEM, dtype=dtype, memory_format=memory_format)
    t = tensors(problem, "64 bit", dtype, "cpu", "channels_last" if kernel != "simt" else "contiguous")
    expected = exact(problem, direction, t)
    tile = dataclasses.replace(TILES[kernel], splits=2 if direction == "grad_weight" else 1)
    for name in (*OPERANDS[direction], *(["residual"] if direction == "forward" else [])):
        for axis in (0, 1, 2, 3) if kernel == "simt" else (0, 2, 3):
            given = t | {name: sparse.apart(t[name], axis, order)}
            first, second = (given[name] for name in OPERANDS[direction])
            residual = given["residual"].stride() if direction == "forward" else None
            operands = Operands((first.stride(), second.stride()), residual, direction == "forward")
            launch = cuda.launches(problem, direction, operands, tile)[0]
            assert "-DWIDE=1" in launch.instance.options
            backend = cuda.CudaBackend()
            backend.runtimes["cpu"] = RUNTIME
            run = backend.bind(problem, direction, torch.device("cpu"), IDENTITY, operands, tile)
            if direction == "forward":
                got = run(first, second, given["bias"], given["residual"])
            else:
                got = run(first, second, False)[0] if direction == "grad_weight" else run(first, second)
            assert_close_to_oracle(got, expected, f"{direction} {kernel} {name} {axis}")


def test_32_bits_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuconv.backends.derived._MOST_OFFSET", 1 << 62)
    t = tensors(PROBLEM, "64 bit", torch.float32)
    expected = exact(PROBLEM, "forward", t)
    x = sparse.apart(t["input"], 0, sparse.CONTIGUOUS)
    operands = Operands((x.stride(), t["weight"].stride()), t["residual"].stride(), True)
    backend = cuda.CudaBackend()
    backend.runtimes["cpu"] = HostRuntime()
    run = backend.bind(PROBLEM, "forward", torch.device("cpu"), IDENTITY, operands, TILES["simt"])
    got = run(x, t["weight"], t["bias"], t["residual"])
    assert reference.worst_violation(got, expected)[0] > 100


@pytest.mark.parametrize(("direction", "kernel"), kinds())
def test_64_bits_exactly_where_32_overflow(direction: Direction, kernel: str) -> None:
    most, problem = derived._MOST_OFFSET, dataclasses.replace(PROBLEM, dtype=torch.bfloat16)
    plain = plan.contiguous_operands(problem, direction)
    for i, shape in enumerate(problem.operand_shapes(direction)):
        for axis, size in enumerate(shape):
            for offset, expected in ((most, 0), (most + size, 1)):
                both = [*plain.strides]
                both[i] = tuple(offset // (size - 1) if a == axis else 0 for a in range(4))
                launch = cuda.launches(problem, direction, plain._replace(strides=tuple(both)), TILES[kernel])[0]
                assert f"-DWIDE={expected}" in launch.instance.options, (i, axis)


# ---- more than 2³¹ pixels and elements: the last blocks of a launch --------------------------------------------------

HUGE = ConvProblem.of((32_800, 2, 256, 256), (3, 2, 3, 3), padding=1)  # 2.15·10⁹ pixels


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_the_last_block_of_more_than_2_to_the_31_pixels(direction: Direction) -> None:
    """The tensor-core kernels count pixels in 32 bits and refuse so many; the others take them."""
    import ctypes

    assert HUGE.batch * math.prod(HUGE.output_size) > 2**31
    half = dataclasses.replace(HUGE, dtype=torch.float16)
    offered = cuda.CudaBackend().tiles(half, direction, KNOWN["H100"], plan.contiguous_operands(half, direction))
    assert {tile.kernel for tile in offered} == {"simt"}

    one, tile = dataclasses.replace(HUGE, batch=1), TILES["simt"]
    small = tensors(one, "last image", torch.float32)
    a, b = (small[name] for name in OPERANDS[direction])
    shape = HUGE.operand_shapes(direction)[0]
    many = sparse.empty_strided(shape, torch.empty(shape, device="meta").stride(), torch.float32)
    many[-1:] = a
    shape = HUGE.output_shape if direction == "forward" else HUGE.input_shape
    result = sparse.empty_strided(shape, torch.empty(shape, device="meta").stride(), torch.float32)
    result[-1:] = math.nan
    (launch,) = cuda.launches(HUGE, direction, Operands((many.stride(), b.stride())), tile)
    assert "-DWIDE=1" in launch.instance.options
    text = source(launch.instance.file).replace("blockIdx.x", f"(blockIdx.x + {launch.blocks - 1}u)")
    library = ctypes.CDLL(str(build(text, launch.instance.options, "fast")))
    extra = (None, None) if direction == "forward" else ()
    parameters, _values = launch.parameters((many, b, *extra, result))
    run = getattr(library, f"launch_{launch.instance.function}")
    run.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint]
    run(1, launch.instance.threads, launch.instance.shared, parameters, 0)
    zeros = {"bias": torch.zeros(HUGE.out_channels), "residual": torch.zeros(one.output_shape)}
    whole = exact(one, direction, small | zeros)
    part = (0, slice(None), -1, slice(-tile.rows, None))
    last = result[-1].flatten(1)[:, -tile.rows :]  # [channels, pixels]
    assert_close_to_oracle(last, whole._replace(value=whole.value[part], magnitude=whole.magnitude[part]))
    assert result[-1].flatten(1)[:, : -tile.rows].isnan().all()
