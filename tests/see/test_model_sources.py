"""Models by name and images of any kind; errors are one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpuconv.errors import UserError
from gpuconv.see import input_images, model_sources

RAMP = (np.arange(12 * 10) * 2).reshape(12, 10).astype(np.uint8)


def saved(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_pictures_of_every_mode_are_made_grey_or_coloured(mode: str, channels: int, tmp_path: Path) -> None:
    file = saved(tmp_path / "picture.tiff", Image.fromarray(RAMP).convert(mode))
    image = input_images.read_image(file, channels)
    assert image.shape == (channels, 12, 10) and image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    if mode in ("L", "RGB", "RGBA", "LA"):
        torch.testing.assert_close(image, (torch.from_numpy(RAMP) / 255).expand(channels, 12, 10))


def test_sixteen_bits_and_transparency_keep_their_meaning(tmp_path: Path) -> None:
    deep = saved(tmp_path / "deep.png", Image.fromarray(RAMP.astype(np.uint16) * 257))
    torch.testing.assert_close(input_images.read_image(deep, 1)[0], torch.from_numpy(RAMP) / 255)
    nothing = saved(tmp_path / "nothing.png", Image.new("RGBA", (4, 3), (255, 0, 0, 0)))
    assert input_images.read_image(nothing, 3).eq(1).all()  # on white


@pytest.mark.parametrize(
    ("shape", "channels"), [((5, 8, 9), 5), ((8, 9, 5), 5), ((8, 9), 1), ((3, 8, 9), 3), ((2, 2, 2), 2)], ids=str
)
def test_numpy_files_hold_any_number_of_channels(shape: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random(shape, np.float32)
    np.save(tmp_path / "image.npy", array)
    image = input_images.read_image(tmp_path / "image.npy", channels)
    assert image.shape[0] == channels
    expected = array if shape[0] == channels or array.ndim == 2 else array.transpose(2, 0, 1)
    assert np.array_equal(image.numpy(), expected.reshape(image.shape))
    np.save(tmp_path / "bytes.npy", (array * 255).astype(np.uint8))
    assert input_images.read_image(tmp_path / "bytes.npy", channels).max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read .*: there is no such file"),
        (lambda path: path.mkdir(), "cannot read .*: there is no such file"),
        (lambda path: path.write_bytes(b""), "is no image"),
        (lambda path: path.write_text("no image at all"), "is no image"),
        (lambda path: np.save(path, np.zeros((4, 8, 9))), r"is \[4, 8, 9\] of float64, but .* 3 channels"),
        (lambda path: np.save(path, np.zeros((3, 0, 9))), "but the model takes images of 3 channels"),
        (lambda path: np.save(path, np.full((3, 8, 9), np.nan)), "holds values that are not finite"),
        (lambda path: np.save(path, np.array([object()]), allow_pickle=True), "is no image"),
    ],
)
def test_an_image_that_is_none_is_one_line(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "image.npy")
    with pytest.raises(UserError, match=message) as caught:
        input_images.read_image(tmp_path / "image.npy", 3)
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_and_one_of_other_channels_are_told(tmp_path: Path) -> None:
    file = saved(tmp_path / "whole.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)))
    (tmp_path / "half.png").write_bytes(file.read_bytes()[:900])
    with pytest.raises(UserError, match=r"half\.png is no image"):
        input_images.read_image(tmp_path / "half.png", 1)
    with pytest.raises(UserError, match=r"but the model takes images of 7 channels; a .npy file of \[7, H, W\]"):
        input_images.read_image(file, 7)


def test_images_are_fitted_to_a_side_or_a_size() -> None:
    image = torch.rand(3, 60, 90)
    assert input_images.resized(image, 30).shape == (3, 20, 30)
    assert input_images.resized(image, 180).shape == (3, 120, 180)
    assert input_images.resized(image, (8, 8)).shape == (3, 8, 8)
    assert torch.equal(input_images.resized(image, (60, 90)), image)
    middle = input_images.resized(image, (60, 60))
    assert torch.equal(middle, image[:, :, 15:75])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("timm:resnet81", r"timm has no model 'resnet81' \(did you mean resnet18"),
        ("torchvision:resnet81", r"torchvision has no model 'resnet81' \(did you mean resnet18"),
        ("timm:nope", "timm has no model 'nope'$"),
        ("torchvision:zzz", "torchvision has no model 'zzz'$"),
        ("torchvision:ResNet81", r"torchvision has no model 'ResNet81' \(did you mean resnet18"),
        ("timm:convnextv2", r"timm has no model 'convnextv2' \(did you mean convnextv2_"),
        ("keras:resnet18", "a model is RUN, timm:NAME or torchvision:NAME, but got 'keras:resnet18'"),
        ("nowhere", "nowhere is not a run: there is no such folder"),
    ],
)
def test_a_model_that_is_not_there_is_told(target: str, message: str) -> None:
    source = target.partition(":")[0]
    if source in ("timm", "torchvision"):
        pytest.importorskip(source, reason=f"{source} is not installed")
    with pytest.raises(UserError, match=message):
        model_sources.load(target, trained=False)


def test_a_model_by_name_brings_its_normalisation() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    loaded = model_sources.load("timm:test_resnet", trained=False)
    assert loaded.channels == 3 and loaded.size is None and loaded.mean is not None
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(loaded.normalized(images) * loaded.std + loaded.mean, images)


@pytest.mark.parametrize("target", ["timm:test_resnet", "torchvision:squeezenet1_1"])
def test_without_a_network_weights_are_missing_at_once_and_in_a_line(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = target.partition(":")[0]
    pytest.importorskip(source, reason=f"{source} is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setitem(model_sources._HOSTS, source, "nowhere.invalid")  # a name that is nobody's
    if source == "timm":
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        before = constants.HF_HUB_OFFLINE
    if target == "torchvision:squeezenet1_1" and model_sources._reachable("download.pytorch.org"):
        pytest.skip("this machine can download them")
    with pytest.raises(UserError, match=f"{target}: its weights are not on this machine, and nowhere.invalid cannot"):
        model_sources.load(target)
    assert capfd.readouterr() == ("", "")
    assert source != "timm" or before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_random_weights_are_random_all_through(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.device("meta"):  # no time for weights
        loaded = model_sources.load(f"torchvision:{name}", trained=False)
    assert not loaded.trained and loaded.channels == 3
    assert list(tmp_path.rglob("*")) == []
