"""How the `triton` backend launches, and what it says where it cannot: on the host, no GPU, no interpreter."""

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import triton

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.backends import BackendUnavailable
from gpuconv.backends.base import Tile, contiguous_operands
from gpuconv.backends.triton import backend, launch as triton_launch
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem

TILE = Tile(64, 64, 32, warps=4, stages=3)
PROBLEM = ConvProblem.of((2, 8, 5, 6), (8, 8, 3, 3), padding=1, dtype=torch.float16)


class Recorder:
    """Stands for a kernel: notes how it is launched, the ordinary way or compiled."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> Any:
            self.launches.append(("ordinary", arguments))
            return SimpleNamespace(run=self.compiled, function=7, packed_metadata=())

        return launch

    def compiled(self, *arguments: Any) -> None:
        self.launches.append(("compiled", arguments))

    @property
    def ways(self) -> list[str]:
        return [way for way, _ in self.launches]


@pytest.fixture
def launch() -> triton_launch.Launch:
    launch = backend.launches(PROBLEM, "grad_input", plan.contiguous_operands(PROBLEM, "grad_input"), TILE)[0]
    launch.kernel = Recorder()
    return launch


def test_later_launches_go_to_the_compiled_kernel(launch: triton_launch.Launch) -> None:
    tensors = [torch.empty(64) for _ in range(3)]
    for _ in range(3):
        launch(5, *tensors)
    assert launch.kernel.ways == ["ordinary", "compiled", "compiled"]
    _, arguments = launch.kernel.launches[-1]
    assert arguments[:5] == (launch.programs, 1, 1, 5, 7)
    assert arguments[9:12] == tuple(t.data_ptr() for t in tensors)
    assert arguments[12:] == launch.rest


def test_a_tensor_that_is_not_aligned_takes_the_ordinary_way(launch: triton_launch.Launch) -> None:
    a, b, c = (torch.empty(64) for _ in range(3))
    launch(0, a, b[1:], c)  # first: what it compiles holds for such tensors alone
    launch(0, a, b, c)
    launch(0, a, b, c[1:])
    launch(0, a, b, c)
    assert launch.kernel.ways == ["ordinary", "ordinary", "ordinary", "compiled"]


def test_another_thread_never_sees_half_of_a_compiled_kernel(launch: triton_launch.Launch) -> None:
    """One calls while the first call is taking over what it compiled."""
    tensors = [torch.empty(64) for _ in range(3)]
    recorder = launch.kernel

    class Compiled:
        run, packed_metadata = recorder.compiled, ()

        @property
        def function(self) -> int:
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=launch, args=(5, *tensors))
                other.start()
                other.join()
            return 7

    launch.use(Compiled())
    launch(5, *tensors)
    assert recorder.ways == ["ordinary", "compiled"]
    assert {arguments[4] for way, arguments in recorder.launches if way == "compiled"} == {7}


def test_a_profiler_sees_every_launch(launch: triton_launch.Launch) -> None:
    tensors = [torch.empty(64) for _ in range(3)]
    launch(0, *tensors)
    hook = print
    triton.knobs.runtime.launch_enter_hook.add(hook)
    try:
        launch(0, *tensors)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(hook)
    launch(0, *tensors)
    assert launch.kernel.ways == ["ordinary", "ordinary", "compiled"]


def test_nothing_to_compute_launches_nothing() -> None:
    empty = ConvProblem.of((0, 8, 5, 6), (8, 8, 3, 3))
    (launch,) = backend.launches(empty, "forward", plan.contiguous_operands(empty, "forward"), TILE)
    launch.kernel = Recorder()
    launch(0, *[torch.empty(0)] * 3)
    assert launch.kernel.ways == []
    assert backend.launches(empty, "grad_weight", plan.contiguous_operands(empty, "grad_weight"), TILE)[0].programs > 0


def test_launches_run_on_the_device_of_the_tensors(
    monkeypatch: pytest.MonkeyPatch, launch: triton_launch.Launch
) -> None:
    entered = []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: object) -> None:
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 100 + index, raising=False)
    tensors = [torch.empty(64) for _ in range(3)]
    for index in (0, 1):
        call = backend._on(torch.device("cuda", index))
        call(launch, *tensors)
        call(launch, *tensors)
    assert entered == [1, "left", 1, "left"]
    assert [arguments[3] for way, arguments in launch.kernel.launches if way == "compiled"] == [100, 101, 101]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_use_instead() -> None:
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA GPU .*TRITON_INTERPRET=1.*use 'auto' or 'aten' instead"):
        backends.require("triton")


def test_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, gpu = backends.get("triton"), torch.device("cuda", 0)
    turing = KNOWN["A100"].__class__(**{**vars(KNOWN["A100"]), "capability": (7, 5)})
    monkeypatch.setattr(backend.Gpu, "of", staticmethod(lambda device: turing))
    assert "sm_75 has no tensor-core path in Triton" in (ours.refuses(PROBLEM, "forward", gpu) or "")
    monkeypatch.setattr(backend.Gpu, "of", staticmethod(lambda device: KNOWN["A100"]))
    assert ours.refuses(PROBLEM, "forward", gpu) is None
    assert "the tensors are on cpu" in (ours.refuses(PROBLEM, "forward", torch.device("cpu")) or "")
    integers = ConvProblem.of((1, 1, 4, 4), (1, 1, 3, 3), dtype=torch.int64)
    assert "not int64" in (ours.refuses(integers, "forward", gpu) or "")
    with pytest.raises(TypeError, match="operands and the tile"):
        ours.bind(PROBLEM, "forward", gpu, Activation("none"))


def test_importing_gpuconv_does_not_import_triton() -> None:
    code = "import sys, gpuconv; assert not {'triton', 'gpuconv.backends.triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constants_out_of_order_are_an_error() -> None:
    operands = contiguous_operands(PROBLEM, "forward")
    launch, *_ = backend.launches(PROBLEM, "forward", operands, TILE)
    first, second, *names = launch.constants
    scalars = launch.rest[: -len(launch.constants)]
    swapped = {name: launch.constants[name] for name in (second, first, *names)}
    with pytest.raises(TypeError, match=f"constants of gather_forward must be {first}, {second}, "):
        triton_launch.Launch(launch.kernel, 1, launch.dtypes, scalars, swapped, TILE)
