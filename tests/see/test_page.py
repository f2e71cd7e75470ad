"""The tour as a page: whole, in two languages, and played with in a real browser."""

import base64
import html
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import Page, find
from PIL import Image

from gpuconv.errors import UserError
from gpuconv.see import page, rendering, tour
from gpuconv.see.page import Block, Chapter, Picture, Row, Table, TextBlock, Widget
from gpuconv.see.translations import CATALOGUE, LANGUAGES, Translation
from gpuconv.see.translations_tour import TOUR

VALUES = {"backend": "auto", "seconds": "9"}


@pytest.fixture(scope="session")
def folders(chapters: list[Chapter], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tour in each language."""
    made = {language: tmp_path_factory.mktemp(language) for language in LANGUAGES}
    for language, folder in made.items():
        page.write(folder, "tour", VALUES, chapters, Translation(language))
    return made


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield from flat(block.blocks) if isinstance(block, Row) else (block,)


# ---- what is on it --------------------------------------------------------------------------------------------------


def test_it_has_seven_chapters_and_needs_nothing_else(folders: dict[str, Path]) -> None:
    text = (folders["en"] / page.PAGE).read_text()
    assert len(text.encode()) < 8e6
    titles = re.findall(r"<h2[^>]*>([^<]+)", text)
    assert titles == [CATALOGUE[f"{name}.title"][0] for name in
                      ("smoothing", "curve", "layer", "after", "training", "random-search", "deeper")]  # fmt: skip
    assert not re.search(r"https?://|<link[^>]+href=\"(?!data:)|src=\"(?!data:)|@import|url\(", text)


def test_every_picture_says_what_it_shows_and_lies_beside_as_png(folders: dict[str, Path]) -> None:
    text = (folders["en"] / page.PAGE).read_text()
    images = re.findall(r'<img [^>]*alt="([^"]*)"', text)
    assert len(images) == text.count("<img ") == len(list(folders["en"].glob("*.png"))) > 50
    assert all(len(alt) > 15 for alt in images)
    assert text.count("<figcaption>") == text.count("<figure>")
    for file in folders["en"].glob("*.png"):
        Image.open(file).verify()


def test_both_languages_say_everything(chapters: list[Chapter], folders: dict[str, Path]) -> None:
    for key, texts in CATALOGUE.items():
        assert len(texts) == len(LANGUAGES) and all(texts), key
        places = [sorted(re.findall(r"\{\w+\}", text)) for text in texts]
        assert places[0] == places[1] or key.endswith(".alt"), key  # nothing is told in one language alone
    chinese = re.sub("<script>.*</script>", "", (folders["zh"] / page.PAGE).read_text(), flags=re.DOTALL)
    assert '<html lang="zh">' in chinese
    for key in {block.key for chapter in chapters for block in flat(chapter.blocks) if hasattr(block, "key")}:
        assert re.search("[\u4e00-\u9fff]", CATALOGUE[key][1]), key
    english = [html.escape(CATALOGUE[f"{chapter.name}.title"][0]) for chapter in chapters]
    assert not any(title in chinese for title in english)


def test_chinese_has_one_word_for_one_thing_and_introduces_it() -> None:
    chinese = {key: texts[1] for key, texts in CATALOGUE.items()}
    everything = "\n".join(chinese.values())
    for word in ("坡度", "份额", "滤波器也有三层", "死（", "急训", "同样的课", "静止端", "标尺"):
        assert word not in everything, word
    assert [key for key, text in chinese.items() if "特征图" in text] == ["curve.drawing"]  # another name, told once
    assert "<b>激活图</b>（也常叫特征图）" in chinese["curve.drawing"] and everything.count("激活图") > 20
    introduced = chinese["smoothing.intro"]
    assert "<b>低频</b>" in introduced and "<b>高频</b>" in introduced
    first = next(key for key, text in chinese.items() if "低频" in text or "高频" in text)
    assert first == "smoothing.intro"
    assert "<i>梯度</i>" in chinese["random-search.intro"] and chinese["after.likely"] == "概率"
    assert "三个通道" in chinese["layer.intro"]


def test_every_text_of_the_tour_is_used(chapters: list[Chapter]) -> None:
    used = {"tour", "tour.lead", "say.training", *(f"{chapter.name}.title" for chapter in chapters)}
    for block in (block for chapter in chapters for block in flat(chapter.blocks)):
        if isinstance(block, Picture):
            used |= {block.key, f"{block.key}.alt", *block.lines}
        elif isinstance(block, Table):
            used |= {block.key, *block.head}
        elif isinstance(block, Widget):
            used |= {block.key, *block.words}
        elif isinstance(block, TextBlock):
            used.add(block.key)
    assert TOUR.keys() <= used and used <= CATALOGUE.keys()


def test_labels_of_spectra_and_the_detectors_numbers_are_on_the_page(folders: dict[str, Path]) -> None:
    text = (folders["en"] / page.PAGE).read_text()
    for words in (
        "low-pass",
        "high-pass",
        "band-pass",
        "<b>6600</b>",
        "<b>3600</b>",
        "<b>9000</b>",
        "response <b>0</b>",
    ):
        assert words in text
    assert re.search(r"240 and 240\s+counted", text)  # 120 evaluations of 2 seeds, both


def test_an_unknown_language_and_a_folder_that_cannot_be_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lang must be one of en, zh, but got 'fr'"):
        Translation("fr")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        page.write(tmp_path / "file", "tour", VALUES, [], Translation("en"))


def test_values_cannot_become_markup() -> None:
    made = page.render("your-model", {"name": "<b id=name>", "layer": "<b id=layer>", **VALUES}, [], Translation("en"))
    assert "<b id=" not in made and made.count("&lt;b id=") == 3  # title, headline and lead


def test_names_cannot_become_folders_or_colours(tmp_path: Path) -> None:
    name = "../a\x1b[31m/b"
    made = Picture("your-layer.image", rendering.png(np.zeros((2, 2, 3), np.uint8)),
                   {"height": 2, "width": 2, "channels": name}, name=name)  # fmt: skip
    chapter = Chapter("your-layer", [made, Table("your-layer.shapes", ["shapes.what"], [[name]], {"products": name})])
    written = page.write(
        tmp_path / "page", "your-model", {"name": name, "layer": name, **VALUES}, [chapter], Translation("en")
    )
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["index.html", "your-layer-1-.._a__31m_b.png"]
    text = written.read_text()
    assert "\x1b" not in text and text.count(r"../a\x1b[31m/b") == 6


def test_a_page_does_not_lie_among_the_files_of_a_run(tmp_path: Path) -> None:
    assert page.folder_for(tmp_path) == tmp_path
    for file in ("config.json", "metrics.jsonl"):
        (tmp_path / file).touch()
    assert page.folder_for(tmp_path) == tmp_path / "see"


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_the_scale_is_symmetric_and_told_apart_in_grey_by_sign_of_hue() -> None:
    ramp = rendering.colours(torch.linspace(-2, 2, 101)[None], 2)[0].astype(float)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[:51]) > 0).all() and (np.diff(lightness[50:]) < 0).all()
    assert ramp[50].min() > 240  # zero is white
    assert (ramp[:45, 2] > ramp[:45, 0]).all() and (ramp[56:, 0] > ramp[56:, 2]).all()  # blue below, orange above


def test_a_mosaic_keeps_its_tiles_and_lets_the_page_through_between_them() -> None:
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    made = rendering.mosaic(tiles, 2, 2, 1)
    assert made.shape == (9, 13, 4)
    assert made[0, 0].tolist() == [10, 10, 10, 255] and made[8, 5].tolist() == [30, 30, 30, 255]
    assert made[4].max() == 0 and made[:, 6].max() == 0
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(rendering.png(made)))), made)


# ---- in a browser ---------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(find() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("language", LANGUAGES)
def test_it_reads_well(browser: Page, folders: dict[str, Path], language: str, width: int, dark: bool) -> None:
    browser.errors.clear()
    browser.requests.clear()
    browser.show(folders[language] / page.PAGE, width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    narrow = "[...document.images].filter(i => i.getBoundingClientRect().width < 60 || !i.complete || !i.naturalWidth)"
    assert browser.run(f"{narrow}.map(i => i.alt)") == []
    assert browser.run(CONTRASTS) == []
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in browser.requests if url.startswith("file:")]) == 1


# Texts whose contrast with what is behind them is below 4.5 to 1, as WCAG counts.
CONTRASTS = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const texts = "p, h1, h2, h3, li, a, td, th, figcaption, caption, code, button, .scale span, output";
  return [...document.querySelectorAll(texts)]
    .filter((e) => e.textContent.trim() && e.offsetParent).filter((e) => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    }).map((e) => e.tagName + " " + e.textContent.slice(0, 40));
})()"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_clicking_an_output_shows_its_sum(
    browser: Page, folders: dict[str, Path], chapters: list[Chapter], width: int
) -> None:
    browser.show(folders["en"] / page.PAGE, width)
    widget = next(b for c in chapters for b in c.blocks if isinstance(b, Widget) and b.kind == "layer")
    filters, rows, columns = widget.data["output_shape"]
    outputs = np.frombuffer(base64.b64decode(widget.data["output"]), "<f4").reshape(filters, rows, columns)
    browser.run("document.querySelector('.map').scrollIntoView({behavior: 'instant', block: 'center'})")
    for k, p, q in ((0, 0, 0), (5, 17, 3), (11, 31, 31)):
        browser.run(f"document.querySelectorAll('.channels button')[{k}].click()")
        box = browser.run(
            "(r => [r.x, r.y, r.width, r.height])(document.querySelector('.map').getBoundingClientRect())"
        )
        browser.click(box[0] + (q + 0.5) / columns * box[2], box[1] + (p + 0.5) / rows * box[3])
        shown = browser.run("({...document.querySelector('[data-kind=layer]').dataset})")
        assert [int(shown[name]) for name in "kpq"] == [k, p, q]
        assert float(shown["output"]) == outputs[k, p, q]
        assert float(shown["sum"]) == pytest.approx(float(outputs[k, p, q]), rel=2**-20, abs=1e-5)
        text = browser.run("document.querySelector('.sum').textContent")
        assert f"Output {k} at row {p}, column {q}: 147 products" in text


@needs_chromium
def test_outputs_are_reached_by_keys_too_and_numbers_can_be_opened(browser: Page, folders: dict[str, Path]) -> None:
    browser.show(folders["en"] / page.PAGE, 1280)
    browser.run("document.querySelector('.map').focus()")
    before = browser.run("({...document.querySelector('[data-kind=layer]').dataset})")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        browser.press(key)
    after = browser.run("({...document.querySelector('[data-kind=layer]').dataset})")
    assert (int(after["p"]), int(after["q"])) == (int(before["p"]) + 1, int(before["q"]) + 2)
    browser.run("document.querySelector('details').open = true")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert browser.run("document.querySelectorAll('details td').length") == 147
    assert browser.errors == []


@needs_chromium
def test_the_film_goes_from_epoch_to_epoch(browser: Page, folders: dict[str, Path]) -> None:
    browser.show(folders["zh"] / page.PAGE, 390)
    film = "document.querySelector('[data-kind=film]')"
    assert browser.run(f"{film}.dataset.epoch") == "0"
    first = browser.run(f"{film}.querySelector('.film canvas').toDataURL()")
    browser.run(f"(s => {{ s.value = 4; s.dispatchEvent(new Event('input')); }})({film}.querySelector('input'))")
    assert browser.run(f"{film}.dataset.epoch") == "4"
    assert browser.run(f"{film}.querySelector('.film canvas').toDataURL()") != first
    assert "第 4 轮" in browser.run(f"{film}.querySelector('.readout').textContent")
    heights = browser.run(f"[...{film}.querySelectorAll('.bars i')].map(i => parseFloat(i.style.height))")
    assert len(heights) == 10 and sum(heights) == pytest.approx(100, abs=0.5)
    browser.run(f"{film}.querySelector('button').click()")
    browser.run("new Promise((done) => setTimeout(done, 600))")
    assert browser.run(f"{film}.dataset.epoch") in ("1", "2")  # from the start again
    assert browser.errors == []


@pytest.mark.full
def test_the_whole_tour_is_small_and_quick(tmp_path: Path) -> None:
    began = time.process_time()
    written = tour.write_page(tmp_path)
    assert time.process_time() - began < 2 * 180
    assert written.stat().st_size < 8e6
    film = json.loads(re.search(r'data-kind="film".*?json">(.*?)</script>', written.read_text(), re.DOTALL)[1])
    assert film["accuracy"][-1] > 0.85 and max(film["outputs"][0]) < 0.2
