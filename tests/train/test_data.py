"""Where images come from, what is said of bad ones, and what a training epoch makes of them."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpuconv.errors import UserError
from gpuconv.train import data as datasets
from gpuconv.train.config import Config
from gpuconv.train.data import Data, epoch_batches

RANDOM = np.random.default_rng(0)


def digits() -> Data:
    return datasets.load(Config())


# ---- digits ---------------------------------------------------------------------------------------------------------


def test_a_fifth_of_every_digit_is_held_out_and_no_image_is_lost() -> None:
    data = digits()
    assert len(data.labels) + len(data.test_labels) == 1797
    for digit in range(10):
        held_out, kept = (data.test_labels == digit).sum(), (data.labels == digit).sum()
        assert held_out == (held_out + kept) // 5


def test_pixels_lie_between_0_and_1_in_the_type_asked_for() -> None:
    data = digits()
    assert data.image_shape == (1, 8, 8)
    for images in (data.images, data.test_images):
        pixels = data.pixels(images, torch.float64)
        assert pixels.dtype == torch.float64
        assert pixels.min() == 0 and pixels.max() == 1


# ---- files ----------------------------------------------------------------------------------------------------------


def cifar10(folder: Path) -> Path:
    """CIFAR-10's six files, black but for the first record of the test set; holes on disk."""
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir()
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        with open(inner / name, "wb") as file:
            file.truncate(10_000 * 3073)
    with open(inner / "test_batch.bin", "r+b") as file:
        file.write(bytes([3]) + bytes([1] * 1024 + [2] * 1024 + [3] * 1024))
    return inner


def mnist(folder: Path, train: int = 6, label: int = 9, pack: bool = False) -> Path:
    for name, count in (("train", train), ("t10k", 3)):
        images = RANDOM.integers(0, 256, (count, 5, 4), np.uint8)
        labels = np.full(count, label, np.uint8)
        for stem, array in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", labels)):
            raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            (folder / f"{stem}{'.gz' * pack}").write_bytes(gzip.compress(raw) if pack else raw)
    return folder


def pictures(folder: Path, count: int = 5) -> Path:
    for label, kind in (("cat", "png"), ("dog", "jpg")):
        (folder / label).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3), np.uint8)).save(folder / label / f"{k}.{kind}")
    return folder


def load(kind: str, path: Path, **settings: object) -> Data:
    return datasets.load(Config(data=f"{kind}:{path}", **settings))


@pytest.mark.parametrize("inside", [False, True], ids=["the folder above", "the folder itself"])
def test_cifar10(tmp_path: Path, inside: bool) -> None:
    inner = cifar10(tmp_path)
    data = load("cifar10", inner if inside else tmp_path)
    assert data.images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.test_labels[:2].tolist() == [3, 0] and data.classes[3] == "cat"
    assert data.test_images[0, :, 7, 9].tolist() == [1, 2, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path: Path, packed: bool) -> None:
    data = load("mnist", mnist(tmp_path, pack=packed))
    assert data.images.shape == (6, 1, 5, 4) and data.test_labels.tolist() == [9, 9, 9] and len(data.classes) == 10


def test_a_folder_of_classes_holds_out_every_fifth_image_of_each(tmp_path: Path) -> None:
    data = load("folder", pictures(tmp_path))
    assert data.classes == ("cat", "dog") and data.image_shape == (3, 4, 6)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 and data.test_labels.tolist() == [0, 1]
    expected = np.asarray(Image.open(tmp_path / "cat" / "4.png")).transpose(2, 0, 1)
    assert torch.equal(data.test_images[0], torch.from_numpy(expected.copy()))


def test_a_folder_with_train_and_test_is_split_so(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 3)
    pictures(tmp_path / "test", 2)
    data = load("folder", tmp_path)
    assert len(data.labels) == 6 and len(data.test_labels) == 4


@pytest.mark.parametrize("what", ["truncated", "not an image"])
def test_a_broken_image_is_named_and_skipped_only_when_asked(tmp_path: Path, what: str) -> None:
    broken = pictures(tmp_path) / "dog" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-60] if what == "truncated" else b"hello")
    with pytest.raises(
        UserError, match=f"^cannot read the image {broken}: [^\n]+; --skip-broken leaves such images out"
    ):
        load("folder", tmp_path)
    data = load("folder", tmp_path, skip_broken=True)
    assert data.skipped == (str(broken),) and len(data.labels) == 8


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
def test_npz(tmp_path: Path, layout: str) -> None:
    images = RANDOM.random({"NHW": (5, 6, 7), "NCHW": (5, 3, 6, 7), "NHWC": (5, 6, 7, 3)}[layout]).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1, 2, 1, 0], test_images=images[:2], test_labels=[0, 2])
    data = load("npz", tmp_path / "x.npz")
    assert data.images.shape == (5, 1 if layout == "NHW" else 3, 6, 7) and data.classes == ("0", "1", "2")
    assert torch.equal(data.pixels(data.images, torch.float32), data.images)


def npz(path: Path, **changes: object) -> Path:
    arrays = {"images": np.zeros((5, 6, 6), np.uint8), "labels": np.arange(5) % 2} | changes
    np.savez(path / "x.npz", **{name: value for name, value in arrays.items() if value is not None})
    return path / "x.npz"


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


BAD = {
    "no such folder": ("cifar10", lambda p: p / "no", r"cannot read .*no/data_batch_1.bin: No such file"),
    "a batch missing": (
        "cifar10",
        lambda p: [(cifar10(p) / "data_batch_4.bin").unlink(), p][1],
        "cannot read .*data_batch_4.bin: No such",
    ),
    "a batch truncated": (
        "cifar10",
        lambda p: [cut(cifar10(p) / "test_batch.bin", 3073 * 9), p][1],
        "test_batch.bin is damaged: it has 27,657 bytes, not 30,730,000",
    ),
    "a label of 10": (
        "cifar10",
        lambda p: [(cifar10(p) / "data_batch_1.bin").write_bytes(b"\x0a" + bytes(10_000 * 3073 - 1)), p][1],
        "label 10 of image 0 is out of range: there are 10 classes",
    ),
    "IDX truncated": (
        "mnist",
        lambda p: [cut(mnist(p) / "train-images-idx3-ubyte", 99), p][1],
        "train-images-idx3-ubyte is damaged: .* whole",
    ),
    "gzip truncated": (
        "mnist",
        lambda p: [cut(mnist(p, pack=True) / "t10k-labels-idx1-ubyte.gz", 20), p][1],
        r"ubyte\.gz is damaged: ",
    ),
    "IDX missing": ("mnist", lambda p: p, "cannot read .*train-images-idx3-ubyte: No such file"),
    "labels missing": (
        "mnist",
        lambda p: [mnist(p, 7), (p / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\2\1\1"), p][2],
        "7 images do not go with 2 labels",
    ),
    "label 11": ("mnist", lambda p: mnist(p, label=11), "label 11 of image 0 is out of range: there are 10 classes"),
    "no classes": ("folder", lambda p: p, "has no folders with images, one for each class"),
    "a class of the test set alone": (
        "folder",
        lambda p: [pictures(p / "train"), pictures(p / "test"), (p / "test" / "cat").rename(p / "test" / "eel"), p][3],
        "test/eel is a class without training images",
    ),
    "too few to hold one out": ("folder", lambda p: pictures(p, 2), "no class has the 5 images that it takes"),
    "npz: test images of another size": (
        "npz",
        lambda p: npz(p, test_images=np.zeros((5, 7, 7)), test_labels=np.arange(5) % 2),
        r"training images are \[1, 6, 6\], but test images \[1, 7, 7\]",
    ),
    "npz: no file": ("npz", lambda p: p / "x.npz", "cannot read .*x.npz: No such file"),
    "npz: truncated": (
        "npz",
        lambda p: [cut(npz(p), 300), p / "x.npz"][1],
        "x.npz is damaged, or no npz file of numbers",
    ),
    "npz: pickled": (
        "npz",
        lambda p: npz(p, images=np.array([{}], object)),
        "x.npz is damaged, or no npz file of numbers",
    ),
    "npz: no labels": ("npz", lambda p: npz(p, labels=None), "must have images and labels, .* but has images"),
    "npz: shape": (
        "npz",
        lambda p: npz(p, images=np.zeros((5, 6))),
        r"images must be \[N, C, H, W\].*got \(5, 6\) float64",
    ),
    "npz: NaN": ("npz", lambda p: npz(p, images=np.full((5, 6, 6), np.nan)), "images must be finite"),
    "npz: labels": (
        "npz",
        lambda p: npz(p, labels=np.zeros(5)),
        r"labels must be \[N\] integers, but got \[5\] float64",
    ),
    "npz: negative": (
        "npz",
        lambda p: npz(p, labels=np.array([0, -1, 1, 1, 1])),
        "label -1 of image 1 is out of range",
    ),
    "npz: lengths": ("npz", lambda p: npz(p, labels=np.zeros(4, int)), "5 images do not go with 4 labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    kind, make, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        load(kind, make(tmp_path))
    assert "\n" not in str(caught.value)


# ---- epochs ---------------------------------------------------------------------------------------------------------


def test_an_epoch_sees_every_image_once() -> None:
    data = digits()
    batches = list(epoch_batches(data, Config(batch_size=100), epoch=1))
    assert [len(labels) for _, labels, _ in batches] == [100] * 14 + [len(data.labels) - 1400]
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]).bincount(), data.labels.bincount())


AUGMENTED = Config(shift=2, flip=True, cutout=3, seed=3)


def seen(config: Config, epoch: int, **how: object) -> torch.Tensor:
    torch.rand(1)  # the global generator has no say
    return torch.cat([images for images, *_ in epoch_batches(digits(), config, epoch, **how)])


def test_seed_and_epoch_alone_decide_what_an_epoch_sees() -> None:
    assert torch.equal(seen(AUGMENTED, 5), seen(AUGMENTED, 5))
    assert not torch.equal(seen(AUGMENTED, 5), seen(AUGMENTED, 6))
    assert not torch.equal(seen(AUGMENTED, 5), seen(Config(shift=2, flip=True, cutout=3, seed=4), 5))


def test_an_image_is_augmented_alike_in_whatever_batch_or_part_it_comes() -> None:
    whole = seen(AUGMENTED, 2)
    assert torch.equal(whole, seen(Config(shift=2, flip=True, cutout=3, seed=3, batch_size=17), 2))
    assert torch.equal(whole[3 * 64 :], seen(AUGMENTED, 2, first=3))
    parts = [list(epoch_batches(digits(), AUGMENTED, 2, part=(k, 3))) for k in range(3)]
    for k, (images, _, size) in enumerate(epoch_batches(digits(), AUGMENTED, 2)):
        for rank in range(3):
            assert torch.equal(parts[rank][k][0], images[rank::3]) and parts[rank][k][2] == size == len(images)


def test_an_image_is_whole_moved_by_at_most_shift_pixels_and_mirrored_in_every_other_epoch() -> None:
    data, config = digits(), Config(shift=1, flip=True, batch_size=50, seed=1)
    padded = torch.nn.functional.pad(data.pixels(data.images, torch.float32), (1, 1, 1, 1))
    moved = torch.stack([padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])  # [9, N, 1, 8, 8]
    mirrored = {}
    for epoch in (1, 2):
        order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed((1 << 20) + epoch))
        images, labels, _ = next(epoch_batches(data, config, epoch))
        for image, label, index in zip(images, labels, order.tolist(), strict=False):
            assert label == data.labels[index]
            ways = [(moved[:, index] == way).flatten(1).all(1).any().item() for way in (image, image.flip(2))]
            assert any(ways)
            if not all(ways):
                mirrored.setdefault(index, {})[epoch] = ways[1]
    both = [found for found in mirrored.values() if len(found) == 2]
    assert all(found[1] != found[2] for found in both)
    flags = [flag for found in mirrored.values() for flag in found.values()]
    assert 0.3 < sum(flags) / len(flags) < 0.7


def test_cutout_blackens_one_square() -> None:
    data = Data(
        torch.full((400, 2, 9, 7), 255, dtype=torch.uint8), torch.zeros(400).long(), *[torch.zeros(1)] * 2, ("a",)
    )
    images = next(epoch_batches(data, Config(cutout=3, batch_size=400), 1))[0]
    black = (images == 0).flatten(1).sum(1) // 2
    assert set(black.tolist()) == {4, 6, 9}  # two by two in a corner, two by three at an edge
    assert torch.equal(images[:, 0], images[:, 1])


def test_chances_are_even_and_those_of_neighbours_have_nothing_to_do_with_each_other() -> None:
    chance = datasets.draws(7, 3, torch.arange(40_000)).double() / 2**32
    assert chance.min() >= 0 and chance.max() < 1
    for stream in chance:
        counts = torch.histc(stream, 50, 0, 1)
        assert ((counts - 800) ** 2 / 800).sum() < 95  # χ² with 49 degrees of freedom: one in 10⁴ is larger
    rows = torch.cat([chance[:, :-1], chance[:, 1:], datasets.draws(7, 4, torch.arange(39_999)).double() / 2**32])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 4.5 / 200  # 4.5 σ
