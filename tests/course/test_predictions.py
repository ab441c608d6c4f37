"""Predictions: kept between sessions, checked, set beside the result, folded."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sobook.course import predictions
from sobook.course.predictions import beside, predict, reveal
from sobook.errors import SobookError
from sobook.figures.style import finish, new_figure


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    return tmp_path


def test_an_answer_is_kept_for_another_session(capsys):
    predict("09.a")
    assert "write a number in place of None" in capsys.readouterr().out
    predict("09.a", 0.5)
    predict("09.b", ["b", "a"], choices=("a", "b"), order=True)
    predict("09.a")
    predict("09.b", choices=("a", "b"), order=True)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "09.a: you predict 0.5.",
        "09.b: you predict b, a.",
    ]


def test_each_answer_of_the_notebooks_belongs_to_one_question_of_theirs():
    for script in (Path(__file__).parents[2] / "notebooks/source").glob("[0-9]*.py"):
        text = script.read_text(encoding="utf-8")
        asked = re.findall(r'\bpredict\(\s*"([\d.a-z]+)"', text)
        answered = re.findall(r'\b(?:reveal|beside)\(\s*"([\d.a-z]+)"', text)
        assert sorted(set(asked)) == sorted(answered) == sorted(asked)
        assert all(key.startswith(f"{script.stem[:2]}.") for key in asked)


def test_two_notebooks_at_once_keep_the_answers_of_both():
    code = "import sys; from sobook.course.predictions import predict\n"
    code += "for i in range(60): predict(f'{sys.argv[1]}.{i}', i)"
    started = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("08", "09")]
    assert [process.wait() for process in started] == [0, 0]
    for name in ("08", "09"):
        assert all(beside(f"{name}.{i}", i).endswith("exactly.") for i in range(60))


@pytest.mark.parametrize(
    "answer, choices, word",
    [
        ("half", (), "number"),
        ("hihger", ("higher", "lower"), "higher"),
        (["a", "a"], ("a", "b"), "order"),
    ],
)
def test_an_answer_that_cannot_be_one_is_refused_and_not_kept(answer, choices, word, root):
    with pytest.raises(SobookError, match=word):
        predict("09.a", answer, choices=choices, order=word == "order")
    assert not (root / "predictions").exists()


def test_beside_the_truth():
    predict("x", 0.6)
    assert beside("x", 0.5) == "Measured: 0.5. You predicted 0.6, too high by 0.1."
    assert beside("x", 0.6).endswith("exactly.")
    assert beside("y", 0.25) == "Measured: 0.25."
    assert beside("y", "a") == "It is: a."
    predict("z", ["b", "a"], choices=("a", "b"), order=True)
    assert beside("z", ["a", "b"]) == "It is: a, b. You predicted: b, a."
    assert beside("z", ["b", "a"]).endswith("So you predicted.")


def test_the_answer_is_folded_and_described(monkeypatch):
    shown = []
    monkeypatch.setattr(predictions, "display", shown.append)
    figure = finish(new_figure(1, 1), "A figure of <nothing>.")
    predict("x", 0.6)
    predict("y", 0.1)  # of another question, run in between
    reveal("x", figure, pd.DataFrame({"a": [1]}), "b < c", truth=0.5)
    page = shown[0].data
    assert page.startswith("<details><summary>") and page.endswith("</details>")
    assert 'alt="A figure of &lt;nothing&gt;."' in page and "b &lt; c" in page
    assert page.index("You predicted 0.6") < page.index("<img") < page.index("<table")
