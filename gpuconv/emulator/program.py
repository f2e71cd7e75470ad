"""Programs: PTX that is loaded once and run on arrays, checked and counted.

    counters = run_ptx(text, "kernel", grid=4, block=128, shared=0, args=[x, y, 3])

Each pointer argument has a range of memory of its own: pointers of the virtual GPU are virtual addresses, 2^40 bytes
apart from range to range, so that an access outside its own tensor is always found, wherever it lands.
"""

import ctypes
import functools
import signal
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.emulator import build
from gpuconv.emulator.arguments import Memory, of_module, pack
from gpuconv.emulator.counters import COUNTS, Counters, Instruction, pipe_of
from gpuconv.emulator.decode import decode
from gpuconv.emulator.errors import EmulationError, UnknownInstruction
from gpuconv.emulator.ptx import Parameter, main_loops, parse
from gpuconv.emulator.runs import SCHEDULES, check_schedule

_NO_MEMORY = 2  # the core's answer when it runs out of memory
# In the order of `Kind` in core/machine.h.
_KINDS = (
    "bounds", "alignment", "uninitialised", "race", "barrier", "deadlock", "copy engine", "wgmma",
    "unknown instruction", "trap", "interrupted",
)  # fmt: skip
_MOST_SHARED = 227 << 10  # bytes that a block may have on any GPU
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
        self._globals = [of_module(data or b"\0") for data in code.globals]
        self._statements = code.statements
        self._main_loops = main_loops(entry)
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

        def main(line: int) -> bool:
            return any(first <= line <= last for first, last in self._main_loops)

        return tuple(Instruction(s.line, s.text, s.source, pipe_of(s.opcode), main(s.line)) for s in self._statements)

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
        """Run the kernel to its end, and give its counters.

        grid, block, cluster: blocks, threads of a block, blocks of a cluster, as 1 to 3 integers. shared: bytes of
        dynamic shared memory. args: one for each parameter: a torch.Tensor on the CPU or an np.ndarray (a pointer to
        its first element; the kernel writes to its memory), an int, a float, the bytes of a struct, a TensorMap, or
        None (a null pointer). buffers: further memory, (address, bytes, name): an int of 8 bytes that lies in one of
        them is a pointer into it. names: what the args are called in messages.

        schedule: when asynchronous work is done: 'early' (at once), 'late' (as late as what waits for it allows) or
        'random' (from the seed, with warps and blocks in random order). checks: whether races in shared memory and
        values that were never written are looked for; bounds, alignment and barriers always are.

        Raises ValueError or TypeError for arguments that do not fit, EmulationError for a fault in the kernel,
        MemoryError where the memory of this machine does not suffice.
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
        memory = Memory(self._globals, buffers)
        parameters = self._parameters(args, names, memory)
        launch.shared = max(self.shared, self._dynamic + shared if shared else 0)
        launch.schedule, launch.seed, launch.checks = SCHEDULES.index(schedule), seed & 0xFFFFFFFF, checks
        launch.parameters, launch.parameter_bytes = ctypes.addressof(parameters), self._bytes
        ranges = (_Range * len(memory.ranges))(*(_Range(*each) for each in memory.ranges))
        launch.ranges, launch.range_count = ctypes.addressof(ranges), len(memory.ranges)
        table = np.zeros(len(self._statements), COUNTS)
        fault = _Fault()
        failed = 0
        if 0 not in dims["grid"]:
            with _Interruption() as interruption:
                launch.interrupted = interruption.callback
                failed = _library().emulator_run(
                    self._handle, ctypes.byref(launch), _address(table), ctypes.byref(fault)
                )
        if failed == _NO_MEMORY:
            raise MemoryError(f"there is not enough memory to emulate kernel {self.name} with block {block}")
        if failed:
            raise self._error(fault, dims["block"], memory)
        return Counters(self.name, table, self.lines)

    def _parameters(self, args: Sequence[Any], names: Sequence[str], memory: Memory) -> ctypes.Array:
        if len(args) != len(self.parameters):
            wanted = len(self.parameters)
            raise ValueError(
                f"args must be {wanted} for kernel {self.name}, one for each parameter, but got {len(args)}"
            )
        packed = bytearray(max(1, self._bytes))
        for number, (parameter, value) in enumerate(zip(self.parameters, args, strict=True)):
            called = names[number] if names else f"args[{number}] ({self._names[number]})"
            packed[parameter.offset : parameter.offset + parameter.size] = pack(value, parameter, called, memory)
        return (ctypes.c_ubyte * len(packed)).from_buffer(packed)

    def _error(self, fault: _Fault, block: tuple[int, int, int], memory: Memory) -> EmulationError:
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
    """The entry of this name (None: the only one) of a text of PTX, ready to run. Kept for the next call.

    Raises ValueError where there is no such entry, UnknownInstruction, which names the instruction and its line, and
    EmulatorUnavailable, with the reason, where there is no C++ compiler.
    """
    return Program(ptx, name)


def run_ptx(
    text: str, name: str | None, grid: Dim, block: Dim, shared: int, args: Sequence[Any], **options: Any
) -> Counters:
    """Run an entry of a text of PTX on arrays, and give its counters: `load(text, name).run(…)`, see there."""
    return load(text, name).run(grid, block, shared, args, **options)


def _dim(name: str, value: Dim) -> tuple[int, int, int]:
    """One to three integers as three."""
    given = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    if not 1 <= len(given) <= 3 or any(v < 0 for v in given):
        raise ValueError(f"{name} must be 1 to 3 integers of at least 0, but got {value!r}")
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


# ---- the core --------------------------------------------------------------------------------------------------------


class _Interruption:
    """A context in which Ctrl-C is noted; the core looks from time to time, and stops.

    An exception that a signal's handler raises while the core runs would be lost.
    """

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
