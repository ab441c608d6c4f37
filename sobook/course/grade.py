"""Grading: run students' notebooks in fresh kernels and collect the verdicts of their checks.

A notebook that is broken in any way becomes lines of the table that say so, never an error.
Start with `grade`; `write_gradebook` makes a row per student of its table.
"""

import asyncio
import csv
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from sobook import files
from sobook.course import exercises
from sobook.course.compare import describe_error
from sobook.errors import SobookError

# Students' code sees no other variables, so no secrets of who grades.
_VARIABLES = "PATH LANG LC_ALL TMPDIR VIRTUAL_ENV OMP_NUM_THREADS CUDA_VISIBLE_DEVICES SOBOOK_MODE"


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
    """Grade each exercise of a notebook, in order, by its last check.

    Args:
        path: an .ipynb file.
        name: what the table calls it; default: the file's name.
        timeout: seconds for the whole notebook; what was checked until then counts.
        execute: run it; otherwise the verdicts saved in the file are read.
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
    numbers = sorted({*checked}) or re.findall(r"^(\d\d)_", path.name)
    missing = "not checked: the cell with exercises.check was removed, or never reached."
    missing = f"{missing} {stopped}".strip()
    grades = {e: Grade(name, e, False, missing) for n in numbers for e in exercises.known(n)}
    for output in [output for cell in code for output in cell.get("outputs", ())]:
        record = output.get("metadata", {}).get("sobook")
        if record and record["exercise"] in grades:
            verdict = record["passed"] is True, record["message"]
            grades[record["exercise"]] = Grade(name, record["exercise"], *verdict)
    nothing = stopped or "no exercise was found in it: is it a notebook of the course?"
    return list(grades.values()) or [Grade(name, "", False, nothing)]


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
    """Student that a file of the table belongs to: its folder, else its stem."""
    return name.rpartition("/")[0] or Path(name).stem


def read_class_list(path: str | os.PathLike) -> dict[str, dict[str, str]]:
    """Read a class list, CSV with the columns folder, id and, optionally, name: by folder.

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
    rows = [asdict(grade) | {"passed": "yes" if grade.passed else "no"} for grade in grades]
    return _write_csv(("notebook", "exercise", "passed", "reason"), rows, out)


def write_gradebook(
    grades: Iterable[Grade],
    out: str | os.PathLike,
    class_list: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write one row per student and one column per exercise: 1, 0, or empty if not handed in.

    The last column, note, names what a person has to look at: a file that cannot be read, nothing
    handed in, a folder that is not in the class list. Students of the list get a row in any case.
    """
    handed_in: dict[str, list[Grade]] = {student: [] for student in class_list or ()}
    for grade in grades:
        handed_in.setdefault(student_of(grade.notebook), []).append(grade)
    rows: list[dict] = []
    columns: set[str] = set()
    for student, own in sorted(handed_in.items()):
        marks = {grade.exercise: 0 for grade in own if grade.exercise}
        marks |= {grade.exercise: 1 for grade in own if grade.passed}  # passed once is passed
        notes = [f"{Path(g.notebook).name}: {g.reason}" for g in own if not g.exercise]
        if class_list is not None and student not in class_list:
            notes.insert(0, "not in the class list")
        note = "; ".join(notes) or ("" if own else "not handed in")
        row = {"student": student, "passed": sum(marks.values()), "note": note, **marks}
        rows.append(row | dict((class_list or {}).get(student, {})))
        columns |= marks.keys()
    about = ["student"] if class_list is None else ["student", "id", "name"]
    return _write_csv([*about, *sorted(columns), "passed", "note"], rows, out)


def _write_csv(columns: Sequence[str], rows: Iterable[Mapping], out: str | os.PathLike) -> Path:
    """Write rows whose texts are single lines that no spreadsheet takes for a formula."""
    out, lines = Path(out).expanduser(), [columns]
    for row in rows:
        texts = [" ".join(str(row.get(column, "")).split()) for column in columns]
        lines.append(
            [f"'{text}" if text.startswith(("=", "+", "-", "@")) else text for text in texts]
        )
    with files.replacing(out) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return out
