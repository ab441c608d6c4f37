"""A deck of slides from each executed notebook: ``python notebooks/decks.py``.

The cells tagged ``slide`` are the deck, a slide each: texts, and what code cells show, without the
code. So a question is on one slide and its answer on the next. Of a text, a slide keeps what a room
can take in: headings, formulas with the text that defines their letters, lists, tables and the
paragraphs with something in **bold**, which are the questions. The rest is for the speaker.

A deck is one HTML file that needs no network: arrow keys and space turn pages, and the browser's
print dialog makes a PDF with a page per slide.
"""

import argparse
import html
import importlib.util
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("notebooks_build", HERE / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · slides</title>
<style>
@page {{ size: 320mm 180mm; margin: 0; }}
* {{ box-sizing: border-box; }}
html {{ scroll-snap-type: y mandatory; background: #fff; color: #1a1a1a;
  font: clamp(14px, 2.3vw, 30px)/1.4 system-ui, "Helvetica Neue", Arial, sans-serif; }}
body {{ margin: 0; }}
.slide {{ height: 100vh; padding: 4vh 5vw; overflow: auto; position: relative;
  scroll-snap-align: start; display: flex; flex-direction: column; justify-content: center; }}
.slide > div {{ display: flex; flex-direction: column; min-height: 0; }}
.slide::after {{ content: attr(data-page); position: absolute; right: 2vw; bottom: 2vh;
  font-size: .5em; color: #595959; }}
h1 {{ font-size: 1.9em; margin: 0 0 .4em; }} h2 {{ font-size: 1.3em; margin: 0 0 .4em; }}
h3 {{ font-size: 1.1em; margin: 0 0 .4em; }} p, ul, ol, pre, table {{ margin: .3em 0; }}
a {{ color: inherit; }} a.anchor-link {{ display: none; }}
strong {{ color: #8a2a00; }}
img {{ display: block; max-width: 100%; max-height: 78vh; margin: .3em auto; object-fit: contain; }}
pre {{ font-size: .7em; white-space: pre-wrap; }} code {{ font-size: .9em; }}
table {{ border-collapse: collapse; font-size: .6em; }}
th, td {{ padding: .15em .6em; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }}
math[display="block"] {{ width: max-content; margin: .5em auto; }}
summary {{ cursor: pointer; }}
@media print {{
  html {{ font-size: 24px; }}
  .slide {{ height: 180mm; overflow: hidden; break-after: page; break-inside: avoid; }}
  .slide:last-of-type {{ break-after: auto; }}
  img {{ max-height: 118mm; }}
}}
</style>
</head>
<body>
{slides}
<script>
const slides = [...document.querySelectorAll(".slide")];
// What does not fit is made smaller, down to half of its size.
function fit(slide) {{
  const inside = slide.firstElementChild;
  for (let size = 1; size >= 0.5; size -= 0.05) {{
    inside.style.fontSize = size + "em";
    inside.querySelectorAll("img").forEach((i) => {{ i.style.maxHeight = 78 * size + "vh"; }});
    const high = slide.scrollHeight > slide.clientHeight;
    if (!high && inside.scrollWidth <= inside.clientWidth) break;
  }}
}}
function fitAll() {{ slides.forEach(fit); }}
addEventListener("load", fitAll);
addEventListener("resize", fitAll);
addEventListener("toggle", fitAll, true);
addEventListener("beforeprint", () => {{
  document.querySelectorAll("details").forEach((d) => {{ d.open = true; }});
  fitAll();
}});
// Columns of words are read from the left; only numbers are set to the right.
document.querySelectorAll("td").forEach((cell) => {{
  if (!/[A-Za-z]{{3}}/.test(cell.textContent)) return;
  for (const row of cell.closest("table").rows) {{
    row.cells[cell.cellIndex]?.style.setProperty("text-align", "left");
  }}
}});
function turn(step) {{
  const here = slides.findIndex((s) => s.getBoundingClientRect().bottom > innerHeight / 2);
  const next = slides[Math.min(Math.max(here + step, 0), slides.length - 1)];
  next.scrollIntoView();
  history.replaceState(null, "", "#" + next.id);
}}
const KEYS = {{ ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1,
  PageUp: -1 }};
addEventListener("keydown", (event) => {{
  if (event.target.closest("summary, a")) return;
  if (event.key === "Enter") {{
    const page = slides.find((s) => s.getBoundingClientRect().bottom > innerHeight / 2);
    page.querySelectorAll("details").forEach((d) => {{ d.open = !d.open; }});
  }}
  if (event.key in KEYS) {{ event.preventDefault(); turn(KEYS[event.key]); }}
}});
</script>
</body>
</html>
"""


def for_the_room(text: str) -> str:
    """What a slide keeps of a text cell; of a notebook's end, only what is still open."""
    text = re.sub(r"(?s)<details>.*?</details>", "", text)
    still_open = re.findall(r"(?m)^\*\*Still open\.\*\*.*$", text)
    text = re.sub(r"(?ms)^## (?:Summary|Questions|Further reading)$.*?(?=^## |\Z)", "", text)
    text = "\n\n".join([text, *(line for line in still_open if line not in text)])
    kept = re.compile(r"#|\$\$|\||[-*] |\d+\. |!\[|```")
    blocks = re.split(r"\n{2,}", text.strip())
    return "\n\n".join(
        block
        for block, after in zip(blocks, [*blocks[1:], ""], strict=True)
        # The text before a formula says what its letters are.
        if kept.match(block) or "**" in block or ("$" in block and after.startswith("$$"))
    )


def slides(notebook: nbformat.NotebookNode) -> list[list[nbformat.NotebookNode]]:
    """The cells of each slide: a tagged text, or the last heading and what a tagged cell shows."""
    found, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in re.findall("(?m)^##+ .+$", cell.source):
                heading = line
        if "slide" not in build.tags(cell):
            continue
        if cell.cell_type == "code":
            found.append([nbformat.v4.new_markdown_cell(heading), cell])
        elif for_the_room(cell.source) != heading:  # more than what the next slide repeats
            found.append([cell])
    return found


def deck(notebook: nbformat.NotebookNode) -> str:
    """The deck of an executed notebook, as one HTML page."""
    title = re.search("(?m)^# (.+)$", notebook.cells[0].source)[1]
    first = nbformat.v4.new_markdown_cell(f"# {title}\n\n**Deep metric learning**")
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    exporter.register_filter(
        "markdown2html", build.page_exporter().environment.filters["markdown2html"]
    )
    parts = []
    for number, cells in enumerate([[first], *slides(notebook)], 1):
        for cell in cells:
            if cell.cell_type == "markdown":
                cell.source = for_the_room(cell.source)
                cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            build.describe_pictures(cell.get("outputs", []))
        body, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
        opening = f'<section class="slide" id="s{number}" data-page="{number}">'
        parts.append(f"{opening}<div>{body}</div></section>")
    return PAGE.format(title=html.escape(title), slides="\n".join(parts))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="decks.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/decks"))
    parser.add_argument("--notebooks", type=Path, default=HERE, help="folder of executed notebooks")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.notebooks.glob("[0-9][0-9]_*.ipynb")):
        notebook = build.read(path)
        if count := len(slides(notebook)):
            file = options.out / f"{path.stem}.html"
            file.write_text(deck(notebook), encoding="utf-8")
            print(f"{file}: {count + 1} slides, {file.stat().st_size / 1e6:.1f} MB")
        else:
            print(f"{path.name}: no cell is tagged slide")
    return 0


if __name__ == "__main__":
    sys.exit(main())
