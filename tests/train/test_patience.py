"""Runs with patience choose by validation images and test once."""

from pathlib import Path

import pytest
import torch
from training_runs import StopAt, assert_equal_but_for_time, train, weights_of

from gpuconv.train import data as datasets, loop, run as runs
from gpuconv.train.config import Config

EVALUATE = loop.evaluate


def test_patience_chooses_by_validation_images_and_tests_what_it_chose_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def evaluate(network: torch.nn.Module, data: datasets.Data, config: Config, part: str = "test") -> loop.Score:
        judged.append(part)
        return EVALUATE(network, data, config, part)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    config = Config(epochs=30, batch_size=600, lr=3.0, patience=2)  # too quick: accuracy jumps about
    result = train(tmp_path / "run", config)
    *lines, last = runs.metrics(tmp_path / "run")
    scores = [line["val_accuracy"] for line in lines]
    assert len(lines) == result["epochs"] < 30 and not any("test_accuracy" in line for line in lines)
    assert scores.index(max(scores)) == len(scores) - 3
    assert judged == ["val"] * len(lines) + ["test"] and last["kind"] == "test"
    test = runs.evaluate(tmp_path / "run")
    assert test == loop.Score(result["accuracy"], result["loss"], 355)
    assert (test.accuracy, test.loss) == (last["test_accuracy"], last["test_loss"])
    data = datasets.load(config)
    assert EVALUATE(runs.load_run(tmp_path / "run")[0], data, config, "val").accuracy == max(scores) != test.accuracy
    assert train(tmp_path / "run", config, resume=True) | {"losses": []} == result | {"losses": []}
    assert runs.metrics(tmp_path / "run") == [*lines, last]


def test_a_run_with_patience_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = Config(epochs=4, batch_size=400, patience=3)
    whole = train(tmp_path / "whole", config)
    for step in (2, 4):
        assert train(tmp_path / "run", config, StopAt(step), resume=step > 2)["accuracy"] is None
    assert train(tmp_path / "run", config, resume=True)["accuracy"] == whole["accuracy"]
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
    assert_equal_but_for_time(tmp_path / "run", tmp_path / "whole")
