"""The site from the executed notebooks: ``python docs/build.py``.

Copies pages and notebooks into one folder, fits the notebooks to a book (folded answers, alt texts,
the Colab badge as a link), writes the results page from the tables in ``data/results``, makes the
lab, and lets Jupyter Book build it. Nothing is executed. The site works from a file, offline.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import measured  # this and quiz lie beside this file
import nbformat
import pandas as pd
import quiz

from sobook.course.pages import lab
from sobook.course.studies import figures as study_figures, report, study
from sobook.figures.style import alt_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = ROOT / "data/results"


def assemble(notebooks: Path, source: Path) -> None:
    """Put all that the book is made of into the folder `source`."""
    shutil.rmtree(source, ignore_errors=True)
    skipped = shutil.ignore_patterns(
        "build.py", "measured.py", "quiz.py", "quiz.toml", "__pycache__"
    )
    shutil.copytree(HERE, source, ignore=skipped)
    for picture in RESULTS.glob("*.png"):
        shutil.copy(picture, source / "_static")
    lab.page().save(source / "_static/lab.html")
    for page in ("results.md", "replication.md"):
        text = (HERE / page).read_text(encoding="utf-8")
        text = re.sub(r"\{\{study (\w+)\}\}", lambda found: study_section(found[1]), text)
        (source / page).write_text(text, encoding="utf-8")
    page = source / "performance.md"
    text = re.sub(
        r"\{\{(\w+)\}\}", lambda found: measured.TABLES[found[1]](), page.read_text("utf-8")
    )
    page.write_text(text, "utf-8")
    questions, page = quiz.load(), source / "teaching/quiz.md"
    page.write_text(page.read_text("utf-8").replace("{{quiz}}", quiz.page(questions)), "utf-8")
    page.with_name("quiz.xml").write_text(quiz.moodle(questions), "utf-8")
    quiz.write_qti(questions, page.with_name("quiz.zip"))
    decks = [
        ROOT / "notebooks/decks.py",
        "--notebooks",
        notebooks,
        "--out",
        source / "_static/decks",
    ]
    subprocess.run([sys.executable, *decks], check=True)
    (source / "notebooks").mkdir()
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            fit_cell(cell)
        nbformat.write(book, source / "notebooks" / path.name)


def fit_cell(cell) -> None:
    """What a page of the book needs that a notebook does without."""
    if cell.cell_type == "markdown":
        badge = r"\[!\[Open in Colab\]\([^)]+\)\]\((https://[^)]+)\)"
        cell.source = re.sub(badge, r"[Open in Colab](\1)", cell.source)  # its picture is remote
        # Markdown inside HTML is read as Markdown only between blank lines.
        cell.source = re.sub(r"</summary>\n(?!\n)", "</summary>\n\n", cell.source)
        cell.source = re.sub(r"(?<!\n)\n</details>", "\n\n</details>", cell.source)
        return
    pictures = [
        output.metadata.get(kind, {})
        for output in cell.get("outputs", [])
        for kind in {"image/png", "image/jpeg"} & output.get("data", {}).keys()
    ]
    if pictures:
        alts = [picture["alt"] for picture in pictures if picture.get("alt")]
        image = {"alt": " ".join(alts) or "A figure, described in the text around it."}
        if width := max(picture.get("width", 0) for picture in pictures):
            image["width"] = f"{width}px"
        cell.metadata["mystnb"] = {"image": image}


def study_section(name: str) -> str:
    """What a committed study predicted and found, its figure and its table."""
    one, table = study.load(name), pd.read_csv(RESULTS / f"{name}.csv")
    result, family = report.summary(one, table), report.comparisons(one, table)
    parts = []
    if one.family.prediction:
        parts.append(f"*Predicted, before it ran:* {' '.join(one.family.prediction.split())}")
    parts.append(f"*Found:* {report.headline(one, table)}")
    alt = alt_text(study_figures.draw(one, table, result, family)).replace('"', "'")
    parts.append(f"```{{image}} _static/{name}.png\n:alt: {alt}\n:width: 100%\n```")
    rows = study_table(one, result)
    if len(result) > 12:
        rows = f"<details><summary>All {len(result)} settings</summary>\n\n{rows}\n\n</details>"
    return "\n\n".join([*parts, rows])


def study_table(one: study.Study, result: pd.DataFrame) -> str:
    """The summary of a study, as a Markdown table: the frozen encoder, then one row per setting."""
    metric = study_figures.in_words(one.metric)
    lines = [
        f"| setting | seeds | RMS proxy cosine | {metric} [95 % over seeds] "
        "| difference from the baseline [95 % over seeds] | verdict, corrected |",
        "|---|---|---|---|---|---|",
    ]
    for frozen in result.get("frozen", pd.Series(dtype=float)).round(6).dropna().unique():
        lines.append(f"| frozen encoder | – | – | {frozen:.3f} | – | – |")
    names = study_figures.labels_of(result, one.factors[:-1])
    for name, (_, row) in zip(names, result.iterrows(), strict=True):
        if row.get("chosen") is True:
            name += " (chosen)"
        cosine = f"{row['rms_cosine']:.3f}" if pd.notna(row.get("rms_cosine")) else "–"
        recall = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        change = "– | –"
        if pd.notna(row.get("difference")):
            low, high = row["difference_low"], row["difference_high"]
            change = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}] | {row['verdict']}"
        lines.append(f"| {name} | {row['seeds']:.0f} | {cosine} | {recall} | {change} |")
    return "\n".join(lines)


def main() -> int:
    source, out = ROOT / "build/book/source", ROOT / "build/book"
    assemble(ROOT / "notebooks", source)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", source, "--all", "--path-output", out]
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode == 0:
        print(f"the site: {out / '_build/html/index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
