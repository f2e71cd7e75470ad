"""Puts one backend through the oracle suite: `gpuconv check --backend package.module:Class`.

Every direction that the backend claims, on odd problems (`gpuconv.checking.problems`), in every element type and
layout:

    value        each element within the bound of `gpuconv.reference`; outputs are NaN beforehand, so one that is not
                 written fails
    memory       nothing is written around an output, and nothing around an input, where NaN lies, gets into a result
    bits         the same inputs give the same bits, every time
    form         shape, dtype, device and memory format of the result are what the ops promise
    inputs       are as they were
    epilogue     bias, residual and activation, fused into forward
    non-finite   no NaN or infinity that takes part in an output is lost

A backend claims what it implements and does not refuse (`Backend.refuses`; of an epilogue that it lacks it may raise
NotImplementedError). Bound functions are called as the ops call them, beneath registration and autograd.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from gpuconv import backends, reference
from gpuconv.activations import Activation
from gpuconv.backends import Backend
from gpuconv.checking import interpreted
from gpuconv.checking.problems import CURATED, LAYOUTS, LONG_SUMS, as_code, problem_called, tensors
from gpuconv.planning import distrust, plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction, memory_format_of
from gpuconv.reference import Exact, as_numpy
from gpuconv.settings import Settings

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ACTIVATIONS = ("relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish", "relu6", "sigmoid", "tanh")
SEEDS = 20  # random problems
MARGIN = 1024  # elements on either side of a tensor; keeps the alignment that PyTorch's allocator gives
CANARY = 12345.0
_IN_EVERY_LAYOUT = ("3x3-same", "3x3-groups2-stride2", "3x3-asymmetric-padding", "1d", "3d")
_NON_FINITE = ("3x3-same", "3x3-stride2", "3x3-groups2")
OPERANDS = {
    "forward": ("input", "weight"), "grad_input": ("grad_output", "weight"), "grad_weight": ("grad_output", "input"),
}  # fmt: skip


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


class Failure(NamedTuple):
    """What is wrong, and with what to see it again."""

    check: str
    case: Case
    message: str

    @property
    def again(self) -> str:
        """The options of `gpuconv check` that run this case and few others."""
        dtype = str(self.case.dtype).removeprefix("torch.")
        return f"--problem '{self.case.name}' --direction {self.case.direction} --dtype {dtype}"

    def __str__(self) -> str:
        c = self.case
        dtype = str(c.dtype).removeprefix("torch.")
        how = " ".join(filter(None, (c.direction, dtype, c.layout, c.activation, c.planted)))
        return f"{self.check}: {c.name!r}, {how}: {self.message}\n    {as_code(c.problem)}\n    {self.again}"


@dataclasses.dataclass
class Report:
    """What a backend did."""

    backend: str
    device: str
    passed: Counter[str] = dataclasses.field(default_factory=Counter)  # by direction
    refused: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason
    failures: list[Failure] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and bool(self.passed)


def cases(
    directions: Sequence[Direction] = DIRECTIONS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    problems: Sequence[str] = (),
    seeds: int = SEEDS,
) -> list[Case]:
    """All that is checked; `problems` names a few instead. Raises ValueError for a name that is not known."""
    for name in problems:
        problem_called(name)
    return [
        case
        for case in _all_cases(seeds)
        if case.direction in directions and case.dtype in dtypes and (not problems or case.name in problems)
    ] + [
        Case(name, direction, dtype, layout)  # a random problem beyond the first few, asked for by name
        for name in problems
        if name.startswith("random ") and int(name.split()[1]) >= seeds
        for direction in directions for dtype in dtypes for layout in LAYOUTS
    ]  # fmt: skip


def _all_cases(seeds: int) -> Iterator[Case]:
    for direction in DIRECTIONS:
        for dtype in DTYPES:
            for i, name in enumerate(CURATED):
                yield Case(name, direction, dtype, LAYOUTS[i % 3])
            yield from (Case(name, direction, dtype, "contiguous", repeats=5) for name in LONG_SUMS)
        for i in range(seeds):
            yield Case(f"random {i}", direction, DTYPES[i % 4], LAYOUTS[i // 4 % 4])
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


def check(
    backend: str,
    device: torch.device,
    todo: Sequence[Case],
    progress: Callable[[int, Report], None] = lambda done, report: None,
) -> Report:
    """Run `todo` on a registered backend, with families that failed the self-test. Raises BackendUnavailable if it
    cannot run on this machine at all.

    What Triton's interpreter cannot judge (`gpuconv.checking.interpreted`) counts as refused.
    """
    backends.require(backend)
    report = Report(backend, called(device))
    plan.forget()
    with distrust.ignored():
        for done, case in enumerate(todo, start=1):
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


def called(device: torch.device) -> str:
    """The device in words: 'cuda:0', 'H100 (emulated)'."""
    return plan.device_name(device) if plan.emulated(device) else str(device)


def _outcome(backend: Backend, device: torch.device, case: Case) -> Failure | str | None:
    """What is wrong with a case, or why it is refused, or None."""
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
    last = torch.channels_last if case.problem.ndim == 2 else torch.channels_last_3d
    memory_format = last if case.layout == "channels_last" and case.problem.ndim > 1 else torch.contiguous_format
    return backend.refuses(dataclasses.replace(case.problem, memory_format=memory_format), case.direction, device)


def _run(backend: str, device: torch.device, case: Case) -> Failure | None:
    """The first thing that is wrong with a case."""
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
        with interpreted.guarded(backend):
            return _call(backend, case, t)

    found = verdict(t, exact, run, memory_format_of(a, b), case.repeats, tf32, bool(planted))
    return Failure(found.check, case, found.message) if found.check else None


class Verdict(NamedTuple):
    """What is wrong with what a function gave, if anything is (`check` is empty otherwise), and its largest error as a
    fraction of the bound."""

    check: str
    message: str
    worst: float


def verdict(
    t: dict[str, torch.Tensor],
    exact: dict[str, Exact],
    call: Callable[[], tuple[Any, ...]],
    memory_format: torch.memory_format,
    repeats: int,
    tf32: bool,
    non_finite: bool = False,
) -> Verdict:
    """Call a function `repeats` times and hold what it gives to `exact`, in the same order, and to what else a backend
    owes; the first thing that is wrong.

    t: what it reads, `surrounded`. memory_format: of its first result. non_finite: one of t holds a NaN or infinity,
    and nothing else is looked at but whether it arrives.
    """
    before = {name: tensor.clone() for name, tensor in t.items()}
    results, spoilt = [], 0
    for _ in range(repeats):
        with Guarded() as guarded:
            results.append(call())
        spoilt += guarded.spoilt()
    fine = dict(zip(exact, results[0], strict=False))
    some = next(iter(t.values()))
    worst = 0.0

    def wrong(check: str, message: str) -> Verdict:
        return Verdict(check, message, worst)

    for name, got in fine.items():
        if not isinstance(got, torch.Tensor):
            return wrong("form", f"{name} is {got!r}, not a tensor")
        form = (tuple(got.shape), got.dtype, got.device.type)
        expected = (exact[name].value.shape, some.dtype, some.device.type)
        if form != expected:
            return wrong("form", f"{name} is {form}, expected {expected}")
    if non_finite:
        lost = ~np.isfinite(exact["result"].value) & np.isfinite(as_numpy(fine["result"]))
        return wrong("non-finite" if lost.any() else "", f"lost in {int(lost.sum())} places")
    for name, got in fine.items():
        worst = max(worst, reference.worst_violation(got, exact[name], tf32=tf32)[0])
        try:
            reference.assert_close_to_oracle(got, exact[name], name, tf32=tf32)
        except AssertionError as error:
            return wrong("value", str(error))
    if spoilt:
        return wrong("memory", f"{spoilt} elements around an output were written")
    for name, tensor in t.items():
        if not _same_bits(tensor, before[name]):
            return wrong("inputs", f"{name} was changed")
    if not fine["result"].is_contiguous(memory_format=memory_format):
        return wrong("form", f"strides {fine['result'].stride()}, expected {memory_format}")
    for again in results[1:]:
        if not all(_same_bits(x, y) for x, y in zip(results[0], again, strict=True)):
            return wrong("bits", f"{repeats} runs with the same inputs do not give the same bits")
    return wrong("", "")


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
    """What a case gives, from its tensors as arrays."""
    extra = (None if case.planted else n["bias"], n["residual"] if case.activation else None)
    return named_results(case.problem, case.direction, n, *extra, Activation.parse(case.activation or "none"))


def named_results(problem: ConvProblem, direction: Direction, n: dict[str, Any], *epilogue: Any) -> dict[str, Exact]:
    """What `verdict` holds results to: from the arrays by name, and for forward bias, residual and activation."""
    exact = reference.results(problem, direction, *(n[name] for name in OPERANDS[direction]), *epilogue)
    return dict(zip(("result", "grad_bias"), exact, strict=False))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return torch.equal(a.view(integer), b.view(integer))


# ---- memory around tensors -------------------------------------------------------------------------------------------


def surrounded(t: torch.Tensor) -> torch.Tensor:
    """The values of t with the same strides, inside a buffer of NaN."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    buffer = torch.full((extent + 2 * MARGIN,), math.nan, dtype=t.dtype, device=t.device)
    inner = buffer.as_strided(t.shape, t.stride(), MARGIN)
    if 0 in t.stride():  # one image, seen several times
        inner[:1].copy_(t[:1])
    else:
        inner.copy_(t)
    return inner


_MAKE_TENSORS = {
    torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided,
}  # fmt: skip


class Guarded(TorchFunctionMode):
    """While active, PyTorch's uninitialised tensors are NaN, and lie inside larger buffers that end up untouched."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _MAKE_TENSORS or not out.is_floating_point() or out.device.type == "meta":
            return out
        size = out.untyped_storage().nbytes() // out.itemsize
        buffer = torch.full((size + 2 * MARGIN,), CANARY, dtype=out.dtype, device=out.device)
        buffer[MARGIN : MARGIN + size] = math.nan
        self._buffers.append(buffer)
        return buffer.as_strided(out.shape, out.stride(), MARGIN)

    def spoilt(self) -> int:
        """How many elements around the tensors are not as they were."""
        outside = (torch.cat((b[:MARGIN], b[-MARGIN:])) for b in self._buffers)
        return sum(int((o != torch.full_like(o, CANARY)).sum()) for o in outside)
