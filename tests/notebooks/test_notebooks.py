"""What README, Makefile, pyproject and notebooks promise each other."""

import ast
import html
import importlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sobook
from sobook import cli
from sobook.course import exercises

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """The README's command lines of a program, as lists of words; comments are left out."""
    lines = "\n".join(code_blocks("sh")).replace("\\\n", " ").splitlines()
    found = [re.search(rf"(?:^|/|\s){program} (.*)", line.split(" #")[0]) for line in lines]
    return [match.group(1).split() for match in found if match]


@pytest.fixture(scope="module")
def build():
    """The notebook tool, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("notebook_build", ROOT / "notebooks/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_names_only_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", README)) | {words[0] for words in commands("make")}
    assert {"tutorial", "test"} <= named <= targets


def test_readme_uses_subcommands_and_options_that_exist(capsys):
    lines = commands("sobook")
    for subcommand in {words[0] for words in lines}:
        with pytest.raises(SystemExit) as stopped:
            cli.main([subcommand, "--help"])
        shown = capsys.readouterr()
        assert stopped.value.code == 0, f"README uses `sobook {subcommand}`: {shown.err}"
        used = {w for words in lines if words[0] == subcommand for w in words if w[:2] == "--"}
        for option in used:
            assert re.search(rf"{option}\b", shown.out), f"sobook {subcommand} has no {option}"


def test_readme_python_imports_what_exists():
    for block in code_blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sobook"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_colab_opens_and_installs_the_release(build):
    place = build.REPOSITORY.removeprefix("https://github.com/")
    badges = re.findall(r"colab\.research\.google\.com/github/([\w./-]+)/notebooks/", README)
    assert set(badges) == {f"{place}/blob/v{sobook.__version__}"}
    for script in build.sources():
        assert f"notebooks/{script.stem}.ipynb" in README
        first, *_ = build.build(script, solved=False).cells
        assert f"{badges[0]}/notebooks/{script.stem}.ipynb" in first.source
    assert f"{build.REPOSITORY}@v{sobook.__version__}" in build.INSTALL


def test_every_notebook_begins_with_the_setup_cell(build):
    for script in build.sources():
        code = [c for c in build.build(script, solved=True).cells if c.cell_type == "code"]
        assert [cell.source.startswith(build.INSTALL) for cell in code[:2]] == [True, False]


def test_notebooks_fit_their_sources_and_are_small(build):
    assert build.problems() == []


def said(cell) -> str:
    """All that a code cell printed or showed, as text."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        page = re.sub(r'<img alt="([^"]*)"[^>]*>', r"\1", data.get("text/html", ""))
        page = re.sub(r"(?s)<style.*?</style>|base64,[^\"]*|<[^>]+>", " ", page)
        parts += [output.get("text", ""), data.get("text/plain", ""), page[:100_000]]
    return html.unescape("\n".join(parts)).replace("−", "-")


def test_a_stub_never_prints_what_is_expected(build):
    """A reader who has done nothing yet must not see a line that looks right."""
    found = []
    for script in build.sources():
        for cell in build.read(build.HERE / f"{script.stem}.ipynb").cells:
            if cell.cell_type == "code" and "exercises.check(" in cell.source:
                pairs = re.findall(r"yours ([^\s,;]+)[,;] +expected ([^\s,;]+)", said(cell))
                found += [f"{script.stem}: {a}" for a, b in pairs if a == b]
    assert not found


def test_numbers_of_the_committed_run_stand_in_its_outputs(build):
    """A paragraph that begins with "In the committed run" quotes the notebook's own outputs."""
    wrong = []
    for script in build.sources():
        cells = build.read(build.HERE / f"{script.stem}.ipynb").cells
        shown = " ".join(said(cell) for cell in cells if cell.cell_type == "code")
        values = [abs(float(v)) for v in re.findall(r"\d*\.\d+", shown)]
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for paragraph in text.split("\n\n"):
            for sentence in re.findall(r"In the committed run\b[^$]*", paragraph):
                if "`" in sentence:
                    continue  # names a committed table: tests/test_evidence.py holds it to that
                for number in re.findall(r"(?<![\w.])\d*\.\d+", sentence):
                    digits = len(number.partition(".")[2])
                    if all(abs(v - float(number)) > 0.51 * 10**-digits for v in values):
                        wrong.append(f"{script.stem}: {number}")
    assert not wrong


def test_no_file_names_a_registry_or_a_path_of_this_machine():
    # The brackets keep these patterns from finding themselves.
    patterns = [r"py[p]i\.org|python[h]osted|registry\.[n]pmjs|anaconda\.[o]rg|download\.[p]ytorch"]
    patterns += [rf"/roo[t]/|/hom[e]/[a-z0-9_-]+/|/User[s]/[a-z0-9_-]+/|{ROOT}/"]
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("this is no checkout")
    search = ["git", "grep", "--untracked", "-nIE", "|".join(patterns)]
    found = subprocess.run(search, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")


def test_a_shortened_solution_runs_and_its_exercises_are_right(build):
    (script,) = build.sources(["09"])
    notebook = build.build(script, solved=True)
    cells = len(notebook.cells)
    build.shorten(notebook)
    assert len(notebook.cells) < cells / 3
    assert build.run(notebook) is None
    shown = "".join(said(cell) for cell in notebook.cells)
    assert [name for name in exercises.known("09") if f"✓ {name}" not in shown] == []


class TestBuild:
    """The notebook tool on a small source of our own."""

    SCRIPT = """\
# %% [markdown]
# # A title with $x_1$

# %% tags=["setup"]
session = 0

# %%
answer = 41
png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
display({"image/png": png}, raw=True, metadata={"image/png": {"alt": "a < b"}})

# %% tags=["solution"]
answer = 42
"""

    @pytest.fixture
    def here(self, build, tmp_path, monkeypatch):
        monkeypatch.setattr(build, "ROOT", tmp_path)
        monkeypatch.setattr(build, "HERE", tmp_path / "notebooks")
        monkeypatch.setattr(build, "SOURCE", tmp_path / "notebooks/source")
        build.SOURCE.mkdir(parents=True)
        (build.SOURCE / "00_one.py").write_text(self.SCRIPT)
        return build.HERE

    def test_generation_is_deterministic_and_hides_solutions(self, build, here):
        build.generate([])
        first = (here / "00_one.ipynb").read_bytes()
        (here / "00_one.ipynb").unlink()
        build.generate(["00"])
        assert (here / "00_one.ipynb").read_bytes() == first
        assert b"answer = 42" not in first
        assert b"answer = 42" in (here / "solutions/00_one.ipynb").read_bytes()

    def test_drift_size_and_missing_runs_are_named(self, build, here, monkeypatch):
        assert "is missing" in "".join(build.problems())
        build.generate([])
        assert "not executed" in "".join(build.problems())
        script = build.SOURCE / "00_one.py"
        script.write_text(script.read_text().replace("41", "43"))
        assert "does not fit" in "".join(build.problems())
        monkeypatch.setattr(build, "MAX_BYTES", 10)
        assert "more than" in "".join(build.problems())
        script.unlink()
        assert "has no source script" in "".join(build.problems())

    def test_prose_edits_keep_the_outputs(self, build, here):
        build.generate([])
        path = here / "00_one.ipynb"
        notebook = build.read(path)
        notebook.cells[2].execution_count = 5
        build.write_notebook(path, notebook)
        script = build.SOURCE / "00_one.py"
        script.write_text(script.read_text().replace("A title", "Another title"))
        build.generate([])
        assert build.read(path).cells[2].execution_count == 5
        script.write_text(script.read_text().replace("41", "43"))
        build.generate([])
        assert build.read(path).cells[2].execution_count is None

    def test_executed_pages_need_no_network(self, build, here, tmp_path):
        build.execute([], tmp_path / "out", solutions=False)
        build.pages(tmp_path / "out")
        page = (tmp_path / "out/00_one.html").read_text()
        assert "<math" in page and 'alt="a < b"' in html.unescape(page)
        assert not re.search(r"<(?:script|link)[^>]+(?:src|href)=\"http", page)
        assert "A title" in (tmp_path / "out/index.html").read_text()

    def test_a_notebook_that_fails_is_named_and_not_kept(self, build, here, capsys):
        script = build.SOURCE / "00_one.py"
        script.write_text(script.read_text().replace("41", "1 / 0"))
        assert build.main(["execute"]) == 1
        shown = capsys.readouterr().err
        assert "ZeroDivisionError" in shown and "did not run to their end: 00_one" in shown
        assert not (here / "00_one.ipynb").exists()
        assert build.main(["execute", "00_ome"]) == 1
        assert "Did you mean '00_one'?" in capsys.readouterr().err
