"""Triton's tutorial kernels on the virtual GPU: right beside PyTorch, the same bits whatever the schedule, and with a
mistake planted in their source an error that names its line."""

import importlib.util
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gluon_matmul
import pytest
import torch
import tutorials
from schedules import SCHEDULES
from triton.tools.tensor_descriptor import TensorDescriptor

from gpuconv.emulator import EmulationError, triton_gpu, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no GPU can be emulated: {why_not()}")

EVERY = pytest.mark.parametrize("gpu", ["h100", "a100"])
MOSTLY_H100 = pytest.mark.parametrize("gpu", ["h100", pytest.param("a100", marks=pytest.mark.full)])


def everywhere(gpu: str, launch: Callable[[], Any], same: bool = True) -> list[tuple[torch.Tensor, ...]]:
    """The results under every schedule; `same`: they must have the same bits."""
    results = []
    for schedule, seed in SCHEDULES:
        with triton_gpu(gpu, schedule=schedule, seed=seed) as entered:
            result = launch()
        assert entered.launches
        results.append(result if isinstance(result, tuple) else (result,))
    for other in results[1:]:
        for first, got in zip(results[0], other, strict=True):
            assert not same or torch.equal(first.view(torch.uint8), got.view(torch.uint8))
    return results


def close(got: torch.Tensor, exact: torch.Tensor, n: int = 1) -> None:
    """Within what rounding to got's type and n sums in float32 may do to zero-mean numbers of size 1."""
    least = torch.finfo(got.dtype).eps / 2
    torch.testing.assert_close(got.double(), exact, rtol=least, atol=4 * 2.0**-24 * n**0.5 * 4)


def half(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float16)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


@EVERY
@pytest.mark.parametrize("n", [1, 255, 1025])
def test_vector_add(gpu: str, n: int) -> None:
    x, y = torch.randn(2, n)
    assert torch.equal(everywhere(gpu, lambda: tutorials.add(x, y))[0][0], x + y)


@EVERY
def test_softmax(gpu: str) -> None:
    x = torch.randn(13, 131)[:, :77]  # rows further apart than they are long
    close(everywhere(gpu, lambda: tutorials.softmax(x))[0][0], x.double().softmax(1))


@EVERY
@pytest.mark.parametrize("shape", [(65, 33, 40), (130, 70, 97)])
def test_matmul_by_pointers(gpu: str, shape: tuple[int, int, int]) -> None:
    M, N, K = shape
    a, b = half(M, K), half(N, K).T
    close(everywhere(gpu, lambda: tutorials.matmul(a, b))[0][0], a.double() @ b.double(), K)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.full), torch.float32])
def test_matmul_by_descriptors(gpu: str, dtype: torch.dtype) -> None:
    M, N, K = 100, 72, 136
    a, b = half(M, K).to(dtype), half(N, K).to(dtype)  # float32's products are those of TF32: exact
    for launch in (tutorials.matmul_host_descriptors, tutorials.matmul_device_descriptors):
        close(everywhere(gpu, lambda launch=launch: launch(a, b))[0][0], a.double() @ b.double().T, K)


@EVERY
def test_persistent_matmul(gpu: str) -> None:
    M, N, K = 70, 45, 99
    a, b = half(M, K), half(K, N)
    close(everywhere(gpu, lambda: tutorials.persistent_matmul(a, b))[0][0], a.double() @ b.double(), K)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_norm_forward_and_backward(gpu: str, dtype: torch.dtype) -> None:
    M, N = 7, 201
    x, gy = torch.randn(2, M, N).to(dtype)
    w, b = torch.randn(2, N)
    y, mean, rstd = everywhere(gpu, lambda: tutorials.layer_norm(x, w, b))[0]
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    exact_y = torch.nn.functional.layer_norm(exact[0], (N,), *exact[1:], eps=1e-5)
    close(y, exact_y.detach(), N)
    exact_y.backward(gy.double())
    # Which row's share comes first is the schedule's choice: sums in another order.
    for gx, gw, gb in everywhere(gpu, lambda: tutorials.layer_norm_backward(gy, x, w, mean, rstd), same=False):
        for got, of in zip((gx, gw, gb), exact, strict=True):
            close(got, of.grad, N)


@EVERY
def test_scans(gpu: str) -> None:
    a, b = torch.rand(3, 100), torch.randn(3, 100)
    h, sums = everywhere(gpu, lambda: tutorials.scan(a, b))[0]
    exact = torch.zeros(3, dtype=torch.float64)
    for t in range(100):
        exact = a[:, t].double() * exact + b[:, t].double()
        close(h[:, t], exact, 100)
    close(sums, b.double().cumsum(1), 100)


@EVERY
def test_sort_and_argmin(gpu: str) -> None:
    x = torch.randn(3, 77)
    values, at = everywhere(gpu, lambda: tutorials.sort(x))[0]
    assert torch.equal(values, x.sort(1).values) and torch.equal(at.long(), x.argmin(1))


@EVERY
def test_histogram_in_shared_and_in_global_memory(gpu: str) -> None:
    x = torch.randint(0, 16, (333,), dtype=torch.int32)
    counts, sums, most = everywhere(gpu, lambda: tutorials.histogram(x, 16))[0]
    expected = x.bincount(minlength=16)
    assert torch.equal(counts.long(), expected) and int(most) == 15
    assert torch.equal(sums, (expected * torch.arange(16)).float())  # whole numbers: exact in any order


@EVERY
def test_atomics_of_every_kind(gpu: str) -> None:
    x = torch.randint(-1000, 1000, (101,), dtype=torch.int32)
    integers, longs, floats, halves, doubles = everywhere(gpu, lambda: tutorials.atomics(x))[0]
    bits = 0, -1, 0
    for value in x.tolist():
        bits = bits[0] | value, bits[1] & value, bits[2] ^ value
    total, most, least = int(x.sum()), int(x.max()), int(x.min())
    assert integers[:8].tolist() == [total, most, least, bits[1], bits[0], bits[2], 0, 0]
    assert torch.equal(integers[8 : 8 + 101], x) and integers[8 + 101 :].tolist() == [7] * 101
    assert longs.tolist() == [total, most] and floats.tolist() == [most, least, total] and doubles.item() == total
    thirds = torch.tensor([sum(int(abs(v) % 3 * (v > 0) - abs(v) % 3 * (v < 0)) for v in x[i::8]) for i in range(8)])
    assert torch.equal(halves, thirds.half())


@EVERY
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_compare_and_swap_gives_each_program_its_own_number(gpu: str, dtype: torch.dtype) -> None:
    def launch() -> tuple[torch.Tensor, torch.Tensor]:
        cell, out = torch.zeros(1, dtype=dtype), torch.full((9,), -1, dtype=torch.int32)
        tutorials.cas_kernel[(9,)](cell, out, 9)
        return cell, out

    for cell, out in everywhere(gpu, launch, same=False):
        assert int(cell) == 9 and sorted(out.tolist()) == list(range(9))


@MOSTLY_H100
def test_dropout_keeps_what_philox_says(gpu: str) -> None:
    x = torch.ones(500)

    def launch(seed: int = 3) -> torch.Tensor:
        out = torch.empty(500)
        tutorials.dropout_kernel[(2,)](x, out, 500, 0.25, seed, BLOCK=256)
        return out

    out = everywhere(gpu, launch)[0][0]
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.65 < (out > 0).double().mean() < 0.85
    with triton_gpu(gpu):
        assert not torch.equal(launch(4), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("programs, stages", [(1, 2), (2, 3), (9, 4)])
def test_warp_specialised_gluon_matmul(dtype: torch.dtype, programs: int, stages: int) -> None:
    M, N, K = 150, 72, 264
    a, b = half(M, K).to(dtype), half(N, K).to(dtype)
    got = everywhere("h100", lambda: gluon_matmul.matmul(a, b, programs, stages))[0][0]
    close(got, a.double() @ b.double().T, K)


def test_descriptors_of_views_of_one_tensor_reach_what_is_theirs() -> None:
    whole = half(64, 192)
    a, b, c = whole[:, :64], whole[:, 64:128], torch.full((64, 64), float("nan"), dtype=torch.float16)
    given = [TensorDescriptor.from_tensor(t, [64, 64]) for t in (a, b, c)]
    with triton_gpu("h100"):
        tutorials.matmul_host_descriptors_kernel[(1, 1)](*given, 64, BM=64, BN=64, BK=64)
    close(c, a.double() @ b.double().T, 64)


# ---- planted mistakes ----


def planted(module: ModuleType, old: str, new: str, folder: Path) -> tuple[ModuleType, int]:
    """The module with `old` replaced by `new`, which stands once in its source, and the line where it stood."""
    text = Path(str(module.__file__)).read_text()
    assert text.count(old) == 1, old
    path = folder / f"planted_{zlib.crc32((old + new).encode())}.py"
    path.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = changed  # Triton looks functions' globals up there
    spec.loader.exec_module(changed)
    return changed, text[: text.index(old)].count("\n") + 1


FORGOTTEN = {  # what stands in the source, what stands there instead, the argument that is missed
    "load": ("tl.load(x + o, m) + tl.load(y + o, m)", "tl.load(x + o) + tl.load(y + o, m)", "x"),
    "store": ("+ tl.load(y + o, m), m)", "+ tl.load(y + o, m))", "out"),
    "softmax": ("e / tl.sum(e, 0), o < columns)", "e / tl.sum(e, 0))", "out"),
    "matmul": ("o_k[None, :] < K - k * BK, other=0.0)", "o_k[None, :] < BK, other=0.0)", "a"),
    "persistent": ("(o_m[:, None] < M) & (o_k < K), other", "(o_k < K), other", "a"),
    "scan": ("tl.store(sums + o, tl.cumsum(b_b, 0), m)", "tl.store(sums + o, tl.cumsum(b_b, 0))", "sums"),
    "atomic": ("tl.atomic_add(sums + v, v.to", "tl.atomic_add(sums + v + 1, v.to", "sums"),
}
LAUNCHED: dict[str, Callable[[Any], object]] = {
    "load": lambda of: of.add(torch.randn(1000), torch.randn(1000)),
    "store": lambda of: of.add(torch.randn(1000), torch.randn(1000)),
    "softmax": lambda of: of.softmax(torch.randn(7, 77)),
    "matmul": lambda of: of.matmul(half(64, 40), half(40, 32)),
    "persistent": lambda of: of.persistent_matmul(half(70, 32), half(32, 32)),
    "scan": lambda of: of.scan(torch.rand(3, 50), torch.rand(3, 50)),
    "atomic": lambda of: of.histogram(torch.arange(500, dtype=torch.int32) % 8, 8),
}


@MOSTLY_H100
@pytest.mark.parametrize("mask", FORGOTTEN)
def test_a_forgotten_mask_is_an_error_that_names_the_line(gpu: str, mask: str, tmp_path: Path) -> None:
    module, line = planted(tutorials, *FORGOTTEN[mask][:2], tmp_path)
    with triton_gpu(gpu) as entered, pytest.raises(EmulationError) as caught:
        LAUNCHED[mask](module)
    error = caught.value
    assert error.kind == "bounds" and error.source is not None, error
    file, _, at = error.source.rpartition(":")
    assert file.startswith("planted") and int(at) == line, error
    assert error.kernel in str(error) and error.source in str(error) and error.thread is not None
    assert f"of {FORGOTTEN[mask][2]}, which has" in str(error)
    assert entered.counters() == []


@MOSTLY_H100
def test_a_flag_that_one_warp_sets_before_all_have_read_it_gives_wrong_results(gpu: str, tmp_path: Path) -> None:
    """A race in global memory, which Triton's own tutorial has. No check looks for those; schedules show them."""
    module, _ = planted(tutorials, "    tl.debug_barrier()  # every warp has read it\n", "", tmp_path)
    x, gy = torch.randn(2, 7, 201)
    w, mean, rstd = torch.randn(201), x.mean(1), x.var(1, correction=0).rsqrt()

    def launch() -> torch.Tensor:
        return module.layer_norm_backward(gy, x, w, mean, rstd)[2]

    wrong = [got for (got,) in everywhere(gpu, launch, same=False) if not torch.allclose(got, gy.sum(0), atol=1e-4)]
    assert wrong


def test_a_descriptor_larger_than_its_tensor_is_found() -> None:
    a, b, c = half(64, 64), half(32, 64), half(64, 32)
    too_large = TensorDescriptor(a[1:], [64, 64], [64, 1], [64, 64])
    fitting = [TensorDescriptor.from_tensor(t, [*t.shape]) for t in (b, c)]
    with triton_gpu("h100"), pytest.raises(EmulationError, match="matmul_host_descriptors_kernel") as caught:
        tutorials.matmul_host_descriptors_kernel[(1, 1)](too_large, *fitting, 64, BM=64, BN=32, BK=64)
    assert caught.value.kind == "bounds"


# What stands in the source, what stands there instead, what it is found as. (A missing fence Triton puts in itself.)
FAULTS = {
    "the product waits for no copy": (
        "            mbarrier.wait(full.index(slot), i // STAGES & 1)\n", "", {"race", "uninitialised"},
    ),
    "copies wait for no product": (
        "mbarrier.wait(empty.index(slot), (i // STAGES & 1) ^ 1)", "pass", {"race", "barrier"},
    ),
    "the other phase": ("(i // STAGES & 1) ^ 1)", "(i // STAGES & 1))", {"deadlock"}),
    "no slot is given back": ("mbarrier.arrive(empty.index((i - 1) % STAGES))", "pass", {"deadlock"}),
    "slots are given back too early": (
        "            if i > 0:  # the product before this one is done\n    "
        "            mbarrier.arrive(empty.index((i - 1) % STAGES))",
        "            mbarrier.arrive(empty.index(i % STAGES))", {"race"},
    ),
    "half the bytes are expected": (
        "a.block_type.nbytes + b.block_type.nbytes", "a.block_type.nbytes", {"race", "barrier", "deadlock"},
    ),
    "the tile is overwritten while it is copied out": (
        "        tma.store_wait(0)\n        tile_c.store", "        tile_c.store", {"race"},
    ),
    "two products in flight": (
        "warpgroup_mma_wait(1, deps=(product,))", "warpgroup_mma_wait(2, deps=(product,))", {"race"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_of_the_warp_specialised_kernel_are_found(fault: str, tmp_path: Path) -> None:
    old, new, kinds = FAULTS[fault]
    module, _ = planted(gluon_matmul, old, new, tmp_path)
    a, b = half(150, 264), half(72, 264)
    found = set()
    for schedule, seed in SCHEDULES:
        with triton_gpu("h100", schedule=schedule, seed=seed), pytest.raises(EmulationError) as caught:
            module.matmul(a, b)
        found.add(caught.value.kind)
    assert found <= kinds, found
