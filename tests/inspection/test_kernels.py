"""`gpuconv plan` and `gpuconv inspect`: the launches for a layer on a GPU, without one."""

import importlib.resources
import json
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv.backends import BackendUnavailable
from gpuconv.backends.cuda import backend as cuda
from gpuconv.backends.triton import backend as triton
from gpuconv.bench import suites
from gpuconv.cli import main
from gpuconv.gpu import KNOWN, REPRESENTATIVE, named
from gpuconv.inspection.kernels import inspect_kernels
from gpuconv.planning import plan, ranking
from gpuconv.problem import DIRECTIONS

ARCHITECTURES = [name for name in REPRESENTATIVE if name != "sm_75"]
PRODUCTS = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}  # of Triton; HMMA elsewhere
LAYER = "resnet50.conv4_3x3"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_main_loop_of_a_triton_kernel_is_found(arch: str) -> None:
    problem = suites.layer(LAYER, 8, torch.float16, torch.channels_last)
    (kernel,) = inspect_kernels(problem, "forward", "triton", REPRESENTATIVE[arch])
    loop, all_of_it = kernel.code.loop_instructions, kernel.code.instructions
    assert loop[PRODUCTS.get(arch, "HMMA")] > 0 and loop["LDGSTS"] + loop["UTMALDG"] > 0 and loop["STG"] == 0
    assert all(all_of_it[name] >= count for name, count in loop.items())
    assert 1 <= kernel.blocks <= 32 and kernel.code.registers <= 255
    assert f"{arch} ({REPRESENTATIVE[arch].name})" in kernel.text() and "bound by" in kernel.text()


def test_the_main_loop_of_a_cuda_kernel_is_found() -> None:
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    problem = suites.layer(LAYER, 8, torch.float32)
    (kernel,) = inspect_kernels(problem, "grad_input", "cuda", KNOWN["T4"], ptx=True)
    assert kernel.name == "simt_grad_input" and kernel.architecture == "sm_75"
    assert kernel.code.loop_instructions["FFMA"] >= kernel.tile.rows * kernel.tile.columns * 8 / kernel.threads
    assert kernel.ptx.startswith("//\n") and "\n.target sm_75\n" in kernel.ptx


def test_every_kernel_is_reached_by_some_layer_on_every_architecture() -> None:
    texts = [file.read_text() for file in importlib.resources.files("gpuconv.kernels.cuda").iterdir() if file.is_file()]
    ours = set(
        re.findall(
            r"__global__ void __launch_bounds__\([^)]*\)\s(\w+)\(", "\n".join(t for t in texts if "__global__" in t)
        )
    )
    ours -= {"act_backward", "sum_channels"}  # no convolutions: test_act_backward_host.py compiles them
    ours |= {"gather_forward", "gather_grad_input", "gather_grad_weight", "sum_partials"}
    assert len(ours) >= 10
    for arch in ARCHITECTURES:
        reached = set()
        layers = {f"thirty.{name}": torch.channels_last for name in suites.SUITES["thirty"].layers}
        first = ("replknet31.depthwise31", "resnet50.conv3_3x3", "deepbench.56x56x64-256x1x1-n8")
        contiguous = dict.fromkeys(first, torch.contiguous_format)
        for name, layout in (layers | contiguous).items():
            for dtype in (torch.float16, torch.float32):
                for direction in DIRECTIONS:
                    problem = suites.layer(name, 32, dtype, layout)
                    operands = plan.contiguous_operands(problem, direction, layout)
                    found, refused = ranking.candidates(problem, direction, REPRESENTATIVE[arch], operands)
                    assert set(refused) >= {"numpy", "aten"}
                    for backend, module in (("triton", triton), ("cuda", cuda)):
                        best = next(candidate for candidate in found if candidate.backend == backend)
                        for launch in module.launches(problem, direction, operands, best.tile, with_bias=True):
                            reached.add(launch.kernel.__name__ if backend == "triton" else launch.instance.function)
        missed = ours - reached
        if arch in ("sm_75", "sm_120"):  # no tensor cores for it; tensor cores but twice as quick as multiply-adds
            missed = {name for name in missed if not name.startswith("banded_")}
        assert not missed, (arch, missed)


def test_candidates_are_in_the_order_of_their_times_and_auto_takes_the_planner_s() -> None:
    problem = suites.layer(LAYER, dtype=torch.bfloat16, memory_format=torch.channels_last)
    operands = plan.contiguous_operands(problem, "forward", torch.channels_last)
    found, _ = ranking.candidates(problem, "forward", named("rtx4090"), operands)
    seconds = [candidate.prediction.seconds for candidate in found]
    assert seconds == sorted(seconds) and {candidate.backend for candidate in found} == {"triton", "cuda"}
    for _, tile, prediction in found:
        parts = dict(prediction.parts)
        loop = max(parts[name] for name in parts.keys() - {"start and end", "memory bandwidth"})
        assert parts[prediction.bound] >= loop and prediction.seconds > max(parts.values()), tile


def test_plan_prints_the_candidates_and_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["plan", "--layer", LAYER, "--gpu", "h100", "--gpu", "l4", "--direction", "forward"]) == 0
    text = capsys.readouterr().out
    assert (
        text.count("→ triton") == text.count("→ cuda") == 1
        and "on H100 (sm_90); times are predicted, not measured" in text
    )
    assert main.run(["plan", "--layer", LAYER, "--gpu", "T4", "--direction", "forward", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["chosen"] for row in rows].count(True) == 1
    assert {row["backend"] for row in rows} == {"cuda"} and all(row["predicted_seconds"] > 0 for row in rows)


def test_inspect_prints_json_with_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", "--layer", LAYER, "--backend", "triton", "--arch", "sm_80", "--direction", "grad_weight"]
    assert main.run([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in rows] == ["gather_grad_weight", "sum_partials"]
    promised = {"kernel", "backend", "direction", "dtype", "arch", "tile", "registers", "spill_bytes", "shared_bytes"}
    assert all(promised | {"instructions", "loop_instructions"} <= row.keys() for row in rows)
    assert rows[0]["loop_instructions"]["HMMA"] > 0 and rows[0]["predicted_seconds"] > 0
    assert main.run([*command, "--sass", "--ptx"]) == 0
    text = capsys.readouterr().out
    assert "HMMA.16816" in text and ".target sm_80" in text


def test_plan_and_inspect_take_each_others_words(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy, whose NVRTC compiles CUDA C, is not installed")
    for command in ("plan", "inspect --backend cuda"):
        said = set()
        for gpu in ("--gpu h100", "--arch sm_90", "--arch H100", "--gpu SM90"):
            assert main.run([*command.split(), "--layer", LAYER, "--direction", "forward", *gpu.split()]) == 0
            said.add(capsys.readouterr().out)
        assert len(said) == 1 and "H100" in said.pop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--layer", "resnet50.conv3_3x4", "--gpu", "h100"], "did you mean resnet50.conv3_3x3"),
        (["plan", "--layer", LAYER, "--gpu", "h1000"], "gpu must be one of T4, A100"),
        (["inspect", "--layer", LAYER, "--arch", "sm_70"], "arch must be one of sm_75"),
        (["inspect", "--layer", LAYER, "--dtype", "int8"], "dtype must be one of float16"),
        (["inspect", "--layer", LAYER, "--backend", "numpy"], "backend must be one of triton, cuda"),
        (["inspect", "--layer", LAYER, "--backend", "triton", "--arch", "sm_75"], "use cuda or aten"),
        (["inspect", "--layer", LAYER, "--batch", "0"], "batch must be at least 1"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_backend_without_kernels_cannot_be_inspected() -> None:
    with pytest.raises(BackendUnavailable, match="one of triton, cuda to look at kernels, but got 'aten'"):
        inspect_kernels(suites.layer(LAYER), "forward", "aten", KNOWN["H100"])
