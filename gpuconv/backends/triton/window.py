"""Family `window` of the Triton kernels: GEMM by shifted windows that the copy engine of sm_90 and newer fetches, for
channels-last tensors of two axes.

Which problems it takes, which tiles there are, and what is launched with one. `pointwise` is this family too.
"""

import dataclasses
import math
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import WORKSPACE, accumulator, phase_steps, phases_of, programs_of_grad_weight
from gpuconv.backends.triton.launch import (
    INTERPRETING,
    RELEASE,
    Launch,
    epilogue_of,
    fresh,
    layouts,
    numbers_of,
    ordered_sum,
    overflows,
    programs_of_bias,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.window_forward import window_forward
    from gpuconv.kernels.triton.window_grad_input import window_grad_input
    from gpuconv.kernels.triton.window_grad_weight import window_grad_weight
    from gpuconv.kernels.triton.window_sum import window_sum

_BAND = 8  # rows of tiles that are walked column by column
_SUM_BLOCK = 1024
_WITHOUT_EXPONENTIALS = ("none", "relu", "relu6", "leaky_relu", "hardswish")
_FEWEST_STEPS = 4  # of a split
_MOST_PIXELS = 2**31 - 2**20  # on an axis, by blocks that may reach beyond the last
# Descriptors take global memory for as long as a launch runs, whether its program does or not: at most 512 bytes for
# each program, which the tests hold every kernel to, and so 64 MiB in all.
SCRATCH = 512
MOST_PROGRAMS = (64 << 20) // SCRATCH
# TH, TW of a window; as many images as fill it up. Squares share most of their rows from one tap to the next.
_SHAPES = ((8, 8), (4, 4), (2, 2), (1, 8), (1, 1))


class Window(NamedTuple):
    """The pixels of a tile: images × rows × columns; and how many windows the images have on each axis."""

    images: int
    rows: int
    columns: int
    blocks: tuple[int, int, int]

    @property
    def number(self) -> int:
        return math.prod(self.blocks)


def phase_size(problem: ConvProblem, direction: Direction) -> tuple[int, int]:
    """Rows and columns of the pixels that windows cover: outputs, or the largest phase of grad_input."""
    if direction == "grad_input":
        h, w = (math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True))
        return h, w
    return problem.output_size[0], problem.output_size[1]


def window_of(problem: ConvProblem, direction: Direction, pixels: int) -> Window:
    """The window of `pixels` pixels that wastes least, and among equals the one of the fewest images."""
    size = phase_size(problem, direction)

    def blocks(rows: int, columns: int) -> Window:
        images = pixels // (rows * columns)
        counts = (math.ceil(n / of) for n, of in zip((problem.batch, *size), (images, rows, columns), strict=True))
        return Window(images, rows, columns, tuple(counts))  # type: ignore[arg-type]  # three of them

    shapes = [(1, pixels), *_SHAPES] if size[0] == 1 else [*_SHAPES, (1, pixels)]
    return min((blocks(*s) for s in shapes if math.prod(s) <= pixels), key=lambda window: window.number)


# ---- which problems --------------------------------------------------------------------------------------------------


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why this family cannot do it."""
    through_registers = direction == "grad_weight" and problem.dtype.itemsize == 2  # gyᵀ, on its way to the product
    if through_registers and gpu.capability[0] == 9 and RELEASE < (3, 8):
        return "Triton before 3.8 overwrites the registers that its products on sm_90 still read (PyTorch 2.14 has 3.8)"
    return undescribed(problem, direction, gpu, operands)


def undescribed(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why the copy engine cannot fetch, or should not, what the kernels of `window` and `pointwise` read."""
    if gpu.capability < (9, 0):
        return "only sm_90 and newer have the copy engine that fetches windows"
    size = problem.dtype.itemsize
    if size != 2 and not operands.tf32:
        return "it multiplies 16-bit numbers and TF32 on tensor cores, not float32 or float64"
    if problem.ndim != 2:
        return f"it has windows of two axes, not {problem.ndim}"
    if problem.memory_format is torch.contiguous_format:
        return "its tensors are channels last"
    if problem.batch == 0:
        return "there is nothing to multiply"
    if max(problem.batch, *problem.input_size, *problem.output_size) > _MOST_PIXELS:
        return "it counts along an axis in 32 bits, and here is a longer one"
    unit = 16 // size
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    counted = {"in": c} | ({} if direction == "grad_weight" else {"out": problem.out_channels})
    if direction != "forward":
        counted["out"] = k
    for name, count in counted.items():
        if count % unit:
            return f"rows of {count} channels {name} of {size} bytes do not begin at multiples of 16 bytes"
    names = {"forward": ("input", "weight"), "grad_input": ("grad_output", "weight")}.get(
        direction, ("grad_output", "input")
    )
    given = list(zip(names, problem.operand_shapes(direction), operands.strides, strict=True))
    if operands.residual is not None:
        given.append(("residual", problem.output_shape, operands.residual))
    for name, shape, strides in given:
        reason = _not_described(name, shape, strides, unit)
        if reason is not None:
            return reason
    if problem.groups > 1 and not _fill(problem, direction):
        return f"groups of {c} channels in and {k} out do not fill its tiles"
    if direction == "grad_weight" and not _shapes(problem, direction):
        return "the weight has more tiles than descriptors are made for"
    return None


def _not_described(name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> str | None:
    """Why a descriptor cannot tell of a tensor; for a weight, whose taps have to be evenly spaced, too."""
    n, c, h, w = strides
    of_one = [size == 1 for size in shape]
    if c != 1 and not of_one[1]:
        return f"{name} is not channels last (of a model, model.to(memory_format=torch.channels_last))"
    others = [stride for stride, one in zip((n, h, w), (of_one[0], *of_one[2:]), strict=True) if not one]
    if any(stride % unit or stride <= 0 for stride in others):
        return f"{name} has strides {strides}, not multiples of 16 bytes"
    if not of_one[3] and w < shape[1]:
        return f"{name} has pixels that overlap"
    if name == "weight" and not of_one[2] and not of_one[3] and h != shape[3] * w:
        return f"{name} has taps that are not evenly spaced"
    return None


def _folds(problem: ConvProblem, tile: Tile) -> bool:
    """Whether one view of the input has the pixels of all remainders (`gpuconv.kernels.triton.window_common`), and no
    block of channels reaches into the next pixel."""
    if all(u == 1 for u in problem.stride):
        return True
    even = not any(h % u for h, u in zip(problem.input_size, problem.stride, strict=True))
    return even and problem.in_channels // problem.groups % tile.depth == 0


# ---- what is launched ------------------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    if direction == "forward":
        return _forward(problem, activation, operands, tile)
    if direction == "grad_input":
        return _grad_input(problem, operands, tile)
    return _grad_weight(problem, operands, tile, with_bias)


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """The splits that grad_weight makes of `tile.splits`: none of them empty."""
    return max(1, min(tile.splits, window_of(problem, "grad_weight", tile.depth).number))


def _strides(shape: tuple[int, ...], strides: tuple[int, ...] | None, unit: int) -> tuple[int, int, int]:
    """Strides of images, rows and pixels; where an axis has size 1, any that a descriptor takes."""
    n, _, h, w = (
        unit if size == 1 else stride for size, stride in zip(shape, strides or (unit,) * 4, strict=True)
    )  # fmt: skip
    return n, h, w


def _dense(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The same of a result, or of a workspace that is laid out like it."""
    _, c, h, w = shape
    return h * w * c, w * c, c


def _settings(problem: ConvProblem) -> tuple[int, ...]:
    """H, W, P, Q, R, S, and stride, padding, dilation of each axis."""
    return (
        *problem.input_size, *problem.output_size, *problem.filter_size, *problem.stride,
        *(low for low, _ in problem.padding), *problem.dilation,
    )  # fmt: skip


def _weight(problem: ConvProblem, strides: tuple[int, ...], unit: int) -> tuple[int, int]:
    """Strides of filters and of taps."""
    k, h, w = _strides(problem.weight_shape, strides, unit)
    return k, w if problem.filter_size[1] > 1 else h


def _walk(problem: ConvProblem, direction: Direction, tile: Tile, columns: int) -> tuple[int, tuple[int, ...], Window]:
    """Programs of one split of one phase, which take its tiles in turn; how tiles are counted; and their window."""
    window = window_of(problem, direction, tile.rows)
    column_blocks = math.ceil(columns / tile.columns)
    tiles = window.number * column_blocks * problem.groups
    alike = tile.splits * (phases_of(problem) if direction == "grad_input" else 1)
    step = min(tile.persistent or tiles, tiles, max(1, MOST_PROGRAMS // alike))
    return step, (window.number, *window.blocks[1:], column_blocks, tiles, step, tile.splits), window


def _constants(problem: ConvProblem, operands: Operands, tile: Tile, window: Window) -> dict[str, Any]:
    numbers = numbers_of(problem, operands)
    return {
        "TN": window.images, "TH": window.rows, "TW": window.columns, "BK": tile.columns, "BC": tile.depth,
        "BAND": _BAND, "PRECISION": numbers["PRECISION"], "EMULATE_BF16": numbers["EMULATE_BF16"],
    }  # fmt: skip


def _with_registers_for(activation: Activation, tile: Tile) -> Tile:
    """The tile, or half of it where an exponential of each of its elements would spill registers."""
    if tile.rows * tile.columns <= 128 * 128 or activation.name in _WITHOUT_EXPONENTIALS:
        return tile
    return dataclasses.replace(tile, rows=min(tile.rows, 128), columns=min(tile.columns, 128))


def _forward(problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile) -> tuple[Launch, ...]:
    unit, dtype = 16 // problem.dtype.itemsize, problem.dtype
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    tile = _with_registers_for(activation, tile)
    programs, walk, window = _walk(problem, "forward", tile, k)
    split = tile.splits > 1
    common, inverse = phase_steps(problem)
    constants = _constants(problem, operands, tile, window) | {"VIEWS": not _folds(problem, tile)}
    constants |= epilogue_of(IDENTITY if split else activation)
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, *_settings(problem), *common, *inverse,
        *_strides(problem.input_shape, operands.strides[0], unit), *_weight(problem, operands.strides[1], unit),
        *_dense(problem.output_shape), *_strides(problem.output_shape, operands.residual, unit),
        math.prod(problem.output_shape), *walk,
    )  # fmt: skip
    bias, residual = dtype if operands.bias else None, dtype if operands.residual else None
    if not split:
        dtypes = (dtype, dtype, bias, residual, dtype)
        return (Launch(window_forward, programs, dtypes, scalars, constants, tile, descriptors=True),)
    dtypes = (dtype, dtype, None, None, torch.float32)  # the epilogue is the sum's
    product = Launch(window_forward, programs * tile.splits, dtypes, scalars, constants, tile, descriptors=True)
    return product, _sum(problem, problem.output_shape, (bias, residual), activation, tile)


def _grad_input(problem: ConvProblem, operands: Operands, tile: Tile) -> tuple[Launch, ...]:
    unit, dtype = 16 // problem.dtype.itemsize, problem.dtype
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    programs, walk, window = _walk(problem, "grad_input", tile, c)
    common, inverse = phase_steps(problem)
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, *_settings(problem), *common, *inverse,
        *_strides(problem.output_shape, operands.strides[0], unit), *_weight(problem, operands.strides[1], unit),
        *_dense(problem.input_shape), math.prod(problem.input_shape), *walk,
    )  # fmt: skip
    split = tile.splits > 1
    programs *= phases_of(problem) * tile.splits
    dtypes = (dtype, dtype, torch.float32 if split else dtype)
    constants = _constants(problem, operands, tile, window)
    product = Launch(window_grad_input, programs, dtypes, scalars, constants, tile, descriptors=True)
    if not split:
        return (product,)
    return product, _sum(problem, problem.input_shape, (None, None), IDENTITY, tile)


def _sum(
    problem: ConvProblem,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    activation: Activation,
    tile: Tile,
) -> Launch:
    """What adds the partial sums, [splits, *shape], and does the epilogue; called with them, bias, residual, result."""
    size = math.prod(shape)
    return Launch(
        window_sum,
        math.ceil(size / _SUM_BLOCK),
        (torch.float32, *dtypes, problem.dtype),
        (tile.splits, size // 4, shape[1]),
        {
            "BLOCK": _SUM_BLOCK,
            "WIDE": overflows(tile.splits * size),
            "EMULATE_BF16": INTERPRETING and problem.dtype is torch.bfloat16,
            **epilogue_of(activation),
        },
        Tile(0, 0, 0, warps=4, stages=3),
    )


def _grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, with_bias: bool) -> tuple[Launch, ...]:
    unit, dtype = 16 // problem.dtype.itemsize, problem.dtype
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    size, splits = math.prod(problem.weight_shape), splits_of(problem, tile)
    window = window_of(problem, "grad_weight", tile.depth)
    fresh_k, fresh_c, fresh_tap = fresh(problem.weight_shape, problem)
    # The workspace holds [taps, K, C/G] for each split, so that a tile of it lies together.
    gw = (size, c, 1, problem.out_channels * c) if splits > 1 else (0, fresh_k, fresh_c, fresh_tap)
    constants = _constants(problem, operands, tile, window) | {"BK": tile.rows, "BC": tile.columns}
    del constants["BAND"]
    gy, _ = layouts(problem, "grad_weight", operands)
    constants = constants | {"WIDE": overflows(size, gy.extent)}
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, problem.groups, *_settings(problem),
        *_strides(problem.output_shape, operands.strides[0], unit),
        *_strides(problem.input_shape, operands.strides[1], unit),
        *gw, problem.out_channels, window.number, *window.blocks[1:], splits,
    )  # fmt: skip
    partial = accumulator(dtype) if splits > 1 else dtype
    tiles = math.ceil(k / tile.rows) * math.ceil(c / tile.columns)
    programs = splits * tiles * problem.taps * problem.groups + programs_of_bias(problem, splits, with_bias)
    dtypes = (dtype, dtype, partial, partial if with_bias else None)
    product = Launch(window_grad_weight, programs, dtypes, scalars, constants, tile, descriptors=True)
    return (product,) if splits == 1 else (product, ordered_sum(problem, splits, with_bias))


# ---- which tiles there are -------------------------------------------------------------------------------------------

# Pixels, channels, warps of forward and grad_input; filters, channels, warps of grad_weight. None spills on any GPU
# that the tests compile for.
_TILES = ((256, 128, 8), (128, 256, 8), (128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
_WEIGHT_TILES = ((128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
_BARRIERS = 2048  # bytes of shared memory, at most, for what is not tiles


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`: few, since each is a kernel to compile."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    return menu(problem, direction, gpu, operands, "window")


def menu(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands, kernel: str) -> list[Tile]:
    """The tiles of a problem that is not refused."""
    weighs = direction == "grad_weight"
    depth = _depth(problem, direction)
    chosen = []
    residual = operands.residual is not None
    for rows, columns, warps in _shapes(problem, direction, residual):
        tile = _staged(Tile(rows, columns, depth, warps, 0, kernel=kernel), problem, direction, gpu, residual)
        if tile is None:
            continue
        window = window_of(problem, direction, tile.depth if weighs else tile.rows)
        tile = dataclasses.replace(tile, windows=window.number)
        if weighs:
            chosen += [dataclasses.replace(tile, splits=n) for n in _splits_of_weight(problem, tile, gpu)]
        else:
            chosen += _walks(problem, direction, tile, gpu, operands)
    return chosen


def _depth(problem: ConvProblem, direction: Direction) -> int:
    """Terms of a step: 128 bytes of channels, less where there are fewer, or where it must divide them (`_folds`)."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    depth, terms = 128 // problem.dtype.itemsize, c if direction == "forward" else k
    if direction == "grad_weight":
        return depth
    divides = problem.groups > 1 or (direction == "forward" and any(u > 1 for u in problem.stride))
    while depth > 16 and (terms <= depth // 2 or (divides and terms % depth)):
        depth //= 2
    return depth


def _fill(problem: ConvProblem, direction: Direction) -> bool:
    """Whether blocks of channels divide into groups."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    if direction == "grad_weight":
        return min(k, c) >= 32  # what is beyond a group's last is multiplied and not stored
    terms = c if direction == "forward" else k
    return terms % _depth(problem, direction) == 0 and bool(_shapes(problem, direction))


def _shapes(problem: ConvProblem, direction: Direction, residual: bool = False) -> list[tuple[int, int, int]]:
    """Those tiles that are not mostly idle. In groups, blocks of channels must not reach into the next group."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    found = []
    for shape in _WEIGHT_TILES if direction == "grad_weight" else _TILES:
        rows, columns, _ = shape
        if max(rows, columns) > 128 and (problem.dtype.itemsize == 4 or residual):
            continue  # twice the shared memory for the result; or registers for a residual
        if direction == "grad_weight":
            fits = all(n <= 64 or n < 2 * of for n, of in ((rows, k), (columns, c)))
            fits &= _programs_of_weight(problem, rows, columns) <= MOST_PROGRAMS
        else:
            of = k if direction == "forward" else c
            fits = columns <= 64 or columns < 2 * of
            fits &= problem.groups == 1 or of % columns == 0
        if fits:
            found.append(shape)
    return found


def _programs_of_weight(problem: ConvProblem, rows: int, columns: int) -> int:
    """The programs of a grad_weight that is not split, with its bias. (Splits make no more than the GPU is glad of.)"""
    return programs_of_grad_weight(problem, Tile(rows, columns, 0, 0, 0)) + programs_of_bias(problem, 1, True)


def _staged(tile: Tile, problem: ConvProblem, direction: Direction, gpu: Gpu, residual: bool) -> Tile | None:
    """The tile with three to five stages, so that two blocks share a multiprocessor if they can; with shallower steps
    where not even three fit. None if there is no room at all."""
    size = problem.dtype.itemsize
    kept = 0 if direction == "grad_weight" else tile.rows * tile.columns * size
    if size == 4 and residual:
        kept *= 2  # 16-bit ones share the result's
    if size == 4 and direction == "grad_input":
        kept += (tile.rows + tile.columns) * tile.depth * size  # weights are turned round by way of shared memory
    while True:
        stage = (tile.rows + tile.columns) * tile.depth * size
        for blocks in (2, 1):
            stages = min(5, (gpu.shared_memory // blocks - kept - _BARRIERS) // stage)
            if stages >= 3:
                return dataclasses.replace(tile, stages=stages)
        if tile.depth <= 16 or direction == "grad_weight":
            return dataclasses.replace(tile, stages=2) if stages >= 2 else None
        tile = dataclasses.replace(tile, depth=tile.depth // 2)


def _walks(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tile with persistent programs where there are more tiles than can run at once, with its sum split where there
    are fewer than multiprocessors."""
    forward = direction == "forward"
    of = (problem.out_channels if forward else problem.in_channels) // problem.groups
    phases = 1 if forward else math.prod(problem.stride)
    count = tile.windows * math.ceil(of / tile.columns) * problem.groups * phases
    at_once = gpu.multiprocessors * (2 if tile.warps == 4 else 1)
    if count > at_once:
        alike = phases == 1 and not (forward and not _folds(problem, tile))
        return [dataclasses.replace(tile, persistent=at_once if alike else 0)]
    result = math.prod(problem.output_shape if forward else problem.input_shape)
    terms = (problem.in_channels if forward else problem.out_channels) // problem.groups
    steps = problem.taps // phases * math.ceil(terms / tile.depth)
    most = min(steps // _FEWEST_STEPS, WORKSPACE // (4 * max(1, result)))
    if forward and not _dense_residual(problem, operands):
        most = 1
    if tile.rows * tile.columns > 128 * 128:
        most = 1  # float32 sums of that many would leave too little shared memory for the stages
    wanted = {min(most, math.ceil(each * gpu.multiprocessors / count)) for each in (1, 2)}
    return [tile, *(_of_splits(tile, problem, n, gpu) for n in sorted(wanted) if n > 1)]


def _of_splits(tile: Tile, problem: ConvProblem, splits: int, gpu: Gpu) -> Tile:
    """The tile with its sum split: it keeps a float32 result in shared memory, so there is room for fewer stages."""
    stage = (tile.rows + tile.columns) * tile.depth * problem.dtype.itemsize
    room = (gpu.shared_memory - 4 * tile.rows * tile.columns - _BARRIERS) // stage
    return dataclasses.replace(tile, splits=splits, stages=max(2, min(tile.stages, room)))


def _dense_residual(problem: ConvProblem, operands: Operands) -> bool:
    """Whether there is no residual, or one that lies like the result."""
    if operands.residual is None:
        return True
    unit, shape = 16 // problem.dtype.itemsize, problem.output_shape
    given, dense = _strides(shape, operands.residual, unit), _dense(shape)
    return all(a == b for a, b, n in zip(given, dense, (shape[0], *shape[2:]), strict=True) if n > 1)


def _splits_of_weight(problem: ConvProblem, tile: Tile, gpu: Gpu) -> list[int]:
    """Numbers of splits worth considering: none, and enough to give each multiprocessor one, two or four programs."""
    partial = 4 * (math.prod(problem.weight_shape) + problem.out_channels)
    most = max(1, min(tile.windows // _FEWEST_STEPS, WORKSPACE // max(1, partial)))
    wanted = (math.ceil(each * gpu.multiprocessors / programs_of_grad_weight(problem, tile)) for each in (1, 2, 4))
    return sorted({1, *(min(most, n) for n in wanted)})
