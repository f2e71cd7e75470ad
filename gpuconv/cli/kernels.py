"""The commands about the choice of kernels: gpuconv plan | inspect | tune. The first two need no GPU."""

import dataclasses
import importlib
import json as _json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import torch
import typer

from gpuconv import backends
from gpuconv.bench import suites
from gpuconv.bench.workloads import CPU_BATCH, LAYOUTS, NUMBERS
from gpuconv.cli.bench import Device, Directions, Json, Progress, chosen, device_of, timed
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.gpu import KNOWN, REPRESENTATIVE, Gpu, named
from gpuconv.models import convert
from gpuconv.models.warmup import warmup
from gpuconv.planning import plan as planner, ranking, tuned
from gpuconv.planning.distrust import in_a_line
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.text import printable

Layers = Annotated[
    list[str], typer.Option("--layer", show_default=False, help="A layer, suite.name, or a whole suite. Repeatable.")
]
Numbers = Annotated[str, typer.Option("--dtype", help=f"{', '.join(NUMBERS)}.")]
Layout = Annotated[str, typer.Option(help=f"{', '.join(LAYOUTS)}.")]
Batch = Annotated[int | None, typer.Option(show_default=False, help="Images. Default: the suite's.")]


def plan(
    layer: Layers,
    gpu: Annotated[
        list[str],
        typer.Option(
            "--gpu",
            "--arch",
            show_default=False,
            help=f"GPUs to plan for: {', '.join(KNOWN)}, or sm_90 and so on. Repeatable.",
        ),
    ],
    direction: Directions = None,
    dtype: Numbers = "float16",
    layout: Layout = "channels_last",
    batch: Batch = None,
    most: Annotated[int, typer.Option(help="Candidates to show of each.")] = 8,
    json: Json = False,
) -> None:
    """Say which kernel and tile the planner would choose for a layer on a GPU, which others there are, and why.

    Times are predicted by a closed formula, not measured.
    """
    gpus = [_known(named, name) for name in gpu]
    tf32 = dtype == "tf32"
    rows: list[dict[str, Any]] = []
    for name, problem, where in _problems(layer, direction, dtype, layout, batch):
        for device in gpus:
            operands = planner.contiguous_operands(problem, where, problem.memory_format)._replace(tf32=tf32)
            found, refused = ranking.candidates(problem, where, device, operands)
            chosen = next((c for c in found if c.backend in backends.auto_order("cuda")), None)
            rows += [
                {
                    "layer": name, "direction": where, "dtype": dtype, "layout": layout, "batch": problem.batch,
                    "gpu": device.name, "backend": c.backend, "tile": dataclasses.asdict(c.tile),
                    **{f"predicted_{key}": value for key, value in c.prediction._asdict().items()},
                    "chosen": c is chosen,
                }
                for c in found
            ]  # fmt: skip
            if not json:
                print(
                    *map(printable, _plan_lines(name, problem, where, dtype, device, found, chosen, refused, most)),
                    sep="\n",
                )
    if json:
        print(_json.dumps(rows, indent=2))


def _plan_lines(
    name: str,
    problem: ConvProblem,
    direction: Direction,
    dtype: str,
    gpu: Gpu,
    found: list[ranking.Candidate],
    chosen: ranking.Candidate | None,
    refused: dict[str, str],
    most: int,
) -> Iterator[str]:

    major, minor = gpu.capability
    layout = str(problem.memory_format).removeprefix("torch.")
    yield (
        f"{name} {direction}, batch {problem.batch}, {dtype}, {layout}, on {gpu.name} (sm_{major}{minor}); "
        "times are predicted, not measured"
    )
    yield f"    {'backend':8}{'kernel':13}{'tile':38}{'programs':>9}{'waves':>7}{'predicted':>15}  bound by"
    first = {(c.backend, c.tile.kernel): c for c in reversed(found)}  # of each kind of kernel
    shown = found[:most] + [c for c in found[most:] if c is chosen or c is first[c.backend, c.tile.kernel]]
    for c in shown:
        p = c.prediction
        yield (
            f"  {'→' if c is chosen else ' '} {c.backend:8}{c.tile.kernel:13}{c.tile.sizes:38}{p.programs:9,}"
            f"{p.waves:7,}{p.seconds * 1e6:12,.1f} µs  {p.bound}"
        )
    if len(found) > len(shown):
        yield f"    … and {len(found) - len(shown)} more"
    for backend, reason in refused.items():
        if backend.split()[0] in backends.auto_order("cuda") and backend != "aten":
            yield f"    {backend}: {reason}"
    yield "  → what backend 'auto' takes" if chosen else "  nothing of ours"


def inspect(
    layer: Layers,
    backend: Annotated[
        list[str] | None, typer.Option(show_default=False, help="triton, cuda. Repeatable. Default: both.")
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
            help="Run the kernels once on a virtual GPU, with random data: check the result, count instructions, "
            f"sectors, bank conflicts. The batch is then {CPU_BATCH} at most, unless it is given.",
        ),
    ] = False,
    ptx: Annotated[bool, typer.Option(help="Print the kernels as PTX.")] = False,
    sass: Annotated[bool, typer.Option(help="Print the kernels as machine code.")] = False,
    json: Json = False,
) -> int:
    """Say what the kernels that the planner chooses for a layer compile to, and with --run what they do.

    Registers, spills, shared memory, occupancy, the instructions of the main loop; the predicted time, what bounds it.
    Exits with 1 where a kernel was run and is wrong.
    """
    from gpuconv.emulator import EmulationError
    from gpuconv.inspection.kernels import BACKENDS, Kernel, inspect_kernels

    gpus = [_known(named, name, "arch") for name in arch or ("sm_80", "sm_90")]
    tf32 = dtype == "tf32"
    found: list[tuple[str, Kernel]] = []
    refused: list[str] = []
    for name, problem, where in _problems(layer, direction, dtype, layout, batch):
        if run and batch is None:
            problem = dataclasses.replace(problem, batch=min(problem.batch, CPU_BATCH))
        for gpu in gpus:
            for one in backend or BACKENDS:
                try:
                    kernels = inspect_kernels(problem, where, one, gpu, tf32, ptx, run)
                except backends.BackendUnavailable as error:
                    refused.append(str(error))
                    continue
                except EmulationError as error:
                    raise UserError(f"{name} {where}, backend {one!r} on {gpu.name}: {error}") from error
                found += [(name, kernel) for kernel in kernels]
                if not json:
                    for kernel in kernels:
                        print(f"{name}  {kernel.text()}")
                        print(kernel.ptx * ptx + kernel.code.sass * sass, end="")
    if not found:
        raise backends.BackendUnavailable("; ".join(dict.fromkeys(refused)))
    if json:
        print(_json.dumps([{"layer": name, **kernel.facts()} for name, kernel in found], indent=2))
    else:
        print(*map(printable, dict.fromkeys(refused)), sep="\n", end="\n" if refused else "")
    return int(any(kernel.wrong for _, kernel in found))


def tune(
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", show_default=False, help="A layer, suite.name, or a whole suite. Repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(show_default=False, help="package.module:function that makes a model; its layers, as they come."),
    ] = None,
    input: Annotated[
        str, typer.Option(help="The size of the model's input; a training step is run on random images of it.")
    ] = "32x3x224x224",
    direction: Directions = None,
    dtype: Numbers = "float32",
    layout: Layout = "channels_last",
    batch: Batch = None,
    device: Device = None,
    backend: Annotated[
        list[str] | None, typer.Option(show_default=False, help="Candidates; repeat it. Default: all that run here.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Start nothing new after so long.")] = 600,
    compile_only: Annotated[
        bool,
        typer.Option("--compile-only", help="Measure nothing: compile what --model needs, as gpuconv.warmup does."),
    ] = False,
    json: Json = False,
) -> int:
    """Measure on this device which backend and tile are quickest for some layers, and record it for the planner.

    Backend 'fastest' takes what was quickest, PyTorch's own included; 'auto' the quickest of ours. What is recorded
    stays when it is interrupted. Layers that are recorded already are measured again.
    """
    from gpuconv.bench import tune as tuning

    where = timed(device_of(device))
    names = tuple(_known(backends.load, name) for name in backend) if backend else backends.names()
    if (layer is None) == (model is None):
        raise UserError("say what to tune: either --layer or --model")
    if compile_only and model is None:
        raise UserError("--compile-only needs a --model")
    if not compile_only:
        writable_or_raise(tuned.path())
    if model is not None:
        net, x = _model(model, input, _of(NUMBERS, "dtype", dtype), _of(LAYOUTS, "layout", layout), where)
        try:
            with convert.patch(), planner.listening() as heard, backends.use_backend("fastest"):
                warmup(net, x)
        except (backends.BackendUnavailable, torch.OutOfMemoryError):
            raise
        except Exception as error:  # somebody else's model: whatever it raises
            raise UserError(
                f"model {model!r} cannot take a training step on an input of {input}: {in_a_line(error)}"
            ) from error
        todo = tuning.distinct(heard)
        if compile_only:
            print(_json.dumps(len(todo)) if json else f"{len(todo)} problems are planned and their kernels compiled")
            return 0
    else:
        found = _problems(layer or [], direction, dtype, layout, batch)
        todo = tuning.distinct(
            planner.Asked(
                p, d, where, planner.contiguous_operands(p, d, p.memory_format)._replace(tf32=dtype == "tf32")
            )
            for _, p, d in found
        )
    done: list[tuning.Tuned] = []
    try:
        with Progress(len(todo), "") as show:
            for one in tuning.run(todo, names, seconds):
                done.append(one)
                show(len(done), str(one.asked.problem))
    except KeyboardInterrupt:
        print(f"stopped after {len(done)} of {len(todo)}; they are recorded", file=sys.stderr)
        return 130
    except OSError as error:
        raise UserError(f"cannot write {tuned.path()}: {error.strerror}") from error
    if json:
        print(_json.dumps([_tuned_facts(one) for one in done], indent=2))
        return 0
    for one in done:
        times = sorted(one.winners.items(), key=lambda pair: pair[1].seconds)
        shown = ", ".join(f"{name} {m.seconds * 1e3:.4g} ms" for name, m in times) or "nothing"
        print(f"{one.asked.direction:12}{one.asked.problem}: {shown}")
        print("".join(f"    not timed: {reason}\n" for reason in one.wrong), end="")
    wins = Counter(one.best for one in done if one.winners)
    shown = ", ".join(f"{name} {count}" for name, count in wins.most_common()) or "none"
    print(f"{len(done)} of {len(todo)} problems tuned on {planner.device_name(where)}; quickest: {shown}")
    print(f"recorded in {tuned.path()}")
    return 0


def _tuned_facts(one: Any) -> dict[str, Any]:
    return {
        "problem": str(one.asked.problem),
        "direction": one.asked.direction,
        "times": {
            name: {"seconds": m.seconds, "tile": m.tile and dataclasses.asdict(m.tile)}
            for name, m in one.winners.items()
        },
        "wrong": list(one.wrong),
    }


def _model(
    model: str, size: str, dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> tuple[torch.nn.Module, torch.Tensor]:
    """What `package.module:function` makes, converted, and random images for it."""
    module, _, name = model.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
        shape = tuple(int(n) for n in size.split("x"))
        x = torch.randn(shape, device=device, dtype=dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # somebody else's function; a size that no tensor has
        raise UserError(f"cannot make model {model!r} with an input of {size!r}: {in_a_line(error)}") from error
    if not isinstance(made, torch.nn.Module):
        raise UserError(f"model {model!r} makes a {type(made).__name__}, not a torch.nn.Module")
    made = made.to(device, dtype)
    convert.convert(made)
    return (made.to(memory_format=layout), x.to(memory_format=layout)) if len(shape) == 4 else (made, x)


def _problems(
    names: list[str], directions: list[str] | None, dtype: str, layout: str, batch: int | None
) -> Iterator[tuple[str, ConvProblem, Direction]]:
    """Each layer that is asked for, in each direction."""
    numbers, memory_format = _of(NUMBERS, "dtype", dtype), _of(LAYOUTS, "layout", layout)
    wanted = chosen("direction", directions, DIRECTIONS)
    if batch is not None and batch < 1:
        raise UserError(f"batch must be at least 1, but got {batch}")
    for name in names:
        whole = name in suites.SUITES
        for one in [f"{name}.{layer}" for layer in suites.SUITES[name].layers] if whole else [name]:
            problem = _known(suites.layer, one, batch, numbers, memory_format)
            for direction in wanted:
                yield one, problem, direction


def _of(table: dict[str, Any], option: str, name: str) -> Any:
    if name not in table:
        raise UserError(f"{option} must be one of {', '.join(table)}, but got {name!r}")
    return table[name]


def _known(find: Any, *arguments: Any) -> Any:
    """find(*arguments), a wrong name being the user's error."""
    try:
        return find(*arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
