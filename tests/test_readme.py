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


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_python_in_the_readme_runs(title: str, code: str, tmp_path: Path) -> None:
    if "torchvision" in code:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    if "triton" in code:
        pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    file = tmp_path / "readme.py"  # Triton reads the text of its kernels
    file.write_text(code)
    runpy.run_path(str(file))
