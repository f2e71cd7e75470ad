"""Runs `gpuconv` commands, in this process or in one of their own."""

import re
import subprocess
import sys
import tempfile

import pytest

from gpuconv.cli import main

Environment = dict[str, str]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command in this process."""
    status = main.run([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def start(environment: Environment, *arguments: object, python: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *(python or ("-m", "gpuconv")), *[str(argument) for argument in arguments]]
    elsewhere = tempfile.gettempdir()  # where nothing of ours lies about to be imported
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=elsewhere
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def assert_one_clear_line(errors: str, message: str) -> None:
    assert re.fullmatch(f"error: [^\n]*{message}[^\n]*\n", errors), errors
