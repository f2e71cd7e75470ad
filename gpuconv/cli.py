"""The command line: gpuconv train | eval | see | bench | check | plan | inspect | tune | doctor.

Commands turn options into calls and results into text; what they do lives below. Whatever a user can put right ends in
one line `error: …` on stderr and a status other than 0: 2 for options that cannot be read, 1 for the rest.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import gpuconv
from gpuconv import backends, cli_bench, cli_kernels, cli_see, doctor as diagnosis
from gpuconv.cli_bench import Json
from gpuconv.train import run as runs
from gpuconv.train.config import DEFAULT_EPOCHS, DEFAULT_LR, DTYPES, Config, UserError
from gpuconv.train.data import DATASETS
from gpuconv.train.model import NETWORKS
from gpuconv.train.watch import Bar, Lines

_STOPPED = {"SIGINT": 130, "SIGTERM": 143}
_BACKENDS = ", ".join((*backends.CHOICES, *backends.names()))

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
        return _fail("interrupted before there was anything to save", _STOPPED["SIGINT"])
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


@app.command()
def train(
    data: Annotated[str, typer.Option(help=f"Images to learn from: {', '.join(DATASETS)}.")] = "digits",
    model: Annotated[str, typer.Option(help=f"Network: {', '.join(NETWORKS)}.")] = "small",
    loss: Annotated[str, typer.Option(help=f"Loss: {', '.join(DEFAULT_LR)} (on one-hot targets).")] = "cross-entropy",
    backend: Annotated[
        str | None,
        typer.Option(
            show_default=False, help=f"Who computes convolutions: {_BACKENDS}. Default: GPUCONV_BACKEND, else auto."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(show_default=False, help="cpu, cuda or cuda:N. Default: cuda where there is a GPU, else cpu."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"{', '.join(DTYPES)}; the 16-bit ones by autocast, with float32 weights.")
    ] = "float32",
    epochs: Annotated[
        int | None,
        typer.Option(
            show_default=False, help=f"Passes over the training set. Default: {DEFAULT_EPOCHS}, or what --steps needs."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(show_default=False, help="Stop after this many optimiser steps in all.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 64,
    lr: Annotated[
        float | None,
        typer.Option(
            show_default=False,
            help="Highest learning rate of the one-cycle schedule. Default: "
            + ", ".join(f"{rate} for {loss}" for loss, rate in DEFAULT_LR.items())
            + ".",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights, bit for bit.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Folder for the run; made if need be. Default: runs/<data>-<time>."),
    ] = None,
    log_every: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            help="Report the loss of every so many steps. Default: of each, where --steps is at most 10.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Train a small CNN on real images. Takes a few seconds on a laptop; no options are needed.

    Ctrl-C stops after the step under way and saves the weights.
    """
    config = Config(
        data=data,
        model=model,
        loss=loss,
        backend=backend or backends.selected(),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=dtype,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        lr=DEFAULT_LR.get(loss, DEFAULT_LR["cross-entropy"]) if lr is None else lr,
        seed=seed,
    )
    if log_every is None and steps is not None and steps <= 10:
        log_every = 1
    if log_every is not None and log_every < 1:
        raise UserError(f"log every must be at least 1, but got {log_every}")
    config.check()
    stream = sys.stderr if json else sys.stdout
    title = f"training {model} on {data}: {config.device}, {dtype}, backend {config.backend}"
    watch = (Bar if stream.isatty() else Lines)(stream, title)
    result = runs.train(config, out or runs.new_folder(data), watch, log_every)
    if json:
        _print_json(result)
    stopped_by = result["stopped_by"]
    if stopped_by:
        print(f"stopped by {stopped_by} after step {result['steps']}; weights are in {result['run']}", file=stream)
        return _STOPPED[stopped_by]
    if not json:
        rate = f", {result['images_per_second']:,.0f} images/s" if result["images_per_second"] else ""
        print(f"accuracy  {result['accuracy']:.2%} of {result['n']} held-out images, loss {result['loss']:.4g}")
        print(f"time      {result['seconds']:.1f} s for {result['steps']} steps{rate}")
        print(f"run       {result['run']} ({runs.CONFIG}, {runs.METRICS}, {runs.MODEL})")
    return 0


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run that `gpuconv train` made.", show_default=False)],
    backend: Annotated[
        str | None,
        typer.Option(show_default=False, help=f"Who computes convolutions: {_BACKENDS}. Default: as in training."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(show_default=False, help="cpu, cuda or cuda:N. Default: as in training.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(show_default=False, help=f"{', '.join(DTYPES)}. Default: as in training.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a trained network on the held-out images of its data: accuracy, and the loss it was trained with."""
    score = runs.evaluate(run, backend=backend, device=device, dtype=dtype)
    if json:
        _print_json(dataclasses.asdict(score))
    else:
        print(f"accuracy  {score.accuracy:.2%} of {score.n} held-out images, loss {score.loss:.4g}")


app.command()(cli_see.see)
app.command()(cli_kernels.plan)
app.command()(cli_kernels.inspect)
app.command()(cli_kernels.tune)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed, which GPUs and backends can be used here, why not the others, and what `auto` picks."""
    found = diagnosis.report()
    if json:
        _print_json(found)
    else:
        print(diagnosis.text(found))


app.command(name="bench")(cli_bench.bench)
app.command(name="check")(cli_bench.check)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
