"""Which (backend, device) pairs can be tested in this process: every one that runs here, named `backend-device`."""

import os
from typing import NamedTuple

import host_cuda
import pytest
import torch

import gpuconv

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
    check_integer_overflow(False)  # tests/kernels/triton/interpreted.py turns it on
    prepare_triton_once_a_launch()


class Lane(NamedTuple):
    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


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
        lanes += [Lane(name, "cuda") for name, backend in backends.items() if _runs_on(backend, device)]
    return lanes


def _runs_on(backend: gpuconv.backends.Backend, device: torch.device) -> bool:
    problem = gpuconv.ConvProblem.of((1, 1, 3, 3), (1, 1, 3, 3))
    return (backend.unavailable() or backend.refuses(problem, "forward", device)) is None


LANES = _lanes()
each_lane = pytest.mark.parametrize("lane", LANES, ids=str)
