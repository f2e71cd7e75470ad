"""Backend `cuda` beside its kernels: why it cannot run, what it launches, and how it goes through CuPy."""

import contextlib
import ctypes
import dataclasses
import itertools
import subprocess
import sys
import threading
import types
from collections.abc import Iterator

import pytest
import torch
from host_cuda import COMPILER, FLAGS, compiled

from gpuconv import backends, plan, predict, predict_depthwise
from gpuconv.backends import cuda_cupy, cuda_simt
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import CudaBackend, launches
from gpuconv.backends.cuda_launch import CONV, Instance, Launch, source
from gpuconv.backends.derived import WORKSPACE
from gpuconv.bench import suites
from gpuconv.bench.problems import CURATED
from gpuconv.gpu import KNOWN, Gpu
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

# ---- why it cannot run -----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_without_a_gpu_the_reason_is_given_and_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CudaBackend().unavailable() == "there is no NVIDIA GPU"


def test_without_cupy_it_says_which_to_install(gpu_present: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_cupy.importlib.util, "find_spec", lambda name: None)
    reason = CudaBackend().unavailable()
    assert reason is not None and "cupy-cuda12x or cupy-cuda13x" in reason and "\n" not in reason


def test_a_cupy_without_nvrtc_is_a_reason(gpu_present: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.12\nand more")

    _pretend(monkeypatch, "cupy")
    _pretend(monkeypatch, "cupy_backends.cuda.libs", nvrtc=types.SimpleNamespace(getVersion=broken))
    reason = CudaBackend().unavailable()
    assert reason is not None and "NVRTC (CuPy failed to load libnvrtc.so.12)" in reason and "\n" not in reason


def test_tensors_on_the_cpu_are_refused() -> None:
    reason = CudaBackend().refuses(CURATED["3x3"], "forward", torch.device("cpu"))
    assert reason == "its kernels run on GPUs, and the tensors are on cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_train_without_a_gpu_says_why_in_one_line(clean_environment, tmp_path) -> None:
    pytest.importorskip("typer", reason="the trainer's dependencies are not installed")
    command = [sys.executable, "-m", "gpuconv", "train", "--backend", "cuda"]
    run = subprocess.run(command, env=clean_environment, cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    assert run.returncode != 0 and len(said) == 1
    assert said[0] == "error: backend 'cuda' cannot run here: there is no NVIDIA GPU; use 'auto' or 'aten' instead"


# ---- what it launches ------------------------------------------------------------------------------------------------

LARGE = ConvProblem.of((256, 512, 112, 112), (2048, 512, 3, 3), padding=1)


@pytest.mark.parametrize("multiprocessors", [2_000, 1_000_000])
def test_partial_sums_fit_their_workspace(multiprocessors: int) -> None:
    operands = plan.contiguous_operands(LARGE, "grad_weight")
    gpu = dataclasses.replace(KNOWN["H100"], multiprocessors=multiprocessors)
    tiles = [tile for tile in cuda_simt.tiles(LARGE, "grad_weight", gpu) if tile.splits > 1]
    assert tiles
    for tile in tiles:
        product, add = launches(LARGE, "grad_weight", operands, tile, with_bias=True)
        splits = int(product.conv["splits"])
        assert 4 * splits * (int(product.conv["gw_split"]) + int(product.conv["gb_split"])) <= WORKSPACE
        assert int(product.conv["per_split"]) * splits >= 256 * 112 * 112
        assert add.instance.function == "sum_partials"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_offsets_are_64_bit_only_where_32_bits_overflow(direction: str) -> None:
    huge = dataclasses.replace(LARGE, batch=1024)
    for problem, expected in ((CURATED["3x3"], "-DWIDE=0"), (huge, "-DWIDE=1")):
        tile = cuda_simt.tiles(problem, direction, KNOWN["H100"])[0]
        launch = launches(problem, direction, plan.contiguous_operands(problem, direction), tile)[0]
        assert expected in launch.instance.options


def test_more_than_one_kernel_file_is_one_text_for_the_compiler() -> None:
    text = source("simt_forward.cu")
    assert '#include "' not in text
    assert text.count("struct Conv {") == text.count("enum Activation") == 1
    assert '#line 1 "common.cuh"' in text


@pytest.mark.skipif(COMPILER is None, reason="the struct's layout is read by g++")
def test_struct_is_laid_out_as_the_launcher_fills_it() -> None:
    fields = CONV.fields
    assert fields is not None
    offsets = ", ".join(f"offsetof(Conv, {name})" for name in fields)
    text = f'#include "cuda_on_host.h"\n#define TYPE float\n#define WIDE 0\n{source("common.cuh")}\n'
    text += f'extern "C" const long long layout[] = {{sizeof(Conv), {offsets}}};\n'
    library = ctypes.CDLL(str(compiled(text, FLAGS, ("-shared",))))
    layout = list((ctypes.c_longlong * (1 + len(fields))).in_dll(library, "layout"))
    assert layout == [CONV.itemsize, *(offset for _, offset in fields.values())]


def test_a_bound_call_needs_what_the_planner_chose() -> None:
    with pytest.raises(TypeError, match="bound to the operands and the tile"):
        CudaBackend().bind(CURATED["3x3"], "forward", torch.device("cuda", 0), plan.Activation("none"))


def test_auto_tries_it_after_triton_on_a_gpu() -> None:
    assert backends.auto_order("cuda") == ("triton", "cuda", "aten")


# ---- which tile it takes ---------------------------------------------------------------------------------------------

each_gpu = pytest.mark.parametrize("gpu", KNOWN.values(), ids=lambda gpu: gpu.name)


def chosen(problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool = False) -> Tile:
    operands = plan.contiguous_operands(problem, direction, problem.memory_format)._replace(tf32=tf32)
    candidates = CudaBackend().tiles(problem, direction, gpu, operands)
    tile = predict.best_tile(candidates, problem, direction, gpu, tf32)
    assert tile is not None
    return tile


@pytest.mark.parametrize("name", suites.SUITES["thirty"].layers)
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_planner_counts_the_blocks_that_are_launched(direction: Direction, name: str) -> None:
    for dtype in (torch.float16, torch.float64):
        problem = suites.layer(f"thirty.{name}", 3, dtype, torch.channels_last)
        operands = plan.contiguous_operands(problem, direction, torch.channels_last)
        for tile in CudaBackend().tiles(problem, direction, KNOWN["A100"], operands):
            blocks = launches(problem, direction, operands, tile)[0].blocks
            assert blocks == predict.predict(problem, direction, tile, KNOWN["A100"], False).programs, tile


@each_gpu
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_a_window_is_fetched_with_its_halo_where_that_fetches_less(direction: Direction, gpu: Gpu) -> None:
    def kernel(name: str) -> str:
        return chosen(suites.layer(f"thirty.{name}", 32, torch.float16, torch.channels_last), direction, gpu).kernel

    assert kernel("resnet50-56-3x3") == kernel("vgg-112-3x3") == kernel("unet-decoder") == "halo"
    assert kernel("deeplab-dilated") == "tensor"  # a margin of 24 pixels around a window of 8 × 16
    assert kernel("resnet50-56-expand") == kernel("resnet50-28-3x3-stride2") == "tensor"  # no halo to share


def test_a_halo_costs_what_it_fetches() -> None:
    problem, gpu = suites.layer("thirty.vgg-112-3x3", 32, torch.float16, torch.channels_last), KNOWN["H100"]
    operands = plan.contiguous_operands(problem, "forward", torch.channels_last)
    by_kernel = {}
    for tile in CudaBackend().tiles(problem, "forward", gpu, operands):
        if (tile.rows, tile.columns) == (128, 64):
            by_kernel[tile.kernel] = tile
    halo, tensor = by_kernel["halo"], by_kernel["tensor"]
    assert halo.halo == 18 * 10  # 16 × 8 pixels and a margin for 3 × 3
    assert halo.windows == tensor.windows + 32 * 112 * 112 // 128  # 112 is a multiple of 16 and of 8: nothing is wasted

    def seconds(tile: Tile) -> float:
        return predict.predict(problem, "forward", tile, gpu, False).seconds

    assert seconds(halo) < seconds(tensor) == seconds(dataclasses.replace(halo, kernel="tensor", windows=0, halo=0))
    assert seconds(dataclasses.replace(halo, halo=2000)) > seconds(tensor)


@each_gpu
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_large_depthwise_filters_are_banded_products_where_that_is_quicker(direction: Direction, gpu: Gpu) -> None:
    for name, layout, dtype in itertools.product(
        ("depthwise31", "depthwise29", "depthwise27", "depthwise13", "depthwise5_128"),
        (torch.contiguous_format, torch.channels_last), (torch.bfloat16, torch.float32),
    ):  # fmt: skip
        problem, tf32 = suites.layer(f"replknet31.{name}", None, dtype, layout), dtype is torch.float32
        operands = plan.contiguous_operands(problem, direction, layout)._replace(tf32=tf32)
        offered = {tile.kernel for tile in CudaBackend().tiles(problem, direction, gpu, operands)}
        assert ("banded" in offered) == (gpu.capability >= (8, 0) and name != "depthwise5_128"), (name, layout, dtype)
        # Where tensor cores are but two or four times as quick as multiply-adds, it may be either.
        if "banded" in offered and problem.filter_size >= (29, 29) and gpu.rate_16 > 5 * gpu.rate_32 and not tf32:
            assert chosen(problem, direction, gpu).kernel == "banded", (name, layout)


def test_shares_of_banded_products_that_are_taps() -> None:
    assert [round(taps / predict_depthwise.band_width(taps, 16), 2) for taps in (31, 13, 9)] == [0.65, 0.41, 0.28]
    assert predict_depthwise.band_width(9, 8) == 16


@each_gpu
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_groups_of_few_channels_are_packed(direction: Direction, gpu: Gpu) -> None:
    packed = {"grouped", "grouped_halo"}
    for stage, channels in (("conv2", 4), ("conv3", 8), ("conv4", 16), ("conv5", 32)):
        problem = suites.layer(f"resnext50.{stage}_3x3", None, torch.float16, torch.channels_last)
        assert problem.in_channels // problem.groups == channels
        operands = plan.contiguous_operands(problem, direction, torch.channels_last)
        assert packed & {tile.kernel for tile in CudaBackend().tiles(problem, direction, gpu, operands)}
        if channels <= 8:
            assert chosen(problem, direction, gpu).kernel in packed


def test_t4_takes_tensor_cores_for_float16_and_multiply_adds_for_the_rest() -> None:
    t4 = KNOWN["T4"]
    for name, direction in itertools.product(("resnet50-56-3x3", "resnet50-14-expand", "vgg-28-3x3"), DIRECTIONS):
        tile = chosen(suites.layer(f"thirty.{name}", 32, torch.float16, torch.channels_last), direction, t4)
        assert tile.kernel in ("tensor", "halo") and tile.stages == 2
        for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float64, False)):
            assert (
                chosen(suites.layer(f"thirty.{name}", 32, dtype, torch.channels_last), direction, t4, tf32).kernel
                == "simt"
            )


# ---- through CuPy ----------------------------------------------------------------------------------------------------


class FakeCupy:
    """What CupyRuntime uses of CuPy, PyTorch and the driver, and a record of how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.kernels: list[types.SimpleNamespace] = []
        self.launched: list[tuple[int, ...]] = []
        self.device = 0
        outer = self

        class RawModule:
            def __init__(self, code: str, options: tuple[str, ...]) -> None:
                outer.compiled.append((code, options))

            def get_function(self, name: str) -> types.SimpleNamespace:
                handle = types.SimpleNamespace(ptr=1000 + len(outer.kernels))
                outer.kernels.append(types.SimpleNamespace(kernel=handle, name=name, device=outer.device))
                return outer.kernels[-1]

        launch_kernel = lambda *arguments: self.launched.append((self.device, *arguments))  # noqa: E731
        _pretend(monkeypatch, "cupy", RawModule=RawModule, cuda=types.SimpleNamespace(Device=self.on))
        _pretend(monkeypatch, "cupy_backends.cuda.api", driver=types.SimpleNamespace(launchKernel=launch_kernel))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.device)
        monkeypatch.setattr(torch.cuda, "device", self.on)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 70 + index, raising=False)

    @contextlib.contextmanager
    def on(self, index: int) -> Iterator[None]:
        before, self.device = self.device, index
        yield
        self.device = before


def _pretend(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    """Let `import name` give a module with these attributes."""
    path = name.split(".")
    for length in range(1, len(path) + 1):
        module = types.ModuleType(".".join(path[:length]))
        module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        module.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for key, value in attributes.items():
        setattr(module, key, value)


def _launch(shared: int = 0) -> Launch:
    problem = CURATED["3x3"]
    operands = Operands(((189, 63, 7, 1), (27, 9, 3, 1)))
    launch = launches(problem, "forward", operands, cuda_simt.tiles(problem, "forward", KNOWN["A100"])[0])[0]
    return Launch(dataclasses.replace(launch.instance, shared=shared), launch.blocks, launch.conv)


def test_cupy_compiles_once_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, runtime, launch = FakeCupy(monkeypatch), cuda_cupy.CupyRuntime(), _launch()
    tensors = (torch.zeros(3), None)
    threads = [
        threading.Thread(target=runtime.launch, args=(launch, torch.device("cuda", 0), tensors)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.compiled) == len(fake.kernels) == 1 and len(fake.launched) == 8
    code, options = fake.compiled[0]
    assert code == source("simt_forward.cu") and set(launch.instance.options) < set(options)


def test_cupy_launches_on_the_tensors_gpu_and_pytorchs_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, runtime, launch = FakeCupy(monkeypatch), cuda_cupy.CupyRuntime(), _launch(shared=64 << 10)
    for index in (0, 1, 1):
        runtime.launch(launch, torch.device("cuda", index), (torch.zeros(3), None))
    instance: Instance = launch.instance
    for index, arguments in zip((0, 1, 1), fake.launched, strict=True):
        device, function, *geometry, stream, parameters, extra = arguments
        assert (device, function, stream, extra) == (index, 1000 + index, 70 + index, 0)
        assert geometry == [launch.blocks, 1, 1, instance.threads, 1, 1, 64 << 10]
        assert parameters
    assert len(fake.compiled) == 1 and [kernel.device for kernel in fake.kernels] == [0, 1]
    assert all(kernel.max_dynamic_shared_size_bytes == 64 << 10 for kernel in fake.kernels)
    assert fake.device == 0


def test_parameters_are_the_pointers_and_then_the_struct() -> None:
    launch, t = _launch(), torch.zeros(3)
    addresses, values = launch.parameters((t, None))
    pointers = [ctypes.c_void_p.from_address(address).value for address in addresses[:2]]
    assert pointers == [t.data_ptr(), None] and len(values) == 2
    assert ctypes.string_at(addresses[2], CONV.itemsize) == launch.conv.tobytes()


def test_the_driver_takes_these_arguments() -> None:
    """As far as a machine without a driver can tell: it is missed, and not an argument."""
    driver = pytest.importorskip("cupy_backends.cuda.api.driver", reason="CuPy is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a driver, which the suite uses")
    with pytest.raises(RuntimeError, match="libcuda"):
        driver.launchKernel(0, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0)
