"""`triton_gpu`: Triton's JIT on the virtual GPU, its driver, and the arguments of launches."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
import tutorials
from triton.tools.tensor_descriptor import TensorDescriptor

from gpuconv.emulator import triton_gpu, why_not
from gpuconv.emulator.triton_jit import TritonGpu

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no GPU can be emulated: {why_not()}")


@pytest.fixture(params=["h100", "a100"])
def gpu(request: pytest.FixtureRequest) -> Iterator[TritonGpu]:
    with triton_gpu(request.param) as entered:
        yield entered


class Pair(NamedTuple):
    scale: float
    more: torch.Tensor


@triton.jit
def arguments_kernel(
    out, nothing, pair, flag, one, small: tl.int8, large, number, double: tl.float64, half: tl.float16,
    brain: tl.bfloat16, unsigned: tl.uint16, DTYPE: tl.constexpr, TAKEN: tl.constexpr, default=5,
):  # fmt: skip
    """One cell of out for each argument."""
    tl.static_assert(nothing is None)
    tl.store(out + 0, pair.scale)
    tl.store(out + 1, tl.load(pair.more).to(tl.float64))
    tl.store(out + 2, flag.to(tl.float64))
    tl.store(out + 3, one)
    tl.store(out + 4, small)
    tl.store(out + 5, large)
    tl.store(out + 6, number)
    tl.store(out + 7, double)
    tl.store(out + 8, half)
    tl.store(out + 9, brain)
    tl.store(out + 10, unsigned)
    tl.store(out + 11, tl.full((), 1.0, DTYPE).to(tl.float64) if TAKEN else 0.0)
    tl.store(out + 12, default)


def test_arguments_of_every_kind_reach_the_kernel(gpu: TritonGpu) -> None:
    out = torch.full((13,), float("nan"), dtype=torch.float64)
    pair = Pair(0.5, torch.tensor([7.0, 8.0])[1:])
    arguments_kernel[(1,)](
        out, None, pair, True, 1, -3, 2**40 + 1, 0.1, 0.1, 1.5, -2.5, 65535, DTYPE=tl.float16, TAKEN=True
    )
    single = torch.tensor(0.1).double().item()
    assert out.tolist() == [0.5, 8, 1, 1, -3, 2**40 + 1, single, 0.1, 1.5, -2.5, 65535, 1, 5]


@pytest.mark.parametrize("wrong, error, message", [
    ({"out": torch.empty(13, device="meta")}, ValueError, "out must be on the CPU, .* but is on meta"),
    ({"pair": Pair(0.5, torch.empty(1, device="meta"))}, ValueError, r"pair\[1\] must be on the CPU"),
    ({"small": 128}, ValueError, r"small must be -128 to 127 \(i8\), but got 128"),
    ({"unsigned": -1}, ValueError, r"unsigned must be 0 to 65535 \(u16\), but got -1"),
])  # fmt: skip
def test_an_argument_that_no_launch_can_have_is_named(wrong: dict[str, Any], error: type, message: str) -> None:
    given: dict[str, Any] = {
        "out": torch.empty(13, dtype=torch.float64), "nothing": None, "pair": Pair(0.5, torch.ones(1)), "flag": True,
        "one": 1, "small": 1, "large": 2, "number": 0.1, "double": 0.1, "half": 1.5, "brain": 1.0, "unsigned": 3,
    }  # fmt: skip
    with triton_gpu("h100") as gpu, pytest.raises(error, match=f"^arguments_kernel: {message}"):
        arguments_kernel[(1,)](**given | wrong, DTYPE=tl.float16, TAKEN=True)
    assert not gpu.launches


@triton.jit
def grid_kernel(out):
    at = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
    tl.store(out + at, at + 1)


def test_grids_of_up_to_three_axes(gpu: TritonGpu) -> None:
    for grid in ((5,), (2, 3), (2, 3, 4), lambda given: (2, 1, len(given))):
        out = torch.zeros(24, dtype=torch.int32)
        grid_kernel[grid](out)
        count = int((out > 0).sum())
        assert count == torch.Size(grid({"out": out}) if callable(grid) else grid).numel()
        assert out.tolist() == [*range(1, count + 1), *[0] * (24 - count)]


def test_no_programs_are_no_launch(gpu: TritonGpu) -> None:
    out = torch.zeros(1, dtype=torch.int32)
    grid_kernel[(0,)](out)
    grid_kernel[(3, 0, 2)](out)
    assert not out.any() and gpu.launches == [] and gpu.counters() == []


@pytest.mark.parametrize("grid, error, message", [
    ((1, 65536), ValueError, "grid_kernel: the grid's y must be 0 to 65535, but got 65536"),
    ((-1,), ValueError, "grid_kernel: the grid's x must be 0 to 2147483647, but got -1"),
    ((1.5,), TypeError, "grid_kernel: the grid's x must be an integer, but got 1.5"),
])  # fmt: skip
def test_a_grid_that_no_gpu_launches_is_refused(grid: Any, error: type, message: str) -> None:
    with triton_gpu("h100"), pytest.raises(error, match=message):
        grid_kernel[grid](torch.zeros(1, dtype=torch.int32))


def test_counters_by_launch_and_by_kernel(gpu: TritonGpu) -> None:
    x = torch.randn(1024)
    tutorials.add(x, x)
    tutorials.softmax(x.view(8, 128))
    tutorials.add(x[:100], x[100:200])
    assert gpu.launches == ["add_kernel", "softmax_kernel", "add_kernel"]
    assert [c.kernel for c in gpu.counters()] == gpu.launches
    assert gpu.counters("add_kernel") == gpu.counters(tutorials.add_kernel) == gpu.counters()[::2]
    assert gpu.counters("another") == gpu.counters(tutorials.sort_kernel) == []
    first, last = (c.facts() for c in gpu.counters("add_kernel"))
    assert first["global_sectors"] == first["global_sectors_least"] == 3 * 1024 * 4 // 32
    assert last["instructions"] < first["instructions"]  # one block instead of four


def test_warmup_compiles_and_what_it_compiled_can_be_launched(gpu: TritonGpu) -> None:
    compiled = tutorials.add_kernel.warmup(torch.float32, torch.float32, torch.float32, 100, BLOCK=128, grid=(1,))
    assert gpu.launches == [] and compiled.metadata.target.arch == {"H100": 90, "A100": 80}[gpu.gpu.name]
    x, out = torch.randn(100), torch.empty(100)
    compiled[(1, 1, 1)](x, x, out, 100, 128)
    assert torch.equal(out, 2 * x) and gpu.launches == ["add_kernel"]
    assert compiled.n_regs > 0 and compiled.n_spills == 0


def test_run_takes_options_as_the_jit_does(gpu: TritonGpu) -> None:
    x, out = torch.randn(100), torch.empty(100)
    compiled = tutorials.add_kernel.run(x, x, out, 100, BLOCK=128, num_warps=2, grid=(1,), warmup=False)
    assert torch.equal(out, 2 * x) and compiled.metadata.num_warps == 2


def test_launch_hooks_are_called_around_each_launch(gpu: TritonGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, int]] = []
    for hook in ("enter", "exit"):
        chain = getattr(triton.knobs.runtime, f"launch_{hook}_hook")
        monkeypatch.setattr(
            chain, "calls", [lambda about, hook=hook: seen.append((hook, about.get()["name"], len(gpu.launches)))]
        )
    x = torch.randn(10)
    tutorials.add(x, x)
    assert seen == [("enter", "add_kernel", 0), ("exit", "add_kernel", 1)]


def test_what_programs_ask_of_the_driver(gpu: TritonGpu) -> None:
    driver = triton.runtime.driver.active
    assert driver.get_active_torch_device() == torch.device("cpu")
    properties = driver.utils.get_device_properties(driver.get_active_torch_device().index)
    assert properties["max_shared_mem"] == gpu.gpu.shared_memory
    assert properties["multiprocessor_count"] == gpu.gpu.multiprocessors
    with pytest.raises(RuntimeError, match="no clock"):
        triton.testing.do_bench(lambda: None)


def test_too_much_shared_memory_is_tritons_own_error() -> None:
    a = torch.randn(256, 256, dtype=torch.float16)
    with triton_gpu("rtx4090"), pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
        tutorials.matmul_kernel[(1,)](
            a, a, a, 256, 256, 256, 256, 1, 256, 1, 256, 1, BM=64, BN=64, BK=64, GROUP=1, num_stages=8
        )


@triton.jit
def _tuned(x, n, SMALL: tl.constexpr, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK < 512 or SMALL)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(x + o, BLOCK, o < n)


def _tunable(*blocks: int) -> Any:
    configs = [triton.Config({"BLOCK": block}) for block in blocks]
    tuned = triton.autotune(configs, key=["n"], reset_to_zero=["x"])(_tuned)
    return triton.heuristics({"SMALL": lambda given: given["n"] < 10})(tuned)


def test_autotuning_takes_the_first_configuration_that_compiles_and_keeps_nothing(gpu: TritonGpu) -> None:
    x, kernel = torch.zeros(300, dtype=torch.int32), _tunable(1024, 512, 256, 128)
    kernel[lambda given: (triton.cdiv(300, given["BLOCK"]),)](x, 300)
    assert x.tolist() == [256] * 300  # run once
    assert kernel.fn.best_config.kwargs == {"BLOCK": 256} and kernel.fn.cache == {}
    assert len(gpu.counters(kernel)) == 1
    kernel[(1,)](x, 5)
    assert kernel.fn.best_config.kwargs == {"BLOCK": 1024}


def test_autotuning_where_nothing_compiles_says_why(gpu: TritonGpu) -> None:
    with pytest.raises(triton.compiler.errors.CompileTimeAssertionFailure):
        _tunable(1024, 512)[(1,)](torch.zeros(300, dtype=torch.int32), 300)


@pytest.mark.parametrize("active", [None, object()], ids=["no driver", "another driver"])
def test_leaving_restores_the_driver_and_the_autotuner(active: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", active)
    run = triton.runtime.autotuner.Autotuner.run
    with pytest.raises(KeyError), triton_gpu("h100") as outer:
        with triton_gpu("a100") as inner:
            tutorials.add(torch.ones(3), torch.ones(3))
            with outer:
                tutorials.add(torch.ones(3), torch.ones(3))
        assert triton.runtime.driver.active.get_current_target().arch == 90
        raise KeyError
    assert triton.runtime.driver._active is active and triton.runtime.autotuner.Autotuner.run is run
    assert len(inner.launches) == len(outer.launches) == 1


def test_what_was_compiled_for_it_does_not_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with triton_gpu("h100"):
        compiled = tutorials.add_kernel.warmup(torch.float32, torch.float32, torch.float32, 100, BLOCK=128, grid=(1,))
        run = compiled.run
    monkeypatch.setattr(triton.runtime.driver, "_active", object())
    with pytest.raises(RuntimeError, match="add_kernel was compiled for a virtual GPU whose context was left"):
        run(1, 1, 1, 0, compiled.function, None, None, None, None, *(torch.ones(100),) * 3, 100, 128)


def test_other_threads_launch_on_it_and_wait_to_enter_their_own() -> None:
    entered: list[str] = []

    def launch() -> None:
        tutorials.add(torch.ones(3), torch.ones(3))

    def enter() -> None:
        with triton_gpu("a100") as own:
            entered.append("a100")
            launch()
            assert own.launches == ["add_kernel"]

    with triton_gpu("h100") as gpu:
        threads = [threading.Thread(target=work) for work in (launch, launch, enter)]
        for thread in threads:
            thread.start()
        for thread in threads[:2]:
            thread.join()
        threads[2].join(0.1)
        assert gpu.launches == ["add_kernel"] * 2 and not entered
    threads[2].join()
    assert entered == ["a100"] and gpu.launches == ["add_kernel"] * 2


@pytest.mark.parametrize("wrong, message", [
    ({"gpu": "h200x"}, "gpu must be one of .*, but got 'h200x'"),
    ({"gpu": "h100", "schedule": "soon"}, "schedule must be one of early, late, random, but got 'soon'"),
])  # fmt: skip
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triton_gpu(**wrong)


def test_the_interpreter_is_not_mistaken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), triton_gpu("h100"):
        pass


@triton.jit
def fill_kernel(x, out, BM: tl.constexpr, BN: tl.constexpr):
    out.store([0, 0], x.load([2, 8]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_host_made_descriptors_read_and_write_their_tensors_only(gpu: TritonGpu, dtype: torch.dtype) -> None:
    whole = torch.arange(6 * 64).view(6, 64).to(dtype)
    x, out = whole[:5, 16:48], torch.full((3, 64), 99, dtype=dtype)
    fill_kernel[(1,)](
        TensorDescriptor(x, [5, 24], [64, 1], [4, 32]), TensorDescriptor(out, [3, 32], [64, 1], [4, 32]), BM=4, BN=32
    )
    expected = torch.full((3, 64), 99, dtype=dtype)
    expected[:, :32] = 0
    expected[:, :16] = x[2:5, 8:24]
    assert torch.equal(out, expected)


def test_a_descriptor_fills_with_nan_where_it_is_told_to(gpu: TritonGpu) -> None:
    x, out = torch.ones(4, 32), torch.zeros(4, 32)
    fill_kernel[(1,)](
        TensorDescriptor(x, [4, 32], [32, 1], [4, 32], padding="nan"), TensorDescriptor(out, [4, 32], [32, 1], [4, 32]),
        BM=4, BN=32,
    )  # fmt: skip
    assert torch.equal(out[:2, :24], torch.ones(2, 24)) and out[2:].isnan().all() and out[:, 24:].isnan().all()
