"""Which (backend, device) pairs can be tested in this process: every one that runs here, named `backend-device`."""

import os
from typing import NamedTuple

import pytest
import torch

import gpuconv

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


class Lane(NamedTuple):
    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


def _lanes() -> list[Lane]:
    if INTERPRETING:  # the process that interprets Triton's kernels tests those alone
        return [Lane("triton", "cpu")]
    lanes = [Lane("numpy", "cpu"), Lane("aten", "cpu")]
    if torch.cuda.is_available():
        names = [name for name in gpuconv.backends.names() if name != "numpy"]
        lanes += [Lane(name, "cuda") for name in names if gpuconv.backends.get(name).unavailable() is None]
    return lanes


LANES = _lanes()
each_lane = pytest.mark.parametrize("lane", LANES, ids=str)
