"""A converted network trained by two processes (gloo, CPU) equals one that one process trained on whole batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes

import gpuconv


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_as_one(way: str, tmp_path: Path, clean_environment) -> None:
    environment = clean_environment | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, two_processes.__file__, way]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    together = torch.load(tmp_path / f"{way}.pt")

    alone, stock = two_processes.network(), two_processes.network()
    gpuconv.convert(alone)
    with gpuconv.use_backend("numpy"):
        two_processes.train(alone, slice(None))
    two_processes.train(stock, slice(None))
    assert together.keys() == alone.state_dict().keys() == stock.state_dict().keys()
    for name, got in together.items():
        for other in (alone, stock):
            expected = other.state_dict()[name]
            assert (got - expected).norm() <= 1e-9 * expected.norm(), name
