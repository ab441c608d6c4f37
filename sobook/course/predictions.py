"""Predictions first: the reader's answer is kept before a result is shown, and set beside it then.

A notebook asks with `predict` and answers with `reveal`, whose output stays folded until the
reader opens it: in JupyterLab, on Colab and on the site alike.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from IPython.display import HTML, display

from sobook import files
from sobook.errors import SobookError, check_choice
from sobook.figures.style import Figure, alt_text

Answer = float | str | list[str]


@dataclass(frozen=True)
class Prediction:
    """What a reader expects, or None where nothing was written down."""

    key: str
    answer: Answer | None
    choices: tuple[str, ...] = ()

    def beside(self, truth: Answer) -> str:
        """One sentence that sets the prediction beside what was measured.

        >>> Prediction("09.a", 0.48).beside(0.503)
        'Measured: 0.503. You predicted 0.48, too low by 0.023.'
        >>> Prediction("09.b", "away", ("towards", "away")).beside("away")
        'It is: away. So you predicted.'
        """
        if isinstance(truth, int | float | np.number):
            if self.answer is None:
                return f"Measured: {truth:.3g}."
            off = float(self.answer) - float(truth)
            said = f"too {'high' if off > 0 else 'low'} by {abs(off):.2g}" if off else "exactly"
            return f"Measured: {truth:.3g}. You predicted {self.answer:g}, {said}."
        if self.answer is None:
            return f"It is: {_shown(truth)}."
        if truth == self.answer:
            return f"It is: {_shown(truth)}. So you predicted."
        return f"It is: {_shown(truth)}. You predicted: {_shown(self.answer)}."


def predict(
    key: str, answer: Answer | None = None, *, choices: Sequence[str] = (), order: bool = False
) -> Prediction:
    """Keep the reader's answer to a question of a notebook.

    Args:
        key: the notebook and a letter, such as ``"09.a"``.
        answer: a number; one of the choices; or all choices in an order of the reader's. None as
            long as nothing was predicted: then what was kept in an earlier session, if anything.
        choices: what may be answered, where the answer is no number.
        order: a list of all choices is asked for, in the reader's order.

    Raises:
        SobookError: the answer is neither a number nor made of the choices.
    """
    file = files.data_root() / "predictions.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if answer is None:
        answer = kept.get(key)
    else:
        _check(key, answer, choices, order)
        files.write_json(file, kept | {key: answer})
    if answer is None:
        asked = "a number"
        if choices:
            names = ", ".join(f'"{choice}"' for choice in choices)
            asked = f"a list, in your order, of {names}," if order else f"one of {names}"
        print(f"{key}: write {asked} in place of None and run this cell again.")
    else:
        print(f"{key}: you predict {_shown(answer)}.")
    return Prediction(key, answer, tuple(choices))


def reveal(*shown: Any, prediction: Prediction | None = None, truth: Answer | None = None) -> None:
    """Show results folded, to be opened after predicting.

    Args:
        shown: figures, tables, or strings, in this order.
        prediction: what the reader expected; said first.
        truth: the measured number, the right choice or the right order.
    """
    parts = []
    if prediction is not None and truth is not None:
        parts.append(f"<p><strong>{html.escape(prediction.beside(truth))}</strong></p>")
    parts += [_as_html(thing) for thing in shown]
    summary = "Predicted? Open the answer."
    body = "\n".join(parts)
    display(HTML(f"<details><summary><strong>{summary}</strong></summary>\n{body}\n</details>"))


def _check(key: str, answer: Answer, choices: Sequence[str], order: bool) -> None:
    if not choices:
        if isinstance(answer, bool) or not isinstance(answer, int | float | np.number):
            raise SobookError(f"prediction {key} is {answer!r}: it must be a number.")
    elif not order:
        check_choice(f"prediction {key}", answer, choices)
    elif isinstance(answer, str) or sorted(answer) != sorted(choices):
        names = ", ".join(choices)
        raise SobookError(f"prediction {key} must hold each of these once, in your order: {names}.")


def _shown(answer: Answer) -> str:
    if isinstance(answer, str):
        return answer
    return ", ".join(answer) if isinstance(answer, list) else f"{answer:.3g}"


def _as_html(thing: Any) -> str:
    if isinstance(thing, Figure):
        mime, data, width = thing.encoded()
        alt = html.escape(alt_text(thing))
        fit = 'style="max-width: 100%; height: auto"'
        return f'<img alt="{alt}" width="{width}" {fit} src="data:{mime};base64,{data}">'
    if isinstance(thing, str):
        return f"<p>{html.escape(thing)}</p>"
    return thing._repr_html_()
