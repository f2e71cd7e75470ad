"""The table of what was measured: recorded, looked up, merged, and survived when it is damaged."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import gpuconv
from gpuconv import backends
from gpuconv.backends.base import Tile
from gpuconv.backends.numpy import NumpyBackend
from gpuconv.planning import plan, tuned
from gpuconv.planning.tuned import Measured
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.settings import Settings

PROBLEM = ConvProblem.of((2, 3, 9, 8), (5, 3, 3, 3), padding=1)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("cache")


def key(direction: Direction = "forward", problem: ConvProblem = PROBLEM) -> str:
    found = tuned.key_of(problem, direction, "cpu", plan.contiguous_operands(problem, direction))
    assert found is not None
    return found


def chosen(backend: str, direction: Direction = "forward") -> plan.Plan:
    settings = Settings(PROBLEM.stride, PROBLEM.padding, PROBLEM.dilation, 1, backend=backend)
    return plan.choose(PROBLEM, direction, CPU, settings)


def test_fastest_takes_what_was_quickest_direction_by_direction() -> None:
    for direction, quick in zip(DIRECTIONS, ("numpy", "aten", "numpy"), strict=True):
        times = {name: Measured(1e-3 if name == quick else 2e-3, None) for name in ("numpy", "aten")}
        tuned.record({key(direction): times})
    plan.forget()  # as another process, which has not read the table yet
    assert [chosen("fastest", d).backend.name for d in DIRECTIONS] == ["numpy", "aten", "numpy"]
    assert chosen("auto").backend.name == "aten" and chosen("aten").backend.name == "aten"


def test_fastest_is_auto_where_nothing_was_measured_and_computes_the_same() -> None:
    assert chosen("fastest").backend.name == "aten"
    x, w = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(5, 3, 3, 3)
    y = gpuconv.conv2d(x, w, padding=1, backend="fastest")
    torch.testing.assert_close(y, torch.conv2d(x, w, padding=1))
    y.sum().backward()
    with gpuconv.use_backend("fastest"):
        torch.testing.assert_close(gpuconv.conv2d(x, w, padding=1), y)


def test_a_key_tells_apart_all_that_matters() -> None:
    operands = plan.contiguous_operands(PROBLEM, "forward")
    others = [
        tuned.key_of(PROBLEM, "forward", "NVIDIA H100", operands),
        tuned.key_of(PROBLEM, "forward", "cpu", operands._replace(tf32=True)),
        key("grad_input"),
        *(
            key(problem=ConvProblem.of(x, w, **settings))
            for x, w, settings in (
                ((3, 3, 9, 8), (5, 3, 3, 3), {"padding": 1}),
                ((2, 3, 9, 8), (5, 3, 3, 3), {"padding": ((1, 0), (1, 1))}),
                ((2, 3, 9, 8), (5, 3, 3, 3), {"padding": 1, "stride": 2}),
                ((2, 3, 9, 8), (5, 3, 3, 3), {"padding": 1, "dilation": 2}),
                ((2, 3, 9, 8), (5, 3, 3, 3), {"padding": 1, "dtype": torch.float64}),
            )
        ),
    ]
    assert len({key(), *others}) == 1 + len(others)
    sliced = operands._replace(strides=((1000, 300, 10, 1), operands.strides[1]))
    assert tuned.key_of(PROBLEM, "forward", "cpu", sliced) is None


class Tiled(NumpyBackend):
    """As a backend with kernels: it has tiles to choose from."""

    name = "tiled"
    offers = (Tile(128, 128, 64, 8, 4), Tile(64, 64, 32, 4, 3), Tile(16, 16, 16, 4, 2))

    def tiles(self, problem, direction, gpu, operands):
        return self.offers

    def bind(self, problem, direction, device, activation, operands, tile):
        return super().bind(problem, direction, device, activation)


def test_a_recorded_tile_goes_before_the_formula_and_one_that_is_no_more_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(backends._loaded, "tiled", Tiled())
    formula = chosen("tiled").tile
    other = next(tile for tile in Tiled.offers if tile != formula)
    tuned.record({key(): {"tiled": Measured(1.0, other)}})
    assert chosen("tiled").tile == other
    tuned.record({key(): {"tiled": Measured(1.0, Tile(1, 2, 3, 4, 5))}})
    with pytest.warns(UserWarning, match=r"has tiles that backend 'tiled' does not offer today .*rows=1, columns=2"):
        assert chosen("tiled").tile == formula
    with warnings.catch_warnings():  # once for a file
        warnings.simplefilter("error")
        assert chosen("tiled").tile == formula


HOSTILE = {
    "negative": {"rows": -128},
    "huge": {"rows": 10**30, "splits": 2**63},
    "misspelt": {"kernel": "gahter"},
    "of another type": {"rows": "128", "stages": [4], "halo": {"a": None}},
    "not a number": {"rows": float("nan")},
}


@pytest.mark.parametrize("changed", HOSTILE.values(), ids=HOSTILE)
def test_a_tile_that_is_not_on_the_menu_is_never_launched(
    changed: dict[str, object], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends._loaded, "tiled", Tiled())
    tile = vars(Tiled.offers[0]) | changed
    content = {"version": 1, "problems": {key(): {"tiled": {"seconds": 1e-3, "tile": tile}}}}
    cache.mkdir()
    tuned.path().write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="does not offer today") as said:
        assert chosen("tiled").tile in Tiled.offers
    assert len(said) == 1


def test_the_tile_that_is_launched_is_the_menu_s_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of floats equals one of integers, and no kernel can be compiled for it."""
    monkeypatch.setitem(backends._loaded, "tiled", Tiled())
    tile = {name: float(n) if isinstance(n, int) else n for name, n in vars(Tiled.offers[0]).items()}
    cache.mkdir()
    content = {"version": 1, "problems": {key(): {"tiled": {"seconds": 1e-3, "tile": tile}}}}
    tuned.path().write_text(json.dumps(content))
    assert chosen("tiled").tile is Tiled.offers[0]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 99}',
        '{"version": 1, "problems": {"k": {"aten": {"seconds": "x"}}}}',
        "\udcff",
        "[" * 100_000,
        *(
            f'{{"version": 1, "problems": {{"k": {{"aten": {{"seconds": {seconds}, "tile": null}}}}}}}}'
            for seconds in ("NaN", "-1", "1" + "0" * 400)
        ),
        '{"version": 1, "problems": {"k": {"aten": {"seconds": 1, "tile": {"rwos": 1}}}}}',
    ],
    ids=[
        "cut off",
        "a list",
        "of another version",
        "with a strange entry",
        "not text",
        "nested",
        "with no time",
        "with a negative time",
        "with an endless time",
        "with a misspelt field",
    ],
)
def test_a_damaged_table_is_ignored_with_one_warning_and_kept_aside(cache: Path, text: str) -> None:
    cache.mkdir()
    file = tuned.path()
    file.write_text(text, errors="surrogateescape")
    with pytest.warns(UserWarning, match=r"tuned\.json is ignored"):
        assert chosen("fastest").backend.name == "aten"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen("fastest", "grad_input")
    with pytest.warns(UserWarning, match="kept as"):
        tuned.record({key(): {"numpy": Measured(1.0, None)}})
    assert (cache / "tuned.damaged.json").read_text(errors="surrogateescape") == text
    assert chosen("fastest").backend.name == "numpy"


def test_a_table_that_cannot_be_written_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.record({key(): {"numpy": Measured(1.0, None)}})
    before = tuned.path().read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tuned.record({key("grad_input"): {"numpy": Measured(1.0, None)}})
    assert tuned.path().read_bytes() == before
    assert sorted(p.name for p in tuned.path().parent.iterdir()) == ["tuned.json", "tuned.lock"]


def test_processes_that_record_at_once_lose_nothing(clean_environment: dict[str, str], cache: Path) -> None:
    code = (
        "import sys; from gpuconv.planning import tuned\n"
        "for i in range(20): tuned.record({f'{sys.argv[1]} {i}': {'aten': tuned.Measured(1.0, None)}})"
    )
    environment = clean_environment | {"GPUCONV_CACHE": str(cache)}
    processes = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(json.loads(tuned.path().read_text())["problems"]) == 40


def test_what_is_planned_can_be_heard() -> None:
    x, w = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
    for _ in range(2):  # also what is planned already
        with plan.listening() as heard:
            for _ in range(2):
                gpuconv.conv2d(x, w, padding=1, backend="numpy").sum().backward()
        assert [asked.direction for asked in heard] == ["forward", "grad_input", "grad_weight"]
        assert all(asked.problem == PROBLEM and asked.device == CPU for asked in heard)
