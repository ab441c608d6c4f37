"""Predictions: kept between sessions, checked, set beside the result, folded."""

import pandas as pd
import pytest

from sobook.course import predictions
from sobook.course.predictions import predict, reveal
from sobook.errors import SobookError
from sobook.figures.style import finish, new_figure


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    return tmp_path


def test_an_answer_is_kept_for_another_session(capsys):
    assert predict("09.a").answer is None
    assert "write a number in place of None" in capsys.readouterr().out
    predict("09.a", 0.5)
    predict("09.b", ["b", "a"], choices=("a", "b"), order=True)
    assert predict("09.a").answer == 0.5
    assert predict("09.b", choices=("a", "b")).answer == ["b", "a"]
    assert "you predict b, a" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, choices, word",
    [
        ("half", (), "number"),
        ("hihger", ("higher", "lower"), "higher"),
        (["a", "a"], ("a", "b"), "each"),
    ],
)
def test_an_answer_that_cannot_be_one_is_refused_and_not_kept(answer, choices, word, root):
    with pytest.raises(SobookError, match=word):
        predict("09.a", answer, choices=choices, order=word == "each")
    assert not (root / "predictions.json").exists()


def test_beside_the_truth():
    assert predict("x", 0.6).beside(0.5) == "Measured: 0.5. You predicted 0.6, too high by 0.1."
    assert predict("x", 0.5).beside(0.5).endswith("exactly.")
    assert predict("y").beside(0.25) == "Measured: 0.25."
    assert predict("y", choices=("a", "b")).beside("a") == "It is: a."
    order = predict("z", ["b", "a"], choices=("a", "b"), order=True)
    assert order.beside(["a", "b"]) == "It is: a, b. You predicted: b, a."


def test_the_answer_is_folded_and_described(monkeypatch):
    shown = []
    monkeypatch.setattr(predictions, "display", shown.append)
    figure = finish(new_figure(1, 1), "A figure of <nothing>.")
    reveal(figure, pd.DataFrame({"a": [1]}), "b < c", prediction=predict("x", 0.6), truth=0.5)
    page = shown[0].data
    assert page.startswith("<details><summary>") and page.endswith("</details>")
    assert 'alt="A figure of &lt;nothing&gt;."' in page and "b &lt; c" in page
    assert page.index("You predicted 0.6") < page.index("<img") < page.index("<table")
