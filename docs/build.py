"""The site from the executed notebooks: ``python docs/build.py``.

Copies pages and notebooks into one folder, fits the notebooks to a book (folded answers, alt texts,
the Colab badge as a link), writes the results page from the tables in ``data/results``, and lets
Jupyter Book build it. Nothing is executed. The site works from a file, offline.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd

from sobook.studies import figures as study_figures, report, study

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = ROOT / "data/results"


def assemble(notebooks: Path, source: Path) -> None:
    """Put all that the book is made of into the folder `source`."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("build.py", "__pycache__"))
    shutil.copy(RESULTS / "hero.png", source / "_static")
    shutil.copy(RESULTS / "common_mode.md", source)
    shutil.copy(RESULTS / "common_mode.png", source)
    text = (HERE / "results.md").read_text(encoding="utf-8")
    text = re.sub(r"\{\{study (\w+)\}\}", lambda found: study_table(found[1]), text)
    (source / "results.md").write_text(text, encoding="utf-8")
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
    alts = [
        output.metadata.get(kind, {}).get("alt", "")
        for output in cell.get("outputs", [])
        for kind in {"image/png", "image/jpeg"} & output.get("data", {}).keys()
    ]
    if alts:
        alt = " ".join(filter(None, alts)) or "A figure, described in the text around it."
        cell.metadata["mystnb"] = {"image": {"alt": alt}}


def study_table(name: str) -> str:
    """The summary of a committed study, as a Markdown table: one row per setting."""
    one = study.load(name)
    result = report.summary(one, pd.read_csv(RESULTS / f"{name}.csv"))
    if "setting" in result:  # what is compared, side by side
        result = pd.concat(rows for _, rows in result.groupby("setting", sort=False))
    lines = [
        "| setting | seeds | RMS proxy cosine | Recall@1 [95 %] | against the baseline [95 %] "
        "| p, corrected |",
        "|---|---|---|---|---|---|",
    ]
    names = study_figures.labels_of(result, one.factors[:-1])
    for name, (_, row) in zip(names, result.iterrows(), strict=True):
        if row.get("chosen") is True:
            name += " (chosen)"
        cosine = f"{row['rms_cosine']:.3f}" if pd.notna(row.get("rms_cosine")) else "–"
        recall = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        change = "– |"
        if pd.notna(row.get("difference")):
            low, high = row["difference_low"], row["difference_high"]
            p = "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
            change = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}] | {p}"
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
