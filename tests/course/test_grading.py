"""Grading: right, wrong, broken and endless notebooks."""

import csv

import nbformat
import pytest

from sobook.cli import main
from sobook.course import exercises, grading

RIGHT = "lambda before, after: (after - before) / (1 - before)"


def notebook(path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(book, path)
    return path


def check(answer, name="00.2"):
    return f"exercises.check({name!r}, {answer})"


SETUP = "from sobook.course import exercises"


def test_a_good_a_wrong_and_a_missing_answer(tmp_path):
    wrong = check("lambda x, y, k: 100.0", "00.1")
    path = notebook(tmp_path / "00_ada.ipynb", SETUP, wrong, check(RIGHT))
    grades = grading.grade(path, timeout=120)
    assert [g.exercise for g in grades] == list(exercises.known("00"))
    assert [g.passed for g in grades] == [False, True, False]
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
    path = notebook(tmp_path / "a.ipynb", "pass  # check('00.2')")
    book = nbformat.read(path, as_version=4)
    record = {"exercise": "00.2", "passed": True, "message": "right."}
    book.cells[0].outputs = [
        nbformat.v4.new_output("display_data", {"text/plain": "✓"}, metadata={"sobook": record})
    ]
    nbformat.write(book, path)
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
    assert "1 of 3 passed" in capsys.readouterr().out
    with open(out, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["passed"] for row in rows] == ["no", "yes", "no", "no"]
    assert rows[-1]["notebook"] == "'=cmd.ipynb"  # no formula


def test_grading_nothing_is_an_error(tmp_path, capsys):
    assert main(["grade", "--out", str(tmp_path / "g.csv")]) == 1
    assert "one notebook or more" in capsys.readouterr().err
