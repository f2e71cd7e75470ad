"""`ConvProblem`: one convolution as a frozen value, and the arithmetic of its sizes.

    y[n, k, p] = Σ_{c, r}  x[n, c, p·stride + r·dilation − low] · w[k, c, r]     (one axis shown; groups split c and k)

Everything in gpuconv that needs an output size, a count of operations or a matrix view asks here. The functions at
module level are pure arithmetic and comparisons, so they work on symbolic sizes too; `ConvProblem` holds integers.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch

Direction = Literal["forward", "grad_input", "grad_weight"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "grad_input", "grad_weight")
Pads = tuple[tuple[int, int], ...]  # (low, high) for each spatial axis

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Gemm(NamedTuple):
    """A direction as `batch` matrix products of rows × depth with depth × columns."""

    rows: int
    columns: int
    depth: int
    batch: int


def per_axis(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """`value` for each of `ndim` axes; an int or a sequence of one stands for all of them, as in PyTorch."""
    if isinstance(value, int) or not hasattr(value, "__len__"):
        values: tuple[int, ...] = (value,) * ndim  # type: ignore[assignment]  # a SymInt has no length either
    else:
        values = tuple(value) * ndim if len(value) == 1 else tuple(value)
    if len(values) != ndim:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {ndim} values to match the convolution "
            f"dimensions, but got {name}={list(values)}"
        )
    for v in values:
        if isinstance(v, (float, str, bool)) or v is None:
            raise TypeError(f"{name} must be int or a sequence of int, but got {value!r}")
    return values


def normalize_padding(
    padding: int | Sequence[int] | str,
    filter_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pads:
    """(low, high) for each axis from what `torch.nn.functional.conv2d` accepts as `padding`.

    'same' puts the odd element of an even filter on the high side, as PyTorch does.
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
    """Spatial size of the output."""
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
    """Raise RuntimeError unless these are settings of some convolution."""
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
    if any(extra >= s and extra >= d for extra, s, d in zip(output_padding, stride, dilation, strict=True)):
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
    """Raise RuntimeError unless bias has one element for each output channel (as many as filters, if not said)."""
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


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether PyTorch reads these strides as channels last (`suggest_memory_format`), ambiguities included."""
    if len(shape) not in _CHANNELS_LAST or strides[1] == 0:
        return False
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):  # innermost first: C, W, H, (D,) N
        if shape[axis] == 0 or strides[axis] < least:
            return False
        if axis == 0 and least == strides[1]:
            return False  # [N, C, 1, 1] with unit strides: PyTorch falls back to contiguous
        least = strides[axis] * (shape[axis] if shape[axis] > 1 else 1)
    return True


def memory_format_of(*tensors: torch.Tensor) -> torch.memory_format:
    """The format of a result computed from `tensors`: channels last if any of them is, as PyTorch's convolution."""
    if any(is_channels_last(t.shape, t.stride()) for t in tensors):
        return _CHANNELS_LAST[tensors[0].dim()]
    return torch.contiguous_format


def allocate(shape: Sequence[int], like: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """The one place where outputs are made: an uninitialised tensor of `like`'s dtype and device."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


@dataclasses.dataclass(frozen=True)
class ConvProblem:
    """One convolution: sizes, settings, element type and layout. Validated when made, immutable, hashable.

    Spatial tuples have one entry for each axis, outermost first ([H, W] in two dimensions). `memory_format` is that
    of the outputs. Raises RuntimeError with PyTorch's wording for what is not a convolution.
    """

    batch: int  # N
    in_channels: int  # C
    out_channels: int  # K
    groups: int
    input_size: tuple[int, ...]
    filter_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def __post_init__(self) -> None:
        check_shapes(self.input_shape, self.weight_shape, self.stride, self.padding, self.dilation, self.groups)

    @classmethod
    def of(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str | Pads = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> "ConvProblem":
        """The problem of `torch.nn.functional.conv1d/2d/3d` called with these shapes and arguments.

        `padding` may also be pairs (low, high), one for each axis.
        """
        ndim = len(weight_shape) - 2
        stride, dilation = per_axis("stride", stride, ndim), per_axis("dilation", dilation, ndim)
        pads: Pads
        if not isinstance(padding, (int, str)) and any(isinstance(p, Sequence) for p in padding):
            pads = tuple((low, high) for low, high in padding)  # type: ignore[misc]  # pairs, as just tested
        else:
            pads = normalize_padding(padding, weight_shape[2:], stride, dilation)  # type: ignore[arg-type]  # no pairs
        check_shapes(input_shape, weight_shape, stride, pads, dilation, groups)
        return cls(
            batch=input_shape[0],
            in_channels=input_shape[1],
            out_channels=weight_shape[0],
            groups=groups,
            input_size=tuple(input_shape[2:]),
            filter_size=tuple(weight_shape[2:]),
            stride=stride,
            padding=pads,
            dilation=dilation,
            dtype=dtype,
            memory_format=memory_format,
        )

    def operand_shapes(self, direction: Direction) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the two tensors that `direction` multiplies, in the order of its op."""
        x, w, y = self.input_shape, self.weight_shape, self.output_shape
        return {"forward": (x, w), "grad_input": (y, w), "grad_weight": (y, x)}[direction]

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.stride)

    @cached_property
    def output_size(self) -> tuple[int, ...]:
        return output_size(self.input_size, self.filter_size, self.stride, self.padding, self.dilation)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """[N, C, *input_size]"""
        return (self.batch, self.in_channels, *self.input_size)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """[K, C/groups, *filter_size]"""
        return (self.out_channels, self.in_channels // self.groups, *self.filter_size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """[N, K, *output_size]"""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def taps(self) -> int:
        """Elements of the filter in one channel (R·S in two dimensions)."""
        return math.prod(self.filter_size)

    def products(self, direction: Direction) -> int:
        """The most products summed into one output element of `direction`."""
        return {
            "forward": self.in_channels // self.groups * self.taps,
            "grad_input": self.out_channels // self.groups * self.taps,
            "grad_weight": self.batch * math.prod(self.output_size),
        }[direction]

    @property
    def flops(self) -> int:
        """Floating-point operations of any one direction: a multiplication and an addition for each product of the
        forward pass, those with padding included, as is usual."""
        return 2 * math.prod(self.output_shape) * self.products("forward")

    def least_bytes(self, direction: Direction) -> int:
        """Bytes that `direction` must move at least: inputs read once, output written once.

        Input pixels that no tap touches (stride beyond the filter) need not be read; as grad_input they are written.
        """
        pixels = self.input_size if direction == "grad_input" else self._touched
        numbers = self.batch * self.in_channels * math.prod(pixels)
        numbers += math.prod(self.weight_shape) + math.prod(self.output_shape)
        return numbers * self.dtype.itemsize

    @cached_property
    def _touched(self) -> tuple[int, ...]:
        """Input positions on each axis that some tap of some output reads."""
        counts = []
        for h, r, p, s, (low, _), d in zip(
            self.input_size, self.filter_size, self.output_size, self.stride, self.padding, self.dilation, strict=True
        ):
            reads = {tap * d - low + i * s for tap in range(r) for i in range(p)}
            counts.append(len(reads & set(range(h))))
        return tuple(counts)

    def gemm(self, direction: Direction) -> Gemm:
        """`direction` as matrix products, one for each group (the implicit-GEMM view).

        grad_input is shown over all taps; at stride s only one in s^ndim of them meets a given input pixel.
        """
        k, c = self.out_channels // self.groups, self.in_channels // self.groups
        pixels = self.batch * math.prod(self.output_size)
        if direction == "forward":
            return Gemm(pixels, k, c * self.taps, self.groups)
        if direction == "grad_input":
            return Gemm(self.batch * math.prod(self.input_size), c, k * self.taps, self.groups)
        return Gemm(k, c * self.taps, pixels, self.groups)

    def __str__(self) -> str:
        def sizes(values: Sequence[int]) -> str:
            return "×".join(map(str, values))

        parts = [
            f"{self.batch}×{self.in_channels}×{sizes(self.input_size)}",
            f"{self.out_channels} filters {sizes(self.filter_size)}",
        ]
        if any(s != 1 for s in self.stride):
            parts.append(f"stride {sizes(self.stride)}")
        if any(low or high for low, high in self.padding):
            parts.append("padding " + "×".join(str(a) if a == b else f"({a},{b})" for a, b in self.padding))
        if any(d != 1 for d in self.dilation):
            parts.append(f"dilation {sizes(self.dilation)}")
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        parts.append(str(self.dtype).removeprefix("torch."))
        if self.memory_format is not torch.contiguous_format:
            parts.append("channels last")
        return ", ".join(parts)
