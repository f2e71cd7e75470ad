"""The kernel that packs operands under Triton's interpreter; `test_kernels_in_interpreter.py` runs it."""

import itertools
import math

import pytest
import torch
from interpreter import check, few, guarded  # noqa: F401 (a fixture)

from gpuconv.backends import packing
from gpuconv.backends.base import Tile
from gpuconv.backends.triton import pack
from gpuconv.problem import ConvProblem

TENSORS = {
    "rows of vectors": torch.randn(2, 24, 8, 10),
    "rows that begin anywhere": torch.randn(3, 16, 3, 3),
    "sliced": torch.randn(2, 40, 9, 12)[:, 3:35, 1:7, ::2],
    "channels last, sliced": torch.randn(2, 9, 7, 100).movedim(-1, 1)[:, 3:35],
    "expanded": torch.randn(1, 1, 1, 1).expand(2, 16, 3, 5),
    "3d": torch.randn(2, 16, 3, 4, 5)[:, :, ::2],
    "1d": torch.randn(1, 16, 131),
}


@pytest.mark.parametrize(("first", "second"), few(itertools.pairwise([*TENSORS, None]), 4))
@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16, torch.float32], 1))
def test_copies_are_right_to_the_last_element(first: str, second: str | None, dtype: torch.dtype) -> None:
    given = [None if name is None else TENSORS[name].to(dtype) for name in (first, second)]
    a, b = (None if t is None else packing.source(tuple(t.shape), t.stride()) for t in given)
    copies = [None if t is None else torch.full((t.numel() + 16,), math.nan, dtype=dtype) for t in given]
    pack.launch((a, b), dtype)(None, *given, *(None if copy is None else copy[8:] for copy in copies))
    for t, copy in zip(given, copies, strict=True):
        if t is not None and copy is not None:
            assert torch.equal(copy[8:-8], t.movedim(1, -1).reshape(-1))
            assert copy[:8].isnan().all() and copy[-8:].isnan().all()


def test_packed_operands_in_all_directions() -> None:
    problem = ConvProblem.of((2, 16, 5, 7), (24, 16, 3, 2), padding=1, stride=(1, 2), dtype=torch.float16)
    for packs, directions in (
        ("input+weight", ("forward",)), ("grad_output+weight", ("grad_input",)),
        ("grad_output+input", ("grad_weight",)), ("weight", ("forward", "grad_input")),
    ):  # fmt: skip
        tile = Tile(32, 16, 32, warps=4, stages=2, packs=packs)
        check(problem, "packed", "sliced", tile, "relu", directions)
