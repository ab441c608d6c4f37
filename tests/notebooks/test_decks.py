"""Decks: what a slide keeps, and that a deck needs no network and prints a page per slide."""

import base64
import importlib.util
import re
import sys
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("decks", ROOT / "notebooks/decks.py")
decks = sys.modules["decks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decks)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
TEXT = """## 1 · A formula

This sentence is for the speaker.

$$s = x^\\top p$$

**Predict.** How large is it?

<details><summary>Hint</summary>

**Not** on the slide.

</details>

- a point"""


def picture():
    file = BytesIO()
    Image.new("RGB", (1600, 900), "orange").save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def notebook():
    new = nbformat.v4
    figure = new.new_output(
        "display_data", {"image/png": picture()}, metadata={"image/png": {"alt": "An orange."}}
    )
    folded = "<details><summary>Open</summary><p>the answer</p></details>"
    cells = [
        new.new_markdown_cell("# 00 · A title\n\nIntroduction."),
        new.new_markdown_cell(TEXT, metadata={"tags": ["slide"]}),
        new.new_code_cell("secret = 1", outputs=[figure], metadata={"tags": ["slide"]}),
        new.new_code_cell("not_on_a_slide = 1", outputs=[new.new_output("stream", text="no")]),
        new.new_markdown_cell("## 2 · Long\n\n" + "- a point\n" * 24, metadata={"tags": ["slide"]}),
        new.new_code_cell(
            "secret = 2",
            outputs=[new.new_output("display_data", {"text/html": folded})],
            metadata={"tags": ["slide"]},
        ),
    ]
    return new.new_notebook(cells=cells)


def test_a_slide_keeps_what_a_room_can_take_in():
    assert decks.for_the_room(TEXT).count("\n\n") == 3  # title, formula, question, point
    text = "## Map\n\n- a\n\n## Summary\n\n- b\n\n## Questions\n\n1. c\n\n**Still open.** Why?\n\n"
    assert decks.for_the_room(text + "## Further reading\n\n- d") == (
        "## Map\n\n- a\n\n**Still open.** Why?"
    )


def test_the_answer_is_on_the_slide_after_the_question(notebook):
    sources = [[cell.source for cell in cells] for cells in decks.slides(notebook)]
    assert sources[:2] == [[TEXT], ["## 1 · A formula", "secret = 1"]]


def test_code_stays_out_pictures_are_described_and_formulas_are_drawn(notebook):
    page = decks.deck(notebook)
    assert "secret" not in page and "not_on_a_slide" not in page
    assert 'alt="An orange."' in page and "<math" in page and "$$" not in page


def opened(browser, notebook, folder):
    """The page of a deck, which asked for nothing outside it and whose slides do not overflow."""
    file, asked = folder / "deck.html", []
    file.write_text(decks.deck(notebook), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("load")
    over = "Math.max(...slides.map((slide) => slide.scrollHeight - slide.clientHeight))"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate(over) <= 0
    return page


def test_a_deck_turns_pages_and_prints_one_per_slide(browser, notebook, tmp_path):
    page = opened(browser, notebook, tmp_path)
    for key, expected in (("ArrowRight", 2), (" ", 3), ("PageDown", 4), ("ArrowLeft", 3)):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert page.url.endswith(f"#s{expected}")
    printed = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 5
    page.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_deck_of_a_notebook(browser, path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    count = len(decks.slides(notebook))
    if not count:
        pytest.skip("no cell is tagged slide")
    assert 8 <= count <= 40
    opened(browser, notebook, tmp_path).close()
