"""The command `gpuconv inspect`; `gpuconv.cli.main` puts it on the command line."""

import dataclasses
import json
from typing import Annotated

import typer

from gpuconv import backends
from gpuconv.bench.workloads import CPU_BATCH
from gpuconv.cli.layers import Batch, Layers, Layout, Numbers, problems_of
from gpuconv.cli.options import AsJson, Directions, checked, each_of
from gpuconv.emulator import EmulationError
from gpuconv.errors import UserError
from gpuconv.gpu import REPRESENTATIVE, named
from gpuconv.inspection.kernels import BACKENDS, Kernel, inspect_kernels
from gpuconv.text import printable


def inspect(
    layer: Layers,
    backend: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"{', '.join(BACKENDS)}. Repeatable. Default: both."),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            "--gpu",
            show_default=False,
            help=f"Architectures: {', '.join(REPRESENTATIVE)}; or a GPU: h100. Repeatable. Default: sm_80, sm_90.",
        ),
    ] = None,
    direction: Directions = None,
    dtype: Numbers = "float16",
    layout: Layout = "channels_last",
    batch: Batch = None,
    run: Annotated[
        bool,
        typer.Option(
            "--run",
            help="Also run the kernels once on a virtual GPU, with random data: check the result; count instructions, "
            f"sectors and bank conflicts. The batch is then {CPU_BATCH} at most, unless it is given.",
        ),
    ] = False,
    ptx: Annotated[bool, typer.Option(help="Print the kernels as PTX.")] = False,
    sass: Annotated[bool, typer.Option(help="Print the kernels as machine code.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show what the kernels that the planner chooses for a layer compile to, and with --run what they do.

    Shows registers, spills, shared memory, occupancy, the instructions of the main loop, the predicted time and what
    bounds it. Needs no GPU. Exits with 1 if a kernel was run and is wrong.
    """
    gpus = [checked(named, name, "arch") for name in arch or ("sm_80", "sm_90")]
    tf32 = dtype == "tf32"
    found: list[tuple[str, Kernel]] = []
    refused: list[str] = []
    for name, problem, where in problems_of(layer, direction, dtype, layout, batch):
        if run and batch is None:
            problem = dataclasses.replace(problem, batch=min(problem.batch, CPU_BATCH))
        for gpu in gpus:
            for one in each_of("backend", backend, BACKENDS):
                try:
                    kernels = inspect_kernels(problem, where, one, gpu, tf32, ptx, run)
                except backends.BackendUnavailable as error:
                    refused.append(str(error))
                    continue
                except EmulationError as error:
                    raise UserError(f"{name} {where}, backend {one!r} on {gpu.name}: {error}") from error
                found += [(name, kernel) for kernel in kernels]
                if not as_json:
                    for kernel in kernels:
                        print(f"{name}  {kernel.text()}")
                        print(kernel.ptx * ptx + kernel.code.sass * sass, end="")
    if not found:
        raise backends.BackendUnavailable("; ".join(dict.fromkeys(refused)))
    if as_json:
        print(json.dumps([{"layer": name, **kernel.facts()} for name, kernel in found], indent=2))
    else:
        print(*map(printable, dict.fromkeys(refused)), sep="\n", end="\n" if refused else "")
    return int(any(kernel.wrong for _, kernel in found))
