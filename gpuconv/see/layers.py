"""A model run up to one of its layers, every convolution in it computed by gpuconv and recorded.

The model is not changed. While it runs it is in evaluation mode, and its convolutions are PyTorch's functions, which
modes can see, routed to gpuconv's (`gpuconv.patch`). What a model's own code calls in `gpuconv.functional` is computed
but not recorded.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gpuconv.activations import Activation, activate_tensor
from gpuconv.errors import UserError
from gpuconv.models.convert import patch, revert
from gpuconv.nn import _Activated
from gpuconv.see import rendering
from gpuconv.see.input_images import Image, tensor_of
from gpuconv.sizes import normalize_padding, per_axis
from gpuconv.text import did_you_mean, first_few

_CONV2D = {torch.conv2d}  # torch.nn.functional.conv2d is the same object
_CONV2D_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of conv2d within a layer, with the tensors that conv2d got."""

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
    """The output of a layer for an image: values [K, P, Q], a map for each channel."""

    values: Tensor
    layer: str

    def figure(self) -> Any:
        """A matplotlib figure of all maps on one symmetric scale."""
        return rendering.figure(list(self.values))


@dataclasses.dataclass(frozen=True)
class Filters:
    """The filters of a layer: weight [K, C/groups, R, S]."""

    weight: Tensor
    layer: str

    def figure(self) -> Any:
        """A matplotlib figure: filters of three channels as colours around grey, others channel by channel."""
        return rendering.figure(rendering.filter_tiles(self.weight))


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The 2-D convolution layers of a model by name, in the model's order. Raises UserError where it has none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise UserError(f"this model ({type(model).__name__}) has no 2-D convolution: there is nothing to see")
    return found


def channels_of(model: nn.Module) -> int:
    """The channels of the images that a model takes: those of its first convolution."""
    return next(iter(convolutions(model).values())).in_channels


def find_module(model: nn.Module, layer: str) -> nn.Module:
    """The module called `layer`. Raises UserError, with similar names, where there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if layer not in modules:
        near = did_you_mean(layer, [name for name in modules if name])
        raise UserError(f"there is no layer {layer!r}{near or f'; there are {first_few(list(convolutions(model)))}'}")
    return modules[layer]


def activation_maps(model: nn.Module, image: Image, layer: str) -> Maps:
    """The output of `layer` for an image.

    image: a tensor, [C, H, W] or [1, C, H, W], in the form that the model takes; or a path, an image of Pillow or an
    array, [C, H, W] or [H, W, C], with values 0 … 255 or 0 … 1, which becomes a tensor from 0 to 1 and is not
    normalised. Raises UserError for what is no image, and for a layer that is not there, is not reached, or whose
    output is no map.
    """
    with torch.no_grad():
        output, _ = run(model, image, layer)
    return Maps(maps_of(output, layer)[0], layer)


def filters(model: nn.Module, layer: str) -> Filters:
    """The filters of a convolution layer. Raises UserError for one that is not there or is no 2-D convolution."""
    module = find_module(model, layer)
    if not isinstance(module, nn.Conv2d):
        raise UserError(f"layer {layer!r} is a {type(module).__name__} and has no filters; see a convolution layer")
    _check_seeable(model)
    with evaluating(model):  # a weight that is computed may be another each time
        return Filters(module.weight.detach(), layer)


def first_call(model: nn.Module, image: Image, layer: str) -> Call:
    """The first convolution that `layer` computes for an image. Raises UserError where it computes none."""
    with torch.no_grad():
        _, calls = run(model, image, layer)
    if not calls:
        raise UserError(f"layer {layer!r} computes no 2-D convolution; see a convolution layer")
    return calls[0]


def images_of(model: nn.Module, image: Image) -> Tensor:
    """`image` as [N, C, H, W] of the type and on the device of the model. Raises UserError for what is no image."""
    found = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    images = tensor_of(image, found[0] if found else None)
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return images if weight is None or images.is_complex() else images.to(weight.device, weight.dtype)


def maps_of(output: Any, layer: str) -> Tensor:
    """A layer's output if it is [N, K, P, Q]; UserError otherwise."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"layer {layer!r} gives {shape}, no maps [N, K, P, Q]; see a layer before that")
    return output


class _LayerReached(Exception):
    """Ends the model's forward pass once the layer has its output."""


def run(model: nn.Module, image: Image, layer: str) -> tuple[Any, list[Call]]:
    """The output of `layer` for images the first time that it is used, and the convolutions within it.

    Raises UserError where the layer is not there or not reached, or the model cannot take the image.
    """
    return run_on_tensor(model, images_of(model, image), layer)


def run_on_tensor(model: nn.Module, images: Tensor, layer: str, *modes: TorchFunctionMode) -> tuple[Any, list[Call]]:
    """`run` for images [N, C, H, W] that are passed to the model unchanged; `modes` see every function called."""
    module = find_module(model, layer)
    _check_seeable(model)
    recorder, outputs = _Recorder(), []

    def enter(*_: Any) -> None:
        recorder.on = True

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        recorder.on = False
        outputs.append(output)
        raise _LayerReached

    try:
        with evaluating(model), ExitStack() as stack:
            for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
                stack.callback(handle.remove)
            for mode in (*modes, recorder):
                stack.enter_context(mode)
            model(images)
    except _LayerReached:
        pass
    except Exception as error:  # whatever a model's code raises when it is given something else than it expects
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"the model cannot take an image {list(images.shape)}: {said}") from error
    if not outputs:
        raise UserError(f"layer {layer!r} is not used when the model sees an image")
    return outputs[0], recorder.calls


def _check_seeable(model: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError("TorchScript cannot be looked into: see the model that it was made from")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UserError(f"{name} has no shape yet: let the model see an image once, model(image)")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, its convolutions computed by gpuconv, while the block runs.

    Afterwards everything is as before: modes, classes, buffers, attributes, the state of random numbers.
    """
    before = [(module, type(module), vars(module).copy(), module._buffers.copy()) for module in model.modules()]
    kept = [(b, b._version, b.clone()) for b in model.buffers() if not b.is_inference()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        try:
            revert(model.eval())
            for module in model.modules():
                if isinstance(module, _Activated):
                    vars(module)["forward"] = functools.partial(_unfused_forward, module)
            with patch(), _uncompiled():
                yield
        finally:
            for module, kind, attributes, buffers in before:
                module.__class__ = kind
                vars(module).clear()
                vars(module).update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for buffer, version, value in kept:
                    if buffer._version != version:
                        buffer.copy_(value)


def _unfused_forward(layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
    """The output of a layer with a fused activation, by separate functions, which modes can see."""
    plain = next(cls for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, cls))
    y = plain._conv_forward(layer, input, layer.weight, layer.bias)
    return activate_tensor(Activation.parse(layer.activation), y if residual is None else y + residual)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled parts of a model run eagerly: modes and hooks would have them compiled again."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class KeepsGraph(TorchFunctionMode):
    """Records the graph of every function called, within `torch.no_grad` and checkpointed blocks too.

    A checkpointed block would be computed again in the backward pass, outside of the modes: what it would discard is
    kept.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        from_pixels = any(t.requires_grad and not t.is_leaf for t in inputs)
        if not from_pixels:
            return func(*args, **kwargs)
        with torch.enable_grad(), saved_tensors_hooks(_identity, _identity):
            return func(*args, **kwargs)


def _identity(tensor: Tensor) -> Tensor:
    return tensor


class _Recorder(TorchFunctionMode):
    """Records the calls of conv2d while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.on and func in _CONV2D:
            self.calls.append(Call.of(result, *args, **(kwargs or {})))
        return result
