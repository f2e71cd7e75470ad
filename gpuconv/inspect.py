"""What a kernel compiles to, for any GPU, without a GPU: registers, spills, shared memory, instructions.

    code = machine_code(launch, 90)          # a `gpuconv.backends.triton.Launch`
    code.registers, code.spills, code.shared, code.instructions["HGMMA"]

Triton compiles to machine code on any machine; the `cuobjdump` in its wheel reads it.
"""

import collections
import dataclasses
import re
import subprocess
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import MockTensor, create_function_from_signature

from gpuconv.backends.triton import Launch

TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA", "UTCMMA", "DMMA", "QMMA")


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """What the compiler made of a kernel."""

    registers: int  # of one thread
    spills: int  # bytes of stack, and instructions that use it
    shared: int  # bytes of shared memory of one block
    instructions: collections.Counter[str]  # how often each occurs in the text, by its name without suffixes

    @property
    def tensor_core(self) -> int:
        """Tensor-core instructions in the text."""
        return sum(n for name, n in self.instructions.items() if name in TENSOR_CORE)


def source_and_options(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton would compile on the first call of `launch` with aligned tensors, specialisations included."""
    kernel, backend = launch.kernel, make_backend(target)
    tensors = [None if dtype is None else MockTensor.wrap_dtype(dtype) for dtype in launch.dtypes]
    options = {"debug": False, **launch.options}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*tensors, *launch.rest, **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    return ASTSource(kernel, signature, constants, attributes), parsed.__dict__


def compile_for(launch: Launch, capability: int) -> Any:
    """Triton's compiled kernel for a GPU of this capability (80, 90, …). Needs no GPU."""
    target = GPUTarget("cuda", capability, 32)
    source, options = source_and_options(launch, target)
    return triton.compile(source, target=target, options=options)


def machine_code(launch: Launch, capability: int) -> MachineCode:
    """Compile `launch` for a GPU of this capability and read the result."""
    compiled = compile_for(launch, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, text = (_cuobjdump(flag, file.name) for flag in ("--dump-resource-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {usage!r}")
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_]*)", text, re.MULTILINE)
    instructions = collections.Counter(names)
    spills = int(found[2]) + instructions["LDL"] + instructions["STL"]
    return MachineCode(int(found[1]), spills, compiled.metadata.shared, instructions)


def _cuobjdump(flag: str, path: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
