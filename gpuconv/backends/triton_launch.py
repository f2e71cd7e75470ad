"""From a problem to the launches of Triton kernels (`gpuconv.kernels.triton`) that compute it.

This module knows everything about a launch and nothing about a kernel's inside: which kernel, how many programs, which
compile-time constants follow from the problem, from the strides of its tensors and from the tile; and how to call it
again quickly. `launches` says all that without a GPU, so that what would be launched can be looked at anywhere.
"""

import math
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import accumulator, axes, phase_steps, splits_of
from gpuconv.problem import ConvProblem, Direction, allocate
from gpuconv.reference import Activation

try:
    import triton
    import triton.language as tl

    from gpuconv.kernels.triton.gather_forward import gather_forward
    from gpuconv.kernels.triton.gather_grad_input import gather_grad_input
    from gpuconv.kernels.triton.gather_grad_weight import gather_grad_weight, sum_partials
except ImportError as error:  # Windows, macOS
    _missing: str | None = f"Triton cannot be imported ({error})"
else:
    _missing = None

# Read when the kernels were decorated: from then on this process interprets, or it compiles.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter keeps the program's index in a global, so threads must take turns; compiling gains nothing from two.
_one_at_a_time = threading.Lock()
_LINEAR = Activation("none")
_BAND = 8  # rows of tiles that are walked column by column
_SUM_BLOCK = 1024
_MOST_OFFSET = 2**31 - 2**20  # beyond it offsets are 64-bit; the slack is for blocks that reach beyond the last index


def why_not() -> str | None:
    """Why Triton's kernels cannot run in this process; None if they can."""
    if _missing is not None:
        return _missing
    if INTERPRETING and _release(triton) < (3, 8) and _release(np) >= (2, 4):
        return (
            f"the interpreter of Triton {triton.__version__} does not work with NumPy {np.__version__}, only with "
            "versions before 2.4"
        )
    if not INTERPRETING and not torch.cuda.is_available():
        return "there is no NVIDIA GPU (with TRITON_INTERPRET=1 its kernels are interpreted on the CPU, slowly)"
    return None


def _release(module: Any) -> tuple[int, ...]:
    """(major, minor) of a module's version."""
    return tuple(int(part) for part in module.__version__.split(".")[:2])


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
    ) -> None:
        self.kernel = kernel
        self.programs = programs
        self.dtypes = dtypes  # of the tensors, in order; None where the kernel is given None
        self.constants = constants
        self.rest = (*scalars, *constants.values())  # what follows the tensors
        # Left alone, ptxas may put a value or two on the stack so that one more block fits; 255 registers are the most.
        self.options = {
            "num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": 255, "enable_fp_fusion": True
        }  # fmt: skip
        self._grid = (programs, 1, 1)
        self._run: Callable[..., None] | None = None
        self._function: Any = None
        self._metadata: Any = None
        self._compiled: Any = None  # unloads its module when it goes

    def __call__(self, stream: int | None, *tensors: torch.Tensor | None) -> None:
        """Launch on `stream` of the current device; None for tensors on the CPU, whose kernels are interpreted."""
        if not self.programs:
            return
        if self._run is not None:
            pointers = [0 if t is None else t.data_ptr() for t in tensors]
            if _all_aligned(pointers) and not _hooked():
                self._run(*self._grid, stream, self._function, self._metadata, None, None, None, *pointers, *self.rest)
                return
        with _one_at_a_time:
            compiled = self.kernel[self._grid](*tensors, *self.rest, **self.options)
        if stream is not None and _all_aligned([0 if t is None else t.data_ptr() for t in tensors]):
            self.use(compiled)

    def use(self, compiled: Any) -> None:
        """Call `compiled` from now on: a kernel compiled for these arguments with all pointers aligned."""
        self._compiled, self._run = compiled, compiled.run  # which loads the module, if it is not loaded
        self._function, self._metadata = compiled.function, compiled.packed_metadata


def _all_aligned(pointers: list[int]) -> bool:
    together = 0
    for pointer in pointers:
        together |= pointer
    return together % 16 == 0


def _hooked() -> bool:
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


# ---- from a problem to launches --------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = _LINEAR,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    if direction == "forward":
        return (_forward(problem, activation, operands, tile),)
    if direction == "grad_input":
        return (_grad_input(problem, operands, tile),)
    return _grad_weight(problem, operands, tile, with_bias)


class _Layout(NamedTuple):
    """A tensor [N, C, D, H, W] as a kernel is told of it."""

    strides: tuple[int, ...]  # five, 0 for an axis of size 1
    channels_fast: bool  # channels lie closer than pixels
    extent: int  # one more than the largest offset

    def vectors(self, unit: int) -> bool:
        """Whether channels lie one after the other and all other strides are multiples of `unit`."""
        n, c, *pixel = self.strides
        return c == 1 and not any(stride % unit for stride in (n, *pixel))

    def divided(self, unit: int) -> tuple[int, ...]:
        """The strides, but for that of the channels divided by `unit`."""
        n, c, *pixel = self.strides
        return (n // unit, c, *(stride // unit for stride in pixel))


def _layout(shape: tuple[int, ...], strides: tuple[int, ...], problem: ConvProblem) -> _Layout:
    n, c, *pixel = (0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, (n, c, *pixel), strict=True))
    nearest = min((stride for stride in pixel if stride), default=math.inf)
    fast = c < nearest if c else problem.memory_format is not torch.contiguous_format
    return _Layout((n, c, *(0,) * (3 - len(pixel)), *pixel), fast, extent)


def _operands(problem: ConvProblem, direction: Direction, operands: Operands) -> tuple[_Layout, _Layout, int]:
    """The layouts of the two tensors that `direction` multiplies, and the VECTOR of `gpuconv.kernels.triton.common`."""
    shapes = problem.operand_shapes(direction)
    a, b = (_layout(shape, strides, problem) for shape, strides in zip(shapes, operands.strides, strict=True))
    unit = 16 // problem.dtype.itemsize
    channels = problem.in_channels, *(() if direction == "forward" else (problem.out_channels,))
    together = a.vectors(unit) and b.vectors(unit) and not any(count // problem.groups % unit for count in channels)
    return a, b, unit if together and problem.memory_format is not torch.contiguous_format else 1


def _fresh(shape: tuple[int, ...], problem: ConvProblem) -> tuple[int, int, int]:
    """Strides of images, channels and (evenly spaced) pixels of a result that is about to be allocated."""
    strides = allocate(shape, torch.empty(0, device="meta"), problem.memory_format).stride()
    return strides[0], strides[1], strides[-1]


def _sizes(problem: ConvProblem) -> tuple[int, ...]:
    """D, H, W, Z, P, Q, T, R, S, and stride, padding, dilation of each: what all three kernels are given."""
    return (
        *axes(problem.input_size, 1),
        *axes(problem.output_size, 1),
        *axes(problem.filter_size, 1),
        *axes(problem.stride, 1),
        *axes(tuple(low for low, _ in problem.padding), 0),
        *axes(problem.dilation, 1),
    )


def _numbers(problem: ConvProblem, operands: Operands) -> dict[str, Any]:
    """The constants that say how to multiply and to sum."""
    dtype = problem.dtype
    exact = dtype is torch.float64 or (dtype is torch.float32 and not operands.tf32)
    return {
        "ACCUMULATE": tl.float64 if dtype is torch.float64 else tl.float32,
        "PRECISION": "ieee" if exact else "tf32",
        "EMULATE_BF16": INTERPRETING and dtype is torch.bfloat16,
    }


def masks_show(problem: ConvProblem, direction: Direction, operands: Operands) -> bool:
    """Whether masks would cost time: tiles are fetched in vectors and multiplied on tensor cores.

    Elsewhere one kernel, with all its masks, serves layers that need them and layers that do not.
    """
    return _masks_show(problem, operands, _operands(problem, direction, operands)[2])


def _masks_show(problem: ConvProblem, operands: Operands, vector: int) -> bool:
    return vector > 1 and (problem.dtype.itemsize == 2 or operands.tf32)


def _inside(problem: ConvProblem, always: bool) -> str:
    """How a kernel tells which taps are inside the image; see `gather_product`. `always`: they are."""
    if always:
        return "always"
    return "bits" if max(problem.filter_size) <= 10 else "compare"


def _reads_inside(problem: ConvProblem) -> bool:
    """Whether every tap of every output is inside the input: no padding is ever read."""
    return all(
        low == 0 and (p - 1) * u + (r - 1) * d < h
        for (low, _), p, u, r, d, h in zip(
            problem.padding, problem.output_size, problem.stride, problem.filter_size, problem.dilation,
            problem.input_size, strict=True,
        )
    )  # fmt: skip


def _scatters_inside(problem: ConvProblem) -> bool:
    """Whether every tap of every input pixel's phase is an output: grad_input needs no mask."""
    for (low, _), p, u, r, d, h in zip(
        problem.padding, problem.output_size, problem.stride, problem.filter_size, problem.dilation,
        problem.input_size, strict=True,
    ):  # fmt: skip
        for tap in range(r):
            at = low - tap * d
            first = -at % u  # the first pixel of the phase, and the last
            last = h - 1 - (h - 1 + at) % u
            if first <= last and (first + at < 0 or (last + at) // u >= p):
                return False
    return True


def _forward(problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile) -> Launch:
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    x, w, vector = _operands(problem, "forward", operands)
    quick = _masks_show(problem, operands, vector)
    y_n, y_k, y_pixel = _fresh(problem.output_shape, problem)
    y_vector = 1 if k % vector else vector
    channels_last = problem.memory_format is not torch.contiguous_format
    residual = _layout(problem.output_shape, operands.residual or (0,) * (2 + problem.ndim), problem)
    pixels = problem.batch * math.prod(problem.output_size)
    programs = math.ceil(pixels / tile.rows) * math.ceil(k / tile.columns) * problem.groups
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth, "BAND": _BAND,
        "INSIDE": _inside(problem, quick and _reads_inside(problem)),
        "EVEN_C": quick and c % tile.depth == 0,
        "X_ROWS_FAST": not x.channels_fast, "Y_ROWS_FAST": not channels_last,
        "RESIDUAL_ROWS_FAST": not residual.channels_fast,
        "VECTOR": vector, "Y_VECTOR": y_vector,
        "WIDE": max(x.extent, w.extent, residual.extent, math.prod(problem.output_shape)) > _MOST_OFFSET,
        **_numbers(problem, operands),
        "ACTIVATION": activation.name, "SLOPE": activation.slope if activation.name == "leaky_relu" else 0.0,
    }  # fmt: skip
    scalars = (
        pixels, k // y_vector, c // vector, *_sizes(problem), *x.divided(vector), *w.divided(vector),
        y_n // y_vector, y_k, y_pixel // y_vector, *residual.strides,
    )  # fmt: skip
    dtype = problem.dtype
    dtypes = (dtype, dtype, dtype if operands.bias else None, dtype if operands.residual else None, dtype)
    return Launch(gather_forward, programs, dtypes, scalars, constants, tile)


def _grad_input(problem: ConvProblem, operands: Operands, tile: Tile) -> Launch:
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    gy, w, vector = _operands(problem, "grad_input", operands)
    quick = _masks_show(problem, operands, vector)
    gx_n, gx_c, gx_pixel = _fresh(problem.input_shape, problem)
    common, inverse = phase_steps(problem)
    phase = [math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True)]  # the largest
    phase_blocks = math.ceil(problem.batch * math.prod(phase) / tile.rows)
    programs = phase_blocks * math.ceil(c / tile.columns) * math.prod(problem.stride) * problem.groups
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth, "BAND": _BAND,
        "INSIDE": _inside(problem, quick and _scatters_inside(problem)),
        "EVEN_K": quick and k % tile.depth == 0,
        "GY_ROWS_FAST": not gy.channels_fast, "GX_ROWS_FAST": problem.memory_format is torch.contiguous_format,
        "VECTOR": vector,
        "WIDE": max(gy.extent, w.extent, math.prod(problem.input_shape)) > _MOST_OFFSET,
        **_numbers(problem, operands),
    }  # fmt: skip
    scalars = (
        problem.batch, c // vector, k // vector, *_sizes(problem), *axes(common, 1), *axes(inverse, 0),
        *gy.divided(vector), *w.divided(vector), gx_n // vector, gx_c, gx_pixel // vector, phase_blocks,
    )  # fmt: skip
    return Launch(gather_grad_input, programs, (problem.dtype,) * 3, scalars, constants, tile)


def _grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, with_bias: bool) -> tuple[Launch, ...]:
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    gy, x, vector = _operands(problem, "grad_weight", operands)
    size = math.prod(problem.weight_shape)
    pixels = problem.batch * math.prod(problem.output_size)
    splits = splits_of(problem, tile)
    per_split = math.ceil(math.ceil(pixels / tile.depth) / splits) * tile.depth
    tiles = math.ceil(k / tile.rows) * math.ceil(c / tile.columns)
    fresh_k, fresh_c, fresh_tap = _fresh(problem.weight_shape, problem)
    # The workspace holds [taps, K, C/G] for each split, so that a tile of it lies together.
    gw_split, gw_k, gw_c, gw_tap = (
        (size, c, 1, problem.out_channels * c) if splits > 1 else (0, fresh_k, fresh_c, fresh_tap)
    )
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth,
        "MASKED": not (_masks_show(problem, operands, vector) and _reads_inside(problem)),
        "GY_PIXELS_FAST": not gy.channels_fast, "X_PIXELS_FAST": not x.channels_fast,
        "VECTOR": vector,
        "WIDE": max(gy.extent, x.extent, size, pixels) > _MOST_OFFSET,
        **_numbers(problem, operands),
    }  # fmt: skip
    scalars = (
        pixels, k // vector, c // vector, problem.groups, *_sizes(problem), *gy.divided(vector), *x.divided(vector),
        gw_split // vector, gw_k // vector, gw_c, gw_tap // vector, problem.out_channels, per_split,
    )  # fmt: skip
    dtype, accumulate = problem.dtype, accumulator(problem.dtype)
    partial = accumulate if splits > 1 else dtype
    dtypes = (dtype, dtype, partial, partial if with_bias else None)
    programs = splits * tiles * problem.taps * problem.groups
    gather = Launch(gather_grad_weight, programs, dtypes, scalars, constants, tile)
    if splits == 1:
        return (gather,)
    add = Launch(
        sum_partials,
        math.ceil(size / _SUM_BLOCK) + (math.ceil(problem.out_channels / _SUM_BLOCK) if with_bias else 0),
        (accumulate, dtype, dtype if with_bias else None),
        (splits, size, bias_offset(splits, size), problem.out_channels, c, fresh_k, fresh_c, fresh_tap),
        {
            "BLOCK": _SUM_BLOCK,
            "WIDE": splits * (size + problem.out_channels) > _MOST_OFFSET,
            "EMULATE_BF16": constants["EMULATE_BF16"],
        },
        Tile(0, 0, 0, warps=4, stages=3),
    )
    return gather, add


def bias_offset(splits: int, size: int) -> int:
    """Where the bias's partial sums begin in the workspace: after the weight's, at a multiple of 16 bytes."""
    return math.ceil(splits * size / 4) * 4
