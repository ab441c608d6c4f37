"""Grading: whose a notebook is, its points, and a true reason for each that is missing."""

import csv
import re

import nbformat
import pytest

from sobook import files
from sobook.cli import main
from sobook.course import exercises, grade as grading
from sobook.errors import SobookError

KNOWN = exercises.known("00")
SETUP = "from sobook.course import exercises"
RIGHT = "exercises.check('00.2', lambda before, after: (after - before) / (1 - before))"


def notebook(path, *cells, passed=()):
    """Write a notebook; verdicts of the exercises in `passed` are saved with its last cell."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    for exercise in passed:
        record = {"exercise": exercise, "passed": True, "message": "right."}
        shown = nbformat.v4.new_output("display_data", {}, metadata={"sobook": record})
        code[-1].outputs.append(shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)
    return path


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def judged(*cells, folder, timeout=120):
    """What running a notebook gives: exercise → passed, reason."""
    content = notebook(folder / "a.ipynb", *cells).read_bytes()
    return {row[0]: row[1:] for row in grading.grade(content, timeout=timeout)}


def test_points_and_reasons_of_one_notebook(tmp_path):
    cells = [
        "import nowhere",
        SETUP,
        "exercises.check('00.1', lambda x, y, k: 100.0)",
        RIGHT,
        "exercises.check('00.3', undefined)",
        "import os; os._exit(1)",
        "exercises.check('00.4', 'abe')",
        "exercises.check('01.1', print)",
    ]
    result = judged(*cells, folder=tmp_path)
    assert [result[e][0] for e in KNOWN] == ["no", "yes", "not checked", "not checked"]
    assert "expected" in result["00.1"][1] and result["00.2"][1] == "right."
    assert "NameError: name 'undefined'" in result["00.3"][1]
    assert "code cell 1: ModuleNotFoundError: No module named 'nowhere'" in result["00.3"][1]
    assert "not reached" in result["00.4"][1] and "code cell 6" in result["00.4"][1]
    assert [name for name in result if name not in KNOWN] == ["01.1"]  # not all of notebook 01


def test_a_notebook_without_end_is_stopped(tmp_path):
    result = judged("while True: pass", "exercises.check('00.1', 1)", folder=tmp_path, timeout=5)
    assert "not reached" in result["00.1"][1] and "after 5 seconds" in result["00.1"][1]
    assert result["00.2"] == ("not checked", "no cell checks it: the cell was removed or changed.")


def test_saved_verdicts_do_not_count_unless_asked_for(tmp_path):
    """Anybody can write verdicts into a file; only a run shows them."""
    content = notebook(tmp_path / "a", "pass  # check('00.2')", passed=["00.2"]).read_bytes()
    read, run = (grading.grade(content, execute=execute)[1] for execute in (True, False))
    assert (read[1], run[1]) == ("not checked", "yes") and "no verdict" in read[2]


def test_a_submission_has_folders_of_its_own(tmp_path, monkeypatch):
    """It sees the grader's pictures, but no predictions, and leaves nothing behind."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    (tmp_path / "aviary").mkdir()
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/00.a.json").write_text("0.5")
    code = """
from sobook.course import exercises
from sobook.course.predictions import predict
from sobook import files
predict("00.b", 0.25)
seen = sorted(path.name for path in files.data_root().iterdir())
own = len(list((files.data_root() / "predictions").iterdir())) == 1
exercises.check("00.4", "abe" if own and seen == ["aviary", "predictions"] else "")"""
    assert judged(code, folder=tmp_path)["00.4"][0] == "yes"
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["00.a.json"]


SUBMISSIONS = {  # what is broken: the file's content, and what the reason has to say
    "empty": (b"", "is empty"),
    "text": (b"not json", "cannot be read"),
    "picture": (b"\x89PNG\xff", "cannot be read"),
    "no source": (b'{"cells": [{"cell_type": "code"}]}', "KeyError: 'source'"),
    "no cells": (b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5}', "cannot be read"),
}


def test_a_class_of_sixty_with_five_broken_submissions(tmp_path, capsys):
    """Verdicts of their files are read, not run, which the other tests do."""
    students = [f"Student {i}_{1000 + i}_assignsubmission_file_" for i in range(60)]
    paths = [tmp_path / "in" / student / "work" / "00_start_here.ipynb" for student in students]
    for i, path in enumerate(paths):
        notebook(path, "exercises.check('00.1')", passed=KNOWN[: i % 5])
    for path, (content, *_) in zip(paths[7::11], SUBMISSIONS.values(), strict=True):
        path.write_bytes(content)
    out, book = tmp_path / "grades.csv", tmp_path / "class.csv"
    options = ["--out", str(out), "--gradebook", str(book), "--no-execute", "--jobs", "2"]
    assert main(["grade", *map(str, paths), *options]) == 0
    assert "00_start_here.ipynb: 4 of 4 passed" in capsys.readouterr().out
    table = {row["student"]: row for row in rows(book)}
    assert sorted(table) == sorted(students)
    broken = dict(zip(students[7::11], SUBMISSIONS.values(), strict=True))
    for i, student in enumerate(students):
        row = table[student]
        if student in broken:
            assert broken[student][1] in row["note"] and row["passed"] == "0"
            assert [row[exercise] for exercise in KNOWN] == [""] * 4
            continue
        assert [row[e] for e in KNOWN] == [str(int(n < i % 5)) for n in range(4)]
        assert row["passed"] == str(i % 5)
        assert ("00.2 00.3 00.4: no cell checks it" in row["note"]) == (i % 5 < 2)
        assert ("no verdict" in row["note"]) == (i % 5 == 0)
    reasons = [row["reason"] for row in rows(out)]
    assert len(reasons) == 55 * 4 + 5 and all(reasons)


def test_a_stopped_grading_resumes(tmp_path, monkeypatch):
    paths = [tmp_path / f"{name}.ipynb" for name in "abcd"]
    for path in paths:
        notebook(path, f"check('00.2')  # by {path.stem}", passed=["00.2"])
    out, book, done, stops = tmp_path / "grades.csv", tmp_path / "class.csv", [], ["b"]
    grade = grading.grade

    def watched(content, **options):
        done.append(re.search(rb"# by (\w+)", content)[1].decode())
        if done[-1] in stops:
            raise OSError("no space left")
        return grade(content, **options)

    monkeypatch.setattr(grading, "grade", watched)
    arguments = ["grade", *map(str, paths), "--no-execute", "--out", str(out)]
    arguments += ["--gradebook", str(book)]
    assert main(arguments) == 1  # the grader failed, not the student
    marks = [(row["00.2"], row["passed"], "no space left" in row["note"]) for row in rows(book)]
    assert marks[:3] == [("1", "1", False), ("", "", True), ("1", "1", False)]
    stops.clear()
    assert main(arguments) == 0 and done == [*"abcd", "b"]
    notebook(paths[3], "check('00.2')  # by d, again", passed=["00.2"])
    assert main(arguments) == 0 and done[5:] == ["d"]
    assert main([*arguments, "--timeout", "5"]) == 0 and done[6:] == [*"abcd"]
    assert [row["00.2"] for row in rows(book)] == ["1"] * 4
    next(grading.grade_class(paths, tmp_path / "other.csv", execute=False))  # and stopped
    reasons = [row["reason"] for row in rows(tmp_path / "other.csv")]
    assert len(reasons) == len(KNOWN) + 3 and reasons.count("not graded yet.") == 3


@pytest.mark.parametrize(
    "variable, value, reason",
    [("SOBOOK_MODE", "fulll", "SOBOOK_MODE 'fulll'"), ("JUPYTER_PATH", "{}", "Kernel died")],
)
def test_where_nothing_can_be_graded_nothing_is(
    tmp_path, monkeypatch, capsys, variable, value, reason
):
    spec = {"argv": ["false"], "display_name": "no kernel", "language": "python"}
    files.write_json(tmp_path / "kernels/python3/kernel.json", spec)
    monkeypatch.setenv(variable, value.format(tmp_path))
    path, out = notebook(tmp_path / "a.ipynb", RIGHT), tmp_path / "grades.csv"
    assert main(["grade", str(path), "--out", str(out)]) == 1
    assert reason in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "given, students",
    [
        ("00_ada 00_bob", "00_ada 00_bob"),
        ("ada/00 ada/01 bob/00", "ada ada bob"),
        ("Ada_1/notebooks/00 Bob_2/notebooks/00", "Ada_1 Bob_2"),
        ("Ada_1/00 Bob_2/notebooks/00", "Ada_1 Bob_2"),
        ("groupA/ada/00 groupB/ada/00 groupB/bob/00", "groupA/ada groupB/ada groupB/bob"),
        ("groupA/ada/00_ada groupA/bob/00_bob groupB/eve/00", "ada bob eve"),
        ("week1/ada/00 week2/ada/01 week2/bob/01", "week1/ada week2/ada week2/bob"),
        ("week1/ada/00 week2/ada/01 week2/bob/01 | ada bob", "ada ada bob"),
        ("ada bob/00", "ada bob"),
        ("in/ada/00 in/ada/01 | ada", "ada ada"),
        ("ada/00 | bob", "00"),
        ("ada/in/bob/00 ada/in/eve/00 | ada eve", "bob eve"),
        ("ada/00 ada/old/00 bob/00", SobookError),
        ("ada/00 ada/old/00 bob/00 | ada", SobookError),
        ("groupA/ada/00 groupB/ada/00 | ada", SobookError),
    ],
)
def test_students_are_told_apart_by_the_shortest_part_of_the_path(tmp_path, given, students):
    given, _, listed = given.partition(" | ")
    paths = [tmp_path / f"{file}.ipynb" for file in given.split()]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if students is SobookError:
        with pytest.raises(SobookError, match="ada/00.ipynb|ada/old"):
            grading.students(paths, listed.split())
    else:
        owners = grading.students([*paths, paths[0]], listed.split())
        assert [student for student, _ in owners.values()] == students.split()


def test_a_class_list_gives_everybody_a_row_and_says_what_is_missing(tmp_path):
    paths = [tmp_path / student / "05.ipynb" for student in ("f1", "f2", "f9")]
    for path in paths:
        notebook(path, "exercises.check('05.1', x)", passed=["05.1"])
    paths[1].write_text("broken")
    listed, gradebook = tmp_path / "class_list.csv", tmp_path / "class.csv"
    listed.write_text("folder,id,name\nf1,=ADA,Ada L.\nf2,bob,Bob\nf3,eve,Eve\n", "utf-8-sig")
    options = ["--no-execute", "--out", str(tmp_path / "g.csv"), "--gradebook", str(gradebook)]
    options += ["--class-list", str(listed)]
    assert main(["grade", *map(str, paths), *options]) == 0
    book = rows(gradebook)
    assert [(row["student"], row["id"], row["name"], row["05.1"]) for row in book] == [
        ("f1", "'=ADA", "Ada L.", "1"),  # no formula
        ("f2", "bob", "Bob", ""),
        ("f3", "eve", "Eve", ""),
        ("f9", "", "", "1"),
    ]
    notes = [row["note"] for row in book]
    assert "05.ipynb: the file cannot be read" in notes[1] and notes[2] == "no notebook was given"
    assert notes[3].startswith("not in the class list")


@pytest.mark.parametrize(
    "content, out, word",
    [
        ("name\nada\n", "g.csv", "class list"),
        ("folder,id\na,1\na,2\n", "g.csv", "class list"),
        ("folder,id\na,1\n", "list.csv", "no table of grades"),
    ],
)
def test_a_bad_class_list_is_one_sentence(tmp_path, content, out, word, capsys):
    path, listed = notebook(tmp_path / "a.ipynb", RIGHT), tmp_path / "list.csv"
    listed.write_text(content)
    options = ["--out", str(tmp_path / out), "--class-list", str(listed)]
    assert main(["grade", str(path), *options]) == 1
    assert word in capsys.readouterr().err and listed.read_text() == content


def test_nothing_to_grade_is_an_error(tmp_path, capsys):
    assert main(["grade", "--out", str(tmp_path / "g.csv")]) == 1
    assert main(["grade", str(tmp_path / "*.ipynb"), "--out", str(tmp_path / "g.csv")]) == 1
    assert capsys.readouterr().err.count("notebook") == 2
