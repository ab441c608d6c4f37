"""Predictions first: the reader's answer is kept before a result is shown, then set beside it.

A notebook asks with `predict` and answers with `reveal`, whose output stays folded until the
reader opens it: in JupyterLab, on Colab and on the site alike.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML, display

from sobook import files
from sobook.errors import SobookError
from sobook.figures.style import Figure, alt_text

Answer = float | str | list[str]


def predict(
    key: str, answer: Answer | None = None, *, choices: Sequence[str] = (), order: bool = False
) -> None:
    """Keep the reader's answer to a question of a notebook, for `reveal` and for later sessions.

    Args:
        key: the notebook and a letter, such as ``"09.a"``.
        answer: a number; one of the choices; or all choices in an order of the reader's. None
            leaves the answer of an earlier session as it is, if there is one.
        choices: possible answers, where the answer is not a number.
        order: ask for a list of all choices in the reader's order.

    Raises:
        SobookError: the answer is neither a number nor made of the choices.
    """
    names = ", ".join(f'"{choice}"' for choice in choices)
    wanted = f"a list, in your order, of {names}" if order else f"one of {names}"
    wanted = wanted if choices else "a number"
    if answer is not None:
        if order:
            fits = isinstance(answer, list | tuple) and sorted(answer) == sorted(choices)
        else:
            is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
            fits = answer in choices if choices else is_number
        if not fits:
            raise SobookError(f"prediction {key} is {answer!r}: write {wanted}.")
        files.write_json(_file(key), answer)
    todo, kept = f"write {wanted} in place of None and run this cell again", _kept(key)
    print(f"{key}: {todo if kept is None else f'you predict {_text(kept)}'}.")


def reveal(key: str, *shown: Any, truth: Answer) -> None:
    """Show what was measured beside what the reader predicted, and results, all folded.

    Args:
        key: the question, as in `predict`; its own answer is shown, whatever was run in between.
        shown: figures, tables, or strings, in this order.
        truth: the measured number, the right choice or the right order.
    """
    fold(HTML(f"<p><strong>{html.escape(beside(key, truth))}</strong></p>"), *shown)


def fold(*shown: Any) -> None:
    """Show figures, tables and strings folded, to be opened after predicting."""
    parts = ["<summary><strong>Predicted? Open the answer.</strong></summary>"]
    body = "\n".join([*parts, *map(_as_html, shown)])
    display(HTML(f"<details>{body}\n</details>"))


def beside(key: str, truth: Answer) -> str:
    """Set what the reader predicted, if anything, beside what was measured, in one sentence."""
    answer, is_number = _kept(key), not isinstance(truth, str | list)
    result = f"{'Measured' if is_number else 'It is'}: {_text(truth)}."
    if answer is None:
        return result
    if not is_number or isinstance(answer, str | list):
        mine = "So you predicted" if truth == answer else f"You predicted: {_text(answer)}"
        return f"{result} {mine}."
    off = float(answer) - float(truth)  # type: ignore[arg-type]  # both are numbers
    how = f"too {'high' if off > 0 else 'low'} by {abs(off):.2g}" if off else "exactly"
    return f"{result} You predicted {answer:g}, {how}."


def _file(key: str) -> Path:
    """One file per question, so that two notebooks at once keep the answers of both."""
    return files.data_root() / "predictions" / f"{key}.json"


def _kept(key: str) -> Answer | None:
    return json.loads(_file(key).read_text(encoding="utf-8")) if _file(key).exists() else None


def _text(answer: Answer) -> str:
    if isinstance(answer, list):
        return ", ".join(answer)
    return answer if isinstance(answer, str) else f"{answer:.3g}"


def _as_html(result: Any) -> str:
    if isinstance(result, str):
        return f"<p>{html.escape(result)}</p>"
    if not isinstance(result, Figure):
        return result._repr_html_()
    mime, data, width = result.encoded()
    alt, fit = html.escape(alt_text(result)), 'style="max-width: 100%; height: auto"'
    return f'<img alt="{alt}" width="{width}" {fit} src="data:{mime};base64,{data}">'
