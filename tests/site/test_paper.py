"""The paper: what it cites is in the bibliography and can be found."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAPER = (ROOT / "paper/paper.md").read_text("utf-8")
ENTRIES = re.split(r"(?m)^@", (ROOT / "paper/paper.bib").read_text("utf-8"))[1:]


def test_citations_and_bibliography_fit():
    keys = [re.match(r"\w+\{(\w+),", entry)[1] for entry in ENTRIES]
    cited = set(re.findall(r"(?<![\w.])@(\w+)", PAPER.split("---", 2)[2]))
    assert sorted(keys) == sorted(cited)


def test_every_reference_can_be_found():
    for entry in ENTRIES:
        assert re.search(r"(?m)^  (doi|url|isbn) +=", entry), entry
        assert all(re.search(rf"(?m)^  {field} +=", entry) for field in ("title", "author", "year"))


def test_authors_are_those_of_the_citation_file():
    citation = (ROOT / "CITATION.cff").read_text("utf-8").split("references:")[0]
    (author,) = re.findall(r'- name: "(.+)"', citation)
    assert f"- name: {author}" in PAPER


def test_the_paper_has_what_the_journal_asks_for():
    asked = (
        "Statement of need",
        "Learning objectives",
        "Instructional design",
        "Experience of use",
    )
    assert all(f"# {section}" in PAPER for section in ("Summary", *asked, "Story of the project"))
    assert "not been taught" in PAPER
