"""Compiling Triton's kernels for any GPU, without one, and reading what came of it with the tools in Triton's wheel."""

import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import MockTensor, create_function_from_signature

from gpuconv.backends.triton.launch import Launch


def compile_for(launch: Launch, capability: int, tensors: tuple[torch.Tensor | None, ...] | None = None) -> Any:
    """Triton's compiled kernel for a GPU of this capability (80, 90, …): what the first call of `launch` with aligned
    tensors, or with these, would compile there, specialisations included. Needs no GPU."""
    source, target, _, options = _source(launch, capability, tensors)
    return triton.compile(source, target=target, options=options.__dict__)


def trace_for(launch: Launch, capability: int) -> Any:
    """The first form that Triton's compiler gives a kernel, in a fiftieth of the time that the last one takes. Raises
    what it has to say against the kernel's text, shapes and types."""
    source, target, backend, options = _source(launch, capability, None)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    made_of = backend.get_codegen_implementation(options), backend.get_module_map()
    return source.make_ir(target, options, *made_of, context)


def _source(
    launch: Launch, capability: int, tensors: tuple[torch.Tensor | None, ...] | None
) -> tuple[ASTSource, GPUTarget, Any, Any]:
    """What the compiler starts from: the kernel's text with its arguments, the GPU, its backend and options."""
    target = GPUTarget("cuda", capability, 32)
    kernel, backend = launch.kernel, make_backend(target)
    given = tensors or [None if dtype is None else MockTensor.wrap_dtype(dtype) for dtype in launch.dtypes]
    options = {"debug": False, **launch.options}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*launch.arguments(given), **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    of = GluonASTSource if launch.gluon else ASTSource
    return of(kernel, signature, constants, attributes), target, backend, parsed


def resource_usage(cubin: bytes, function: str = "") -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, of the function of that name in a cubin, "" for its first."""
    usage = cuobjdump(cubin, "--dump-resource-usage")
    found = re.search(rf"Function {function}.*:\s.*REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {usage!r}")
    return int(found[1]), int(found[2])


def cuobjdump(cubin: bytes, *flags: str) -> str:
    """What cuobjdump prints of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, *flags, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ptxas_warnings(ptx: str) -> list[str]:
    """The numbers of ptxas's warnings about Triton's PTX for sm_90 or older: C7515 where it makes each wgmma wait for
    the one before."""
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert architecture is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        ptxas = triton.knobs.nvidia.ptxas.path
        command = [ptxas, "-v", f"--gpu-name={architecture[1]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.findall(r"\bC\d{4}\b", said.stderr + said.stdout)
