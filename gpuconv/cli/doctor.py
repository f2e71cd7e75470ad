"""The command `gpuconv doctor`; `gpuconv.cli.main` puts it on the command line."""

import json as jsonlib
from typing import Annotated

import typer

from gpuconv.checking import doctor as diagnosis
from gpuconv.errors import UserError


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
        from gpuconv.cli.self_test import self_test as judged

        return judged(backend, device, json)
    if backend or device:
        raise UserError("--backend and --device belong to --self-test")
    found = diagnosis.report()
    if json:
        print(jsonlib.dumps(found, indent=2))
    else:
        print(diagnosis.text(found))
    return 0
