"""Whatever the pages show can be run, and wherever they lead is something."""

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, FORMS, PAGES, README, ROOT, Block, anchors, block_after, blocks, commands, links, mentioned

import gpuconv
from gpuconv import backends
from gpuconv.backends.triton import launch as triton_launch
from gpuconv.cli import main

EXAMPLES = DOCS / "examples"
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TOP = {  # of the repository, dot files aside
    "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff",
    "kernels", "gpuconv", "tests", "bench", "docs",
}  # fmt: skip

# ---- code ------------------------------------------------------------------------------------------------------------


def is_excerpt(block: Block) -> bool:
    """Whether a block is a part of a file in docs/examples."""
    return any(block.text in file.read_text(encoding="utf-8") for file in EXAMPLES.rglob("*.py"))


def is_run_elsewhere(block: Block) -> bool:
    """Whether a block is a file, `# name.py`, that test_emulator_page.py runs and whose output it compares."""
    return block.page == DOCS / "emulator.md" and re.match(r"# \w+\.py\n", block.text) is not None


PYTHON = [block for block in blocks("python") if not is_excerpt(block) and not is_run_elsewhere(block)]


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in blocks()} == {"python", "sh", "console", "text"}
    compared = {DOCS / "emulator.md", EXAMPLES / "ladder" / "README.md"}  # by test_emulator_page.py, test_ladder.py
    assert {block.page for block in blocks("console")} == compared


def test_the_pages_have_their_code() -> None:
    pages = {block.page.relative_to(ROOT).as_posix() for block in PYTHON}
    assert {
        "README.md",
        "docs/models.md",
        "docs/fused.md",
        "docs/see.md",
        "docs/kernels.md",
        "docs/emulator.md",
    } < pages
    assert len(PYTHON) >= 11
    excerpts = [block for block in blocks("python") if is_excerpt(block)]
    assert {block.page.name for block in excerpts} == {"your-own-kernel.md"} and len(excerpts) == 3


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torchvision" in block.text:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    if "triton" in block.text or "my_conv" in block.text:
        pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    if "emulator" in block.text and gpuconv.emulator.why_not() is not None:
        pytest.skip(f"the emulator does not run here: {gpuconv.emulator.why_not()}")
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))  # what a page registers ends with it
    monkeypatch.syspath_prepend(EXAMPLES)
    file = tmp_path / "page.py"  # Triton reads the text of its kernels
    file.write_text(block.text, encoding="utf-8")
    runpy.run_path(str(file))


def test_the_readme_begins_with_a_convolution() -> None:
    first = blocks()[[block.page for block in blocks()].index(README)]
    assert first.language == "python" and "gpuconv.conv2d(" in first.text and first.line < 15
    assert README.read_text(encoding="utf-8").count("\n") <= 145
    assert [command for command, where in commands() if where.startswith("README.md")][:2] == [
        "pip install -e '.[train]'",
        "gpuconv train",
    ]


# ---- commands --------------------------------------------------------------------------------------------------------


def check(command: str) -> None:
    """Fail unless a command is of a kind that is known here, and what it names exists."""
    words = shlex.split(command)
    while words and re.match(r"[A-Z_0-9]+=", words[0]):
        words.pop(0)
    program, *rest = words
    if program == "torchrun":
        module = rest.index("-m")
        program, rest = "python", rest[module:]
    if rest[:2] == ["-m", "gpuconv"]:
        program, rest = "gpuconv", rest[2:]
    if program == "gpuconv":
        check_options(rest)
    elif program in ("python", "python3") and rest[:1] == ["-m"]:
        check_module(rest[1], rest[2:])
    elif program == "python":
        assert rest == ["my_program.py"] or is_a_file(rest[0]), command
    elif program == "pip":
        extras = re.findall(r"\.\[([^]]*)\]", command)
        assert rest[0] == "install" and (extras or rest[1:] in (["torchvision"], ["timm"], ["pre-commit"])), command
        for extra in ",".join(extras).split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE), f"pyproject.toml has no extra {extra}"
    elif program == "pytest":
        for word in rest:
            assert word in ("-k", "cuda-cpu", "--full") or (ROOT / word).exists(), command
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), command
    else:
        assert command == "source .venv/bin/activate", f"nothing here tells whether {command!r} works"


def check_options(words: list[str]) -> None:
    if words[0].startswith("--"):
        options = {option for one in main_options() for option in one.opts}
        assert words[0] in options, words
        return
    name, *rest = words
    assert main.imported(name).make_context(name, rest) is not None


def main_options() -> list:
    import typer

    return typer.main.get_command(main.app).params


def check_module(module: str, words: list[str]) -> None:
    if module in ("venv", "build"):
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None and module.startswith("gpuconv."), module
    text = Path(spec.origin).read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in text or re.search(rf"\b{option[2:].replace('-', '_')}\b", text), (module, option)


def is_a_file(name: str) -> bool:
    return (ROOT / name).is_file() or any(block.text.startswith(f"# {name}\n") for block in blocks("python"))


@pytest.mark.parametrize(("command", "where"), commands(), ids=str)
def test_a_command_that_is_shown_can_be_typed(command: str, where: str) -> None:
    check(command)


def test_commands_that_are_mentioned_exist_and_have_these_options() -> None:
    """In running text a command may lack the arguments that it needs."""
    assert len(mentioned()) > 50
    for command, where in mentioned():
        program, *words = shlex.split(command)
        if program == "gpuconv" and words[0] in main.COMMANDS:
            known = {option for one in main.imported(words[0]).params for option in one.opts} | {"--help", "--json"}
            assert {word for word in words if word.startswith("--")} <= known, f"{where}: {command}"
        else:
            check(command)


def test_every_command_is_documented() -> None:
    table = (DOCS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `gpuconv (\w+)`", table, re.MULTILINE)) == set(main.COMMANDS)
    shown = {words[1] for command, _ in commands() if (words := command.split())[0] == "gpuconv"}
    assert shown == set(main.COMMANDS)


def test_environment_variables_that_are_used_are_those_that_are_documented() -> None:
    """A name that is set, read or mentioned somewhere and not elsewhere does nothing."""
    table = (DOCS / "README.md").read_text(encoding="utf-8").split("## Environment variables")[1].split("## ")[0]
    documented = set(re.findall(r"^\| `(GPUCONV_\w+)` \|", table, re.MULTILINE))
    files = [
        *PAGES,
        *FORMS,
        *(p for d in ("gpuconv", "bench", "kernels", "tests", "docs") for p in (ROOT / d).rglob("*")),
    ]
    found: dict[str, set[str]] = {}
    for file in files:
        if file.suffix in (".py", ".sh", ".md", ".yml", ".cu", ".cuh") and file != DOCS / "README.md":
            for name in re.findall(r"\bGPUCONV_[A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8")):
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    read = {name for name, where in found.items() if any(f.startswith(("gpuconv/", "bench/")) for f in where)}
    assert found.keys() == read == documented, found


def test_training_prints_what_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, whose digits are learnt, is not installed")
    words = [sys.executable, "-m", "gpuconv", "train", "--device", "cpu", "--epochs", "2", "--out", tmp_path / "run"]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    def form(text: str) -> list[str]:
        text = re.sub(r"run +\S+", "run FOLDER", text)
        return [re.sub(r"\s+", " ", re.sub(r"[\d,.]+", "0", line)) for line in text.strip().splitlines()]

    first, epoch, _, last, *rest = form(block_after(DOCS / "train.md", "What the first command prints"))
    printed = form(run.stdout)
    assert printed == [first, epoch, last, *rest]


# ---- where pages lead ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        assert not link.startswith(("http:", "/")), f"{link}: a page leads to files beside it, or to https"
        if link.startswith("https:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{page.name} leads to {link}"
        if anchor:
            assert target.suffix == ".md" and anchor in anchors(target), f"{target.name} has no heading #{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    assert {page for page in PAGES if page.parent == DOCS and page.name != "README.md"} <= index
    assert DOCS / "README.md" in {(ROOT / link).resolve() for link in links(README)}


def test_files_that_contributing_names_exist() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| folder |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", table, re.MULTILINE)
    tracked = {f.parent.relative_to(ROOT).as_posix() for f in (ROOT / "gpuconv").glob("*/__init__.py")}
    assert {folder for folder, _ in rows} >= tracked | TOP - {name for name in TOP if "." in name or name == "LICENSE"}
    for folder, text in rows:
        for name in re.findall(r"`([\w/]+(?:/|\.(?:py|h)))`", text):
            assert list((ROOT / folder).rglob(name.rstrip("/"))), f"there is no {name} in {folder}/"


# ---- what design.md says of the tree ---------------------------------------------------------------------------------


def test_design_shows_the_layers_that_are_checked() -> None:
    contract = re.search(r'^type = "layers"\n.*?^layers = \[(.*?)^\]', PROJECT, re.DOTALL | re.MULTILINE)[1]
    layers = re.findall(r'"([^"]*)"', contract)
    shown = block_after(DOCS / "design.md", "## The layers").splitlines()
    assert [re.split(r"\s{2,}", line)[0] for line in shown] == layers


_TRACE = """
import sys, torch, gpuconv
x, w = torch.randn(1, 8, 6, 6), torch.randn(8, 8, 3, 3)
gpuconv.conv2d(x, w, backend="triton")
files = []
look = lambda frame, event, _: files.append(frame.f_code.co_filename) if event == "call" else None
sys.setprofile(look)
gpuconv.conv2d(x, w, backend="triton")
sys.setprofile(None)
print(*dict.fromkeys(files), sep="\\n")
"""


def test_a_call_flows_as_design_says() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    if triton_launch.why_no_interpreter():
        pytest.skip(triton_launch.why_no_interpreter())
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", _TRACE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    section = (DOCS / "design.md").read_text(encoding="utf-8").split("## How one call flows")[1].split("\n## ")[0]
    shown = re.findall(r"^\d\. \[([^\]]+)\]", section, re.MULTILINE)
    aside = re.findall(r"`(gpuconv/\w+(?:/\w+)*\.py)`", section.partition("On the way")[2])
    assert 4 <= len(shown) <= 6 and shown[-1] == "kernels/triton/"
    package, kernels = Path(gpuconv.__file__).parent, Path(gpuconv.kernels.__file__).parent
    walk: list[str] = []
    for file in map(Path, run.stdout.splitlines()):
        if file.is_relative_to(kernels):
            walk.append("kernels/triton/")
        elif file.is_relative_to(package):
            walk.append(f"gpuconv/{file.relative_to(package).as_posix()}")
    assert [file for file in dict.fromkeys(walk) if file not in aside] == shown


# ---- the repository --------------------------------------------------------------------------------------------------


def test_nothing_else_stands_at_the_top_of_the_repository() -> None:
    run = (
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        if (ROOT / ".git").exists()
        else None
    )
    if run is None or run.returncode:
        pytest.skip("this is no checkout of git")
    top = {name.split("/")[0] for name in run.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP
    assert {".ci", ".github"} < top


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == gpuconv.__version__
