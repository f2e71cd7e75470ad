"""The pages of the documentation in parts: their blocks of code, their commands and their links."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for folder in ("docs", "kernels", "bench", ".github") for page in sorted((ROOT / folder).rglob("*.md"))),
]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))  # they show commands too


class Block(NamedTuple):
    """What stands between two lines of ```."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages; in any, if none is named."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            block = Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
            if block.language in languages or not languages:
                found.append(block)
    return found


def block_after(page: Path, words: str) -> str:
    """The first block that follows these words on a page."""
    text = page.read_text(encoding="utf-8")
    begin = text.index(words)
    return next(b.text for b in blocks() if b.page == page and b.line > text.count("\n", 0, begin))


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """What the pages show to type, and where: lines of the blocks `sh` and `console`, one for each part of `a && b`."""
    found = []
    for block in blocks("sh", "console"):
        for line in block.text.splitlines():
            if block.language == "console" and not line.startswith("$ "):
                continue
            typed = re.sub(r"(^|\s+)#.*", "", line.removeprefix("$ "))
            found += [(part.strip(), str(block)) for part in typed.split("&&") if part.strip()]
    return found


def mentioned() -> list[tuple[str, str]]:
    """The commands that prose and forms mention in backticks, and where."""
    return [
        (" ".join(part.split()), str(page.relative_to(ROOT)))
        for page in (*PAGES, *FORMS)
        for span in re.findall(r"`((?:gpuconv|pytest|python3?|bash|pip) [^`]*)`", prose(page))
        for part in span.split("&&")
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead."""
    text = prose(page)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
