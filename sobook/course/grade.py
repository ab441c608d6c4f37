"""Grading: run students' notebooks in fresh kernels and collect the verdicts of their checks.

A notebook that is broken in any way becomes lines of the table that say so, never an error. What
`check` shows carries its verdict as metadata; where an exercise is checked several times, the last
verdict counts.
"""

import csv
import os
import re
import tempfile
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sobook import files
from sobook.course import exercises
from sobook.course.compare import describe_error
from sobook.errors import SobookError

_NO_VERDICT = "not checked: the cell with exercises.check was removed, or never reached."
# Of the environment, students' code sees nothing else.
_KEPT_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("SOBOOK_MODE", "SOBOOK_WORKSHEET_SALT"),
)


@dataclass(frozen=True)
class Grade:
    """One exercise of one notebook."""

    notebook: str  # the file's name
    exercise: str  # such as "04.2"; "" where nothing of the notebook could be judged
    passed: bool
    reason: str  # "right.", or what was wrong


@dataclass(frozen=True)
class Student:
    """One line of a class list."""

    id: str  # that of the worksheet
    name: str


def grade(
    path: str | os.PathLike,
    *,
    name: str = "",
    student: str = "",
    timeout: float = 900,
    execute: bool = True,
) -> list[Grade]:
    """Grade one notebook.

    Args:
        path: an .ipynb file.
        name: what the table calls it; default: the file's name.
        student: whose it is; then tasks of another student's worksheet do not count.
        timeout: seconds for the whole notebook; what was checked until then counts.
        execute: run it; otherwise the verdicts saved in the file are read.

    Returns:
        One `Grade` for each exercise of the notebook, in order.
    """
    try:
        import nbformat
    except ImportError:
        raise ImportError("grading needs the extra: pip install 'sobook[notebooks]'") from None
    path, stopped = Path(path), None
    name = name or path.name
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # of many kinds: missing, no JSON, not a notebook
        return [Grade(name, "", False, f"the file cannot be read: {describe_error(error)}.")]
    if execute:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        try:
            stopped = _run(notebook, timeout)
        except Exception as error:  # a kernel that does not start, or dies
            stopped = f"the notebook stopped: {describe_error(error)}."
    verdicts, wanted = _verdicts(notebook), _wanted(path, notebook)
    for one in wanted:
        if one.endswith(".v") and verdicts.get(one, (False,))[0]:
            verdicts[one] = _own(verdicts[one][1], student, notebook)
    if not wanted:
        reason = stopped or "no exercise was found in it: is it a notebook of the course?"
        return [Grade(name, "", False, reason)]
    missing = f"{_NO_VERDICT} {stopped}" if stopped else _NO_VERDICT
    return [Grade(name, one, *verdicts.get(one, (False, missing))) for one in wanted]


def names(paths: Sequence[Path], listed: Collection[str] = ()) -> list[str]:
    """What a table calls these files: the file's name, after its folder if there are several.

    A class hands in a hundred files called ``00_start_here.ipynb``, each in a student's folder.

    Args:
        paths: the files.
        listed: folders of a class list.
    """
    several = len({path.parent for path in paths}) > 1
    return [
        f"{path.parent.name}/{path.name}" if several or path.parent.name in listed else path.name
        for path in paths
    ]


def student_of(name: str) -> str:
    """Whose a file of a table is: the name of its folder or, without one, its own.

    >>> student_of("ada/00_start_here.ipynb"), student_of("00_ada.ipynb")
    ('ada', '00_ada')
    """
    folder, _, file = name.rpartition("/")
    return folder or Path(file).stem


def read_class_list(path: str | os.PathLike) -> dict[str, Student]:
    """A class list, CSV with the columns folder, id and, if you like, name: folder → student.

    Raises:
        SobookError: no such file or columns, or a folder twice.
    """
    students: dict[str, Student] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            for row in csv.DictReader(file):
                folder, student = row["folder"].strip(), row["id"].strip()
                if folder in students:
                    raise SobookError(f"the class list {path} has the folder {folder!r} twice.")
                students[folder] = Student(student, (row.get("name") or "").strip())
    except (OSError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise SobookError(
            f"the class list {path} cannot be read ({describe_error(error)}): it must be CSV with "
            "the columns folder, id and, if you like, name."
        ) from None
    return students


def write(grades: Iterable[Grade], out: str | os.PathLike) -> Path:
    """Write grades as CSV (UTF-8), with a header."""
    rows = [
        (_inert(one.notebook), one.exercise, "yes" if one.passed else "no", _inert(one.reason))
        for one in grades
    ]
    return _write_csv([("notebook", "exercise", "passed", "reason"), *rows], out)


def write_gradebook(
    grades: Iterable[Grade],
    out: str | os.PathLike,
    class_list: Mapping[str, Student] | None = None,
) -> Path:
    """Write one row per student and one column per exercise: 1, 0, or empty if not handed in.

    The last column, note, says what a person has to look at: a file that cannot be read, nothing
    handed in, a folder that is not in the class list.

    Args:
        grades: of all notebooks; whose each is, see `student_of`.
        out: the CSV to write.
        class_list: students who get a row whether or not they handed anything in.
    """
    marks: dict[str, dict[str, int]] = {student: {} for student in class_list or ()}
    notes: dict[str, list[str]] = {}
    for one in grades:
        student = student_of(one.notebook)
        if class_list is not None and student not in class_list and student not in marks:
            notes[student] = ["not in the class list"]
        row = marks.setdefault(student, {})
        if one.exercise:  # passed once is passed
            row[one.exercise] = max(int(one.passed), row.get(one.exercise, 0))
        else:
            notes.setdefault(student, []).append(f"{Path(one.notebook).name}: {one.reason}")
    columns = sorted(set().union(*marks.values()))
    rows = []
    for student, row in sorted(marks.items()):
        listed = (class_list or {}).get(student, Student("", ""))
        about = (listed.id, listed.name) if class_list is not None else ()
        note = "; ".join(notes.get(student, [] if row else ["not handed in"]))
        points = (row.get(name, "") for name in columns)
        rows.append((*map(_inert, (student, *about)), *points, sum(row.values()), _inert(note)))
    about = ("id", "name") if class_list is not None else ()
    return _write_csv([("student", *about, *columns, "passed", "note"), *rows], out)


def _write_csv(rows: Iterable[Sequence], out: str | os.PathLike) -> Path:
    out = Path(out).expanduser()
    with files.replacing(out) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return out


def _inert(text: str) -> str:
    """One line that no spreadsheet takes for a formula."""
    text = " ".join(text.split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _run(notebook, timeout: float) -> str | None:
    """Execute in place, in an empty folder; returns why it was cut short, if it was."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    environment = {key: value for key in _KEPT_VARIABLES if (value := os.environ.get(key))}
    environment["SOBOOK_DATA"] = str(files.data_root().resolve())
    temporary = tempfile.TemporaryDirectory
    with temporary(prefix="sobook-grade-") as folder, temporary() as sockets:
        environment["HOME"] = folder
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            allow_errors=True,  # later exercises may still be right
            timeout=None,
            store_widget_state=False,
            record_timing=False,
            resources={"metadata": {"path": folder}},
            # Through files, not TCP, which other users of the machine could listen to.
            config=Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )
        manager = client.create_kernel_manager()
        out_of_time = threading.Event()

        def end() -> None:
            out_of_time.set()
            if process := getattr(manager.provisioner, "process", None):
                process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        try:
            client.execute(env=environment)
        except Exception:
            if not out_of_time.is_set():
                raise
        finally:
            timer.cancel()
        return f"It was stopped after {timeout:g} seconds." if out_of_time.is_set() else None


def _verdicts(notebook) -> dict[str, tuple[bool, str]]:
    """The last verdict of each exercise: (passed, message)."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    records = [output.get("metadata", {}).get("sobook") for output in outputs]
    return {
        str(record["exercise"]): (record["passed"] is True, str(record["message"]))
        for record in records
        if isinstance(record, dict) and set(record) == {"exercise", "passed", "message"}
    }


def _own(said: str, student: str, notebook) -> tuple[bool, str]:
    """What a worksheet's right answer counts: that of another student's sheet does not."""
    whose = said.removeprefix("right, for ").removesuffix(".")
    if student and whose.lower() != student.lower():
        return False, f"not counted: the sheet is that of {whose}, handed in by {student}."
    if any("_answer" in cell.source for cell in notebook.cells if cell.cell_type == "code"):
        return False, f"not counted: the notebook reads the answer from the sheet ({whose})."
    return True, said


def _wanted(path: Path, notebook) -> tuple[str, ...]:
    """The exercises that a notebook should have, and the tasks of a worksheet that it checks."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    numbers = set(re.findall(r"check\(\s*[\"'](\d\d)\.\d+[\"']", code))
    tasks = set(re.findall(r"check\(\s*[\"'](\d\d)[\"']", code))
    if not numbers and not tasks and (in_name := re.match(r"(\d\d)_", path.name)):
        numbers = {in_name.group(1)}
    known = [name for number in sorted(numbers) for name in exercises.known(number)]
    return (*known, *(f"{number}.v" for number in sorted(tasks)))
