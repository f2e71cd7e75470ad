"""The wheel holds the kernels under gpuconv, works elsewhere, and adds no top-level name but gpuconv."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools leaves build folders behind
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "runs", ".*_cache", ".venv")
    )
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--skip-dependency-check",
        "-o",
        folder,
        source,
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(folder.glob("*.whl"))


def test_wheel_has_one_top_level_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"gpuconv"}


def test_wheel_has_every_source_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("gpuconv", "gpuconv"), ("kernels", "gpuconv/kernels"), ("bench", "gpuconv/bench")):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".cu", ".cuh", ".css", ".js", ".typed"):
                assert f"{inside}/{file.relative_to(ROOT / folder)}" in names
    assert "gpuconv/py.typed" in names


def test_wheel_works_where_the_repository_is_not(wheel: Path, tmp_path: Path, clean_environment) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = """
import importlib.util, pathlib, torch, gpuconv, gpuconv.kernels, gpuconv.bench
assert pathlib.Path(gpuconv.kernels.__file__).parent == pathlib.Path(gpuconv.__file__).parent / "kernels"
assert importlib.util.find_spec("kernels") is None
x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
torch.testing.assert_close(gpuconv.conv2d(x, w, backend="numpy"), torch.conv2d(x, w))
print(gpuconv.__file__)
"""
    environment = clean_environment | {"PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(site))


def test_this_run_tests_the_installed_package_not_the_folder_beside_it() -> None:
    assert str(ROOT) not in sys.path and "" not in sys.path


def test_every_package_is_listed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"([\w.]+)"', re.search(r"^packages = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)[1]))
    found = set()
    for folder, inside in (("gpuconv", "gpuconv"), ("kernels", "gpuconv.kernels"), ("bench", "gpuconv.bench")):
        for file in (ROOT / folder).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT / folder).parts
            found.add(".".join((inside, *parts)))
    assert listed == found


def test_pytest_benchmark_is_kept_out_where_it_is_installed(pytestconfig: pytest.Config) -> None:
    """It warns of xdist, and here warnings are errors: not one test would run."""
    assert pytestconfig.pluginmanager.is_blocked("benchmark")
