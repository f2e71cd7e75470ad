"""The run folder: what training writes, that it survives what goes wrong, and that damage is told."""

import dataclasses
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpuconv import BackendUnavailable, backends
from gpuconv.train import loop, run as runs
from gpuconv.train.config import Config, UserError
from gpuconv.train.data import DATASETS
from gpuconv.train.watch import Lines

SHORT = Config(steps=3, batch_size=32)


def train(path: Path, config: Config = SHORT, log_every: int | None = None) -> dict[str, object]:
    return runs.train(config, path, Lines(io.StringIO(), "title"), log_every)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(path, Config(epochs=2, batch_size=128))
    return path


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    path = tmp_path / "damaged"
    path.mkdir()
    for file in finished.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_the_folder_holds_settings_metrics_and_weights_and_nothing_else(finished: Path) -> None:
    assert sorted(file.name for file in finished.iterdir()) == ["config.json", "metrics.jsonl", "model.safetensors"]
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
    images = DATASETS["digits"]().images
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
    config = dataclasses.replace(SHORT, backend=backend, seed=7, steps=50)
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
    runs._write(path, b"first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*file: .*; the one saved before is still there"):
            runs._write(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))

    return damage


def settings(**other: object) -> Callable[[Path], None]:
    return rewrite("config.json", lambda text: json.dumps(json.loads(text) | other).encode())


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = safetensors.torch.load_file(path / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, path / "model.safetensors")

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), "is not a run: cannot read config.json"),
    "config is a folder": (
        lambda path: ((path / "config.json").unlink(), (path / "config.json").mkdir()),
        "is not a run: cannot read config.json",
    ),
    "half a config": (rewrite("config.json", lambda text: text[:100]), "config.json is damaged: it is not JSON"),
    "empty config": (rewrite("config.json", lambda text: b""), "config.json is damaged: it is not JSON"),
    "binary config": (rewrite("config.json", lambda text: b"\xff\xfe\x00"), "config.json is damaged: it is not JSON"),
    "deep config": (rewrite("config.json", lambda text: b"[" * 200_000), "config.json is damaged: it is not JSON"),
    "config is a list": (rewrite("config.json", lambda text: b"[1]"), "config.json is damaged: settings are missing"),
    "setting missing": (rewrite("config.json", lambda text: b"{}"), "damaged: settings are missing: data, model"),
    "wrong type": (settings(lr="fast"), "config.json is damaged: lr must be float, but got 'fast'"),
    "bool for int": (settings(seed=True), "config.json is damaged: seed must be int, but got True"),
    "unknown network": (settings(model="huge"), "model must be one of small, but got 'huge'"),
    "unknown data": (settings(data="cats"), "data must be one of digits, but got 'cats'"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "cannot read .*model.safetensors: No such file"),
    "half the weights": (rewrite("model.safetensors", lambda data: data[: len(data) // 2]), "safetensors is damaged"),
    "empty weights": (rewrite("model.safetensors", lambda data: b""), "model.safetensors is damaged"),
    "garbled weights": (rewrite("model.safetensors", lambda data: b"\xff" * 1000), "model.safetensors is damaged"),
    "weight missing": (
        weights(lambda tensors: tensors.pop("fc.bias")),
        r"another network's: expected fc.bias of shape \[10\], but got None",
    ),
    "weight unknown": (
        weights(lambda tensors: tensors.update(extra=torch.zeros(2))),
        r"another network's: expected extra of shape None, but got \[2\]",
    ),
    "weight of another shape": (
        weights(lambda tensors: tensors.update({"conv1.weight": torch.zeros(64, 3, 3, 3)})),
        r"another network's: expected conv1.weight of shape \[64, 1, 3, 3\], but got \[64, 3, 3, 3\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(damaged: Path, damage: str) -> None:
    damage_it, message = DAMAGES[damage]
    damage_it(damaged)
    with pytest.raises(UserError, match=message):
        runs.evaluate(damaged)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: there is no such folder"):
        runs.evaluate(tmp_path / "nothing")
