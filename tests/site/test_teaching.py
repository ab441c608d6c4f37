"""The teacher's pages: sections they send readers to, and the sheet to print."""

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/teaching.md", *sorted((ROOT / "docs/teaching").glob("*.md"))]
SCRIPTS = {path.stem[:2]: path for path in (ROOT / "notebooks/source").glob("[0-9][0-9]_*.py")}


def headings(notebook: str) -> set[str]:
    return set(re.findall(r"(?m)^# ## (\d+) ·", SCRIPTS[notebook].read_text("utf-8")))


def between(first: str, last: str) -> list[str]:
    return [str(number) for number in range(int(first), int(last) + 1)]


def named_sections(text: str) -> set[tuple[str, str]]:
    """(notebook, section) of all that is named as `04, sections 1 to 3 and 5`."""
    found = set()
    for notebook, words in re.findall(r"\b(\d\d), sections? ([\d, toand]*\d)", text):
        words = re.sub(r"(\d+) to (\d+)", lambda m: " ".join(between(*m.groups())), words)
        found |= {(notebook, number) for number in re.findall(r"\d+", words)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sections_that_a_page_names_exist(page):
    named = named_sections(page.read_text("utf-8"))
    assert [one for one in sorted(named) if one[1] not in headings(one[0])] == []


def home_of(exercise: str) -> tuple[str, str]:
    """(notebook, section) that an exercise stands in."""
    before = SCRIPTS[exercise[:2]].read_text("utf-8").partition(f'check("{exercise}"')[0]
    return exercise[:2], re.findall(r"(?m)^# ## (\d+) ·", before)[-1]


def tables(page: str) -> list[dict[str, str]]:
    """The rows of a page's tables, by the names of their columns."""
    rows, columns = [], []
    for line in (ROOT / "docs" / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif not line.startswith("|--"):
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


PARTS = [row for row in tables("teaching/notes.md") if "part" in row]
PLANS = [row for row in tables("teaching.md") if "what" in row]


def test_notes_have_minutes_for_every_section_once():
    parts = [one for row in PARTS for one in named_sections(row["part"])]
    every = [(notebook, number) for notebook in SCRIPTS for number in headings(notebook)]
    assert sorted(parts) == sorted(every)


@pytest.mark.parametrize("row", [row for row in PLANS if named_sections(row["what"])], ids=str)
def test_minutes_of_a_plan_are_those_of_the_notes(row):
    wanted = named_sections(row["what"])
    inside = [part for part in PARTS if named_sections(part["part"]) <= wanted]
    assert set().union(*(named_sections(part["part"]) for part in inside)) == wanted
    assert sum(int(part["minutes"]) for part in inside) == int(row["minutes"])
    assert "meeting" not in row or int(row["minutes"]) <= 90


@pytest.mark.parametrize("row", [row.get("part") or row["what"] for row in PARTS + PLANS])
def test_exercises_lie_in_the_sections_they_are_listed_with(row):
    exercises = re.findall(r"\b(\d\d\.\d)\b", row)
    assert {home_of(exercise) for exercise in exercises} <= named_sections(row)


def test_the_report_can_be_made_with_the_pictures_it_asks_for(tmp_path):
    """Ten classes of ten, as the rubric once said, left three classes to train on."""
    from sobook.course.studies import study
    from sobook.data import image_sets
    from sobook.training.config import TrainConfig
    from sobook.training.loop import Data

    for number in range(30):
        (tmp_path / f"c{number:02}").mkdir()
        for i in range(10):
            color = (8 * number, 25 * i, 0)
            Image.new("RGB", (8, 8), color).save(tmp_path / f"c{number:02}/{i}.png")
    own = study.load("own_pictures")
    varied = [settings for _, settings in own.plan()]
    assert len({one["seed"] for one in varied}) >= 3
    assert {one["so_weight"] for one in varied} == {0, 100}
    for config in (own.config(varied[0]), TrainConfig.recipe("photos")):
        config = config.replace(root=str(tmp_path))
        sets = image_sets.load_splits("folder", **config.load_options)
        data = Data.check(config, sets, hold_out=True)
        assert (data.train.num_classes, data.test[0].num_classes) == (12, 15)


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
