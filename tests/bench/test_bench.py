"""`gpuconv bench`: the gate before the clock, files that survive an interruption, reports, plots and comparisons."""

import csv
import io
import json
import os
import time
from pathlib import Path

import planted
import pytest
import torch

from gpuconv import backends
from gpuconv.bench import plots, records, report, runner, timing, verdict, workloads
from gpuconv.bench.compile_first import compile_first
from gpuconv.bench.workloads import Workload, combinations
from gpuconv.checking.precision import float32_as
from gpuconv.cli import main
from gpuconv.problem import DIRECTIONS, ConvProblem

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "bench/results/2026-11-24-cpu.jsonl"
CPU = torch.device("cpu")
SMALL = "airbench96.proxy_group3_conv2"  # 64 → 64 channels on 3×3 pixels


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few runs are enough, and the ceilings are made up."""
    monkeypatch.setitem(timing.BUDGET, "cpu", 0.0)
    monkeypatch.setattr(timing, "_flush", lambda device: torch.empty(1))
    monkeypatch.setattr(timing, "ceilings", lambda *_: {"copy_gbs": 10.0, "matmul_tflops": 0.1})


@pytest.fixture
def sample() -> list[records.Row]:
    return records.read([SAMPLE])


def measure(out: Path, *subjects: str, directions=DIRECTIONS, **options) -> list[records.Row]:
    few = list(combinations([SMALL], directions, ["float32"], None, "cpu"))
    return list(runner.run(few, runner.Options(CPU, subjects, **options), out, lambda number, text: None))


# ---- the gate --------------------------------------------------------------------------------------------------------


def test_fused_is_a_forward_with_bias_and_relu(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measure(tmp_path / "a.jsonl", "aten", "numpy", directions=("fused",))
    assert len(rows) == 4 and all(row["right"] and row["direction"] == "fused" and row["ms"] > 0 for row in rows)
    workload = Workload(SMALL, "fused", "float32", 1)
    x, w = workload.operands(CPU)
    bias = workload.bias(CPU)
    call = workload.bound_call("numpy", "contiguous", x, w)
    for most in (1e9, 0):  # judged by the oracle, and by PyTorch in float64
        monkeypatch.setattr(verdict, "MOST_FLOPS_FOR_THE_ORACLE", most)
        fused, linear = (
            verdict.ExactResult(workload.problem("contiguous"), "forward", x, w, False, b) for b in (bias, None)
        )
        assert fused.error_of(call()) <= 1 < linear.error_of(call())


def test_what_is_right_is_timed_with_all_that_a_row_has_to_say(quick: None, tmp_path: Path) -> None:
    rows = measure(tmp_path / "a.jsonl", "aten", "numpy")
    assert len(rows) == 3 * 2 * 2
    for row in rows:
        assert row["right"] and row["error"] <= 1 and row["judged_by"] == "oracle"
        assert 0 < row["ms_20"] <= row["ms"] <= row["ms_80"]
        assert row["tflops"] > 0 and row["gbs"] > 0 and row["roofline"] > 0
        assert row["on"] == "cpu" and row["device"].startswith("CPU") and row["torch"] == torch.__version__
        assert {"driver", "clocks_sm", "commit", "date", "triton", "cudnn", "tf32", "cudnn_benchmark"} <= set(row)


@pytest.mark.parametrize("cls", [planted.DroppedTap, planted.WrongPad])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wrong_kernel_is_reported_and_not_timed(quick: None, tmp_path: Path, cls: type, direction: str) -> None:
    name = backends.load(f"planted:{cls.__name__}")
    rows = measure(tmp_path / "a.jsonl", "aten", name, directions=(direction,))
    wrong = [row for row in rows if row["backend"] == name]
    assert len(wrong) == 2 and all(row["right"] is False and row["error"] > 1 and "ms" not in row for row in wrong)
    assert report.table(rows).count("WRONG  ") == 2


def test_an_element_that_is_not_written_is_wrong(quick: None, tmp_path: Path) -> None:
    class Unwritten(planted.Planted):
        name = "unwritten"

        def result(self, result):
            fresh = torch.empty_like(result)
            fresh[:1] = result[:1]
            return fresh

    backends.register(Unwritten())
    (row, *_) = measure(tmp_path / "a.jsonl", "unwritten", directions=("forward",))
    assert row["error"] == "inf" and "ms" not in row


def test_what_fails_or_is_refused_does_not_stop_the_rest(quick: None, tmp_path: Path) -> None:
    class Broken(planted.Planted):
        name = "broken"

        def forward(self, *tensors, activation):
            raise RuntimeError("no such thing")

    backends.register(Broken())
    float16_alone = backends.load("planted:Float16Sums")
    rows = measure(tmp_path / "a.jsonl", "broken", float16_alone, "aten", directions=("forward",))
    assert [row.get("failed") or row.get("refused") for row in rows[:3]] == [
        "RuntimeError: no such thing", "it does float16", None,
    ]  # fmt: skip
    text = report.table(rows)
    assert "no such thing" in text and "it does float16" in text


def test_a_baseline_is_timed_and_its_error_reported(quick: None, tmp_path: Path) -> None:
    few = list(combinations([SMALL], ("grad_weight",), ["float16"], 2, "cpu"))
    rows = list(runner.run(few, runner.Options(CPU, ("aten",)), tmp_path / "a.jsonl", lambda number, text: None))
    assert all("ms" in row and row["role"] == "baseline" for row in rows)
    missed = [row for row in rows if not row["right"]]
    assert ("misses the error bound" in report.table(rows)) == bool(missed)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_oracle_and_pytorch_in_float64_agree(
    monkeypatch: pytest.MonkeyPatch, direction: str, dtype: torch.dtype
) -> None:
    p = ConvProblem.of((5, 6, 9, 8), (4, 3, 3, 3), 2, 1, groups=2, dtype=dtype)
    a, b = (
        torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        for shape in p.operand_shapes(direction)
    )
    got = workloads.pytorch(p, direction, a)(a, b)
    by_oracle = verdict.ExactResult(p, direction, a, b, False)
    monkeypatch.setattr(verdict, "MOST_FLOPS_FOR_THE_ORACLE", 0)
    monkeypatch.setattr(verdict, "_ELEMENTS_AT_ONCE", 2 * 6 * 9 * 8)  # two images at a time
    by_pytorch = verdict.ExactResult(p, direction, a, b, False)
    assert (by_oracle.computed_by, by_pytorch.computed_by) == ("oracle", "PyTorch in float64")
    if dtype is not torch.float64:  # there PyTorch would be compared with itself
        assert by_pytorch.error_of(got) == pytest.approx(by_oracle.error_of(got), rel=1e-3)
    got = got.clone()
    got.view(-1)[-1] += 1
    assert by_oracle.error_of(got) > 1 and by_pytorch.error_of(got) > 1
    got.view(-1)[0] = float("nan")
    assert by_oracle.error_of(got) == by_pytorch.error_of(got) == float("inf")
    assert by_pytorch.error_of(got[:1]) == float("inf")


def test_float32_settings_are_put_back() -> None:
    before = (torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision)
    with float32_as("tf32"):
        assert torch.backends.cudnn.benchmark and torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision) == before


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_keeps_its_rows_and_goes_on(quick: None, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "a.jsonl"
    few = list(combinations([SMALL], DIRECTIONS, ["float32"], None, "cpu"))
    going = runner.run(few, runner.Options(CPU, ("aten", "numpy")), out, lambda number, text: None)
    first = [next(going) for _ in range(5)]
    going.close()
    with out.open("a") as file:
        file.write('{"layer": "cut sho')
    assert records.read([out]) == first
    rest = measure(out, "aten", "numpy")
    assert len(first) + len(rest) == 12
    assert len(records.read([out])) == len(out.read_text().splitlines()) == 12
    assert measure(out, "aten", "numpy") == []


def test_other_code_is_measured_again(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.jsonl"
    measure(out, "numpy", directions=("forward",))
    monkeypatch.setattr(runner, "source", lambda backend: "changed")
    assert len(measure(out, "numpy", directions=("forward",))) == 2


def test_nothing_new_is_started_when_time_is_up(quick: None, tmp_path: Path) -> None:
    assert measure(tmp_path / "a.jsonl", "aten", seconds=0.0) == []


def test_other_processes_compile_first_what_is_left_to_measure(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(planted.__file__).parent)  # where the processes find the backend
    monkeypatch.setenv("NOTED", str(tmp_path / "calls"))
    specs = {backends.load("planted:Noted"): "planted:Noted"}
    for _ in range(2):  # the second time nothing is left
        measure(tmp_path / "a.jsonl", "aten", "noted", directions=("forward",), specs=specs, compile_first=3)
    calls = [int(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert os.getpid() not in calls[:2] and len({*calls[:2]}) == 2  # a process for each layout
    assert set(calls[2:]) == {os.getpid()}


def test_compiling_first_ends_when_its_time_is_up() -> None:
    begun = time.monotonic()
    compile_first([(Workload(SMALL, "forward", "float32", 2), "numpy", "contiguous")], {}, CPU, 2, 0.0)
    assert time.monotonic() - begun < 5


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1, is not a result"):
        records.read([tmp_path / "a.jsonl"])
    with pytest.raises(ValueError, match="cannot be read"):
        records.read([tmp_path / "none"])


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_the_sample_is_honest(sample: list[records.Row]) -> None:
    assert all(row["on"] == "cpu" and row["device"].startswith("CPU") and row["commit"] for row in sample)
    assert {row["direction"] for row in sample} == set(DIRECTIONS)


def test_the_table_shows_losses_as_plainly_as_wins(sample: list[records.Row]) -> None:
    text = report.table(sample)
    assert text.startswith("CPU") and "no GPU" in text
    (line,) = [
        line for line in records.lines(sample) if (line.layer, line.direction) == ("resnet18.conv3_3x3", "forward")
    ]
    speedup = line.speedup("numpy")
    assert records.times_text(speedup) in next(
        t for t in text.splitlines() if t.startswith("conv3_3x3 ") and "forward" in t
    )
    assert "geometric mean of 11; faster on" in text
    assert (records.times_text(2), records.times_text(0.5), records.times_text(1)) == (
        "2.00× faster", "2.00× slower", "as fast",
    )  # fmt: skip
    speedups = [line.speedup("numpy") for line in records.lines(sample) if line.direction == "forward"]
    assert f"numpy, forward: {records.times_text(records.geometric_mean(speedups))} than aten" in text


def test_csv_has_all_rows(sample: list[records.Row]) -> None:
    rows = list(csv.DictReader(io.StringIO(records.as_csv(sample))))
    assert len(rows) == len(sample)
    assert float(rows[0]["ms"]) == sample[0]["ms"]


def test_plots_are_drawn_and_can_be_told_apart_in_grey(sample: list[records.Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib, of the extra `bench`")
    paths = plots.plot(sample, tmp_path / "plots")
    assert [path.name for path in paths] == ["resnet18-float32-roofline.png", "resnet18-float32-speedup.png"]
    from matplotlib import image

    for path in paths:
        pixels = image.imread(path)
        assert pixels.shape[0] > 400 and pixels.shape[1] > 1000
        assert 0.01 < (pixels[..., :3].mean(-1) < 0.9).mean() < 0.6  # neither blank nor filled
    assert len({marker for _, marker, _ in plots._STYLES}) == len({hatch for *_, hatch in plots._STYLES}) == 6


# ---- comparing -------------------------------------------------------------------------------------------------------


def slower(rows: list[records.Row], factor: float, backend: str = "numpy", which: int = 0) -> list[records.Row]:
    """A copy of rows in which the one row of a backend takes longer."""
    rows = [dict(row) for row in rows]
    row = [row for row in rows if row["backend"] == backend][which]
    row.update({name: row[name] * factor for name in ("ms", "ms_20", "ms_80")})
    return rows


def test_a_planted_regression_is_found(sample: list[records.Row]) -> None:
    found = records.compare(sample, slower(sample, 30))
    assert [change.kind for change in found.regressions] == ["slower"]
    assert "30.00 × the time" in report.comparison(found) and "1 worse, 0 better" in report.comparison(found)
    assert [c.kind for c in records.compare(slower(sample, 30), sample).changes] == ["faster"]


def test_noise_is_no_regression(sample: list[records.Row]) -> None:
    assert not records.compare(sample, sample).changes
    row = next(row for row in sample if row["backend"] == "numpy")
    within = 0.5 * (1 + row["ms_80"] / row["ms_20"])  # the ranges still meet
    assert not records.compare(sample, slower(sample, within)).changes


def test_a_slower_baseline_is_the_machine(sample: list[records.Row]) -> None:
    found = records.compare(sample, slower(sample, 30, "aten"))
    assert not found.regressions and "does not count" in report.comparison(found)


@pytest.mark.parametrize("state", [{"right": False, "error": 7.0}, {"failed": "out of memory"}])
def test_what_is_wrong_or_fails_now_is_a_regression(sample: list[records.Row], state: dict) -> None:
    new = slower(sample, 1)
    row = next(row for row in new if row["backend"] == "numpy")
    for name in ("ms", "ms_20", "ms_80"):
        del row[name]
    row.update(state)
    assert [c.kind for c in records.compare(sample, new).regressions] == ["wrong" if "right" in state else "failed"]


def test_only_like_is_compared_with_like(sample: list[records.Row]) -> None:
    with pytest.raises(ValueError, match="different devices"):
        records.compare(sample, [row | {"device": "NVIDIA H100"} for row in sample])
    with pytest.raises(ValueError, match="no measurement in common"):
        records.compare(sample, [])


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command_line(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], sample: list[records.Row]
) -> None:
    out, new = tmp_path / "a.jsonl", tmp_path / "new.jsonl"
    few = ["bench", "--device", "cpu", "--layer", SMALL, "--direction", "forward", "--out", str(out), "--backend"]
    assert main.run([*few, "numpy", "--csv", str(tmp_path / "a.csv")]) == 0
    text = capsys.readouterr().out
    assert "no GPU" in text and f"results  {out}" in text and (tmp_path / "a.csv").exists()
    assert main.run([*few, "numpy", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert main.run([*few, "planted:WrongPad"]) == 1
    assert "WRONG  " in capsys.readouterr().out
    new.write_text("".join(json.dumps(row) + "\n" for row in slower(sample, 30)))
    assert main.run(["bench", "--compare", str(SAMPLE), str(new)]) == 1
    assert main.run(["bench", "--compare", str(SAMPLE), str(SAMPLE)]) == 0
    assert main.run(["bench", "--report", str(SAMPLE)]) == 0
    assert "geometric mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite", "resnet"], "no suite is called 'resnet' (did you mean resnet"),
        (["--layer", "resnet18.conv"], "did you mean resnet18.conv"),
        (["--dtype", "float8"], "dtype must be one of float16"),
        (["--dtype", "tf32"], "tf32 is how GPUs multiply float32"),
        (["--backend", "nonsense"], "backend must be package.module:Class or one of"),
        (["--report", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_wrong_options_are_named(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "--device", "cpu", *options]) == 1
    assert words in capsys.readouterr().err


def test_first_call_in_a_fresh_process() -> None:
    found = runner.first_call(Workload(SMALL, "forward", "float32", 2), "numpy", "contiguous", CPU)
    assert found["first_call_ms"] > 0 and found["compile_ms"] >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="times a GPU")
def test_a_gpu_is_timed_three_ways(tmp_path: Path) -> None:
    few = list(combinations([SMALL], DIRECTIONS, ["bfloat16"], None, "cuda"))
    options = runner.Options(torch.device("cuda"), ("aten", "triton"), first_call=True)
    for row in runner.run(few, options, tmp_path / "a.jsonl", lambda number, text: None):
        assert (
            row["right"] and row["ms"] > 0 and row["graph_ms"] > 0 and row["host_us"] > 0 and row["first_call_ms"] > 0
        ), row
