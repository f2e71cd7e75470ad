"""From the arguments of a Triton launch to the parameters of its PTX, as Triton's own launchers pass them.

constexpr           → nothing (what Triton specialised to a constant too: 1, None)
tensor              → its pointer; the memory it covers is a range of its own
tuple               → its members
tensor descriptor   → sm_90 and newer: a TensorMap, then sizes (i32) and strides (i64), in elements
                      before: pointer, sizes, strides, padding, rounding (Triton 3.7 on); sizes and strides again
after them          → scratch memory of the launch, and the profiler's
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from gpuconv.emulator.arguments import aligned, extent
from gpuconv.emulator.tensor_map import ELEMENT_TYPES, SWIZZLES, TensorMap

_FLOAT_16 = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass
class Arguments:
    """Arguments of `program.Program.run`."""

    args: list[Any] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    buffers: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)  # address, bytes, name

    def add(self, name: str, *values: Any) -> None:
        """Add the parameters that one argument becomes."""
        self.args += values
        self.names += [name] * len(values)


class Signature:
    """The types of a kernel's arguments, as Triton compiled it for them."""

    def __init__(self, types: dict[Any, Any], descriptors: list[dict[str, Any]] | None) -> None:
        self.types = types
        self.descriptors = descriptors or []

    def flatten(self, kernel: str, given: tuple[Any, ...]) -> Arguments:
        """The kernel's parameters but those for scratch memory. Raises ValueError or TypeError naming the argument."""
        if len(given) != len(self.types):
            raise TypeError(f"{kernel} takes {len(self.types)} arguments, but got {len(given)}")
        arguments, found = Arguments(), iter(self.descriptors)
        for (name, kind), value in zip(self.types.items(), given, strict=True):
            try:
                self._add(str(name), kind, value, found, arguments)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{kernel}: {error}") from None
        return arguments

    def _add(self, name: str, kind: Any, value: Any, found: Iterator[dict[str, Any]], arguments: Arguments) -> None:
        if isinstance(kind, tuple):
            for at, (inner, member) in enumerate(zip(kind, value, strict=True)):
                self._add(f"{name}[{at}]", inner, member, found, arguments)
        elif kind == "constexpr":
            pass
        elif kind.startswith("tensordesc"):
            base = _tensor(name, value.base)
            sizes, strides = [*map(int, value.shape)], [*map(int, value.strides)]
            if self.descriptors:
                arguments.add(name, _tensor_map(name, value, base, next(found)))
                arguments.buffers.append((base.data_ptr(), extent(base), name))
            else:
                rounding = [value.round_f32_to_tf32] if hasattr(value, "round_f32_to_tf32") else []
                arguments.add(name, base, *sizes, *strides, value.padding == "nan", *rounding)
            arguments.add(name, *sizes, *strides)
        elif kind[0] == "*":
            arguments.add(name, value if value is None or isinstance(value, int) else _tensor(name, value))
        else:
            arguments.add(name, _scalar(name, kind, value))


def grid(kernel: str, *programs: Any) -> tuple[int, int, int]:
    """The number of programs in x, y and z.

    Raises TypeError for other than integers, ValueError beyond a GPU's limits.
    """
    for axis, count, most in zip("xyz", programs, (2**31 - 1, 65535, 65535), strict=True):
        if not isinstance(count, int):
            raise TypeError(f"{kernel}: the grid's {axis} must be an integer, but got {count!r}")
        if not 0 <= count <= most:
            raise ValueError(f"{kernel}: the grid's {axis} must be 0 to {most}, but got {count}")
    return programs


def add_scratch(arguments: Arguments, metadata: Any, blocks: int) -> None:
    """Add the last two parameters of Triton's kernels: scratch memory for descriptors, and the profiler's."""
    for kind, fill in ("global", 0xA5), ("profile", 0):  # nothing is promised of the former
        size, alignment = getattr(metadata, f"{kind}_scratch_size"), getattr(metadata, f"{kind}_scratch_align")
        memory = aligned(blocks * size, alignment, fill) if size else None
        arguments.add(f"{kind} scratch memory", memory)


def _tensor(name: str, value: Any) -> torch.Tensor:
    value = getattr(value, "base", value) if type(value).__name__ == "TensorWrapper" else value  # triton.reinterpret
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor on the CPU, but got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, where tensors stand for the GPU's, but is on {value.device}")
    return value


def _scalar(name: str, kind: str, value: Any) -> int | float | bytes:
    """A number as its parameter's type; 16-bit floats are structs of two bytes in PTX."""
    if kind in _FLOAT_16:
        return bytes(torch.tensor([float(value)], dtype=_FLOAT_16[kind]).view(torch.uint8).tolist())
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
    """The tensor map of a descriptor, with the box, swizzle and element type that the kernel was compiled for."""
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
