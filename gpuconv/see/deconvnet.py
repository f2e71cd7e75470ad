"""From a feature back to the pixels that made it: Zeiler and Fergus's deconvnet, and receptive fields.

Both are a backward pass in which some functions have another derivative, so they are PyTorch's backward pass over
gpuconv's convolutions: a convolution goes back by `grad_input`, which is the convolution with transposed filters. They
work for any network, branches included.

    function         forward                      on the way back
    convolution      forward                      grad_input (the bias plays no part)
    max-pooling      notes where each maximum     puts each value where its switch says, zeros elsewhere; where windows
                     was: the switches            overlap, sums
    ReLU, GELU, …    itself                       ReLU of what comes back, whatever the forward value was
    anything else    itself                       its derivative
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gpuconv.errors import UserError
from gpuconv.functional import conv2d
from gpuconv.see import rendering
from gpuconv.see.input_images import Image
from gpuconv.see.layers import KeepsGraph, channels_of, images_of, maps_of, run_on_tensor
from gpuconv.sizes import per_axis

_RECTIFIERS: set[Any] = {
    torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu,
    F.elu_, F.celu, F.celu_, F.selu, F.selu_, F.hardtanh, F.hardtanh_, F.gelu, F.silu, F.mish, F.hardswish, F.softplus,
    F.prelu, torch.prelu, Tensor.prelu, F.rrelu, F.rrelu_,
}  # fmt: skip
_IN_PLACE: set[Any] = {
    torch.relu_, Tensor.relu_, F.relu_, F.leaky_relu_, F.elu_, F.celu_, F.selu_, F.hardtanh_, F.rrelu_,
}  # fmt: skip
_MAX_POOLS: set[Any] = {F.max_pool2d, torch.max_pool2d}
_NORMALISATIONS: set[Any] = {
    F.batch_norm, torch.batch_norm, F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.instance_norm,
    F.local_response_norm, F.normalize, F.dropout, F.dropout2d, F.rms_norm,
}  # fmt: skip
_WEIGHTED: set[Any] = {
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    F.linear,
}  # fmt: skip
_CASTS: set[Any] = {Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.half, Tensor.bfloat16}
_POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


@dataclasses.dataclass(frozen=True)
class Projection:
    """A feature's activation, projected back to the pixels."""

    values: Tensor  # [C, H, W]
    at: tuple[int, int, int]  # channel, row, column of the activation in the layer's output
    activation: float
    switches: tuple[Tensor, ...]  # of each max-pooling on the way, as torch.max_pool2d_with_indices gives them

    def figure(self) -> Any:
        """A matplotlib figure on a symmetric scale; three channels as colours around grey."""
        return rendering.figure(rendering.filter_tiles(self.values[None]))


def deconvnet(
    model: nn.Module, image: Image, layer: str, channel: int | None = None, at: tuple[int, int] | None = None
) -> Projection:
    """The pixels of an image that made a channel of a layer respond, all other activations set to 0.

    image: as `activation_maps` takes it. channel: by default the one with the greatest activation. at: (row, column) in
    its map; by default where it is greatest. Raises UserError for a layer, channel or place that is not there, or a
    layer from which there is no way back to the pixels.
    """
    pixels = images_of(model, image).detach().clone().requires_grad_()
    mode = _DeconvnetMode()
    with torch.enable_grad():
        output, _ = run_on_tensor(model, pixels * 1, layer, mode, KeepsGraph())  # × 1: in place may not work on a leaf
    maps = maps_of(output, layer)[0]
    strongest = int(maps.flatten(1).amax(1).argmax()) if channel is None else channel
    if not 0 <= strongest < len(maps):
        raise UserError(f"channel must be from 0 to {len(maps) - 1} in layer {layer!r}, but got {channel}")
    row, column = at or divmod(int(maps[strongest].argmax()), maps.shape[2])
    if not (0 <= row < maps.shape[1] and 0 <= column < maps.shape[2]):
        raise UserError(f"at must lie within the map {list(maps.shape[1:])}, but got {(row, column)}")
    activation = maps[strongest, row, column]
    signal = torch.zeros_like(maps)
    signal[strongest, row, column] = activation.detach()
    values = _gradient_to_pixels(maps, pixels, signal, layer)
    return Projection(values[0], (strongest, row, column), float(activation.detach()), tuple(mode.switches))


def _gradient_to_pixels(output: Tensor, pixels: Tensor, signal: Tensor | None, layer: str) -> Tensor:
    """The gradient of a layer's output with respect to the pixels. Raises UserError where they are not connected."""
    try:
        return torch.autograd.grad(output, pixels, signal)[0]
    except RuntimeError as error:  # detached, in inference mode, or behind checkpointed blocks of the old kind
        said = " ".join(str(error).split())[:200]
        raise UserError(f"layer {layer!r} cannot be followed back to the pixels: {said}") from error


class _DeconvnetMode(TorchFunctionMode):
    """Gives rectifiers and max-pooling the derivative that the deconvnet has for them."""

    def __init__(self) -> None:
        super().__init__()
        self.switches: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RECTIFIERS:
            input, kwargs = _split_input(args, kwargs)
            in_place = kwargs.pop("inplace", False) or func in _IN_PLACE
            result = _Rectifier.apply(input, lambda x: func(x, *args[1:], **kwargs))
            return input.copy_(result) if in_place else result
        if func in _MAX_POOLS:
            given = dict(zip(_POOL_ARGUMENTS, args, strict=False)) | kwargs
            both = given.pop("return_indices", False)
            values, switches = _MaxPool.apply(given.pop("input"), given)
            self.switches.append(switches)
            return (values, switches) if both else values
        return func(*args, **kwargs)


def _split_input(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    return (args[0] if args else kwargs["input"]), rest


class _Rectifier(torch.autograd.Function):
    """Any rectifier forward; backward, the ReLU of the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, rectifier: Callable[[Tensor], Tensor]) -> Tensor:
        return rectifier(input.clone())

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        return signal.clamp(min=0), None


class _MaxPool(torch.autograd.Function):
    """Max-pooling with its switches forward; backward, unpooling by them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, settings: dict[str, Any]) -> Any:
        values, switches = F.max_pool2d(input, **settings, return_indices=True)
        ctx.save_for_backward(switches)
        ctx.input_shape = input.shape
        ctx.mark_non_differentiable(switches)
        return values, switches

    @staticmethod
    def backward(ctx: Any, signal: Tensor, _: Any) -> Any:
        (switches,) = ctx.saved_tensors
        return unpool(signal, switches, ctx.input_shape), None


def unpool(signal: Tensor, switches: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`signal` [N, C, P, Q] put where `switches` say in zeros of `shape` [N, C, H, W]."""
    flat = signal.new_zeros(*shape[:2], shape[2] * shape[3])
    return flat.scatter_add(2, switches.flatten(2), signal.flatten(2)).view(shape)


# ---- receptive fields -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The pixels of an image [H, W] that one output of a layer depends on."""

    mask: Tensor  # [H, W] bool: False in the holes that dilation leaves
    at: tuple[int, int]  # of the output
    rows: tuple[int, int]  # first, one past the last
    columns: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), smaller where the image ends."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def figure(self) -> Any:
        """A matplotlib figure of the mask."""
        return rendering.figure([self.mask.float()])


def receptive_field(
    model: nn.Module, size: tuple[int, int], layer: str, at: tuple[int, int] | None = None, channels: int | None = None
) -> ReceptiveField:
    """The pixels of an image of `size` (H, W) that output `at` (row, column; by default the middle) depends on.

    Filters are replaced by positive ones, max-pooling by a mean, and rectifiers and normalisation are skipped, so that
    no pixel is hidden by the values of weights or pixels. channels: of the image; by default those of the first
    convolution. Raises UserError for a layer or a place that is not there.
    """
    if channels is None:
        channels = channels_of(model)
    pixels = torch.ones(1, channels, *size, dtype=torch.float64, device=_device_of(model), requires_grad=True)
    with torch.enable_grad():
        output, _ = run_on_tensor(model, pixels * 1, layer, _DependenceMode(), KeepsGraph())
    maps = maps_of(output, layer)
    row, column = at or (maps.shape[2] // 2, maps.shape[3] // 2)
    if not (0 <= row < maps.shape[2] and 0 <= column < maps.shape[3]):
        raise UserError(f"at must lie within the map {list(maps.shape[2:])}, but got {(row, column)}")
    values = _gradient_to_pixels(maps[0, :, row, column].sum(), pixels, None, layer)
    mask = (values[0] != 0).any(0)
    rows, columns = mask.any(1).nonzero()[:, 0].tolist(), mask.any(0).nonzero()[:, 0].tolist()
    if not rows:
        raise UserError(f"output {(row, column)} of layer {layer!r} depends on no pixel")
    return ReceptiveField(mask, (row, column), (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1))


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class _DependenceMode(TorchFunctionMode):
    """Makes every output depend on its inputs with a positive factor, so that no dependence is lost.

    It computes in float64 whatever the model's type is: through many layers the least share of a pixel is too small for
    float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_in_float64, (args, kwargs or {}))
        input = args[0] if args else kwargs.get("input")
        if func in _WEIGHTED:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            even = torch.full_like(weight, 1 / weight[0].numel(), dtype=torch.float64)
            rest = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}
            return func(input, even, None, *args[3:], **rest)
        if func in _NORMALISATIONS or func in _RECTIFIERS:
            return input
        if func in _MAX_POOLS:
            given = dict(zip(_POOL_ARGUMENTS, args, strict=False)) | kwargs
            given.pop("return_indices", None)
            return _mean_pool(**given)
        result = func(*args, **kwargs)
        if func in _CASTS and result.is_floating_point() and input.is_floating_point():
            return input.to(result.device)
        return tree_map(_in_float64, result)


def _in_float64(value: Any) -> Any:
    """A tensor of floats as float64; anything else as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
        return value
    return (value.detach() if value.is_leaf else value).double()


def _mean_pool(input: Tensor, **settings: Any) -> Tensor:
    """The sum over the windows of a max-pooling, as a convolution of each channel with a filter of ones."""
    shape = F.max_pool2d(input, **settings).shape
    size = per_axis("kernel_size", settings["kernel_size"], 2)
    stride = per_axis("stride", settings.get("stride") or size, 2)
    padding = per_axis("padding", settings.get("padding", 0), 2)
    beyond = [s - 1 for s in stride] if settings.get("ceil_mode", False) else [0, 0]  # windows that are cut off
    padded = F.pad(input, (padding[1], padding[1] + beyond[1], padding[0], padding[0] + beyond[0]))
    ones = input.new_full((input.shape[1], 1, *size), 1 / (size[0] * size[1]))
    sums = conv2d(padded, ones, stride=stride, dilation=settings.get("dilation", 1), groups=input.shape[1])
    return sums[..., : shape[-2], : shape[-1]]
