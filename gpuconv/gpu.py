"""GPUs as the planner sees them: `Gpu.of(device)` from the driver, and `KNOWN`, a few to plan for without one.

What they can do is what NVIDIA publishes, or else others have measured: the table says whose figures they are, and
which are guesses. What the planner's formula takes to be alike on all of them is in `gpuconv.backends.constants`.
"""

import dataclasses
import functools
import math
import re
from typing import Any, Protocol

import torch

from gpuconv.text import did_you_mean


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A device as the planner's formula sees it."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that one block may have
    threads: int  # resident on one multiprocessor
    blocks: int  # resident on one multiprocessor
    clock: float  # of multiprocessors and L2 cache, in Hz
    l2: int  # bytes
    l2_per_clock: float  # bytes that a multiprocessor gets from the L2 cache in a clock, while all of them read
    bandwidth: float  # bytes of device memory a second
    rate_16: float  # float16 and bfloat16 on tensor cores, summed in float32
    rate_tf32: float
    rate_32: float  # float32 without tensor cores
    rate_64: float  # float64 without tensor cores
    step_latency: float  # seconds from the load of a tile to its arrival from the L2 cache

    def rate(self, dtype: torch.dtype, tf32: bool) -> float:
        """Peak operations a second on operands of `dtype`; `tf32`: float32 on tensor cores."""
        if dtype is torch.float64:
            return self.rate_64
        if dtype.itemsize == 2 and (dtype is torch.float16 or self.capability >= (8, 0)):
            return self.rate_16
        return self.rate_tf32 if tf32 else self.rate_32

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that fit on a multiprocessor at once: by registers of each of their threads, bytes of shared memory,
        threads, and the limit on blocks. 0 if not even one does."""
        warps = threads // 32
        of_block = math.ceil(registers * 32 / _UNIT) * _UNIT * warps
        reserved = _RESERVED if self.capability >= (8, 0) else 0
        return min(
            _REGISTERS // max(1, of_block), (self.shared_memory + reserved) // max(1, shared + reserved),
            self.threads // threads, self.blocks,
        )  # fmt: skip

    @staticmethod
    def of(device: torch.device) -> "Gpu":
        """The GPU that `device` is: for the CPU the one that is emulated, if any, else `INTERPRETER`."""
        if device.type == "cpu" and emulation is not None:
            return emulation.gpu
        if device.type != "cuda":
            return INTERPRETER
        return _properties(torch.cuda.current_device() if device.index is None else device.index)


# Of a multiprocessor: registers, which warps are given in units, and the shared memory that the driver takes of each
# block (NVIDIA, CUDA C++ Programming Guide, 'Compute Capabilities', and for the units the CUDA occupancy calculator).
_REGISTERS, _UNIT, _RESERVED = 65536, 256, 1024
# Shared memory of a block, threads and blocks of a multiprocessor (the same table).
_LIMITS = {
    (7, 5): (64 << 10, 1024, 16),
    (8, 0): (163 << 10, 2048, 32),
    (8, 6): (99 << 10, 1536, 16),
    (8, 9): (99 << 10, 1536, 24),
    (9, 0): (227 << 10, 2048, 32),
    (10, 0): (227 << 10, 2048, 32),
    (12, 0): (99 << 10, 1536, 24),
}
# From the load of a tile to its arrival from the L2 cache, while other loads are under way: measured on an H100, on
# others a guess.
_FETCH_CLOCKS = 430


def _gpu(
    name: str,
    capability: tuple[int, int],
    sms: int,
    mhz: float,
    l2_mb: float,
    l2_per_clock: float,
    gbs: float,
    tflops: tuple[float, ...],
) -> Gpu:
    """A Gpu with the limits of its capability.

    l2_mb in MiB, gbs in 10⁹ bytes a second, tflops in 10¹² operations a second: 16-bit (before sm_80 float16), TF32,
    float32, float64.
    """
    clock, rates = mhz * 1e6, (t * 1e12 for t in tflops)
    l2, fetch = int(l2_mb * 2**20), _FETCH_CLOCKS / clock
    rate_16, rate_tf32, rate_32, rate_64 = rates
    return Gpu(
        name, capability, sms, *_LIMITS[capability], clock, l2, l2_per_clock, gbs * 1e9, rate_16, rate_tf32, rate_32,
        rate_64, fetch,
    )  # fmt: skip


# Dense rates with float32 sums, boost clocks, L2 sizes and bandwidths: NVIDIA's white papers 'Turing' (2018; T4: its
# data sheet), 'A100' (2020; its 40 GB), 'Ampere GA102' (2020), 'Ada' (2022; L4: its data sheet, halved, which has rates
# of sparse matrices), 'H100' (2022, SXM5), 'RTX Blackwell' (2025), and the data sheet of HGX B200 (2024; its clock is
# what its rates make, its L2 size what the driver reports). GeForce cards sum in float32 at half their rate: it is the
# halved one. Without tensor cores a T4 multiplies TF32 as float32.
# l2_per_clock: T4, Jia et al. 2019, 'Dissecting the NVidia Turing T4 GPU via Microbenchmarking' (1,270 GB/s); H100,
# measured (`gpuconv.backends.constants`); all others are guesses: GeForce cards and the L4 have less.
KNOWN = {
    gpu.name: gpu
    for gpu in (
        _gpu("T4", (7, 5), 40, 1590, 4, 20, 320, (65, 8.1, 8.1, 0.25)),
        _gpu("A100", (8, 0), 108, 1410, 40, 36, 1555, (312, 156, 19.5, 9.7)),
        _gpu("RTX 3090", (8, 6), 82, 1695, 6, 20, 936, (71, 35.6, 35.6, 0.56)),
        _gpu("L4", (8, 9), 58, 2040, 48, 20, 300, (121, 60, 30.3, 0.47)),
        _gpu("RTX 4090", (8, 9), 128, 2520, 72, 20, 1008, (165.2, 82.6, 82.6, 1.29)),
        _gpu("H100", (9, 0), 132, 1755, 50, 40, 3350, (989, 495, 67, 34)),
        _gpu("B200", (10, 0), 148, 1860, 126, 36, 8000, (2250, 1100, 80, 40)),
        _gpu("RTX 5090", (12, 0), 170, 2407, 96, 20, 1792, (209.5, 104.8, 104.8, 1.64)),
    )
}
EMULATED = " (emulated)"  # behind the name of a GPU that is emulated, in what is recorded of it
# One for each architecture that kernels are compiled for.
REPRESENTATIVE = {
    name: KNOWN[gpu]
    for name, gpu in (
        ("sm_75", "T4"), ("sm_80", "A100"), ("sm_86", "RTX 3090"), ("sm_89", "L4"), ("sm_90", "H100"),
        ("sm_100", "B200"), ("sm_120", "RTX 5090"),
    )
}  # fmt: skip


def named(name: str, called: str = "gpu") -> Gpu:
    """The known GPU called `name` ("h100", "rtx4090"), or the one that stands for an architecture ("sm_90").

    Capitals, spaces and hyphens do not matter. Raises ValueError for another name. called: what the name is called
    there: 'gpu', 'arch', …
    """

    def plain(text: str) -> str:
        return re.sub(r"[\s_-]", "", text.lower())

    known = REPRESENTATIVE | KNOWN if called == "arch" else KNOWN | REPRESENTATIVE
    found = {plain(word): gpu for word, gpu in known.items()}.get(plain(name))
    if found is None:
        raise ValueError(f"{called} must be one of {', '.join(known)}, but got {name!r}{did_you_mean(name, known)}")
    return found


def device_called(name: str) -> torch.device:
    """The device called 'cpu', 'cuda' or 'cuda:N'. Raises ValueError for another name, or a GPU that is not there."""
    kind, _, index = name.partition(":")
    if name not in ("cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise ValueError(f"device must be cpu, cuda or cuda:N, but got {name!r}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= gpus:
        raise ValueError(f"device {name!r} is not there: PyTorch finds {gpus or 'no'} GPU{'s' * (gpus != 1)}")
    return torch.device(name)


# The interpreter runs one program after the other and takes as long for a small step as for a large one.
INTERPRETER = Gpu(
    "Triton's interpreter", (0, 0), 1, 1 << 40, 128, 1, 1e15, 1 << 40, 1.0, 1e15, 1e15, 1e15, 1e15, 1e15, 4.5e-3
)


class Emulation(Protocol):
    """A GPU that the CPU stands for (`gpuconv.emulator`), and the runtimes that launches for it go to."""

    @property
    def gpu(self) -> Gpu:
        """The GPU. Raises RuntimeError where it cannot be emulated on this machine."""

    @property
    def triton(self) -> Any:
        """The `gpuconv.backends.cuda.launch.Runtime` of Triton's launches."""

    @property
    def cuda(self) -> Any:
        """The `gpuconv.backends.cuda.launch.Runtime` of CUDA C's launches."""


emulation: Emulation | None = None  # of this process, now; `gpuconv.planning.plan.emulate` changes it


@functools.cache
def _properties(index: int) -> Gpu:
    p = torch.cuda.get_device_properties(index)
    capability, multiprocessors = (p.major, p.minor), p.multi_processor_count
    like = nearest(p.name, capability, multiprocessors)
    scale = multiprocessors / like.multiprocessors  # rates of a like GPU, by the number of its processors
    return dataclasses.replace(
        like,
        name=p.name,
        capability=capability,
        multiprocessors=multiprocessors,
        shared_memory=getattr(p, "shared_memory_per_block_optin", like.shared_memory),
        threads=p.max_threads_per_multi_processor,
        l2=p.L2_cache_size,
        bandwidth=like.bandwidth if _is_called(p.name, like) else like.bandwidth * scale,
        **{name: getattr(like, name) * scale for name in ("rate_16", "rate_tf32", "rate_32", "rate_64")},
    )


def nearest(name: str, capability: tuple[int, int], multiprocessors: int) -> Gpu:
    """The known GPU that is most like one with these properties.

    One of the highest capability up to its own (else of the lowest known), then of its name, then nearest in
    multiprocessors.
    """
    known = {gpu.capability for gpu in KNOWN.values()}
    most = max((has for has in known if has <= capability), default=min(known))
    alike = [gpu for gpu in KNOWN.values() if gpu.capability == most]
    return min(
        alike,
        key=lambda gpu: (not _is_called(name, gpu), abs(math.log(gpu.multiprocessors / multiprocessors))),
    )  # fmt: skip


def _is_called(name: str, gpu: Gpu) -> bool:
    """Whether a device of this name is such a GPU: an L4 is, an L40S is not."""
    return re.search(rf"\b{re.escape(gpu.name)}\b", name) is not None
