"""Grading: run students' notebooks in fresh kernels and collect the verdicts of their checks.

A notebook that is broken in any way becomes lines of the table that say so, never an error. What
`check` shows carries its verdict as metadata; where an exercise is checked several times, the last
verdict counts. Start with `grade`; `write_gradebook` makes a row per student of its table.
"""

import asyncio
import csv
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from sobook import files
from sobook.course import exercises
from sobook.course.compare import describe_error
from sobook.errors import SobookError

_NO_VERDICT = "not checked: the cell with exercises.check was removed, or never reached."
# Students' code sees no other variables, so no secrets of who grades.
_VARIABLES = """
    PATH LANG LC_ALL TMPDIR VIRTUAL_ENV OMP_NUM_THREADS CUDA_VISIBLE_DEVICES SOBOOK_MODE
"""


@dataclass(frozen=True)
class Grade:
    """One exercise of one notebook."""

    notebook: str  # the file's name
    exercise: str  # such as "04.2"; "" where nothing of the notebook could be judged
    passed: bool
    reason: str  # "right.", or what was wrong


def grade(
    path: str | os.PathLike, *, name: str = "", timeout: float = 900, execute: bool = True
) -> list[Grade]:
    """Grade one notebook.

    Args:
        path: an .ipynb file.
        name: what the table calls it; default: the file's name.
        timeout: seconds for the whole notebook; what was checked until then counts.
        execute: run it; otherwise the verdicts saved in the file are read.

    Returns:
        One `Grade` for each exercise of the notebook, in order.
    """
    import nbformat

    path, stopped = Path(path), ""
    name = name or path.name
    try:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    except Exception as error:  # missing, no JSON, not a notebook: they share no base class
        return [Grade(name, "", False, f"the file cannot be read: {describe_error(error)}.")]
    if execute:
        for cell in code:
            cell.outputs, cell.execution_count = [], None
        stopped = _run(notebook, timeout)
    source = "\n".join(cell.source for cell in code)
    checked = re.findall(r"check\(\s*[\"'](\d\d)\.\d+[\"']", source)
    numbers = checked or re.findall(r"^(\d\d)_", path.name)
    wanted = [exercise for number in sorted({*numbers}) for exercise in exercises.known(number)]
    if not wanted:
        reason = stopped or "no exercise was found in it: is it a notebook of the course?"
        return [Grade(name, "", False, reason)]
    outputs = [output for cell in code for output in cell.get("outputs", ())]
    verdicts: dict[str, tuple[bool, str]] = {}
    for output in outputs:
        if record := output.get("metadata", {}).get("sobook"):
            verdicts[record["exercise"]] = (record["passed"] is True, record["message"])
    missing = (False, f"{_NO_VERDICT} {stopped}".strip())
    return [Grade(name, exercise, *verdicts.get(exercise, missing)) for exercise in wanted]


def _run(notebook, timeout: float) -> str:
    """Execute in place, in an empty folder; returns why it was cut short, if it was."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    environment = {key: value for key in _VARIABLES.split() if (value := os.environ.get(key))}
    environment["SOBOOK_DATA"] = str(files.data_root().resolve())
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="sobook-grade-") as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            allow_errors=True,  # later exercises may still be right
            timeout=None,
            store_widget_state=False,
            resources={"metadata": {"path": folder}},
            # Through files, not TCP, which other users of the machine could listen to.
            config=Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{folder}/kernel"}),
        )
        run, start = client.async_execute(env=environment | {"HOME": folder}), time.monotonic()
        try:
            asyncio.run(asyncio.wait_for(run, timeout))
        except Exception as error:  # a kernel that does not start, dies, or is out of time
            if time.monotonic() - start >= timeout:
                return f"It was stopped after {timeout:g} seconds."
            return f"the notebook stopped: {describe_error(error)}."
    return ""


def names(paths: Sequence[Path], listed: Collection[str] = ()) -> list[str]:
    """Names for the table: each file's name, after its folder if it is listed or one of several."""
    several = len({path.parent for path in paths}) > 1
    return [
        f"{path.parent.name}/{path.name}" if several or path.parent.name in listed else path.name
        for path in paths
    ]


def student_of(name: str) -> str:
    """Student that a file of the table belongs to: its folder, else its stem.

    >>> student_of("ada/00_start_here.ipynb"), student_of("00_ada.ipynb")
    ('ada', '00_ada')
    """
    folder, _, file = name.rpartition("/")
    return folder or Path(file).stem


def read_class_list(path: str | os.PathLike) -> dict[str, dict[str, str]]:
    """Read a class list, CSV with the columns folder, id and, optionally, name.

    Returns:
        folder → the student's id and name.

    Raises:
        SobookError: no such file or columns, or a folder twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table = table.assign(name=table.get("name", "")).set_index("folder")
        return table[["id", "name"]].to_dict("index")  # ValueError where a folder comes twice
    except (OSError, ValueError, KeyError) as error:
        raise SobookError(
            f"the class list {path} cannot be read ({describe_error(error)}): it must be CSV with "
            "the columns folder, id and, if you like, name, and each folder once."
        ) from None


def write(grades: Iterable[Grade], out: str | os.PathLike) -> Path:
    """Write grades as CSV (UTF-8): a line per notebook and exercise."""
    rows = [asdict(one) | {"passed": "yes" if one.passed else "no"} for one in grades]
    return _write_csv(("notebook", "exercise", "passed", "reason"), rows, out)


def write_gradebook(
    grades: Iterable[Grade],
    out: str | os.PathLike,
    class_list: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write one row per student and one column per exercise: 1, 0, or empty if not handed in.

    The last column, note, names what a person has to look at: a file that cannot be read, nothing
    handed in, a folder that is not in the class list.

    Args:
        grades: of all notebooks; `student_of` tells the student of each.
        out: the CSV to write.
        class_list: students who get a row whether or not they handed anything in.
    """
    listed, known = class_list or {}, class_list is not None
    marks: dict[str, dict[str, int]] = {student: {} for student in listed}
    notes: dict[str, list[str]] = defaultdict(list)
    for one in grades:
        student = student_of(one.notebook)
        row = marks.setdefault(student, {})
        if one.exercise:  # passed once is passed
            row[one.exercise] = max(int(one.passed), row.get(one.exercise, 0))
        else:
            notes[student].append(f"{Path(one.notebook).name}: {one.reason}")
    rows = []
    for student, row in sorted(marks.items()):
        if known and student not in listed:
            notes[student].insert(0, "not in the class list")
        note = "; ".join(notes[student] or ["" if row else "not handed in"])
        about = {"student": student, **listed.get(student, {})}
        rows.append(about | row | {"passed": sum(row.values()), "note": note})
    about_columns = ["id", "name"] if known else []
    columns = ["student", *about_columns, *sorted(set().union(*marks.values())), "passed", "note"]
    return _write_csv(columns, rows, out)


def _write_csv(columns: Sequence[str], rows: Iterable[Mapping], out: str | os.PathLike) -> Path:
    """Write rows whose texts are single lines that no spreadsheet takes for a formula."""
    out, lines = Path(out).expanduser(), [columns]
    for row in rows:
        texts = [" ".join(str(row.get(column, "")).split()) for column in columns]
        lines.append([f"'{text}" if text[:1] in tuple("=+-@") else text for text in texts])
    with files.replacing(out) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return out
