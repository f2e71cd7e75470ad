"""How long a kernel takes with a tile: the roofline of an implicit GEMM, and what the formulas of all families share.

Closed formulas of the problem and of the properties of a GPU. They are there to choose among tiles and to explain the
choice: their times are predictions, not measurements. Their constants are in `gpuconv.backends.constants`. A family
that is no implicit GEMM has its formula in its file.

Programs, or tiles that programs take in turn, are shared out evenly: `each` for the busiest multiprocessor, `together`
of them at a time, in `waves`. Their loops need

    products         each · steps · operations of a step / rate of a multiprocessor
    shared memory    each · steps · bytes of a step, written and read / (128 bytes a clock)
    L2 fetches       all sectors · 32 bytes / (what the L2 cache gives), or the busiest multiprocessor's / (its port)
    instructions     each · steps · warps · instructions of a step / (4 schedulers), or what one warp needs for its own
    fetch latency    waves · steps · latency / stages under way

These pass together, but never quite: the loops take the root of the sum of their squares. Around a loop come the first
fetch, descriptors made in the kernel, and the store of the result. Other programs on the multiprocessor hide these. The
bytes that must cross the memory bus take their time beside, and again it is the root of both squares; the launch takes
a little more. Constants were fitted to times that were measured on an H100 (`gpuconv.backends.constants`).
"""

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

from gpuconv.backends import constants, last_program
from gpuconv.backends.constants import Cost
from gpuconv.backends.derived import accumulator, programs_of_grad_weight
from gpuconv.backends.tile import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

SECTOR = 32  # bytes of global memory that move as one
Parts = tuple[tuple[str, float], ...]  # what could bound a kernel, and the seconds that each would take alone


class Prediction(NamedTuple):
    """The predicted time of a kernel with one tile, and what it comes from."""

    seconds: float
    bound: str  # what takes that long: "products", "shared memory", "L2 fetches", "fetch latency", …
    programs: int
    steps: float  # of the loop of a program, on average
    together: int  # programs on a multiprocessor at a time
    waves: int
    intensity: float  # operations for each byte that is fetched
    # What the kernel would count, without the one that adds partial sums: bytes that its loop fetches from global
    # memory, the sectors these are in, and instructions executed by warps. 0: not predicted.
    bytes: float = 0.0
    sectors: float = 0.0
    instructions: float = 0.0
    parts: Parts = ()


class Work(NamedTuple):
    """What a kernel does with one tile."""

    tiles: int
    steps: float  # of a tile's loop
    operations: float  # of a step, but for those that are skipped
    rate: float  # operations a second that the GPU is capable of
    shared: float  # bytes that a step moves to and from shared memory
    bytes: float  # fetched from global memory in all loops
    sectors: float  # that these are in
    stored: float  # bytes of a tile's result
    in_step: float  # instructions of a warp in a step
    around: float  # instructions of a warp before and after its loop
    registers: int  # of a thread
    held: int  # bytes of shared memory of a program
    descriptors: int = 0  # that a program makes
    from_l2: float = 1.0  # times what the L2 cache takes for the sectors
    ahead: bool = False  # a program fetches for its next tile before it stores this one
    in_turn: bool = False  # its warps turn operands round between products, and what they do does not overlap


def programs_and_steps(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, float]:
    """How many programs an implicit GEMM runs, and how many steps the loop of each takes on average."""
    view = problem.view(direction)
    if direction == "grad_weight":
        programs = programs_of_grad_weight(problem, tile) * tile.splits
        return programs, math.ceil(math.ceil(view.terms / tile.depth) / tile.splits)
    phases, pixels = 1, view.rows
    taps: float = problem.taps
    if direction == "grad_input":  # one product for each output phase, of the taps that meet it
        phases = math.prod(problem.stride)
        largest = (math.ceil(h / s) for h, s in zip(problem.input_size, problem.stride, strict=True))
        pixels, taps = problem.batch * math.prod(largest), problem.taps / phases
    row_blocks = tile.windows or math.ceil(pixels / tile.rows)
    programs = phases * row_blocks * math.ceil(view.columns / tile.columns) * problem.groups
    return programs, taps * math.ceil(view.terms / tile.depth)


def fetched(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, int]:
    """Elements that all programs of an implicit GEMM fetch of the left operand and of the right one.

    What lies outside the image, or beyond the last row, column or term, is not fetched.
    """
    k, c, groups, met = problem.group_filters, problem.group_channels, problem.groups, problem.meetings
    if direction == "grad_weight":
        rows, columns = math.ceil(k / tile.rows), math.ceil(c / tile.columns)
        return problem.output_pixels * problem.taps * k * groups * columns, met * c * groups * rows
    view = problem.view(direction)
    columns = math.ceil(view.columns / tile.columns)
    pixels = view.rows
    if direction == "grad_input":  # every phase has its own taps
        pixels = problem.batch * math.prod(
            math.ceil(h / s) for h, s in zip(problem.input_size, problem.stride, strict=True)
        )
    blocks = tile.windows or math.ceil(pixels / tile.rows)
    return met * view.terms * groups * columns, blocks * problem.taps * k * c * groups


def implicit_gemm(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    gpu: Gpu,
    tf32: bool,
    *,
    rate: float | None = None,
    share: float = 1.0,
    left_rows: int = 0,
    held: int | None = None,
    shared: float | None = None,
    count: Callable[[ConvProblem, Direction, Tile], tuple[int, float]] = programs_and_steps,
    elements: Callable[[ConvProblem, Direction, Tile], tuple[float, float]] = fetched,
    costs: str = "",
) -> Prediction:
    """The roofline of an implicit GEMM whose threads fetch its operands.

    rate: operations a second that the GPU is capable of; its peak for the number type where it is not given. share:
    which part of a tile's products, and of the weight, is not zeros that are skipped. left_rows: those of the left
    operand that a step fetches, where not all of the tile. held: bytes of shared memory of a program, where it is not
    what Triton's kernels have. shared: bytes that a step moves to and from it, where that is another number. count: its
    programs and steps. elements: what all of them fetch of both operands. costs: whose they are, where it is not the
    tile's family.
    """
    size = problem.dtype.itemsize
    programs, steps = count(problem, direction, tile)
    a, b = elements(problem, direction, tile)
    a, b = a * size, b * size * (1.0 if direction == "grad_weight" else share)
    spread = constants.SECTORS_AN_ELEMENT.get(tile.kernel, 1.0) if tile.addressed else 1.0
    k, c = (spread * _spread(problem, n * size) for n in (problem.group_filters, problem.group_channels))
    sectors = {"forward": a * c + b * c, "grad_input": a * k + b * c, "grad_weight": a * k + b * c}[direction] / SECTOR
    multiplies = how_it_multiplies(problem, tile, gpu, tf32, by_mma=held is not None)
    turning = turned(tile, direction, size, multiplies) if held is None else 0.0  # a matter of Triton's kernels
    cost = constants.cost_of(costs or tile.kernel, direction, multiplies)
    left, right = (left_rows or tile.rows) * tile.depth, tile.columns * tile.depth
    per_step = Features.of(tile, left, right, size, multiplies, direction, share)
    if held is None:
        buffers = tile.stages if multiplies == "wgmma" else max(1, tile.stages - 1)
        held = max((left + right) * size * buffers, tile.rows * tile.columns * accumulator(problem.dtype).itemsize)
    work = Work(
        programs,
        steps,
        2 * tile.rows * tile.columns * tile.depth * share,
        gpu.rate(problem.dtype, tf32) if rate is None else rate,
        (left + right) * size + read_from_shared(tile, size, multiplies) + turning if shared is None else shared,
        a + b,
        sectors,
        tile.rows * tile.columns * (accumulator(problem.dtype).itemsize if tile.splits > 1 else size),
        per_step.instructions(cost),
        cost.tile + cost.result * results_of(tile),
        registers_of(tile, cost, per_step.fetches, size),
        held,
    )
    return predicted(problem, direction, tile, gpu, work)


def _spread(problem: ConvProblem, run: int) -> float:
    """Sectors for each 32 bytes, where so many bytes of channels of a group are neighbours."""
    return max(1.0, SECTOR / run) if problem.groups > 1 else 1.0


def predicted(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, work: Work) -> Prediction:
    """What work takes on a GPU: the formula at the top of this file."""
    threads, clock, tiles = 32 * tile.warps, gpu.clock, work.tiles
    room = max(1, gpu.resident(threads, work.registers, work.held))
    each = math.ceil(tiles / gpu.multiprocessors) or 1
    together = min(room, each)
    waves = math.ceil(each / together)
    steps = max(work.steps, 1e-9)
    instructions = max(  # that the schedulers issue, or one warp after the other its own
        each * tile.warps * work.in_step / constants.SCHEDULERS, waves * work.in_step * constants.ISSUE_CLOCKS
    )
    from_l2 = work.sectors * work.from_l2 * SECTOR / clock
    parts = (
        ("products", steps * each * work.operations / (work.rate / gpu.multiprocessors)),
        ("shared memory", steps * each * work.shared / (constants.SHARED_BYTES * clock)),
        ("L2 fetches", max(
            from_l2 / gpu.multiprocessors / gpu.l2_per_clock, from_l2 * each / max(1, tiles) / constants.L2_PORT
        )),
        ("instructions", steps * instructions / clock),
        ("fetch latency", steps * waves * gpu.step_latency / max(1, tile.stages - 1)),
    )  # fmt: skip
    loop = together_with(parts)
    if work.in_turn and together == 1:  # no other program is there to use what one leaves idle
        loop = sum(seconds for name, seconds in parts if name != "fetch latency")
    made = work.descriptors * constants.DESCRIPTOR
    begin = work.around * constants.ISSUE_CLOCKS / clock
    first = constants.FIRST_FETCH * gpu.step_latency
    end = work.stored / (constants.STORED_BYTES * clock)
    hidden = 1 + (waves - 1) / together  # the first wave's is not, nor what no other program is there to hide
    around = made * (1 if tile.persistent else hidden) + first * (1 if work.ahead else hidden)
    around += (begin + together * end) * hidden
    memory = problem.least_bytes(direction) / (constants.MEMORY * gpu.bandwidth)
    all_parts = (*parts, ("start and end", around), ("memory bandwidth", memory))
    bound = longest(parts) if loop >= around else "start and end"
    if memory > loop + around:
        bound = "memory bandwidth"
    seconds = constants.LAUNCH + math.hypot(loop + around, memory)
    if direction == "grad_weight":
        seconds += adding_splits(problem, tile, gpu, tiles // tile.splits)
    elif tile.splits > 1:
        seconds += added_apart(tile.splits, math.prod(problem.view(direction).shape), gpu)
    operations = tiles * steps * work.operations
    executed = tiles * tile.warps * (steps * work.in_step + work.around)
    programs = min(tiles, tile.persistent * phases_of_walk(problem, direction)) if tile.persistent else tiles
    return Prediction(
        seconds, bound, programs, work.steps, together, waves, operations / max(1.0, work.bytes), work.bytes,
        work.sectors, executed, all_parts,
    )  # fmt: skip


def together_with(parts: Parts) -> float:
    """Seconds of work of several kinds that passes together, but never quite."""
    return math.hypot(*(seconds for _, seconds in parts))


def longest(parts: Parts) -> str:
    """What takes longest."""
    return max(parts, key=operator.itemgetter(1))[0]


# ---- what formulas share ---------------------------------------------------------------------------------------------


def phases_of_walk(problem: ConvProblem, direction: Direction) -> int:
    """How many output phases have programs of their own."""
    return math.prod(problem.stride) if direction == "grad_input" else 1


def how_it_multiplies(problem: ConvProblem, tile: Tile, gpu: Gpu, tf32: bool, by_mma: bool) -> str:
    """ "mma", "wgmma" (and what sm_100 has instead) or "fma". by_mma: the kernel has no other tensor-core products."""
    size = problem.dtype.itemsize
    if size == 8 or (size == 4 and not tf32) or tile.kernel == "simt":
        return "fma"
    return "wgmma" if gpu.capability[0] in (9, 10) and not by_mma and tile.warps % 4 == 0 else "mma"


class Features(NamedTuple):
    """What a warp does in a step, in the units of `Cost`."""

    products: float
    operands: float
    left: float
    right: float
    elements: float

    @staticmethod
    def of(
        tile: Tile, left: int, right: int, size: int, multiplies: str, direction: Direction, share: float = 1.0
    ) -> "Features":
        """Those of a step that fetches so many elements. share: which part of the products is not skipped."""
        threads, volume = 32 * tile.warps, tile.rows * tile.columns * tile.taps * tile.depth * share
        products = volume / threads if multiplies == "fma" else volume * size / (16 * 8 * 32) / tile.warps
        operands = read_from_shared(tile, size, multiplies)
        if multiplies == "wgmma":  # gyᵀ is turned round in registers
            operands = tile.rows * tile.depth * size if direction == "grad_weight" else 0
        if tile.addressed >= left:
            left, right = 0, max(0, right - tile.addressed + left)
        else:
            right = max(0, right - tile.addressed)
        chunk = threads * 16 / size
        return Features(products, operands / (512 * tile.warps), left / chunk, right / chunk, tile.addressed / threads)

    def instructions(self, cost: Cost) -> float:
        """Instructions of a warp in the step."""
        return (
            cost.step + cost.product * self.products + cost.operand * self.operands + cost.left * self.left
            + cost.right * self.right + cost.element * self.elements
        )  # fmt: skip

    @property
    def fetches(self) -> float:
        """Of a thread."""
        return self.left + self.right + self.elements


def results_of(tile: Tile) -> float:
    """Results of a thread."""
    return tile.rows * tile.columns * tile.taps / (32 * tile.warps)


def registers_of(tile: Tile, cost: Cost, fetches: float, size: int) -> int:
    """Registers of a thread, rather too many than too few: sums, what is on its way or addressed, and the rest."""
    wanted = results_of(tile) * (2 if size == 8 else 1) + cost.registers + constants.REGISTERS_A_FETCH * fetches
    return min(255, math.ceil(wanted))


def read_from_shared(tile: Tile, size: int, multiplies: str) -> float:
    """Bytes that the products of a step read from shared memory: each warp its rows and its columns; wgmma the columns
    for each 64 rows."""
    left, right = tile.rows * tile.depth * size, tile.columns * tile.depth * size * tile.taps
    if multiplies == "wgmma":
        return left + right * max(1, tile.rows // 64)
    along, across = 1, 1  # warps, whose part of the tile is as square as can be
    while along * across < tile.warps:
        height, width = tile.rows * across, tile.columns * along
        if height > width or (height == width and along <= across):
            along *= 2
        else:
            across *= 2
    return left * across + right * along


def turned(tile: Tile, direction: Direction, size: int, multiplies: str) -> float:
    """Bytes that shared memory could move meanwhile, where a step of Triton's kernels turns operands round: neighbours
    go to other lines, so that a line of WIDTH words is written in WIDTH / 8 passes, and read once more. For mma pixels
    of planes are not turned, but read in twice the passes."""
    if multiplies == "fma" or size != 4:
        return 0.0
    if multiplies == "mma":
        return tile.rows * tile.depth * size * 2.0 if tile.kernel == "planes" and direction != "grad_weight" else 0.0
    which = "rows columns" if tile.taps > 1 else constants.TURNED.get((tile.kernel, direction), "")
    widths = (tile.rows if "rows" in which else 0, tile.columns if "columns" in which else 0)
    return sum(width * tile.depth * size * (width / 8 + 1) for width in widths)


def copying(size: int, gpu: Gpu) -> float:
    """Seconds to copy so many bytes by a launch of its own."""
    return 2 * size / (constants.MEMORY * gpu.bandwidth) + constants.COPY


def adding_splits(problem: ConvProblem, tile: Tile, gpu: Gpu, tiles: int = 0) -> float:
    """Seconds to write, read and add the partial sums of a grad_weight, or whole ones that another launch puts in their
    order. tiles: that the result has; the last program of each may add its sums while others go on elsewhere."""
    results, size = math.prod(problem.weight_shape), accumulator(problem.dtype).itemsize
    if last_program.apart(problem, tile, tile.splits, tiles):
        return added_apart(tile.splits, results, gpu)
    if tile.splits == 1:
        return 0.0
    read = size * tile.splits * tile.rows * tile.columns * tile.taps
    written = size * tile.splits * results / (constants.PARTIALS * gpu.bandwidth)
    return written + read / (constants.L2_PORT * gpu.clock) + constants.ARRIVAL


def added_apart(splits: int, results: int, gpu: Gpu) -> float:
    """Seconds to write so many partial sums, and to read and add them by a launch of its own."""
    return 2 * 4 * splits * results / (constants.PARTIALS * gpu.bandwidth) + constants.ONE_MORE_LAUNCH
