"""A page: chapters of blocks become one HTML file that needs nothing else, and PNG files of its pictures beside it.

Blocks hold numbers, pictures, and the keys of their texts in the catalogue (`translations.py`).
"""

import base64
import dataclasses
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise, write_atomically
from gpuconv.see.rendering import DIVERGING, LINES, Pixels, png
from gpuconv.see.translations import Translation
from gpuconv.text import printable

PAGE = "index.html"
Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TextBlock:
    """The text `key` with `values` filled in. kind: 'p' for paragraphs, 'note' for a footnote, 'h3' for a heading."""

    key: str
    values: Values = dataclasses.field(default_factory=dict)
    kind: str = "p"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with its caption, text `key`, and its description for those who cannot see it, text `key`.alt."""

    key: str
    png: bytes
    values: Values = dataclasses.field(default_factory=dict)
    limit: float | None = None  # the end of its diverging scale, shown beneath
    lines: Sequence[str] = ()  # of a chart: the keys of its legend
    dots: Sequence[int] = ()  # the lines that are drawn as dots
    name: str = ""  # of the file; by default the key
    small: bool = False  # shown with hard edges, no larger than it is

    @classmethod
    def of(cls, key: str, pixels: Pixels, **rest: Any) -> "Picture":
        """A picture from pixels [H, W, 3 or 4]."""
        return cls(key, png(pixels), **({"small": True} | rest))


@dataclasses.dataclass(frozen=True)
class Row:
    """Blocks side by side where there is room."""

    blocks: Sequence["Block"]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its caption, text `key`, the keys of its head, and rows of cells."""

    key: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    values: Values = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Widget:
    """An interactive part, which page.js draws from `data`, passed as JSON."""

    kind: str  # 'layer' or 'film'
    key: str
    data: Values
    words: Sequence[str]  # the keys of the texts that page.js needs
    values: Values = dataclasses.field(default_factory=dict)


Block = TextBlock | Picture | Row | Table | Widget


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A heading, text `name`.title, and the blocks below it."""

    name: str
    blocks: Sequence[Block]


def encoded(values: Any) -> str:
    """The float32 numbers of a tensor, little-endian, in base64: exact, and a third of their decimals."""
    return base64.b64encode(values.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()


def check_writable(folder: Path) -> None:
    """Raise UserError where no page could be written into `folder`, before anything takes time."""
    try:
        writable_or_raise(folder, folder=True)
    except OSError as error:
        raise UserError(str(error)) from None


def folder_for(out: Path) -> Path:
    """The folder for a page: `out` itself, or its folder `see` where `out` is the folder of a run."""
    return out / "see" if (out / "config.json").is_file() and (out / "metrics.jsonl").is_file() else out


def write(folder: Path, title: str, values: Values, chapters: Sequence[Chapter], text: Translation) -> Path:
    """Write the page and its pictures into `folder`, which is made if need be; returns the page's path.

    title: the key of the headline; text `title`.lead is below it. Raises UserError where it cannot write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chapter in chapters:
            for i, picture in enumerate(_pictures(chapter.blocks)):
                name = re.sub(r"[^\w.+-]", "_", f"{chapter.name}-{i + 1}-{picture.name or picture.key}")
                write_atomically(folder / f"{name}.png", picture.png)
        write_atomically(folder / PAGE, render(title, values, chapters, text).encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return folder / PAGE


def _pictures(blocks: Sequence[Block]) -> list[Picture]:
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Row):
            found += _pictures(block.blocks)
    return found


def render(title: str, values: Values, chapters: Sequence[Chapter], text: Translation) -> str:
    """The page as HTML."""
    script, style = (_file(name) for name in ("page.js", "page.css"))
    links = "".join(
        f'<li><a href="#{chapter.name}">{text.of(f"{chapter.name}.title", {})}</a></li>' for chapter in chapters
    )
    body = "".join(
        f'<section id="{chapter.name}" aria-labelledby="{chapter.name}-title">'
        f'<h2 id="{chapter.name}-title">{text.of(f"{chapter.name}.title", {})}</h2>'
        f"{''.join(_block(block, text) for block in chapter.blocks)}</section>\n"
        for chapter in chapters
    )
    variables = "".join(f"--line{i}:{colour};" for i, (colour, _) in enumerate(LINES))
    variables += f"--diverging:linear-gradient(90deg,{','.join(DIVERGING)});"
    settings = json.dumps({"diverging": DIVERGING})
    return f"""<!DOCTYPE html>
<html lang="{text.language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text.of(title, values)}</title>
<style>:root{{{variables}}}
{style}</style>
</head>
<body>
<a class="skip" href="#main">{text.of("page.skip", {})}</a>
<header><h1>{text.of(title, values)}</h1>{_paragraphs(text.of(f"{title}.lead", values))}</header>
<nav aria-label="{text.of("page.chapters", {})}"><ol>{links}</ol></nav>
<main id="main">
{body}</main>
<footer>{_paragraphs(text.of("page.footer", {}))}</footer>
<script type="application/json" id="settings">{settings}</script>
<script>
{script}</script>
</body>
</html>
"""


def _file(name: str) -> str:
    return (resources.files("gpuconv.see") / name).read_text(encoding="utf-8")


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{paragraph.strip()}</p>" for paragraph in text.split("\n\n"))


def _block(block: Block, text: Translation) -> str:
    if isinstance(block, TextBlock):
        words = text.of(block.key, block.values)
        if block.kind == "h3":
            return f"<h3>{words}</h3>"
        return f'<aside class="note">{_paragraphs(words)}</aside>' if block.kind == "note" else _paragraphs(words)
    if isinstance(block, Row):
        parts = "".join(_block(part, text) for part in block.blocks)
        return f'<div class="row" style="--across:{len(block.blocks)}">{parts}</div>'
    if isinstance(block, Table):
        return _table(block, text)
    return _picture(block, text) if isinstance(block, Picture) else _widget(block, text)


def _picture(picture: Picture, text: Translation) -> str:
    source = base64.b64encode(picture.png).decode()
    alt = html.escape(text.of(f"{picture.key}.alt", picture.values, plain=True), quote=True)
    width, height = (int.from_bytes(picture.png[at : at + 4], "big") for at in (16, 20))  # a PNG says so there
    kind = "pixels" if picture.small else "smooth"
    image = f'<img class="{kind}" src="data:image/png;base64,{source}" alt="{alt}" width="{width}" height="{height}">'
    lines = "".join(
        f'<li class="{"dots" if i in picture.dots else f"line{i}"}">{text.of(key, {})}</li>'
        for i, key in enumerate(picture.lines)
    )
    legend = f'<ul class="legend">{lines}</ul>' if lines else ""
    caption = text.of(picture.key, picture.values)
    return f"<figure>{image}{legend}{_scale(picture.limit)}<figcaption>{caption}</figcaption></figure>"


def _scale(limit: float | None) -> str:
    if limit is None:
        return ""
    return f'<div class="scale"><span>−{limit:.3g}</span><i></i><span>+{limit:.3g}</span></div>'


def _table(table: Table, text: Translation) -> str:
    head = "".join(f'<th scope="col">{text.of(key, {})}</th>' for key in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(printable(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    caption = text.of(table.key, table.values)
    even = ' class="even"' if len(table.head) > 5 else ""
    return (
        f'<div class="table" tabindex="0"><table{even}><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _widget(widget: Widget, text: Translation) -> str:
    words = {key.rpartition(".")[2]: text.of(key, {}) for key in widget.words}
    data = json.dumps({**widget.data, "words": words}, ensure_ascii=False, separators=(",", ":"))
    data = data.replace("</", "<\\/")
    intro = text.of(widget.key, widget.values)
    return (
        f'<div class="widget" data-kind="{widget.kind}"><p class="how">{intro}</p>'
        f"<noscript><p>{text.of('page.noscript', {})}</p></noscript>"
        f'<script type="application/json">{data}</script></div>'
    )
