"""The numbers of the tour: the curve detector, spectra, one output explained."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gpuconv
from gpuconv import see
from gpuconv.errors import UserError
from gpuconv.see.arithmetic import (
    CURVE,
    OFF_THE_CURVE,
    ON_THE_CURVE,
    ZERO_MEAN_CURVE,
    dead,
    duplicates,
    filtered,
    response,
)
from gpuconv.see.tour_filters import CLASSICS

BACKENDS = ("aten", "numpy")

# ---- the curve detector ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_curve_detector_finds_its_curve_and_nothing_else(backend: str) -> None:
    with gpuconv.use_backend(backend):
        assert response(ON_THE_CURVE, CURVE) == 6600
        assert response(OFF_THE_CURVE, CURVE) == 0


def test_its_footnotes_are_true() -> None:
    uniform = torch.full((7, 7), 50.0)
    assert response(ON_THE_CURVE, CURVE.flip(0, 1)) == 3600
    assert response(uniform, CURVE) == 9000
    assert abs(response(uniform, ZERO_MEAN_CURVE)) < 1e-2
    assert response(ON_THE_CURVE, ZERO_MEAN_CURVE) > 4000 > 0 > response(OFF_THE_CURVE, ZERO_MEAN_CURVE)


def test_the_patches_are_those_of_the_tutorial() -> None:
    assert ON_THE_CURVE.sum() == 30 + 3 * 50 + 20 + 50 + 8 * 50
    assert OFF_THE_CURVE.sum() == 4 * 40 + 20 + 50 + 50 + 25 + 25 + 50
    assert ON_THE_CURVE[3:, 3:5].eq(50).all() and OFF_THE_CURVE[6].tolist() == [25, 25, 0, 50, 0, 0, 0]


# ---- spectra --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mean", "low-pass"), ("gaussian", "low-pass"), ("laplacian", "high-pass"), ("difference", "band-pass")],
)
def test_the_kind_of_a_classic_filter_is_computed(name: str, kind: str) -> None:
    assert see.spectrum(CLASSICS[name]).kind == kind


def test_a_single_pixel_passes_all_and_zeros_none() -> None:
    pixel = torch.zeros(3, 3)
    assert see.spectrum(pixel).kind == "none"
    pixel[1, 1] = -2
    assert see.spectrum(pixel).kind == "all-pass"


@pytest.mark.parametrize("frequency", [(0, 0), (3, 0), (5, 7), (32, 32)], ids=str)
def test_the_gain_is_what_the_filter_does_to_a_wave(frequency: tuple[int, int]) -> None:
    filter = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, x = torch.arange(80, dtype=torch.float64)[:, None], torch.arange(80, dtype=torch.float64)
    phase = 2 * math.pi * (frequency[0] * y + frequency[1] * x) / 64
    real, imaginary = (gpuconv.conv2d(wave(phase)[None, None], filter[None, None]) for wave in (torch.cos, torch.sin))
    gain = torch.hypot(real, imaginary)
    i, j = ((f + 32) % 64 for f in frequency)
    assert torch.allclose(gain, see.spectrum(filter).gain[i, j], rtol=1e-9)


def test_a_spectrum_of_several_channels_is_their_mean_power() -> None:
    filters = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(1))
    powers = torch.stack([see.spectrum(filter).gain.square() for filter in filters])
    torch.testing.assert_close(see.spectrum(filters).gain, powers.mean(0).sqrt())
    with pytest.raises(UserError, match=r"filter must be .* but got \[3, 65, 5\]"):
        see.spectrum(torch.zeros(3, 65, 5))


def test_filtering_keeps_the_size_and_repeats_the_border() -> None:
    image = torch.arange(20.0).view(4, 5)
    smooth = filtered(image, CLASSICS["mean"])
    assert smooth.shape == image.shape
    assert smooth[0, 0] == pytest.approx((0 * 4 + 1 * 2 + 5 * 2 + 6) / 9)


# ---- one output explained -------------------------------------------------------------------------------------------

LAYERS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "padded, strided": lambda: nn.Conv2d(4, 6, (5, 3), stride=(2, 3), padding=(2, 1), bias=False),
    "dilated, grouped": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
    "depthwise, same": lambda: nn.Conv2d(4, 4, (5, 3), padding="same", groups=4),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "ours": lambda: gpuconv.nn.Conv2d(4, 6, 3, padding=1),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_arithmetic_of_every_output_is_the_ops_output(name: str, backend: str) -> None:
    torch.manual_seed(0)
    model, image = nn.Sequential(LAYERS[name]()), torch.randn(4, 11, 9)
    with gpuconv.use_backend(backend):
        maps = see.activation_maps(model, image, "0").values
        for at in torch.nonzero(torch.ones_like(maps)).tolist()[:: 1 if maps.numel() < 100 else 17]:
            shown = see.explain_output(model, image, "0", (at[0], at[1], at[2]))
            assert shown.output == maps[tuple(at)].item()
            terms = shown.products.abs().sum().item() + abs(shown.bias)
            bound = 2**-24 * (abs(shown.sum) + 4 * math.sqrt(shown.products.numel() + 1) * terms)
            assert abs(shown.sum - shown.output) <= bound
            assert torch.equal(shown.products, shown.window * shown.filter)


def test_a_layer_that_changes_its_input_or_filters_first_is_explained_as_computed() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    for name, layer in (("tf_efficientnet_b0", "conv_stem"), ("resnetv2_50x1_bit", "stem.conv")):
        model = timm.create_model(name)  # Conv2dSame, StdConv2d
        shown = see.explain_output(model, torch.randn(3, 33, 32), layer, (5, 0, 7))
        assert shown.sum == pytest.approx(shown.output, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("at", [(6, 0, 0), (0, 9, 0), (0, 0, -1)], ids=str)
def test_an_output_that_is_not_there_is_told(at: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"at must lie within the output \[6, 9, 7\] .* but got"):
        see.explain_output(nn.Sequential(nn.Conv2d(4, 6, 3)), torch.randn(4, 11, 9), "0", at)


# ---- filters among each other ---------------------------------------------------------------------------------------


def test_duplicates_are_those_that_point_the_same_way() -> None:
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[3] = weight[1] * 7
    assert [(pair.first, pair.second) for pair in duplicates(weight)] == [(1, 3)]
    assert duplicates(weight)[0].cosine == pytest.approx(1)
    everything = duplicates(weight, -1)
    assert len(everything) == 6 and everything[0].cosine >= everything[-1].cosine
    assert duplicates(torch.zeros(2, 1, 3, 3)) == []


def test_dead_channels_are_nowhere_positive() -> None:
    maps = torch.randn(2, 3, 4, 4)
    maps[:, 1] = -maps[:, 1].abs()
    assert dead(maps) == [1] and not F.relu(maps)[:, 1].any()
