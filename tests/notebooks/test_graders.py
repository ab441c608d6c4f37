"""The notebooks as assignments for nbgrader and Otter-Grader.

`make test-graders` runs the programs themselves, in an environment of their own.
"""

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sobook.course import exercises

ROOT = Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"notebooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graders = script("graders")
GIVEN = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture
def written(tmp_path, request):
    assert graders.main([request.param, "--out", str(tmp_path)]) == 0
    return tmp_path


@pytest.mark.parametrize("written", ["nbgrader"], indirect=True)
def test_nbgrader_gets_an_answer_and_a_point_for_each_exercise(written):
    checked = []
    for path in sorted(written.glob("source/*/*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
        assert len({cell.metadata.nbgrader.grade_id for cell in marked}) == len(marked)
        for answer, point in zip(marked[::2], marked[1::2], strict=True):
            assert answer.metadata.nbgrader.solution and not answer.metadata.nbgrader.grade
            assert point.metadata.nbgrader.grade and point.metadata.nbgrader.points == 1
            checked += re.findall(r'judge\("(\d\d\.\d+)"', point.source)
    assert tuple(checked) == exercises.known()
    compile((written / "nbgrader_config.py").read_text(), "config", "exec")


@pytest.mark.parametrize("written", ["otter"], indirect=True)
def test_otter_gets_a_test_for_each_exercise(written):
    checked = []
    for path in sorted(written.glob("*/tests/*.py")):
        variables = {}
        exec(path.read_text("utf-8"), variables)
        assert variables["OK_FORMAT"] is True and variables["test"]["name"] == path.stem
        checked += re.findall(r'judge\("(\d\d\.\d+)"', str(variables["test"]))
        assert (path.parents[1] / f"{path.parents[1].name}.ipynb").exists()
        if path.stem == "ex_00_4":  # its check says more of a right answer than "right."
            code = variables["test"]["suites"][0]["cases"][0]["code"]
    assert tuple(checked) == exercises.known()
    for answer, failures in (("abe", 0), ("c", 1)):
        example = doctest.DocTestParser().get_doctest(code, {"my_objections": answer}, "", "", 0)
        assert doctest.DocTestRunner().run(example, out=lambda _: None).failed == failures


def program(name, *arguments, cwd):
    """Run a grading program as on a teacher's command line."""
    command = [sys.executable, "-m", name, *arguments]
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader's alembic
    environment = os.environ | {"SOBOOK_MODE": "quick", "PATH": search}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def handed_in(path, wrong):
    """The solved notebook, shortened to what its exercises need; or with 00.4 answered wrongly."""
    notebook = nbformat.read(path.parent / "solutions" / path.name, as_version=4)
    script("build").shorten(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"abe"', '"c"' if wrong else '"abe"')
    return notebook


def grade_with_nbgrader(course, path, wrong):
    """Points of the exercises in a notebook, from nbgrader's database."""
    api = pytest.importorskip("nbgrader.api", reason="make test-graders installs nbgrader")
    name = path.stem
    notebook = handed_in(path, wrong)
    graders.for_nbgrader(notebook)
    folder = course / "submitted/ada" / name
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    program("nbgrader", "generate_assignment", name, "--create", "--force", cwd=course)
    program("nbgrader", "autograde", name, "--create", "--force", cwd=course)
    with api.Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        submission = gradebook.find_submission_notebook(name, name, "ada")
        return sum(grade.auto_score for grade in submission.grades)


def grade_with_otter(folder, path, wrong):
    """Points of the exercises in a notebook, as Gradescope gets them from Otter."""
    pytest.importorskip("otter", reason="make test-graders installs Otter-Grader")
    folder /= path.stem
    nbformat.write(handed_in(path, wrong), folder / path.name)
    program("otter", "generate", "-t", "tests", "--no-environment", cwd=folder)
    program("otter", "run", path.name, cwd=folder)
    tests = json.loads((folder / "results.json").read_text())["tests"]
    return sum(test["score"] for test in tests if test["name"].startswith("ex_"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "written, grade",
    [("nbgrader", grade_with_nbgrader), ("otter", grade_with_otter)],
    indirect=["written"],
)
@pytest.mark.parametrize("path", GIVEN, ids=lambda path: path.stem[:2])
def test_the_program_gives_every_solution_its_points(written, grade, path):
    count = len(exercises.known(path.stem[:2]))
    assert grade(written, path, wrong=False) == count
    if path == GIVEN[0]:
        assert grade(written, path, wrong=True) == count - 1
