"""Backend `cuda` beside its kernels: why it cannot run, what it launches, and how it goes through CuPy."""

import ctypes
import dataclasses
import importlib.util
import itertools
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from host_cuda import COMPILER, FLAGS, compiled

from gpuconv import backends
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import banded as cuda_banded, compiler as cuda_compile, simt as cuda_simt
from gpuconv.backends.cuda.backend import FAMILIES, CudaBackend, launches
from gpuconv.backends.cuda.launch import CONV, Launch, source
from gpuconv.backends.derived import WORKSPACE
from gpuconv.bench import suites
from gpuconv.checking.problems import CURATED
from gpuconv.gpu import KNOWN, Gpu
from gpuconv.planning import plan, ranking
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

# ---- why it cannot run -----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


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


def test_without_a_gpu_the_reason_is_given_and_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CudaBackend().unavailable() == "there is no NVIDIA GPU"


def test_without_cupy_it_says_which_to_install(gpu_present: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compile.importlib.util, "find_spec", lambda name: None)
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
    tiles = [tile for tile in cuda_simt.menu(LARGE, "grad_weight", gpu) if tile.splits > 1]
    assert tiles
    for tile in tiles:
        product, *add = launches(LARGE, "grad_weight", operands, tile, with_bias=True)
        splits = int(product.conv["splits"])
        partials = splits * (int(product.conv["gw_split"]) + int(product.conv["gb_split"]))
        assert 4 * (partials or product.workspace.partials) <= WORKSPACE
        assert int(product.conv["per_split"]) * splits >= 256 * 112 * 112
        assert [launch.instance.function for launch in add] == ["sum_partials"] * (partials > 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_offsets_are_64_bit_only_where_32_bits_overflow(direction: str) -> None:
    huge = dataclasses.replace(LARGE, batch=1024)
    for problem, expected in ((CURATED["3x3"], "-DWIDE=0"), (huge, "-DWIDE=1")):
        tile = cuda_simt.menu(problem, direction, KNOWN["H100"])[0]
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


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_family_has_tiles_or_a_reason(direction: Direction) -> None:
    backend = CudaBackend()
    for problem, dtype, gpu in itertools.product(
        CURATED.values(), (torch.bfloat16, torch.float64), (KNOWN["T4"], KNOWN["A100"])
    ):
        typed = dataclasses.replace(problem, dtype=dtype)
        operands = plan.contiguous_operands(typed, direction)
        offered = {tile.kernel for tile in backend.tiles(typed, direction, gpu, operands)}
        refused = backend.refused_families(typed, direction, gpu, operands)
        assert offered | refused.keys() == set(FAMILIES) and not offered & refused.keys()
        assert not any("shared memory" in reason for reason in refused.values())


def test_plan_says_why_families_of_cuda_kernels_are_left_out() -> None:
    layer = suites.layer("thirty.resnet50-28-3x3-stride2", 8, torch.bfloat16, torch.channels_last)
    operands = plan.contiguous_operands(layer, "forward", torch.channels_last)
    _, refused = ranking.candidates(layer, "forward", KNOWN["A100"], operands)
    assert refused["cuda simt"] == "tensor cores do it"
    assert "stride 1" in refused["cuda halo"] and "2 to 32 channels" in refused["cuda grouped_halo"]
    _, refused = ranking.candidates(layer, "forward", KNOWN["T4"], operands)
    assert "sm_75 has no tensor cores" in refused["cuda tensor"]


# ---- which tile it takes ---------------------------------------------------------------------------------------------

each_gpu = pytest.mark.parametrize("gpu", KNOWN.values(), ids=lambda gpu: gpu.name)


def chosen(problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool = False) -> Tile:
    operands = plan.contiguous_operands(problem, direction, problem.memory_format)._replace(tf32=tf32)
    cuda = CudaBackend()
    tile = ranking.best_tile(cuda, cuda.tiles(problem, direction, gpu, operands), problem, direction, gpu, tf32)
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
            assert blocks == CudaBackend().predict(problem, direction, tile, KNOWN["A100"], False).programs, tile


@each_gpu
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_a_window_is_fetched_with_its_halo_where_that_fetches_less(direction: Direction, gpu: Gpu) -> None:
    def kernel(name: str) -> str:
        return chosen(suites.layer(f"thirty.{name}", 32, torch.float16, torch.channels_last), direction, gpu).kernel

    assert kernel("resnet50-56-3x3") == kernel("unet-decoder") == "halo"
    if gpu.capability >= (8, 0):  # a T4 has shared memory for it in steps half as deep
        assert kernel("vgg-112-3x3") == "halo"
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
        return CudaBackend().predict(problem, "forward", tile, gpu, False).seconds

    assert seconds(halo) < seconds(tensor) == seconds(dataclasses.replace(halo, kernel="tensor", windows=0, halo=0))
    assert seconds(dataclasses.replace(halo, halo=2000)) > seconds(halo)


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
    assert [round(taps / cuda_banded.band_width(taps, 16), 2) for taps in (31, 13, 9)] == [0.65, 0.41, 0.28]
    assert cuda_banded.band_width(9, 8) == 16


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


# ---- compiling, and what is launched (how: tests/kernels/cuda/test_cupy_launch.py) -----------------------------------

needs_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")


@needs_cupy
def test_machine_code_is_kept_and_what_is_damaged_is_compiled_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = _launch().instance
    code = cuda_compile.kept_cubin(instance, "sm_80")
    assert code == cuda_compile.cubin(instance, "sm_80") and code.startswith(b"\x7fELF")
    (file,) = (cache / "cuda").iterdir()
    content = file.read_bytes()
    assert len(content) > len(code)
    for damaged in (content[:-1], content[: len(content) // 2], b"", content[:99] + b"?" + content[100:]):
        file.write_bytes(damaged)
        assert cuda_compile.kept_cubin(instance, "sm_80") == code
        assert file.read_bytes() == content

    def compiled(*_: object) -> bytes:
        raise RuntimeError("it is compiled again")

    monkeypatch.setattr(cuda_compile, "cubin", compiled)
    assert cuda_compile.kept_cubin(instance, "sm_80") == code
    with pytest.raises(RuntimeError, match="compiled again"):
        cuda_compile.kept_cubin(instance, "sm_90a")
    other = dataclasses.replace(instance, options=(*instance.options, "-DMORE=1"))
    with pytest.raises(RuntimeError, match="compiled again"):
        cuda_compile.kept_cubin(other, "sm_80")


@needs_cupy
def test_a_cache_that_cannot_be_written_keeps_nothing_from_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "file"))
    assert cuda_compile.kept_cubin(_launch().instance, "sm_80").startswith(b"\x7fELF")


@needs_cupy
def test_what_does_not_compile_says_what_for_and_why() -> None:
    broken = dataclasses.replace(_launch().instance, options=("-DTYPE=float",))
    with pytest.raises(RuntimeError, match=r"cannot compile Instance\(file='simt_forward.cu'.* for sm_80: .*error"):
        cuda_compile.cubin(broken, "sm_80")


@needs_cupy
def test_ptx_is_text() -> None:
    text = cuda_compile.ptx(_launch().instance, "sm_80")
    assert text.startswith("//\n") and "\n.target sm_80\n" in text and text.rstrip().endswith("}")


def _launch() -> Launch:
    problem = CURATED["3x3"]
    operands = Operands(((189, 63, 7, 1), (27, 9, 3, 1)))
    return launches(problem, "forward", operands, cuda_simt.menu(problem, "forward", KNOWN["A100"])[0])[0]


def test_parameters_are_the_pointers_and_then_the_struct() -> None:
    launch, t = _launch(), torch.zeros(3)
    addresses, values = launch.parameters((t, None))
    pointers = [ctypes.c_void_p.from_address(address).value for address in addresses[:2]]
    assert pointers == [t.data_ptr(), None] and len(values) == 2
    assert ctypes.string_at(addresses[2], CONV.itemsize) == launch.conv.tobytes()
