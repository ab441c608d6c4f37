"""The notebooks as assignments for nbgrader and Otter-Grader: structure only.

The programs themselves are not needed: docs/teaching/grading.md names the versions that were tried.
"""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

from sobook.course import exercises

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("graders", ROOT / "notebooks/graders.py")
graders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(graders)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("assignments")
    for grader in ("nbgrader", "otter"):
        assert graders.main([grader, "--out", str(out / grader)]) == 0
    return out


def test_nbgrader_gets_an_answer_and_a_point_for_each_exercise(written):
    found = []
    for path in sorted((written / "nbgrader/source").glob("*/*.ipynb")):
        assert path.parent.name == path.stem
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
        ids = [cell.metadata.nbgrader.grade_id for cell in marked]
        assert len(set(ids)) == len(ids)
        for answer, point in zip(marked[::2], marked[1::2], strict=True):
            assert answer.metadata.nbgrader.solution and not answer.metadata.nbgrader.grade
            assert point.metadata.nbgrader.grade and point.metadata.nbgrader.locked
            assert point.metadata.nbgrader.points == 1
            found += re.findall(r'judge\("(\d\d\.\d+)"', point.source)
    assert tuple(found) == exercises.known()
    compile((written / "nbgrader/nbgrader_config.py").read_text(), "config", "exec")


def test_otter_gets_a_test_for_each_exercise(written):
    found = []
    for path in sorted((written / "otter").glob("*/tests/*.py")):
        room = {}
        exec(path.read_text("utf-8"), room)
        assert room["OK_FORMAT"] is True and room["test"]["name"] == path.stem
        (suite,) = room["test"]["suites"]
        (case,) = suite["cases"]
        found += re.findall(r'judge\("(\d\d\.\d+)"', case["code"])
        assert (path.parents[1] / f"{path.parents[1].name}.ipynb").exists()
    assert tuple(found) == exercises.known()
