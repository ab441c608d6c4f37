"""Predictions first: the reader's answer is kept before a result is shown, then set beside it.

A notebook asks with `predict` and answers with `reveal`, whose output stays folded until the
reader opens it: in JupyterLab, on Colab and on the site alike.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from IPython.display import HTML, display

from sobook import files
from sobook.errors import SobookError, check_choice
from sobook.figures.style import Figure, alt_text

Answer = float | str | list[str]


@dataclass(frozen=True)
class Prediction:
    """A reader's answer to a question, or None where nothing was written down."""

    key: str
    answer: Answer | None

    def beside(self, truth: Answer) -> str:
        """Set the prediction beside what was measured, in one sentence.

        >>> Prediction("09.a", 0.48).beside(0.503)
        'Measured: 0.503. You predicted 0.48, too low by 0.023.'
        >>> Prediction("09.b", "away").beside("away")
        'It is: away. So you predicted.'
        """
        is_number = not isinstance(truth, str | list)
        result = f"{'Measured' if is_number else 'It is'}: {_text(truth)}."
        if self.answer is None:
            return result
        if not is_number:
            same, mine = truth == self.answer, _text(self.answer)
            return f"{result} {'So you predicted' if same else f'You predicted: {mine}'}."
        off = float(self.answer) - float(truth)  # type: ignore[arg-type]  # both are numbers
        how = f"too {'high' if off > 0 else 'low'} by {abs(off):.2g}" if off else "exactly"
        return f"{result} You predicted {self.answer:g}, {how}."


def predict(
    key: str, answer: Answer | None = None, *, choices: Sequence[str] = (), order: bool = False
) -> Prediction:
    """Keep the reader's answer to a question of a notebook.

    Args:
        key: the notebook and a letter, such as ``"09.a"``.
        answer: a number; one of the choices; or all choices in an order of the reader's. None
            opens the answer kept in an earlier session, if any.
        choices: possible answers, where the answer is not a number.
        order: ask for a list of all choices in the reader's order.

    Raises:
        SobookError: the answer is neither a number nor made of the choices.
    """
    file = files.data_root() / "predictions.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = ", ".join(f'"{choice}"' for choice in choices)
    if answer is None:
        answer = kept.get(key)
    else:
        if order and (isinstance(answer, str) or sorted(answer) != sorted(choices)):
            must = f"must hold each of these once, in your order: {names}"
            raise SobookError(f"prediction {key} {must}.")
        if choices and not order:
            check_choice(f"prediction {key}", answer, choices)
        if not choices and (isinstance(answer, bool) or not isinstance(answer, int | float)):
            raise SobookError(f"prediction {key} is {answer!r}: it must be a number.")
        files.write_json(file, kept | {key: answer})
    wanted = f"a list, in your order, of {names}," if order else f"one of {names}"
    wanted = wanted if choices else "a number"
    todo = f"write {wanted} in place of None and run this cell again."
    print(f"{key}: {todo if answer is None else f'you predict {_text(answer)}.'}")
    return Prediction(key, answer)


def reveal(*shown: Any, prediction: Prediction | None = None, truth: Answer | None = None) -> None:
    """Show results folded, to be opened after predicting.

    Args:
        shown: figures, tables, or strings, in this order.
        prediction: what the reader expected; shown first.
        truth: the measured number, the right choice or the right order.
    """
    parts = ["<summary><strong>Predicted? Open the answer.</strong></summary>"]
    if prediction is not None and truth is not None:
        parts.append(f"<p><strong>{html.escape(prediction.beside(truth))}</strong></p>")
    body = "\n".join([*parts, *map(_as_html, shown)])
    display(HTML(f"<details>{body}\n</details>"))


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
