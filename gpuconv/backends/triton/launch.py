"""Launches of Triton kernels, quick to call again, and the arguments that the kernels of all families share.

The families (`gather`, …) say which kernel, how many programs, and which compile-time constants follow from the
problem, from the strides of its tensors and from the tile. That needs no GPU, so that launches can be looked at
anywhere.
"""

import copy
import functools
import inspect
import math
import os
import shutil
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gpuconv.activations import Activation
from gpuconv.backends import context, last_program
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.capture import not_loaded
from gpuconv.backends.derived import accumulator, axes, overflows
from gpuconv.backends.last_program import Workspace
from gpuconv.problem import ConvProblem, Direction, allocate

try:
    import triton
    import triton.language as tl
    from triton.backends.nvidia import driver as nvidia
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia import hopper
    from triton.runtime import _allocation
    from triton.tools.tensor_descriptor import TensorDescriptor

    from gpuconv.kernels.triton.grad_bias import FILTERS
    from gpuconv.kernels.triton.sum_partials import sum_partials
except ImportError as error:  # Windows, macOS
    _missing: str | None = f"Triton cannot be imported ({error})"
else:
    _missing = None

# Read when the kernels were decorated: from then on this process interprets, or it compiles.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter keeps the program's index in a global, so threads must take turns; compiling gains nothing from two.
_one_at_a_time = threading.Lock()
_MOST_MAPS = 256  # encoded descriptors that a launch keeps
BAND = 8  # rows of tiles that are walked column by column
_SUM_BLOCK = 1024
_NO_WORKSPACE = Workspace()
_GLUON_TYPES: dict[Any, Any] = {}
if _missing is None:
    _GLUON_TYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16, torch.float32: gl.float32}


def why_not() -> str | None:
    """Why Triton's kernels cannot run in this process; None if they can."""
    if _missing is not None or INTERPRETING:
        return why_no_interpreter()
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU (with TRITON_INTERPRET=1 its kernels are interpreted on the CPU, slowly)"
    return _why_no_launcher()


def why_no_compiler() -> str | None:
    """Why Triton compiles nothing in this process, for whatever GPU; None if it does."""
    if _missing is None and INTERPRETING:
        return "TRITON_INTERPRET=1 is set, and what is interpreted cannot be compiled"
    return _missing


def why_no_interpreter() -> str | None:
    """Why Triton's interpreter does not work here; None if it does."""
    if _missing is not None:
        return _missing
    if RELEASE < (3, 8) and _release(np) >= (2, 4):
        return (
            f"the interpreter of Triton {triton.__version__} does not work with NumPy {np.__version__}, only with "
            "versions before 2.4"
        )
    return None


@functools.cache
def _why_no_launcher() -> str | None:
    """Why Triton cannot launch, whatever the kernel; None if it can.

    It does so with C code that it compiles when it is first needed, or finds in its cache; as of Triton 3.8 one module,
    before that another one for each kind of kernel.
    """
    try:
        one_for_all = hasattr(triton.runtime.driver.active.utils, "launch")
    except Exception as error:  # nor a libcuda.so.1 to link with, a cache that can be written, …
        first, *_ = str(error).splitlines() or [""]
        why = _why_no_compiler() or f"{type(error).__name__}: {first}"
        return f"Triton cannot compile the C code that launches its kernels: {why}"
    lacking = None if one_for_all else _why_no_compiler()
    return None if lacking is None else f"Triton cannot compile the C code that launches a kernel: {lacking}"


def _why_no_compiler() -> str | None:
    """Why this machine cannot compile C code that uses Python, as far as that shows without trying."""
    compiler = os.environ.get("CC")
    if compiler is None and not triton.knobs.build.impl and not (shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler (install gcc or clang, or set CC)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"{header} is missing (on Debian and Ubuntu it comes with python3-dev)"
    return None


def _release(module: Any) -> tuple[int, ...]:
    """(major, minor) of a module's version."""
    return tuple(int(part) for part in module.__version__.split(".")[:2])


# The release of Triton, which some kernels depend on: () without one.
RELEASE = _release(triton) if _missing is None else ()


class Described(NamedTuple):
    """A descriptor of a tensor for the GPU's copy engine, but for the tensor. Sizes and strides in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]


class Launch:
    """One kernel with everything fixed but its tensors: call it with them.

    The first call goes through Triton, which compiles. Later ones hand the compiled kernel its arguments directly, in a
    fraction of the time, where that is safe: all pointers are multiples of 16 bytes, as they were then, and no profiler
    hooks into launches.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        dtypes: tuple[torch.dtype | None, ...],
        scalars: tuple[int, ...],
        constants: dict[str, Any],
        tile: Tile,
        descriptors: bool = False,
        workspace: Workspace = _NO_WORKSPACE,
        described: dict[int, Described] | None = None,
    ) -> None:
        names = kernel.arg_names[len(dtypes) + len(scalars) :]
        if names != [*constants]:  # all are given by position
            given = ", ".join(constants)
            raise TypeError(f"constants of {kernel.__name__} must be {', '.join(names)}, but got {given}")
        self.kernel = kernel
        self.programs = programs
        self.dtypes = dtypes  # of the tensors, in order; None where the kernel is given None
        self.constants = constants
        self.rest = (*scalars, *constants.values())  # what follows the tensors
        self.descriptors = descriptors  # it makes some, and needs memory for them
        self.described = described or {}  # the tensors that it is given as descriptors, by their places
        self.workspace = workspace  # of a sum that its last programs add
        self.gluon = getattr(kernel, "is_gluon", bool)()  # what is interpreted never is
        # Left alone, ptxas may put a value or two on the stack so that one more block fits; 255 registers are the most.
        # In Gluon warps of other tasks come on top, and share the registers out among them.
        self.options = {
            "num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": None if self.gluon else 255,
            "enable_fp_fusion": True,
        }  # fmt: skip
        self._grid = (programs, 1, 1)
        # The function and the arguments of the short way, and the compiled kernel, which unloads its module when it
        # goes. All in one attribute, so that another thread sees all of it or nothing.
        self._short: tuple[Any, Any, Any, Any] | None = None
        self._boxes: dict[int, Any] = {}  # what Triton says of the descriptors, by their places
        self._maps: dict[tuple[int, int], list[Any]] = {}  # by place and address

    def __call__(self, stream: int | None, *tensors: torch.Tensor | None) -> None:
        """Launch on `stream` of the current device; None for tensors on the CPU, whose kernels are interpreted."""
        if not self.programs:
            return
        if self.descriptors:
            _lend_scratch()
        if self._short is not None:
            pointers = [0 if t is None else t.data_ptr() for t in tensors]
            if _all_aligned(pointers) and not _hooked():
                run, function, metadata, _ = self._short
                arguments = self._encoded(pointers, tensors) if self.described else pointers
                run(*self._grid, stream, function, metadata, None, None, None, *arguments, *self.rest)
                return
        if self.described:
            _enter(tensors[0])  # Triton encodes descriptors before it sees to that
        compiled = self._compile_and_launch(tensors)
        if stream is not None and _all_aligned([0 if t is None else t.data_ptr() for t in tensors]):
            self.use(compiled)

    def use(self, compiled: Any) -> None:
        """Call `compiled` from now on: a kernel compiled for these arguments with all pointers aligned."""
        # `run` loads the module, if it is not loaded, and only then is there a function.
        run, function = compiled.run, compiled.function
        if self.described:
            # What Triton's launcher calls when it has encoded the descriptors; here `_encoded` does that.
            inner = inspect.getclosurevars(run.launch).nonlocals.get("launcher")
            if inner is None:  # another Triton: it goes on by the ordinary way
                return
            run = copy.copy(run)
            run.launch = inner
            self._boxes = dict(zip(sorted(self.described), compiled.metadata.tensordesc_meta, strict=True))
        self._short = run, function, compiled.packed_metadata, compiled

    def _encoded(self, pointers: list[int], tensors: tuple[torch.Tensor | None, ...]) -> list[Any]:
        """The pointers, with what a kernel is given of a descriptor in place of those that are described. PyTorch hands
        out the same memory again and again: descriptors are kept by the address that they tell of."""
        arguments: list[Any] = []
        for place, pointer in enumerate(pointers):
            if place not in self.described:
                arguments.append(pointer)
                continue
            known = self._maps.get((place, pointer))
            if known is None:
                if len(self._maps) >= _MOST_MAPS:
                    self._maps.clear()
                _enter(tensors[place])
                encode = nvidia.make_tensordesc_arg
                unused = (None,) * (len(inspect.signature(encode).parameters) - 2)  # before 3.8 it takes two arguments
                known = encode(self._descriptor(place, tensors[place]), self._boxes[place], *unused)
                self._maps[place, pointer] = known
            arguments += known
        return arguments

    def arguments(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """What Triton is given for these tensors."""
        given = (self._descriptor(i, t) if i in self.described else t for i, t in enumerate(tensors))
        return (*given, *self.rest)

    def _descriptor(self, place: int, tensor: Any) -> Any:
        of = self.described[place]
        known = tensor, [*of.shape], [*of.strides], [*of.block]
        if not self.gluon:
            return TensorDescriptor(*known)
        dtype = self.dtypes[place]
        return hopper.TensorDescriptor(*known, NVMMASharedLayout.get_default_for([*of.block], _GLUON_TYPES[dtype]))

    def _compile_and_launch(self, tensors: tuple[torch.Tensor | None, ...]) -> Any:
        """The ordinary way; the compiled kernel, loaded. It is found in Triton's caches if it was compiled before."""
        try:
            with _one_at_a_time:
                return self.kernel[self._grid](*self.arguments(tensors), **self.options)
        except RuntimeError as error:
            if "stream is capturing" not in str(error):
                raise
            raise not_loaded(self.kernel.__name__) from error


def _enter(tensor: Any) -> None:
    """See that a context is current in this thread; a tensor on the CPU needs none."""
    if tensor.is_cuda:
        context.enter_one(tensor.device.index)


def _lend_scratch() -> None:
    """Let Triton's launchers allocate what descriptors need by PyTorch's allocator, unless the caller has set another.

    They ask a context variable, so every thread has its own, and autograd's threads start without.
    """
    if isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        triton.set_allocator(_scratch)


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """`size` bytes on the current device. They are freed when the launch is on its way: PyTorch hands them out again to
    later work of the same stream (or, capturing, of the same graph) alone. Its blocks begin at multiples of 512."""
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def _all_aligned(pointers: list[int]) -> bool:
    """Whether all are multiples of 16."""
    together = 0
    for pointer in pointers:
        together |= pointer
    return together % 16 == 0


def _hooked() -> bool:
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


# ---- arguments of kernels --------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a tensor [N, C, D, H, W] lies in memory."""

    strides: tuple[int, ...]  # five, 0 for an axis of size 1
    channels_fast: bool  # channels lie closer than pixels
    extent: int  # one more than the largest offset

    def vectors(self, unit: int) -> bool:
        """Whether channels lie one after the other, and all other strides are multiples of `unit`."""
        n, c, *pixel = self.strides
        return c == 1 and not any(stride % unit for stride in (n, *pixel))

    def divided(self, unit: int) -> tuple[int, ...]:
        """The strides in units of `unit` elements, but for that of the channels."""
        n, c, *pixel = self.strides
        return (n // unit, c, *(stride // unit for stride in pixel))


def layout(shape: tuple[int, ...], strides: tuple[int, ...], problem: ConvProblem) -> Layout:
    """The layout of a tensor of the problem with this shape and these strides."""
    n, c, *pixel = (0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, (n, c, *pixel), strict=True))
    nearest = min((stride for stride in pixel if stride), default=math.inf)
    fast = c < nearest if c else problem.memory_format is not torch.contiguous_format
    return Layout((n, c, *(0,) * (3 - len(pixel)), *pixel), fast, extent)


def layouts(problem: ConvProblem, direction: Direction, operands: Operands) -> tuple[Layout, Layout]:
    """The layouts of the two tensors that `direction` multiplies."""
    (a, a_strides), (b, b_strides) = zip(problem.operand_shapes(direction), operands.strides, strict=True)
    return layout(a, a_strides, problem), layout(b, b_strides, problem)


def residual_layout(problem: ConvProblem, operands: Operands) -> Layout:
    """The layout of the residual; without one, strides of 0."""
    return layout(problem.output_shape, operands.residual or (0,) * (2 + problem.ndim), problem)


def dtypes_of_forward(problem: ConvProblem, operands: Operands) -> tuple[torch.dtype | None, ...]:
    """The types of input, weight, bias, residual and result."""
    dtype = problem.dtype
    return dtype, dtype, dtype if operands.bias else None, dtype if operands.residual else None, dtype


def epilogue_of(activation: Activation) -> dict[str, Any]:
    """The constants of `gpuconv.kernels.triton.epilogue`."""
    return {
        "ACTIVATION": activation.name,
        "SLOPE": activation.slope if activation.name == "leaky_relu" else 0.0,
    }


def result_strides(shape: tuple[int, ...], problem: ConvProblem) -> tuple[int, int, int]:
    """Strides of images, channels and (evenly spaced) pixels of a result of this shape."""
    strides = allocate(shape, torch.empty(0, device="meta"), problem.memory_format).stride()
    return strides[0], strides[1], strides[-1]


def axis_scalars(problem: ConvProblem) -> tuple[int, ...]:
    """D, H, W, Z, P, Q, T, R, S, and stride, padding, dilation of each axis."""
    return (
        *axes(problem.input_size, 1),
        *axes(problem.output_size, 1),
        *axes(problem.filter_size, 1),
        *axes(problem.stride, 1),
        *axes(tuple(low for low, _ in problem.padding), 0),
        *axes(problem.dilation, 1),
    )


def arithmetic_of(problem: ConvProblem, operands: Operands) -> dict[str, Any]:
    """The constants that say how to multiply and to sum."""
    dtype = problem.dtype
    exact = dtype is torch.float64 or (dtype is torch.float32 and not operands.tf32)
    return {
        "ACCUMULATE": tl.float64 if dtype is torch.float64 else tl.float32,
        "PRECISION": "ieee" if exact else "tf32",
        "EMULATE_BF16": INTERPRETING and dtype is torch.bfloat16,
    }


def adds_apart(problem: ConvProblem, tile: Tile, splits: int, tiles: int) -> bool:
    """Whether a launch of its own adds the sums of a grad_weight of so many tiles; else, where they are split, the last
    programs of its product do."""
    return last_program.apart(problem, tile, splits, tiles + programs_of_bias(problem, 1, True))


def strides_of_sums(problem: ConvProblem, apart: bool) -> tuple[int, int, int, int, int]:
    """Where a grad_weight's product writes: strides of splits, filters, channels and taps, and of the bias's splits.

    apart: to a workspace of [taps, K, C/G] for each split, so that a tile of it lies together; else to the result.
    """
    if not apart:
        return (0, *result_strides(problem.weight_shape, problem), 0)
    c, filters = problem.group_channels, problem.out_channels
    return math.prod(problem.weight_shape), c, 1, filters * c, filters


def vectors_of_sums(problem: ConvProblem, apart: bool) -> tuple[int, tuple[int, int, int, int, int]]:
    """How many channels lie together where a grad_weight's product writes, and `strides_of_sums` in units of that, but
    for the bias's. 0: channels do not lie one after the other, and strides are in elements."""
    split, k, c, tap, bias = strides_of_sums(problem, apart)
    if c != 1 and problem.group_channels > 1:
        return 0, (split, k, c, tap, bias)
    vector = math.gcd(problem.vector_unit, split, k, tap if problem.taps > 1 else 0, problem.group_channels)
    return vector, (split // vector, k // vector, 1, tap // vector, bias)


def grad_weight_launches(
    kernel: Any,
    tiles: int,
    problem: ConvProblem,
    splits: int,
    scalars: tuple[int, ...],
    constants: dict[str, Any],
    tile: Tile,
    with_bias: bool,
    descriptors: bool = False,
    described: dict[int, Described] | None = None,
) -> tuple[Launch, ...]:
    """The launch of a grad_weight kernel, and where it `adds_apart` the one that adds.

    tiles: programs of one split of the product. The scalars end with `splits`. A kernel to which gy is described is
    given it again at the end, where it sums the bias's gradient.
    """
    dtype, sums = problem.dtype, accumulator(problem.dtype)
    again = ((dtype if with_bias else None),) if described else ()
    programs = splits * tiles + programs_of_bias(problem, splits, with_bias)
    apart = adds_apart(problem, tile, splits, tiles)
    if splits > 1 and not apart:
        of_bias = programs_of_bias(problem, 1, with_bias)
        partials = splits * (tiles * tile.rows * tile.columns * tile.taps + of_bias * FILTERS.value)
        alone = (dtype, dtype, dtype, dtype if with_bias else None, sums, torch.int32, *again)
        workspace = Workspace(partials, tiles + of_bias)
        return (Launch(kernel, programs, alone, scalars, constants, tile, descriptors, workspace, described),)
    written = sums if apart else dtype
    dtypes = (dtype, dtype, written, written if with_bias else None, None, None, *again)
    product = Launch(kernel, programs, dtypes, scalars, constants, tile, descriptors, described=described)
    return (product, ordered_sum(problem, splits, with_bias)) if apart else (product,)


def ordered_sum(problem: ConvProblem, splits: int, with_bias: bool) -> Launch:
    """The launch that adds the partial sums of grad_weight, [splits, taps, K, C/G] and from `bias_offset` on
    [splits, K]; called with them, gw, and gb or None."""
    size = math.prod(problem.weight_shape)
    strides = result_strides(problem.weight_shape, problem)
    dtype = problem.dtype
    return Launch(
        sum_partials,
        math.ceil(size / _SUM_BLOCK) + (math.ceil(problem.out_channels / _SUM_BLOCK) if with_bias else 0),
        (accumulator(dtype), dtype, dtype if with_bias else None),
        (splits, size, bias_offset(splits, size), problem.out_channels, problem.group_channels, problem.taps, *strides),
        {
            "BLOCK": _SUM_BLOCK,
            "TAPS_FAST": strides[1] != 1,
            "WIDE": overflows(splits * (size + problem.out_channels)),
            "EMULATE_BF16": INTERPRETING and dtype is torch.bfloat16,
        },
        Tile(0, 0, 0, warps=4, stages=3),
    )


def bias_offset(splits: int, size: int) -> int:
    """Where the bias's partial sums begin in the workspace: after the weight's, at a multiple of 16 bytes."""
    return math.ceil(splits * size / 4) * 4


def programs_of_bias(problem: ConvProblem, splits: int, with_bias: bool) -> int:
    """How many programs of a grad_weight sum the bias's gradient: see `gpuconv.kernels.triton.grad_bias`."""
    return splits * math.ceil(problem.out_channels / FILTERS.value) if with_bias else 0
