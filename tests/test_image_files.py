"""Training, prediction and `gpuconv see` read pictures of every kind in the same way."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpuconv import image_files
from gpuconv.image_files import LeftOut, fit, read, size_of
from gpuconv.see.input_images import read_image
from gpuconv.train import data as datasets
from gpuconv.train.config import Config

RAMP = (np.arange(12 * 10) * 2).reshape(12, 10).astype(np.uint8)  # 0 … 238
FLOATS = (RAMP / 255).astype(np.float32)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))


def saved(path: Path, picture: Image.Image, **how: object) -> Path:
    picture.save(path, **how)
    return path


def oriented(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return saved(path, Image.fromarray(np.rot90(RAMP)), exif=exif)


def see_through(path: Path, mode: str) -> Path:
    """Red, its left half transparent."""
    picture = Image.new("RGBA", (10, 12), (255, 0, 0, 255))
    picture.paste((255, 0, 0, 0), (0, 0, 5, 12))
    if mode == "P":
        flat = Image.new("P", (10, 12), 1)
        flat.putpalette([0, 255, 0, 255, 0, 0])  # the transparent colour is green
        flat.paste(0, (0, 0, 5, 12))
        return saved(path, flat, transparency=0)
    return saved(path, picture.convert(mode))


GREY: dict[str, Callable[[Path], Path]] = {
    "8 bits": lambda path: saved(path / "x.png", Image.fromarray(RAMP)),
    "16-bit PNG": lambda path: saved(path / "x.png", Image.fromarray(RAMP.astype(np.uint16) * 257)),
    "16-bit TIFF": lambda path: saved(path / "x.tif", Image.fromarray(RAMP.astype(np.uint16) * 257)),
    "16-bit TIFF, big-endian": lambda path: saved(
        path / "x.tif", Image.frombytes("I;16B", (10, 12), (RAMP.astype(">u2") * 257).astype(">u2").tobytes())
    ),
    "mode I": lambda path: saved(path / "x.tif", Image.fromarray(RAMP.astype(np.int32) * 257)),
    "floats to 1": lambda path: saved(path / "x.tif", Image.fromarray(FLOATS)),
    "floats to 255": lambda path: saved(path / "x.tif", Image.fromarray(FLOATS * 255)),
    "floats to 65,535": lambda path: saved(path / "x.tif", Image.fromarray(FLOATS * 65535)),
    "palette": lambda path: saved(path / "x.png", Image.fromarray(RAMP).convert("P")),
    "RGB": lambda path: saved(path / "x.png", Image.fromarray(RAMP).convert("RGB")),
    "LA": lambda path: saved(path / "x.png", Image.fromarray(RAMP).convert("LA")),
    "turned by EXIF": lambda path: oriented(path / "x.png"),
    "animated": lambda path: saved(
        path / "x.gif", Image.fromarray(RAMP), save_all=True, append_images=[Image.fromarray(255 - RAMP)]
    ),
    "CMYK": lambda path: saved(path / "x.tif", Image.fromarray(RAMP).convert("RGB").convert("CMYK")),
}


@pytest.mark.parametrize("kind", GREY)
def test_a_grey_ramp_is_that_ramp_in_every_kind_of_file_for_train_predict_and_see(kind: str, tmp_path: Path) -> None:
    file = GREY[kind](tmp_path)
    for channels in (1, 3):
        pixels = read(file, channels).pixels
        assert pixels.shape == (channels, 12, 10) and size_of(file) == (12, 10)
        values = pixels / (255 if pixels.dtype == np.uint8 else 1)
        np.testing.assert_allclose(values, np.stack([FLOATS] * channels), atol=1 / 65535)
        torch.testing.assert_close(read_image(file, channels), torch.from_numpy(values).float())


def test_a_folder_of_deep_pictures_and_others_is_trained_on_as_they_are(tmp_path: Path) -> None:
    for label, kinds in (("a", ("16-bit PNG", "floats to 1", "mode I")), ("b", ("8 bits", "RGB", "palette"))):
        (tmp_path / label).mkdir()
        for k, kind in enumerate((*kinds, kinds[0], kinds[0])):
            GREY[kind](tmp_path).rename(tmp_path / label / f"{k}{'.tif' if kind[0] in 'fm' else '.png'}")
    data = datasets.load(Config(data=f"folder:{tmp_path}"))
    values = data.pixels(torch.cat([data.images, data.test_images]), torch.float32)
    assert len(values) == 10
    torch.testing.assert_close(values, torch.from_numpy(FLOATS).expand(10, 3, 12, 10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_white_and_the_rest_keeps_its_colour(mode: str, tmp_path: Path) -> None:
    pixels = read(see_through(tmp_path / ("x.tif" if mode == "PA" else "x.png"), mode), 3).pixels
    assert (pixels[:, :, :5] == 255).all()
    if mode != "LA":
        assert (pixels[0, :, 5:] > 250).all() and (pixels[1:, :, 5:] < 5).all()


def test_a_grey_value_may_be_the_transparent_one(tmp_path: Path) -> None:
    array = np.full((4, 6), 4000, np.uint16)
    array[:, 3:] = 7
    pixels = read(saved(tmp_path / "x.png", Image.fromarray(array), transparency=7), 1).pixels
    assert (pixels[0, :, 3:] == 1).all() and np.allclose(pixels[0, :, :3], 4000 / 65535)


def test_what_a_picture_leaves_open_is_said(tmp_path: Path) -> None:
    assert read(GREY["animated"](tmp_path), 3).remark == "the first of several frames is taken"
    assert read(GREY["floats to 255"](tmp_path), 3).remark == "its floats are divided by 255"
    assert [read(GREY[kind](tmp_path), 3).remark for kind in ("8 bits", "16-bit PNG", "floats to 1")] == [""] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"no image"), "^cannot identify image file$"),
        (lambda p: None, "^No such file or directory$"),
        (lambda p: p.mkdir(), "^Is a directory$"),
        (lambda p: Image.fromarray(FLOATS * -1).save(p, "TIFF"), "its floats go from -0.9.* to -?0, not from 0 to 1"),
        (lambda p: Image.fromarray(FLOATS * 1.4).save(p, "TIFF"), "its floats go from 0 to 1.3.*, not from 0 to 1, to"),
        (lambda p: Image.fromarray(FLOATS * np.inf).save(p, "TIFF"), "it holds values that are not finite"),
        (lambda p: Image.fromarray(RAMP.astype(np.int32) - 9).save(p, "TIFF"), "its integers go from -9 to 229, not"),
        (lambda p: Image.fromarray(RAMP.astype(np.int32) << 20).save(p, "TIFF"), "its integers go from 0 to 2495"),
        (lambda p: p.write_bytes(saved(p, NOISE, format="PNG").read_bytes()[:900]), "truncated"),
        (lambda p: p.write_bytes(saved(p, NOISE, format="JPEG").read_bytes()[:900]), "truncated"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")
def test_what_cannot_be_read_is_one_line(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "x", 3)
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_picture_is_scaled_to_cover_its_size_and_its_middle_is_taken(dtype: type) -> None:
    wide = np.zeros((3, 20, 60), dtype)
    wide[:, :, 20:40] = 1 if dtype is np.float32 else 200
    square = fit(wide, (10, 10))
    assert square.shape == (3, 10, 10) and square.dtype == dtype
    assert (square[:, :, 2:8] == wide.max()).all() and square.max() == wide.max()
    assert fit(wide, (20, 60)) is wide


@pytest.mark.skipif(os.name != "posix", reason="links and special files are tried on Unix")
def test_a_folder_gives_its_pictures_and_names_and_counts_all_else(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    expected = [tmp_path / "a.png", tmp_path / "b" / "deep" / "c.jpg", tmp_path / "without_ending"]
    for file in expected:
        Image.fromarray(RAMP).save(file, "PNG")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "b" / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to("self")
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    left_out = LeftOut()
    assert list(image_files.files_in(tmp_path, left_out)) == expected
    assert sorted(left_out.lines()) == [
        f"left out 1 file without an image: {tmp_path}/notes.txt",
        f"left out 1 link back to a folder further up: {tmp_path}/b/back",
        f"left out 1 special file: {tmp_path}/pipe.png",
        f"left out 2 hidden files or folders: {tmp_path}/.DS_Store, {tmp_path}/b/.hidden",
        f"left out 2 links to nothing: {tmp_path}/b/self, {tmp_path}/gone.png",
    ]
