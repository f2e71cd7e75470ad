"""A Triton launch's arguments → the parameters of its PTX, as Triton's own launchers hand them over.

constexpr           → nothing (what Triton specialised to a constant too: 1, None)
tensor              → its pointer; the memory it covers is a range of its own
tuple               → its members
tensor descriptor   → sm_90 and newer: a TensorMap, then sizes (i32) and strides (i64), in elements
                      before: pointer, sizes, strides, padding, rounding (Triton 3.7 on); sizes and strides again
after them          → scratch memory of the launch, and the profiler's
"""

from collections.abc import Iterator
from typing import Any

import torch

from gpuconv.emulator.tensor_map import ELEMENT_TYPES, SWIZZLES, TensorMap

_FLOAT_16 = {"fp16": torch.float16, "bf16": torch.bfloat16}
Buffer = tuple[int, int, str]  # address, bytes, name


class Signature:
    """The types of a kernel's arguments, as Triton compiled it for them."""

    def __init__(self, types: dict[Any, Any], descriptors: list[dict[str, Any]] | None) -> None:
        self.types = types
        self.descriptors = descriptors or []

    def flatten(self, kernel: str, given: tuple[Any, ...]) -> tuple[list[Any], list[Buffer]]:
        """What the kernel's parameters are, and further memory that they point into. Raises ValueError or TypeError
        naming the argument."""
        if len(given) != len(self.types):
            raise TypeError(f"{kernel} takes {len(self.types)} arguments, but got {len(given)}")
        args: list[Any] = []
        buffers: list[Buffer] = []
        found = iter(self.descriptors)
        for (name, kind), value in zip(self.types.items(), given, strict=True):
            self._add(f"{kernel}: {name}", kind, value, found, args, buffers)
        return args, buffers

    def _add(
        self, name: str, kind: Any, value: Any, found: Iterator[dict[str, Any]], args: list[Any], buffers: list[Buffer]
    ) -> None:
        if isinstance(kind, tuple):
            for at, (inner, member) in enumerate(zip(kind, value, strict=True)):
                self._add(f"{name}[{at}]", inner, member, found, args, buffers)
        elif kind == "constexpr":
            pass
        elif kind.startswith("tensordesc"):
            base = _tensor(name, value.base)
            sizes, strides = [*map(int, value.shape)], [*map(int, value.strides)]
            if self.descriptors:
                args.append(_tensor_map(name, value, base, next(found)))
                buffers.append((base.data_ptr(), extent(base), name))
            else:
                rounding = [value.round_f32_to_tf32] if hasattr(value, "round_f32_to_tf32") else []
                args += [base, *sizes, *strides, value.padding == "nan", *rounding]
            args += [*sizes, *strides]
        elif kind[0] == "*":
            args.append(value if value is None or isinstance(value, int) else _tensor(name, value))
        else:
            args.append(_scalar(name, kind, value))


def grid(kernel: str, *programs: Any) -> tuple[int, int, int]:
    """How many programs there are in x, y and z. Raises TypeError for what is no integer, ValueError for what no GPU
    launches."""
    for axis, count, most in zip("xyz", programs, (2**31 - 1, 65535, 65535), strict=True):
        if not isinstance(count, int):
            raise TypeError(f"{kernel}: the grid's {axis} must be an integer, but got {count!r}")
        if not 0 <= count <= most:
            raise ValueError(f"{kernel}: the grid's {axis} must be 0 to {most}, but got {count}")
    return programs  # type: ignore[return-value]


def extent(tensor: torch.Tensor) -> int:
    """Bytes from the tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + last) * tensor.element_size()


def scratch(metadata: Any, blocks: int) -> list[torch.Tensor | None]:
    """The two last parameters of Triton's kernels: memory in which blocks make descriptors, and the profiler's."""
    return [
        _aligned(blocks * metadata.global_scratch_size, metadata.global_scratch_align, 0xA5),  # nothing is promised
        _aligned(blocks * metadata.profile_scratch_size, metadata.profile_scratch_align, 0),
    ]


def _aligned(size: int, alignment: int, fill: int) -> torch.Tensor | None:
    if not size:
        return None
    memory = torch.full((size + alignment,), fill, dtype=torch.uint8)
    first = -memory.data_ptr() % alignment
    return memory[first : first + size]


def _tensor(name: str, value: Any) -> torch.Tensor:
    value = getattr(value, "base", value) if type(value).__name__ == "TensorWrapper" else value  # triton.reinterpret
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor on the CPU, but got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, where tensors stand for the GPU's, but is on {value.device}")
    return value


def _scalar(name: str, kind: str, value: Any) -> int | float:
    """A number as its parameter's type; integers that hold the bits of 16-bit floats."""
    if kind in _FLOAT_16:
        return int(torch.tensor(float(value), dtype=_FLOAT_16[kind]).view(torch.int16)) & 0xFFFF
    if kind in ("fp32", "f32", "fp64"):
        return float(value)
    if kind[0] not in "iu" or not kind[1:].isdigit():
        raise TypeError(f"{name} is of a type that the emulator does not know: {kind}")
    bits, signed = int(kind[1:]), kind[0] == "i"
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed and bits > 1 else (0, 2**bits - 1)
    if not least <= (number := int(value)) <= most:
        raise ValueError(f"{name} must be {least} to {most} ({kind}), but got {value}")
    return number


def _tensor_map(name: str, descriptor: Any, base: torch.Tensor, compiled: dict[str, Any]) -> TensorMap:
    """As Triton encodes a descriptor for what the kernel was compiled to: box, swizzle and element type."""
    if compiled.get("is_im2col"):
        raise ValueError(f"{name} is an im2col descriptor: the emulator copies tiles only")
    if descriptor.strides[-1] != 1:
        raise ValueError(f"{name} must have a last stride of 1, but has {tuple(descriptor.strides)}")
    element = tuple(ELEMENT_TYPES)[compiled["elem_type"]]
    sizes = [*map(int, descriptor.shape)]
    if compiled["fp4_padded"]:
        sizes[-1] *= 2
    return TensorMap(
        base.data_ptr(),
        "tf32" if getattr(descriptor, "round_f32_to_tf32", False) else element,
        tuple(reversed(sizes)),
        tuple(compiled["elem_size"] * int(stride) for stride in reversed(descriptor.strides[:-1])),
        tuple(reversed(compiled["block_size"])),
        swizzle=SWIZZLES[compiled["swizzle"]],
        fill="nan" if descriptor.padding == "nan" else "zero",
        name=name,
    )
