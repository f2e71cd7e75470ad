"""`gpuconv doctor --self-test`: every family of kernels that the planner may choose here, held to the oracle.

For each backend, family, direction, number type and layout there are trials on a small odd problem (drawn by their
names, so that each has another one): with the tile that is predicted to be fastest, and with the fastest tile that
splits its sums. forward has a bias, a residual and an activation, grad_weight the gradient of the bias; the
activations' backward pass is a family of its own. Results are judged as `gpuconv check` judges them (`judging.judge`).

`distrust.Kernels` says which trials pass or fail together. The planner passes over what fails from then on, until it
passes a later self-test. PyTorch's own convolution is measured by the same bound, and not judged.
"""

import dataclasses
import datetime
import functools
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch

from gpuconv import backends, reference
from gpuconv.activations import Activation, activate_tensor
from gpuconv.backends import Backend
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.elementwise import Elementwise
from gpuconv.checking import check, interpreted
from gpuconv.checking.judging import Finding, judge, surrounded
from gpuconv.checking.precision import NUMBERS, float32_as
from gpuconv.checking.problems import CURATED, LAYOUTS, LONG_SUMS, OF_FAMILIES, OPERANDS, as_code, laid_out, tensors
from gpuconv.gpu import Gpu
from gpuconv.planning import distrust
from gpuconv.planning.distrust import Kernels
from gpuconv.planning.ranking import ranked
from gpuconv.problem import CHANNELS_LAST, DIRECTIONS, ConvProblem, Direction, memory_format_of
from gpuconv.reference import as_numpy

ACT_BACKWARD = "act_backward"
_PROBLEMS = {name: p for name, p in (CURATED | LONG_SUMS | OF_FAMILIES).items() if p.batch}
_PROBLEMS_WITHOUT_TILES = 6  # where a backend has no tiles to choose from; other families have one problem
_MOST_FLOPS_ON_CPU = 5e6
_MOST_SECONDS_ON_CPU = 0.3  # as predicted
_IN_EVERY_LAYOUT = ("float16", "float32")  # number types whose tensors are also sliced and expanded


class Trial(NamedTuple):
    """A case of the oracle suite, for one family of a backend with one tile (None: it has none)."""

    kernels: Kernels
    case: check.Case
    tile: Tile | None

    def __str__(self) -> str:
        c = self.case
        words = f"{c.name!r}, {self.kernels.direction} {self.kernels.numbers} {c.layout} {c.activation}".rstrip()
        return f"{words}, tile {self.tile}" if self.tile else words

    @property
    def problem(self) -> ConvProblem:
        return self.case.problem


class Outcome(NamedTuple):
    """The result of a trial."""

    status: str  # "ok", "failed", "refused" (the backend has no such epilogue), "not judged"
    check: str = ""  # which check failed, as in `gpuconv check`
    message: str = ""
    worst: float = 0.0  # largest error, as a fraction of the bound
    lost: bool = False  # the GPU no longer answers this process


# ---- the trials ------------------------------------------------------------------------------------------------------


def usable(names: Sequence[str], device: torch.device) -> tuple[list[str], dict[str, str]]:
    """The backends among these that compute on the device, and why the others do not."""
    problem, here, not_here = ConvProblem.of((1, 1, 3, 3), (1, 1, 3, 3)), [], {}
    for name in names:
        backend = backends.get(name)
        reason = backend.unavailable() or backend.refuses(problem, "forward", device)
        if reason is None:
            here.append(name)
        else:
            not_here[name] = reason
    return here, not_here


def trials(name: str, gpu: Gpu, device: torch.device) -> list[Trial]:
    """The trials of a backend on `gpu`, family by family. Needs no GPU: the backend only gets to see `device`."""
    backend = backends.get(name)
    found: list[Trial] = []
    for numbers in NUMBERS:
        if numbers == "tf32" and device.type != "cuda":
            continue
        for direction in DIRECTIONS:
            if not check.claims(backend, direction):
                continue
            for layout in LAYOUTS[: None if numbers in _IN_EVERY_LAYOUT else 2]:
                found += _trials_in(layout, direction, numbers, backend, gpu, device)
        if type(backend).bind_act_backward is not Backend.bind_act_backward:
            found += [_act_backward(name, numbers, layout) for layout in LAYOUTS if numbers != "tf32"]
    return sorted(found, key=lambda trial: (trial.kernels.family == ACT_BACKWARD, trial.kernels.family))


def _trials_in(
    layout: str, direction: Direction, numbers: str, backend: Backend, gpu: Gpu, device: torch.device
) -> Iterator[Trial]:
    """The trials in one layout, direction and number type: each family once, and once more with its sums split."""
    on_cpu = device.type == "cpu"
    offered: dict[tuple[str, bool], list[tuple[str, Tile | None]]] = {}
    for name, plain in _PROBLEMS.items():
        if (layout == "channels_last" and plain.ndim == 1) or (on_cpu and plain.flops > _MOST_FLOPS_ON_CPU):
            continue
        problem, operands = as_planned(plain, direction, numbers, _empty_tensors(name, NUMBERS[numbers], layout))
        if backend.refuses(problem, direction, device) is not None:
            continue
        tiles = backend.tiles(problem, direction, gpu, operands)
        first: dict[tuple[str, bool], Tile] = {}
        for tile, prediction in ranked(backend, tiles, problem, direction, gpu, operands.tf32):
            if on_cpu and prediction.seconds > _MOST_SECONDS_ON_CPU:
                continue
            first.setdefault((tile.family, tile.splits > 1), tile)
        for kind, tile in first.items():
            offered.setdefault(kind, []).append((name, tile))
        if not tiles:
            offered.setdefault(("", False), []).append((name, None))
    for (family, split), able in offered.items():
        kernels = Kernels(backend.name, family, direction, numbers)
        draw = zlib.crc32(f"{kernels} {layout} {split}".encode())
        for i in range(1 if able[0][1] else min(_PROBLEMS_WITHOUT_TILES, len(able))):
            name, chosen = able[(draw + i) % len(able)]
            activation = check.ACTIVATIONS[(draw + i) % len(check.ACTIVATIONS)] if direction == "forward" else ""
            yield Trial(kernels, check.Case(name, direction, NUMBERS[numbers], layout, activation), chosen)


@functools.cache
def _empty_tensors(name: str, dtype: torch.dtype, layout: str) -> dict[str, torch.Tensor]:
    """Tensors without data that lie in memory as those of the problem called `name` will."""
    p = _PROBLEMS[name]
    shapes = {
        "input": p.input_shape,
        "weight": p.weight_shape,
        "residual": p.output_shape,
        "grad_output": p.output_shape,
    }
    return {t: laid_out(torch.empty(shape, dtype=dtype, device="meta"), layout) for t, shape in shapes.items()}


def as_planned(
    plain: ConvProblem, direction: Direction, numbers: str, t: dict[str, torch.Tensor]
) -> tuple[ConvProblem, Operands]:
    """The problem and operands with which the planner would describe a call with these tensors to a backend."""
    a, b = (t[operand] for operand in OPERANDS[direction])
    problem = dataclasses.replace(plain, dtype=NUMBERS[numbers], memory_format=memory_format_of(a, b))
    residual = t["residual"].stride() if direction == "forward" else None
    return problem, Operands((a.stride(), b.stride()), residual, direction == "forward", numbers == "tf32")


def _act_backward(backend: str, numbers: str, layout: str) -> Trial:
    kernels = Kernels(backend, ACT_BACKWARD, ACT_BACKWARD, numbers)
    draw = zlib.crc32(f"{kernels} {layout}".encode())
    name = ("3x3-groups2", "vectors-3x3", "wide-channels", "3d")[draw % 4]
    activation = check.ACTIVATIONS[draw % len(check.ACTIVATIONS)]
    return Trial(kernels, check.Case(name, cast(Direction, ACT_BACKWARD), NUMBERS[numbers], layout, activation), None)


# ---- running them ----------------------------------------------------------------------------------------------------


def attempt(trial: Trial, device: torch.device) -> Outcome:
    """Run a trial in this process."""
    if lost(device):
        return Outcome("not judged", message=f"{device} does not answer", lost=True)
    try:
        with float32_as(trial.kernels.numbers):
            run = _run_act_backward if trial.kernels.family == ACT_BACKWARD else _run
            found = run(trial, device)
    except torch.OutOfMemoryError as error:
        return Outcome("not judged", message=distrust.in_a_line(error))
    except backends.BackendUnavailable:  # it cannot run here at all, whatever it claimed
        raise
    except NotImplementedError as error:  # how a backend refuses an epilogue
        return Outcome("refused", message=distrust.in_a_line(error))
    except Exception as error:  # whatever a kernel, its compiler or the driver raises is a finding
        return Outcome("failed", "raised", distrust.in_a_line(error), float("inf"), lost(device))
    return Outcome("failed" if found.check else "ok", *found)


def _run(trial: Trial, device: torch.device) -> Finding:
    case, kernels = trial.case, trial.kernels
    given = tensors(case.problem, case.name, case.dtype, str(device), case.layout)
    exact = check.exact_of(case, {name: as_numpy(t) for name, t in given.items()})
    t = {name: surrounded(tensor) for name, tensor in given.items()}
    problem, operands = as_planned(case.problem, case.direction, kernels.numbers, t)
    activation = Activation.parse(case.activation or "none")
    chosen = () if trial.tile is None else (operands, trial.tile)
    run = backends.get(kernels.backend).bind(problem, case.direction, device, activation, *chosen)
    a, b = (t[operand] for operand in OPERANDS[case.direction])

    def call() -> tuple[Any, ...]:
        if case.direction == "forward":
            return (run(a, b, t["bias"], t["residual"] if case.activation else None),)
        return tuple(run(a, b, True)) if case.direction == "grad_weight" else (run(a, b),)

    with interpreted.calls_of(kernels.backend):
        return judge(t, exact, call, problem.memory_format, case.repeats, operands.tf32)


def _run_act_backward(trial: Trial, device: torch.device) -> Finding:
    case = trial.case
    given = tensors(case.problem, case.name, case.dtype, str(device), case.layout)
    activation, gy = Activation.parse(case.activation), given["grad_output"]
    z = 3 * given["residual"].double()
    memory_format = CHANNELS_LAST[z.dim()] if case.layout == "channels_last" else torch.contiguous_format
    saved = (activate_tensor(activation, z) if activation.from_output else z).to(case.dtype)
    saved = saved.contiguous(memory_format=memory_format)
    precision = reference.precision_for(case.dtype)
    gz, gb = reference.act_backward(activation, as_numpy(gy), as_numpy(saved), precision)
    t = {"grad_output": surrounded(gy), "saved": surrounded(saved)}
    elementwise = Elementwise(tuple(saved.shape), case.dtype, memory_format, gy.stride(), True, activation)
    run = backends.get(trial.kernels.backend).bind_act_backward(elementwise, device)
    exact = {"result": gz, "grad_bias": gb}
    return judge(t, exact, lambda: run(t["grad_output"], t["saved"]), memory_format, case.repeats, False)


def lost(device: torch.device) -> bool:
    """Whether the device no longer answers, as after an illegal access."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.empty(1, device=device).zero_()
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


# ---- the report ------------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A trial that failed, and how."""

    trial: Trial
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.outcome.check}: {self.trial}: {self.outcome.message}\n    {as_code(self.trial.problem)}"


@dataclasses.dataclass
class FamilyResult:
    """What the trials of a family found: one line of the report."""

    backend: str
    family: str
    problems: int = 0  # judged
    worst: float = 0.0  # largest error, as a fraction of the bound
    seconds: float = 0.0
    failures: list[Failure] = dataclasses.field(default_factory=list)
    not_judged: str = ""  # why some were not
    refused: int = 0

    @property
    def status(self) -> str:
        if self.backend == "aten":
            return "measured, not judged"
        if self.failures:
            return "FAILED"
        return "not judged" if self.not_judged or not self.problems else "ok"


@dataclasses.dataclass
class Report:
    """What a self-test found."""

    device: str
    families: list[FamilyResult]
    failed: dict[Kernels, Failure | None]  # the first failure of each; None where all was right

    @property
    def ok(self) -> bool:
        return all(family.status in ("ok", "measured, not judged") for family in self.families)

    def add(self, trial: Trial, outcome: Outcome, seconds: float) -> None:
        kernels = trial.kernels
        found = [f for f in self.families if (f.backend, f.family) == (kernels.backend, kernels.family)]
        if not found:
            found = [FamilyResult(kernels.backend, kernels.family)]
            self.families += found
        (family,) = found
        family.seconds += seconds
        if outcome.status == "not judged":
            family.not_judged = outcome.message
        elif outcome.status == "refused":
            family.refused += 1
        else:
            family.problems += 1
            family.worst = max(family.worst, outcome.worst)
            failure = Failure(trial, outcome) if outcome.status == "failed" else None
            family.failures += [failure] if failure and kernels.backend != "aten" else []
            self.failed[kernels] = self.failed.get(kernels) or failure


def run(device_name: str, trials: Sequence[Trial], outcomes: Iterable[Outcome]) -> Iterator[Report]:
    """The report as it grows, after each trial; `outcomes` gives those of the trials, in order."""
    report = Report(device_name, [], {})
    begun = time.monotonic()
    for trial, outcome in zip(trials, outcomes, strict=True):
        report.add(trial, outcome, time.monotonic() - begun)
        begun = time.monotonic()
        yield report


def remember(report: Report, finished: bool) -> None:
    """Record what failed, and, if the self-test is finished, what passed. Raises OSError where it cannot be written."""
    today = datetime.date.today().isoformat()
    found: dict[Kernels, distrust.Failed | None] = {}
    for kernels, failure in report.failed.items():
        if kernels.backend == "aten":
            continue
        if failure is not None:
            message = f"{failure.outcome.check}, {failure.outcome.message}"[:400]
            found[kernels] = distrust.Failed(
                report.device, kernels, today, str(failure.trial.problem), message, distrust.software()
            )  # fmt: skip
        elif finished:
            found[kernels] = None
    distrust.record(report.device, found)
