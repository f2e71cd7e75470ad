"""The transposed convolutions behave as PyTorch's: sizes, output_padding, and errors raised before any work."""

import pytest
import torch
from lanes import Lane, each_lane

from gpuconv.functional import conv_transpose1d, conv_transpose2d

CALLS = {
    "plain": {},
    "ints": dict(stride=3, padding=1, output_padding=2, dilation=1),
    "tuples": dict(stride=(2, 1), padding=(1, 0), output_padding=(1, 1), dilation=(1, 2)),
    "lists": dict(stride=[2, 1], padding=[1, 0], dilation=[1, 2], groups=2),
    "ones": dict(stride=(2,), padding=[1], groups=4),
    # output_padding from the stride up is no size that the stride leaves open: padding taken away, then zeros
    "output_padding in the padding": dict(padding=2, output_padding=2, dilation=3),
    "output_padding beyond the padding": dict(padding=(0, 1), output_padding=2, dilation=3, groups=2),
    "output_padding on one axis": dict(stride=(3, 1), padding=1, output_padding=(2, 1), dilation=(1, 2)),
    "padding beyond the filter": dict(padding=3, stride=2),
}


@each_lane
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
def test_conv_transpose2d_is_pytorchs(lane: Lane, call: str, unbatched: bool) -> None:
    arguments = CALLS[call]
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64, device=lane.device)
    x = x if unbatched else torch.stack([x, x + 1])
    w = torch.randn(4, 8 // arguments.get("groups", 1), 3, 2, dtype=torch.float64, device=lane.device)
    b = torch.randn(8, dtype=torch.float64, device=lane.device)
    expected = torch.nn.functional.conv_transpose2d(x, w, b, **arguments)
    for _ in range(2):  # planned, then repeated
        got = conv_transpose2d(x, w, b, **arguments, backend=lane.backend)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert conv_transpose2d(x, w, None, **arguments, backend=lane.backend).shape == expected.shape


def test_a_transposed_result_without_pixels_is_pytorchs() -> None:
    x, w = torch.randn(2, 4, 2, 6), torch.randn(4, 3, 3, 3)
    assert conv_transpose2d(x, w, padding=(2, 0), backend="numpy").shape == (2, 3, 0, 8)


@each_lane
def test_a_transposed_result_that_no_tap_reaches_is_zeros_and_bias(lane: Lane) -> None:
    given = dict(stride=2, padding=1, output_padding=2, dilation=3)
    x, w = (torch.ones(1, 1, 1, device=lane.device, requires_grad=True) for _ in range(2))
    b = torch.full((1,), 7.0, device=lane.device, requires_grad=True)
    y = conv_transpose1d(x, w, b, **given, backend=lane.backend)
    assert y.tolist() == [[[7.0]]]
    assert [g.item() for g in torch.autograd.grad(y.sum(), (x, w, b))] == [0, 0, 1]
    assert conv_transpose1d(x[0], w, **given, backend=lane.backend).tolist() == [[0.0]]
    assert conv_transpose1d(x[:0], w, b, **given, backend=lane.backend).shape == (0, 1, 1)


def test_transposed_sizes_and_refusals_are_pytorchs() -> None:
    """Empty batches, no output, output of appended zeros alone on one axis or both, too much output_padding."""
    generator = torch.Generator().manual_seed(0)

    def pair(low: int, high: int) -> tuple[int, ...]:
        return tuple(torch.randint(low, high + 1, (2,), generator=generator).tolist())

    refused = 0
    for turn in range(300):
        x = torch.randn(turn % 3, 2, *pair(1, 3), dtype=torch.float64)
        w, b = torch.randn(2, 1, *pair(1, 3), dtype=torch.float64), torch.randn(2, dtype=torch.float64)
        given = dict(stride=pair(1, 3), padding=pair(0, 3), output_padding=pair(0, 3), dilation=pair(1, 4), groups=2)
        try:
            expected = torch.conv_transpose2d(x, w, b, **given)
        except RuntimeError:
            refused += 1
            with pytest.raises(RuntimeError, match="utput"):  # size too small, padding too large
                conv_transpose2d(x, w, b, **given, backend="numpy")
        else:
            got = conv_transpose2d(x, w, b, **given, backend="numpy")
            torch.testing.assert_close(got, expected, msg=lambda m: f"{x.shape} {w.shape} {given}: {m}")  # noqa: B023
    assert 30 < refused < 270


X, W, B = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
BAD = {
    "input of rank 2": (dict(input=X[0, 0]), RuntimeError, r"3D .* or 4D .* to conv_transpose2d, .* size: \[8, 8\]"),
    "weight of rank 3": (dict(weight=W[0]), RuntimeError, r"4D weight for conv_transpose2d, .* \[4, 3, 3\]|stride"),
    "channels": (dict(input=X[:, :3]), RuntimeError, r"size \[4, 6, 3, 3\].*to have 4 channels, but got 3"),
    "groups": (dict(groups=3), RuntimeError, "groups=3, expected weight to be divisible by 3"),
    "groups 0": (dict(groups=0), RuntimeError, "non-positive groups"),
    "padding": (dict(padding=-1), RuntimeError, "negative padding"),
    "padding word": (dict(padding="same"), TypeError, "padding.*str|padding of conv_transpose2d.*'same'"),
    "output_padding": (dict(output_padding=-1), RuntimeError, "negative output_padding"),
    "output_padding too large": (dict(output_padding=(1, 2)), RuntimeError, "smaller than either stride or dilation"),
    "three output_paddings": (dict(output_padding=(1, 1, 1)), RuntimeError, r"output_padding.*2 values.*\[1, 1, 1\]"),
    "stride 0": (dict(stride=0), RuntimeError, "non-positive stride"),
    "float stride": (dict(stride=1.5), TypeError, "stride"),
    "output too small": (dict(padding=9), RuntimeError, "."),
    "no pixels": (dict(input=X[:, :, :0]), RuntimeError, r"Only zero batch or zero channel inputs.*\[2, 4, 0, 8\]"),
    "no channels": (dict(input=X[:, :0], weight=W.transpose(0, 1)[:0]), RuntimeError, "at least 1 at dimension 0"),
    "bias too long": (dict(bias=torch.randn(7)), RuntimeError, r"bias to be 1-dimensional with 6 .* size \[7\]"),
    "bias of one": (dict(bias=torch.randn(1)), RuntimeError, r"bias to be 1-dimensional with 6 .* size \[1\]"),
    "weight dtype": (dict(weight=W.transpose(0, 1).double()), RuntimeError, "Input type .* weight type .*"),
    "bias dtype": (dict(bias=B.double()), RuntimeError, "Input type .* bias type .*"),
    "groups None": (dict(groups=None), TypeError, "groups"),
    "weight None": (dict(weight=None), TypeError, "weight"),
}


@pytest.mark.parametrize("backend", ["aten", "numpy"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_naming_what_is_wrong(name: str, backend: str) -> None:
    changes, error, message = BAD[name]
    arguments = dict(input=X, weight=W.transpose(0, 1), bias=B, stride=2, dilation=1) | changes
    for _ in range(2):
        with pytest.raises(error, match=message):
            conv_transpose2d(**arguments, backend=backend)
