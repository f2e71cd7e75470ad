"""Thirty layers of real networks, by name: what kernels are compiled and timed for."""

import torch

from gpuconv.problem import ConvProblem

# channels in, filters, input size, filter size, settings
_LAYERS = {
    "resnet50-stem": (3, 64, 224, 7, {"stride": 2, "padding": 3}),
    "resnet50-56-reduce": (256, 64, 56, 1, {}),
    "resnet50-56-3x3": (64, 64, 56, 3, {"padding": 1}),
    "resnet50-56-expand": (64, 256, 56, 1, {}),
    "resnet50-28-3x3-stride2": (128, 128, 56, 3, {"stride": 2, "padding": 1}),
    "resnet50-28-shortcut": (256, 512, 56, 1, {"stride": 2}),
    "resnet50-14-3x3": (256, 256, 14, 3, {"padding": 1}),
    "resnet50-14-expand": (256, 1024, 14, 1, {}),
    "resnet50-7-3x3": (512, 512, 7, 3, {"padding": 1}),
    "resnet50-7-reduce": (2048, 512, 7, 1, {}),
    "resnet18-28-3x3": (128, 128, 28, 3, {"padding": 1}),
    "resnet18-14-3x3-stride2": (128, 256, 28, 3, {"stride": 2, "padding": 1}),
    "vgg-first": (3, 64, 224, 3, {"padding": 1}),
    "vgg-112-3x3": (64, 128, 112, 3, {"padding": 1}),
    "vgg-28-3x3": (512, 512, 28, 3, {"padding": 1}),
    "mobilenetv2-stem": (3, 32, 224, 3, {"stride": 2, "padding": 1}),
    "mobilenetv2-expand": (24, 144, 56, 1, {}),
    "mobilenetv2-depthwise-stride2": (144, 144, 56, 3, {"stride": 2, "padding": 1, "groups": 144}),
    "mobilenetv2-project": (192, 64, 14, 1, {}),
    "efficientnet-depthwise-5x5": (240, 240, 28, 5, {"padding": 2, "groups": 240}),
    "efficientnet-project": (672, 112, 14, 1, {}),
    "convnext-patchify": (3, 96, 224, 4, {"stride": 4}),
    "convnext-depthwise-7x7": (96, 96, 56, 7, {"padding": 3, "groups": 96}),
    "convnext-downsample": (96, 192, 56, 2, {"stride": 2}),
    "resnext50-56-groups32": (128, 128, 56, 3, {"padding": 1, "groups": 32}),
    "resnext50-14-groups32": (512, 512, 14, 3, {"padding": 1, "groups": 32}),
    "unet-first": (1, 64, 128, 3, {}),
    "unet-decoder": (128, 64, 128, 3, {"padding": 1}),
    "deeplab-dilated": (512, 256, 28, 3, {"padding": 12, "dilation": 12}),
    "segmentation-head": (256, 21, 56, 1, {}),
}


def layer(
    name: str,
    batch: int = 32,
    dtype: torch.dtype = torch.float16,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> ConvProblem:
    """The layer called `name` with a batch of images."""
    c, k, size, filter_size, settings = _LAYERS[name]
    return ConvProblem.of(
        (batch, c, size, size),
        (k, c // settings.get("groups", 1), filter_size, filter_size),
        **settings,
        dtype=dtype,
        memory_format=memory_format,
    )


NAMES = tuple(_LAYERS)
