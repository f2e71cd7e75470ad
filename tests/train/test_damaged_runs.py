"""Damage to a run's settings, weights or checkpoint is an error of one line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from training_runs import SHORT, StopAt, images, train

from gpuconv.errors import UserError
from gpuconv.train import run as runs


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))

    return damage


def with_settings(**other: object) -> Callable[[Path], None]:
    return rewritten("config.json", lambda text: json.dumps(json.loads(text) | other).encode())


def with_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
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
    "half a config": (rewritten("config.json", lambda text: text[:100]), "config.json is damaged: it is not JSON"),
    "empty config": (rewritten("config.json", lambda text: b""), "config.json is damaged: it is not JSON"),
    "binary config": (rewritten("config.json", lambda text: b"\xff\xfe\x00"), "config.json is damaged: it is not JSON"),
    "deep config": (rewritten("config.json", lambda text: b"[" * 200_000), "config.json is damaged: it is not JSON"),
    "config is a list": (rewritten("config.json", lambda text: b"[1]"), "config.json is damaged: settings are missing"),
    "setting missing": (rewritten("config.json", lambda text: b"{}"), "damaged: settings are missing: data, model"),
    "wrong type": (with_settings(lr="fast"), "config.json is damaged: lr must be float, but got 'fast'"),
    "bool for int": (with_settings(seed=True), "config.json is damaged: seed must be int, but got True"),
    "unknown network": (with_settings(model="huge"), "model must be one of small, .*, but got 'huge'"),
    "unknown data": (with_settings(data="cats"), "data must be one of digits, .*, but got 'cats'"),
    "classes missing": (with_settings(classes=3), "config.json is damaged: image_shape or classes is missing or wrong"),
    "a bit flipped": (
        rewritten("model.safetensors", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
        "model.safetensors is damaged: its checksum is wrong",
    ),
    "other data": (with_settings(classes=["a", "b"]), "the network was made for 2 classes|is another network's"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "cannot read .*model.safetensors: No such file"),
    "half the weights": (rewritten("model.safetensors", lambda data: data[: len(data) // 2]), "safetensors is damaged"),
    "empty weights": (rewritten("model.safetensors", lambda data: b""), "model.safetensors is damaged"),
    "garbled weights": (rewritten("model.safetensors", lambda data: b"\xff" * 1000), "model.safetensors is damaged"),
    "weight missing": (
        with_weights(lambda tensors: tensors.pop("fc.bias")),
        r"another network's: expected fc.bias of shape \[10\], but got None",
    ),
    "weight unknown": (
        with_weights(lambda tensors: tensors.update(extra=torch.zeros(2))),
        r"another network's: expected extra of shape None, but got \[2\]",
    ),
    "weight of another shape": (
        with_weights(lambda tensors: tensors.update({"conv1.weight": torch.zeros(64, 3, 3, 3)})),
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


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    train(tmp_path / "stopped", SHORT, StopAt(2))
    return tmp_path / "stopped"


def other_checkpoint(path: Path) -> None:
    train(path.with_name("other"), dataclasses.replace(SHORT, data=f"npz:{images(path.parent)}"))
    (path / "checkpoint.safetensors").write_bytes((path.with_name("other") / "checkpoint.safetensors").read_bytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: (path / "checkpoint.safetensors").unlink(),
        "cannot read .*checkpoint.safetensors: No such",
    ),
    "cut": (rewritten("checkpoint.safetensors", lambda data: data[:-1]), "checkpoint.safetensors is damaged"),
    "a bit flipped": (
        rewritten("checkpoint.safetensors", lambda data: data[:-99] + bytes([data[-99] ^ 4]) + data[-98:]),
        "checkpoint.safetensors is damaged: its checksum is wrong",
    ),
    "a model": (
        lambda path: (path / "model.safetensors").replace(path / "checkpoint.safetensors"),
        "checkpoint.safetensors is damaged: it is no checkpoint",
    ),
    "a pickle": (
        rewritten("checkpoint.safetensors", lambda data: b"cos\nsystem\n(S'touch pwned'\ntR."),
        "checkpoint.safetensors is damaged",
    ),
    "another network's": (other_checkpoint, r"is another network's: expected fc.bias of shape \[10\], but got \[4\]"),
    "other data": (with_settings(images=1441), "digits has changed: images was 1441, and is 1442"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_checkpoint_is_told_in_one_line_and_executes_nothing(stopped: Path, case: str) -> None:
    damage_it, message = BROKEN[case]
    damage_it(stopped)
    with pytest.raises(UserError, match=message) as caught:
        train(stopped, SHORT, resume=True)
    assert "\n" not in str(caught.value)
