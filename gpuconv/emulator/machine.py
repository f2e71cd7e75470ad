"""Programs: PTX that is loaded once and run on arrays, checked and counted.

    counters = run_ptx(text, "kernel", grid=4, block=128, shared=0, args=[x, y, 3])

What a pointer argument points to is a range of its own: pointers of the virtual GPU are virtual addresses, 2^40 bytes
apart from range to range, so that an access outside its own tensor is always found, wherever it lands.
"""

import ctypes
import functools
import signal
import struct
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gpuconv.emulator import build
from gpuconv.emulator.counters import COUNTS, Counters, Instruction, pipe_of
from gpuconv.emulator.decode import decode
from gpuconv.emulator.decoding import RANGE_SHIFT
from gpuconv.emulator.errors import EmulationError, UnknownInstruction
from gpuconv.emulator.ptx import Parameter, parse
from gpuconv.emulator.runs import SCHEDULES, check_schedule
from gpuconv.emulator.tensor_map import ELEMENT_TYPES, MAGIC, TensorMap

_NO_MEMORY = 2  # what the core answers
# In the order of `Kind` in core/machine.h.
_KINDS = (
    "bounds", "alignment", "uninitialised", "race", "barrier", "deadlock", "copy engine", "wgmma", "unknown instruction",
    "trap", "interrupted",
)  # fmt: skip
_MOST_SHARED = 227 << 10  # bytes that a block may have on any GPU
_MAP_BYTES = 128
_MAGIC_AT = 116  # in the bytes of a TensorMap
Dim = int | Sequence[int]


class _Range(ctypes.Structure):
    _fields_ = (("first", ctypes.c_uint64), ("host", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


_INTERRUPTED = ctypes.CFUNCTYPE(ctypes.c_int32)


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_int32 * 3), ("block", ctypes.c_int32 * 3), ("cluster", ctypes.c_int32 * 3),
        ("shared", ctypes.c_int32), ("schedule", ctypes.c_int32), ("checks", ctypes.c_int32),
        ("parameter_bytes", ctypes.c_int32), ("seed", ctypes.c_uint32), ("range_count", ctypes.c_int32),
        ("parameters", ctypes.c_void_p), ("ranges", ctypes.c_void_p), ("interrupted", _INTERRUPTED),
    )  # fmt: skip


class _Fault(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32), ("instruction", ctypes.c_int32), ("other", ctypes.c_int32),
        ("block", ctypes.c_int32 * 3), ("thread", ctypes.c_int32), ("text", ctypes.c_char * 512),
    )  # fmt: skip


class Program:
    """A kernel, decoded. `load` makes it.

    ptx: its text; name; target ("sm_90a"); parameters; threads of a block, where the PTX says so; shared: bytes of
    static shared memory.
    """

    def __init__(self, ptx: str, name: str | None) -> None:
        library = _library()
        entry = parse(ptx, name)
        code = decode(entry)
        self.ptx = ptx
        self.name, self.target, self.threads = entry.name, entry.target, entry.threads
        self.parameters: tuple[Parameter, ...] = tuple(entry.parameters.values())
        self.shared = code.shared
        self._names = tuple(entry.parameters)
        self._dynamic = code.dynamic
        self._globals = [_of_module(data or b"\0") for data in code.globals]
        self._statements = code.statements
        self._bytes = max([0, *(p.offset + p.size for p in self.parameters)])
        numbers = [library.emulator_operation(operation.encode()) for operation in code.operations]
        if -1 in numbers:
            raise AssertionError(f"the core has no operation {code.operations[numbers.index(-1)]!r}")
        code.instructions["code"] = np.array(numbers, np.int32)[code.instructions["code"]]
        unknown = ctypes.c_int32(-1)
        self._handle = library.emulator_load(
            _address(code.instructions), len(code.instructions), _address(code.pool), len(code.pool),
            _address(code.tables), len(code.tables), _address(code.constants), len(code.constants),
            _address(code.special), code.slots, code.local, code.granule, ctypes.byref(unknown),
        )  # fmt: skip
        if not self._handle:
            at = self._statements[unknown.value]
            where = f", {at.source}" if at.source else ""
            raise UnknownInstruction(
                f"{self.name}: PTX line {at.line}{where}: {at.text[:160]} is not known to the emulator for this type",
                kernel=self.name, ptx_line=at.line, source=at.source,
            )  # fmt: skip
        weakref.finalize(self, library.emulator_free, self._handle)

    @functools.cached_property
    def lines(self) -> tuple[Instruction, ...]:
        """The instructions, for people: one for each row of `Counters.table`."""
        return tuple(Instruction(s.line, s.text, s.source, pipe_of(s.opcode)) for s in self._statements)

    def run(
        self,
        grid: Dim,
        block: Dim,
        shared: int,
        args: Sequence[Any],
        *,
        buffers: Sequence[tuple[int, int, str]] = (),
        names: Sequence[str] = (),
        schedule: str = "early",
        seed: int = 0,
        checks: bool = True,
        cluster: Dim = 1,
    ) -> Counters:
        """Run the kernel to its end, and give what it counted.

        grid, block, cluster: blocks, threads of a block, blocks of a cluster, as 1 to 3 integers. shared: bytes of
        dynamic shared memory. args: one for each parameter: a torch.Tensor on the CPU or an np.ndarray (a pointer to its
        first element; the kernel writes to its memory), an int, a float, the bytes of a struct, a TensorMap, or None (a
        null pointer). buffers: further memory, (address, bytes, name): an int of 8 bytes that lies in one of them is a
        pointer into it. names: what the args are called in messages.

        schedule: when asynchronous work is done: 'early' (at once), 'late' (as late as what waits for it allows) or
        'random' (from the seed, with warps and blocks in random order). checks: whether races in shared memory and
        values that were never written are looked for; bounds, alignment and barriers always are.

        Raises ValueError or TypeError for arguments that do not fit, EmulationError for what the kernel does wrong.
        """
        launch = _Launch()
        dims = {"grid": _dim("grid", grid), "block": _dim("block", block), "cluster": _dim("cluster", cluster)}
        for name, dim in dims.items():
            getattr(launch, name)[:] = dim
        threads = dims["block"][0] * dims["block"][1] * dims["block"][2]
        if not 1 <= threads <= 1024:
            raise ValueError(f"block must have 1 to 1024 threads, but got {threads} ({block})")
        if 0 in dims["cluster"]:
            raise ValueError(f"cluster must have 1 block at least, but got {cluster}")
        if any(g % c for g, c in zip(dims["grid"], dims["cluster"], strict=True)):
            raise ValueError(f"grid must be a multiple of cluster, but got {grid} and {cluster}")
        check_schedule(schedule)
        if not 0 <= shared <= _MOST_SHARED - self._dynamic:
            raise ValueError(f"shared must be 0 to {_MOST_SHARED - self._dynamic} bytes, but got {shared}")
        memory = _Memory(self._globals, buffers)
        parameters = self._parameters(args, names, memory)
        launch.shared = max(self.shared, self._dynamic + shared if shared else 0)
        launch.schedule, launch.seed, launch.checks = SCHEDULES.index(schedule), seed & 0xFFFFFFFF, checks
        launch.parameters, launch.parameter_bytes = ctypes.addressof(parameters), self._bytes
        ranges = (_Range * len(memory.ranges))(*memory.ranges)
        launch.ranges, launch.range_count = ctypes.addressof(ranges), len(memory.ranges)
        table = np.zeros(len(self._statements), COUNTS)
        fault = _Fault()
        failed = 0
        if 0 not in dims["grid"]:
            with _Interruption() as asked:
                launch.interrupted = asked.callback
                failed = _library().emulator_run(
                    self._handle, ctypes.byref(launch), _address(table), ctypes.byref(fault)
                )
        if failed == _NO_MEMORY:
            raise MemoryError(f"there is not enough memory to emulate kernel {self.name} with block {block}")
        if failed:
            raise self._error(fault, dims["block"], memory)
        return Counters(self.name, table, self.lines)

    def _parameters(self, args: Sequence[Any], names: Sequence[str], memory: "_Memory") -> ctypes.Array:
        if len(args) != len(self.parameters):
            raise ValueError(
                f"args must be {len(self.parameters)} for kernel {self.name}, one for each parameter, but got {len(args)}"
            )
        packed = bytearray(max(1, self._bytes))
        for number, (parameter, value) in enumerate(zip(self.parameters, args, strict=True)):
            called = names[number] if names else f"args[{number}] ({self._names[number]})"
            packed[parameter.offset : parameter.offset + parameter.size] = _pack(value, parameter, called, memory)
        return (ctypes.c_ubyte * len(packed)).from_buffer(packed)

    def _error(self, fault: _Fault, block: tuple[int, int, int], memory: "_Memory") -> EmulationError:
        at = self._statements[fault.instruction]
        kind, text = _KINDS[fault.kind], memory.named(fault.text.decode(errors="replace"))
        where = tuple(fault.block)
        thread = None
        if fault.thread >= 0:
            x, y, _ = block
            thread = (fault.thread % x, fault.thread // x % y, fault.thread // (x * y))
        message = f"{self.name}: {kind}: {text}\n  at {_place(at)}\n  block {where}"
        if thread is not None:
            message += f", thread {thread}"
        if fault.other >= 0:
            message += f"\n  the other: {_place(self._statements[fault.other])}"
        details = {"kernel": self.name, "ptx_line": at.line, "source": at.source}
        if kind == "unknown instruction":
            return UnknownInstruction(message, **details)
        return EmulationError(message, kind=kind, block=where, thread=thread, **details)


@functools.lru_cache(maxsize=1024)
def load(ptx: str, name: str | None = None) -> Program:
    """The entry of this name (the only one, where it is None) of a text of PTX, ready to run. Kept for the next call.

    Raises ValueError where there is no such entry, UnknownInstruction, which names the instruction and its line, and
    EmulatorUnavailable, with the reason, where there is no C++ compiler.
    """
    return Program(ptx, name)


def run_ptx(
    text: str, name: str | None, grid: Dim, block: Dim, shared: int, args: Sequence[Any], **options: Any
) -> Counters:
    """Run an entry of a text of PTX on arrays, and give what it counted: `load(text, name).run(…)`, see there."""
    return load(text, name).run(grid, block, shared, args, **options)


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


# ---- arguments -------------------------------------------------------------------------------------------------------


class _Memory:
    """The ranges of global memory that a launch may touch, numbered from 1, and their names for messages."""

    def __init__(self, own: Sequence[np.ndarray], buffers: Sequence[tuple[int, int, str]]) -> None:
        self.ranges: list[_Range] = []
        self.names: list[str] = []
        self._buffers: list[tuple[int, int, int]] = []
        for data in own:
            self.add(data.ctypes.data, data.nbytes, "a variable of the module")
        for address, size, name in buffers:
            self._buffers.append((address, size, self.add(address, size, name)))

    def add(self, host: int, size: int, name: str) -> int:
        """A range of `size` bytes; its first virtual address. The lowest bits are the host's, for alignment."""
        first = (len(self.ranges) + 1 << RANGE_SHIFT) + host % 256
        self.ranges.append(_Range(first, host, size))
        self.names.append(name)
        return first

    def find(self, address: int) -> int | None:
        """The virtual address of one that lies in a buffer (or just behind it); where several do, in that which begins
        there."""
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


def _pack(value: Any, parameter: Parameter, called: str, memory: _Memory) -> bytes:
    """The bytes of an argument."""
    size, kind = parameter.size, parameter.type
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{called} must be a tensor on the CPU, but got one on {value.device}")
        value = memory.add(value.data_ptr(), extent(value), called)
    elif isinstance(value, np.ndarray):
        steps = [(n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True)] if value.size else []
        before, behind = sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps) + value.itemsize * bool(value.size)
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


def _with_virtual_address(data: bytes, called: str, memory: _Memory) -> bytes:
    """The bytes of a struct, where they are a descriptor with its address in one of the ranges, or with one of its own:
    all that its tensor reaches."""
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


def _dim(name: str, value: Dim) -> tuple[int, int, int]:
    """Three integers for one to three."""
    given = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    if not 1 <= len(given) <= 3 or any(v < 0 for v in given):
        raise ValueError(f"{name} must be 1 to 3 integers of at least 0, but got {value!r}")
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


def _of_module(data: bytes) -> np.ndarray:
    """Memory that holds the data, where a range's virtual address has no lowest bits: decoded code has it as constant."""
    memory = aligned(len(data), 256)
    memory[:] = np.frombuffer(data, np.uint8)
    return memory


# ---- the core --------------------------------------------------------------------------------------------------------


class _Interruption:
    """While the core runs, Ctrl-C is noted: the core asks from time to time, and stops. An exception that a handler
    raises there would be lost."""

    def __init__(self) -> None:
        self.noted = False
        self.callback = _INTERRUPTED(lambda: int(self.noted))  # Python calls a signal's handler when this is called
        self._before: Any = None

    def __enter__(self) -> "_Interruption":
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.noted:
            raise KeyboardInterrupt

    def _note(self, *_: object) -> None:
        self.noted = True


@functools.cache
def _library() -> ctypes.CDLL:
    library = build.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.emulator_operation.argtypes = [ctypes.c_char_p]
    library.emulator_load.restype = pointer
    library.emulator_load.argtypes = [
        pointer, number, pointer, number, pointer, number, pointer, number, pointer, number, number, number, pointer
    ]  # fmt: skip
    library.emulator_free.argtypes = [pointer]
    library.emulator_free.restype = None
    library.emulator_run.argtypes = [pointer, pointer, pointer, pointer]
    return library


def _address(array: np.ndarray) -> int:
    address: int = array.ctypes.data
    return address


def _place(at: Any) -> str:
    text = at.text if len(at.text) <= 120 else at.text[:117] + "…"
    return f"PTX line {at.line}{f', {at.source}' if at.source else ''}: {text}"
