"""Every family's launches against the stub of the driver: by JITFunction.run, and by the short way of `Launch`.

Run by tests/stubdriver/test_driver.py in a process of its own (`stubdriver.environment(…, "90,80", runtime=False)`),
where torch.cuda is never called: tensors lie on the CPU and pass for the GPU's. The emulator executes what is launched.
Prints one line of JSON for each launch, with the error of what it had a part in, as a fraction of its bound.
"""

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))

import executor
import sparse
import stubdriver
import torch
import triton
from triton.backends.nvidia import driver as nvidia

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.elementwise import Elementwise
from gpuconv.backends.triton import act_backward as triton_act, backend
from gpuconv.backends.triton.compiler import compile_for
from gpuconv.backends.triton.launch import Launch
from gpuconv.checking.problems import OPERANDS, tensors as random_tensors
from gpuconv.gpu import KNOWN, Gpu
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import as_numpy, worst_violation

LAST, FIRST = torch.channels_last, torch.contiguous_format
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
IMAGE = {"padding": 1, "memory_format": LAST}
FAR, APART = ConvProblem.of((2, 4, 6, 6), (4, 1, 1, 1), groups=4, dtype=BF16), ((1 << 31) + 1024, 36, 6, 1)
# What each family is driven with: in every direction, with whole and with split sums.
CASES = {
    ("gather", "H100"): [
        ConvProblem.of((2, 64, 14, 14), (128, 64, 3, 3), dtype=BF16, **IMAGE),
        ConvProblem.of((2, 8, 9), (8, 8, 3), dtype=F64),
    ],
    ("gather", "A100"): [ConvProblem.of((2, 64, 15, 14), (128, 64, 3, 3), stride=2, dtype=F16, **IMAGE)],
    ("planes", "H100"): [ConvProblem.of((1, 1, 4, 4, 4), (1, 1, 1, 1, 1), dtype=F32)],  # all sizes and strides 1 or 0
    ("pointwise", "H100"): [ConvProblem.of((2, 64, 14, 14), (128, 64, 1, 1), dtype=F16, memory_format=LAST)],
    ("cells", "H100"): [
        ConvProblem.of((4, 3, 32, 32), (64, 3, 7, 7), stride=2, dtype=F16, **IMAGE),
        ConvProblem.of((2, 16, 12, 12), (3, 16, 3, 3), dtype=BF16, **IMAGE),
    ],
    ("packed_runs", "H100"): [ConvProblem.of((4, 3, 32, 32), (64, 3, 7, 7), stride=2, dtype=F16, **IMAGE)],
    ("patches", "H100"): [ConvProblem.of((4, 3, 32, 32), (32, 3, 8, 8), stride=8, dtype=BF16)],
    ("stem", "H100"): [ConvProblem.of((4, 3, 32, 32), (64, 3, 7, 7), stride=2, dtype=F32, **IMAGE)],
    ("taps", "H100"): [
        ConvProblem.of((4, 32, 16, 16), (32, 1, 3, 3), padding=1, groups=32, dtype=F32),
        FAR,
    ],
    ("hopper", "H100"): [ConvProblem.of((2, 64, 14, 14), (128, 64, 3, 3), dtype=BF16, memory_format=LAST)],
    ("window", "H100"): [ConvProblem.of((2, 64, 14, 14), (128, 64, 3, 3), dtype=F16, **IMAGE)],
    ("planes", "A100"): [ConvProblem.of((1, 1, 4, 4, 4), (1, 1, 1, 1, 1), dtype=F32)],
    ("cells", "A100"): [
        ConvProblem.of((2, 3, 17, 16), (20, 3, 3, 3), stride=2, dtype=F32),
        ConvProblem.of((2, 20, 9, 9), (2, 20, 3, 3), dtype=F32),
    ],
    ("packed_runs", "A100"): [ConvProblem.of((4, 3, 33, 33), (32, 3, 3, 3), padding=1, dtype=BF16)],
    ("patches", "A100"): [ConvProblem.of((4, 3, 32, 32), (32, 3, 4, 4), stride=4, dtype=F16, memory_format=LAST)],
    ("stem", "A100"): [ConvProblem.of((4, 3, 32, 32), (64, 3, 7, 7), stride=2, dtype=F16, **IMAGE)],
    ("taps", "A100"): [ConvProblem.of((4, 32, 16, 16), (32, 1, 3, 3), padding=1, groups=32, dtype=F16)],
}
LAYOUT_NAMES = {LAST: "channels_last", FIRST: "contiguous"}
RELU = Activation("relu")
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
        memory = torch.zeros(size + alignment, dtype=torch.uint8)
        return owned(memory[-memory.data_ptr() % alignment :][:size])


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, which passes for one of the current device until `forget`."""
    if tensor.data_ptr() not in _owned:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = (last + 1) * tensor.element_size()
        stubdriver.driver().stub_own(tensor.data_ptr(), size, _device())
        _owned[tensor.data_ptr()] = tensor  # kept, so that nothing else comes to lie there
    return tensor


def forget() -> None:
    for address in _owned:
        stubdriver.driver().stub_disown(ctypes.c_void_p(address))
    _owned.clear()


_owned: dict[int, torch.Tensor] = {}


# ---- what is driven --------------------------------------------------------------------------------------------------

Call = Callable[..., None]  # a Launch, with its tensors
Judged = tuple[torch.Tensor, reference.Exact, bool]  # a result, what it is to be, whether its operands were TF32


def runs(gpu: Gpu, family: str, problem: ConvProblem) -> Iterator[tuple[str, Callable[[Call], list[Judged]]]]:
    """The functions that compute the problem in every direction, with the smallest tiles."""
    t = random_tensors(problem, family, problem.dtype, layout=LAYOUT_NAMES[problem.memory_format])
    if problem is FAR:
        t |= {
            name: sparse.empty_strided(t[name].shape, APART, BF16).copy_(t[name]) for name in ("input", "grad_output")
        }
    n = {name: as_numpy(value) for name, value in t.items()}
    for direction in DIRECTIONS:
        first, second = (t[name] for name in OPERANDS[direction])
        tf32 = problem.dtype is F32 and problem.groups == 1
        operands = Operands((first.stride(), second.stride()), bias=direction == "forward", tf32=tf32)
        arrays = (n[name] for name in OPERANDS[direction])
        exact = reference.results(problem, direction, *arrays, n["bias"], activation=RELU)
        for tile in tiles_of(gpu, family, problem, direction, operands):

            def run(
                call: Call, tile: Tile = tile, direction: Direction = direction, operands: Operands = operands,
                exact: tuple[reference.Exact, ...] = exact, tf32: bool = tf32,
            ) -> list[Judged]:  # fmt: skip
                if direction == "forward":
                    bound = backend._bind_forward(problem, RELU, operands, tile, call)
                    results = (bound(t["input"], t["weight"], t["bias"], None),)
                elif direction == "grad_input":
                    results = (backend._bind_grad_input(problem, operands, tile, call)(t["grad_output"], t["weight"]),)
                else:
                    bound = backend._bind_grad_weight(problem, operands, tile, torch.device("cpu"), call)
                    results = bound(t["grad_output"], t["input"], True)
                return [(got, wanted, tf32) for got, wanted in zip(results, exact, strict=True)]

            yield f"{direction}{' split' if tile.splits > 1 else ''}", run


def tiles_of(gpu: Gpu, family: str, problem: ConvProblem, direction: Direction, operands: Operands) -> list[Tile]:
    """The smallest tile, which compiles quickest, and the smallest that splits its sum."""
    tiles = sorted(
        backend.FAMILIES[family].tiles(problem, direction, gpu, operands),
        key=lambda tile: (tile.rows * tile.columns, tile.stages),
    )
    return [*[t for t in tiles if t.splits == 1][:1], *[t for t in tiles if t.splits > 1][:1]]


def activations(gpu: Gpu) -> Iterator[tuple[str, Callable[[Call], list[Judged]]]]:
    generator = torch.Generator().manual_seed(0)
    gy, saved = (torch.randn(4, 24, 7, 7, generator=generator).to(F16, memory_format=LAST) for _ in range(2))
    activation = Activation("gelu")
    elementwise = Elementwise((4, 24, 7, 7), F16, LAST, saved.stride(), True, activation)
    exact = reference.act_backward(activation, as_numpy(gy), as_numpy(saved))

    def run(call: Call) -> list[Judged]:
        results = triton_act.bind(elementwise, gpu, call)(gy, saved)
        return [(got, wanted, False) for got, wanted in zip(results, exact, strict=True)]

    yield "act_backward", run


def driven(run: Callable[[Call], list[Judged]], scratch: Scratch, mistake: Call | None = None) -> list[dict[str, Any]]:
    """The outcome of each launch of `run`, and the error of what they computed."""
    found: list[dict[str, Any]] = []
    judged = run(lambda launch, *tensors: found.append(compared(launch, tensors, scratch, mistake)))
    error = max(worst_violation(got, exact, tf32=tf32)[0] for got, exact, tf32 in judged)
    forget()
    return [one | {"error": error} for one in found]


def compared(
    launch: Launch, tensors: tuple[torch.Tensor | None, ...], scratch: Scratch, mistake: Call | None
) -> dict[str, Any]:
    """Launch it twice, and let the second compute; what was wrong. A test of this test makes a mistake between them."""
    for tensor in tensors:
        if tensor is not None:
            owned(tensor)
    scratch.asked.clear()
    stubdriver.driver().stub_clear()
    integers = launch.rest[: len(launch.rest) - len(launch.constants)]
    launch(STREAM, *tensors)  # compiles
    wrong = []
    if mistake is not None:
        mistake(launch)
    try:
        with executor.Executor():
            launch(STREAM, *tensors)  # goes the short way
    except RuntimeError as error:
        wrong.append(str(error))
    ordinary, short = stubdriver.launches()
    own = len(ordinary.values) - 2  # two for Triton's scratch follow
    given = parameters(launch, tensors)
    widths = [8 * size for size in ordinary.sizes[len(given) : own]]
    if stubdriver.driver().stub_refusals():
        wrong.append(stubdriver.driver().stub_refusal().decode())
    if any(not -1 << width - 1 <= value < 1 << width - 1 for value, width in zip(integers, widths, strict=True)):
        wrong.append(f"{integers} do not fit into {widths} bits")
    for way, got in (("JITFunction.run", ordinary), ("the short way", short)):
        wanted = [*given, *(value % (1 << width) for value, width in zip(integers, widths, strict=True))]
        if list(got.values[:own]) != wanted:
            wrong.append(f"{way} gives the kernel {got.values[:own]} and not {wanted}")
        if got.grid != (launch.programs, 1, 1):
            wrong.append(f"{way} has a grid of {got.grid}")
        if got.block != (32 * launch._short[-1].metadata.num_warps, 1, 1):
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
    if compile_for(launch, capability).hash != compiled.hash:
        wrong.append("what `gpuconv inspect` shows is another kernel")
    wide = 8 in ordinary.sizes[len(given) : own]
    return {"kernel": ordinary.name, "shared": ordinary.shared, "wide": wide, "wrong": wrong}


def parameters(launch: Launch, tensors: tuple[torch.Tensor | None, ...]) -> list[int]:
    """What a kernel is given for its tensors: pointers; in place of one that is described a descriptor, which begins
    with the pointer, and sizes and strides."""
    found: list[int] = []
    for place, tensor in enumerate(tensors):
        if tensor is not None:
            found.append(tensor.data_ptr())
        if place in launch.described:
            found += (*launch.described[place].shape, *launch.described[place].strides)
    return found


# What a launch could do wrong, after its first call.


def swap_two_scalars(launch: Launch) -> None:
    launch.rest = (launch.rest[1], launch.rest[0], *launch.rest[2:])


def swap_two_tensors(launch: Launch) -> None:
    assert launch._short is not None
    run, *others = launch._short

    def swapped(*arguments: Any) -> None:
        first = 9  # after grid, stream, function, metadata and three that are None
        run(*arguments[:first], arguments[first + 1], arguments[first], *arguments[first + 2 :])

    launch._short = (swapped, *others)


def launch_too_little(launch: Launch) -> None:
    launch._grid = (launch.programs - 1, 1, 1)


def main() -> None:
    torch.set_deterministic_debug_mode("warn")  # fills what is not written with NaN
    scratch = Scratch()
    triton.set_allocator(scratch)
    enter(0)
    triton.runtime.driver.set_active(Driver())
    for device, name in enumerate(("H100", "A100")):
        enter(device)
        work = [
            (family, problem.dtype, what, run)
            for (family, gpu), problems in CASES.items() if gpu == name
            for problem in problems
            for what, run in runs(KNOWN[name], family, problem)
        ]  # fmt: skip
        work += [("activations", F16, what, run) for what, run in activations(KNOWN[name])]
        for family, dtype, what, run in work:
            for found in driven(run, scratch):
                print(json.dumps({"family": family, "gpu": name, "dtype": str(dtype), "what": what, **found}))
    for mistake in (swap_two_scalars, swap_two_tensors, launch_too_little):
        for _, run in activations(KNOWN["A100"]):
            first, *_ = driven(run, scratch, mistake)
            print(json.dumps({"family": "with a mistake", "what": mistake.__name__, **first}))


if __name__ == "__main__":
    main()
