"""What a kernel compiles to, for any GPU, without a GPU: registers, spills, shared memory, instructions.

    code = machine_code(launch, 90)          # a `gpuconv.backends.triton.Launch`
    code.registers, code.spills, code.shared, code.instructions["HGMMA"]

    code = cuda_machine_code(instance, "sm_90a")  # a `gpuconv.backends.cuda_launch.Instance`

Triton and NVRTC compile to machine code on any machine; the `cuobjdump` in Triton's wheel reads it.
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

from gpuconv.backends.cuda_cupy import COMMON_OPTIONS
from gpuconv.backends.cuda_launch import Instance, source
from gpuconv.backends.triton import Launch

TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA", "UTCMMA", "DMMA", "QMMA")


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """What the compiler made of a kernel."""

    registers: int  # of one thread
    spills: int  # bytes of stack, and instructions that use it
    shared: int  # bytes of shared memory of one block
    instructions: collections.Counter[str]  # how often each occurs in the text, by its name without suffixes
    of_16_bytes: collections.Counter[str]  # those of LDG, STG, LDS, STS and LDGSTS that move 16 bytes a thread
    spills_in_product: int  # instructions that use the stack between the first multiplication of the sum and the last

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
    return read_cubin(compiled.asm["cubin"], compiled.metadata.shared)


def cuda_machine_code(instance: Instance, architecture: str) -> MachineCode:
    """Compile a CUDA C kernel for an architecture ("sm_90a") with the NVRTC that CuPy uses, and read the result."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source(instance.file), instance.file, (), ())
    try:
        nvrtc.compileProgram(program, [f"--gpu-architecture={architecture}", *COMMON_OPTIONS, *instance.options])
        cubin = nvrtc.getCUBIN(program) + b"\0"  # CuPy's binding drops the last byte
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{instance} for {architecture}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)
    return read_cubin(cubin, instance.shared, instance.function)


def read_cubin(cubin: bytes, shared: int, function: str = "") -> MachineCode:
    """What a cubin holds; of one of its functions, where it has several. `shared`: bytes given at the launch."""
    of = ["-fun", function] if function else []
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, text = (_cuobjdump(*flags, file.name) for flags in (("--dump-resource-usage",), ("-sass", *of)))
    found = re.search(rf"Function {function}.*:\s.*REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {usage!r}")
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_]*)", text, re.MULTILINE)
    instructions = collections.Counter(names)
    wide = re.findall(r"\b(LDG|STG|LDS|STS|LDGSTS)\b[.\w]*\.128\b", text)
    products = [at for at, name in enumerate(names) if name in (*TENSOR_CORE, "FFMA", "DFMA")]
    inside = names[products[0] : products[-1]] if products else []
    spills = int(found[2]) + instructions["LDL"] + instructions["STL"]
    spills_inside = sum(name in ("LDL", "STL") for name in inside)
    return MachineCode(int(found[1]), spills, shared, instructions, collections.Counter(wide), spills_inside)


def _cuobjdump(*arguments: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout
