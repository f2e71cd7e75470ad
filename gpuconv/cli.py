"""The command line: gpuconv train | eval | predict | export | compare | see | bench | check | plan | inspect | tune |
doctor.

Commands turn options into calls and results into text; what they do lives below. Whatever a user can put right ends in
one line `error: …` on stderr and a status other than 0: 2 for options that cannot be read, 1 for the rest.
"""

import json as jsonlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import typer

import gpuconv
from gpuconv import cli_bench, cli_kernels, cli_see, cli_train, doctor as diagnosis
from gpuconv.cli_bench import Json
from gpuconv.train.config import UserError

app = typer.Typer(
    name="gpuconv",
    help="Convolutions for PyTorch whose kernels are written by hand: train, look at and check what they do.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line on these arguments; gives the exit status. The one place where errors become lines."""
    try:
        status = app(args=list(arguments), prog_name="gpuconv", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (UserError, gpuconv.BackendUnavailable) as error:
        return _fail(str(error))
    except torch.OutOfMemoryError as error:
        return _fail(f"out of memory; a smaller --batch-size may help ({str(error).splitlines()[0]})")
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted before there was anything to save", cli_train.STOPPED["SIGINT"])
    except BrokenPipeError:  # whoever read our output has gone; nothing more can be said, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer brings its own copy of click, older versions use the click that is installed: told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        return _fail(f"{error.format_message()} (see --help)", 2)


def _fail(message: str, status: int = 1) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
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


app.command()(cli_train.train)
app.command(name="eval")(cli_train.evaluate)
app.command()(cli_train.predict)
app.command()(cli_train.export)
app.command()(cli_train.compare)
app.command()(cli_see.see)
app.command()(cli_kernels.plan)
app.command()(cli_kernels.inspect)
app.command()(cli_kernels.tune)


@app.command()
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
    json: Json = False,
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
        raise UserError("--backend and --device belong to --self-test")
    found = diagnosis.report()
    if json:
        print(jsonlib.dumps(found, indent=2))
    else:
        print(diagnosis.text(found))
    return 0


app.command(name="bench")(cli_bench.bench)
app.command(name="check")(cli_bench.check)
