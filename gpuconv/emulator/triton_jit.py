"""Triton's own JIT on the virtual GPU: any Triton or Gluon kernel, launched as always, on CPU tensors.

    with gpuconv.emulator.triton_gpu("h100") as gpu:
        kernel[grid](x, y, n, BLOCK=128)
    gpu.counters()  # one for each launch

While it is active, Triton has a driver whose only device is the virtual GPU: Triton compiles for it, and the emulator
runs the compiled PTX. Configurations are not timed: `triton.autotune` takes the first that
compiles and fits.
"""

import copy
import functools
import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.autotuner import Autotuner
from triton.runtime.cache import get_cache_manager
from triton.runtime.errors import OutOfResources, PTXASError

from gpuconv.backends.triton.compiler import resource_usage
from gpuconv.emulator import program, triton_arguments
from gpuconv.emulator.runs import Runs
from gpuconv.gpu import Gpu, named

if TYPE_CHECKING:
    from gpuconv.emulator.counters import Counters

_entered = threading.RLock()  # Triton has one active driver in a process
_REGISTERS, _THREADS = 65536, 1024  # of one block, on every GPU that Triton compiles for


class TritonGpu(Runs):
    """A virtual GPU that Triton's kernels run on; `triton_gpu` makes one. Its counters stay readable afterwards."""

    def __init__(self, gpu: Gpu, schedule: str, seed: int, checks: bool) -> None:
        super().__init__(schedule, seed, checks)
        self.gpu = gpu
        self._before: list[tuple[Any, Any]] = []  # what was active, for each time it was entered

    def counters(self, kernel: Any = None) -> list["Counters"]:
        """The counters of each launch, in order; with `kernel`, a name or a kernel itself, of its launches only."""
        if kernel is None or isinstance(kernel, str):
            return [counters for counters in super().counters() if kernel in (None, counters.kernel)]
        kernel = _function(kernel)
        return [counters for function, counters in self._ran if function is kernel]

    def __enter__(self) -> "TritonGpu":
        if triton.knobs.runtime.interpret:
            raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, and there is nothing to run on a GPU")
        _entered.acquire()
        self._before.append((triton.runtime.driver._active, Autotuner.run))  # None: Triton looks when it needs one
        triton.runtime.driver.set_active(_Driver(self))
        Autotuner.run = _first_that_compiles
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        driver, Autotuner.run = self._before.pop()
        triton.runtime.driver.set_active(driver)
        _entered.release()


def triton_gpu(gpu: str, *, schedule: str = "early", seed: int = 0, checks: bool = True) -> TritonGpu:
    """A context in which Triton's kernels run on a virtual GPU ("h100", "a100", "sm_90", …), on CPU tensors.

    schedule: when asynchronous work happens: "early" (at once), "late" (as late as allowed) or "random" (from `seed`).
    checks: races and uninitialised values are looked for too; bounds, alignment and barriers always are.

    Process-wide: Triton has one active driver, so kernels that other threads launch meanwhile run here too, one after
    the other; another thread that enters such a context waits until this one is left. Tensor arguments are CPU
    tensors, each a range of memory of its own. A pointer that a kernel finds in memory leads nowhere.

    Raises ValueError for an unknown `gpu` or `schedule`; RuntimeError where TRITON_INTERPRET is set. Launches raise
    `gpuconv.emulator.EmulationError` for a fault in a kernel, and ValueError or TypeError for arguments that a launch
    cannot have.
    """
    return TritonGpu(named(gpu), schedule, seed, checks)


class _Driver(DriverBase):
    """A driver as Triton uses it, whose only device is a virtual GPU."""

    def __init__(self, gpu: TritonGpu) -> None:
        self.emulated = gpu
        self.utils = self
        self.launcher_cls = _launcher

    @classmethod
    def is_active(cls) -> bool:
        return False  # never one of those that Triton finds on its own

    def map_python_to_cpp_type(self, ty: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return ty_to_cpp(ty)

    def get_current_target(self) -> GPUTarget:
        major, minor = self.emulated.gpu.capability
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> str:
        """Triton keeps compiled kernels by device: this one is none that PyTorch has."""
        return f"virtual {self.emulated.gpu.name}"

    def set_current_device(self, device: object) -> None:
        pass

    def get_device_capability(self, device: object = None) -> tuple[int, int]:
        return self.emulated.gpu.capability

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> NoReturn:
        raise RuntimeError("the virtual GPU has no clock: nothing can be timed on it")

    get_benchmarker = get_empty_cache_for_benchmark = get_device_interface

    # `utils`
    def get_device_properties(self, device: object = None) -> dict[str, int]:
        gpu = self.emulated.gpu
        return {
            "max_shared_mem": gpu.shared_memory, "max_num_regs": _REGISTERS, "warpSize": 32,
            "multiprocessor_count": gpu.multiprocessors,
        }  # fmt: skip

    def load_binary(self, name: str, cubin: bytes, shared: int, device: object) -> tuple[None, str, int, int, int]:
        """Gives no module, which another driver would unload; so Triton calls this before each launch again."""
        return None, name, *_resources(cubin, name), _THREADS


@functools.lru_cache(maxsize=1024)
def _resources(cubin: bytes, function: str) -> tuple[int, int]:
    """Registers and spilled registers of a function, as Triton counts them."""
    registers, stack = resource_usage(cubin, function)
    return registers, stack // 4


class _Launcher:
    """The object that Triton calls to launch one compiled kernel; it runs on the virtual GPU that is active then."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source, self.metadata = source, metadata
        self.function = getattr(source, "fn", None)
        self.signature = triton_arguments.Signature(source.signature, getattr(metadata, "tensordesc_meta", None))
        group = get_cache_manager(metadata.hash).get_group(f"{source.name[:150]}.json") or {}
        paths = [path for name, path in group.items() if name.endswith(".ptx")]
        if not paths:
            raise RuntimeError(f"Triton keeps no PTX of {metadata.name} (is TRITON_STORE_BINARY_ONLY set?)")
        with open(paths[0]) as file:
            self.program = program.load(file.read(), metadata.name)

    def __call__(
        self, x: object, y: object, z: object, stream: int, function: object, packed: object, launch_metadata: object,
        enter: Callable[[object], None] | None, leave: Callable[[object], None] | None, *given: Any,
    ) -> None:  # fmt: skip
        driver = triton.runtime.driver.active
        if not isinstance(driver, _Driver):
            raise RuntimeError(f"{self.metadata.name} was compiled for a virtual GPU whose context was left")
        grid = triton_arguments.grid(self.metadata.name, x, y, z)
        arguments = self.signature.flatten(self.metadata.name, given)
        ctas = getattr(self.metadata, "num_ctas", 1)
        if enter is not None:
            enter(launch_metadata)
        if programs := math.prod(grid):
            triton_arguments.add_scratch(arguments, self.metadata, programs * ctas)
            driver.emulated.execute(
                self.program, (grid[0] * ctas, *grid[1:]), of=self.function, block=(32 * self.metadata.num_warps, 1, 1),
                shared=self.metadata.shared, cluster=(ctas, 1, 1), **vars(arguments),
            )  # fmt: skip
        if leave is not None:
            leave(launch_metadata)


_launchers: dict[str, _Launcher] = {}  # by Triton's hash of what was compiled, and how


def _launcher(source: Any, metadata: Any) -> _Launcher:
    """The launcher of a compiled kernel, made once."""
    kept = _launchers.get(metadata.hash)
    if kept is None or kept.source is not source:
        kept = _launchers[metadata.hash] = _Launcher(source, metadata)
    return kept


def _function(kernel: Any) -> Any:
    """The JIT function inside of autotuners and heuristics."""
    while hasattr(kernel, "fn") and not isinstance(kernel, triton.JITFunction):
        kernel = kernel.fn
    return kernel


_run_tuned = Autotuner.run


def _first_that_compiles(tuner: Any, *args: Any, **named_args: Any) -> Any:
    """In place of Autotuner.run: take the first configuration that compiles, and leave those for real GPUs alone."""
    alone = copy.copy(tuner)
    alone.nargs = dict(zip(tuner.arg_names, args, strict=False))
    configs = alone.prune_configs(named_args) if len(tuner.configs) > 1 else tuner.configs
    for config in configs:
        alone.configs = [config]  # one is not timed
        try:
            return _run_tuned(alone, *args, **named_args)
        except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
            if config is configs[-1]:
                raise
        finally:
            tuner.best_config = config
