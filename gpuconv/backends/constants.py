"""The constants of the planner's formulas (`gpuconv.backends.roofline`), each with its source, or the word guess.

What is said to be measured was fitted, all at once, to the times of tiles on an H100 (SXM5, Triton 3.6) that are in
bench/results/2026-11-26-h100-tiles.jsonl; tests/planning holds the formula to them. On other GPUs nothing is measured.
What is counted was counted without one: registers and shared memory in what the compilers make, instructions and bytes
on the virtual GPU. `python -m gpuconv.bench.calibrate` counts anew, and prints `COSTS`. What differs from GPU to GPU is
in `gpuconv.gpu`.
"""

from typing import NamedTuple

SHARED_BYTES = 128  # a clock and multiprocessor: 32 banks of 4 (NVIDIA, CUDA C++ Programming Guide, 'Shared Memory')
SCHEDULERS = 4  # that issue an instruction a clock each (CUDA C++ Programming Guide, 'Compute Capabilities')
AHEAD = 45  # instructions of a warp in a step, to fetch across tiles; counted
MEMORY = 0.87  # of device memory's bandwidth that is reached; measured
L2_PORT = (
    64  # bytes a clock from the L2 cache to one multiprocessor (NVIDIA's white paper 'A100'); measured to be reached
)
STORED_BYTES = 32  # a clock and multiprocessor, of whole sectors; measured
FIRST_FETCH = 3.7  # latencies of the L2 cache that a tile's first fetch takes, from device memory; measured
ISSUE_CLOCKS = 2.0  # between two instructions of one warp, whose results depend on each other; measured
LAUNCH = 2e-6  # seconds that any launch takes; measured
COPY = 4e-6  # seconds that a launch before the kernel's takes, beside what its bytes do; measured
ONE_MORE_LAUNCH = 3e-6  # seconds that a launch after it takes, likewise; measured
PARTIALS = 1.3  # times as fast as device memory partial sums are written and read: they stay in the L2 cache; measured
ARRIVAL = 2e-6  # seconds in which a program's partial sums reach the L2 cache, and the last program learns it; measured
DESCRIPTOR = 0.8e-6  # seconds to make one in a kernel: 420 instructions, counted, of one warp; their time is a guess
# What of the peak rate mma.sync reaches where newer instructions reach all of it: on Hopper 0.63 (Luo et al. 2024,
# 'Benchmarking and dissecting the Nvidia Hopper GPU architecture via microbenchmarking'), with which ours agree; on
# sm_100 a guess.
MMA_SYNC = {(9, 0): 0.63, (10, 0): 0.3}
L1_BYTES = 128  # a clock and multiprocessor, of loads that hit (Volta's white paper, 'L1'); of later ones a guess
DEPTHWISE_RATE = 0.5  # of the peak rate, what is left to depthwise kernels beside loads and conversions; a guess

# Which operands Triton's kernels turn round in shared memory before wgmma multiplies them as TF32, for which terms
# must be innermost: the rows, the columns; counted, as passes over shared memory.
TURNED = {
    ("planes", "forward"): "rows", ("planes", "grad_input"): "rows columns",
    ("gather", "grad_input"): "columns", ("gather", "grad_weight"): "rows columns",
    ("window", "grad_input"): "columns", ("window", "grad_weight"): "columns",
    ("pointwise", "grad_input"): "columns", ("pointwise", "grad_weight"): "rows columns",
    ("patches", "grad_weight"): "rows columns", ("packed_runs", "grad_weight"): "rows columns",
}  # fmt: skip


class Cost(NamedTuple):
    """Instructions of a warp, and registers of a thread, of a kernel; counted."""

    step: float  # in a step, whatever the tile
    product: float  # for each product: of 16 × 8 × 32 bytes on tensor cores, or a multiply-add of a thread
    operand: float  # for each 512 bytes that a warp reads from shared memory to multiply
    left: float  # for each 16 bytes of the left operand that a thread fetches
    right: float  # … of the right one
    element: float  # for each element that a thread fetches by itself
    tile: float  # before and after the loop
    result: float  # for each result of a thread
    registers: float  # beside the sums, and what copies need


PLACES = Cost._fields[:-1]  # names of what instructions are counted for


REGISTERS_A_FETCH = 5.0  # of a thread, for each fetch of a step: data, address, and whether it is inside; counted
REGISTERS_A_TAP = 4.5  # of the kernels that load a window anew for each tap; counted
# Sectors for each 32 bytes that kernels fetch element by element; counted.
SECTORS_AN_ELEMENT: dict[str, float] = {}
# In the order of `Cost`; counted, with `python -m gpuconv.bench.calibrate --fit`.
COSTS: dict[tuple[str, str, str], Cost] = {
    ("cells", "forward", "fma"): Cost(85.14, 1.17, 1.98, 9.72, 9.92, 10, 144.11, 4.72, 123),
    ("cells", "forward", "mma"): Cost(60.36, 0.57, 2.88, 9.74, 0.9, 10, 234.57, 10.56, 151),
    ("cells", "forward", "wgmma"): Cost(89.02, 0.22, 2, 11.16, 0, 10, 203.3, 11.32, 151),
    ("cells", "grad_input", "fma"): Cost(81.29, 1.18, 1.97, 9.6, 9.92, 10, 349.52, 4.86, 123),
    ("cells", "grad_input", "mma"): Cost(41.39, 0.54, 2.27, 11.31, 5.26, 10, 553.35, 7.58, 81),
    ("cells", "grad_input", "wgmma"): Cost(61.73, 0, 2, 13.27, 5.08, 10, 545.9, 7.25, 118),
    ("depthwise", "forward", "fma"): Cost(115.14, 1.65, 2, 32.76, 10, 10, 878.6, 21.89, 114),
    ("depthwise", "grad_input", "fma"): Cost(81.6, 2.94, 2, 13.82, 10, 10, 39.99, 20.74, 118),
    ("depthwise", "grad_weight", "fma"): Cost(328.48, 6.46, 2, 22.88, 10, 10, 1683.86, 10.95, 136),
    ("depthwise of planes", "forward", "fma"): Cost(180.82, 0, 2, 45.26, 10, 10, 2520.6, 0.51, 80),
    ("depthwise of planes", "grad_input", "fma"): Cost(104.37, 4.98, 2, 14.8, 10, 10, 609.26, 43.63, 61),
    ("depthwise of planes", "grad_weight", "fma"): Cost(574.07, 10.59, 2, 74.21, 10, 10, 1361.69, 17.86, 80),
    ("gather", "forward", "mma"): Cost(55.2, 1.18, 0, 10.31, 8.12, 8.86, 268.62, 5.27, 77),
    ("gather", "forward", "wgmma"): Cost(69.98, 0.1, 2, 11.59, 4.96, 8.24, 249.31, 5.22, 64),
    ("gather", "grad_input", "mma"): Cost(75.01, 1.92, 1.24, 8.27, 3.97, 6.48, 452.59, 6.88, 132),
    ("gather", "grad_input", "wgmma"): Cost(68.48, 0.65, 2, 9.04, 2.79, 9.37, 419.22, 5.69, 96),
    ("gather", "grad_weight", "mma"): Cost(50.72, 2.48, 1.72, 35.09, 11.54, 23.06, 608.77, 8.81, 130),
    ("gather", "grad_weight", "wgmma"): Cost(49.51, 0.61, 3.34, 41.48, 7.4, 28.87, 616.93, 10.17, 130),
    ("grouped", "forward", "mma"): Cost(59.26, 2.08, 1.95, 11, 8.28, 10.69, 386.84, 5.22, 54),
    ("grouped", "grad_input", "mma"): Cost(59.41, 2.23, 2.1, 12.83, 8.27, 10.86, 387.26, 5.63, 49),
    ("grouped", "grad_weight", "mma"): Cost(2.4, 9.62, 19.23, 4.81, 4.81, 10, 0.18, 5.92, 46),
    ("grouped_halo", "forward", "mma"): Cost(58.5, 2.48, 2.35, 10.07, 8.38, 9.72, 384.71, 6.35, 71),
    ("grouped_halo", "grad_input", "mma"): Cost(63.12, 2.67, 2.55, 10.25, 8.52, 10.04, 397.56, 6.86, 70),
    ("halo", "forward", "mma"): Cost(48.74, 1.07, 4.54, 13.92, 11.85, 16.01, 512.31, 8.27, 77),
    ("halo", "grad_input", "mma"): Cost(42.6, 1.21, 4.42, 11.56, 13.11, 17.27, 683.12, 7.86, 86),
    ("pointwise", "grad_weight", "wgmma"): Cost(57.81, 0, 2.38, 10, 10, 10, 349.32, 2.17, 26),
    ("runs", "forward", "mma"): Cost(13.27, 0.53, 1.69, 6.53, 6.42, 10, 383.22, 4.36, 59),
    ("runs", "forward", "wgmma"): Cost(33.02, 0.1, 2, 7.32, 2.35, 10, 371.44, 4.08, 22),
    ("runs", "grad_weight", "mma"): Cost(101.01, 1.28, 2.29, 7.2, 17.5, 10, 390.88, 12.81, 120),
    ("runs", "grad_weight", "wgmma"): Cost(101.28, 0, 0, 0, 23.16, 10, 434.43, 9.92, 117),
    ("simt", "forward", "fma"): Cost(153.35, 1.05, 2.04, 12.11, 10.16, 10, 380.62, 4.56, 84),
    ("simt", "grad_input", "fma"): Cost(92.85, 1.27, 1.99, 9.86, 9.96, 10, 517.64, 5.03, 81),
    ("simt", "grad_weight", "fma"): Cost(92.2, 1.2, 1.99, 9.84, 9.96, 10, 292.23, 4.67, 67),
    ("stem", "forward", "mma"): Cost(178.28, 1.28, 1.86, 10, 10, 6.89, 273.53, 11.15, 56),
    ("stem", "forward", "wgmma"): Cost(224.93, 0.99, 2, 10, 10, 8.14, 247.6, 13.08, 64),
    ("stem", "grad_weight", "mma"): Cost(126.58, 2.17, 2.09, 10, 10, 18.5, 492.97, 4.98, 45),
    ("stem", "grad_weight", "wgmma"): Cost(130.3, 2.19, 2.02, 10, 10, 19.7, 532.67, 5.1, 56),
    ("taps", "forward", "fma"): Cost(88.89, 5.71, 2, 2.95, 10, 10, 222.17, 0, 82),
    ("taps", "grad_input", "fma"): Cost(108.19, 5.07, 2, 10.94, 10, 10, 704.8, 5.33, 78),
    ("taps", "grad_weight", "fma"): Cost(211.64, 2.31, 2, 4.38, 10, 10, 1091.36, 5.23, 112),
    ("taps of planes", "forward", "fma"): Cost(82.39, 8.32, 2, 10, 10, 27.53, 59.71, 9.38, 117),
    ("taps of planes", "grad_input", "fma"): Cost(87.99, 8.17, 2, 10, 10, 37.34, 199.86, 11.83, 110),
    ("taps of planes", "grad_weight", "fma"): Cost(0, 11.78, 2, 10, 10, 24.75, 439.17, 8.32, 90),
    ("tensor", "forward", "mma"): Cost(33.02, 0.38, 3.51, 16.07, 18.89, 13.33, 943.16, 11.98, 78),
    ("tensor", "grad_input", "mma"): Cost(34.19, 0.74, 2.08, 17.2, 18.99, 8.91, 678.48, 7.75, 58),
    ("tensor", "grad_weight", "mma"): Cost(74, 1.5, 1.8, 7.75, 9.46, 7.94, 580.33, 6.66, 57),
    ("window", "forward", "wgmma"): Cost(97.68, 0.05, 2, 10, 10, 10, 407.23, 2.33, 72),
    ("window", "grad_input", "wgmma"): Cost(83.32, 0.07, 2, 10, 10, 10, 418.56, 1.97, 69),
    ("window", "grad_weight", "wgmma"): Cost(165.07, 0.04, 2.91, 10, 10, 10, 248.34, 1.2, 58),
    ("window of several taps", "grad_weight", "wgmma"): Cost(101.88, 2.14, 2.01, 10, 10, 10, 190.76, 2.03, 110),
}
UNKNOWN = Cost(100, 2, 2, 10, 10, 10, 500, 5, registers=100)  # a guess


def cost_of(family: str, direction: str, multiplies: str) -> Cost:
    """The cost of a family's kernel for a direction. multiplies: with "mma", "wgmma" or "fma"."""
    return COSTS.get((family, direction, multiplies), UNKNOWN)
