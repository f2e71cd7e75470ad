"""Suites of real layers, by name: what kernels are compiled, planned, tuned and timed for.

    layer("resnet50.conv3_3x3")                                     # with the suite's batch, float16, contiguous
    layer("unet.up4", batch=2, dtype=torch.float32, memory_format=torch.channels_last)

A layer is [channels → filters, input size, filter size, settings]. A transposed layer is given as the convolution
beneath it, whose grad_input is that layer's forward pass (`Layer.transposed`). Shapes that a network has twice are
listed once. Batches are those of the source where it names one, else ours.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gpuconv.problem import CHANNELS_LAST, ConvProblem
from gpuconv.text import did_you_mean


class Layer(NamedTuple):
    """One convolution without its batch, element type and layout."""

    channels: int
    filters: int
    size: tuple[int, ...]  # of the input
    filter_size: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    transposed: bool = False
    batch: int | None = None  # where it is not the suite's


class Suite(NamedTuple):
    """Layers of one network or one collection, by name, and where their shapes are from."""

    name: str
    source: str
    batch: int
    layers: dict[str, Layer]


def _conv(c: int, k: int, size: int | Sequence[int], r: int | Sequence[int], ndim: int = 2, **settings: Any) -> Layer:
    """c → k channels; an int for size or r stands for all axes."""
    sizes = (size,) * ndim if isinstance(size, int) else tuple(size)
    return Layer(c, k, sizes, (r,) * len(sizes) if isinstance(r, int) else tuple(r), **settings)


def _same(c: int, k: int, size: int, r: int = 3, **settings: Any) -> Layer:
    """With the padding that keeps the size at stride 1: r // 2."""
    return _conv(c, k, size, r, padding=r // 2, **settings)


def _depthwise(c: int, size: int, r: int = 3, **settings: Any) -> Layer:
    return _same(c, c, size, r, groups=c, **settings)


def _up(c: int, k: int, size: int, r: int = 2, stride: int = 2) -> Layer:
    """A transposed layer, c → k channels on an input of `size`, as the convolution beneath it."""
    return _conv(k, c, (size - 1) * stride + r, r, stride=stride, transposed=True)


def _bottlenecks(groups: int = 1, width: int = 64) -> dict[str, Layer]:
    """Stages conv2 to conv5 of a ResNet of 50 layers on 224×224 images; the stride is in the 3×3."""
    found: dict[str, Layer] = {}
    for i, size in enumerate((56, 28, 14, 7)):
        inner, out, before, name = width << i, 256 << i, max(64, 128 << i) if i else 64, f"conv{i + 2}"
        larger, stride = (size * 2, 2) if i else (size, 1)
        found[f"{name}_reduce_first"] = _same(before, inner, larger, 1)
        if i:
            found[f"{name}_3x3_stride2"] = _same(inner, inner, larger, 3, stride=2, groups=groups)
        found[f"{name}_3x3"] = _same(inner, inner, size, 3, groups=groups)
        found[f"{name}_expand"] = _same(inner, out, size, 1)
        found[f"{name}_shortcut"] = _same(before, out, larger, 1, stride=stride)
        found[f"{name}_reduce"] = _same(out, inner, size, 1)
    return found


def _basic_blocks() -> dict[str, Layer]:
    """Stages conv2 to conv5 of ResNet-18."""
    found = {"conv2_3x3": _same(64, 64, 56)}
    for i, size in enumerate((28, 14, 7)):
        c, k, name = 64 << i, 128 << i, f"conv{i + 3}"
        found[f"{name}_3x3_stride2"] = _same(c, k, size * 2, stride=2)
        found[f"{name}_shortcut"] = _same(c, k, size * 2, 1, stride=2)
        found[f"{name}_3x3"] = _same(k, k, size)
    return found


def _airbench(a: int, b: int, c: int) -> dict[str, Layer]:
    """A whitening 2×2 layer without padding, then three groups; pooling between the layers of a group."""
    return {
        "whiten": _conv(3, 24, 32, 2),
        "group1_conv1": _same(24, a, 31),
        "group1_conv2": _same(a, a, 15),
        "group2_conv1": _same(a, b, 15),
        "group2_conv2": _same(b, b, 7),
        "group3_conv1": _same(b, c, 7),
        "group3_conv2": _same(c, c, 3),
    }


# input height, width, channels, filters, filter height, width, padding, stride, batches; in DeepBench's order
_DEEPBENCH = (
    (161, 700, 1, 32, 5, 20, 0, 2, (4, 8, 16, 32)), (79, 341, 32, 32, 5, 10, 0, 2, (4, 8, 16, 32)),
    (48, 480, 1, 16, 3, 3, 1, 1, (16,)), (24, 240, 16, 32, 3, 3, 1, 1, (16,)),
    (12, 120, 32, 64, 3, 3, 1, 1, (16,)), (6, 60, 64, 128, 3, 3, 1, 1, (16,)),
    (108, 108, 3, 64, 3, 3, 1, 2, (8,)), (54, 54, 64, 64, 3, 3, 1, 1, (8,)),
    (27, 27, 128, 128, 3, 3, 1, 1, (8,)), (14, 14, 128, 256, 3, 3, 1, 1, (8,)),
    (7, 7, 256, 512, 3, 3, 1, 1, (8,)), (224, 224, 3, 64, 3, 3, 1, 1, (8, 16)),
    (112, 112, 64, 128, 3, 3, 1, 1, (8, 16)), (56, 56, 128, 256, 3, 3, 1, 1, (8, 16)),
    (28, 28, 256, 512, 3, 3, 1, 1, (8, 16)), (14, 14, 512, 512, 3, 3, 1, 1, (8, 16)),
    (7, 7, 512, 512, 3, 3, 1, 1, (8, 16)), (224, 224, 3, 64, 7, 7, 3, 2, (16,)),
    (28, 28, 192, 32, 5, 5, 2, 1, (16,)), (28, 28, 192, 64, 1, 1, 0, 1, (16,)),
    (14, 14, 512, 48, 5, 5, 2, 1, (16,)), (14, 14, 512, 192, 1, 1, 0, 1, (16,)),
    (7, 7, 832, 256, 1, 1, 0, 1, (16,)), (7, 7, 832, 128, 5, 5, 2, 1, (16,)),
    (56, 56, 64, 64, 3, 3, 1, 1, (8, 16)), (56, 56, 64, 256, 1, 1, 0, 2, (8, 16)),
    (28, 28, 128, 128, 3, 3, 1, 1, (8, 16)), (28, 28, 128, 512, 1, 1, 0, 2, (8, 16)),
    (14, 14, 256, 256, 1, 1, 0, 1, (8, 16)), (14, 14, 256, 256, 3, 3, 1, 1, (8, 16)),
    (14, 14, 256, 1024, 1, 1, 0, 2, (8, 16)), (7, 7, 512, 512, 1, 1, 0, 1, (8, 16)),
    (7, 7, 2048, 512, 1, 1, 3, 2, (8, 16)), (161, 700, 1, 64, 5, 5, 1, 2, (16,)),
    (80, 350, 64, 64, 3, 3, 1, 1, (16,)), (80, 350, 64, 128, 5, 5, 1, 2, (16,)),
    (40, 175, 128, 128, 3, 3, 1, 1, (16,)), (40, 175, 128, 256, 5, 5, 1, 2, (16,)),
    (20, 84, 256, 256, 3, 3, 1, 1, (16,)), (20, 84, 256, 512, 5, 5, 1, 2, (16,)),
    (10, 42, 512, 512, 3, 3, 1, 1, (16,)), (112, 112, 64, 64, 1, 1, 0, 1, (8, 16)),
    (56, 56, 64, 256, 1, 1, 0, 1, (8, 16)), (56, 56, 256, 64, 1, 1, 0, 1, (8, 16)),
    (56, 56, 256, 128, 1, 1, 0, 2, (8, 16)), (28, 28, 128, 512, 1, 1, 0, 1, (8, 16)),
    (28, 28, 512, 128, 1, 1, 0, 1, (8, 16)), (28, 28, 512, 256, 1, 1, 0, 2, (8, 16)),
    (14, 14, 256, 1024, 1, 1, 0, 1, (8, 16)), (28, 28, 512, 1024, 1, 1, 0, 2, (8, 16)),
    (14, 14, 1024, 256, 1, 1, 0, 1, (8, 16)), (14, 14, 1024, 512, 1, 1, 0, 2, (8, 16)),
    (7, 7, 512, 2048, 1, 1, 0, 1, (8, 16)), (14, 14, 1024, 2048, 1, 1, 0, 2, (8, 16)),
    (7, 7, 2048, 512, 1, 1, 0, 1, (8, 16)),
)  # fmt: skip


def _deepbench() -> dict[str, Layer]:
    return {
        f"{h}x{w}x{c}-{k}x{r}x{s}" + f"-pad{pad}" * bool(pad) + f"-stride{stride}" * (stride > 1) + f"-n{n}": _conv(
            c, k, (h, w), (r, s), padding=pad, stride=stride, batch=n
        )
        for h, w, c, k, r, s, pad, stride, batches in _DEEPBENCH
        for n in batches
    }


_STEM = {"stem": _conv(3, 64, 224, 7, stride=2, padding=3)}

_SUITES = (
    Suite("resnet50", "torchvision resnet50 (stride in the 3×3), 224×224", 64, _STEM | _bottlenecks()),
    Suite("resnet18", "torchvision resnet18, 224×224", 64, _STEM | _basic_blocks()),
    Suite("vgg16", "torchvision vgg16, 224×224", 32, {
        "conv1_1": _same(3, 64, 224), "conv1_2": _same(64, 64, 224),
        "conv2_1": _same(64, 128, 112), "conv2_2": _same(128, 128, 112),
        "conv3_1": _same(128, 256, 56), "conv3_2": _same(256, 256, 56),
        "conv4_1": _same(256, 512, 28), "conv4_2": _same(512, 512, 28), "conv5": _same(512, 512, 14),
    }),
    Suite("mobilenetv2", "torchvision mobilenet_v2, 224×224", 64, {
        "stem": _same(3, 32, 224, stride=2),
        "depthwise_32_112": _depthwise(32, 112), "depthwise_96_112_stride2": _depthwise(96, 112, stride=2),
        "depthwise_144_56": _depthwise(144, 56), "depthwise_144_56_stride2": _depthwise(144, 56, stride=2),
        "depthwise_192_28": _depthwise(192, 28), "depthwise_192_28_stride2": _depthwise(192, 28, stride=2),
        "depthwise_384_14": _depthwise(384, 14), "depthwise_576_14": _depthwise(576, 14),
        "depthwise_576_14_stride2": _depthwise(576, 14, stride=2), "depthwise_960_7": _depthwise(960, 7),
        **{f"expand_{c}_{size}": _same(c, 6 * c, size, 1)
           for c, size in ((16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7))},
        **{f"project_{c}_{k}_{size}": _same(c, k, size, 1)
           for c, k, size in ((32, 16, 112), (96, 24, 56), (144, 24, 56), (144, 32, 28), (192, 32, 28), (192, 64, 14),
                              (384, 64, 14), (384, 96, 14), (576, 96, 14), (576, 160, 7), (960, 160, 7),
                              (960, 320, 7))},
        "head": _same(320, 1280, 7, 1),
    }),
    Suite("efficientnet_b0", "torchvision efficientnet_b0, 224×224", 64, {
        "stem": _same(3, 32, 224, stride=2),
        **{f"depthwise{r}x{r}_{c}_{size}" + "_stride2" * (stride == 2): _depthwise(c, size, r, stride=stride)
           for c, size, r, stride in ((32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 5, 2),
                                      (240, 28, 5, 1), (240, 28, 3, 2), (480, 14, 3, 1), (480, 14, 5, 1),
                                      (672, 14, 5, 1), (672, 14, 5, 2), (1152, 7, 5, 1), (1152, 7, 3, 1))},
        "expand_16_112": _same(16, 96, 112, 1), "expand_40_28": _same(40, 240, 28, 1),
        "expand_192_7": _same(192, 1152, 7, 1), "project_480_14": _same(480, 80, 14, 1),
        "project_672_14": _same(672, 112, 14, 1), "squeeze_672": _same(672, 28, 1, 1), "head": _same(320, 1280, 7, 1),
    }),
    Suite("convnext_t", "torchvision convnext_tiny, 224×224 (its 1×1 layers are linear ones)", 64, {
        "patchify": _conv(3, 96, 224, 4, stride=4),
        "depthwise_96": _depthwise(96, 56, 7), "depthwise_192": _depthwise(192, 28, 7),
        "depthwise_384": _depthwise(384, 14, 7), "depthwise_768": _depthwise(768, 7, 7),
        "downsample_96": _conv(96, 192, 56, 2, stride=2), "downsample_192": _conv(192, 384, 28, 2, stride=2),
        "downsample_384": _conv(384, 768, 14, 2, stride=2),
    }),
    Suite("replknet31", "RepLKNet-31B, 224×224 (Ding et al. 2022, arXiv:2203.06717)", 32, {
        "depthwise31": _depthwise(128, 56, 31), "depthwise29": _depthwise(256, 28, 29),
        "depthwise27": _depthwise(512, 14, 27), "depthwise13": _depthwise(1024, 7, 13),
        "depthwise5_128": _depthwise(128, 56, 5), "depthwise5_512": _depthwise(512, 14, 5),
    }),
    Suite("resnext50", "torchvision resnext50_32x4d, 224×224", 64, _STEM | _bottlenecks(groups=32, width=128)),
    Suite("unet", "U-Net, 572×572, unpadded (Ronneberger et al. 2015, arXiv:1505.04597)", 4, {
        "down1a": _conv(1, 64, 572, 3), "down1b": _conv(64, 64, 570, 3), "down2a": _conv(64, 128, 284, 3),
        "down2b": _conv(128, 128, 282, 3), "down3a": _conv(128, 256, 140, 3), "down3b": _conv(256, 256, 138, 3),
        "down4a": _conv(256, 512, 68, 3), "down4b": _conv(512, 512, 66, 3), "bottom_a": _conv(512, 1024, 32, 3),
        "bottom_b": _conv(1024, 1024, 30, 3), "up4": _up(1024, 512, 28), "dec4a": _conv(1024, 512, 56, 3),
        "up3": _up(512, 256, 52), "dec3a": _conv(512, 256, 104, 3), "up2": _up(256, 128, 100),
        "dec2a": _conv(256, 128, 200, 3), "up1": _up(128, 64, 196), "dec1a": _conv(128, 64, 392, 3),
        "dec1b": _conv(64, 64, 390, 3), "head": _conv(64, 2, 388, 1),
    }),
    Suite("stems", "first layers: torchvision's, timm's resnet50d and vit_base_patch16_224, CIFAR-10, MNIST", 64, {
        "resnet": _conv(3, 64, 224, 7, stride=2, padding=3), "resnet_d1": _same(3, 32, 224, stride=2),
        "resnet_d2": _same(32, 32, 112), "resnet_d3": _same(32, 64, 112), "vgg": _same(3, 64, 224),
        "alexnet": _conv(3, 64, 224, 11, stride=4, padding=2), "inception_v3": _conv(3, 32, 299, 3, stride=2),
        "convnext": _conv(3, 96, 224, 4, stride=4), "vit": _conv(3, 768, 224, 16, stride=16),
        "cifar": _same(3, 64, 32), "mnist": _conv(1, 32, 28, 3),
    }),
    Suite("airbench94", "KellerJordan/cifar10-airbench, airbench94_muon.py", 2000, _airbench(64, 256, 256)),
    Suite("airbench96", "KellerJordan/cifar10-airbench, airbench96_faster.py and its proxy", 1024,
          _airbench(128, 384, 512) | {f"proxy_{k}": v for k, v in _airbench(32, 64, 64).items()}),
    Suite("resnet9", "davidcpage/cifar10-fast, 32×32", 512, {
        "prep": _same(3, 64, 32), "layer1": _same(64, 128, 32), "layer1_residual": _same(128, 128, 16),
        "layer2": _same(128, 256, 16), "layer3": _same(256, 512, 8), "layer3_residual": _same(512, 512, 4),
    }),
    Suite("deepbench", "baidu-research/DeepBench, conv_problems.h: the training set", 16, _deepbench()),
    Suite("segmentation", "torchvision deeplabv3_resnet50, 520×520 (features 65×65)", 8, {
        "backbone4_3x3": _conv(256, 256, 65, 3, padding=2, dilation=2),
        "backbone5_3x3": _conv(512, 512, 65, 3, padding=4, dilation=4),
        "aspp_1x1": _same(2048, 256, 65, 1),
        **{f"aspp_rate{d}": _conv(2048, 256, 65, 3, padding=d, dilation=d) for d in (12, 24, 36)},
        "project": _same(1280, 256, 65, 1), "head": _same(256, 256, 65), "classify": _same(256, 21, 65, 1),
    }),
    Suite("wav2vec2", "wav2vec 2.0 base: feature encoder and positional layer, one second of 16 kHz sound", 32, {
        "encoder1": _conv(1, 512, 16000, 10, ndim=1, stride=5), "encoder2": _conv(512, 512, 3199, 3, ndim=1, stride=2),
        "encoder6": _conv(512, 512, 199, 2, ndim=1, stride=2),
        "positional": _conv(768, 768, 49, 128, ndim=1, padding=64, groups=16),
    }),
    # Padded on both sides, as conv1d is called there (what is beyond the sequence is then cut off).
    Suite("mamba", "Mamba-130m, -790m, -2.8b: causal layers, 2048 tokens (Gu and Dao 2023, arXiv:2312.00752)", 8, {
        f"causal_{c}": _conv(c, c, (1, 2048), (1, 4), padding=(0, 3), groups=c) for c in (1536, 3072, 5120)
    }),
    Suite("r3d18", "torchvision r3d_18, 16 frames of 112×112", 8, {
        "stem": Layer(3, 64, (16, 112, 112), (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3)),
        "conv2": _conv(64, 64, (16, 56, 56), 3, padding=1), "conv3": _conv(128, 128, (8, 28, 28), 3, padding=1),
        "conv5": _conv(512, 512, (2, 7, 7), 3, padding=1),
    }),
    # Padded on both sides of time, where the networks pad before it alone.
    Suite("video_vae", "decoders of video models' VAEs (CogVideoX, HunyuanVideo), five frames of at most 128×128", 1, {
        "conv_in": _conv(16, 512, (5, 16, 16), 3, padding=1), "512": _conv(512, 512, (5, 32, 32), 3, padding=1),
        "512_256": _conv(512, 256, (5, 64, 64), 3, padding=1), "256": _conv(256, 256, (5, 64, 64), 3, padding=1),
        "256_128": _conv(256, 128, (5, 128, 128), 3, padding=1), "128": _conv(128, 128, (5, 128, 128), 3, padding=1),
        "256_shortcut": _conv(512, 256, (5, 64, 64), 1), "conv_out": _conv(128, 3, (5, 128, 128), 3, padding=1),
    }),
    Suite("huge", "made up: more than 2³¹ elements in and out", 33, {"3x3": _same(64, 64, 1024)}),
    Suite("thirty", "thirty layers of the networks above, for tests of what kernels compile to", 32, {
        "resnet50-stem": _conv(3, 64, 224, 7, stride=2, padding=3),
        "resnet50-56-reduce": _same(256, 64, 56, 1), "resnet50-56-3x3": _same(64, 64, 56),
        "resnet50-56-expand": _same(64, 256, 56, 1), "resnet50-28-3x3-stride2": _same(128, 128, 56, stride=2),
        "resnet50-28-shortcut": _same(256, 512, 56, 1, stride=2), "resnet50-14-3x3": _same(256, 256, 14),
        "resnet50-14-expand": _same(256, 1024, 14, 1), "resnet50-7-3x3": _same(512, 512, 7),
        "resnet50-7-reduce": _same(2048, 512, 7, 1), "resnet18-28-3x3": _same(128, 128, 28),
        "resnet18-14-3x3-stride2": _same(128, 256, 28, stride=2), "vgg-first": _same(3, 64, 224),
        "vgg-112-3x3": _same(64, 128, 112), "vgg-28-3x3": _same(512, 512, 28),
        "mobilenetv2-stem": _same(3, 32, 224, stride=2), "mobilenetv2-expand": _same(24, 144, 56, 1),
        "mobilenetv2-depthwise-stride2": _depthwise(144, 56, stride=2), "mobilenetv2-project": _same(192, 64, 14, 1),
        "efficientnet-depthwise-5x5": _depthwise(240, 28, 5), "efficientnet-project": _same(672, 112, 14, 1),
        "convnext-patchify": _conv(3, 96, 224, 4, stride=4), "convnext-depthwise-7x7": _depthwise(96, 56, 7),
        "convnext-downsample": _conv(96, 192, 56, 2, stride=2),
        "resnext50-56-groups32": _same(128, 128, 56, groups=32),
        "resnext50-14-groups32": _same(512, 512, 14, groups=32),
        "unet-first": _conv(1, 64, 128, 3), "unet-decoder": _same(128, 64, 128),
        "deeplab-dilated": _conv(512, 256, 28, 3, padding=12, dilation=12), "segmentation-head": _same(256, 21, 56, 1),
    }),
)  # fmt: skip


def _once(layers: dict[str, Layer]) -> dict[str, Layer]:
    """`layers` without those that have the shape of an earlier one."""
    first: dict[Layer, str] = {}
    return {name: layer for name, layer in layers.items() if first.setdefault(layer, name) == name}


SUITES: dict[str, Suite] = {s.name: s._replace(layers=_once(s.layers)) for s in _SUITES}


def names() -> tuple[str, ...]:
    """All layers as `suite.layer`."""
    return tuple(f"{suite.name}.{name}" for suite in SUITES.values() for name in suite.layers)


def suite(name: str) -> Suite:
    """The suite called `name`. Raises ValueError, with close matches, for one that is not known."""
    if name not in SUITES:
        raise ValueError(f"no suite is called {name!r}{did_you_mean(name, SUITES)}; there are {', '.join(SUITES)}")
    return SUITES[name]


def find(name: str) -> Layer:
    """The layer called `suite.layer`. Raises ValueError, with close matches, for one that is not known."""
    head, _, tail = name.partition(".")
    if tail not in getattr(SUITES.get(head), "layers", {}):
        inside = [f"{head}.{n}" for n in SUITES[head].layers] if head in SUITES else []
        raise ValueError(f"no layer is called {name!r}{did_you_mean(name, inside or names())}")
    return SUITES[head].layers[tail]


def layer(
    name: str,
    batch: int | None = None,
    dtype: torch.dtype = torch.float16,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> ConvProblem:
    """The problem of the layer called `suite.layer`, with its suite's batch unless one is given.

    `channels_last` means channels_last_3d for three axes, and contiguous for one, which has no such format.
    Raises ValueError, with close matches, for a name that is not known.
    """
    found = find(name)
    if memory_format is torch.channels_last:
        memory_format = CHANNELS_LAST.get(2 + len(found.size), torch.contiguous_format)
    n = batch or found.batch or SUITES[name.partition(".")[0]].batch
    return ConvProblem.of(
        (n, found.channels, *found.size),
        (found.filters, found.channels // found.groups, *found.filter_size),
        found.stride, found.padding, found.dilation, found.groups, dtype, memory_format,
    )  # fmt: skip
