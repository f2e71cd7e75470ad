"""The suites: every layer is a convolution with the sizes its network has, and a wrong name is met with close ones."""

import pytest
import torch

from gpuconv.bench import suites
from gpuconv.bench.suites import SUITES, layer


def test_every_layer_is_a_problem_in_every_format() -> None:
    for name in suites.names():
        for memory_format in (torch.contiguous_format, torch.channels_last):
            problem = layer(name, memory_format=memory_format)
            torch.empty(problem.input_shape, device="meta", memory_format=problem.memory_format)  # it exists
            assert problem.dtype is torch.float16 and all(problem.output_size), name
    assert len(SUITES["thirty"].layers) == 30
    assert all(suite.source and suite.layers for suite in SUITES.values())


def test_no_suite_times_one_layer_twice() -> None:
    for suite in SUITES.values():
        assert len(set(suite.layers.values())) == len(suite.layers), suite.name


@pytest.mark.parametrize(
    ("name", "input_shape", "output_shape"),
    [
        ("resnet50.conv3_3x3", (64, 128, 28, 28), (64, 128, 28, 28)),
        ("resnet50.conv5_shortcut", (64, 1024, 14, 14), (64, 2048, 7, 7)),
        ("resnext50.conv2_3x3", (64, 128, 56, 56), (64, 128, 56, 56)),
        ("replknet31.depthwise31", (32, 128, 56, 56), (32, 128, 56, 56)),
        ("airbench96.group1_conv1", (1024, 24, 31, 31), (1024, 128, 31, 31)),
        ("segmentation.aspp_rate36", (8, 2048, 65, 65), (8, 256, 65, 65)),
        ("deepbench.161x700x1-32x5x20-stride2-n8", (8, 1, 161, 700), (8, 32, 79, 341)),
        ("r3d18.stem", (8, 3, 16, 112, 112), (8, 64, 16, 56, 56)),
        ("wav2vec2.encoder1", (32, 1, 16000), (32, 512, 3199)),
    ],
)
def test_sizes_are_those_of_the_network(name: str, input_shape: tuple, output_shape: tuple) -> None:
    assert (layer(name).input_shape, layer(name).output_shape) == (input_shape, output_shape)


def test_a_transposed_layer_is_the_grad_input_of_its_problem() -> None:
    name = "unet.up4"
    assert suites.find(name).transposed
    problem = layer(name, batch=1)
    x = torch.empty(1, 1024, 28, 28, device="meta")
    y = torch.nn.ConvTranspose2d(1024, 512, 2, stride=2, device="meta")(x)
    assert (problem.output_shape, problem.input_shape) == (x.shape, y.shape)


def test_one_problem_is_beyond_32_bits() -> None:
    assert torch.Size(layer("huge.3x3").input_shape).numel() > 2**31


def test_channels_last_means_what_the_number_of_axes_allows() -> None:
    formats = {name: layer(name, memory_format=torch.channels_last).memory_format for name in
               ("wav2vec2.encoder2", "resnet18.stem", "r3d18.conv2")}  # fmt: skip
    assert list(formats.values()) == [torch.contiguous_format, torch.channels_last, torch.channels_last_3d]


@pytest.mark.parametrize("name", ["resnet50.conv3_3x33", "resnet5.conv3_3x3", "conv3_3x3"])
def test_an_unknown_layer_is_met_with_close_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no layer is called '{name}' \(did you mean .*resnet50\.conv3_3x3"):
        layer(name)


def test_an_unknown_suite_is_met_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"no suite is called 'resnet' \(did you mean resnet"):
        suites.suite("resnet")
