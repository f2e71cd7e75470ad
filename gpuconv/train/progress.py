"""Showing a run while it goes on: `Bar` on a terminal, `Lines` elsewhere, `Board` for TensorBoard, and its curves."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gpuconv.errors import UserError
from gpuconv.text import printable
from gpuconv.train.loop import Progress

_REFRESH = 0.3  # seconds between looks at the loss: each waits for the device


class Watch:
    """Is told what happens, and shows nothing."""

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Something that one ought to know."""

    def step(self, at: Progress) -> None:
        """A step was done."""

    def record(self, at: Progress, line: dict[str, Any]) -> None:
        """`line` was written to metrics.jsonl."""


class Lines(Watch):
    """A title when training begins, then one line for each record."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self.stream, self.title = stream, title

    def __enter__(self) -> "Lines":
        self.note(self.title)
        return self

    def record(self, at: Progress, line: dict[str, Any]) -> None:
        if line["kind"] in ("step", "epoch"):
            self.note(_step_text(line) if line["kind"] == "step" else _epoch_text(at, line))

    def note(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)


class Bar(Lines):
    """A bar over all steps, with loss, accuracy, images a second and the remaining time; steps' records above it."""

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
        self._judged, self._next_look = "", 0.0

    def __enter__(self) -> "Bar":
        super().__enter__()
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, at: Progress) -> None:
        if time.perf_counter() >= self._next_look or at.ended:
            self._next_look = time.perf_counter() + _REFRESH
            loss, accuracy, rate = at.running()
            text = f"epoch {at.epoch}/{at.epochs} loss {loss:.4f} accuracy {accuracy:.1%}{self._judged}"
            text += f" {rate:,.0f} images/s"
            self._bar.update(self._task, total=at.steps, completed=at.step, description=text)

    def record(self, at: Progress, line: dict[str, Any]) -> None:
        if line["kind"] == "step":
            self._bar.console.print(_step_text(line))
        elif line["kind"] == "epoch":
            part = judged_part(line)
            self._judged = f" {part} {line[f'{part}_accuracy']:.1%}"

    def note(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, soft_wrap=True)


class Board(Watch):
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

    def record(self, at: Progress, line: dict[str, Any]) -> None:
        self._writer = self._writer or self._make(at.step)  # of a run that goes on, what it will say again is dropped
        for name, value in line.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{line['kind']}/{name}", value, at.step)


def judged_part(line: dict[str, Any]) -> str:
    """The part of the data that an epoch was judged by, 'val' or 'test', from its record in metrics.jsonl."""
    return "val" if "val_accuracy" in line else "test"


def draw_curves(lines: Sequence[dict[str, Any]], png: BinaryIO) -> None:
    """Loss and accuracy by epoch, in training and on the images that it is judged by, from records of metrics.jsonl."""
    from matplotlib.figure import Figure  # no pyplot: no state, no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.16, top=0.9)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        part = judged_part(lines[0])
        judged = {"test": "held out", "val": "validation"}[part]
        for key, style, label in ((name, "ks--", "in training"), (f"{part}_{name}", "o-", judged)):
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


def _epoch_text(at: Progress, line: dict[str, Any]) -> str:
    part = judged_part(line)
    return (
        f"epoch {line['epoch']:{len(str(at.epochs))}}/{at.epochs}  loss {line['loss']:.4f}  "
        f"accuracy {line['accuracy']:6.2%}  {part} {line[f'{part}_accuracy']:6.2%}  "
        f"{line['images_per_second']:,.0f} images/s  {line['seconds']:.1f} s"
    )
