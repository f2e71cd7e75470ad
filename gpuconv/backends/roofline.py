"""What the formulas of `gpuconv.planning.predict` give, and the properties of GPUs that several of them share."""

from typing import NamedTuple

REUSE_FOR_HALF_THE_RATE = 16.0
L2_SPEEDUP = 3.0  # over device memory
ONE_MORE_LAUNCH = 3e-6  # seconds
INSTRUCTIONS_AN_ELEMENT = 10  # to fetch one by itself, as counted in the loops of the gather kernels
INSTRUCTIONS = 64 * 1.5e9  # integer ones a second of a multiprocessor
# What of the peak rate mma.sync reaches where newer instructions reach all of it: on Hopper 0.63 (Luo et al. 2024,
# 'Benchmarking and dissecting the Nvidia Hopper GPU architecture via microbenchmarking'); on sm_100 a guess.
MMA_SYNC = {(9, 0): 0.63, (10, 0): 0.3}


class Prediction(NamedTuple):
    """What `predict` expects of a tile."""

    seconds: float
    bound: str  # what takes that long: "products", "addresses", "L2 fetches", "fetch latency" or "memory bandwidth"
    programs: int
    steps: float  # of the loop of a program, on average
    together: int  # programs on a multiprocessor at a time
    waves: int
    intensity: float  # operations for each byte that a step fetches
