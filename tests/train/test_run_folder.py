"""The run folder: what training writes, and that nothing is overwritten or half written."""

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from training_runs import (
    SHORT,
    train,
)

from gpuconv import BackendUnavailable, backends
from gpuconv.errors import UserError
from gpuconv.train import checkpoint, data as datasets, loop, run as runs
from gpuconv.train.config import Config

FILES = ["checkpoint.safetensors", "config.json", "curves.png", "metrics.jsonl", "model.safetensors"]


def test_the_folder_holds_settings_metrics_and_weights_and_nothing_else(finished: Path) -> None:
    assert sorted(file.name for file in finished.iterdir()) == FILES
    config = json.loads((finished / "config.json").read_text())
    assert config["epochs"] == 2 and config["image_shape"] == [1, 8, 8] and len(config["classes"]) == 10
    assert runs.load_config(finished) == Config(epochs=2, batch_size=128)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [("epoch", 1, 12), ("epoch", 2, 24)]
    expected = {"loss", "accuracy", "test_loss", "test_accuracy", "seconds", "images_per_second", "lr"}
    assert set(lines[0]) == {"kind", "epoch", "step"} | expected


def test_the_normalisation_is_saved_with_the_weights(finished: Path) -> None:
    weights = safetensors.torch.load_file(finished / "model.safetensors")
    assert weights["normalize.mean"].shape == weights["normalize.std"].shape == (1, 1, 1)
    data = datasets.load(Config())
    images = data.pixels(data.images, torch.float64)
    assert weights["normalize.mean"].item() == pytest.approx(images.mean().item())
    assert weights["normalize.std"].item() == pytest.approx(images.std().item())


def test_evaluation_gives_the_last_score_of_training(finished: Path) -> None:
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert runs.evaluate(finished) == loop.Score(last["test_accuracy"], last["test_loss"], 355)


def test_another_backend_or_type_scores_a_run_alike(finished: Path) -> None:
    expected = runs.evaluate(finished)
    for other in ({"backend": "numpy"}, {"dtype": "float64"}, {"dtype": "bfloat16"}):
        score = runs.evaluate(finished, **other)
        assert score.accuracy == pytest.approx(expected.accuracy, abs=0.02)
        assert score.loss == pytest.approx(expected.loss, rel=0.05)


@pytest.mark.parametrize("backend", ["aten", "numpy"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path, backend: str) -> None:
    config = dataclasses.replace(SHORT, backend=backend, seed=7, steps=20)
    for name in ("a", "b"):
        torch.rand(3)  # whatever happened before has no say
        train(tmp_path / name, config)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
    train(tmp_path / "c", dataclasses.replace(config, seed=8))
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != a


def test_steps_are_logged_as_often_as_asked(tmp_path: Path) -> None:
    result = train(tmp_path / "run", dataclasses.replace(SHORT, steps=7), log_every=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 3), ("step", 6), ("epoch", 7)]
    assert result["losses"] == [lines[0]["loss"], lines[1]["loss"]]


def test_float64_weights_are_saved_as_float64_and_16_bit_runs_keep_float32_weights(tmp_path: Path) -> None:
    for dtype, saved in (("float64", torch.float64), ("bfloat16", torch.float32), ("float16", torch.float32)):
        train(tmp_path / dtype, dataclasses.replace(SHORT, dtype=dtype))
        weights = safetensors.torch.load_file(tmp_path / dtype / "model.safetensors")
        assert {t.dtype for t in weights.values()} == {saved}


def test_training_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return torch.get_num_threads(), torch.backends.cudnn.deterministic, backends.selected()

    before = state()
    train(tmp_path / "run", dataclasses.replace(SHORT, backend="numpy"))
    assert state() == before


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert runs.evaluate(tmp_path / "run").n == 355


def test_a_run_is_never_overwritten(finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(UserError, match="already holds a run"):
        train(finished)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path, where: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"cannot write to .*: {file} is not a folder"):
        train(file if where == "a file" else file / "x" / "run")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_made_is_told() -> None:
    with pytest.raises(UserError, match="cannot write to /proc/gpuconv/run"):
        train(Path("/proc/gpuconv/run"))


class Refusing(backends.Backend):
    name = "refusing"

    def refuses(self, *_: object) -> str:
        return "it is a test"


def test_where_a_backend_refuses_the_network_nothing_is_written(tmp_path: Path) -> None:
    backends.register(Refusing())
    try:
        with pytest.raises(BackendUnavailable, match="it is a test"):
            train(tmp_path / "run", dataclasses.replace(SHORT, backend="refusing"))
    finally:
        del backends._loaded["refusing"]
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_weights_of_the_epoch_before(tmp_path: Path) -> None:
    config = Config(epochs=3, batch_size=1442, lr=1e18)
    with pytest.raises(UserError, match=r"the loss of epoch \d is (nan|inf): training diverged; try a smaller --lr"):
        train(tmp_path / "run", config, log_every=1)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_cannot_be_written_leaves_the_file_before_it(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file sizes can only be limited on Unix")
    path = tmp_path / "file"
    checkpoint.write(path, b"first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*file: .*; the one saved before is still there"):
            checkpoint.write(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
