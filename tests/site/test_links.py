"""Links inside the repository and the site, from the sources; outer ones are checked nightly."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "notebooks/source").glob("[0-9][0-9]_*.py"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
PAGES += [ROOT / "paper/paper.md", *sorted((ROOT / "docs").rglob("*.md")), *SOURCES]
# Made by a build:
MADE = {"docs/teaching/quiz.xml", "docs/teaching/quiz.zip", "docs/_static/lab.html"}


def text_of(page: Path) -> str:
    """Without code, in which brackets are no links."""
    text = page.read_text("utf-8")
    if page.suffix == ".py":
        cells = re.split(r"(?m)^# %%", text)
        text = "\n".join(cell for cell in cells if cell.startswith(" [markdown]"))
    return re.sub(r"(?s)```(?!\{raw\}).*?```|(?<!\{download\})`[^`\n]*`", "", text)


def targets(page: Path) -> list[str]:
    text = text_of(page)
    found = re.findall(r"\]\(<?([^)>\s]+)>?\)", text)
    found += re.findall(r'(?:href|src)="([^"]+)"', text)
    found += re.findall(r"\{download\}`(?:[^`<]*<)?([^`>]+)>?`", text)
    return found


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def exists(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    folder = ROOT / "notebooks" if page in SOURCES else page.parent
    place = (folder / path).resolve() if path else page
    name = place.relative_to(ROOT).as_posix()
    name = re.sub(r"^docs/(notebooks/\d\d_)", r"\1", name)  # the site has the notebooks inside
    if found := re.fullmatch(r"notebooks/(\d\d_\w+)\.(?:ipynb|html)", name):
        return (ROOT / f"notebooks/source/{found[1]}.py").exists()
    if found := re.fullmatch(r"docs/_static/decks/(\d\d_\w+)\.html", name):
        return (ROOT / f"notebooks/source/{found[1]}.py").exists()
    if name in MADE:
        return True
    place = ROOT / name
    if name.startswith("docs/") and place.suffix == ".html" and not place.exists():
        place = place.with_suffix(".md")
    if not place.exists():
        return False
    headings = re.findall(r"(?m)^#+ (.+)$", place.read_text("utf-8")) if anchor else []
    return not anchor or place.suffix != ".md" or anchor in map(slug, headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_inside_lead_somewhere_and_those_outside_are_encrypted(page):
    inside = [t for t in targets(page) if not re.match(r"[a-z]+:|//|#$", t)]
    assert [target for target in inside if not exists(page, target)] == []
    outside = re.findall(r"http://[^\s)>\"`]+", text_of(page))
    assert [url for url in outside if "localhost" not in url and "127.0.0.1" not in url] == []


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"(?m)^ +- file: (\S+)$", (ROOT / "docs/_toc.yml").read_text("utf-8")))
    pages = {
        page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for page in (ROOT / "docs").rglob("*.md")
    }
    notebooks = {f"notebooks/{path.stem}" for path in SOURCES}
    assert listed == (pages | notebooks) - {"index"}


def test_a_dead_link_is_noticed(tmp_path):
    page = ROOT / "docs/teaching.md"
    assert exists(page, "teaching/quiz.md") and exists(page, "notebooks/00_start_here.ipynb")
    assert not exists(page, "teaching/quizz.md") and not exists(page, "#no-such-heading")
    assert not exists(page, "notebooks/99_end.ipynb")
