"""The commands `train`, `eval`, `predict`, `export` and `compare`; `gpuconv.cli.main` puts them on the command line."""

import dataclasses
import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuconv.cli.options import AsJson, On, emulated
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.gpu import EMULATED, named
from gpuconv.text import printable
from gpuconv.train import compare as comparison, distributed, export as exports, run as runs
from gpuconv.train.config import DEFAULT_EPOCHS, Config
from gpuconv.train.progress import Callback, ProgressBar, ProgressLines, TensorBoardWriter

STOPPED = {"SIGINT": 130, "SIGTERM": 143}
_FEW_STEPS = 10  # up to so many, each step is reported

Run = Annotated[Path, typer.Argument(help="Folder of a run that `gpuconv train` made.", show_default=False)]
Backend = Annotated[
    str | None, typer.Option(show_default=False, help="What computes convolutions. Default: as in training.")
]
Device = Annotated[str | None, typer.Option(show_default=False, help="cpu, cuda or cuda:N. Default: as in training.")]


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command(…, **settings)` with an option for each setting of a run; `settings` has None for those not given."""
    hints = typing.get_type_hints(Config)
    options = []
    for field in dataclasses.fields(Config):
        default = "" if field.default in (None, False) else f" Default: {field.default}, or what suits data and model."
        if field.name == "epochs":
            default = f" Default: {DEFAULT_EPOCHS}, or what suits data and model."
        option = typer.Option(show_default=False, help=field.metadata["help"] + default)
        kind: Any = hints[field.name] | None
        options.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
            )
        )
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> Any:
        return command(**arguments)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *options)]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


@with_settings
def train(
    out: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Folder for the run. Default: runs/<data>-<time>."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(show_default=False, help="Continue the run in this folder, with its settings.")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            show_default=False, help="Also write a checkpoint every so many steps, not only after each epoch."
        ),
    ] = None,
    log_every: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            help=f"Report the loss every so many steps. Default: each step, where --steps is at most {_FEW_STEPS}.",
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files.")] = False,
    on: On = None,
    as_json: AsJson = False,
    **settings: Any,
) -> int:
    """Train a CNN on images. Takes a few seconds on a laptop; no options are needed.

    Ctrl-C stops after the current step and saves; `gpuconv train --resume RUN` continues, and ends with the weights
    that it would have had without the stop. `torchrun --nproc-per-node N -m gpuconv train …` shares the work among N
    processes. With --on the kernels run as compiled for a GPU, without one: a step then takes seconds.
    """
    if resume:
        config, path = runs.load_config(resume), resume
        old = dataclasses.asdict(config)
        differ = [f"{name} {old[name]} → {new}" for name, new in settings.items() if new not in (None, old[name])]
        if differ:
            raise UserError(
                f"a run continues with its settings, but these settings differ from the run's: {', '.join(differ)}"
            )
        if out:
            raise UserError("--resume continues in the run's own folder; leave out --out")
    else:
        config = Config.given(**settings | ({"device": settings["device"] or "cpu"} if on else {}))
        path = out or runs.new_folder(config.data)
    if log_every is None and config.steps is not None and config.steps <= _FEW_STEPS:
        log_every = 1
    for name, value in (("log every", log_every), ("checkpoint every", checkpoint_every)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, but got {value}")
    stream = sys.stderr if as_json else sys.stdout
    callbacks: list[Callback] = []
    with emulated(on, config.device):
        config.check()
        if distributed.rank() == 0:
            device = named(on).name + EMULATED if on else config.device
            title = f"training {config.model} on {config.data}: {device}, {config.dtype}, backend {config.backend}"
            callbacks.append((ProgressBar if stream.isatty() else ProgressLines)(stream, title))
            if tensorboard:
                callbacks.append(TensorBoardWriter(path / "tensorboard"))
        result = runs.train(config, path, callbacks, log_every, checkpoint_every, resume is not None)
    stopped_by = result["stopped_by"]
    if distributed.rank() > 0:
        return STOPPED.get(stopped_by, 0)
    if as_json:
        print(json.dumps(result, indent=2))
    if stopped_by:
        print(
            f"stopped by {stopped_by} after step {result['steps']}; weights are in {printable(result['run'])}",
            file=stream,
        )
        return STOPPED[stopped_by]
    if not as_json:
        rate = f", {result['images_per_second']:,.0f} images/s" if result["images_per_second"] else ""
        print(_score(result["accuracy"], result["n"], result["loss"]))
        print(f"time      {result['seconds']:.1f} s for {result['steps']} steps{rate}")
        print(
            f"run       {printable(result['run'])} ({', '.join((runs.CONFIG, runs.METRICS, runs.MODEL, runs.CURVES))})"
        )
    return 0


def _score(accuracy: float, n: int, loss: float | None) -> str:
    return f"accuracy  {accuracy:.2%} of {n} held-out images, loss " + ("not finite" if loss is None else f"{loss:.4g}")


def _say(note: str) -> None:
    print(printable(note), file=sys.stderr)


def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option(show_default=False, help="Other images. Default: as in training.")] = None,
    backend: Backend = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(show_default=False, help="Default: as in training.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained network on the held-out images of its data: the accuracy, and the loss it was trained with."""
    score = runs.evaluate(run, _say, data=data, backend=backend, device=device, dtype=dtype)
    if as_json:
        print(json.dumps(dataclasses.asdict(score), indent=2))
    else:
        print(_score(score.accuracy, score.n, score.loss))


def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files, of any size, or folders.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    backend: Backend = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Name what is on images: the most probable classes, with probabilities.

    Images are brought to the size of the training images: scaled to cover it, and cropped to the middle. A folder
    stands for all images in it and in its subfolders.
    """
    best: dict[str, dict[str, float]] = {}
    for file, shares in runs.iter_predictions(run, images, _say, backend=backend, device=device):
        best[str(file)] = dict(list(shares.items())[:top])
        if not as_json:
            few = (f"{label} {share:.1%}" for label, share in best[str(file)].items())
            print(printable("  ".join([str(file), *few])))
    if as_json:
        print(json.dumps(best, indent=2))


def export(
    run: Run,
    format: Annotated[str, typer.Option(help=f"{', '.join(exports.FORMATS)}.")] = "safetensors",
    out: Annotated[
        Path | None, typer.Option(show_default=False, help="File to write. Default: in the run's folder.")
    ] = None,
) -> None:
    """Export a trained network with PyTorch's or ONNX's own convolutions, and check that it gives the same outputs."""
    path = out or run / f"export.{format}"
    writable_or_raise(path)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    found = exports.export(run, format, path)
    print(printable(f"{path}: {found}"))


@with_settings
def compare(
    backends: Annotated[
        str, typer.Option(help="What computes convolutions: several backends, with commas.")
    ] = "auto,aten",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each backend, with seeds from --seed on.")] = 3,
    out: Annotated[
        Path | None, typer.Option(show_default=False, help="Folder for the runs. Default: runs/compare-<time>.")
    ] = None,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train the same network on the same data with several backends, and compare accuracy and speed."""
    if settings.pop("backend", None):
        raise UserError("compare takes --backends, several names with commas, and no --backend")
    path = out or runs.new_folder("compare")
    stream = sys.stderr if as_json else sys.stdout
    rows = comparison.compare(Config.given(**settings), backends.split(","), seeds, path, stream)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print(comparison.table(rows))
        print(f"\n{printable(path)} ({comparison.TABLE}, {comparison.PICTURE}, and the runs)")
