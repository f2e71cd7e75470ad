"""Names in backticks, in comments and docstrings, exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("gpuconv", "kernels", "bench", "tests")
ELSEWHERE = {"causal_conv1d_fn"}  # names of other packages that only prose mentions


def test_every_name_in_backticks_exists() -> None:
    files = [f for folder in FOLDERS for f in ROOT.glob(f"{folder}/**/*.*") if f.suffix in (".py", ".cu", ".cuh", ".h")]
    text = {file: file.read_text(encoding="utf-8") for file in files}
    assert len(files) > 150
    known = {word for file in files for word in re.findall(r"\w+", re.sub(r"`[^`\n]*`", "", text[file]))}
    known |= {file.stem for file in files} | ELSEWHERE
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", text[file])
        if any(part and part not in known for part in name.split("."))
    ]
    assert not missing, "\n".join(missing)
