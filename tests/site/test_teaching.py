"""The teacher's pages: sections they send readers to, and the sheet to print."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/teaching.md", *sorted((ROOT / "docs/teaching").glob("*.md"))]
SCRIPTS = {path.stem[:2]: path for path in (ROOT / "notebooks/source").glob("[0-9][0-9]_*.py")}


def headings(notebook: str) -> set[str]:
    return set(re.findall(r"(?m)^# ## (\d+) ·", SCRIPTS[notebook].read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sections_that_a_page_names_exist(page):
    """Sections are named as `04, sections 1 to 3 and 5`."""
    named = re.findall(r"\b(\d\d), sections? ([\d, toand]*\d)", page.read_text("utf-8"))
    missing = []
    for notebook, words in named:
        if notebook not in SCRIPTS:
            continue
        numbers = re.sub(r"(\d+) to (\d+)", lambda m: " ".join(between(*m.groups())), words)
        missing += [
            (notebook, n) for n in re.findall(r"\d+", numbers) if n not in headings(notebook)
        ]
    assert missing == []


def between(first: str, last: str) -> list[str]:
    return [str(number) for number in range(int(first), int(last) + 1)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_exercises_that_a_page_names_exist(page):
    from sobook.course import exercises

    named = set(re.findall(r"\b(\d\d\.\d)\b", page.read_text("utf-8")))
    assert named <= set(exercises.known())


def test_the_prediction_sheet_is_one_printed_page(browser):
    page = browser.new_page()
    page.goto((ROOT / "docs/_static/prediction_sheet.html").as_uri())
    printed = page.pdf(prefer_css_page_size=True)
    page.close()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1


def test_the_prediction_sheet_asks_of_every_notebook():
    sheet = (ROOT / "docs/_static/prediction_sheet.html").read_text("utf-8")
    books = re.findall(r"<tr><td>(\d\d)</td>", sheet)
    assert books == [f"{number:02}" for number in range(11)]


def test_letters_on_the_prediction_sheet_are_those_of_the_notebooks():
    sheet = (ROOT / "docs/_static/prediction_sheet.html").read_text("utf-8")
    book, missing = "", []
    for number, letter in re.findall(r"<tr><td>(\d\d)?</td><td>(\w?)</td>", sheet):
        book = number or book
        asked = rf'predict\(\s*"{book}\.{letter}"'
        if letter and not re.search(asked, SCRIPTS[book].read_text("utf-8")):
            missing.append(f"{book}.{letter}")
    assert missing == []
