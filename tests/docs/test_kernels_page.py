"""kernels/README.md lists every kernel file once, and what it and the ladder's page point to exists."""

import re
import shlex
from pathlib import Path

import pytest

from gpuconv.cli import main

ROOT = Path(__file__).parents[2]
if not (ROOT / "kernels").exists():
    pytest.skip("kernels/ does not stand beside tests/", allow_module_level=True)

PAGE = ROOT / "kernels" / "README.md"
PAGES = [PAGE, ROOT / "docs" / "examples" / "ladder" / "README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=["kernels", "ladder"])


def test_every_kernel_file_is_in_a_table_once() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]\((\w+/[\w.]+)\) \| \w", PAGE.read_text(), re.MULTILINE)
    assert all(path.endswith(f"/{name}") for name, path in listed)
    files = [p for p in (ROOT / "kernels").glob("*/*") if p.suffix in (".py", ".cu", ".cuh") and p.stem != "__init__"]
    assert sorted(path for _, path in listed) == sorted(str(file.relative_to(PAGE.parent)) for file in files)


@each_page
def test_what_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([\w-]+))?\)", page.read_text().replace("\n", " "))
    assert len(links) > 5
    for path, anchor in links:
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, anchor


@each_page
def test_commands_of_a_page_exist(page: Path) -> None:
    (commands,) = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for command in commands.strip().split("\n"):
        program, *words = [word for word in shlex.split(command, comments=True) if not word.startswith("TRITON_")]
        if program == "gpuconv":
            assert main.imported(words[0]).make_context(words[0], words[1:]) is not None
        else:
            assert program in ("pytest", "python") and (ROOT / words[0]).exists(), command
