"""The oracle suite, which `gpuconv check --backend package.module:Class` runs on one backend.

It checks every direction that the backend claims, on odd problems (`gpuconv.checking.problems`), in every element type
and layout:

    value        each element is within the bound of `gpuconv.reference`; outputs are NaN beforehand, so an element that
                 is not written fails
    memory       nothing is written around an output, and nothing around an input, where NaN lies, gets into a result
    bits         the same inputs give the same bits every time
    form         shape, dtype, device and memory format of the result are what the ops promise
    inputs       no input is changed
    epilogue     bias, residual and activation, fused into forward, give the right values
    non-finite   no NaN or infinity that takes part in an output is lost

A backend claims what it implements and does not refuse: `Backend.refuses` refuses problems, and NotImplementedError at
the call an epilogue. Functions are called as the ops call them, beneath registration and autograd.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.backends import Backend
from gpuconv.checking import interpreted
from gpuconv.checking.judging import exact_results, judge, surrounded
from gpuconv.checking.problems import CURATED, LAYOUTS, LONG_SUMS, OPERANDS, as_code, problem_called, tensors
from gpuconv.planning import distrust, plan
from gpuconv.problem import CHANNELS_LAST, DIRECTIONS, ConvProblem, Direction, memory_format_of
from gpuconv.reference import Exact, as_numpy
from gpuconv.settings import Settings

DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
ACTIVATIONS = ("relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish", "relu6", "sigmoid", "tanh")
SEEDS = 20  # random problems
_IN_EVERY_LAYOUT = ("3x3-same", "3x3-groups2-stride2", "3x3-asymmetric-padding", "1d", "3d")
_NON_FINITE = ("3x3-same", "3x3-stride2", "3x3-groups2")


class Case(NamedTuple):
    """One thing to check."""

    name: str  # of the problem: curated, or `random SEED`
    direction: Direction
    dtype: torch.dtype
    layout: str
    activation: str = ""  # with bias and residual, where there is one
    planted: str = ""  # 'nan in weight'
    repeats: int = 2

    @property
    def problem(self) -> ConvProblem:
        return dataclasses.replace(problem_called(self.name), dtype=self.dtype)

    @property
    def dtype_name(self) -> str:
        return next(name for name, dtype in DTYPES.items() if dtype is self.dtype)


class Failure(NamedTuple):
    """A case that failed, and how."""

    check: str  # which of the checks above, or "raised"
    case: Case
    message: str

    @property
    def again(self) -> str:
        """The options of `gpuconv check` that run this case and few others."""
        return f"--problem '{self.case.name}' --direction {self.case.direction} --dtype {self.case.dtype_name}"

    def __str__(self) -> str:
        c = self.case
        how = " ".join(filter(None, (c.direction, c.dtype_name, c.layout, c.activation, c.planted)))
        return f"{self.check}: {c.name!r}, {how}: {self.message}\n    {as_code(c.problem)}\n    {self.again}"


@dataclasses.dataclass
class Report:
    """What the suite found about a backend."""

    backend: str
    device: str
    passed: Counter[str] = dataclasses.field(default_factory=Counter)  # by direction
    refused: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason
    failures: list[Failure] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and bool(self.passed)


def select_cases(
    directions: Sequence[Direction] = DIRECTIONS,
    dtypes: Sequence[str] = tuple(DTYPES),
    problems: Sequence[str] = (),
    seeds: int = SEEDS,
) -> list[Case]:
    """The cases of these directions, element types and problems (all where none is named, `seeds` random ones too).

    Raises ValueError for a problem that is not known.
    """
    for name in problems:
        problem_called(name)
    return [
        case
        for case in _all_cases(seeds)
        if case.direction in directions and case.dtype_name in dtypes and (not problems or case.name in problems)
    ] + [
        Case(name, direction, DTYPES[dtype], layout)  # a random problem beyond the first few, asked for by name
        for name in problems
        if name.startswith("random ") and int(name.split()[1]) >= seeds
        for direction in directions for dtype in dtypes for layout in LAYOUTS
    ]  # fmt: skip


def _all_cases(seeds: int) -> Iterator[Case]:
    dtypes = tuple(DTYPES.values())
    for direction in DIRECTIONS:
        for dtype in dtypes:
            for i, name in enumerate(CURATED):
                yield Case(name, direction, dtype, LAYOUTS[i % 3])
            yield from (Case(name, direction, dtype, "contiguous", repeats=5) for name in LONG_SUMS)
        for i in range(seeds):
            yield Case(f"random {i}", direction, dtypes[i % 4], LAYOUTS[i // 4 % 4])
        for name in _IN_EVERY_LAYOUT:
            for layout in LAYOUTS:
                yield Case(name, direction, torch.float32, layout)
        for name in _NON_FINITE:
            for operand in OPERANDS[direction]:
                for value in ("nan", "inf", "-inf"):
                    yield Case(name, direction, torch.float32, "contiguous", planted=f"{value} in {operand}")
    for activation in ACTIVATIONS:
        for dtype in (torch.float32, torch.bfloat16):
            yield Case("3x3-groups2", "forward", dtype, "contiguous", activation)


def claims(backend: Backend, direction: Direction) -> bool:
    """Whether the backend implements `direction` at all."""
    cls, bound = type(backend), type(backend).bind is not Backend.bind
    return bound or getattr(cls, direction) is not getattr(Backend, direction)


def check_backend(
    backend: str,
    device: torch.device,
    cases: Sequence[Case],
    progress: Callable[[int, Report], None] = lambda done, report: None,
) -> Report:
    """Run the cases on a registered backend. Raises BackendUnavailable if it cannot run on this machine at all.

    Families of kernels that failed the self-test are checked like others. What Triton's interpreter cannot judge
    (`gpuconv.checking.interpreted`) counts as refused.
    """
    backends.require(backend)
    report = Report(backend, device_name(device))
    plan.forget()
    with distrust.ignored():
        for done, case in enumerate(cases, start=1):
            outcome = _outcome(backends.get(backend), device, case)
            if outcome is None:
                report.passed[case.direction] += 1
            elif isinstance(outcome, Failure):
                report.failures.append(outcome)
            else:
                report.refused[outcome] += 1
            progress(done, report)
    plan.forget()
    return report


def device_name(device: torch.device) -> str:
    """How reports call the device: 'cuda:0', 'H100 (emulated)'."""
    return plan.device_name(device) if plan.emulated(device) else str(device)


def _outcome(backend: Backend, device: torch.device, case: Case) -> Failure | str | None:
    """How a case fails, or why it is refused, or None."""
    if not claims(backend, case.direction):
        return f"it has no {case.direction}"
    refusal = _refusal(backend, case, device)
    if refusal is not None:
        return refusal
    try:
        return _run(backend.name, device, case)
    except interpreted.Unjudged as reason:
        return str(reason)
    except interpreted.NoInterpreter:
        raise
    except Exception as error:  # somebody else's code: whatever it raises is a finding
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(error, NotImplementedError) and case.activation:  # there is no other way to refuse an epilogue
            return text
        return Failure("raised", case, text)


def _refusal(backend: Backend, case: Case, device: torch.device) -> str | None:
    last = CHANNELS_LAST.get(2 + case.problem.ndim, torch.contiguous_format)
    memory_format = last if case.layout == "channels_last" else torch.contiguous_format
    return backend.refuses(dataclasses.replace(case.problem, memory_format=memory_format), case.direction, device)


def _run(backend: str, device: torch.device, case: Case) -> Failure | None:
    """How a case fails first, or None."""
    problem = case.problem
    t = tensors(problem, case.name, case.dtype, str(device), case.layout)
    value, _, planted = case.planted.partition(" in ")
    if planted:
        t[planted].view(-1)[t[planted].numel() // 2] = float(value)
    exact = exact_of(case, {name: as_numpy(tensor) for name, tensor in t.items()})
    t = {name: surrounded(tensor) for name, tensor in t.items()}
    a, b = (t[name] for name in OPERANDS[case.direction])
    tf32 = plan.uses_tf32(a)

    def run() -> tuple[Any, ...]:
        with interpreted.calls_of(backend):
            return _call(backend, case, t)

    found = judge(t, exact, run, memory_format_of(a, b), case.repeats, tf32, bool(planted))
    return Failure(found.check, case, found.message) if found.check else None


def _call(backend: str, case: Case, t: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The result, and grad_bias where there is one, as the ops would compute them."""
    p = case.problem
    key = Settings(p.stride, p.padding, p.dilation, p.groups, case.activation or "none", backend).encode()
    if case.direction == "forward":
        extra = (None if case.planted else t["bias"], t["residual"] if case.activation else None)
        return (plan.forward(t["input"], t["weight"], *extra, key)(t["input"], t["weight"], *extra),)
    if case.direction == "grad_input":
        return (plan.grad_input(t["grad_output"], t["weight"], p.input_shape, key)(t["grad_output"], t["weight"]),)
    pair = (t["grad_output"], t["input"])
    return tuple(plan.grad_weight(*pair, p.weight_shape, True, key)(*pair, True))


def exact_of(case: Case, n: dict[str, Any]) -> dict[str, Exact]:
    """The exact results of a case, from its tensors as arrays."""
    extra = (None if case.planted else n["bias"], n["residual"] if case.activation else None)
    return exact_results(case.problem, case.direction, n, *extra, Activation.parse(case.activation or "none"))
