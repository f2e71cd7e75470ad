"""Options and fixtures of the whole suite."""

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker of several: NumPy is not to fight for the cores either
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from lanes import INTERPRETING, Lane

import gpuconv

# PyTorch's databases for tests freeze its flags (cudnn.deterministic, …) for the whole process when they are imported.
torch.backends.disable_global_flags = lambda: None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="hundreds of random problems, large networks")
    parser.addoption("--shard", default="0/1", metavar="I/N", help="every N-th test only, from the I-th on")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: takes long; runs with --full only")
    if hasattr(config, "workerinput"):  # one worker of several: do not fight for the cores
        torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "random_seed" in metafunc.fixturenames:
        most = 500 if metafunc.config.getoption("--full") else 2 if INTERPRETING else 20
        metafunc.parametrize("random_seed", range(most), ids="seed{}".format)


@pytest.hookimpl(trylast=True)  # after -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="takes long; runs with --full only"))
    shard, shards = map(int, config.getoption("--shard").split("/"))
    items[:] = items[shard::shards]


@pytest.fixture(autouse=True)
def poisoned_outputs() -> object:
    """PyTorch fills every new tensor with NaN, so that an element that is not written cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def the_same_path() -> Iterator[None]:
    """A backend that is loaded by its file's name adds the current folder to sys.path: for its own test alone."""
    before = sys.path[:]
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def in_its_lane(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of a lane whose GPU is emulated runs while it is."""
    lane = getattr(getattr(request.node, "callspec", None), "params", {}).get("lane")
    with lane.entered() if isinstance(lane, Lane) else nullcontext():
        yield


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The environment for a child process: ours, without what would change how gpuconv behaves."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GPUCONV_", "TRITON_", "PYTEST_", "COV_"))}
    return environment | {"PATH": os.path.dirname(sys.executable) + os.pathsep + environment.get("PATH", "")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own, which is not there yet: nothing is tuned."""
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "cache"))
    gpuconv.planning.plan.forget()
    yield tmp_path / "cache"
    gpuconv.planning.plan.forget()
