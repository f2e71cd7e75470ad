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
    """Of processor time, which other processes do not take from this one."""
    code = """
import time, torch
start = time.process_time()
import gpuconv
print(time.process_time() - start)
"""
    child(code, clean_environment)  # byte-compiled by now
    seconds = [float(child(code, clean_environment).stdout) for _ in range(3)]
    assert min(seconds) <= 0.1, seconds


def test_flop_formulas_are_registered_whichever_is_imported_first(clean_environment) -> None:
    for first, second in (("gpuconv", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "gpuconv")):
        code = f"""
import sys, {first}, {second}
names = {{str(op) for op in torch.utils.flop_counter.flop_registry}}
assert {{"gpuconv.conv_forward", "gpuconv.conv_grad_input", "gpuconv.conv_grad_weight"}} <= names, names
assert not any("gpuconv" in str(type(finder)) for finder in sys.meta_path)
"""
        child("import torch" + code, clean_environment)
