"""`predict` on the weights of a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpuconv.errors import UserError
from gpuconv.train import data as datasets, run as runs
from gpuconv.train.config import Config


def test_predict_names_the_digit_on_a_picture_of_any_size(finished: Path, tmp_path: Path) -> None:
    data = datasets.load(Config())
    files = []
    for k in range(20):
        picture = Image.fromarray((data.test_images[k, 0].numpy() * 15.9).astype(np.uint8))
        files.append(tmp_path / f"{k}.png")
        picture.resize((8, 8) if k else (24, 24)).convert("RGB").save(files[-1])
    found = runs.predict(finished, files)
    right = sum(
        next(iter(shares)) == str(label) for shares, label in zip(found, data.test_labels.tolist(), strict=False)
    )
    assert right >= 17
    for shares in found:
        assert len(shares) == 10 and sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    with pytest.raises(UserError, match=r"cannot read the image .*no\.png: No such file"):
        runs.predict(finished, [tmp_path / "no.png"])
    (tmp_path / "deeper").mkdir()
    files[3].rename(tmp_path / "deeper" / "3.png")
    (tmp_path / "deeper" / "broken.png").write_bytes(files[4].read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("hello")
    said: list[str] = []
    again = dict(runs.iter_predictions(finished, [tmp_path], said.append))
    assert again.keys() == {*files[:3], *files[4:], tmp_path / "deeper" / "3.png"}
    assert all(shares == pytest.approx(found[int(file.stem)]) for file, shares in again.items())
    assert said == [
        f"left out 1 file without an image: {tmp_path}/notes.txt",
        f"left out 1 broken images: {tmp_path}/deeper/broken.png",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        runs.predict(finished, [tmp_path / "empty"])
