"""Prints how many milliseconds the first call of a workload takes in this process; `runner.first_call` starts it.

    python -m gpuconv.bench.first_call LAYER DIRECTION NUMBERS BATCH BACKEND LAYOUT DEVICE

The device is in use before, so its context is not counted; importing and compiling kernels is.
"""

import sys
import time

import torch

from gpuconv.bench import runner
from gpuconv.bench.workloads import Workload
from gpuconv.checking.precision import float32_as


def main() -> None:
    layer, direction, numbers, batch, spec, layout, device_name = sys.argv[1:]
    workload, device = Workload(layer, direction, numbers, int(batch)), torch.device(device_name)
    a, b = (t.contiguous(memory_format=workload.problem(layout).memory_format) for t in workload.operands(device))
    backend = runner.register(spec)
    with float32_as(numbers):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        workload.bound_call(backend, layout, a, b)()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    print((time.perf_counter() - start) * 1e3)


if __name__ == "__main__":
    main()
