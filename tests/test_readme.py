"""What the README shows can be run."""

import re
import runpy
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(
    r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE
)


def test_readme_has_its_snippets() -> None:
    assert {"Use it in your model", "Use it in your code", "Fused convolutions"} <= {title for title, _ in SNIPPETS}


def test_the_environment_variables_that_are_used_are_those_that_the_readme_names() -> None:
    """A name that is set, read or told of somewhere and not elsewhere does nothing."""
    root = README.parent
    files = [*root.glob("*.md"), *(p for d in ("gpuconv", "bench", "kernels", "tests") for p in (root / d).rglob("*"))]
    found: dict[str, set[str]] = {}
    for file in files:
        if file.suffix in (".py", ".sh", ".md", ".cu", ".cuh") and file != README:
            for name in re.findall(r"\bGPUCONV_[A-Z_]*[A-Z]\b", file.read_text()):
                found.setdefault(name, set()).add(str(file.relative_to(root)))
    documented = set(re.findall(r"\bGPUCONV_[A-Z_]*[A-Z]\b", README.read_text()))
    read = {name for name, where in found.items() if any(f.startswith(("gpuconv/", "bench/")) for f in where)}
    assert found.keys() == read == documented, found


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_python_in_the_readme_runs(title: str, code: str, tmp_path: Path) -> None:
    if "torchvision" in code:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    if "triton" in code:
        pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    file = tmp_path / "readme.py"  # Triton reads the text of its kernels
    file.write_text(code)
    runpy.run_path(str(file))
