"""Claims in prose: every number from a committed table, every verdict from its family."""

import functools
import re
from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import pytest

from sobook.course.studies import report, study

ROOT = Path(__file__).resolve().parents[1]
RESULTS, STUDIES = ROOT / "data/results", ROOT / "data/studies"
TABLES = {file.stem for file in RESULTS.glob("*.csv")}
PAGES = [ROOT / "README.md", ROOT / "paper/paper.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks/source").glob("*.py"))
NUMBER = re.compile(r"(?<![\w.])[+−-]?(?:0|1)?\.(\d{3,4})(?!\d)")


@functools.cache
def known_numbers(name: str) -> frozenset[str]:
    """Every number that a table supports, without sign, to three and to four digits."""
    table = pd.read_csv(RESULTS / f"{name}.csv", dtype={"config": str})
    parts = [table]
    if (STUDIES / f"{name}.toml").exists():
        one = study.load(name)
        factors = one.factors[:-1]
        parts = [table.groupby(factors, dropna=False).mean(numeric_only=True)]
        made = (report.summary, report.comparisons, report.outside_family, report.convergence)
        parts += [make(one, table) for make in made] + [table.drop(columns="seed")]
        if one.metric in table:
            parts.append(table.groupby(factors, dropna=False)[[one.metric]].std())
    values = np.concatenate([part.select_dtypes("number").to_numpy().ravel() for part in parts])
    values = np.abs(values[np.isfinite(values)])
    return frozenset(f"{value:.{digits}f}"[-digits:] for value in values for digits in (3, 4))


def unsupported(text: str) -> list[str]:
    """Numbers of three or four decimals that no table named in their section holds."""
    wrong = []
    for section in re.split(r"(?m)^#+ ", text):
        named = {name for name in TABLES if re.search(rf"\b{name}\b", section)}
        numbers = frozenset().union(*map(known_numbers, named))
        prose = re.sub(r"(?s)```.*?```|`[^`]*`|\$\$?[^$]*\$", "", section)  # no code, no formulas
        wrong += [found[0] for found in NUMBER.finditer(prose) if found[1] not in numbers]
    return wrong


def markdown_of(notebook: Path) -> str:
    cells = jupytext.read(notebook).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_of_a_page_is_in_a_table_that_its_section_names(page):
    assert unsupported(page.read_text()) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_every_number_of_a_notebooks_prose_is_in_a_table_that_its_section_names(notebook):
    assert unsupported(markdown_of(notebook)) == []


def test_no_notebook_misses_a_table_that_is_there():
    """A committed output that calls a table missing is older than the table."""
    missed = re.compile(r"no committed table yet. To make it: sobook study (\w+)")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        stale = TABLES & set(missed.findall(notebook.read_text(encoding="utf-8")))
        assert not stale, f"{notebook.name} was executed before {stale} was committed"


def test_a_number_that_is_in_no_table_is_noticed():
    name = sorted(TABLES)[0]
    number = next(iter(known_numbers(name)))
    assert unsupported(f"# A\nSee {name}: .{number}.\n# B\nHere .{number} has no source.") == [
        f".{number}"
    ]
    assert unsupported(f"# A\nSee {name}: 0.000 against .99999 and 1.7 and v1.2.345") == []


VERDICTS = re.compile(
    r"\blow\W*\s*>\s*0|\bhigh\W*\s*<\s*0|\bp_\w+\W*\s*<|pvalue|[<>]=?\s*0?\.05\b|significant"
)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_verdicts_of_a_notebook_come_from_the_statistics_module(notebook):
    """No cell decides by itself what an interval or a p value shows."""
    cells = [cell for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    assert [found[0] for cell in cells for found in VERDICTS.finditer(cell.source)] == []
