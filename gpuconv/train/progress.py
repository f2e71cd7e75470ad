"""Callbacks that show the progress of a run (on a terminal, as lines of text, in TensorBoard), and its curves."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gpuconv.errors import UserError
from gpuconv.text import printable
from gpuconv.train.loop import Position

_REFRESH = 0.3  # seconds between readings of the loss: each waits for the device


class Callback:
    """Called during a run; the base class does nothing."""

    def __enter__(self) -> "Callback":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Called with notes for the user."""

    def step(self, at: Position) -> None:
        """Called after each step."""

    def record(self, at: Position, line: dict[str, Any]) -> None:
        """Called with each `line` that was written to metrics.jsonl."""


class ProgressLines(Callback):
    """A title when training begins, then one line for each record."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self.stream, self.title = stream, title

    def __enter__(self) -> "ProgressLines":
        self.note(self.title)
        return self

    def record(self, at: Position, line: dict[str, Any]) -> None:
        if line["kind"] in ("step", "epoch"):
            self.note(_step_text(line) if line["kind"] == "step" else _epoch_text(at, line))

    def note(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)


class ProgressBar(ProgressLines):
    """A bar over all steps, with loss, accuracy, images per second and remaining time; records of steps above it."""

    def __init__(self, stream: TextIO, title: str) -> None:
        from rich import console, progress

        super().__init__(stream, title)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console.Console(file=stream, highlight=False),
            expand=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._evaluated, self._next_refresh = "", 0.0

    def __enter__(self) -> "ProgressBar":
        super().__enter__()
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, at: Position) -> None:
        if time.perf_counter() >= self._next_refresh or at.ended:
            self._next_refresh = time.perf_counter() + _REFRESH
            loss, accuracy, rate = at.running()
            text = f"epoch {at.epoch}/{at.epochs} loss {loss:.4f} accuracy {accuracy:.1%}{self._evaluated}"
            text += f" {rate:,.0f} images/s"
            self._bar.update(self._task, total=at.steps, completed=at.step, description=text)

    def record(self, at: Position, line: dict[str, Any]) -> None:
        if line["kind"] == "step":
            self._bar.console.print(_step_text(line))
        elif line["kind"] == "epoch":
            part = evaluated_part(line)
            self._evaluated = f" {part} {line[f'{part}_accuracy']:.1%}"

    def note(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, soft_wrap=True)


class TensorBoardWriter(Callback):
    """TensorBoard's event files in a folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs: pip install tensorboard") from None
        self._make = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._writer: Any = None

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def record(self, at: Position, line: dict[str, Any]) -> None:
        self._writer = self._writer or self._make(at.step)  # drops what a resumed run will write again
        for name, value in line.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{line['kind']}/{name}", value, at.step)


def evaluated_part(line: dict[str, Any]) -> str:
    """The part of the data on which an epoch was evaluated, 'val' or 'test', from its record in metrics.jsonl."""
    return "val" if "val_accuracy" in line else "test"


def draw_curves(lines: Sequence[dict[str, Any]], png: BinaryIO) -> None:
    """Plot loss and accuracy by epoch, in training and in evaluation, from records of metrics.jsonl."""
    from matplotlib.figure import Figure  # no pyplot: no state, no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.16, top=0.9)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        part = evaluated_part(lines[0])
        evaluation_label = {"test": "held out", "val": "validation"}[part]
        for key, style, label in ((name, "ks--", "in training"), (f"{part}_{name}", "o-", evaluation_label)):
            found = [(line["epoch"], line[key]) for line in lines if line["kind"] == "epoch" and line[key] is not None]
            if found:
                axes.plot(*zip(*found, strict=True), style, markersize=4, label=label)
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(png, dpi=90)


def _step_text(line: dict[str, Any]) -> str:
    loss = "not finite" if line["loss"] is None else f"{line['loss']:#.6g}"  # six digits, to compare backends by
    return f"step {line['step']}  loss {loss}  lr {line['lr']:.4g}"


def _epoch_text(at: Position, line: dict[str, Any]) -> str:
    part = evaluated_part(line)
    return (
        f"epoch {line['epoch']:{len(str(at.epochs))}}/{at.epochs}  loss {line['loss']:.4f}  "
        f"accuracy {line['accuracy']:6.2%}  {part} {line[f'{part}_accuracy']:6.2%}  "
        f"{line['images_per_second']:,.0f} images/s  {line['seconds']:.1f} s"
    )
