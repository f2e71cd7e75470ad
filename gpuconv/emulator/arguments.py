"""The arguments of a launch: memory in ranges with virtual addresses, and the bytes of the parameters."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from gpuconv.emulator.decode.base import RANGE_SHIFT
from gpuconv.emulator.ptx import Parameter
from gpuconv.emulator.tensor_map import ELEMENT_TYPES, MAGIC, TensorMap

_MAP_BYTES = 128
_MAGIC_AT = 116  # in the bytes of a TensorMap


def extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + last) * tensor.element_size()


def aligned(size: int, alignment: int, fill: int = 0xA5) -> np.ndarray:
    """Memory of `size` bytes, all `fill`, that begins at a multiple of `alignment`."""
    memory = np.full(size + alignment, fill, np.uint8)
    first = -memory.ctypes.data % alignment
    return memory[first : first + size]


class Range(NamedTuple):
    """A range of memory that a kernel may access."""

    first: int  # its first virtual address
    host: int  # its address in this process
    size: int  # bytes


class Memory:
    """The ranges of global memory that a launch may access, numbered from 1, and their names for messages."""

    def __init__(self, own: Sequence[np.ndarray], buffers: Sequence[tuple[int, int, str]]) -> None:
        self.ranges: list[Range] = []
        self.names: list[str] = []
        self._buffers: list[tuple[int, int, int]] = []
        for data in own:
            self.add(data.ctypes.data, data.nbytes, "a variable of the module")
        for address, size, name in buffers:
            self._buffers.append((address, size, self.add(address, size, name)))

    def add(self, host: int, size: int, name: str) -> int:
        """Add a range of `size` bytes; gives its first virtual address, aligned as the host's (its lowest 8 bits)."""
        first = (len(self.ranges) + 1 << RANGE_SHIFT) + host % 256
        self.ranges.append(Range(first, host, size))
        self.names.append(name)
        return first

    def find(self, address: int) -> int | None:
        """The virtual address of an address in a buffer, or just behind it; None for another address.

        Where it lies in several buffers, the one that begins there counts.
        """
        for start, _, first in self._buffers:
            if start == address:
                return first
        for start, size, first in self._buffers:
            if start <= address < start + size:
                return first + address - start
        return next((first + size for start, size, first in self._buffers if address == start + size), None)

    def named(self, text: str) -> str:
        """A message of the core with its numbers of buffers replaced by names."""
        for number in range(len(self.names), 0, -1):
            text = text.replace(f"buffer #{number},", f"{self.names[number - 1]},")
            text = text.replace(f"argument {number} ", f"{self.names[number - 1]} ")
        return text


def pack(value: Any, parameter: Parameter, called: str, memory: Memory) -> bytes:
    """The bytes of an argument, as its parameter's type. Raises ValueError or TypeError, which name it as `called`."""
    size, kind = parameter.size, parameter.type
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{called} must be a tensor on the CPU, but got one on {value.device}")
        value = memory.add(value.data_ptr(), extent(value), called)
    elif isinstance(value, np.ndarray):
        steps = [(n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True)] if value.size else []
        before, behind = (
            sum(min(s, 0) for s in steps),
            sum(max(s, 0) for s in steps) + value.itemsize * bool(value.size),
        )
        first = memory.add(value.ctypes.data + before, behind - before, called)
        value = first - before  # the pointer is to the first element, wherever in the memory that is
    elif isinstance(value, TensorMap):
        value = bytes(value)
    elif value is None:
        value = 0
    elif isinstance(value, int) and size == 8 and (found := memory.find(value)) is not None:
        value = found
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        if len(data) != size:
            raise ValueError(f"{called} must have {size} bytes, but got {len(data)}")
        return _with_virtual_address(data, called, memory)
    if isinstance(value, (bool, int, np.integer)):
        if kind in ("f32", "f64"):
            return struct.pack("<f" if kind == "f32" else "<d", float(value))
        if size > 8:
            raise TypeError(f"{called} must be the {size} bytes of a struct, but got {value!r}")
        return (int(value) & (1 << 8 * size) - 1).to_bytes(size, "little")
    if isinstance(value, (float, np.floating)):
        if size not in (4, 8) or kind[0] == "u" or kind[0] == "s":
            raise TypeError(f"{called} must be an integer of {size} bytes, but got {value!r}")
        return struct.pack("<f" if size == 4 else "<d", float(value))
    raise TypeError(
        f"{called} must be a tensor, an array, a number, bytes, a TensorMap or None, but got {type(value).__name__}"
    )


def _with_virtual_address(data: bytes, called: str, memory: Memory) -> bytes:
    """The bytes of a struct; those of a TMA descriptor with the virtual address of its tensor.

    A tensor that lies in none of the ranges becomes a range of its own.
    """
    if len(data) != _MAP_BYTES or data[_MAGIC_AT : _MAGIC_AT + len(MAGIC)] != MAGIC:
        return data
    (host,) = struct.unpack_from("<Q", data)
    virtual = memory.find(host)
    if virtual is None:
        virtual = memory.add(host, _reach(data), called)
    return struct.pack("<Q", virtual) + data[8:]


def _reach(data: bytes) -> int:
    """Bytes from the first element of a descriptor's tensor to its last."""
    (rank,) = struct.unpack_from("<I", data, 8)
    sizes = struct.unpack_from("<5I", data, 32)
    element = list(ELEMENT_TYPES.values())[data[72]]
    strides = (element, *struct.unpack_from("<5Q", data, 76))
    return element + sum((n - 1) * stride for n, stride in zip(sizes[: rank + 1], strides, strict=False))


def of_module(data: bytes) -> np.ndarray:
    """Memory that holds a module's data, at a multiple of 256 bytes: its virtual address is a constant of the code."""
    memory = aligned(len(data), 256)
    memory[:] = np.frombuffer(data, np.uint8)
    return memory
