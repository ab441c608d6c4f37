"""The notebooks as assignments for nbgrader and Otter-Grader: ``python notebooks/graders.py``.

Both call the checks of the course, `sobook.course.exercises.judge`; what they add is handing out,
collecting and a database of points. See docs/teaching/grading.md for how to use what this writes.

* ``nbgrader --out COURSE`` writes ``source/NN_name/NN_name.ipynb``: after each exercise a locked
  cell with a point for it, and ``nbgrader_config.py``.
* ``otter --out FOLDER`` writes ``NN_name/NN_name.ipynb`` as it is, and a file per exercise in
  ``NN_name/tests``.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

try:
    import nbformat
except ImportError:
    sys.exit("graders.py needs the environment of the course: source .venv/bin/activate")

HERE = Path(__file__).resolve().parent
CHECK = re.compile(r'exercises\.check\("(\d\d)\.(\d+)", (\w+)\)')

NBGRADER_CONFIG = """\
from nbgrader.converters.generate_assignment import GenerateAssignment

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "sobook"
# The exercises have stubs of their own, which nbgrader would replace.
c.GenerateAssignment.preprocessors = [
    step for step in GenerateAssignment().preprocessors if step.__name__ != "ClearSolutions"
]
c.ExecutePreprocessor.timeout = 900  # seconds per cell: the first notebook may have to train
"""
# The point is the verdict's: what a check says of a right answer may be more than "right."
POINT = """\
verdict = exercises.judge("{exercise}", {function})
assert verdict.passed, verdict.message"""
OTTER_TEST = '''\
OK_FORMAT = True

code = r"""
>>> from sobook.course import exercises
{code}
"""
case = {{"code": code, "hidden": False, "locked": False}}
suite = {{"type": "doctest", "scored": True, "cases": [case]}}
test = {{"name": "{name}", "points": 1, "suites": [suite]}}
'''


def stubs(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, str, str]]:
    """The cells that check an exercise: (position, exercise, the student's function)."""
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and (found := CHECK.search(cell.source)):
            yield position, f"{found[1]}.{found[2]}", found[3]


def for_nbgrader(notebook: nbformat.NotebookNode) -> None:
    """Mark the exercises as answers, and put a locked cell with a point after each; in place."""
    for position, exercise, function in reversed(list(stubs(notebook))):
        place = exercise.replace(".", "-")
        answer = {"schema_version": 3, "task": False, "solution": True, "grade": False}
        answer |= {"grade_id": f"answer-{place}", "locked": False}
        notebook.cells[position].metadata["nbgrader"] = answer
        code = POINT.format(exercise=exercise, function=function)
        test = nbformat.v4.new_code_cell(code, id=f"point-{place}")
        point = {"grade_id": f"point-{place}", "locked": True, "points": 1}
        test.metadata["nbgrader"] = answer | {"solution": False, "grade": True} | point
        notebook.cells.insert(position + 1, test)


def write(grader: str, out: Path) -> None:
    """Write the assignments of all notebooks for one of the graders."""
    for path in sorted(HERE.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        folder = out / "source" / path.stem if grader == "nbgrader" else out / path.stem
        tests = folder if grader == "nbgrader" else folder / "tests"
        tests.mkdir(parents=True, exist_ok=True)
        if grader == "nbgrader":
            for_nbgrader(notebook)
        else:
            for _, exercise, function in stubs(notebook):
                name = f"ex_{exercise.replace('.', '_')}"
                code = indent(POINT.format(exercise=exercise, function=function), ">>> ")
                text = OTTER_TEST.format(name=name, code=code)
                (tests / f"{name}.py").write_text(text, encoding="utf-8")
        nbformat.write(notebook, folder / path.name)
    if grader == "nbgrader":
        (out / "nbgrader_config.py").write_text(NBGRADER_CONFIG, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="graders.py", description=__doc__.splitlines()[0])
    parser.add_argument("grader", choices=("nbgrader", "otter"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    write(options.grader, options.out)
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
