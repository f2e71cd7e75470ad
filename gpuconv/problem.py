"""`ConvProblem`: one convolution as a frozen value, and the memory formats of its tensors.

    y[n, k, p] = Σ_{c, r}  x[n, c, p·stride + r·dilation − low] · w[k, c, r]     (one axis shown; groups split c and k)

Everything in gpuconv that needs an output size, a count of operations or a matrix view asks here; where sizes may be
symbolic, in the fakes of the ops, `gpuconv.sizes` is asked, which this is built on.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from gpuconv.sizes import Pads, check_shapes, normalize_padding, output_size, per_axis

Direction = Literal["forward", "grad_input", "grad_weight"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "grad_input", "grad_weight")

# By the number of axes of a tensor; those of one spatial axis have no such format.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class View(NamedTuple):
    """One direction as a matrix product: the size of its matrices for one group and one filter tap.

    forward and grad_input sum the products of all taps that meet a pixel; grad_weight has one product for each tap.
    """

    rows: int
    columns: int
    terms: int  # summed into one element, for one tap
    shape: tuple[int, ...]  # of the direction's result, all groups and taps together


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether PyTorch reads these strides as channels last (`suggest_memory_format`), ambiguities included."""
    if len(shape) not in CHANNELS_LAST or strides[1] == 0:
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
        return CHANNELS_LAST[tensors[0].dim()]
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
        return (self.out_channels, self.group_channels, *self.filter_size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """[N, K, *output_size]"""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def group_channels(self) -> int:
        """Input channels of one group (C/groups)."""
        return self.in_channels // self.groups

    @property
    def group_filters(self) -> int:
        """Output channels of one group (K/groups)."""
        return self.out_channels // self.groups

    @cached_property
    def input_pixels(self) -> int:
        """Pixels of all images of the batch (N·H·W in two dimensions)."""
        return self.batch * math.prod(self.input_size)

    @cached_property
    def output_pixels(self) -> int:
        """Pixels of all outputs of the batch (N·P·Q in two dimensions)."""
        return self.batch * math.prod(self.output_size)

    @property
    def vector_unit(self) -> int:
        """Elements in 16 bytes, the most that one thread loads or stores at once."""
        return 16 // self.dtype.itemsize

    def view(self, direction: Direction) -> View:
        """`direction` as the matrix product of one group and one tap (the implicit-GEMM view)."""
        if direction == "forward":
            return View(self.output_pixels, self.group_filters, self.group_channels, self.output_shape)
        if direction == "grad_input":
            return View(self.input_pixels, self.group_channels, self.group_filters, self.input_shape)
        return View(self.group_filters, self.group_channels, self.output_pixels, self.weight_shape)

    @property
    def taps(self) -> int:
        """Elements of the filter in one channel (R·S in two dimensions)."""
        return math.prod(self.filter_size)

    def products(self, direction: Direction) -> int:
        """The most products summed into one output element of `direction`."""
        return self.view(direction).terms * (1 if direction == "grad_weight" else self.taps)

    @property
    def flops(self) -> int:
        """Floating-point operations of any one direction: a multiplication and an addition for each product of the
        forward pass, those with padding included, as is usual."""
        return 2 * math.prod(self.output_shape) * self.products("forward")

    @cached_property
    def meetings(self) -> int:
        """How often an output pixel of the batch and a filter tap meet at a pixel inside the input."""
        count = self.batch
        for h, r, p, s, (low, _), d in zip(
            self.input_size, self.filter_size, self.output_size, self.stride, self.padding, self.dilation, strict=True
        ):
            outputs = ((max(0, -((tap * d - low) // s)), min(p - 1, (h - 1 + low - tap * d) // s)) for tap in range(r))
            count *= sum(max(0, last - first + 1) for first, last in outputs)
        return count

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


def check_tensors(**tensors: torch.Tensor | None) -> None:
    """Raise unless all are tensors of one dtype on one device; TypeError or RuntimeError, naming the odd one."""
    (first_name, first), *others = tensors.items()
    for name, t in tensors.items():
        if t is not None and not isinstance(t, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(t).__name__}")
    assert first is not None
    for name, t in others:
        if t is None:
            continue
        if t.dtype != first.dtype:
            raise RuntimeError(
                f"{first_name.capitalize()} type ({first.dtype}) and {name} type ({t.dtype}) should be the same"
            )
        if t.device != first.device:
            raise RuntimeError(f"expected {name} on the device of {first_name} ({first.device}), but got {t.device}")
