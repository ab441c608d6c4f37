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
from scipy import stats

from sobook.studies import figures as study_figures
from sobook.studies import study

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
    text = (HERE / "results.md").read_text(encoding="utf-8").replace("{{aviary}}", aviary_table())
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
        said = " ".join(filter(None, alts)) or "A figure, described in the text around it."
        cell.metadata["mystnb"] = {"image": {"alt": said}}


def aviary_table() -> str:
    """The comparison over seeds, as a Markdown table computed from the runs."""
    runs = pd.read_csv(RESULTS / "aviary.csv")
    names = {weight: f"PA+SO, λ = {weight:g}" if weight else "PA" for weight in runs["so_weight"]}
    runs["method"] = runs["so_weight"].map(names)
    lines = [
        "| loss | seeds | Recall@1 [95 % interval over seeds] | RMS proxy cosine | coherence |",
        "|---|---|---|---|---|",
    ]
    for method, rows in runs.groupby("method", sort=False):
        if len(rows) < 2:
            continue
        lines.append(
            f"| {method} | {len(rows)} | {interval(rows['recall_at_1'])} | "
            f"{rows['rms_cosine'].mean():.3f} | {rows['coherence'].mean():.3f} |"
        )
    pairs = runs.pivot(index="seed", columns="method", values="recall_at_1").dropna()
    for method in pairs.columns.drop("PA"):
        change = interval(pairs[method] - pairs["PA"], sign="+")
        said = f"Paired difference of Recall@1, {method} minus PA, {len(pairs)} seeds"
        lines += ["", f"{said}: {change}."]
    return "\n".join(lines)


def study_table(name: str) -> str:
    """The summary of a committed study, as a Markdown table: one row a setting."""
    one, table = study.load(name), pd.read_csv(RESULTS / f"{name}.csv")
    lines = [
        "| setting | seeds | Recall@1 [95 %] | against the baseline [95 %] | p, corrected |",
        "|---|---|---|---|---|",
    ]
    result = study.summary(one, table)
    if "setting" in result:  # what is compared, side by side
        result = pd.concat(rows for _, rows in result.groupby("setting", sort=False))
    names = study_figures.labels_of(result, one.factors[:-1])
    for name, (_, row) in zip(names, result.iterrows(), strict=True):
        compared = pd.notna(row.get("difference"))
        change = between(row, "difference", "difference_low", "difference_high", "+")
        if row.get("chosen") is True:
            name += " (chosen)"
        lines.append(
            f"| {name} | {row['seeds']:.0f} | {between(row, 'mean', 'low', 'high')} | "
            + (f"{change} | {p_value(row['p_holm'])} |" if compared else "– | |")
        )
    return "\n".join(lines)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def between(row: pd.Series, mean: str, low: str, high: str, sign: str = "") -> str:
    """A mean and its interval, as text."""
    values = [row.get(name, np.nan) for name in (mean, low, high)]
    middle, *ends = (f"{value:{sign}.3f}" for value in values)
    return middle if np.isnan(values[1]) else f"{middle} [{', '.join(ends)}]"


def interval(values: pd.Series, sign: str = "") -> str:
    """Mean and t interval of a few runs, as text."""
    mean = values.mean()
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean:{sign}.3f} [{mean - half:{sign}.3f}, {mean + half:{sign}.3f}]"


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
