"""The site from the executed notebooks: ``python docs/build.py [--notebooks FOLDER]``.

Copies pages and notebooks into one folder, fits the notebooks to a book (folded answers, alt texts,
the Colab badge as a link), writes the results page from the tables in ``data/results``, and lets
Jupyter Book build it. Nothing is executed. The site works from a file, offline.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from sobook.studies import figures as study_figures, report, study

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = ROOT / "data/results"
PAGES = ("*.md", "*.yml", "_ext/*.py", "_static/*.css")


def assemble(notebooks: Path, source: Path) -> None:
    """Put all that the book is made of into the folder `source`."""
    shutil.rmtree(source, ignore_errors=True)
    for pattern in PAGES:
        for page in HERE.glob(pattern):
            target = source / page.relative_to(HERE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, target)
    shutil.copy(RESULTS / "hero.png", source / "_static/hero.png")
    for name in ("common_mode.md", "common_mode.png"):
        shutil.copy(RESULTS / name, source / name)
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
    outputs = cell.get("outputs", [])
    alts = [
        output.metadata.get(kind, {}).get("alt", "")
        for output in outputs
        for kind in output.get("data", {})
        if kind in ("image/png", "image/jpeg")
    ]
    if alts:
        alt = " ".join(filter(None, alts)) or "A figure, described in the text around it."
        cell.metadata["mystnb"] = {"image": {"alt": alt}}


def study_table(name: str) -> str:
    """The summary of a committed study, as a Markdown table: one row per setting."""
    one, table = study.load(name), pd.read_csv(RESULTS / f"{name}.csv")
    lines = [
        "| setting | seeds | RMS proxy cosine | Recall@1 [95 %] | against the baseline [95 %] "
        "| p, corrected |",
        "|---|---|---|---|---|---|",
    ]
    result = report.summary(one, table)
    if "setting" in result:  # what is compared, side by side
        result = pd.concat(rows for _, rows in result.groupby("setting", sort=False))
    names = study_figures.labels_of(result, one.factors[:-1])
    for name, (_, row) in zip(names, result.iterrows(), strict=True):
        compared = pd.notna(row.get("difference"))
        change = between(row, "difference", "difference_low", "difference_high", "+")
        if row.get("chosen") is True:
            name += " (chosen)"
        lines.append(
            f"| {name} | {row['seeds']:.0f} | {known(row.get('rms_cosine'))} | "
            f"{between(row, 'mean', 'low', 'high')} | "
            + (f"{change} | {p_value(row['p_holm'])} |" if compared else "– | |")
        )
    return "\n".join(lines)


def known(value: float) -> str:
    """A number as text; a dash where it is missing, as the cosine is of losses without proxies."""
    return "–" if pd.isna(value) else f"{value:.3f}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def between(row: pd.Series, mean: str, low: str, high: str, sign: str = "") -> str:
    """A mean and its interval, as text."""
    values = [row.get(name, np.nan) for name in (mean, low, high)]
    middle, *ends = (f"{value:{sign}.3f}" for value in values)
    return middle if np.isnan(values[1]) else f"{middle} [{', '.join(ends)}]"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="docs/build.py", description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    parser.add_argument("--out", type=Path, default=ROOT / "build/book")
    options = parser.parse_args(arguments)
    program = shutil.which("jupyter-book", path=str(Path(sys.executable).parent))
    if program is None:
        print("docs/build.py: jupyter-book is missing: pip install -e '.[docs]'", file=sys.stderr)
        return 1
    source = options.out / "source"
    assemble(options.notebooks, source)
    command = [program, "build", str(source), "--all"]
    done = subprocess.run([*command, "--path-output", str(options.out)], cwd=ROOT)
    if done.returncode == 0:
        print(f"the site: {options.out / '_build/html/index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
