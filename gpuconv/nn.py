"""PyTorch's convolution layers, computed by gpuconv: same constructor, parameters, initialisation, state_dict."""

import torch
from torch import Tensor

from gpuconv import functional


class Conv1d(torch.nn.Conv1d):
    """`torch.nn.Conv1d` whose forward is `gpuconv.functional.conv1d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input, padding = _padded(self, input), 0
        return functional.conv1d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` whose forward is `gpuconv.functional.conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input, padding = _padded(self, input), 0
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


def _padded(module: torch.nn.modules.conv._ConvNd, input: Tensor) -> Tensor:
    return torch.nn.functional.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode)
