"""Grading: right, wrong, broken and endless notebooks; a class and its list."""

import csv

import nbformat
import pytest

from sobook.cli import main
from sobook.course import exercises, grade as grading

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
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)
    return path


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_right_a_wrong_and_a_missing_answer(tmp_path):
    wrong = "exercises.check('00.1', lambda x, y, k: 100.0)"
    path = notebook(tmp_path / "00_ada.ipynb", SETUP, wrong, RIGHT)
    grades = grading.grade(path, timeout=120)
    assert [g.exercise for g in grades] == list(KNOWN)
    assert [g.passed for g in grades] == [False, True, False, False]
    assert "expected" in grades[0].reason and "not checked" in grades[2].reason
    assert {g.notebook for g in grades} == {"00_ada.ipynb"}


def test_errors_and_the_death_of_the_kernel_cost_only_what_comes_after(tmp_path):
    death, late = "import os; os._exit(1)", "exercises.check('00.1', print)"
    path = notebook(tmp_path / "a.ipynb", SETUP, "1 / 0", RIGHT, death, late)
    by_name = {g.exercise: g for g in grading.grade(path, timeout=120)}
    assert by_name["00.2"].passed
    assert not by_name["00.1"].passed and "stopped" in by_name["00.1"].reason


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(1e6)"])
def test_a_notebook_without_end_is_stopped(tmp_path, loop):
    path = notebook(tmp_path / "a.ipynb", loop, SETUP, RIGHT)
    grades = grading.grade(path, timeout=5)
    assert [g.exercise for g in grades] == list(KNOWN)
    assert all("stopped after 5 seconds" in g.reason and not g.passed for g in grades)


def test_saved_verdicts_do_not_count_unless_asked_for(tmp_path):
    """Anybody can write verdicts into a file; only a run shows them."""
    path = notebook(tmp_path / "a.ipynb", "pass  # check('00.2')", passed=["00.2"])
    read = {g.exercise: g.passed for g in grading.grade(path, execute=False)}
    run = {g.exercise: g.passed for g in grading.grade(path, timeout=60)}
    assert read["00.2"] and not run["00.2"]


@pytest.mark.parametrize("content", ["not json", '{"cells": 3}'])
def test_a_broken_file_is_a_line_of_the_table(tmp_path, content):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    (row,) = grading.grade(path, timeout=60)
    assert not row.passed and row.reason


def test_a_class_becomes_a_row_per_student_and_a_column_per_exercise(tmp_path, capsys):
    """Verdicts of their files are read, not run."""
    paths = [tmp_path / student / "00_start_here.ipynb" for student in ("ada", "bob")]
    for path, passed in zip(paths, (KNOWN, ["00.1"]), strict=True):
        notebook(path, "exercises.check('00.1')", passed=passed)
    out, gradebook = tmp_path / "grades.csv", tmp_path / "class.csv"
    options = ["--out", str(out), "--gradebook", str(gradebook), "--no-execute", "--jobs", "2"]
    assert main(["grade", *map(str, paths), *options]) == 0
    assert f"{len(KNOWN)} of {len(KNOWN)} passed" in capsys.readouterr().out
    table = rows(out)
    assert table[0]["notebook"] == "ada/00_start_here.ipynb" and table[0]["passed"] == "yes"
    assert len(table) == 2 * len(KNOWN)
    assert [(r["student"], r["passed"], r["00.2"]) for r in rows(gradebook)] == [
        ("ada", str(len(KNOWN)), "1"),
        ("bob", "1", "0"),
    ]


def test_a_class_list_gives_everybody_a_row_and_says_what_is_missing(tmp_path):
    files = [tmp_path / student / "05.ipynb" for student in ("f1", "f2", "f9")]
    for file in files:
        notebook(file, "exercises.check('05.1', x)", passed=["05.1"])
    files[1].write_text("broken")
    listed, gradebook = tmp_path / "class_list.csv", tmp_path / "class.csv"
    listed.write_text("folder,id,name\nf1,=ADA,Ada L.\nf2,bob,Bob\nf3,eve,Eve\n", "utf-8-sig")
    options = ["--no-execute", "--out", str(tmp_path / "g.csv"), "--gradebook", str(gradebook)]
    options += ["--class-list", str(listed)]
    assert main(["grade", *map(str, files), *options]) == 0
    book = rows(gradebook)
    assert [(row["student"], row["id"], row["name"], row["05.1"]) for row in book] == [
        ("f1", "'=ADA", "Ada L.", "1"),  # no formula
        ("f2", "bob", "Bob", ""),
        ("f3", "eve", "Eve", ""),
        ("f9", "", "", "1"),
    ]
    notes = [row["note"] for row in book]
    assert "05.ipynb: the file cannot be read" in notes[1]
    assert [notes[0], *notes[2:]] == ["", "not handed in", "not in the class list"]


def test_files_of_one_folder_are_students(tmp_path):
    grades = [grading.Grade("00_ada.ipynb", "00.1", True, "right.")]
    grades += [grading.Grade("00_bob.ipynb", "", False, "broken"), *grades]
    out = grading.write_gradebook(grades, tmp_path / "class.csv")
    header, ada, bob = out.read_text("utf-8").splitlines()
    assert header == "student,00.1,passed,note"
    assert (ada, bob) == ("00_ada,1,1,", "00_bob,,0,00_bob.ipynb: broken")


@pytest.mark.parametrize("text", ["name\nada\n", "folder,id\na,1\na,2\n"])
def test_a_bad_class_list_is_one_sentence(tmp_path, text, capsys):
    listed = tmp_path / "class_list.csv"
    listed.write_text(text)
    options = ["--out", str(tmp_path / "g.csv"), "--class-list", str(listed)]
    assert main(["grade", str(tmp_path / "a.ipynb"), *options]) == 1
    assert "class list" in capsys.readouterr().err


def test_nothing_to_grade_is_an_error(tmp_path, capsys):
    assert main(["grade", "--out", str(tmp_path / "g.csv")]) == 1
    assert "notebook" in capsys.readouterr().err
