"""The teacher's pages: sections they send readers to, and the sheet to print."""

import itertools
import re
from pathlib import Path

import pytest
from PIL import Image

from sobook.course import exercises
from sobook.course.studies import study
from sobook.data import image_sets
from sobook.training.config import TrainConfig

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
def test_sections_and_exercises_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    assert [pair for pair in named_sections(text) if pair[1] not in headings(pair[0])] == []
    assert set(re.findall(r"\b(\d\d\.\d)\b", text)) <= set(exercises.known())


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
    listed = re.findall(r"\b(\d\d\.\d)\b", row)
    assert {home_of(exercise) for exercise in listed} <= named_sections(row)


def test_the_report_can_be_made_with_the_pictures_it_asks_for(tmp_path):
    """Thirty classes of ten pictures leave enough to train on, to select by, and to test."""
    for number, i in itertools.product(range(30), range(10)):
        (tmp_path / f"c{number:02}").mkdir(exist_ok=True)
        picture = Image.new("RGB", (8, 8), (8 * number, 25 * i, 0))
        picture.save(tmp_path / f"c{number:02}/{i}.png")
    own = study.load("own_pictures")
    varied = [settings for _, settings in own.plan()]
    assert len({settings["seed"] for settings in varied}) >= 3
    assert {settings["so_weight"] for settings in varied} == {0, 100}
    for config in (own.config(varied[0]), TrainConfig.recipe("photos")):
        options = config.replace(root=str(tmp_path)).load_options
        train, test = (image_sets.load("folder", part, **options) for part in ("train", "test"))
        assert (image_sets.hold_out(train)[0].num_classes, test.num_classes) == (12, 15)


def test_the_prediction_sheet_asks_what_the_notebooks_ask():
    sheet = (ROOT / "docs/_static/prediction_sheet.html").read_text("utf-8")
    book, books, missing = "", [], []
    for number, letter in re.findall(r"<tr><td>(\d\d)?</td><td>(\w?)</td>", sheet):
        book = number or book
        books += [number] * bool(number)
        asked = rf'predict\(\s*"{book}\.{letter}"'
        if letter and not re.search(asked, SCRIPTS[book].read_text("utf-8")):
            missing.append(f"{book}.{letter}")
    assert books == sorted(SCRIPTS) and missing == []
