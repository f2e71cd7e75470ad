"""Family `window` of the Triton kernels: GEMM by shifted windows that the copy engine of sm_90 and newer fetches, from
channels-last tensors of two axes.

Which problems it takes, which tiles there are and how long they take; `window_launch` says what is launched.
`pointwise` is this family too.
"""

import dataclasses
import math

import torch

from gpuconv.backends import constants, packing
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import WORKSPACE, programs_of_grad_weight, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import (
    SECTOR,
    Features,
    Prediction,
    Work,
    fetched,
    predicted,
    read_from_shared,
    registers_of,
    results_of,
    turned,
)
from gpuconv.backends.triton import window_launch
from gpuconv.backends.triton.launch import programs_of_bias
from gpuconv.backends.triton.window_launch import is_turned, launches, prefetches, splits_of
from gpuconv.backends.triton.window_shape import (
    divides,
    folds,
    not_described,
    placed,
    step_bytes,
    weight_window,
    window_of,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_FEWEST_STEPS = 4  # of a split
_MOST_PIXELS = 2**31 - 2**20  # on an axis, by blocks that may reach beyond the last


# ---- which problems --------------------------------------------------------------------------------------------------


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot do it; None if they can."""
    return refuses_descriptors(problem, direction, gpu, operands)


def refuses_descriptors(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why the copy engine cannot, or should not, fetch what `window` and `pointwise` read; None if it can."""
    if gpu.capability < (9, 0):
        return "only sm_90 and newer have the copy engine that fetches windows"
    size = problem.dtype.itemsize
    if size != 2 and not operands.tf32:
        return "it multiplies 16-bit numbers and TF32 on tensor cores, not float32 or float64"
    if problem.ndim != 2:
        return f"it has windows of two axes, not {problem.ndim}"
    if problem.batch == 0:
        return "there is nothing to multiply"
    if max(problem.batch, *problem.input_size, *problem.output_size) > _MOST_PIXELS:
        return "it counts along an axis in 32 bits, and here is a longer one"
    unit = 16 // size
    k, c = problem.group_filters, problem.group_channels
    counted = {"in": c} if direction == "forward" else {"in": c, "out": k}
    if direction == "forward" and problem.memory_format is not torch.contiguous_format:
        counted["out"] = problem.out_channels
    for name, count in counted.items():
        if count % unit:
            return f"rows of {count} channels {name} of {size} bytes do not begin at multiples of 16 bytes"
    names = {"forward": ("input", "weight"), "grad_input": ("grad_output", "weight")}.get(
        direction, ("grad_output", "input")
    )
    given = list(zip(names, problem.operand_shapes(direction), operands.strides, strict=True))
    for name, shape, strides in given:
        if name == "weight" and direction == "grad_input" and is_turned(shape, strides):
            (filters, *rest), (k, *apart) = shape, strides
            shape, strides = (rest[0], filters, *rest[1:]), (apart[0], k, *apart[1:])
        reason = not_described(name, shape, strides, unit)
        if reason is not None:
            return reason
    if problem.groups > 1 and not _fill(problem, direction):
        return f"groups of {c} channels in and {k} out do not fill its tiles"
    if direction == "grad_weight" and not _shapes(problem, direction):
        return "the weight has more tiles than descriptors are made for"
    return None


# ---- which tiles there are -------------------------------------------------------------------------------------------

# Pixels, channels, warps of forward and grad_input; filters, channels, warps of grad_weight. None spills on any GPU
# that the tests compile for.
_TILES = ((256, 128, 8), (128, 256, 8), (256, 64, 8), (128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
_WEIGHT_TILES = ((128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
_TAPS_TILES = {(128, 64): 8, (64, 64): 4}  # filters, channels: warps of those of grad_weight that sum several taps
_BARRIERS = 2048  # bytes of shared memory, at most, for what is not tiles


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`: few, since each is a kernel to compile."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    return menu(problem, direction, gpu, operands, "window")


def menu(
    problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands, kernel: str, images: int = 1
) -> list[Tile]:
    """The tiles of a problem that is not refused, for the family called `kernel`. images: see `launches`."""
    weighs = direction == "grad_weight"
    depth = _depth(problem, direction)
    chosen = []
    residual = operands.residual is not None
    made = [Tile(*shape[:2], depth, shape[2], 0, kernel=kernel) for shape in _shapes(problem, direction, residual)]
    if weighs:
        made += _with_taps(problem, gpu, made)
    elif _pairs(problem, direction):
        made += [dataclasses.replace(tile, phases=2) for tile in made if tile.rows > 64]
    for each in made:
        tile = _staged(each, problem, direction, gpu, residual)
        if tile is None:
            continue
        window = (
            weight_window(problem, tile)
            if weighs
            else window_of(problem, direction, tile.rows // tile.phases, tile.phases)
        )
        tile = dataclasses.replace(tile, windows=window.number)
        if weighs:
            programs, most = programs_of_grad_weight(problem, tile), tile.windows // _FEWEST_STEPS
            chosen += with_splits(tile, problem, gpu, programs, most)
        else:
            chosen += _walks(problem, direction, tile, gpu, operands, images)
    return chosen


def _with_taps(problem: ConvProblem, gpu: Gpu, tiles: list[Tile]) -> list[Tile]:
    """Those tiles of grad_weight that can sum several taps at once, doing so: in as few turns as three at once take,
    and in deeper steps, of whose rows of x fewer are fetched twice. (Of one of them Triton 3.8 makes for sm_100 nothing
    but a trap, and for sm_120 there are too few registers.)"""
    rows = problem.filter_size[0]
    if rows == 1 or problem.stride[0] != 1 or problem.dilation[0] != 1 or gpu.capability[0] != 9:
        return []
    taps = min((2, 3), key=lambda n: (math.ceil(rows / n), n))
    return [
        dataclasses.replace(tile, depth=2 * tile.depth, warps=_TAPS_TILES[tile.rows, tile.columns], taps=taps)
        for tile in tiles
        if (tile.rows, tile.columns) in _TAPS_TILES
    ]


def _pairs(problem: ConvProblem, direction: Direction) -> bool:
    """Whether a program can compute both phases of the result's rows, whose pixels are neighbours then."""
    pairs = direction == "grad_input" and problem.stride[1] == 2 and problem.input_size[1] > 1
    return pairs and placed(problem, direction).vector > 0


def _depth(problem: ConvProblem, direction: Direction) -> int:
    """Terms of a step: 128 bytes of channels, less where there are fewer, or where it must divide them (`folds`)."""
    depth, terms = 128 // problem.dtype.itemsize, problem.view(direction).terms
    if direction == "grad_weight":
        return depth
    divides = problem.groups > 1 or (direction == "forward" and any(u > 1 for u in problem.stride))
    while depth > 16 and (terms <= depth // 2 or (divides and terms % depth)):
        depth //= 2
    return depth


def _fill(problem: ConvProblem, direction: Direction) -> bool:
    """Whether blocks of channels divide into groups."""
    if direction == "grad_weight":  # what is beyond a group's last channel is multiplied and not stored
        return min(problem.group_filters, problem.group_channels) >= 32
    return problem.view(direction).terms % _depth(problem, direction) == 0 and bool(_shapes(problem, direction))


def _shapes(problem: ConvProblem, direction: Direction, residual: bool = False) -> list[tuple[int, int, int]]:
    """Shapes of tiles that are not mostly idle. In groups, blocks of channels must not reach into the next group."""
    view = problem.view(direction)
    found = []
    for shape in _WEIGHT_TILES if direction == "grad_weight" else _TILES:
        rows, columns, _ = shape
        if max(rows, columns) > 128 and (problem.dtype.itemsize == 4 or residual):
            continue  # twice the shared memory for the result; or registers for a residual
        if direction == "grad_weight":
            fits = all(n <= 64 or n < 2 * of for n, of in ((rows, view.rows), (columns, view.columns)))
            fits &= _programs_of_weight(problem, rows, columns) <= window_launch.MOST_PROGRAMS
        else:
            fits = columns <= 64 or columns < 2 * view.columns
            fits &= problem.groups == 1 or view.columns % columns == 0
        if fits:
            found.append(shape)
    return found


def _programs_of_weight(problem: ConvProblem, rows: int, columns: int) -> int:
    """How many programs a grad_weight that is not split has, with its bias. (Splits make no more than fill the GPU.)"""
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
        if direction == "grad_weight":
            stage = step_bytes(problem, tile, weight_window(problem, tile))
        else:
            stage = (tile.rows // tile.phases + tile.columns) * tile.depth * size
        for blocks in (2, 1):
            stages = min(5, (gpu.shared_memory // blocks - kept - _BARRIERS) // stage)
            if stages >= 3:
                return dataclasses.replace(tile, stages=stages)
        if tile.depth <= 16 or direction == "grad_weight":
            return dataclasses.replace(tile, stages=2) if stages >= 2 else None
        tile = dataclasses.replace(tile, depth=tile.depth // 2)


def _walks(
    problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, operands: Operands, images: int
) -> list[Tile]:
    """The tile with persistent programs where there are more tiles than can run at once, with its sum split where there
    are fewer than multiprocessors."""
    forward, view = direction == "forward", problem.view(direction)
    phases = 1 if forward else math.prod(problem.stride) // tile.phases
    count = tile.windows * math.ceil(view.columns / tile.columns) * problem.groups * phases
    at_once = gpu.multiprocessors * (2 if tile.warps == 4 else 1)
    if count > at_once:
        alike = phases * tile.phases == 1 and not (forward and not folds(problem, tile))
        return [dataclasses.replace(tile, persistent=at_once if alike else 0)]
    steps = problem.taps // phases * math.ceil(view.terms / tile.depth)
    most = min(steps // _FEWEST_STEPS, WORKSPACE // (4 * max(1, math.prod(view.shape))))
    if math.prod(view.shape) % 4 or (forward and not _dense_residual(problem, operands, images)):
        most = 1
    if tile.rows * tile.columns > 128 * 128 or tile.phases > 1:
        most = 1  # float32 sums of that many would leave too little shared memory for the stages
    wanted = {min(most, math.ceil(each * gpu.multiprocessors / count)) for each in (1, 2)}
    return [tile, *(_of_splits(tile, problem, n, gpu) for n in sorted(wanted) if n > 1)]


def _of_splits(tile: Tile, problem: ConvProblem, splits: int, gpu: Gpu) -> Tile:
    """The tile with its sum split: it keeps a float32 result in shared memory, so there is room for fewer stages."""
    stage = (tile.rows + tile.columns) * tile.depth * problem.dtype.itemsize
    room = (gpu.shared_memory - 4 * tile.rows * tile.columns - _BARRIERS) // stage
    return dataclasses.replace(tile, splits=splits, stages=max(2, min(tile.stages, room)))


def _dense_residual(problem: ConvProblem, operands: Operands, images: int) -> bool:
    """Whether there is no residual, or one that lies like the result."""
    return placed(problem, "forward", images, operands.residual) == placed(problem, "forward", images)


# ---- how long they take ----------------------------------------------------------------------------------------------


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of kernels whose tiles the copy engine fetches, in whole boxes, and whose products are read from shared
    memory. Tiles are what is counted in waves, whoever takes them."""
    size, view = problem.dtype.itemsize, problem.view(direction)
    if direction == "grad_weight":
        tiles, steps = programs_of_grad_weight(problem, tile), float(tile.windows)
        box = step_bytes(problem, tile, weight_window(problem, tile))
        costs = "window of several taps" if tile.taps > 1 else tile.kernel
    else:
        phases = math.prod(problem.stride) // tile.phases if direction == "grad_input" else 1
        tiles = phases * tile.windows * math.ceil(view.columns / tile.columns) * problem.groups
        steps = problem.taps / phases * math.ceil(view.terms / tile.depth)
        box, costs = (tile.rows // tile.phases + tile.columns) * tile.depth * size, "window"
    in_step = dataclasses.replace(tile, rows=tile.rows // tile.phases)  # what a step multiplies
    tiles, steps = tiles * tile.splits, steps / tile.splits
    loaded = tiles * steps * box
    stored = tile.rows * tile.columns * tile.taps * (4 if tile.splits > 1 else size)
    turning = 0.0 if packing.TURNED_WEIGHT in tile.packs else turned(tile, direction, size, "wgmma")
    cost = constants.cost_of(costs, direction, "wgmma")
    ahead = direction != "grad_weight" and prefetches(tile)
    work = Work(
        tiles,
        steps,
        2 * in_step.rows * tile.columns * tile.taps * tile.depth,
        gpu.rate(problem.dtype, tf32),
        box + read_from_shared(in_step, size, "wgmma") + turning,
        loaded,
        loaded / SECTOR,
        stored,
        Features.of(in_step, 0, 0, size, "wgmma", direction).instructions(cost) + constants.AHEAD * ahead,
        cost.tile + cost.result * results_of(tile),
        registers_of(tile, cost, 0, size),
        box * tile.stages + (0 if direction == "grad_weight" else stored) + 64,
        _descriptors(problem, direction, tile),
        ahead=ahead,
        in_turn=turning > 0 and tile.taps > 1,
    )
    if direction != "grad_weight":  # what is outside the image is zeros, which nobody fetches
        work = work._replace(from_l2=sum(fetched(problem, direction, tile)) * size / loaded)
    return predicted(problem, direction, tile, gpu, work)


def _descriptors(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """How many descriptors a program makes itself; all others are made on the host."""
    if direction == "forward":
        return 0 if folds(problem, tile) else math.prod(problem.stride)
    if direction == "grad_weight":
        return 0 if problem.stride == (1, 1) or divides(problem) else 1
    return int(problem.stride != (1, 1) and placed(problem, direction).vector == 0)


FAMILY = Family("window", refuses, tiles, launches, predict, splits_of, turns=True, needs_alignment=True)
