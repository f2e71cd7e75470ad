"""What callbacks show of a run, and its curves."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_runs import SHORT, train

from gpuconv.train import run as runs
from gpuconv.train.config import Config
from gpuconv.train.progress import ProgressLines, TensorBoardWriter, draw_curves


def test_tensorboard_gets_what_metrics_get(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", SHORT, TensorBoardWriter(tmp_path / "run" / "tensorboard"), log_every=1)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [line for line in runs.metrics(tmp_path / "run") if line["kind"] == "step"]
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]


def test_broken_images_that_were_left_out_are_named(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(tmp_path / "data" / label / f"{k}.png")
    (tmp_path / "data" / "a" / "x.png").write_bytes(b"hello")
    told = io.StringIO()
    train(
        tmp_path / "run",
        Config(data=f"folder:{tmp_path / 'data'}", steps=1, skip_broken=True),
        ProgressLines(told, "title"),
    )
    assert told.getvalue().splitlines()[:2] == ["title", f"left out 1 broken images: {tmp_path}/data/a/x.png"]


def test_the_curves_are_a_picture(finished: Path) -> None:
    with Image.open(finished / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size == (720, 270)


@pytest.mark.parametrize("part", ["test", "val"])
def test_one_epoch_is_seen_in_the_curves(part: str) -> None:
    line = {"kind": "epoch", "epoch": 1, "loss": 1.0, "accuracy": 0.4, f"{part}_loss": 0.8, f"{part}_accuracy": 0.6}
    draw_curves([line], png := io.BytesIO())
    picture = np.asarray(Image.open(png).convert("RGB")).astype(int)
    for inside in (slice(50, 340), slice(410, 580)):  # the axes of the loss; of the accuracy, left of the legend
        for colour in ((31, 119, 180), (0, 0, 0)):
            assert (abs(picture[30:224, inside] - colour).sum(2) < 60).sum() > 10  # pixels of a marker
    draw_curves([line | {"loss": None, f"{part}_loss": None}], io.BytesIO())
