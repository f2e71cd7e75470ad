"""The command `gpuconv tune`; `gpuconv.cli.main` puts it on the command line."""

import dataclasses
import importlib
import json
import sys
from collections import Counter
from typing import Annotated, Any

import torch
import typer

from gpuconv import backends
from gpuconv.bench.tune import Tuned, distinct, tune_each
from gpuconv.bench.workloads import LAYOUTS
from gpuconv.checking.precision import NUMBERS
from gpuconv.cli.layers import Batch, LayersOrNone, Layout, Numbers, problems_of
from gpuconv.cli.options import AsJson, Device, Directions, checked, device_to_time, one_of
from gpuconv.cli.progress import Progress
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.models import convert
from gpuconv.models.warmup import warmup
from gpuconv.planning import plan as planner, tuned
from gpuconv.planning.distrust import in_a_line


def tune(
    layer: LayersOrNone = None,
    model: Annotated[
        str | None,
        typer.Option(show_default=False, help="package.module:function that makes a model, whose layers are tuned."),
    ] = None,
    input: Annotated[
        str, typer.Option(help="The size of the model's input. One training step is run on random images of this size.")
    ] = "32x3x224x224",
    direction: Directions = None,
    dtype: Numbers = "float32",
    layout: Layout = "channels_last",
    batch: Batch = None,
    device: Device = None,
    backend: Annotated[
        list[str] | None, typer.Option(show_default=False, help="Candidates. Repeatable. Default: all that run here.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Start no new measurement after so many seconds.")] = 600,
    compile_only: Annotated[
        bool,
        typer.Option("--compile-only", help="Measure nothing: compile what --model needs, as gpuconv.warmup does."),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Measure on this device which backend and tile are fastest for some layers, and record it for the planner.

    Backend 'fastest' then takes what was fastest, PyTorch's own included; 'auto' takes the fastest kernel of gpuconv.
    If it is interrupted, what was recorded stays. Layers that are recorded already are measured again.
    """
    where = device_to_time(device)
    names = tuple(checked(backends.load, name) for name in backend) if backend else backends.names()
    if (layer is None) == (model is None):
        raise UserError("say what to tune: either --layer or --model")
    if compile_only and model is None:
        raise UserError("--compile-only needs a --model")
    if not compile_only:
        writable_or_raise(tuned.path())
    if model is not None:
        numbers, memory_format = NUMBERS[one_of("dtype", dtype, NUMBERS)], LAYOUTS[one_of("layout", layout, LAYOUTS)]
        net, x = _model(model, input, numbers, memory_format, where)
        try:
            with convert.patch(), planner.listening() as heard, backends.use_backend("fastest"):
                warmup(net, x)
        except (backends.BackendUnavailable, torch.OutOfMemoryError):
            raise
        except Exception as error:  # somebody else's model: whatever it raises
            raise UserError(
                f"model {model!r} cannot take a training step on an input of {input}: {in_a_line(error)}"
            ) from error
        problems = distinct(heard)
        if compile_only:
            print(
                json.dumps(len(problems))
                if as_json
                else f"{len(problems)} problems are planned and their kernels compiled"
            )
            return 0
    else:
        found = problems_of(layer or [], direction, dtype, layout, batch)
        problems = distinct(
            planner.Asked(
                p, d, where, planner.contiguous_operands(p, d, p.memory_format)._replace(tf32=dtype == "tf32")
            )
            for _, p, d in found
        )
    done: list[Tuned] = []
    try:
        with Progress(len(problems), "") as show:
            for one in tune_each(problems, names, seconds):
                done.append(one)
                show(len(done), str(one.asked.problem))
    except KeyboardInterrupt:
        print(f"stopped after {len(done)} of {len(problems)} problems; these are recorded", file=sys.stderr)
        return 130
    except OSError as error:
        raise UserError(f"cannot write {tuned.path()}: {error.strerror}") from error
    if as_json:
        print(json.dumps([_values(one) for one in done], indent=2))
        return 0
    for one in done:
        times = sorted(one.winners.items(), key=lambda pair: pair[1].seconds)
        shown = ", ".join(f"{name} {m.seconds * 1e3:.4g} ms" for name, m in times) or "nothing"
        print(f"{one.asked.direction:12}{one.asked.problem}: {shown}")
        print("".join(f"    not timed: {reason}\n" for reason in one.wrong), end="")
    wins = Counter(one.best for one in done if one.winners)
    shown = ", ".join(f"{name} {count}" for name, count in wins.most_common()) or "none"
    print(f"{len(done)} of {len(problems)} problems tuned on {planner.device_name(where)}; fastest: {shown}")
    print(f"recorded in {tuned.path()}")
    return 0


def _values(one: Tuned) -> dict[str, Any]:
    return {
        "problem": str(one.asked.problem),
        "direction": one.asked.direction,
        "times": {
            name: {"seconds": m.seconds, "tile": m.tile and dataclasses.asdict(m.tile)}
            for name, m in one.winners.items()
        },
        "timed": [
            {"backend": t.backend, "tile": str(t.tile), "seconds": t.seconds, "predicted_seconds": t.predicted}
            for t in one.timed
        ],
        "wrong": list(one.wrong),
    }


def _model(
    model: str, size: str, dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model that `package.module:function` makes, converted, and random images for it."""
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
