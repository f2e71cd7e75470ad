"""CIFAR-10 and CIFAR-100 in both of their versions; a pickle can do nothing but hold numbers."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from gpuconv.errors import UserError
from gpuconv.train import data as datasets, standard_data
from gpuconv.train.config import Config
from gpuconv.train.data import Data

NAMES = {
    "10": ("cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", b"labels"),
    "100": ("cifar-100-python", ["train"], "test", b"fine_labels"),
}


def python_2(values: dict[bytes, object]) -> bytes:
    """A dictionary as Python 2 pickled it, which is how the files were made: arrays, lists of ints, bytes."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def one(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            shape = b"(" + b"".join(map(number, value.shape)) + b"t"
            kind = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
            kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
            return made + b"(" + number(1) + shape + kind + b"I00\n" + text(value.tobytes()) + b"tb"
        if isinstance(value, list):
            return b"](" + b"".join(map(one, value)) + b"e"
        return text(value) if isinstance(value, bytes) else number(value)

    return b"\x80\x02}(" + b"".join(text(key) + one(value) for key, value in values.items()) + b"u."


def python_3(values: dict[bytes, object]) -> bytes:
    return pickle.dumps({key.decode(): value for key, value in values.items()})


def write(folder: Path, number: str, pack: object = python_2, **other: object) -> Path:
    """The files; those of training are one file under several names."""
    name, train, test, key = NAMES[number]
    inner = folder / name
    inner.mkdir()
    count = 10_000 if number == "10" else 50_000
    for file, n in ((train[0], count), (test, 10_000)):
        data = np.zeros((n, 3072), np.uint8)
        data[1] = [1] * 1024 + [2] * 1024 + [3] * 1024
        (inner / file).write_bytes(pack({b"data": data, key: [k % int(number) for k in range(n)]} | other))
    for file in train[1:]:
        os.link(inner / train[0], inner / file)
    if number == "100":
        (inner / "meta").write_bytes(pack({b"fine_label_names": [b"name%d" % k for k in range(100)]}))
    return inner


def load(kind: str, path: Path) -> Data:
    return datasets.load(Config(data=f"{kind}:{path}"))


@pytest.mark.parametrize(("number", "pack"), [("10", python_2), ("10", python_3), ("100", python_2)])
def test_the_python_version_is_read_from_its_folder_and_the_one_above(
    tmp_path: Path, number: str, pack: object
) -> None:
    inner = write(tmp_path, number, pack)
    data = load(f"cifar{number}", tmp_path if pack is python_2 else inner)
    assert data.images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.images[1, :, 7, 9].tolist() == data.test_images[1, :, 7, 9].tolist() == [1, 2, 3]
    assert data.test_labels[:3].tolist() == [0, 1, 2] and int(data.labels.max()) == int(number) - 1
    assert data.classes[3] == ("cat" if number == "10" else "name3") and len(data.classes) == int(number)


def test_the_binary_version_of_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    for name, count in (("train.bin", 50_000), ("test.bin", 10_000)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(count * 3074)
    with open(tmp_path / "test.bin", "r+b") as file:
        file.write(bytes([7, 42, 9]))
    (tmp_path / "fine_label_names.txt").write_text("".join(f"name{k}\n" for k in range(100)))
    data = load("cifar100", tmp_path)
    assert data.test_labels[:2].tolist() == [42, 0] and data.classes[42] == "name42"
    assert data.test_images[0, 0, 0, :2].tolist() == [9, 0]
    with pytest.raises(UserError, match=f"{tmp_path} holds CIFAR-100: say cifar100:{tmp_path}"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("number", ["10", "100"])
def test_without_files_the_download_is_named_and_one_that_is_packed_too(tmp_path: Path, number: str) -> None:
    with pytest.raises(
        UserError, match=rf"No such file; CIFAR-{number} is cifar-{number}-binary\.tar\.gz or .* unpacked"
    ):
        load(f"cifar{number}", tmp_path)
    (tmp_path / f"cifar-{number}-python.tar.gz").touch()
    with pytest.raises(UserError, match=rf"cifar-{number}-python\.tar\.gz is packed: tar -xf it"):
        load(f"cifar{number}", tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("echo pwned > pwned",)


def no_labels() -> bytes:
    return pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [1]})


BAD = {
    "it runs a command": (lambda: pickle.dumps(Evil()), "it asks for (posix|nt).system, which no data need"),
    "protocol 0": (lambda: pickle.dumps(Evil(), 0), "it asks for (posix|nt).system"),
    "cut": (
        lambda: python_2({b"data": np.zeros((9, 3072), np.uint8)})[:5000],
        "is damaged, or no file of CIFAR's Pyth",
    ),
    "no pickle": (lambda: b"hello", "is damaged, or no file of CIFAR's Python version: "),
    "a list": (lambda: pickle.dumps([1]), "it holds no dictionary"),
    "few rows": (
        lambda: python_2({b"data": np.zeros((9, 3072), np.uint8)}),
        "its data are no 10,000 rows of 3,072 bytes",
    ),
    "few labels": (no_labels, "its labels are no 10,000 numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_pickle_is_one_line_and_executes_nothing(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(make())
    with pytest.raises(UserError, match=message) as caught:
        standard_data.cifar10(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / "data_batch_1") in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["data_batch_1"]
