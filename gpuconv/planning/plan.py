"""Which backend computes a problem: from an op's arguments to the function that a backend has bound to them.

The first call of a problem validates it, asks the backends and picks the tile that is predicted to be quickest
(`gpuconv.planning.ranking`); every later call is one dictionary look-up. Nothing is tried out; what was measured on
this machine before (`gpuconv.planning.tuned`) goes before predictions, and what failed here
(`gpuconv.planning.distrust`) is passed over.
"""

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from gpuconv import backends, gpu as gpus, sizes
from gpuconv.activations import Activation
from gpuconv.backends import Backend, BackendUnavailable
from gpuconv.backends.base import Operands, Tile, contiguous_operands, numbers
from gpuconv.backends.elementwise import Elementwise, by_pytorch
from gpuconv.gpu import Emulation, Gpu
from gpuconv.planning import distrust, tuned
from gpuconv.planning.ranking import ranked
from gpuconv.problem import ConvProblem, Direction, check_tensors, memory_format_of
from gpuconv.settings import Settings


class Plan(NamedTuple):
    """A problem and the backend that computes it. `run` takes tensors and gives the result."""

    problem: ConvProblem
    direction: Direction
    backend: Backend
    passed_over: tuple[tuple[str, str], ...]  # 'triton', or 'triton window' for a family, and why
    tile: Tile | None
    run: Callable[..., Any]


_MOST_PLANS = 16_384  # a program with ever-changing shapes starts afresh beyond this
_Plans = dict[tuple[object, ...], Callable[..., Any]]
_plans: _Plans = {}


def choose(
    problem: ConvProblem,
    direction: Direction,
    device: torch.device,
    settings: Settings,
    operands: Operands | None = None,
) -> Plan:
    """The backend for `direction` of `problem`: the one that the settings name; or, for 'auto' and 'fastest', the one
    that was measured to be quickest, else the one that is predicted to be, else the first that can do it.

    `operands`: how the tensors lie in memory; contiguous if it is not given.

    Raises ValueError for an unknown backend, BackendUnavailable, with the reason, where the one named cannot do it.
    """
    activation = Activation.parse(settings.activation)
    operands = operands or contiguous_operands(problem, direction)
    automatic = settings.backend in backends.CHOICES
    passed_over: list[tuple[str, str]] = []
    gpu = Gpu.of(device)
    asked = Asked(problem, direction, device, operands)
    if _asked is not None:
        _asked[asked] = None
    here = device_name(device)
    measured = tuned.look_up(problem, direction, here, operands)
    failed, dropped = distrust.failed(here), distrust.dropped(asked)
    willing: list[tuple[float, Backend, Tile | None]] = []
    for name in _order(settings.backend, device.type, measured) if automatic else (settings.backend,):
        backend = backends.get(name)
        reason = backend.unavailable() or backend.refuses(problem, direction, device)
        if reason is not None:
            passed_over.append((name, reason))
            continue
        menu = backend.tiles(problem, direction, gpu, operands)
        if willing and not menu:
            break  # nothing to predict: it is there for what no backend before it can do
        tiles, reasons = distrust.sift(menu, name, direction, numbers(problem.dtype, operands.tf32), failed, dropped)
        passed_over += [(f"{name} {family}".rstrip(), reason) for family, reason in reasons.items()]
        if reasons and not tiles:
            continue
        tile, seconds = tuned.on_the_menu(measured.get(name), menu, name), -math.inf
        if tile not in tiles:  # nothing was measured, or with kernels that are no more
            tile, seconds = _quickest(backend, tiles, problem, direction, gpu, operands)
        willing.append((seconds, backend, tile))
        if name in measured or not tiles:
            break
    if willing:
        (seconds, backend, tile), *slower = sorted(willing, key=lambda one: one[0])
        passed_over += [
            (other.name, f"predicted to take {more * 1e6:,.1f} µs, and {backend.name} {seconds * 1e6:,.1f} µs")
            for more, other, _ in slower
        ]
        try:
            run = backend.bind(problem, direction, device, activation, *(() if tile is None else (operands, tile)))
        except Exception as error:
            if not distrust.drop(asked, f"{direction} of {problem}", backend, tile, error):
                raise
        else:
            return Plan(problem, direction, backend, tuple(passed_over), tile, run)
        return choose(problem, direction, device, settings, operands)
    because = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise BackendUnavailable(
        f"no backend can do {direction} of {problem} on {device_name(device) if emulated(device) else device} "
        f"({because}); " + ("" if automatic else "use backend='auto' or 'aten' instead")
    )


def _quickest(
    backend: Backend,
    tiles: tuple[Tile, ...],
    problem: ConvProblem,
    direction: Direction,
    gpu: Gpu,
    operands: Operands,
) -> tuple[Tile | None, float]:
    """The tile that is predicted to be quickest, and its seconds; (None, 0) where there is nothing to choose."""
    for tile, prediction in ranked(backend, tiles, problem, direction, gpu, operands.tf32)[:1]:
        return tile, prediction.seconds
    return None, 0.0


def _order(choice: str, device_type: str, measured: tuned.Winners) -> list[str]:
    """The backends to try for 'auto' or 'fastest': those that were measured first, the quickest in front."""
    order = backends.auto_order(device_type)
    known = [*order, *(name for name in measured if name not in order and name in backends.names())]

    def rank(name: str) -> tuple[bool, float]:
        return choice == "auto" and name == "aten", measured[name].seconds if name in measured else math.inf

    return sorted(order if choice == "auto" else known, key=rank)


def emulated(device: torch.device) -> bool:
    """Whether tensors on `device` stand for those of a GPU that is emulated."""
    return device.type == "cpu" and gpus.emulation is not None


def device_name(device: torch.device) -> str:
    """The name under which times measured on `device` are recorded: the GPU's, 'H100 (emulated)', or 'cpu'."""
    if emulated(device):
        return Gpu.of(device).name + gpus.EMULATED
    return Gpu.of(device).name if device.type == "cuda" else device.type


def forget() -> None:
    """Forget all plans: the next call of each problem is planned with what is recorded now, dropped tiles included."""
    _afresh()
    tuned.forget()
    distrust.forget()


# ---- a GPU that is emulated ------------------------------------------------------------------------------------------


class World(NamedTuple):
    """One GPU that CPU tensors stand for, or none, and what was planned and dropped for it."""

    emulation: Emulation | None
    plans: _Plans
    dropped: dict[Hashable, Any]


_worlds = [World(None, _plans, distrust._dropped)]  # the last is the one we are in


def emulate(emulation: Emulation) -> World:
    """From now on, on every thread and until `leave`, CPU tensors stand for a GPU's and are computed as there.

    Plans and dropped tiles are kept apart from those with another GPU, or with none."""
    _worlds.append(World(emulation, {}, {}))
    _enter(_worlds[-1])
    return _worlds[-1]


def leave(world: World) -> None:
    """Undo `emulate`: the GPU that was emulated before it is emulated again."""
    _worlds[:] = [other for other in _worlds if other is not world]
    _enter(_worlds[-1])


def _enter(world: World) -> None:
    global _plans
    _plans, gpus.emulation = world.plans, world.emulation
    distrust.remember_in(world.dropped)
    backends.plan_for_cpu_as_for("cpu" if world.emulation is None else "cuda")


def _afresh() -> None:
    """Forget all plans, and what was dropped."""
    for world in _worlds:
        world.plans.clear()
        world.dropped.clear()


backends.on_register(_afresh)


class Asked(NamedTuple):
    """The arguments of `choose` that say what is to be planned."""

    problem: ConvProblem
    direction: Direction
    device: torch.device
    operands: Operands


@contextmanager
def listening() -> Iterator[list[Asked]]:
    """The different problems that are planned within this context, on any thread, in the order in which they come."""
    global _asked
    if _asked is not None:
        raise RuntimeError("somebody is listening already")
    _plans.clear()  # so that what was planned before is planned again, and heard
    _asked = {}
    heard: list[Asked] = []
    try:
        yield heard
    finally:
        heard.extend(_asked)
        _asked = None


_asked: dict[Asked, None] | None = None


# ---- the way in ------------------------------------------------------------------------------------------------------


def uses_tf32(t: torch.Tensor) -> bool:
    """Whether PyTorch's own convolution would multiply this tensor as TF32, on the GPU that it stands for if it does.
    Not to be called while tracing."""
    if t.dtype is not torch.float32 or not (t.is_cuda or (gpus.emulation is not None and t.is_cpu)):
        return False
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # made at run time


def _problem(settings: Settings, x: Any, w: Any, a: torch.Tensor, b: torch.Tensor) -> ConvProblem:
    """The problem of an input of shape x and a weight of shape w, computed from tensors a and b."""
    return ConvProblem.of(
        tuple(x), tuple(w), *settings[:4], dtype=a.dtype, memory_format=memory_format_of(a, b)
    )  # fmt: skip


def _first(signature: tuple[object, ...], again: Callable[[], Any], asked: Hashable, what: str) -> Callable[..., Any]:
    """The function for the first call of this signature; the plan that it runs with is kept for later calls."""
    plans = _plans  # by the time it has run, another GPU may be emulated

    def keep(run: Callable[..., Any]) -> None:
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[signature] = run

    return distrust.first_call(again, keep, asked, what)


def _convolution(
    signature: tuple[object, ...], problem: ConvProblem, direction: Direction, device: torch.device,
    settings: Settings, operands: Operands,
) -> Callable[..., Any]:  # fmt: skip
    again = functools.partial(choose, problem, direction, device, settings, operands)
    return _first(signature, again, Asked(problem, direction, device, operands), f"{direction} of {problem}")


def forward(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, key: str
) -> Callable[..., Any]:
    """The function that computes this call of conv_forward."""
    signature = (
        key,
        input.shape, input.stride(), input.dtype, input.device,
        weight.shape, weight.stride(), weight.dtype, weight.device,
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        None if residual is None else (residual.shape, residual.stride(), residual.dtype, residual.device),
        uses_tf32(input),
    )  # fmt: skip
    run = _plans.get(signature)
    if run is None:
        check_tensors(input=input, weight=weight, bias=bias, residual=residual)
        settings = Settings.decode(key)
        problem = _problem(settings, input.shape, weight.shape, input, weight)
        if bias is not None:
            sizes.check_bias(weight.shape, bias.shape)
        if residual is not None:
            sizes.check_same("residual", residual.shape, problem.output_shape)
        strides = (input.stride(), weight.stride())
        operands = Operands(strides, None if residual is None else residual.stride(), bias is not None, signature[-1])
        run = _convolution(signature, problem, "forward", input.device, settings, operands)
    return run


def grad_input(grad_output: torch.Tensor, weight: torch.Tensor, input_shape: Any, key: str) -> Callable[..., Any]:
    """The function that computes this call of conv_grad_input."""
    signature = (
        "grad_input", key, tuple(input_shape),
        grad_output.shape, grad_output.stride(), grad_output.dtype, grad_output.device,
        weight.shape, weight.stride(), weight.dtype, weight.device,
        uses_tf32(grad_output),
    )  # fmt: skip
    run = _plans.get(signature)
    if run is None:
        check_tensors(grad_output=grad_output, weight=weight)
        settings = Settings.decode(key)
        problem = _problem(settings, input_shape, weight.shape, grad_output, weight)
        sizes.check_same("grad_output", grad_output.shape, problem.output_shape)
        operands = Operands((grad_output.stride(), weight.stride()), tf32=signature[-1])
        run = _convolution(signature, problem, "grad_input", grad_output.device, settings, operands)
    return run


def grad_weight(
    grad_output: torch.Tensor, input: torch.Tensor, weight_shape: Any, with_bias: bool, key: str
) -> Callable[..., Any]:
    """The function that computes this call of conv_grad_weight."""
    signature = (
        "grad_weight", key, with_bias, tuple(weight_shape),
        grad_output.shape, grad_output.stride(), grad_output.dtype, grad_output.device,
        input.shape, input.stride(), input.dtype, input.device,
        uses_tf32(grad_output),
    )  # fmt: skip
    run = _plans.get(signature)
    if run is None:
        check_tensors(grad_output=grad_output, input=input)
        settings = Settings.decode(key)
        problem = _problem(settings, input.shape, weight_shape, grad_output, input)
        sizes.check_same("grad_output", grad_output.shape, problem.output_shape)
        operands = Operands((grad_output.stride(), input.stride()), tf32=signature[-1])
        run = _convolution(signature, problem, "grad_weight", grad_output.device, settings, operands)
    return run


def act_backward(grad_output: torch.Tensor, saved: torch.Tensor, with_bias: bool, key: str) -> Callable[..., Any]:
    """The function that computes this call of act_backward. `saved` is dense in its memory format."""
    signature = (
        "act_backward", key, with_bias, saved.shape, saved.stride(), saved.dtype, saved.device,
        grad_output.shape, grad_output.stride(), grad_output.dtype, grad_output.device,
    )  # fmt: skip
    run = _plans.get(signature)
    if run is None:
        check_tensors(grad_output=grad_output, saved=saved)
        sizes.check_same("grad_output", grad_output.shape, saved.shape)
        settings = Settings.decode(key)
        activation = Activation.parse(settings.activation)
        shape, memory_format, strides = tuple(saved.shape), memory_format_of(saved), grad_output.stride()
        elementwise = Elementwise(shape, saved.dtype, memory_format, strides, with_bias, activation)
        asked = (elementwise, saved.device)
        again = functools.partial(_elementwise, *asked, settings.backend)
        run = _first(signature, again, asked, f"act_backward of {activation.name} on {shape}")
    return run


class _ActBackward(NamedTuple):
    backend: Backend
    run: Callable[..., Any]
    tile: None = None


def _elementwise(elementwise: Elementwise, device: torch.device, choice: str) -> _ActBackward:
    """act_backward by the first backend in the order of `choice` that would take a 1 × 1 depthwise convolution of these
    tensors; if there is none, or no element, by PyTorch's own functions."""
    shape, of = elementwise.shape, numbers(elementwise.dtype, False)
    failed, dropped = distrust.failed(device_name(device)), distrust.dropped((elementwise, device))
    if math.prod(shape) and shape[1]:
        taps = (shape[1], 1, *(1 for _ in shape[2:]))
        problem = ConvProblem.of(shape, taps, groups=shape[1], dtype=elementwise.dtype)
        for name in backends.auto_order(device.type) if choice in backends.CHOICES else (choice,):
            backend = backends.get(name)
            if (name, None) in dropped or distrust.Kernels(name, "act_backward", "act_backward", of) in failed:
                continue
            if not (backend.unavailable() or backend.refuses(problem, "forward", device)):
                return _ActBackward(backend, backend.bind_act_backward(elementwise, device))
    return _ActBackward(backends.get("aten"), by_pytorch(elementwise))
