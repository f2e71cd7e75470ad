"""The command line: finds the command that is named, runs it, and turns errors into a line and an exit status.

A command turns options into calls and results into text; the work is done in the layers below. Whatever a user can put
right ends in one line `error: …` on stderr and a status other than 0: 2 for options that cannot be read, else 1. A
command is imported when it is named, so that help, the version and the completion of words need no PyTorch.
"""

import ast
import functools
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module, resources
from typing import Annotated, Any

import typer
import typer.core

import gpuconv
from gpuconv.text import printable

COMMANDS = {  # its module in gpuconv.cli, and the function
    "train": "train:train",
    "eval": "train:evaluate",
    "predict": "train:predict",
    "export": "train:export",
    "compare": "train:compare",
    "see": "see:see",
    "plan": "plan:plan",
    "inspect": "inspect:inspect",
    "tune": "tune:tune",
    "doctor": "doctor:doctor",
    "bench": "bench:bench",
    "check": "check:check",
}


class _Commands(typer.core.TyperGroup):
    """The group of commands; only the command that is named is imported."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else imported(name), rest


def imported(name: str) -> Any:
    """A command, imported, as typer runs it."""
    module, _, function = COMMANDS[name].partition(":")
    api = vars(import_module("gpuconv.api"))
    vars(gpuconv).update({public: api[public] for public in api["__all__"]})
    one = typer.Typer(add_completion=False, **_SETTINGS)
    one.command(name, help=_texts(module)[function])(getattr(import_module(f"gpuconv.cli.{module}"), function))
    return typer.main.get_command(one)


_SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False, "context_settings": {"help_option_names": ["-h", "--help"]},
}  # fmt: skip
app = typer.Typer(
    cls=_Commands,
    name="gpuconv",
    help="Convolutions for PyTorch with hand-written GPU kernels: train with them, look at them, check and time them.",
    **_SETTINGS,
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line on these arguments; returns the exit status. The one place where errors become lines."""
    try:
        status = app(args=list(arguments), prog_name="gpuconv", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted before there was anything to save", 130)
    except BrokenPipeError:  # nobody reads the output any more; nothing may be written to it at exit, either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer brings its own copy of click, older versions use the installed one: errors are known by their methods.
        if hasattr(error, "format_message"):
            return _fail(f"{error.format_message()} (see --help)", 2)
        import torch

        from gpuconv.backends import BackendUnavailable
        from gpuconv.emulator import EmulationError, EmulatorUnavailable
        from gpuconv.errors import UserError

        if isinstance(error, torch.OutOfMemoryError):
            return _fail(f"out of memory; a smaller batch may help ({str(error).splitlines()[0]})")
        if isinstance(error, UserError | BackendUnavailable | EmulationError | EmulatorUnavailable):
            return _fail(str(error))
        if isinstance(error, OSError):  # a file that is not there, a full disk
            return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        raise


def _fail(message: str, status: int = 1) -> int:
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(gpuconv.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@functools.cache
def _texts(module: str) -> dict[str, str]:
    """The docstrings of a module's functions, by name, each paragraph a line; the module is read, not imported."""
    tree = ast.parse((resources.files("gpuconv.cli") / f"{module}.py").read_text(encoding="utf-8"))
    found = {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name: re.sub(r"(?<!\n)\n(?!\n)", " ", text) for name, text in found.items()}


for _name, _place in COMMANDS.items():
    _module, _, _function = _place.partition(":")
    app.command(_name, help=_texts(_module)[_function])(lambda: None)  # stands for the command in lists
