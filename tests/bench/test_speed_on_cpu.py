"""Speed on a CPU, always side by side with PyTorch in one process and one thread, so that a busy machine slows both."""

import json
import subprocess
import sys

import pytest


def test_call_overhead_is_small(clean_environment) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gpuconv.bench.call_overhead", "--json"],
        env=clean_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    microseconds = json.loads(run.stdout)
    assert microseconds["aten"] - microseconds["torch"] <= 3, microseconds
    assert microseconds["auto"] - microseconds["torch"] <= 3, microseconds
    assert microseconds["trivial"] - microseconds["torch"] <= 15, microseconds


def test_numpy_is_within_three_times_pytorch(clean_environment) -> None:
    code = """
import time, torch, gpuconv
torch.set_num_threads(1)
x = torch.randn(32, 64, 28, 28, requires_grad=True)
w = torch.randn(64, 64, 3, 3, requires_grad=True)
g = torch.randn(32, 64, 28, 28)
def seconds(backend):
    start = time.process_time()  # of this one thread: other work on the machine does not count
    torch.autograd.grad(gpuconv.conv2d(x, w, padding=1, backend=backend), (x, w), g)
    return time.process_time() - start
rounds = [(seconds("numpy"), seconds("aten")) for _ in range(6)][1:]
print(min(n for n, _ in rounds) / min(a for _, a in rounds))
"""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    run = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment | threads, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) <= 3, run.stdout


def test_a_training_step_of_a_converted_model_takes_as_long_as_before(clean_environment) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    code = """
import time, torch, torchvision, gpuconv
torch.set_num_threads(1)
x, labels = torch.randn(8, 3, 64, 64), torch.randint(1000, (8,))
stock, ours = (torchvision.models.resnet18(weights=None) for _ in range(2))
gpuconv.convert(ours)
optimizers = {model: torch.optim.SGD(model.parameters(), lr=0.01) for model in (stock, ours)}
def seconds(model):
    start = time.process_time()  # of this one thread: other work on the machine does not count
    optimizers[model].zero_grad()
    torch.nn.functional.cross_entropy(model(x), labels).backward()
    optimizers[model].step()
    return time.process_time() - start
rounds = [(seconds(ours), seconds(stock)) for _ in range(13)][1:]
print(min(o for o, _ in rounds) / min(s for _, s in rounds))
"""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    run = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment | threads, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) <= 1.05, run.stdout
