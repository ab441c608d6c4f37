"""Grading: run students' notebooks in fresh kernels and collect the verdicts of their checks.

Of a notebook only the code counts; where there is no verdict, the table says why. A failure of the
grader itself is an empty cell, not a 0. Start with `grade_class`; `grade` is for one notebook.
"""

import asyncio
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import sobook
from sobook import files
from sobook.course import exercises
from sobook.course.compare import describe_error
from sobook.errors import SobookError

# Students' code sees no other variables, so no secrets of who grades.
_VARIABLES = "PATH LANG LC_ALL TMPDIR VIRTUAL_ENV OMP_NUM_THREADS CUDA_VISIBLE_DEVICES SOBOOK_MODE"
_CHECK = r"check\([^\"')]*[\"'](\d\d\.\d+)[\"']"
_SELF_TEST = """from sobook.course import exercises, setup
setup()
exercises.check("00.2", lambda before, after: (after - before) / (1 - before))"""
# Points for what `Grade.passed` says; of several files of a student, the first of these counts.
_POINTS = {"yes": "1", "": "", "no": "0", "not checked": "0"}
Row = tuple[str, str, str]  # exercise, passed, reason, as in `Grade`


class Grade(NamedTuple):
    """One exercise of one notebook."""

    student: str
    notebook: str  # the file, seen from the folder that holds them all
    exercise: str  # such as "04.2"; "" where nothing of the notebook could be judged
    passed: str  # "yes", "no", "not checked", or "" where the grader failed
    reason: str  # "right.", what was wrong, or why there is no verdict
    key: str  # digest of the file and of how it was graded


def grade_class(
    notebooks: Sequence[Path],
    out: Path,
    *,
    gradebook: Path | None = None,
    class_list: Path | None = None,
    timeout: float = 900,
    jobs: int = 1,
    execute: bool = True,
) -> Iterator[list[Grade]]:
    """Grade many notebooks, `jobs` at a time, and write the tables after each.

    Args:
        notebooks: .ipynb files; for whose they are see `students`.
        out: the table, CSV. What it holds of unchanged files, graded in the same way, is kept.
        gradebook, class_list: see `write_gradebook` and `read_class_list`.
        timeout, execute: as for `grade`.

    Yields:
        The grades of each notebook, as it is done.

    Raises:
        SobookError: files that cannot be told apart, or nothing can be graded on this machine.
    """
    listed = read_class_list(class_list) if class_list else {}
    owners, before = students(notebooks, listed), _read(out)
    how = (sobook.__version__, os.environ.get("SOBOOK_MODE"), timeout, execute)

    def graded(read: Callable[[], bytes]) -> tuple[str, list[Row]]:
        try:
            content = read()
            key = hashlib.sha256(content + repr(how).encode()).hexdigest()[:16]
            return key, before.get(key) or grade(content, timeout=timeout, execute=execute)
        except Exception as error:  # whatever it is, the other notebooks are to be graded
            return "", [("", "", f"the grader failed: {describe_error(error)}.")]

    test = json.dumps({"cells": [{"cell_type": "code", "source": _SELF_TEST}]})
    if execute and ("00.2", "yes", "right.") not in (rows := graded(test.encode)[1]):
        raise SobookError(f"nothing is graded: here even a right answer fails: {rows[:2][-1][2]}")
    grades = {
        path: [Grade(*owner, "", "", "not graded yet.", "")] for path, owner in owners.items()
    }
    with ThreadPoolExecutor(jobs) as pool:  # threads wait for kernels, which are processes
        running = {pool.submit(graded, path.read_bytes): path for path in owners}
        try:
            for done in as_completed(running):
                path, (key, rows) = running[done], done.result()
                grades[path] = [Grade(*owners[path], *row, key) for row in rows]
                so_far = [grade for of_file in grades.values() for grade in of_file]
                _write(pd.DataFrame(so_far, columns=Grade._fields), out)
                if gradebook is not None:
                    write_gradebook(so_far, gradebook, listed)
                yield grades[path]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # those that wait when it is stopped


def grade(content: bytes, *, timeout: float = 900, execute: bool = True) -> list[Row]:
    """Grade each exercise of a notebook by its last check.

    Args:
        content: of an .ipynb file.
        timeout: seconds for the whole notebook; what was checked until then counts.
        execute: run its code; otherwise the verdicts saved in the file are read.

    Raises:
        Exception: the grader failed, e.g. since no kernel could be started.
    """
    import nbformat

    stopped = ""
    try:
        saved = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
        cells = [nbformat.v4.new_code_cell("".join(cell["source"])) for cell in saved]
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # no JSON, no notebook
        what = describe_error(error) if content.strip() else "it is empty"
        return [("", "not checked", f"the file cannot be read as a notebook: {what}.")]
    if execute:
        stopped, saved = _run(nbformat.v4.new_notebook(cells=cells), timeout), cells
    verdicts: dict[str, tuple[str, str]] = {}
    for output in [output for cell in saved for output in cell.get("outputs", ())]:
        record = output.get("metadata", {}).get("sobook")
        if isinstance(record, dict) and record.get("exercise") in exercises.known():
            passed = "yes" if record.get("passed") is True else "no"
            verdicts[record["exercise"]] = passed, str(record.get("message"))
    checked = re.findall(_CHECK, "\n".join(cell.source for cell in cells))
    numbers = [exercise[:2] for exercise in [*checked, *verdicts]]
    usual = exercises.known(max(numbers, key=numbers.count)) if numbers else ()
    asked = {*usual, *verdicts, *checked} & {*exercises.known()}
    if not asked:
        return [("", "not checked", stopped or "it has no exercise: is it of the course?")]
    return [
        (exercise, *(verdicts.get(exercise) or ("not checked", _why(exercise, cells, stopped))))
        for exercise in sorted(asked)
    ]


def _run(notebook: Any, timeout: float) -> str:
    """Execute in place, in empty folders; returns why it was cut short, if it was."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    environment = {key: value for key in _VARIABLES.split() if (value := os.environ.get(key))}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="sobook-grade-") as folder:
        begun: list[int] = []  # by their own count: a kernel that dies does not tell where
        data = Path(folder, "data")
        data.mkdir()
        for entry in files.data_root().glob("*"):  # data sets; what notebooks write is their own
            if entry.is_dir() and entry.name not in ("predictions", "runs", "cache"):
                (data / entry.name).symlink_to(entry.resolve())
        environment |= {"HOME": folder, "SOBOOK_DATA": str(data)}
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            allow_errors=True,  # later exercises may still be right
            timeout=None,
            store_widget_state=False,
            resources={"metadata": {"path": folder}},
            on_cell_execute=lambda cell, cell_index: begun.append(cell_index + 1),
            # Through files, not TCP, which other users of the machine could listen to.
            config=Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{folder}/kernel"}),
        )
        start = time.monotonic()
        try:
            asyncio.run(asyncio.wait_for(client.async_execute(env=environment), timeout))
        except Exception as error:  # of asyncio, nbclient, the kernel: they share no base class
            if not begun:
                raise  # before any code of the student's
            late = time.monotonic() - start >= timeout  # then any error may come of it
            what = f"after {timeout:g} seconds" if late else f"by {describe_error(error)}"
            return f"the notebook was stopped {what}, in code cell {begun[-1]}."
    return ""


def _why(exercise: str, cells: Sequence[Any], stopped: str) -> str:
    """Why there is no verdict on an exercise."""
    errors, place = {}, 0
    for i, cell in enumerate(cells, 1):
        place = i if exercise in re.findall(_CHECK, cell.source) else place
        for output in cell.outputs:
            if output.output_type == "error":
                errors[i] = f"{output.ename}: {output.evalue}"[:200]
    if not place:
        return "no cell checks it: the cell was removed or changed."
    if place in errors:
        first = f" The first error, in code cell {min(errors)}: {errors[min(errors)]}"
        return f"its cell stopped with {errors[place]}.{first if min(errors) < place else ''}"
    after = any(cell.execution_count for cell in cells[place:])
    return f"not reached: {stopped}" if stopped and not after else "its cell showed no verdict."


def students(
    notebooks: Iterable[Path], listed: Collection[str] = ()
) -> dict[Path, tuple[str, str]]:
    """Whose each notebook is.

    Files of one folder are one student's, who is called by the shortest part of the folders' paths
    that tells them apart: ``Ada_1`` of ``Ada_1/notebooks``, ``groupA/ada`` where it takes both. If
    all files lie in one folder, each is a student's. A folder in `listed` is a student wherever it
    stands.

    Returns:
        path → student, and the path as seen from the folder that holds all notebooks.

    Raises:
        SobookError: a file is missing, or which student or which file is meant is not clear.
    """
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in notebooks))
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise SobookError(f"no such notebook: {', '.join(missing[:3])}.")
    top = Path(os.path.commonpath([path.parent for path in paths]))
    names = {path: path.relative_to(top) for path in paths}
    homes = {path: name.parent.parts or (name.stem,) for path, name in names.items()}
    depth = max(map(len, homes.values()))
    for part in [slice(i, i + n) for n in range(1, depth + 1) for i in range(depth - n + 1)]:
        labels = {home: "/".join(home[part]) for home in homes.values()}
        if all(labels.values()) and len({*labels.values()}) == len(labels):
            break  # as the last part, all of the path, does
    owners, seen = {}, dict[tuple[str, str], Path]()
    for path, name in names.items():
        parts = (labels[homes[path]], path.stem, *reversed(name.parent.parts or (top.name,)))
        student = next((part for part in parts if part in listed), parts[0])
        owners[path] = student, str(name)
        if (other := seen.setdefault((student, path.name), name)) != name:
            raise SobookError(f"{other} and {name} are both {student}'s: move one of them away.")
    everybody = {student for student, _ in owners.values()}
    for student in everybody:
        if above := {str(parent) for parent in Path(student).parents} & everybody:
            raise SobookError(f"{student} lies in {above.pop()}: are they one student or two?")
    return owners


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
        must = "CSV with the columns folder, id and, if you like, name, and each folder once"
        what = f"class list {path}: {describe_error(error)}"
        raise SobookError(f"{what}. It must be {must}.") from None


def write_gradebook(
    grades: Iterable[Grade], out: Path, class_list: Mapping[str, Mapping[str, str]]
) -> None:
    """Write one row per student and one column per exercise: 1 or 0.

    A cell is empty if nothing was handed in, or if the grader failed; then the sum is, too. The
    last column, note, says why there is no verdict, of whom there is no notebook, and who is not in
    the class list. Students of the list get a row in any case.
    """
    table, rows = pd.DataFrame(grades, columns=Grade._fields), []
    for student in sorted({*table["student"], *class_list}):
        own, marks = table[table["student"] == student], {}
        for passed in reversed(_POINTS):
            marks |= dict.fromkeys(own.loc[own["passed"] == passed, "exercise"], _POINTS[passed])
        left = own["passed"].isin(["", "not checked"]) & (own["exercise"].map(marks) != "1")
        whys = own[left].groupby(["notebook", "reason"], sort=False)["exercise"].agg(" ".join)
        notes = [f"{Path(file).name} {of}".strip() + f": {why}" for (file, why), of in whys.items()]
        if class_list and student not in class_list:
            notes.insert(0, "not in the class list")
        total = "" if "" in set(own["passed"]) else list(marks.values()).count("1")
        note = "; ".join(notes) if len(own) else "no notebook was given"
        row = {"student": student, "passed": total, "note": note} | marks
        rows.append(row | dict(class_list.get(student, {})))
    about = ["student", "id", "name"] if class_list else ["student"]
    columns = [*about, *sorted({*table["exercise"]} - {""}), "passed", "note"]
    _write(pd.DataFrame(rows, columns=columns), out)


def _read(out: Path) -> dict[str, list[Row]]:
    """What an earlier grading says of each file, by its key."""
    if not out.exists():
        return {}
    table = pd.read_csv(out, dtype=str, keep_default_na=False)
    if tuple(table) != Grade._fields:
        raise SobookError(f"{out} exists and is no table of grades: give another name.")
    table = table[table["key"] != ""].drop_duplicates(["key", "exercise"])  # copies: once is enough
    rows = table.groupby("key")[["exercise", "passed", "reason"]]
    return {key: list(of_file.itertuples(index=False, name=None)) for key, of_file in rows}


def _write(table: pd.DataFrame, out: Path) -> None:
    """Write CSV whose texts are single lines that no spreadsheet takes for a formula."""
    lines = table.fillna("").astype(str).replace(r"\s+", " ", regex=True)
    safe = lines.replace(r"^ ?(?=[=+@-])", "'", regex=True)
    files.write_text(out.expanduser(), safe.to_csv(index=False))
