"""Every family's launches against the stub of the driver: by JITFunction.run, and by the short way of `Launch`.

Run by tests/test_stub_driver.py in a process of its own (`stubdriver.environment(…, "90,80", runtime=False)`), where
torch.cuda is never asked: tensors lie on the CPU and pass for the GPU's. Prints one line of JSON for each launch.
"""

import ctypes
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import stubdriver
import torch
import triton
from triton.backends.nvidia import driver as nvidia

from gpuconv import inspect, plan
from gpuconv.activations import Activation
from gpuconv.backends import triton as backend, triton_act
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.elementwise import Elementwise
from gpuconv.backends.triton_launch import Launch
from gpuconv.gpu import KNOWN, Gpu
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

LAST, FIRST = torch.channels_last, torch.contiguous_format
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
IMAGE = {"padding": 1, "memory_format": LAST}
# What each family is driven with: in every direction, with whole and with split sums.
CASES = {
    ("gather", "H100"): [
        ConvProblem.of((8, 64, 14, 14), (128, 64, 3, 3), dtype=BF16, **IMAGE),
        ConvProblem.of((2, 8, 9), (8, 8, 3), dtype=F64),
    ],
    ("gather", "A100"): [ConvProblem.of((8, 64, 15, 14), (128, 64, 3, 3), stride=2, dtype=F16, **IMAGE)],
    ("planes", "H100"): [ConvProblem.of((1, 1, 4, 4, 4), (1, 1, 1, 1, 1), dtype=F32)],  # all sizes and strides 1 or 0
    ("pointwise", "H100"): [ConvProblem.of((8, 64, 14, 14), (128, 64, 1, 1), dtype=F16, memory_format=LAST)],
    ("stem", "H100"): [ConvProblem.of((4, 3, 32, 32), (64, 3, 7, 7), stride=2, dtype=F32, **IMAGE)],
    ("taps", "H100"): [
        ConvProblem.of((4, 32, 16, 16), (32, 1, 3, 3), padding=1, groups=32, dtype=F32),
        ConvProblem.of((1, 4, 60_000, 60_000), (4, 1, 1, 1), groups=4, dtype=BF16),  # strides of 64 bits
    ],
    ("window", "H100"): [ConvProblem.of((8, 64, 14, 14), (128, 64, 3, 3), dtype=F16, **IMAGE)],
}
STREAM, THEIRS = 1, 0  # which of the two ways gave a launch its stream


class Driver(nvidia.CudaDriver):  # type: ignore[misc]
    """Triton's own, which asks the CUDA driver for all that it would ask torch.cuda."""

    def __init__(self) -> None:
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = nvidia.CudaLauncher
        self.get_current_device = _device
        self.get_device_capability = lambda device: divmod(stubdriver.driver().stub_capability(device), 10)
        self.get_current_stream = lambda device: THEIRS


def _device() -> int:
    device = ctypes.c_int()
    assert stubdriver.driver().cuCtxGetDevice(ctypes.byref(device)) == 0
    return device.value


def enter(device: int) -> None:
    """Make the context of a device current in this thread."""
    context = ctypes.c_void_p()
    assert stubdriver.driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert stubdriver.driver().cuCtxSetCurrent(context) == 0


class Scratch:
    """The allocator for descriptors; notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, size: int, alignment: int, stream: int) -> torch.Tensor:
        self.asked.append((size, alignment, stream))
        return owned(torch.zeros(size + alignment, dtype=torch.uint8))


@functools.cache
def memory(dtype: torch.dtype, which: int) -> torch.Tensor:
    return owned(torch.zeros(64, dtype=dtype))


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, which passes for one of the current device from now on."""
    stubdriver.driver().stub_own(tensor.data_ptr(), tensor.nbytes, _device())
    _kept.append(tensor)  # so that nothing else comes to lie there
    return tensor


_kept: list[torch.Tensor] = []


# ---- what is driven --------------------------------------------------------------------------------------------------


def launches_of(gpu: Gpu, family: str, problem: ConvProblem) -> Iterator[tuple[str, Launch]]:
    for direction in DIRECTIONS:
        layout = plan.contiguous_operands(problem, direction, problem.memory_format)
        operands = layout._replace(bias=direction == "forward", tf32=problem.dtype is F32 and problem.groups == 1)
        for tile in tiles_of(gpu, family, problem, direction, operands):
            for launch in backend.launches(problem, direction, operands, tile, Activation("relu"), with_bias=True):
                yield f"{direction}{' split' if tile.splits > 1 else ''}", launch


def tiles_of(gpu: Gpu, family: str, problem: ConvProblem, direction: Direction, operands: Operands) -> list[Tile]:
    """The smallest tile, which compiles quickest, and the smallest that splits its sum."""
    tiles = sorted(
        backend.FAMILIES[family].tiles(problem, direction, gpu, operands),
        key=lambda tile: (tile.rows * tile.columns, tile.stages),
    )
    return [*[t for t in tiles if t.splits == 1][:1], *[t for t in tiles if t.splits > 1][:1]]


def activations(gpu: Gpu) -> Iterator[tuple[str, Launch]]:
    strides = torch.empty(4, 24, 7, 7, device="meta", memory_format=LAST).stride()
    elementwise = Elementwise((4, 24, 7, 7), F16, LAST, strides, True, Activation("gelu"))
    yield from (("act_backward", launch) for launch in triton_act.launches(elementwise, gpu))


def compared(launch: Launch, scratch: Scratch, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Launch it twice; what was wrong. A test of this test makes a mistake `between`."""
    tensors = [None if dtype is None else memory(dtype, i) for i, dtype in enumerate(launch.dtypes)]
    scratch.asked.clear()
    stubdriver.driver().stub_clear()
    integers = launch.rest[: len(launch.rest) - len(launch.constants)]
    launch(STREAM, *tensors)  # compiles
    between()
    launch(STREAM, *tensors)  # goes the short way
    ordinary, short = stubdriver.launches()
    pointers = [0 if t is None else t.data_ptr() for t in tensors if t is not None]
    own = len(ordinary.values) - 2  # two for Triton's scratch follow
    widths = [8 * size for size in ordinary.sizes[len(pointers) : own]]
    wrong = []
    if stubdriver.driver().stub_refusals():
        wrong.append(stubdriver.driver().stub_refusal().decode())
    if any(not -1 << width - 1 <= value < 1 << width - 1 for value, width in zip(integers, widths, strict=True)):
        wrong.append(f"{integers} do not fit into {widths} bits")
    for way, got in (("JITFunction.run", ordinary), ("the short way", short)):
        wanted = [*pointers, *(value % (1 << width) for value, width in zip(integers, widths, strict=True))]
        if list(got.values[:own]) != wanted:
            wrong.append(f"{way} gives the kernel {got.values[:own]} and not {wanted}")
        if got.grid != (launch.programs, 1, 1):
            wrong.append(f"{way} has a grid of {got.grid}")
        if got.block != (32 * launch.options["num_warps"], 1, 1):
            wrong.append(f"{way} has blocks of {got.block}")
        if bool(got.values[own]) != launch.descriptors or got.values[own + 1]:
            wrong.append(f"{way} gives {got.values[own:]} as scratch, and descriptors: {launch.descriptors}")
    if (ordinary.stream, short.stream) != (THEIRS, STREAM):
        wrong.append(f"streams {ordinary.stream} and {short.stream}")
    if launch.descriptors != (len(scratch.asked) == 2) or len({size for size, *_ in scratch.asked}) > 1:
        wrong.append(f"scratch was asked for {scratch.asked}, and descriptors: {launch.descriptors}")
    for field in ("name", "device", "shared", "attributes", "function", "sizes"):
        if getattr(ordinary, field) != getattr(short, field):
            wrong.append(f"{field}: {getattr(ordinary, field)} and {getattr(short, field)}")
    assert launch._short is not None
    compiled, capability = launch._short[-1], stubdriver.driver().stub_capability(ordinary.device)
    if inspect.compile_for(launch, capability).hash != compiled.hash:
        wrong.append("what `gpuconv inspect` shows is another kernel")
    wide = 8 in ordinary.sizes[len(pointers) : own]
    return {"kernel": ordinary.name, "shared": ordinary.shared, "wide": wide, "wrong": wrong}


def main() -> None:
    scratch = Scratch()
    triton.set_allocator(scratch)
    enter(0)
    triton.runtime.driver.set_active(Driver())
    for device, name in enumerate(("H100", "A100")):
        enter(device)
        memory.cache_clear()
        work = [
            (family, problem.dtype, what, launch)
            for (family, gpu), problems in CASES.items() if gpu == name
            for problem in problems
            for what, launch in launches_of(KNOWN[name], family, problem)
        ]  # fmt: skip
        work += [("activations", F16, what, launch) for what, launch in activations(KNOWN[name])]
        for family, dtype, what, launch in work:
            found = compared(launch, scratch)
            print(json.dumps({"family": family, "gpu": name, "dtype": str(dtype), "what": what, **found}))
    _, launch = next(activations(KNOWN["A100"]))

    def mistake() -> None:
        launch.rest = (launch.rest[1], launch.rest[0], *launch.rest[2:])

    print(json.dumps({"family": "with a mistake", **compared(launch, scratch, mistake)}))


if __name__ == "__main__":
    main()
