"""PyTorch's convolution layers, computed by gpuconv: same constructors, parameters, initialisation and state_dict."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpuconv import backends, functional
from gpuconv.activations import Activation


class _Layer:
    """How gpuconv's layers answer tools of PyTorch that look for its own classes: tracing, scripting, quantisation."""

    _instead = "call gpuconv.revert(model) first"

    def _slow_forward(self: Any, *input: Any, **kwargs: Any) -> Any:
        """Called for `forward` within torch.jit.trace, which records PyTorch's convolution: it cannot record ours."""
        with backends.use_backend("aten"):
            return super()._slow_forward(*input, **kwargs)  # type: ignore[misc]

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(f"torch.jit.script cannot compile gpuconv's {type(self).__name__}: {self._instead}")

    @property
    def qconfig(self) -> Any:
        """The setting by which torch.ao.quantization quantises a layer: there is none, and setting one raises."""
        if "qconfig" in vars(self):
            return vars(self)["qconfig"]
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        if value is not None:
            self._refuse_quantising()
        vars(self)["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        vars(self).pop("qconfig", None)

    def _refuse_quantising(self) -> None:  # else it would be left in floating point, without a word
        name = type(self).__name__
        raise RuntimeError(f"torch.ao.quantization cannot quantise gpuconv's {name}: {self._instead}")

    def _check_traced(self, input: Any) -> None:
        """Refuse an input that quantisation by torch.fx traces with: it sets no qconfig."""
        if isinstance(input, torch.fx.Proxy) and type(input.tracer).__module__.startswith("torch.ao."):
            self._refuse_quantising()


class _Convolution(_Layer):
    """Mixed in before one of PyTorch's convolution layers: its forward is `_function`."""

    _function: Callable[..., Tensor]

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None, **fused: Any) -> Tensor:
        if type(input) is not Tensor:
            self._check_traced(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups, **fused)


class _Activated(_Convolution):
    """Mixed in before one of our convolution layers: its forward adds a residual and ends with an activation."""

    _instead = "PyTorch has no such layer; take the model as it was before gpuconv.fuse"

    def __init__(self: Any, *arguments: Any, activation: Any = "relu", **settings: Any) -> None:
        name = Activation.of(activation).encode()
        super().__init__(*arguments, **settings)
        self.activation = name

    def forward(self: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(convolution(input) + residual). residual: of the shape and dtype of the output."""
        fused = {"activation": self.activation, "residual": residual}
        return self._conv_forward(input, self.weight, self.bias, **fused)

    def extra_repr(self: Any) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"  # type: ignore[misc]  # of PyTorch's layer


class _Transposed(_Layer):
    """Mixed in before one of PyTorch's transposed layers: its forward is `_function`."""

    _function: Callable[..., Tensor]

    def forward(self: Any, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The transposed convolution of input, [N, C, *size] or [C, *size].

        output_size: one of the sizes, [*size] or with batch and channels, that the convolution would reduce to input's.
        """
        if type(input) is not Tensor:
            self._check_traced(input)
        ndim = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, ndim, self.dilation
        )
        return self._function(
            input, self.weight, self.bias, self.stride, self.padding, tuple(output_padding), self.groups, self.dilation
        )


class Conv1d(_Convolution, torch.nn.Conv1d):
    """`torch.nn.Conv1d` whose forward is `gpuconv.functional.conv1d`."""

    _function = staticmethod(functional.conv1d)


class Conv2d(_Convolution, torch.nn.Conv2d):
    """`torch.nn.Conv2d` whose forward is `gpuconv.functional.conv2d`."""

    _function = staticmethod(functional.conv2d)


class Conv3d(_Convolution, torch.nn.Conv3d):
    """`torch.nn.Conv3d` whose forward is `gpuconv.functional.conv3d`."""

    _function = staticmethod(functional.conv3d)


class ConvTranspose1d(_Transposed, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` whose forward is `gpuconv.functional.conv_transpose1d`."""

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_Transposed, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` whose forward is `gpuconv.functional.conv_transpose2d`."""

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(_Transposed, torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` whose forward is `gpuconv.functional.conv_transpose3d`."""

    _function = staticmethod(functional.conv_transpose3d)


class ConvAct1d(_Activated, Conv1d):
    """`ConvAct2d` on one axis."""

    _function = staticmethod(functional.conv1d_act)


class ConvAct2d(_Activated, Conv2d):
    """activation(Conv2d(input) + residual) in one kernel, with the arguments, parameters and state_dict of `Conv2d`.

    activation: a name of `gpuconv.functional.conv2d_act`, or PyTorch's module or function for it (`torch.nn.SiLU()`).
    Raises ValueError for one that is not known, TypeError for anything else.
    """

    _function = staticmethod(functional.conv2d_act)


class ConvAct3d(_Activated, Conv3d):
    """`ConvAct2d` on three axes."""

    _function = staticmethod(functional.conv3d_act)


# The lazy layers learn in_channels from their first input and are the layers above from then on. PyTorch declares the
# types of their parameters at odds with those of the layers, and so must these.


class LazyConv1d(_Convolution, torch.nn.LazyConv1d):  # type: ignore[misc]
    """`torch.nn.LazyConv1d` that becomes a `Conv1d`."""

    cls_to_become = Conv1d


class LazyConv2d(_Convolution, torch.nn.LazyConv2d):  # type: ignore[misc]
    """`torch.nn.LazyConv2d` that becomes a `Conv2d`."""

    cls_to_become = Conv2d


class LazyConv3d(_Convolution, torch.nn.LazyConv3d):  # type: ignore[misc]
    """`torch.nn.LazyConv3d` that becomes a `Conv3d`."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(_Transposed, torch.nn.LazyConvTranspose1d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose1d` that becomes a `ConvTranspose1d`."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_Transposed, torch.nn.LazyConvTranspose2d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose2d` that becomes a `ConvTranspose2d`."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_Transposed, torch.nn.LazyConvTranspose3d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose3d` that becomes a `ConvTranspose3d`."""

    cls_to_become = ConvTranspose3d
