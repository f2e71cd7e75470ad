"""The machine code of a kernel, for any GPU, without one: registers, spills, shared memory, instructions.

    code = machine_code(launch, 90)          # a `gpuconv.backends.triton.launch.Launch`, sm_90
    code.registers, code.stack, code.shared, code.tensor_core, code.instructions["HGMMA"]

    code = cuda_machine_code(instance, "sm_90a")  # a `gpuconv.backends.cuda.launch.Instance`

Triton and NVRTC compile to machine code on any machine; the `cuobjdump` in Triton's wheel reads it.
"""

import collections
import dataclasses
import re
from functools import cached_property

from gpuconv.backends.cuda import compiler as cuda_compile
from gpuconv.backends.cuda.launch import Instance
from gpuconv.backends.triton.compiler import compile_for, cuobjdump, ptxas_warnings, resource_usage
from gpuconv.backends.triton.launch import Launch
from gpuconv.gpu import Gpu

_TENSOR_CORE_PTX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA", "UTCMMA", "DMMA", "QMMA")
_PRODUCTS = (*_TENSOR_CORE, "FFMA", "DFMA", "HFMA2", "FADD", "DADD")
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_]*)([^;\n]*)", re.MULTILINE
)  # address, name, the rest
_TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")
_WIDE = re.compile(r"\b(LDG|STG|LDS|STS|LDGSTS)\b[.\w]*\.128\b")


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """The machine code of a kernel. Its text is read when it is first needed, which takes half a second."""

    registers: int  # of one thread
    stack: int  # bytes for one thread: registers that were spilled
    shared: int  # bytes of shared memory of one block
    cubin: bytes = dataclasses.field(repr=False)
    function: str = ""  # which of the cubin's, where it has several
    ptx: str = dataclasses.field(default="", repr=False)  # of Triton's kernels
    ttgir: str = dataclasses.field(default="", repr=False)  # Triton's GPU dialect: buffers, copies, products, waits
    scratch: int = 0  # bytes of global memory of one block, in which Triton's kernels make descriptors
    threads: int = 0  # of a block, of Triton's kernels

    @cached_property
    def sass(self) -> str:
        """The machine instructions as text."""
        return cuobjdump(self.cubin, "-sass", *(["-fun", self.function] if self.function else []))

    @cached_property
    def warnings(self) -> list[str]:
        """The numbers of what ptxas warns of, for Triton's kernels up to sm_90, for which it must assemble again."""
        return ptxas_warnings(self.ptx)

    @cached_property
    def _listing(self) -> list[tuple[int, str, str]]:
        return [(int(address, 16), name, rest) for address, name, rest in _INSTRUCTION.findall(self.sass)]

    @property
    def _names(self) -> list[str]:
        return [name for _, name, _ in self._listing]

    @cached_property
    def instructions(self) -> collections.Counter[str]:
        """The number of occurrences of each machine instruction, by its name without suffixes."""
        return collections.Counter(self._names)

    @cached_property
    def loop_instructions(self) -> collections.Counter[str]:
        """The instructions of the main loop, counted by name; empty without a loop.

        Of all loops, which branches backwards close, it is the one with the most multiplications (on tensor cores,
        where there are any), and of those the shortest. Where warps have tasks of their own, it is the shortest of
        those that multiply: one task's.
        """
        apart = "setmaxnreg" in self.ptx
        loops = []
        products = _TENSOR_CORE if any(name in _TENSOR_CORE for name in self._names) else _PRODUCTS
        for end, name, rest in self._listing:
            target = _TARGET.search(rest) if name == "BRA" else None
            if target is not None and (start := int(target[1], 16)) < end:
                inside = [name for address, name, _ in self._listing if start <= address <= end]
                count = sum(name in products for name in inside)
                loops.append((min(count, 1) if apart else count, -len(inside), inside))
        return collections.Counter(max(loops)[2] if loops else ())

    @property
    def tensor_core(self) -> int:
        """The number of tensor-core instructions: in the PTX where there is one, else in the machine code."""
        if self.ptx:
            return len(_TENSOR_CORE_PTX.findall(self.ptx))
        return sum(self.instructions[name] for name in _TENSOR_CORE)

    @property
    def spills(self) -> int:
        """Bytes of stack plus instructions that use it: 0 for a kernel without spills."""
        return self.stack + self.instructions["LDL"] + self.instructions["STL"]

    @property
    def of_16_bytes(self) -> collections.Counter[str]:
        """The loads and stores (LDG, STG, LDS, STS, LDGSTS) that move 16 bytes a thread, counted by name."""
        return collections.Counter(_WIDE.findall(self.sass))

    @property
    def spills_in_product(self) -> int:
        """The number of instructions that use the stack between the first multiplication and the last."""
        products = [at for at, name in enumerate(self._names) if name in (*_TENSOR_CORE, "FFMA", "DFMA")]
        inside = self._names[products[0] : products[-1]] if products else []
        return sum(name in ("LDL", "STL") for name in inside)


def machine_code(launch: Launch, capability: int) -> MachineCode:
    """Compile `launch`, of a Triton kernel, for a capability (90 for sm_90) and read the result."""
    compiled = compile_for(launch, capability)
    code = read_cubin(
        compiled.asm["cubin"], compiled.metadata.shared, ptx=compiled.asm["ptx"], ttgir=compiled.asm["ttgir"]
    )
    return dataclasses.replace(
        code, scratch=compiled.metadata.global_scratch_size, threads=32 * compiled.metadata.num_warps
    )


def cuda_architecture(gpu: Gpu) -> str:
    """The architecture that NVRTC compiles for on a GPU: "sm_80", "sm_90a"."""
    return cuda_compile.architecture(gpu.capability)


def cuda_machine_code(instance: Instance, architecture: str) -> MachineCode:
    """Compile a CUDA C kernel for an architecture ("sm_90a") as it is compiled to be launched, and read the result.
    Raises ModuleNotFoundError where CuPy, which brings the way to NVRTC, is not installed."""
    return read_cubin(cuda_compile.cubin(instance, architecture), instance.shared, instance.function)


def cuda_ptx(instance: Instance, architecture: str) -> str:
    """The PTX that NVRTC makes of a CUDA C kernel for an architecture."""
    return cuda_compile.ptx(instance, architecture)


def read_cubin(cubin: bytes, shared: int, function: str = "", ptx: str = "", ttgir: str = "") -> MachineCode:
    """The machine code of a function in a cubin; the first where `function` is "". shared: its bytes a block."""
    registers, stack = resource_usage(cubin, function)
    return MachineCode(registers, stack, shared, cubin, function, ptx, ttgir)
