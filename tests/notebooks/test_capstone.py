"""Notebook 10 as committed: its search works, and its prose says what its outputs say."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks/10_your_images.ipynb"


@pytest.fixture(scope="module")
def shown() -> str:
    """All that the notebook printed, tables as HTML."""
    parts = []
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(parts)


def percent(shown: str, what: str) -> int:
    """The percentage that is printed after some words, or the last one in their row of a table."""
    found = re.search(rf"{what}\s+(\d+)%", shown)
    found = found or re.search(rf"<th>{what}</th>\s*<td>[\d,]+</td>\s*<td>(\d+)%</td>", shown)
    assert found, f"the notebook does not say: {what}"
    return int(found[1])


@pytest.mark.parametrize(
    "what, least",
    [
        ("the name is right, all new pictures", 60),
        ("one of the nearest five is", 85),
        ("class not indexed", 75),
        (r"noise \(strangers had it\)", 90),
        ("stripes", 75),
    ],
)
def test_the_search_finds_unseen_species_and_refuses_what_is_not_there(shown, what, least):
    assert percent(shown, what) >= least


def test_the_errors_that_the_prose_admits_are_there(shown):
    assert percent(shown, "new pictures, indexed") <= 20  # wrongly refused
    assert percent(shown, "species not indexed, sisters are") <= 50
    assert percent(shown, "pieces") <= 50
    assert "we search with: notebook 00" in shown
