"""A model watched at one of its layers, every convolution in it computed by gpuconv.

The model comes out as it went in. Meanwhile it is in evaluation mode, its convolutions are PyTorch's calls, which modes
can see, routed to ours (`gpuconv.patch`), and it runs no further than the layer that was asked for. What a model's own
code calls in `gpuconv.functional` is computed but not seen.
"""

import dataclasses
import difflib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpuconv.dropin import patch, revert
from gpuconv.see import pictures
from gpuconv.sizes import normalize_padding, per_axis
from gpuconv.train.config import UserError

_CONV2D = {torch.conv2d}  # torch.nn.functional.conv2d is the same object
_CONV2D_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of conv2d as a layer made it, whatever the layer did to its input and filters before."""

    input: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C/groups, R, S]
    bias: Tensor | None  # [K]
    output: Tensor  # [N, K, P, Q]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # (low, high) for each axis
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, output: Tensor, *args: Any, **kwargs: Any) -> "Call":
        """The call conv2d(*args, **kwargs) that gave `output`."""
        given = dict(zip(_CONV2D_ARGUMENTS, args, strict=False)) | kwargs
        weight = given["weight"].detach()
        stride, dilation = (per_axis(name, given.get(name, 1), 2) for name in ("stride", "dilation"))
        padding = normalize_padding(given.get("padding", 0), weight.shape[2:], stride, dilation)
        bias = given.get("bias")
        input, output = (t.detach().unsqueeze(0) if t.dim() == 3 else t.detach() for t in (given["input"], output))
        return cls(
            input, weight, None if bias is None else bias.detach(), output, stride, padding, dilation,
            given.get("groups", 1),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Maps:
    """What a layer makes of an image: values [K, P, Q], a map for each channel."""

    values: Tensor
    layer: str

    def figure(self) -> Any:
        """A matplotlib figure of all maps on one symmetric scale."""
        return pictures.figure(list(self.values))


@dataclasses.dataclass(frozen=True)
class Filters:
    """The filters of a layer: weight [K, C/groups, R, S]."""

    weight: Tensor
    layer: str

    def figure(self) -> Any:
        """A matplotlib figure: filters of three channels as colours around grey, others channel by channel."""
        return pictures.figure(pictures.filter_tiles(self.weight))


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The 2-D convolution layers of a model by name, in its order. Raises UserError where it has none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise UserError(f"this model ({type(model).__name__}) has no 2-D convolution: there is nothing to see")
    return found


def channels_of(model: nn.Module) -> int:
    """The channels of the images that a model takes, as its first convolution has them."""
    return next(iter(convolutions(model).values())).in_channels


def find(model: nn.Module, layer: str) -> nn.Module:
    """The module of that name. Raises UserError, with the nearest names, where there is none."""
    modules = dict(model.named_modules())
    if layer not in modules:
        names = [name for name in modules if name]
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or list(convolutions(model))[:3]
        raise UserError(f"there is no layer {layer!r}; the nearest names are {', '.join(near)}")
    return modules[layer]


def activation_maps(model: nn.Module, image: Tensor, layer: str) -> Maps:
    """What `layer` gives for an image, [C, H, W] or [1, C, H, W], in the form that the model takes.

    Raises UserError for a layer that is not there, is not reached, or whose output is no map.
    """
    with torch.no_grad():
        output, _ = run(model, image, layer)
    return Maps(maps_of(output, layer)[0], layer)


def filters(model: nn.Module, layer: str) -> Filters:
    """The filters of a convolution layer. Raises UserError for one that is not there or is no 2-D convolution."""
    module = find(model, layer)
    if not isinstance(module, nn.Conv2d):
        raise UserError(f"layer {layer!r} is a {type(module).__name__} and has no filters; see a convolution layer")
    return Filters(module.weight.detach(), layer)


def first_call(model: nn.Module, image: Tensor, layer: str) -> Call:
    """The first convolution that `layer` computes for an image. Raises UserError where it computes none."""
    with torch.no_grad():
        _, calls = run(model, image, layer)
    if not calls:
        raise UserError(f"layer {layer!r} computes no 2-D convolution; see a convolution layer")
    return calls[0]


def batch_of(image: Tensor) -> Tensor:
    """`image`, [C, H, W] or [N, C, H, W], as the latter. Raises UserError for anything else."""
    if image.dim() not in (3, 4):
        raise UserError(f"image must be [C, H, W] or [N, C, H, W], but got {list(image.shape)}")
    return image if image.dim() == 4 else image.unsqueeze(0)


def maps_of(output: Any, layer: str) -> Tensor:
    """A layer's output if it is [N, K, P, Q]; UserError otherwise."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"layer {layer!r} gives {shape}, no maps [N, K, P, Q]; see a layer before that")
    return output


class _Reached(Exception):
    """The layer has given its output; the rest of the model need not run."""


def run(model: nn.Module, image: Tensor, layer: str, *modes: TorchFunctionMode) -> tuple[Any, list[Call]]:
    """What `layer` gives the first time, and the convolutions within it. `modes` see every function called.

    Raises UserError where the layer is not there or not reached, or the model cannot take the image.
    """
    module, images = find(model, layer), batch_of(image)
    recorder, outputs = _Recorder(), []

    def enter(*_: Any) -> None:
        recorder.on = True

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        recorder.on = False
        outputs.append(output)
        raise _Reached

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with evaluating(model), ExitStack() as stack:
            for mode in (*modes, recorder):
                stack.enter_context(mode)
            model(images)
    except _Reached:
        pass
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise UserError(f"the model cannot take an image {list(images.shape)}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise UserError(f"layer {layer!r} is not used when the model sees an image")
    return outputs[0], recorder.calls


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """With the model in evaluation mode and its convolutions computed by ours; both as before afterwards."""
    before = [(module, module.training, type(module)) for module in model.modules()]
    revert(model.eval())
    try:
        with patch():
            yield
    finally:
        for module, training, kind in before:
            module.training = training
            if type(module) is not kind:
                module.__class__ = kind


class _Recorder(TorchFunctionMode):
    """Notes the calls of conv2d while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.on and func in _CONV2D:
            self.calls.append(Call.of(result, *args, **(kwargs or {})))
        return result
