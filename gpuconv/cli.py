"""The command line: gpuconv train | eval | predict | export | compare | see | bench | check | plan | inspect | tune |
doctor.

Commands turn options into calls and results into text; what they do lives below. Whatever a user can put right ends in
one line `error: …` on stderr and a status other than 0: 2 for options that cannot be read, 1 for the rest. A command is
imported when it is named, so that help, the version and the completion of words need no PyTorch.
"""

import ast
import functools
import json as jsonlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module, resources
from typing import Annotated, Any

import typer
import typer.core

import gpuconv
from gpuconv.text import printable

COMMANDS = {
    "train": "cli_train:train",
    "eval": "cli_train:evaluate",
    "predict": "cli_train:predict",
    "export": "cli_train:export",
    "compare": "cli_train:compare",
    "see": "cli_see:see",
    "plan": "cli_kernels:plan",
    "inspect": "cli_kernels:inspect",
    "tune": "cli_kernels:tune",
    "doctor": "cli:doctor",
    "bench": "cli_bench:bench",
    "check": "cli_bench:check",
}


class _Commands(typer.core.TyperGroup):
    """The commands, of which the one that is named is imported."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else imported(name), rest


def imported(name: str) -> Any:
    """The command as typer runs it."""
    module, _, function = COMMANDS[name].partition(":")
    api = vars(import_module("gpuconv.api"))
    vars(gpuconv).update({public: api[public] for public in api["__all__"]})
    one = typer.Typer(add_completion=False, **_SETTINGS)
    one.command(name)(getattr(import_module(f"gpuconv.{module}"), function))
    return typer.main.get_command(one)


_SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False, "context_settings": {"help_option_names": ["-h", "--help"]},
}  # fmt: skip
app = typer.Typer(
    cls=_Commands,
    name="gpuconv",
    help="Convolutions for PyTorch whose kernels are written by hand: train, look at and check what they do.",
    **_SETTINGS,
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line on these arguments; gives the exit status. The one place where errors become lines."""
    try:
        status = app(args=list(arguments), prog_name="gpuconv", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted before there was anything to save", 130)
    except BrokenPipeError:  # whoever read our output has gone; nothing more can be said, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer brings its own copy of click, older versions use the click that is installed: told by what they can do.
        if hasattr(error, "format_message"):
            return _fail(f"{error.format_message()} (see --help)", 2)
        import torch

        from gpuconv.backends import BackendUnavailable
        from gpuconv.emulator import EmulationError, EmulatorUnavailable
        from gpuconv.train.config import UserError

        if isinstance(error, torch.OutOfMemoryError):
            return _fail(f"out of memory; a smaller --batch-size may help ({str(error).splitlines()[0]})")
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


def doctor(
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Run every family of kernels and hold it to the oracle.")
    ] = False,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="With --self-test: what to test, also package.module:Class; repeat it. Default: all that run here.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(show_default=False, help="With --self-test: cpu, cuda or cuda:N. Default: a GPU if there is one."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")
    ] = False,
) -> int:
    """Say what is installed, which GPUs and backends can be used here, why not the others, and what `auto` picks.

    With --self-test: try every family of kernels that the planner may choose on this device, in each direction, number
    type and layout, on small problems. Exits with 1 if one is wrong, shows the problem, and has the planner pass that
    family over from then on. Under a minute; the first time a few more, for compiling.
    """
    if self_test:
        from gpuconv import cli_selftest

        return cli_selftest.self_test(backend, device, json)
    if backend or device:
        from gpuconv.train.config import UserError

        raise UserError("--backend and --device belong to --self-test")
    from gpuconv import doctor as diagnosis

    found = diagnosis.report()
    if json:
        print(jsonlib.dumps(found, indent=2))
    else:
        print(diagnosis.text(found))
    return 0


@functools.cache
def _texts(module: str) -> dict[str, str]:
    """What the functions of a module say of themselves, by name; it is read, not imported."""
    tree = ast.parse((resources.files("gpuconv") / f"{module}.py").read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)}


for _name, _place in COMMANDS.items():
    _module, _, _function = _place.partition(":")
    app.command(_name, help=_texts(_module)[_function])(lambda: None)  # stands for the command in lists
