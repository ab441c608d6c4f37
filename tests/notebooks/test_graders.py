"""The notebooks as assignments for nbgrader and Otter-Grader: structure only.

docs/teaching/grading.md names the versions of the programs that were tried.
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
    assert tuple(checked) == exercises.known()
