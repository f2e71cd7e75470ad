"""The command `gpuconv doctor`; `gpuconv.cli.main` puts it on the command line."""

import json
from typing import Annotated

import typer

from gpuconv.checking import installation
from gpuconv.cli.options import AsJson
from gpuconv.errors import UserError


def doctor(
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Run every family of kernels, and compare its results with the oracle.")
    ] = False,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="With --self-test: what to test, also package.module:Class. Repeatable. Default: all that run here.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(show_default=False, help="With --self-test: cpu, cuda or cuda:N. Default: a GPU if there is one."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show what is installed, which GPUs and backends can be used here, why not the others, and what `auto` picks.

    With --self-test: test every family of kernels that the planner may choose on this device, in each direction, number
    type and layout, on small problems. If one is wrong, shows the problem and exits with 1; the planner then no longer
    uses that family. Takes less than a minute; a few minutes the first time, to compile the kernels.
    """
    if self_test:
        from gpuconv.cli.self_test import run_self_test

        return run_self_test(backend, device, as_json)
    if backend or device:
        raise UserError("--backend and --device are options of --self-test")
    found = installation.report()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(installation.text(found))
    return 0
