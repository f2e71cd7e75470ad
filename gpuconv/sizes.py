"""The arithmetic of a convolution's sizes, and the errors for sizes that do not fit together, in PyTorch's words.

Pure arithmetic and comparisons, so that it works on the symbolic sizes of torch.compile too.
"""

import operator
from collections.abc import Sequence
from typing import Any

Pads = tuple[tuple[int, int], ...]  # (low, high) for each spatial axis


def whole(name: str, value: Any) -> int:
    """`value`, an int or a tensor or NumPy scalar of one, as an int. Raises TypeError for all else, even bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be int, but got {value!r}") from None


def per_axis(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """`value` for each of `ndim` axes; an int or a sequence of one stands for all of them, as in PyTorch.

    Raises RuntimeError for a sequence of another length, TypeError for other than ints.
    """
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    values = given * ndim if len(given) == 1 else given
    if len(values) != ndim:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {ndim} values to match the convolution "
            f"dimensions, but got {name}={list(values)}"
        )
    try:
        return tuple([whole(name, v) for v in values])
    except TypeError:
        raise TypeError(f"{name} must be int or a sequence of int, but got {value!r}") from None


def normalize_padding(
    padding: int | Sequence[int] | str,
    filter_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pads:
    """(low, high) for each axis, in pixels, from what `torch.nn.functional.conv2d` accepts as `padding`.

    'same' puts the odd element of an even filter on the high side, as PyTorch does. Raises RuntimeError for another
    word, and for 'same' with a stride.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(filter_size)
        if padding != "same":
            raise RuntimeError(f"Invalid padding string: {padding!r}; expected 'same' or 'valid'")
        if any(s != 1 for s in stride):
            raise RuntimeError(
                f"padding='same' is not supported for strided convolutions, but got stride={tuple(stride)}"
            )
        totals = [d * (r - 1) for d, r in zip(dilation, filter_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in per_axis("padding", padding, len(filter_size)))


def output_size(
    input_size: Sequence[int],
    filter_size: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Spatial size of the output of a convolution."""
    return tuple(
        (h + low + high - d * (r - 1) - 1) // s + 1
        for h, r, s, (low, high), d in zip(input_size, filter_size, stride, padding, dilation, strict=True)
    )


def transposed_size(
    input_size: Sequence[int],
    filter_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Spatial size of the output of a transposed convolution."""
    return tuple(
        (h - 1) * s - 2 * p + d * (r - 1) + extra + 1
        for h, r, s, p, extra, d in zip(
            input_size, filter_size, stride, padding, output_padding, dilation, strict=True
        )
    )  # fmt: skip


def check_settings(stride: Sequence[int], padding: Pads, dilation: Sequence[int], groups: int) -> None:
    """Raise RuntimeError unless some convolution has these settings."""
    if any(low < 0 or high < 0 for low, high in padding):
        raise RuntimeError(f"negative padding is not supported, but got padding={padding} (low, high for each axis)")
    if any(s <= 0 for s in stride):
        raise RuntimeError(f"non-positive stride is not supported, but got stride={tuple(stride)}")
    if any(d <= 0 for d in dilation):
        raise RuntimeError(f"dilation should be greater than zero, but got dilation={tuple(dilation)}")
    if groups <= 0:
        raise RuntimeError(f"non-positive groups is not supported, but got groups={groups}")


def check_filters(weight_shape: Sequence[int], groups: int) -> None:
    """Raise RuntimeError unless the filters, [K, C/groups, *filter], have taps and divide into the groups."""
    given = f"Given groups={groups}"
    if weight_shape[0] < groups:
        raise RuntimeError(
            f"{given}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(weight_shape)} instead"
        )
    if weight_shape[0] % groups != 0:
        raise RuntimeError(
            f"{given}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {list(weight_shape)} instead"
        )
    if any(r <= 0 for r in weight_shape[2:]):
        raise RuntimeError(f"kernel size should be greater than zero, but got weight of size {list(weight_shape)}")


def check_shapes(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Raise RuntimeError, in PyTorch's words, unless input and weight fit together under these settings.

    input_shape: [N, C, *spatial]; weight_shape: [K, C/groups, *filter].
    """
    check_settings(stride, padding, dilation, groups)
    ndim = len(stride)
    if len(input_shape) != ndim + 2:
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to conv{ndim}d, "
            f"but got input of size: {list(input_shape)}"
        )
    if len(weight_shape) != ndim + 2:
        raise RuntimeError(f"Expected {ndim + 2}D weight for conv{ndim}d, but got weight of size: {list(weight_shape)}")
    check_filters(weight_shape, groups)
    if input_shape[1] != weight_shape[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight_shape)}, expected input{list(input_shape)} to have "
            f"{weight_shape[1] * groups} channels, but got {input_shape[1]} channels instead"
        )
    filter_size = weight_shape[2:]
    padded = [h + low + high for h, (low, high) in zip(input_shape[2:], padding, strict=True)]
    extent = [d * (r - 1) + 1 for d, r in zip(dilation, filter_size, strict=True)]
    if any(h < r for h, r in zip(padded, extent, strict=True)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({' x '.join(map(str, padded))}). "
            f"Kernel size: ({' x '.join(map(str, extent))}). Kernel size can't be greater than actual input size"
        )
    if any(h <= 0 for h in input_shape[2:]):
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(input_shape)}"
        )


def check_transposed(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> None:
    """Raise RuntimeError, in PyTorch's words, unless input and weight fit together in a transposed convolution.

    input_shape: [N, C, *spatial]; weight_shape: [C, K/groups, *filter].
    """
    check_settings(stride, tuple((p, p) for p in padding), dilation, groups)
    if any(extra < 0 for extra in output_padding):
        raise RuntimeError(f"negative output_padding is not supported, but got output_padding={tuple(output_padding)}")
    too_large = any(extra >= s and extra >= d for extra, s, d in zip(output_padding, stride, dilation, strict=True))
    if too_large and input_shape[0] != 0:  # PyTorch does not ask this of an empty batch
        raise RuntimeError(
            f"output padding must be smaller than either stride or dilation, but got "
            f"output_padding={tuple(output_padding)}, stride={tuple(stride)}, dilation={tuple(dilation)}"
        )
    check_filters(weight_shape, groups)
    if input_shape[1] != weight_shape[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight_shape)}, expected input{list(input_shape)} to have "
            f"{weight_shape[0]} channels, but got {input_shape[1]} channels instead"
        )
    if any(h <= 0 for h in input_shape[2:]):
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(input_shape)}"
        )
    size = transposed_size(input_shape[2:], weight_shape[2:], stride, padding, output_padding, dilation)
    if any(h < 0 for h in size):
        raise RuntimeError(
            f"Given input size per channel: ({' x '.join(map(str, input_shape[2:]))}). Calculated output size per "
            f"channel: ({' x '.join(map(str, size))}). Output size is too small"
        )


def check_bias(weight_shape: Sequence[int], bias_shape: Sequence[int], out_channels: int | None = None) -> None:
    """Raise RuntimeError unless bias has one element for each output channel (None: for each filter)."""
    channels = weight_shape[0] if out_channels is None else out_channels
    if len(bias_shape) != 1 or bias_shape[0] != channels:
        raise RuntimeError(
            f"Given weight of size {list(weight_shape)}, expected bias to be 1-dimensional with {channels} "
            f"elements, but got bias of size {list(bias_shape)} instead"
        )


def check_same(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise RuntimeError unless the tensor called `name` has the shape that the problem gives it."""
    if len(shape) != len(expected) or any(a != b for a, b in zip(shape, expected, strict=True)):
        raise RuntimeError(f"expected {name} of size {list(expected)}, but got {name} of size {list(shape)}")
