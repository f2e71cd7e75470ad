"""A GPU that is emulated in place of the CPU: launches of both backends run on it, on CPU tensors.

    with gpuconv.emulator.on("h100") as gpu:
        y = gpuconv.conv2d(x, w, backend="triton")  # planned as on an H100, compiled for it, run on the emulator
        gpu.launches, gpu.counters()

A `VirtualGpu` takes the place of a GPU's driver: it compiles each launch once for its GPU, by Triton or NVRTC, and runs
the PTX on the tensors. GPUCONV_EMULATE=h100 makes one for a whole process.
"""

import functools
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gpuconv import gpu as gpus
from gpuconv.backends.cuda import launch as cuda_launch
from gpuconv.emulator.build import why_not
from gpuconv.emulator.errors import EmulatorUnavailable
from gpuconv.emulator.runs import Runs
from gpuconv.gpu import Gpu, named
from gpuconv.planning import plan

if TYPE_CHECKING:
    from gpuconv.backends.triton.launch import Launch as TritonLaunch
    from gpuconv.emulator.program import Program
    from gpuconv.emulator.triton_arguments import Signature

VARIABLE = "GPUCONV_EMULATE"


class DoesNotFit(RuntimeError):
    """A block of a kernel needs more shared memory than the GPU has; a real one would refuse the launch."""


class _Compiled(NamedTuple):
    """A compiled kernel and its launch configuration, without tensors and numbers."""

    program: "Program"
    threads: int  # of a block
    shared: int  # bytes of dynamic shared memory of a block
    signature: "Signature | None" = None  # of a Triton kernel
    scratch: int = 0  # bytes of global memory of each program, in which it makes descriptors
    alignment: int = 1  # of the scratch memory, in bytes


class VirtualGpu(Runs):
    """A GPU that is emulated, with its launches and their counters."""

    def __init__(
        self, gpu: Gpu, schedule: str = "early", seed: int = 0, checks: bool = True, keeps: bool = True
    ) -> None:
        """schedule, seed, checks: see `on`. keeps: the counters of every launch, for `counters`."""
        super().__init__(schedule, seed, checks, keeps)
        self._gpu = gpu
        self.triton = _TritonRuntime(self)
        self.cuda = _CudaRuntime(self)

    @property
    def gpu(self) -> Gpu:
        """The GPU that is emulated. Raises EmulatorUnavailable where GPUCONV_EMULATE names one that cannot be."""
        return self._gpu

    def run(self, compiled: _Compiled, blocks: int, arguments: list[Any], **more: Any) -> None:
        """Run a kernel. Raises EmulationError for a fault in it."""
        self.execute(compiled.program, blocks, compiled.threads, compiled.shared, arguments, **more)


class _FromEnvironment(VirtualGpu):
    """The GPU that GPUCONV_EMULATE names. The name is not looked up before something is planned."""

    def __init__(self, name: str) -> None:
        super().__init__(gpus.INTERPRETER, keeps=False)
        self._name: str | None = name

    @property
    def gpu(self) -> Gpu:
        if self._name is not None:
            try:
                self._gpu, self._name = _available(self._name, VARIABLE), None
            except ValueError as error:
                raise EmulatorUnavailable(str(error)) from None
        return self._gpu


@contextmanager
def on(name: str, schedule: str = "early", seed: int = 0, checks: bool = True) -> Iterator[VirtualGpu]:
    """Within this context CPU tensors stand for those of the GPU called `name` ("h100", "a100", "t4", "sm_90", …).

    `auto` plans our kernels as it would there; backends `triton` and `cuda` take CPU tensors, compile for that GPU and
    run what is compiled on the emulator; float32 is multiplied as TF32 where PyTorch is set so. `numpy` and `aten` are
    what they always are. It holds for the whole process while it is active, autograd's threads included: enter and
    leave it while no other thread computes. Contexts nest; the innermost holds.

    schedule: asynchronous work is done "early", "late" (as late as its wait allows), or in "random" order, with warps
    and blocks, from `seed`. checks: find races and uninitialised values too. Gives the `VirtualGpu`, which has
    `counters()` and `launches`.

    Raises ValueError for a name or a schedule that is not known, EmulatorUnavailable, with the reason, where the
    emulator cannot run; within the context, EmulationError for a fault in a kernel.
    """
    gpu = VirtualGpu(_available(name, "name"), schedule, seed, checks)
    world = plan.emulate(gpu)
    try:
        yield gpu
    finally:
        plan.leave(world)


@contextmanager
def unrecorded(name: str, called: str) -> Iterator[None]:
    """`on` without counters, for many launches. called: what the name is called in an error."""
    world = plan.emulate(VirtualGpu(_available(name, called), keeps=False))
    try:
        yield
    finally:
        plan.leave(world)


def from_environment() -> None:
    """Emulate, from now on, the GPU that GPUCONV_EMULATE names, if any.

    A wrong name, or a GPU that cannot be emulated here, raises EmulatorUnavailable when something is first planned.
    """
    name = os.environ.get(VARIABLE)
    if name:
        plan.emulate(_FromEnvironment(name))


def _available(name: str, called: str) -> Gpu:
    """The GPU of this name. Raises TypeError, ValueError or EmulatorUnavailable where it cannot be emulated."""
    if not isinstance(name, str):
        raise TypeError(f"{called} must be a str, but got {type(name).__name__}")
    found = named(name, called)
    reason = why_not()
    if reason is not None:
        raise EmulatorUnavailable(f"{found.name} cannot be emulated here: {reason}")
    return found


# ---- from launches to programs ---------------------------------------------------------------------------------------


class _CudaRuntime:
    """The runtime of CUDA C launches: a `gpuconv.backends.cuda.launch.Runtime`."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self._gpu = gpu

    def unavailable(self) -> str | None:
        from gpuconv.backends.cuda import compiler as cuda_compile

        return cuda_compile.why_not()

    def launch(
        self, launch: cuda_launch.Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]
    ) -> None:
        compiled = _nvrtc(launch.instance, self._gpu.gpu)
        self._gpu.run(compiled, launch.blocks, [*tensors, launch.conv.tobytes()])

    def cannot_build(self, error: Exception) -> bool:
        return isinstance(error, DoesNotFit)


@functools.lru_cache(maxsize=1024)
def _nvrtc(instance: cuda_launch.Instance, gpu: Gpu) -> _Compiled:
    from gpuconv.backends.cuda import compiler as cuda_compile
    from gpuconv.emulator.program import load

    if instance.shared > gpu.shared_memory:
        raise DoesNotFit(f"{instance.function} needs {instance.shared:,} bytes of shared memory, and {gpu.name} has "
                         f"{gpu.shared_memory:,}")  # fmt: skip
    text = cuda_compile.ptx(instance, cuda_compile.architecture(gpu.capability), lines=True)
    return _Compiled(load(text, instance.function), instance.threads, instance.shared)


class _TritonRuntime:
    """The runtime of launches of Triton kernels: a `gpuconv.backends.cuda.launch.Runtime` too."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self._gpu = gpu
        self._compiled: weakref.WeakKeyDictionary[TritonLaunch, dict[tuple[bool, ...], _Compiled]]
        self._compiled = weakref.WeakKeyDictionary()
        self._one_at_a_time = threading.Lock()

    def unavailable(self) -> str | None:
        from gpuconv.backends.triton import launch as triton_launch

        return triton_launch.why_no_compiler()

    def launch(self, launch: "TritonLaunch", device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        # What Triton compiles for, beside the launch: which pointers are multiples of 16 bytes.
        whole = tuple(t is None or t.data_ptr() % 16 == 0 for t in tensors)
        with self._one_at_a_time:
            known = self._compiled.setdefault(launch, {})
            compiled = known.get(whole)
            if compiled is None:
                compiled = known[whole] = _triton(launch, tensors, self._gpu.gpu)
        from gpuconv.emulator.arguments import aligned

        assert compiled.signature is not None
        flat = compiled.signature.flatten(launch.kernel.__name__, launch.arguments(tensors))
        if compiled.scratch:
            flat.add("scratch memory", aligned(compiled.scratch * launch.programs, compiled.alignment))
        missing = len(compiled.program.parameters) - len(flat.args)  # what a profiler would write to
        flat.add("unused", *(None,) * missing)
        self._gpu.run(compiled, launch.programs, flat.args, buffers=flat.buffers)

    def cannot_build(self, error: Exception) -> bool:
        return False  # but for what Triton itself raises, which the backend knows


def _triton(launch: "TritonLaunch", tensors: tuple[torch.Tensor | None, ...], gpu: Gpu) -> _Compiled:
    from triton.runtime.errors import OutOfResources

    from gpuconv.backends.triton.compiler import compile_for
    from gpuconv.emulator.program import load
    from gpuconv.emulator.triton_arguments import Signature

    major, minor = gpu.capability
    compiled = compile_for(launch, 10 * major + minor, tensors)
    metadata = compiled.metadata
    if metadata.shared > gpu.shared_memory:
        raise OutOfResources(metadata.shared, gpu.shared_memory, "shared memory")
    program = load(compiled.asm["ptx"])
    signature = Signature(compiled.src.signature, getattr(metadata, "tensordesc_meta", None))
    threads = program.threads[0] if program.threads else 32 * metadata.num_warps
    return _Compiled(
        program, threads, metadata.shared, signature, metadata.global_scratch_size, metadata.global_scratch_align
    )
