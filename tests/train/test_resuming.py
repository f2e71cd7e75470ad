"""Runs that were stopped, killed or out of disk space continue to the same bits."""

import dataclasses
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import (
    BUSY,
    SHORT,
    StopAt,
    assert_equal_but_for_time,
    command,
    images,
    train,
    weights_of,
)

from gpuconv.errors import UserError
from gpuconv.train import run as runs
from gpuconv.train.config import Config


@pytest.mark.parametrize(
    "config", [BUSY, dataclasses.replace(BUSY, model="small", optimizer="sgd", channels_last=True, dtype="float32")]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, config: Config) -> None:
    config = dataclasses.replace(config, data=f"npz:{images(tmp_path)}")
    whole = train(tmp_path / "whole", config, log_every=3)
    assert whole["steps"] == 30
    for step in (1, 17, 26):  # an epoch has 17
        how = {} if step == 1 else {"resume": True}
        result = train(tmp_path / "run", config, StopAt(step), log_every=3, **how)
        assert (result["stopped_by"], result["steps"]) == ("SIGINT", step)
    result = train(tmp_path / "run", config, log_every=3, resume=True)
    assert {k: result[k] for k in ("accuracy", "loss", "steps")} == {k: whole[k] for k in ("accuracy", "loss", "steps")}
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
    assert_equal_but_for_time(tmp_path / "run", tmp_path / "whole")
    assert train(tmp_path / "run", config, resume=True)["accuracy"] == whole["accuracy"]  # nothing is left to do


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_run_killed_at_any_step_goes_on_to_the_same_bits(
    tmp_path: Path, clean_environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    config = dataclasses.replace(BUSY, data=f"npz:{images(tmp_path)}", steps=60, epochs=4)
    train(tmp_path / "whole", config)
    seed = int(np.random.default_rng().integers(2**31))
    draw, kills, more = np.random.default_rng(seed), 0, ()
    for _ in range(20 if request.config.getoption("--full") else 2):
        options = (*more, "--checkpoint-every", draw.integers(1, 5), "--log-every", 1, "--device", "cpu")
        arguments = command(tmp_path / "run", config)[4:] if not more else []
        process = subprocess.Popen(
            command(tmp_path / "run", config, *arguments, *options), env=clean_environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        left = int(draw.integers(1, 25))
        for line in process.stdout:
            left -= line.startswith("step")
            if left == 0:
                process.kill()
                break
        process.stdout.close()
        kills += process.wait(60) == -signal.SIGKILL
        more = ("--resume", tmp_path / "run")
    assert kills, seed
    train(tmp_path / "run", config, resume=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole"), f"seed {seed}"


def test_dropout_goes_on_with_its_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping(torch.nn.Sequential):
        def __init__(self, shape: tuple[int, ...], classes: int) -> None:
            super().__init__(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, classes))
            self.normalize = runs.networks.Normalize(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[2](self[1](self[0](self.normalize(x))))

    monkeypatch.setitem(runs.networks.NETWORKS, "small", Dropping)
    config = dataclasses.replace(SHORT, steps=9)
    train(tmp_path / "whole", config)
    train(tmp_path / "run", config, StopAt(4, signal.SIGTERM))
    torch.rand(7)
    train(tmp_path / "run", config, resume=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="file sizes can only be limited on Unix")
def test_a_full_disk_ends_a_run_in_one_line_and_the_checkpoint_before_goes_on(tmp_path: Path) -> None:
    import resource

    config = dataclasses.replace(SHORT, steps=6)
    train(tmp_path / "whole", config)
    train(tmp_path / "run", config, StopAt(2))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))  # more than the model, less than a checkpoint
    try:
        with pytest.raises(UserError, match=r"^cannot write .*checkpoint.safetensors: [^\n]*; the one saved before is"):
            train(tmp_path / "run", config, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before["checkpoint.safetensors"]
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == sorted(before)
    train(tmp_path / "run", config, resume=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
