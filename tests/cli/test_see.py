"""`gpuconv see` as a user meets it."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import Page, find
from PIL import Image

import gpuconv
from gpuconv.cli import main
from gpuconv.errors import UserError
from gpuconv.see import model_sources, page, terminal, tour, tour_filters, your_model
from gpuconv.train import run as runs
from gpuconv.train.config import Config
from gpuconv.train.progress import ProgressLines


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main.run(["see", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    runs.train(Config(steps=20), path, [ProgressLines(sys.stderr, "a run to be seen")])
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    Image.fromarray(values).resize((56, 40)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_run_is_seen_with_its_own_images_in_either_language(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    status, output, errors = call(capsys, run, "--out", tmp_path / "page", "--lang", "zh")
    assert status == 0, errors
    assert re.fullmatch(rf"page  {tmp_path}/page/index.html \(0\.\d MB\)\n", output)
    text = (tmp_path / "page" / page.PAGE).read_text()
    assert len(re.findall("<h2", text)) == 3 and "工作中的这一层" in text and text.count("<img") > 10


@pytest.mark.parametrize("backend", ["aten", "numpy"])
def test_a_layer_that_is_asked_for_is_explained_by_every_backend(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    with gpuconv.use_backend(backend):
        status, _, errors = call(capsys, run, "--layer", "conv2", "--out", tmp_path)
    assert status == 0, errors
    text = (tmp_path / page.PAGE).read_text()
    assert f"backend {backend}" in text and 'data-kind="layer"' in text and "<code>conv2</code>: 7 × 7 pixels" in text


def test_a_model_by_name_on_a_picture_opens_in_a_browser(
    capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    status, _, errors = call(
        capsys, "timm:test_resnet", "--untrained", "--image", picture, "--size", "48", "--out", tmp_path / "page"
    )
    assert status == 0, errors
    if find() is None:
        pytest.skip("the page is made; no Chromium is installed to open it")
    with Page(tmp_path / "profile") as browser:
        browser.show(tmp_path / "page" / page.PAGE, 390)
        assert browser.errors == [] and browser.run("document.documentElement.scrollWidth") <= 390
        shown = browser.run("({...document.querySelector('[data-kind=layer]').dataset})")
        assert float(shown["sum"]) == pytest.approx(float(shown["output"]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_models_of_any_number_of_channels_and_images_of_any_size(channels: int, tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 6, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3, groups=2)
    )
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((channels, 33, 21), np.float32))
    view = your_model.view(model_sources.LoadedModel("mine", model, channels), [tmp_path / "image.npy"], "2", 41)
    assert view.images.shape == (1, channels, 41, 26)
    assert your_model.write_page(view, tmp_path / "page").is_file()


def test_layers_are_listed_when_asked_for(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    status, output, errors = call(capsys, run, "--layers")
    assert (status, errors) == (0, "")
    assert output == (
        "conv1  64 filters of 1 × 3 × 3, stride 1, groups 1\nconv2  128 filters of 64 × 3 × 3, stride 1, groups 1\n"
    )


def test_layers_of_a_model_by_name_need_no_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    status, output, errors = call(capsys, "torchvision:squeezenet1_1", "--layers")
    assert (status, errors) == (0, "") and len(output.splitlines()) == 26
    assert re.match(r"features\.0 +64 filters of 3 × 3 × 3, stride 2, groups 1\n", output)
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_said_to_be_random(
    capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    options = ("--untrained", "--image", picture, "--size", "64", "--out", tmp_path)
    status, _, errors = call(capsys, "torchvision:squeezenet1_1", *options)
    assert status == 0 and "The weights are random" in errors
    assert "The weights are random: nobody trained this model." in (tmp_path / page.PAGE).read_text()


def test_a_page_about_a_run_that_is_kept_with_it_has_a_folder_of_its_own(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    status, output, _ = call(capsys, copy, "--out", copy)
    assert status == 0 and output.startswith(f"page  {copy}/see/index.html (")
    assert {path.name for path in copy.iterdir()} == {"see", *(path.name for path in run.iterdir())}
    assert "random" not in (copy / "see" / page.PAGE).read_text()


def test_a_terminal_gets_half_blocks_too(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    status, output, _ = call(capsys, run, "--out", tmp_path)
    assert status == 0 and "▀" in output and "channel " in output and "blue −" in output


def test_half_blocks_are_two_pixels_a_character() -> None:
    pixels = np.array([[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]], np.uint8)
    assert terminal.half_blocks(pixels) == "\033[38;2;1;2;3m\033[48;2;4;5;6m▀\033[0m\n\033[38;2;7;8;9m▀\033[0m"


def test_the_tour_says_where_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapters = [page.Chapter("smoothing", tour_filters.smoothing())]  # tests/see makes them all
    monkeypatch.setattr(tour, "chapters", lambda say: chapters)
    status, output, errors = call(capsys, "tour", "--out", tmp_path / "tour")
    assert (status, errors) == (0, "")
    assert re.fullmatch(rf"page  {tmp_path}/tour/index.html \(\d\.\d MB\)\n", output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("RUN --layer conv3", r"there is no layer 'conv3' \(did you mean conv"),
        ("RUN --layer fc --out OUT", r"layer 'fc' gives \[1, 10\], no maps"),
        ("RUN --image RUN/config.json", "config.json is no image"),
        ("RUN --image nowhere.png", "cannot read nowhere.png: there is no such file"),
        ("RUN --lang fr", "lang must be one of en, zh, but got 'fr'"),
        ("tour --lang fr", "lang must be one of en, zh, but got 'fr'"),
        ("tour --layers", "the tour has its own model and images"),
        ("nowhere", "nowhere is not a run: there is no such folder"),
        ("RUN --out RUN/config.json", "cannot write to .*config.json"),
        ("RUN --size many", "--size"),
        ("", "target|TARGET|tour"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    given = arguments.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")).split()
    status, output, errors = call(capsys, *given)
    assert status in (1, 2) and output == ""
    assert re.search(f"^error: [^\n]*({message})[^\n]*\n\\Z", errors, re.MULTILINE), errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["config", "model"])
def test_a_damaged_run_is_one_line(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, damage: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    if damage == "config":
        (tmp_path / "config.json").write_text(json.dumps({"data": "digits"}))
    else:
        (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:5000])
    status, output, errors = call(capsys, tmp_path)
    assert (status, output) == (1, "")
    assert re.fullmatch("error: [^\n]*is damaged[^\n]*\n", errors)


def test_a_model_without_convolutions_and_one_without_images_are_told() -> None:
    with pytest.raises(UserError, match="has no 2-D convolution: there is nothing to see"):
        your_model.view(model_sources.LoadedModel("mine", torch.nn.Linear(3, 3), 3), [], None, None)
    with pytest.raises(UserError, match="mine needs an image to look at: --image FILE"):
        your_model.view(
            model_sources.LoadedModel("mine", torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), 3), [], None, None
        )
