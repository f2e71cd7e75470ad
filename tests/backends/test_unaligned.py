"""Tensors that do not begin at multiples of 16 bytes, with kernels that read through descriptors."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpuconv import backends, emulator
from gpuconv.activations import IDENTITY
from gpuconv.backends.base import Operands
from gpuconv.backends.triton import gather
from gpuconv.backends.triton.alignment import Run, by_alignment
from gpuconv.gpu import KNOWN
from gpuconv.problem import ConvProblem

LAST = torch.channels_last


class NoBuild(RuntimeError):
    pass


def shifted(aligned: bool = False) -> torch.Tensor:
    return torch.zeros(9)[0 if aligned else 1 :]


def ways_of(called: list[str], broken: set[str]) -> Any:
    def ways(which: str) -> Iterator[Any]:
        for name in ("quickest", "next", "last"):

            def run(*tensors: Any, label: str = f"{which or 'aligned'} {name}") -> str:
                called.append(label)
                if label in broken:
                    raise NoBuild(label)
                return label

            def bind(run: Run = run) -> Run:
                return run

            yield bind

    return ways


def bound(called: list[str], *broken: str) -> Run:
    return by_alignment(("input", "weight"), ways_of(called, {*broken}), lambda e: isinstance(e, NoBuild))


def test_what_is_not_aligned_decides_which_way_is_taken() -> None:
    run, even, odd = bound([]), shifted(True), shifted()
    assert run(even, even, None, None) == "aligned quickest"
    assert run(odd, even, None, None) == "input quickest"
    assert run(odd, odd, None, None) == "input+weight quickest"
    assert run(even, even, odd, odd) == "residual quickest"  # a bias need not be
    assert run(even, odd, True) == "weight quickest"


def test_a_way_that_cannot_be_built_is_passed_over_once() -> None:
    called: list[str] = []
    run, even, odd = bound(called, "input quickest", "input next"), shifted(True), shifted()
    with pytest.warns(UserWarning, match="cannot be built"):
        assert run(odd, even, None, None) == "input last"
    assert run(odd, even, None, None) == "input last"
    assert called == ["input quickest", "input next", "input last", "input last"]


def test_an_aligned_way_that_fails_is_the_planner_s_in_the_first_call_and_passed_over_later() -> None:
    even, odd = shifted(True), shifted()
    with pytest.raises(NoBuild):
        bound([], "aligned quickest")(even, even, None, None)
    run = bound([], "aligned quickest")
    assert run(odd, even, None, None) == "input quickest"
    with pytest.warns(UserWarning, match="cannot be built"):
        assert run(even, even, None, None) == "aligned next"


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"nothing is emulated: {emulator.why_not()}")
def test_an_operand_that_is_not_aligned_is_copied_for_the_quick_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    of = ConvProblem.of((8, 512, 28, 28), (512, 512, 3, 3), padding=1, dtype=torch.float16, memory_format=LAST)
    x, w = (torch.empty(s, device="meta", memory_format=LAST) for s in (of.input_shape, of.weight_shape))
    backend, gpu, operands = backends.get("triton"), KNOWN["H100"], Operands((x.stride(), w.stride()))
    tile = next(t for t in backend.tiles(of, "forward", gpu, operands) if t.kernel == "window")
    best = min(
        backend.predict(of, "forward", t, gpu, False).seconds for t in gather.tiles(of, "forward", gpu, operands)
    )
    copied = backend.predict(of, "forward", dataclasses.replace(tile, packs="input"), gpu, False).seconds
    assert copied < best  # and so it is done:
    monkeypatch.setattr(backend, "predict", lambda p, d, tile, *_: SimpleNamespace(seconds=float(not tile.packs)))
    torch.manual_seed(3)
    small = ConvProblem.of((1, 256, 8, 8), (256, 256, 3, 3), padding=1, dtype=torch.float16, memory_format=LAST)
    x, w = (torch.randn(s).half().contiguous(memory_format=LAST) for s in (small.input_shape, small.weight_shape))
    odd = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride()).copy_(x)
    with emulator.on("h100") as virtual:
        operands = Operands((x.stride(), w.stride()))
        tile = next(t for t in backend.tiles(small, "forward", gpu, operands) if t.kernel == "window" and t.splits == 1)
        run = backend.bind(small, "forward", torch.device("cpu"), IDENTITY, operands, tile)
        aligned, once, again = run(x, w, None, None), run(odd, w, None, None), run(odd, w, None, None)
    assert torch.equal(aligned, once) and torch.equal(once, again)
    assert virtual.launches == ["window_forward", *["pack", "window_forward"] * 2]
