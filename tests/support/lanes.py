"""Which (backend, device) pairs can be tested in this process: every one that runs here, named `backend-device`; and on
which GPUs, emulated on the CPU, named `backend@gpu`."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import host_cuda
import pytest
import torch

import gpuconv
from gpuconv.emulator import device as emulator

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def check_integer_overflow(wanted: bool) -> None:
    """Whether Triton's interpreter checks every integer operation for overflow, which takes half of its time."""
    from triton.runtime import interpreter

    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=wanted)


def prepare_triton_once_a_launch() -> None:
    """Triton's interpreter prepares triton.language anew for every call of a helper function, which takes half of what
    time is left; once a launch is enough."""
    from triton.runtime import interpreter

    prepare, launch, prepared = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def call(self: interpreter.InterpretedFunction, *arguments: object, **named: object) -> object:
        modules = id(self.fn.__globals__.get("tl")), id(self.fn.__globals__.get("core"))
        if modules not in prepared:
            prepare(self.fn)
            prepared.add(modules)
        return self.rewrite()(*arguments, **named)

    def launch_afresh(self: interpreter.GridExecutor, *arguments: object, **named: object) -> None:
        prepared.clear()
        launch(self, *arguments, **named)

    interpreter.InterpretedFunction.__call__, interpreter.GridExecutor.__call__ = call, launch_afresh


if INTERPRETING:
    check_integer_overflow(False)  # tests/kernels/triton/interpreted_gather.py turns it on
    prepare_triton_once_a_launch()


class Lane(NamedTuple):
    backend: str
    device: str
    gpu: str | None = None  # that the CPU stands for

    def __str__(self) -> str:
        return f"{self.backend}@{self.gpu}" if self.gpu else f"{self.backend}-{self.device}"

    @property
    def on_gpu(self) -> bool:
        """Whether the tensors are a GPU's, or stand for such."""
        return self.device == "cuda" or self.gpu is not None

    def emulated(self, **how: Any) -> AbstractContextManager[emulator.VirtualGpu]:
        """`gpuconv.emulator.on` its GPU. Triton before 3.8 leaves out a fence on the H100: races in its kernels, which
        the emulator finds, are its own, and values are judged alone."""
        from gpuconv.backends.triton.launch import RELEASE

        racing = (self.backend, self.gpu) == ("triton", "h100") and RELEASE < (3, 8)
        return emulator.on(str(self.gpu), **({"checks": not racing} | how))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The context of a test of this lane. Skips it where the GPU cannot be emulated."""
        if self.gpu is None:
            yield
            return
        reason = emulator.why_not()
        if reason is not None:
            pytest.skip(f"no GPU can be emulated: {reason}")
        with self.emulated():
            reason = _why_not(gpuconv.backends.get(self.backend), torch.device(self.device))
            if reason is not None:
                pytest.skip(f"nothing is compiled for {self}: {reason}")
            yield


def _lanes() -> list[Lane]:
    if INTERPRETING:  # the process that interprets Triton's kernels tests those alone
        return [Lane("triton", "cpu")]
    lanes = [Lane("numpy", "cpu"), Lane("aten", "cpu")]
    if host_cuda.COMPILER:  # the CUDA kernels on the CPU; tests/kernels/cuda skip with this reason where there is none
        host_cuda.install()
        lanes.append(Lane("cuda", "cpu"))
    if torch.cuda.is_available():
        names = [name for name in gpuconv.backends.names() if name != "numpy"]
        backends = {name: gpuconv.backends.get(name) for name in names}
        device = torch.device("cuda")
        lanes += [Lane(name, "cuda") for name, backend in backends.items() if _why_not(backend, device) is None]
    return lanes


def _why_not(backend: gpuconv.backends.Backend, device: torch.device) -> str | None:
    """Why a backend does nothing on a device, or None."""
    problem = gpuconv.ConvProblem.of((1, 1, 3, 3), (1, 1, 3, 3))
    return backend.unavailable() or backend.refuses(problem, "forward", device)


# Of the emulated lanes one of each backend runs always.
EMULATED = {
    Lane("triton", "cpu", "h100"): True,
    Lane("triton", "cpu", "a100"): False,
    Lane("cuda", "cpu", "h100"): False,
    Lane("cuda", "cpu", "a100"): True,
    Lane("cuda", "cpu", "t4"): False,
}
LANES = _lanes()
OURS = [lane for lane in LANES if lane.backend != "aten"]  # `aten` has no ops of ours in its way
each_lane = pytest.mark.parametrize("lane", LANES, ids=str)
each_of_ours = pytest.mark.parametrize("lane", OURS, ids=str)
each_lane_and_gpu = pytest.mark.parametrize(
    "lane",
    LANES
    if INTERPRETING
    else [*LANES, *(pytest.param(lane, marks=[] if always else pytest.mark.full) for lane, always in EMULATED.items())],
    ids=str,
)
