"""What `gpuconv doctor --self-test` would launch is what this release of Triton compiles: traced, without a GPU.

Older ones refuse what newer ones take, such as products of few terms, and on a GPU that is found out late.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv.activations import Activation
from gpuconv.backends.triton.backend import TritonBackend, launches
from gpuconv.backends.triton.compiler import trace_for
from gpuconv.backends.triton.launch import RELEASE, Launch
from gpuconv.checking import self_test
from gpuconv.gpu import KNOWN

GPUS = {90: "H100", 80: "A100"}
BLOCKS = {"BM", "BN", "BC", "BK", "BJ", "TN", "TH", "TW", "TAPS", "BY_ROW", "SIZE", "PRECISION"}


def tried(capability: int) -> dict[tuple[object, ...], tuple[str, Launch]]:
    """The kernels of the self-test with different blocks, each with the first trial that needs it."""
    found: dict[tuple[object, ...], tuple[str, Launch]] = {}
    for trial in self_test.trials("triton", KNOWN[GPUS[capability]], torch.device("cuda", 0)):
        case, direction = trial.case, trial.case.direction
        if trial.tile is None:
            continue
        empty = self_test._empty_tensors(case.name, case.dtype, case.layout)
        problem, operands = self_test.as_planned(case.problem, direction, trial.kernels.numbers, empty)
        activation = Activation.parse(case.activation or "none")
        for launch in launches(problem, direction, operands, trial.tile, activation, direction == "grad_weight"):
            blocks = [constant for constant in launch.constants.items() if constant[0] in BLOCKS]
            width = max(dtype.itemsize for dtype in launch.dtypes if dtype)
            found.setdefault((launch.kernel, width, *blocks), (f"sm_{capability} {trial.kernels} {trial}", launch))
    return found


@pytest.mark.skipif(RELEASE >= (3, 8), reason="test_machine_code.py compiles far more with this release of Triton")
def test_every_kernel_that_the_self_test_tries_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TritonBackend, "refuses", lambda *_: None)  # that there is no GPU here
    refused, traced = [], set()
    for capability in GPUS:
        for different, (what, launch) in tried(capability).items():
            if different in traced:
                continue
            traced.add(different)
            try:
                trace_for(launch, capability)
            except Exception as error:
                refused.append(f"{what}: {launch.kernel.__name__}: {error.__cause__ or error}")
    assert not refused, "\n".join(refused)
    assert len(traced) > 80
