"""What the pages say was measured is what the recorded files hold, and those name no place on a machine."""

import json
import shutil
from pathlib import Path

import pytest

from gpuconv.bench import record
from gpuconv.bench.records import lines


@pytest.mark.parametrize("page", record.PAGES)
def test_the_figures_on_the_pages_are_those_of_the_record(page: str) -> None:
    text = (record.ROOT / page).read_text(encoding="utf-8")
    assert record.BEGIN + record.PAGES[page](record.newest()) + record.END in text, (
        "python -m gpuconv.bench.record renews it"
    )


def test_the_record_is_of_a_gpu_and_whole() -> None:
    bench, tested = record.newest()
    rows = [json.loads(line) for line in bench.read_text(encoding="utf-8").splitlines()]
    assert {row["on"] for row in rows} == {"cuda"} and all(row["right"] for row in rows if row["role"] == "ours")
    assert len({row["device"] for row in rows}) == 1 == len({row["driver"] for row in rows})
    assert json.loads(tested.read_text(encoding="utf-8"))["device"] == rows[0]["device"]
    text = bench.read_text(encoding="utf-8") + tested.read_text(encoding="utf-8")
    assert "/home/" not in text and "/root/" not in text and "remembered_in" not in text


def test_a_loss_is_shown_as_plainly_as_a_win() -> None:
    """Every mean is of each layer that both have a time for, whichever was quicker."""
    found = [line for line in lines(record.newest().rows) if line.layer.startswith("resnet50.")]
    shown = record.table(record.newest())
    for backend in record.BACKENDS:
        of = [line for line in found if line.direction == "forward" and line.numbers == "bfloat16"]
        ratios = [line.speedup(backend, layout="channels_last") for line in of]
        faster = sum(ratio > 1 for ratio in ratios)
        row = next(line for line in shown.splitlines() if f"`{backend}`, forward" in line)
        assert f"({faster} of {len(ratios)})" in row.split("|")[2]


def test_a_new_record_renews_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = record.newest()
    pages = {page: (record.ROOT / page).read_text(encoding="utf-8") for page in record.PAGES}
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    for page, text in pages.items():
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(text.replace("ResNet-50, batch", "ResNet-5, batch"), encoding="utf-8")
    bench, tested = tmp_path / "new.jsonl", tmp_path / "new.log"
    bench.write_text(old.bench.read_text(encoding="utf-8").replace("2026-", "2027-"), encoding="utf-8")
    shutil.copy(old.self_test, tested)
    if old.tiles is not None:
        shutil.copy(old.tiles, tmp_path / "results" / old.tiles.name.replace("2026-", "2027-"))
    monkeypatch.setattr("sys.argv", ["record", str(bench), str(tested)])
    record.main()
    before, now = old.bench.name[:10], record.newest().bench.name[:10]
    assert now == before.replace("2026-", "2027-")
    for page, text in pages.items():
        start, _, rest = text.partition(record.BEGIN)
        said, _, end = rest.partition(record.END)
        renewed = start + record.BEGIN + said.replace(before, now) + record.END + end
        assert (tmp_path / page).read_text(encoding="utf-8") == renewed
