"""Text from outside is printed without effect on the terminal."""

from pathlib import Path

import pytest
import torch

import gpuconv
from gpuconv.cli import main
from gpuconv.text import did_you_mean, first_few, printable, printable_lines
from gpuconv.train import run as runs
from gpuconv.train.config import Config


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\r\tand \x07\x7f\x9b2J", r"two\nlines\r\tand \x07\x7f\x9b2J"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("猫 와 ég 👩\u200d🔬\u3000C:\\new", "猫 와 ég 👩\u200d🔬\u3000C:\\new"),
    ],
)
def test_control_characters_are_escaped_and_nothing_else_is(name: str, shown: str) -> None:
    assert printable(name) == shown
    shown.encode()


def test_lines_stay_lines() -> None:
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet18"), ("ResNet18", "resnet18"), ("conv", "convnext_tiny"), ("nope", ""), ("", ""), ("x", "")],
)
def test_names_are_suggested_that_are_like_the_one_given(name: str, near: str) -> None:
    names = ["aimv2_huge", "resnet18", "convnext_tiny", "nest_base", "vgg16"]
    assert did_you_mean(name, names) == (f" (did you mean {near}?)" if near else "")


def test_of_many_names_the_first_few_are_listed_and_the_rest_counted() -> None:
    assert first_few([str(k) for k in range(1200)]) == "0, 1, 2, 3, 4, 5, 6, 7 … and 1,192 more"
    assert first_few(["a\x1b", "b", "c"], 3) == "a\\x1b, b, c"


RED = "\x1b[31mred"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / RED
    runs.train(Config(steps=1), path, [])
    return path


@pytest.mark.parametrize(
    "command",
    ["see RUN --layers", "see RUN --layer RED", "see RUN --out OUT", "see RED", "see timm:RED", "export RUN",
     "eval RED", "train --data RED", "train --model RED", "predict RUN RED", "compare --backends RED",
     "bench --layer RED", "bench --report RED", "check --backend RED", "plan --gpu h100 --layer RED",
     "inspect --layer RED"],
)  # fmt: skip
def test_commands_print_no_control_characters(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.replace("RED", RED).replace("RUN", str(run)).replace("OUT", str(tmp_path / RED)).split(" ")
    main.run(words)
    output, errors = capsys.readouterr()
    assert output + errors and "\x1b" not in output + errors
    assert command == "see RUN --layers" or r"\x1b[31mred" in output + errors


def test_reports_on_models_hold_no_control_characters() -> None:
    model = torch.nn.Sequential()
    model.add_module(RED, torch.nn.ConvTranspose2d(3, 3, 1))
    model.add_module(RED + "2", type(RED, (torch.nn.Conv2d,), {})(3, 3, 1))
    for report in (gpuconv.convert(model), gpuconv.fuse(model)[1]):
        assert "\x1b" not in str(report) and r"\x1b[31mred" in str(report)
