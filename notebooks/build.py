"""From source scripts to notebooks and pages: ``python notebooks/build.py COMMAND``.

``notebooks/source/NN_name.py`` (jupytext percent format) is the file to edit. From each of them

* ``generate`` writes the notebook ``notebooks/NN_name.ipynb``, the same bytes every time; cells
  tagged ``solution`` appear only in its twin in ``notebooks/solutions/``;
* ``execute`` runs notebooks, in place or, with ``--out``, into another folder;
* ``pages`` turns executed notebooks into HTML that needs no network, with an index;
* ``check`` fails when notebooks do not fit their sources, are too large or name this machine.
"""

import argparse
import copy
import dis
import hashlib
import html
import os
import re
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

import sobook
from sobook.errors import SobookError, check_choice
from sobook.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SOURCE = HERE / "source"
MAX_BYTES = 2_000_000
CELL_TIMEOUT = 900
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MATHML = "http://www.w3.org/1998/Math/MathML"
NO_ALT = "A figure, described in the text around it."

# Comes before the source's own lines in the cell tagged `setup`, the first of every notebook. What
# Colab has satisfies every lower bound, so nothing is upgraded and no restart is needed.
REPOSITORY = "https://github.com/sobook/sobook"
RELEASE = f"v{sobook.__version__}"  # what Colab opens and installs: a tag, not what changes daily
INSTALL = f"""\
# On Colab this installs sobook; on your machine `make` has installed it already.
import importlib.util
if importlib.util.find_spec("sobook") is None:
    %pip install -q "sobook @ git+{REPOSITORY}@{RELEASE}"

"""


# --- sources and the notebooks made from them ----------------------------------------------------


def sources(names: Sequence[str] = ()) -> list[Path]:
    """Source scripts in course order: all of them, or those named (``04`` is enough)."""
    scripts = sorted(SOURCE.glob("[0-9][0-9]_*.py"))
    wanted = {Path(name).stem for name in names}
    for name in wanted:
        check_choice("notebook", name, [s.stem for s in scripts] + [s.stem[:2] for s in scripts])
    return [s for s in scripts if not wanted or wanted & {s.stem, s.stem[:2]}]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def build(script: Path, *, solved: bool) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs: ids, metadata and bytes depend on it alone."""
    parsed = jupytext.read(script, fmt="py:percent")
    cells = [cell for cell in parsed.cells if solved or "solution" not in tags(cell)]
    for position, cell in enumerate(cells):
        cell.id = hashlib.sha256(f"{script.stem}:{position}".encode()).hexdigest()[:8]
        for key in [k for k in cell.metadata if k.startswith("lines_to_")]:  # jupytext's own notes
            del cell.metadata[key]
        if "setup" in tags(cell):
            cell.source = INSTALL + cell.source
        cell.source = cell.source.replace("/blob/main/", f"/blob/{RELEASE}/")  # Colab's badge
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(METADATA))
    notebook.nbformat_minor = 5
    return notebook


def targets(script: Path) -> list[tuple[Path, nbformat.NotebookNode]]:
    """Where a script's notebooks go, and what they hold: the student's, and one with solutions."""
    made = [(HERE / f"{script.stem}.ipynb", build(script, solved=False))]
    solved = build(script, solved=True)
    if any("solution" in tags(cell) for cell in solved.cells):
        made.append((HERE / "solutions" / f"{script.stem}.ipynb", solved))
    return made


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def write_notebook(path: Path, notebook: nbformat.NotebookNode) -> None:
    write_text(path, nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n")


def keep_outputs(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> None:
    """Carry outputs over where only prose changed: they still belong to the code."""
    before, after = ([c for c in book.cells if c.cell_type == "code"] for book in (old, new))
    if [cell.source for cell in before] == [cell.source for cell in after]:
        for was, cell in zip(before, after, strict=True):
            cell.outputs, cell.execution_count = was.outputs, was.execution_count


def generate(names: list[str]) -> None:
    for script in sources(names):
        for path, notebook in targets(script):
            if path.exists():
                keep_outputs(read(path), notebook)
            write_notebook(path, notebook)
            print(f"wrote {path.relative_to(ROOT)}")


# --- solutions, shortened to what their exercises need ------------------------------------------


def reads_and_sets(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global names that code reads before it sets them, functions included, and those it sets."""
    reads, sets, later = set(), set(), set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            sets.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in sets:
            reads.add(step.argval)
        elif isinstance(step.argval, types.CodeType):
            later |= reads_and_sets(step.argval)[0]
    return reads | (later - sets), sets


def shorten(solved: nbformat.NotebookNode) -> None:
    """Keep the setup, the solutions, and the cells that set names which these read; in place.

    What is kept checks the exercises, and fails where a verdict is wrong.
    """
    python, needed, kept = TransformerManager(), set(), []
    for cell in reversed([cell for cell in solved.cells if cell.cell_type == "code"]):
        code = compile(python.transform_cell(cell.source), cell.id, "exec")
        reads, sets = reads_and_sets(code)
        if sets & needed or {"setup", "solution"} & set(tags(cell)):
            needed = (needed - sets) | reads
            kept.append(cell)
        if "solution" in tags(cell):
            check = r"(?m)^(exercises\.check\(.*\))$"
            cell.source = re.sub(check, r"assert \1.passed", cell.source)
    solved.cells = kept[::-1]


# --- running them --------------------------------------------------------------------------------


class LocalClient(NotebookClient):
    """Reaches its kernel through files, not TCP, which needs no network and gives no warning."""

    def __init__(self, notebook: nbformat.NotebookNode, **options):
        self._folder = tempfile.TemporaryDirectory()  # removed with the client
        local = {"transport": "ipc", "ip": f"{self._folder.name}/kernel"}
        super().__init__(notebook, config=Config(ConnectionFileMixin=local), **options)


def run(notebook: nbformat.NotebookNode) -> Exception | None:
    """Execute in place, as from the notebooks folder; returns what went wrong, if anything."""
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # else no figures
    environment.setdefault("SOBOOK_MODE", "quick")
    client = LocalClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,  # time stamps would change the file at every run
        coalesce_streams=True,  # one output for a progress bar, not one for each of its steps
        resources={"metadata": {"path": str(HERE)}},
    )
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return error
    finally:
        drop_progress_bars(notebook)
        notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))
    return None


def drop_progress_bars(notebook: nbformat.NotebookNode) -> None:
    """Live widgets mean nothing in a file: what would be left of a bar is its first state, 0 %."""
    widget = "application/vnd.jupyter.widget-view+json"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if widget not in o.get("data", {})]


def execute(names: list[str], out: Path | None, solutions: bool) -> None:
    """Run notebooks one after the other; all are tried, then a failure of any is reported."""
    failed, begin = [], time.perf_counter()
    for script in sources(names):
        for path, notebook in targets(script):
            if (path.parent != HERE) != solutions:
                continue
            print(f"{script.stem} ...", end=" ", flush=True)
            start = time.perf_counter()
            error = run(notebook)
            seconds = time.perf_counter() - start
            print(f"{'FAILED after ' if error else ''}{seconds:.0f} s", flush=True)
            if out or not error:  # a failed run does not replace a committed notebook
                write_notebook(out / path.name if out else path, notebook)
            if error:
                failed.append(script.stem)
                print(f"{script.stem}: {error}", file=sys.stderr)
    minutes, seconds = divmod(round(time.perf_counter() - begin), 60)
    print(f"all notebooks: {minutes} min {seconds} s")
    if failed:
        raise SobookError(f"these notebooks did not run to their end: {', '.join(failed)}.")


# --- pages ---------------------------------------------------------------------------------------

# The page of a notebook loads no script: mathematics becomes MathML, which browsers draw
# themselves, so what nbconvert would fetch from the network is left out.
PAGE = """{% extends "lab/index.html.j2" %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}
<style>
main { max-width: 60rem; margin: 0 auto; }
.jp-RenderedHTMLCommon { overflow-x: auto; }
math[display="block"] { width: max-content; margin: 1em auto; }
</style>
{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>sobook</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark; }}
body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto;
  padding: 0 1rem; }} li {{ margin: .4rem 0; }} ol {{ list-style: none; padding: 0; }}</style>
</head><body><h1>Deep metric learning with soft orthogonal proxies</h1>
<p>The notebooks of the course, executed on this machine.</p>
<ol>
{items}
</ol></body></html>
"""


def mathml(tex: str, display: str = "inline") -> str:
    """A formula as HTML understands it; what the converter does not know stays as it was typed."""
    from latex2mathml.converter import convert

    tex = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{split}", tex.strip())  # one it does not know
    try:  # nbconvert would make a prefix of the namespace, which HTML does not know
        return convert(tex, display=display).replace(f' xmlns="{MATHML}"', "")
    except Exception:  # of many kinds; a page is worth more than a formula
        return f"<code>{html.escape(tex)}</code>"


def page_exporter():
    """An nbconvert exporter whose pages stand alone."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body):
            return mathml(body, "block")

        def inline_math(self, body):
            return mathml(body)

        def latex_environment(self, name, body):
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def to_html(source):
        return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)

    exporter = HTMLExporter(
        template_file="page.html.j2", extra_loaders=[DictLoader({"page.html.j2": PAGE})]
    )
    exporter.register_filter("markdown2html", to_html)
    return exporter


def describe_pictures(outputs: list) -> None:
    """Make pictures HTML with the alternative text of their metadata, which nbconvert ignores."""
    for output in outputs:
        data = output.get("data", {})
        for kind in {"image/png", "image/jpeg"} & data.keys():
            about = output.metadata.get(kind, {})
            alt = html.escape(about.get("alt", NO_ALT))
            width = f' width="{about["width"]}"' if "width" in about else ""
            data["text/html"] = f'<img alt="{alt}"{width} src="data:{kind};base64,{data[kind]}">'


def pages(out: Path) -> None:
    """HTML pages beside the executed notebooks of a folder, and an index of them."""
    exporter, items = page_exporter(), []
    for path in sorted(out.glob("[0-9][0-9]_*.ipynb")):
        notebook = read(path)
        title = re.search("^# (.+)$", notebook.cells[0].source, re.MULTILINE)[1]
        notebook.metadata["title"] = f"{title} · sobook"
        for cell in notebook.cells:
            if cell.cell_type == "markdown":  # a link to another notebook leads to its page
                cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            describe_pictures(cell.get("outputs", []))
        body, _ = exporter.from_notebook_node(notebook)
        write_text(path.with_suffix(".html"), body)
        items.append(f'<li><a href="{path.stem}.html">{html.escape(title)}</a></li>')
    if not items:
        raise SobookError(f"there are no notebooks in {out}: run `build.py execute --out {out}`.")
    write_text(out / "index.html", INDEX.format(items="\n".join(items)))
    print(f"executed notebooks: {out}/*.ipynb\npages to read in a browser: {out}/index.html")


# --- checks --------------------------------------------------------------------------------------


def shape(notebook: nbformat.NotebookNode) -> list[tuple]:
    """What must agree between a notebook and its source: all but the outputs."""
    return [(c.id, c.cell_type, c.source, c.metadata) for c in notebook.cells]


def output_problems(path: Path, notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the outputs of a committed notebook."""
    problems, name = [], path.relative_to(ROOT)
    temporary = f"{tempfile.gettempdir()}/ipykernel"  # where warnings say a cell's code lies
    machine = (f"{ROOT}/", f"{Path.home()}/", temporary)
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            return [f"{name}: cell {number} was not executed; run `make notebooks`."]
        if any(output.output_type == "error" for output in cell.outputs):
            problems.append(f"{name}: cell {number} ended in an error.")
        if any(place in str(cell.outputs) for place in machine):
            problems.append(f"{name}: the output of cell {number} names a path of this machine.")
    return problems


def problems() -> list[str]:
    """All that is wrong with the committed notebooks, one sentence each."""
    found, expected = [], set()
    for script in sources():
        for path, notebook in targets(script):
            expected.add(path)
            name = path.relative_to(ROOT)
            if not path.exists():
                found.append(f"{name} is missing; run `make notebooks`.")
                continue
            committed = read(path)
            if shape(committed) != shape(notebook):
                found.append(f"{name} does not fit {script.relative_to(ROOT)}; `make notebooks`.")
            if (size := path.stat().st_size) > MAX_BYTES:
                found.append(f"{name} has {size / 1e6:.2f} MB, more than {MAX_BYTES / 1e6:.0f} MB.")
            if path.parent == HERE:
                found += output_problems(path, committed)
    for path in sorted({*HERE.glob("*.ipynb"), *HERE.glob("solutions/*.ipynb")} - expected):
        found.append(f"{path.relative_to(ROOT)} has no source script; delete it.")
    return found


def check() -> None:
    if found := problems():
        raise SobookError("the notebooks need attention:\n  " + "\n  ".join(found))
    print(f"{len(sources())} notebooks fit their sources.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command in (generate, execute, pages, check):
        sub = commands.add_parser(command.__name__)
        sub.set_defaults(command=command)
        if command in (generate, execute):
            sub.add_argument("names", nargs="*", help="such as 04 or 04_proxy_anchor; default all")
        if command is execute:
            sub.add_argument("--out", type=Path, help="write here, not over the notebooks")
            sub.add_argument("--solutions", action="store_true", help="the solved notebooks")
        if command is pages:
            sub.add_argument("--out", type=Path, default=Path("build/tutorial"))
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        command(**options)
    except SobookError as error:
        print(f"build.py {command.__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
