"""The command line and `gpuconv doctor` as a user meets them: help, the version, wrong words, the report."""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from command_line import Environment, assert_one_clear_line, call, finish, start

import gpuconv
from gpuconv.cli import main


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, output, errors = call(capsys, command, "--help")
    assert (status, errors) == (0, "")
    assert f"Usage: gpuconv {command} " in output


def test_the_list_of_commands_says_what_each_says_itself(capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = call(capsys, "--help")
    listed = " ".join(output.replace("│", " ").split())
    for command, place in main.COMMANDS.items():
        module, _, function = place.partition(":")
        text = inspect.getdoc(getattr(import_module(f"gpuconv.cli.{module}"), function))
        assert f"{command} {' '.join(text.split(chr(10) * 2)[0].split())}" in listed


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = call(capsys)
    assert status == 0 and "doctor" in output


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"{gpuconv.__version__}\n", "")


@pytest.mark.parametrize("arguments", ["frobnicate", "--frobnicate", "eval", "eval nowhere", "eval . --dtype int8"])
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output, errors = call(capsys, *arguments.split())
    assert status in (1, 2) and output == ""
    assert_one_clear_line(errors, "")


# ---- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_gpus_backends_and_what_auto_picks(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, errors = call(capsys, "doctor", "--json")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert found["gpuconv"] == gpuconv.__version__
    assert {"python", "torch", "torch_cuda", "numpy", "triton", "cupy"} <= found.keys()
    assert (found["gpus"] == []) == (found["gpu_trouble"] is not None)
    assert found["backends"].keys() == set(gpuconv.backends.names())
    assert found["backends"]["numpy"] == found["backends"]["aten"] == {"usable": True, "reason": None}
    assert found["auto"]["cpu"] == {"order": ["aten"], "picks": "aten"}
    assert found["auto"]["cuda"]["order"][-1] == "aten"
    status, output, _ = call(capsys, "doctor")
    assert status == 0
    for word in ("python", "torch", "triton", "cupy", "GPUs", "backends", "numpy   usable", "auto"):
        assert word in output


def test_doctor_survives_missing_packages_and_tells_a_wrong_environment(clean_environment: Environment) -> None:
    blocked = (
        "import sys; sys.modules['triton'] = sys.modules['cupy'] = None; from gpuconv.__main__ import main; main()"
    )
    environment = clean_environment | {"GPUCONV_BACKEND": "abacus"}
    status, output, errors = finish(start(environment, "doctor", "--json", python=("-c", blocked)))
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert found["selected"] == "abacus" and found["selected_by"] == "GPUCONV_BACKEND"
    assert re.search("backend must be one of auto, .*, but got 'abacus'", found["selected_trouble"])


def test_doctor_reports_a_backend_that_breaks_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(gpuconv.backends.Backend):
        name = "broken"

        def unavailable(self) -> str | None:
            raise OSError("its library is gone")

    gpuconv.backends.register(Broken())
    try:
        status, output, _ = call(capsys, "doctor", "--json")
    finally:
        del gpuconv.backends._loaded["broken"]
    assert status == 0
    assert json.loads(output)["backends"]["broken"] == {"usable": False, "reason": "OSError: its library is gone"}
