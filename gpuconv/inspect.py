"""What a kernel compiles to, for any GPU, without a GPU: registers, spills, shared memory, instructions.

    code = machine_code(launch, 90)          # a `gpuconv.backends.triton.Launch`, sm_90
    code.registers, code.stack, code.shared, code.tensor_core, code.instructions["HGMMA"]

Triton compiles to machine code on any machine; the `cuobjdump` in its wheel reads it.
"""

import collections
import dataclasses
import re
import subprocess
import tempfile
from functools import cached_property
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import MockTensor, create_function_from_signature

from gpuconv.backends.triton import Launch

_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_]*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """What the compilers made of a kernel."""

    registers: int  # of one thread
    stack: int  # bytes for one thread: registers that were spilled
    shared: int  # bytes of shared memory of one block
    ptx: str
    cubin: bytes = dataclasses.field(repr=False)

    @property
    def tensor_core(self) -> int:
        """Tensor-core instructions in the PTX."""
        return len(_TENSOR_CORE.findall(self.ptx))

    @cached_property
    def instructions(self) -> collections.Counter[str]:
        """How often each machine instruction occurs, by its name without suffixes. Takes a good part of a second."""
        return collections.Counter(_INSTRUCTION.findall(_cuobjdump("-sass", self.cubin)))


def compile_for(launch: Launch, capability: int) -> Any:
    """Triton's compiled kernel for a GPU of this capability (80, 90, …): what the first call of `launch` with aligned
    tensors would compile there, specialisations included. Needs no GPU."""
    target = GPUTarget("cuda", capability, 32)
    kernel, backend = launch.kernel, make_backend(target)
    tensors = [None if dtype is None else MockTensor.wrap_dtype(dtype) for dtype in launch.dtypes]
    options = {"debug": False, **launch.options}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*tensors, *launch.rest, **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=parsed.__dict__)


def machine_code(launch: Launch, capability: int) -> MachineCode:
    """Compile `launch` for a GPU of this capability and read the result."""
    compiled = compile_for(launch, capability)
    cubin = compiled.asm["cubin"]
    usage = _cuobjdump("--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {usage!r}")
    return MachineCode(int(found[1]), int(found[2]), compiled.metadata.shared, compiled.asm["ptx"], cubin)


def _cuobjdump(flag: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, flag, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
