"""Arrays of any type and layout: used as they are meant, or refused in one line."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gpuconv.errors import UserError
from gpuconv.train import data as datasets
from gpuconv.train.config import Config
from gpuconv.train.data import Data

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (10, 6, 7), np.uint8)
BYTES[0, 0, :2] = 0, 255
LABELS = np.arange(10) % 2


def load(folder: Path, /, images: object = BYTES, labels: object = LABELS, **more: object) -> Data:
    np.savez(folder / "x.npz", images=images, labels=labels, **{"test_images": images, "test_labels": labels} | more)
    return datasets.load(Config(data=f"npz:{folder / 'x.npz'}"))


DEEP = BYTES.astype(np.uint16) * 257
IMAGES = {
    "uint8": BYTES,
    "bool": BYTES > 127,
    "int64 to 255": BYTES.astype(np.int64),
    "int16, big-endian": BYTES.astype(">i2"),
    "uint16": DEEP,
    "uint16, big-endian": DEEP.astype(">u2"),
    "int32 to 65,535": DEEP.astype(np.int32),
    "float16": (BYTES / 255).astype(np.float16),
    "float32, big-endian": (BYTES / 255).astype(">f4"),
    "float64": BYTES / 255,
    "longdouble": BYTES.astype(np.longdouble) / 255,
    "floats to 255": BYTES.astype(np.float32),
    "floats to 65,535": DEEP.astype(np.float64),
}
UNSAID = {"uint8", "bool", "float16", "float32, big-endian", "float64", "longdouble"}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_type_have_values_from_0_to_1(tmp_path: Path, kind: str) -> None:
    data = load(tmp_path, IMAGES[kind])
    expected = (BYTES > 127) if kind == "bool" else BYTES / 255
    for images in (data.images, data.test_images):
        values = data.pixels(images, torch.float64).numpy()
        np.testing.assert_allclose(values, expected[:, None], atol=1e-3 if kind == "float16" else 1e-6)
    assert len(data.notes) == (kind not in UNSAID)


def test_parts_of_two_types_have_one_scale(tmp_path: Path) -> None:
    data = load(tmp_path, BYTES, test_images=(BYTES / 255).astype(np.float32))
    torch.testing.assert_close(data.pixels(data.images, torch.float32), data.pixels(data.test_images, torch.float32))


def test_standardised_images_are_taken_as_they_are_and_that_is_said(tmp_path: Path) -> None:
    images = RANDOM.standard_normal((10, 6, 7)).astype(np.float32)
    data = load(tmp_path, images)
    assert np.array_equal(data.pixels(data.images, torch.float32)[:, 0].numpy(), images)
    assert "are taken as they are; pictures have 0 to 1" in data.notes[0]


LAYOUTS = {
    (10, 6, 7): ((1, 6, 7), False), (10, 3, 6, 7): ((3, 6, 7), False), (10, 6, 7, 3): ((3, 6, 7), False),
    (10, 6, 7, 1): ((1, 6, 7), False), (10, 6, 7, 4): ((4, 6, 7), True), (10, 4, 6, 7): ((4, 6, 7), True),
    (10, 3, 7, 3): ((3, 7, 3), True), (10, 8, 4, 4): ((8, 4, 4), True),
}  # fmt: skip


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_channels_are_found_and_a_guess_is_said(tmp_path: Path, shape: tuple[int, ...]) -> None:
    expected, guessed = LAYOUTS[shape]
    images = RANDOM.integers(0, 256, shape, np.uint8)
    data = load(tmp_path, images)
    assert data.image_shape == expected
    assert data.notes == (() if not guessed else data.notes[:1]) and len(data.notes) == guessed
    turned = images.transpose(0, 3, 1, 2) if len(shape) == 4 and expected != shape[1:] else images
    assert np.array_equal(data.images.numpy().reshape(turned.shape), turned)


NUMBERED = {
    "ids": (LABELS * 5 + 3_000_000, ("3000000", "3000005"), True),
    "gaps": (np.array([0, 2] * 5), ("0", "2"), True),
    "from 1 on": (LABELS + 1, ("1", "2"), True),
    "-1 and 1": (LABELS * 2 - 1, ("-1", "1"), True),
    "beyond int64": (LABELS.astype(np.uint64) + np.uint64(2**64 - 9), (str(2**64 - 9), str(2**64 - 8)), True),
    "big-endian": (LABELS.astype(">i4"), ("0", "1"), False),
    "uint8": (LABELS.astype(np.uint8), ("0", "1"), False),
    "bool": (LABELS > 0, ("False", "True"), True),
    "whole floats": (LABELS.astype(np.float32), ("0", "1"), True),
    "text": (np.array(["cat", "dog"])[LABELS], ("cat", "dog"), True),
    "bytes": (np.array([b"cat", b"dog"])[LABELS], ("cat", "dog"), True),
    "a column": (LABELS[:, None], ("0", "1"), False),
    "one-hot": (np.eye(3)[LABELS], ("0", "1", "2"), True),
}


@pytest.mark.parametrize("case", NUMBERED)
def test_labels_of_every_kind_are_numbered_and_a_change_is_said(tmp_path: Path, case: str) -> None:
    labels, classes, said = NUMBERED[case]
    data = load(tmp_path, labels=labels)
    assert data.classes == classes and len(data.notes) == said
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == data.test_labels.tolist() == LABELS.tolist()


def test_parts_are_numbered_alike_and_a_class_that_is_not_learned_is_said(tmp_path: Path) -> None:
    data = load(tmp_path, labels=LABELS * 10, test_labels=LABELS * 10 + 10)
    assert data.classes == ("0", "10", "20") and data.test_labels.unique().tolist() == [1, 2]
    assert data.notes[-1] == "no training images of 20"


def test_many_large_ids_take_no_time(tmp_path: Path) -> None:
    began = time.process_time()
    count = 20_000
    labels = np.arange(count) // 25 * 10_001 + 3_000_000
    np.savez(tmp_path / "x.npz", images=np.zeros((count, 2, 2), np.uint8), labels=labels)
    data = datasets.load(Config(data=f"npz:{tmp_path / 'x.npz'}", patience=1))
    assert len(data.classes) == 800 and len(data.test_labels) == 800 * 5
    assert time.process_time() - began < 5


def test_medmnists_and_kerass_names_are_known_and_other_arrays_are_named(tmp_path: Path) -> None:
    pair = {"images": BYTES, "labels": LABELS[:, None]}
    np.savez(tmp_path / "m.npz", **{f"{p}_{k}": v for p in ("train", "val", "test") for k, v in pair.items()})
    data = datasets.load(Config(data=f"npz:{tmp_path / 'm.npz'}"))
    assert data.monitored == "val" and data.notes == ()
    np.savez(tmp_path / "k.npz", x_train=BYTES, y_train=LABELS, x_test=BYTES[:4], y_test=LABELS[:4], ids=LABELS)
    data = datasets.load(Config(data=f"npz:{tmp_path / 'k.npz'}"))
    assert (len(data.labels), len(data.test_labels)) == (10, 4)
    assert data.notes == (f"not used of {tmp_path / 'k.npz'}: ids",)


BAD = {
    "negative images": (
        {"images": BYTES.astype(np.int16) - 9},
        "must be from 0 to 255 or 65,535, but int16 go from -9",
    ),
    "large images": ({"images": BYTES.astype(np.int64) << 20}, "but int64 go from 0 to 267,386,880"),
    "complex": ({"images": BYTES * 1j}, r"numbers; got \(10, 6, 7\) complex128"),
    "flat": (
        {"images": BYTES.reshape(10, -1)},
        r"got \(10, 42\) uint8; those of one row each are to be given their sh",
    ),
    "no pixels": ({"images": BYTES[:, :0]}, r"got \(10, 0, 7\) uint8"),
    "a number": ({"images": np.uint8(3)}, r"got \(\) uint8"),
    "halves": ({"labels": LABELS / 2}, r"labels must be \[N\] integers, but got \[10\] float64"),
    "NaN": ({"labels": np.full(10, np.nan)}, r"labels must be \[N\] integers, but got \[10\] float64"),
    "soft labels": ({"labels": np.full((10, 2), 0.5)}, r"labels must be \[N\] integers, but got \[10, 2\] float64"),
    "one label": ({"labels": np.int64(3)}, r"labels must be \[N\] integers, but got \[\] int64"),
    "dates": ({"labels": LABELS.astype("datetime64[s]")}, r"labels must be \[N\] integers, but got \[10\] datetime64"),
    "text and numbers": ({"test_labels": LABELS.astype(str)}, "labels must be all text or all numbers"),
    "half a pair": ({"val_images": BYTES}, "both of test_ and of val_ or none, but has images"),
    "nothing": ({"images": BYTES[:0], "labels": LABELS[:0]}, "0 images do not go with 0 labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_understood_is_one_line(tmp_path: Path, case: str) -> None:
    arrays, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, **arrays)
    assert "\n" not in str(caught.value)


def test_a_label_for_each_image_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels have 2,000 values for 2,000 images: those are no classes to learn"):
        load(tmp_path, np.zeros((2000, 2, 2), np.uint8), np.arange(2000))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"\x93NUMPY\x01\x00v\x00{'descr': garbage"], ids=str)
def test_a_file_that_is_no_npz_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz is damaged, or no npz file of numbers: .") as caught:
        datasets.load(Config(data=f"npz:{tmp_path / 'x.npz'}"))
    assert "\n" not in str(caught.value)
