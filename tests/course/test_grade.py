"""Grading: right, wrong, broken and endless notebooks."""

import csv

import nbformat
import pytest

from sobook.cli import main
from sobook.course import exercises, grade as grading

RIGHT = "lambda before, after: (after - before) / (1 - before)"


def notebook(path, *cells, outputs=()):
    """Write a notebook; `outputs` are saved with its last cell."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    code[-1].outputs = list(outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)
    return path


def check(answer, name="00.2"):
    return f"exercises.check({name!r}, {answer})"


SETUP = "from sobook.course import exercises"


def test_a_good_a_wrong_and_a_missing_answer(tmp_path):
    wrong = check("lambda x, y, k: 100.0", "00.1")
    path = notebook(tmp_path / "00_ada.ipynb", SETUP, wrong, check(RIGHT))
    grades = grading.grade(path, timeout=120)
    assert [g.exercise for g in grades] == list(exercises.known("00"))
    assert [g.passed for g in grades] == [False, True, False, False]
    assert "expected" in grades[0].reason and "not checked" in grades[2].reason
    assert {g.notebook for g in grades} == {"00_ada.ipynb"}


def test_errors_and_the_death_of_the_kernel_cost_only_what_comes_after(tmp_path):
    path = notebook(
        tmp_path / "a.ipynb",
        SETUP,
        "1 / 0",
        check(RIGHT),
        "import os; os._exit(1)",
        check("print", "00.1"),
    )
    by_name = {g.exercise: g for g in grading.grade(path, timeout=120)}
    assert by_name["00.2"].passed
    assert not by_name["00.1"].passed and "stopped" in by_name["00.1"].reason


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(1e6)"])
def test_a_notebook_without_end_is_stopped(tmp_path, loop):
    path = notebook(tmp_path / "a.ipynb", loop, SETUP, check(RIGHT))
    grades = grading.grade(path, timeout=5)
    assert [g.exercise for g in grades] == list(exercises.known("00"))
    assert all("stopped after 5 seconds" in g.reason and not g.passed for g in grades)


def test_saved_verdicts_do_not_count_unless_asked_for(tmp_path):
    """What stands in the file is anybody's claim; only a run shows it."""
    path = notebook(tmp_path / "a.ipynb", "pass  # check('00.2')", outputs=[saved("00.2")])
    read = {g.exercise: g.passed for g in grading.grade(path, execute=False)}
    run = {g.exercise: g.passed for g in grading.grade(path, timeout=60)}
    assert read["00.2"] and not run["00.2"]


@pytest.mark.parametrize("content", ["", "not json", "{}", '{"cells": 3}', None])
def test_a_broken_file_is_a_line_of_the_table(tmp_path, content):
    path = tmp_path / "broken.ipynb"
    if content is not None:
        path.write_text(content)
    (row,) = grading.grade(path, timeout=60)
    assert not row.passed and row.reason


def test_the_command_writes_a_table(tmp_path, capsys):
    good = notebook(tmp_path / "00_b.ipynb", SETUP, check(RIGHT))
    broken = tmp_path / "=cmd.ipynb"
    broken.write_text("nothing")
    out = tmp_path / "grades.csv"
    assert main(["grade", str(good), str(broken), "--out", str(out)]) == 0
    asked = len(exercises.known("00"))
    assert f"1 of {asked} passed" in capsys.readouterr().out
    with open(out, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["passed"] for row in rows] == ["no", "yes", *["no"] * (asked - 1)]
    assert rows[-1]["notebook"] == "'=cmd.ipynb"  # no formula


def test_grading_nothing_is_an_error(tmp_path, capsys):
    assert main(["grade", "--out", str(tmp_path / "g.csv")]) == 1
    assert "one notebook or more" in capsys.readouterr().err


def test_a_class_becomes_a_row_per_student_and_a_column_per_exercise(tmp_path, capsys):
    """A hundred students, each with a folder; the verdicts of their files are read, not run."""
    paths = []
    for number in range(100):
        folder = tmp_path / f"student{number:03}"
        folder.mkdir()
        passed = [name for name in exercises.known("00") if number % (int(name[-1]) + 1) == 0]
        outputs = [saved(name) for name in passed]
        path = folder / "00_start_here.ipynb"
        paths.append(notebook(path, "exercises.check('00.1')", outputs=outputs))
    (tmp_path / "student000/01_data.ipynb").write_text("broken")
    paths.append(tmp_path / "student000/01_data.ipynb")
    out, gradebook = tmp_path / "grades.csv", tmp_path / "class.csv"
    options = ["--out", str(out), "--gradebook", str(gradebook), "--no-execute", "--jobs", "2"]
    assert main(["grade", *map(str, paths), *options]) == 0
    with open(out, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["notebook"] == "student000/00_start_here.ipynb"
    assert len(rows) == 100 * len(exercises.known("00")) + 1
    with open(gradebook, encoding="utf-8") as file:
        students = {row["student"]: row for row in csv.DictReader(file)}
    assert len(students) == 100
    assert students["student001"]["passed"] == "0"
    assert (students["student002"]["00.1"], students["student002"]["00.2"]) == ("1", "0")
    assert students["student000"]["passed"] == str(len(exercises.known("00")))


def saved(exercise):
    """The output of a check that passed, as a notebook file holds it."""
    record = {"exercise": exercise, "passed": True, "message": "right."}
    return nbformat.v4.new_output("display_data", {"text/plain": "✓"}, metadata={"sobook": record})


def test_a_class_list_gives_everybody_a_row_and_says_what_is_missing(tmp_path, capsys):
    for student, right in (("f1", True), ("f2", False), ("f9", True)):
        (tmp_path / student).mkdir()
        path = tmp_path / student / "05.ipynb"
        book = notebook(path, "exercises.check('05.1', x)", outputs=[saved("05.1")])
        if not right:
            book.write_text("broken")
    listed = tmp_path / "class_list.csv"
    listed.write_text("folder,id,name\nf1,ADA,Ada L.\nf2,bob,Bob\nf3,eve,Eve\n", "utf-8-sig")
    out, gradebook = tmp_path / "grades.csv", tmp_path / "class.csv"
    options = ["--no-execute", "--out", str(out), "--gradebook", str(gradebook)]
    files = [str(path) for path in sorted(tmp_path.glob("f*/*.ipynb"))]
    assert main(["grade", *files, *options, "--class-list", str(listed)]) == 0
    with open(gradebook, encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert [(row["id"], row["name"], row["05.1"]) for row in rows.values()] == [
        ("ADA", "Ada L.", "1"),
        ("bob", "Bob", ""),
        ("eve", "Eve", ""),
        ("", "", "1"),
    ]
    assert rows["f1"]["note"] == "" and rows["f3"]["note"] == "not handed in"
    assert "05.ipynb: the file cannot be read" in rows["f2"]["note"]
    assert rows["f9"]["note"] == "not in the class list"
    # A single student's folder is known by the list, too.
    assert main(["grade", files[0], *options, "--class-list", str(listed)]) == 0
    assert "\nf1,ADA,Ada L.,1,0,0,0,1,\n" in gradebook.read_text("utf-8")


@pytest.mark.parametrize("text", [None, "name\nada\n", "folder,id\na,1\na,2\n"])
def test_a_bad_class_list_is_one_sentence(tmp_path, text, capsys):
    listed = tmp_path / "class_list.csv"
    if text is not None:
        listed.write_text(text)
    options = ["--out", str(tmp_path / "g.csv"), "--class-list", str(listed)]
    assert main(["grade", str(tmp_path / "a.ipynb"), *options]) == 1
    assert "class list" in capsys.readouterr().err


def test_files_of_one_folder_are_students(tmp_path):
    grades = [grading.Grade("00_ada.ipynb", "00.1", True, "right.")]
    grades += [grading.Grade("00_bob.ipynb", "", False, "broken"), *grades]
    out = grading.write_gradebook(grades, tmp_path / "class.csv")
    assert out.read_text("utf-8").splitlines() == [
        "student,00.1,passed,note",
        "00_ada,1,1,",
        "00_bob,,0,00_bob.ipynb: broken",
    ]


def test_no_jobs_is_an_error(tmp_path, capsys):
    path = notebook(tmp_path / "a.ipynb", SETUP)
    assert main(["grade", str(path), "--out", str(tmp_path / "g.csv"), "--jobs", "0"]) == 1
    assert "1 or more" in capsys.readouterr().err
