"""What a folder of images means: which folders are classes and which are parts, and that nothing vanishes unsaid."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpuconv.errors import UserError
from gpuconv.train import data as datasets
from gpuconv.train.config import Config
from gpuconv.train.data import Data

SHADE = {"cat": 40, "dog": 90, "train": 140, "boat": 190, "eel": 240, "test": 250}


def made(root: Path, *folders: str, count: int = 6, size: tuple[int, int] = (9, 7)) -> Path:
    """Pictures in each folder, in the shade of its last name."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", size, (SHADE[Path(folder).name], 10 * k, 0)).save(root / folder / f"{k}.png")
    return root


def load(root: Path, **settings: object) -> Data:
    data = datasets.load(Config(data=f"folder:{root}", **settings))
    for images, labels in ((data.images, data.labels), data.part("val"), data.part("test")):
        for image, label in zip(images, labels, strict=True):
            assert data.pixels(image, torch.float32)[0, 0, 0] * 255 == pytest.approx(SHADE[data.classes[label]], abs=1)
    return data


PARTED = ("train/cat", "train/dog")


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_val_and_test_mean_what_they_say(tmp_path: Path, val: str) -> None:
    made(tmp_path, *PARTED, f"{val}/cat", f"{val}/dog")
    made(tmp_path, "test/cat", "test/dog", count=2)
    for patience in (0, 3):
        data = load(tmp_path, patience=patience)
        assert (len(data.labels), len(data.part("val")[1]), len(data.test_labels)) == (12, 12, 4)
        assert data.monitored == "val"
        assert data.notes == (f"parts: train in {tmp_path}/train, val in {tmp_path}/{val}, test in {tmp_path}/test",)


def test_val_alone_is_the_held_out_part_unless_something_is_chosen_by_it(tmp_path: Path) -> None:
    made(tmp_path, *PARTED, "val/cat", "val/dog")
    data = load(tmp_path)
    assert (len(data.labels), len(data.test_labels), data.monitored) == (12, 12, "test")
    assert data.notes[1] == "there is no test part: the validation part is the held-out one"
    data = load(tmp_path, patience=1)
    assert (len(data.labels), len(data.part("val")[1]), len(data.test_labels), data.monitored) == (10, 12, 2, "val")
    assert data.notes[1] == "there is no test part: 2 of the training images are held out instead"


def test_patience_has_a_part_of_the_training_images_and_none_of_the_test_images(tmp_path: Path) -> None:
    plain, patient = (datasets.load(Config(patience=patience)) for patience in (0, 5))
    assert plain.monitored == "test" and patient.monitored == "val"
    assert torch.equal(plain.test_images, patient.test_images)
    assert len(patient.labels) + len(patient.part("val")[1]) == len(plain.labels) == 1442
    pairs = [(plain.images, plain.labels), (patient.images, patient.labels), patient.part("val")]
    whole, learned, chosen = (
        sorted(image.numpy().tobytes() + bytes([label]) for image, label in zip(*pair, strict=True)) for pair in pairs
    )
    assert sorted(learned + chosen) == whole
    assert (patient.part("val")[1].bincount() - plain.labels.bincount() // 5 == 0).all()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load(made(tmp_path / "a", "train", "boat")).classes == ("boat", "train")
    both = load(made(tmp_path / "b", "train/train", "train/boat", "test/train", "test/boat"))
    assert both.classes == ("boat", "train") and len(both.test_labels) == 12


def test_images_deeper_in_a_class_belong_to_it(tmp_path: Path) -> None:
    made(tmp_path, "cat", "dog")
    for k in range(3):
        (tmp_path / "dog" / "2020" / str(k)).mkdir(parents=True)
        Image.new("RGB", (9, 7), (90, 0, 0)).save(tmp_path / "dog" / "2020" / str(k) / "x.png")
    data = load(tmp_path)
    assert len(data.labels) + len(data.test_labels) == 15
    assert data.notes == ("3 images lie deeper in their class's folder: 2020",)


def test_what_is_left_out_is_named_and_counted_and_adds_no_class(tmp_path: Path) -> None:
    made(tmp_path, *PARTED, "test/cat", "raw/cat")
    for empty in ("train/eel", "test/eel", "train/.ipynb_checkpoints"):
        (tmp_path / empty).mkdir()
    for file in ("train/cat/notes.txt", "train/dog/.DS_Store", "train/list.csv", "{s}.txt"):
        (tmp_path / file).write_text("hello")
    (tmp_path / "train" / "again").symlink_to(tmp_path)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.test_labels) == 6
    train = tmp_path / "train"
    assert data.notes == (
        f"left out 2 files or folders beside the parts: {tmp_path}/raw, {tmp_path}/{{s}}.txt",
        f"left out 2 hidden files or folders: {train}/.ipynb_checkpoints, {train}/dog/.DS_Store",
        f"left out 1 link back to a folder further up: {train}/again",
        f"left out 1 file without an image: {train}/cat/notes.txt",
        f"left out 2 folders without images: {train}/eel, {tmp_path}/test/eel",
        f"left out 1 file beside the classes' folders: {train}/list.csv",
        f"parts: train in {train}, test in {tmp_path}/test",
        f"no images of dog in {tmp_path}/test",
    )


UNCLEAR = {
    "parts without classes": (("train", "test"), "test is to hold a folder for each class, with images in it"),
    "a part beside classes": (
        ("cat", "dog", "test/cat", "test/dog"),
        "test has folders called like the classes beside",
    ),
    "train: part or class": (
        ("train/cat", "train/dog", "boat"),
        "train has folders, and beside it lie boat: is it the",
    ),
    "two folders for one part": (("train/cat", "val/cat", "valid/cat"), "more than one folder for val: val, valid"),
    "one folder too high": (("eel/cat", "eel/dog"), r"single class, eel, .* \(cat, dog\): .* say folder:\S+/eel$"),
    "a class of the test set alone": (("train/cat", "test/eel"), "test/eel is a class without training images"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_could_be_understood_two_ways_is_asked_in_one_line(tmp_path: Path, case: str) -> None:
    folders, message = UNCLEAR[case]
    with pytest.raises(UserError, match=message) as caught:
        load(made(tmp_path, *folders))
    assert "\n" not in str(caught.value)


def test_images_of_several_sizes_become_squares_of_the_median_side_which_is_said(tmp_path: Path) -> None:
    made(tmp_path, "cat")
    made(tmp_path, "dog", size=(30, 50))
    made(tmp_path / "more", "dog", size=(500, 300))
    Image.new("RGB", (12, 20), (40, 0, 0)).save(tmp_path / "cat" / "x.png")
    (tmp_path / "more").rename(tmp_path / "dog" / "more")
    data = load(tmp_path)
    assert data.image_shape == (3, 30, 30)
    assert data.notes[-1] == (
        "images of 4 sizes, 9×7 to 500×300: each is scaled to cover 30×30 pixels, and its middle is taken; "
        "--size takes squares of another side"
    )
    assert load(tmp_path, size=11).image_shape == (3, 11, 11)
    assert datasets.load(Config(data=f"folder:{tmp_path}"), (8, 5)).image_shape == (3, 8, 5)


def test_the_other_parts_take_the_size_of_the_training_images(tmp_path: Path) -> None:
    made(tmp_path, *PARTED)
    made(tmp_path, "test/cat", size=(40, 40))
    data = load(tmp_path)
    assert data.test_images.shape == (6, 3, 7, 9)
    assert "images of 2 sizes, 9×7 to 40×40: each is scaled to cover 9×7 pixels" in data.notes[-1]


def test_floats_of_two_scales_are_not_mixed(tmp_path: Path) -> None:
    made(tmp_path, "cat")
    for name, white in (("a", 1.0), ("b", 255.0)):
        Image.fromarray(np.full((7, 9), 0.5 * white, np.float32)).save(tmp_path / "cat" / f"{name}.tif")
    with pytest.raises(UserError, match=r"floats .* up to 1 in \S+a\.tif, but up to 255 in \S+b\.tif: their scale has"):
        datasets.load(Config(data=f"folder:{tmp_path}"))
