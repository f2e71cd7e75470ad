"""Importing gpuconv is cheap: no kernel compiler, no GPU, next to no time."""

import json
import subprocess
import sys


def child(code: str, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


def test_imports_neither_triton_nor_cupy_nor_what_only_the_trainer_needs(clean_environment) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import gpuconv
x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
gpuconv.conv2d(x, w)
gpuconv.conv2d(x, w, backend="numpy")
import json
print(json.dumps(sorted({m.split(".")[0] for m in set(sys.modules) - before})))
"""
    new = json.loads(child(code, clean_environment).stdout)
    assert not {"triton", "cupy", "sklearn", "typer", "rich", "safetensors"} & set(new), new


def test_touches_no_gpu(clean_environment) -> None:
    code = """
import torch
def touched(*a, **k): raise SystemExit("CUDA was asked for")
torch._C._cuda_init = touched
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.get_device_properties = touched
import gpuconv
assert not torch.cuda.is_initialized()
print("fine")
"""
    assert child(code, clean_environment).stdout == "fine\n"


def test_takes_a_tenth_of_a_second_at_most_beyond_torch(clean_environment) -> None:
    """Processor time is measured, which other processes do not take from this one."""
    code = """
import time, torch
start = time.process_time()
import gpuconv
print(time.process_time() - start)
"""
    child(code, clean_environment)  # byte-compiled by now
    seconds = [float(child(code, clean_environment).stdout) for _ in range(3)]
    assert min(seconds) <= 0.1, seconds


def test_flops_are_counted_whichever_is_imported_first_and_nothing_watches_imports(clean_environment) -> None:
    for first, second in (("gpuconv", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "gpuconv")):
        code = f"""
import sys, torch
finders = list(sys.meta_path)
import {first}, {second}
assert sys.meta_path == finders
x, w = torch.ones(1, 2, 5, 5, requires_grad=True), torch.ones(3, 2, 3, 3, requires_grad=True)
with torch.utils.flop_counter.FlopCounterMode(display=False) as earlier:  # made before any op of ours was called
    gpuconv.conv2d(x, w, backend="numpy").sum().backward()
with torch.utils.flop_counter.FlopCounterMode(display=False) as later, earlier:
    gpuconv.conv2d(x, w, backend="numpy").sum().backward()
print([counter.get_total_flops() for counter in (earlier, later)])
"""
        assert child(code, clean_environment).stdout == f"{[3 * 2 * 9 * 2 * 3 * 9] * 2}\n"  # each starts afresh
