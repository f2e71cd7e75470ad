"""The constants of the planner's formulas (`gpuconv.backends.roofline`), each with its source, or the word guess.

None was measured by us on a GPU. What is counted was counted without one: registers and shared memory in what the
compilers make, instructions and bytes on the virtual GPU. `python -m gpuconv.bench.calibrate` counts anew, and prints
`COSTS`. What differs from GPU to GPU is in `gpuconv.gpu`.
"""

from typing import NamedTuple

SHARED_BYTES = 128  # a clock and multiprocessor: 32 banks of 4 (NVIDIA, CUDA C++ Programming Guide, 'Shared Memory')
SCHEDULERS = 4  # that issue an instruction a clock each (CUDA C++ Programming Guide, 'Compute Capabilities')
MEMORY = 0.87  # of device memory's bandwidth that is reached; a guess
FIRST_FETCH = 2.0  # latencies of the L2 cache that a tile's first fetch takes, from device memory; a guess
BY_THREADS = 0.8  # of what the copy engine gets from L2, what threads that fetch by themselves get; a guess
ISSUE_CLOCKS = 2.0  # between two instructions of one warp, whose results depend on each other; a guess
BETWEEN_STEPS = 100  # clocks that a program multiplies nothing: barriers, and operands not yet in registers; a guess
ONE_MORE_LAUNCH = 3e-6  # seconds; a guess
ARRIVAL = 1e-6  # seconds in which a program's partial sums reach the L2 cache, and the last program learns it; a guess
DESCRIPTOR = 0.8e-6  # seconds to make one in a kernel: 420 instructions, counted, of one warp; their time is a guess
# What of the peak rate mma.sync reaches where newer instructions reach all of it: on Hopper 0.63 (Luo et al. 2024,
# 'Benchmarking and dissecting the Nvidia Hopper GPU architecture via microbenchmarking'); on sm_100 a guess.
MMA_SYNC = {(9, 0): 0.63, (10, 0): 0.3}
L1_BYTES = 128  # a clock and multiprocessor, of loads that hit (Volta's white paper, 'L1'); of later ones a guess
NOT_HIDDEN = 0.1  # of the shorter of two times that pass together, what does not pass while the longer does; a guess
DEPTHWISE_RATE = 0.5  # of the peak rate, what is left to depthwise kernels beside loads and conversions; a guess


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
COSTS: dict[tuple[str, str, str], Cost] = {
    ("depthwise", "forward", "fma"): Cost(117.35, 1.61, 2, 38.82, 10, 10, 933.83, 0, 114),
    ("depthwise", "grad_input", "fma"): Cost(100.85, 2.13, 2, 30.46, 10, 10, 521.19, 0, 112),
    ("depthwise", "grad_weight", "fma"): Cost(527.2, 2.84, 2, 0, 10, 10, 1438.81, 0, 136),
    ("gather", "forward", "mma"): Cost(51.88, 1.23, 0, 9.94, 8.21, 9.31, 323.84, 4.68, 77),
    ("gather", "forward", "wgmma"): Cost(67.97, 0.37, 2, 9.3, 3.98, 8.25, 315.4, 6.5, 64),
    ("gather", "grad_input", "mma"): Cost(71, 1.94, 1.21, 9.34, 3.97, 5.95, 483.61, 5.97, 132),
    ("gather", "grad_input", "wgmma"): Cost(59, 0.65, 2, 11.81, 2.15, 8.79, 464.32, 4.69, 96),
    ("gather", "grad_weight", "mma"): Cost(53.34, 1.84, 1.92, 45.12, 9.26, 27.46, 206.76, 15.28, 113),
    ("gather", "grad_weight", "wgmma"): Cost(55.51, 0.53, 3.65, 49.15, 7.18, 32.01, 187.65, 14.49, 69),
    ("grouped", "forward", "mma"): Cost(0, 4.93, 3.43, 46.65, 0, 8.22, 0, 13.14, 49),
    ("grouped", "grad_input", "mma"): Cost(0, 4.9, 3.86, 46.27, 0, 8.95, 0, 13.06, 60),
    ("grouped", "grad_weight", "mma"): Cost(2.4, 9.62, 19.23, 4.81, 4.81, 10, 0.18, 5.92, 46),
    ("grouped_halo", "forward", "mma"): Cost(71.22, 3.64, 3.55, 11.06, 8.33, 14.14, 420.04, 9.55, 70),
    ("grouped_halo", "grad_input", "mma"): Cost(72.15, 3.8, 3.71, 11.19, 8.87, 10.1, 422.63, 9.99, 72),
    ("halo", "forward", "mma"): Cost(67.18, 2.15, 5.62, 25.8, 37.86, 14.02, 447.63, 2.02, 86),
    ("halo", "grad_input", "mma"): Cost(62.9, 2.3, 5.23, 22.91, 33.65, 13.19, 594.62, 4.88, 94),
    ("simt", "forward", "fma"): Cost(147.77, 1.06, 2.03, 12.21, 10.14, 10, 545.46, 5.3, 84),
    ("simt", "grad_input", "fma"): Cost(92.93, 1.28, 1.99, 9.86, 9.96, 10, 511.04, 5.02, 81),
    ("simt", "grad_weight", "fma"): Cost(92.2, 1.2, 1.99, 9.84, 9.96, 10, 292.23, 4.67, 67),
    ("stem", "forward", "mma"): Cost(0, 0.11, 1.71, 10, 10, 13.91, 512.75, 10.16, 38),
    ("stem", "forward", "wgmma"): Cost(0, 0.11, 2, 10, 10, 16.87, 537.43, 12.14, 56),
    ("stem", "grad_weight", "mma"): Cost(126.58, 2.17, 2.09, 10, 10, 18.5, 492.97, 4.98, 22),
    ("stem", "grad_weight", "wgmma"): Cost(130.3, 2.19, 2.02, 10, 10, 19.7, 532.67, 5.1, -14),
    ("taps", "forward", "fma"): Cost(90.02, 5.71, 2, 3.45, 10, 10, 250.48, 0, 243),
    ("taps", "grad_input", "fma"): Cost(107.5, 5.21, 2, 2.6, 10, 10, 687.5, 5.3, 209),
    ("taps", "grad_weight", "fma"): Cost(195.95, 3.38, 2, 6.54, 10, 10, 796.65, 5.12, 152),
    ("tensor", "forward", "mma"): Cost(30.04, 5.33, 0, 45.12, 0, 10.21, 333.9, 8.18, 69),
    ("tensor", "grad_input", "mma"): Cost(0, 4, 1.06, 52.21, 9.71, 13.73, 439.09, 6.91, 65),
    ("tensor", "grad_weight", "mma"): Cost(76.13, 1.98, 3.83, 28.38, 2.79, 10, 310.91, 8.16, 65),
    ("window", "forward", "wgmma"): Cost(97.05, 0.05, 2, 10, 10, 10, 429.75, 3.37, 75),
    ("window", "grad_input", "wgmma"): Cost(93.94, 0, 2, 10, 10, 10, 422.36, 1.9, 71),
    ("window", "grad_weight", "wgmma"): Cost(71.09, 0.34, 2.92, 10, 10, 10, 577.12, 6.38, 58),
}
UNKNOWN = Cost(100, 2, 2, 10, 10, 10, 500, 5, registers=100)  # a guess


def cost_of(family: str, direction: str, multiplies: str) -> Cost:
    """The cost of a family's kernel for a direction. multiplies: with "mma", "wgmma" or "fma"."""
    return COSTS.get((family, direction, multiplies), UNKNOWN)
