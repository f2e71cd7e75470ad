"""The committed facts about machine code: nothing has become worse since they were written."""

import copy
import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv.bench import machine_code

RECORDED = json.loads(machine_code.FILE.read_text())


@pytest.mark.parametrize("architecture", machine_code.ARCHITECTURES)
def test_no_kernel_compiles_to_worse_than_recorded(architecture: str) -> None:
    if machine_code.versions() != RECORDED["versions"]:
        pytest.skip(f"recorded with {RECORDED['versions']}, and here are {machine_code.versions()}")
    old = {name: fact for name, fact in RECORDED["kernels"].items() if name.endswith(f" {architecture}")}
    assert not machine_code.regressions(old, machine_code.facts(architecture))


@pytest.mark.parametrize(
    ("key", "value"),
    [("registers", 255), ("spill_bytes", 8), ("shared_bytes", 10**6), ("loop", {"HMMA": 1}), ("loop", {"LDS": 999})],
)
def test_a_planted_regression_is_found(key: str, value: object) -> None:
    name = "triton forward gather_forward sm_80"
    worse = copy.deepcopy(RECORDED["kernels"])
    worse[name][key] = value if key != "loop" else worse[name]["loop"] | value
    assert len(found := machine_code.regressions(RECORDED["kernels"], worse)) == 1 and found[0].startswith(name)
    assert not machine_code.regressions(RECORDED["kernels"], RECORDED["kernels"])
    assert machine_code.regressions(RECORDED["kernels"], {}) and machine_code.regressions({}, RECORDED["kernels"])
