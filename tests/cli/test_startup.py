"""The command line before any command: what it answers at once, without its packages, and in any encoding."""

import importlib.metadata
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gpuconv.bench
import gpuconv.kernels
from gpuconv import packages, text

Environment = dict[str, str]


def run(environment: Environment, *words: object, cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    """Python with these words, where nothing of ours lies about to be imported."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cwd)


# ---- at once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--version", "--help", "-h", "", "trian", "--show-completion bash"])
def test_what_needs_no_pytorch_does_not_import_it(clean_environment: Environment, words: str, tmp_path: Path) -> None:
    script = tmp_path / "gpuconv"  # as pip makes it
    script.write_text("from gpuconv.__main__ import main\nmain()\n")
    named = clean_environment | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # not the one that we run in
    for start in (("-m", "gpuconv"), (script,)):
        found = run(named, "-X", "importtime", *start, *words.split())
        imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines() if line.startswith("import")}
        assert found.returncode == (2 if words == "trian" else 0), found.stdout
        assert "gpuconv.cli.main" in imported and not {"torch", "numpy", "gpuconv.api"} & imported


def test_a_command_has_all_of_gpuconv(clean_environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import gpuconv, torch\n"
        "assert gpuconv.conv2d and gpuconv.nn.Conv2d and gpuconv.fuse and torch.ops.gpuconv.conv_forward\n"
        "class Mine(gpuconv.backends.Backend):\n    name = 'mine'\n    def unavailable(self): return 'it is mine'\n"
    )
    found = run(clean_environment, "-m", "gpuconv", "check", "--backend", "mine:Mine", cwd=tmp_path)
    assert found.stderr == "error: backend 'mine' cannot run here: it is mine; use 'auto' or 'aten' instead\n"


def test_elsewhere_importing_gpuconv_gives_all_of_it_at_once(clean_environment: Environment) -> None:
    code = "import gpuconv, torch; assert vars(gpuconv)['conv2d'] and torch.ops.gpuconv.conv_forward"
    found = run(clean_environment, "-c", code, "-m", "gpuconv", "--help")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(("typed", "expected"), [("gpuconv t", {"train", "tune"}), ("gpuconv doctor --j", {"--json"})])
def test_a_shell_completes_commands_and_options(clean_environment: Environment, typed: str, expected: set[str]) -> None:
    asked = {"_GPUCONV_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert set(run(clean_environment | asked, "-m", "gpuconv").stdout.split()) == expected


# ---- with numpy, torch and triton alone ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: gpuconv, what `pip install gpuconv` would bring, and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "gpuconv").mkdir()
    for file in Path(gpuconv.__file__).parent.iterdir():
        (folder / "gpuconv" / file.name).symlink_to(file)
    for package in (gpuconv.kernels, gpuconv.bench):  # in a checkout they are elsewhere
        link = folder / "gpuconv" / package.__name__.rpartition(".")[2]
        if not link.exists():
            link.symlink_to(package.__path__[0])
    todo, done = ["gpuconv"], set()
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # needed on other systems, or built in
            continue
        needs = map(Requirement, installed.requires or ())
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        for file in installed.files or () if name != "gpuconv" else ():
            top, link = file.parts[0], folder / file.parts[0]
            if top != ".." and top != "__pycache__" and not link.exists():
                link.symlink_to(installed.locate_file(top))
    return folder


def base(environment: Environment, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`gpuconv` with these words in the base install: -S leaves out the packages that are installed here."""
    return run(environment | {"PYTHONPATH": str(folder)}, "-S", "-m", "gpuconv", *words)


INSTALL = r"pip install 'gpuconv\[train\]', or in a checkout pip install -e '\.\[train\]' \(no matplotlib, .*typer\)"


def test_the_base_install_is_one(clean_environment: Environment, base_install: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('typer', 'rich', 'sklearn', 'PIL') if u.find_spec(n)])"
    assert run(clean_environment | {"PYTHONPATH": str(base_install)}, "-S", "-c", code).stdout == "[]\n"


def test_the_base_install_tells_its_version_and_what_is_missing(
    clean_environment: Environment, base_install: Path
) -> None:
    found = base(clean_environment, base_install, "--version")
    assert (found.returncode, found.stdout) == (0, f"{gpuconv.__version__}\n")
    assert re.fullmatch(f"note: the command line needs: {INSTALL}\n", found.stderr)


def test_the_doctor_works_in_the_base_install_and_says_what_is_missing(
    clean_environment: Environment, base_install: Path
) -> None:
    found = base(clean_environment, base_install, "doctor")
    assert (found.returncode, found.stderr) == (0, "")
    assert re.search(f"^missing   {INSTALL}$", found.stdout, re.MULTILINE)
    assert "numpy   usable" in found.stdout
    found = base(clean_environment, base_install, "doctor", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["missing"] == list(packages.TRAIN.values())


@pytest.mark.parametrize("words", ["train", "bench --json", "doctor --frobnicate", "frobnicate", "--frobnicate"])
def test_what_the_base_install_cannot_do_is_one_line(
    clean_environment: Environment, base_install: Path, words: str
) -> None:
    found = base(clean_environment, base_install, *words.split())
    assert (found.returncode, found.stdout) == (1, "")
    assert re.fullmatch(f"error: the command line needs: {INSTALL}\n", found.stderr)


def test_the_base_install_explains_itself(clean_environment: Environment, base_install: Path) -> None:
    for words in ((), ("--help",), ("-h",)):
        found = base(clean_environment, base_install, *words)
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout.startswith("Usage: gpuconv ") and re.search(INSTALL, found.stdout)


@pytest.mark.parametrize("package", ["typer", "sklearn"])
def test_one_missing_package_is_named(clean_environment: Environment, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from gpuconv.__main__ import main; main()"
    found = run(clean_environment, "-c", code, "train")
    assert (found.returncode, found.stdout) == (1, "")
    assert re.fullmatch(rf"error: [^\n]* \(no {packages.TRAIN[package]}\)\n", found.stderr)


# ---- in any encoding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_printed_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding))
    text.print_anything()
    print("3 × 3, 1.5 µs → … é 卷积 \udcff", flush=True)
    print("−1", file=sys.stderr, flush=True)
    printed = sys.stdout.buffer.getvalue().decode(encoding)
    plain = "3 x 3, 1.5 us -> ... \\xe9 \\u5377\\u79ef \\udcff\n"
    assert (
        printed
        == {
            "ascii": plain,
            "latin-1": plain.replace("x 3", "× 3").replace("us", "µs").replace("\\xe9", "é"),
            "cp1252": plain.replace("x 3", "× 3").replace("us", "µs").replace("\\xe9", "é").replace("...", "…"),
            "utf-8": "3 × 3, 1.5 µs → … é 卷积 \\udcff\n",
        }[encoding]
    )
    assert sys.stderr.buffer.getvalue().decode(encoding) == ("−1" if encoding == "utf-8" else "-1") + "\n"


@pytest.mark.parametrize(
    ("words", "printed"),
    [("plan --layer resnet50.conv3_3x3 --gpu h100 --direction forward", "-> triton"), ("train --help", "N -m gpuconv")],
)
def test_commands_print_where_the_locale_is_not_utf_8(clean_environment: Environment, words: str, printed: str) -> None:
    locale = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    found = run(clean_environment | locale, "-m", "gpuconv", *words.split())
    assert (found.returncode, found.stderr) == (0, "") and printed in found.stdout
