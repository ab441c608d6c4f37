"""The exercises of the course: `check` says whether an answer is right and, if not, what is off.

An exercise is known by notebook and number, ``"03.2"``. Its answer is usually the function that
the notebook asks for; `check` calls it on small inputs of its own and compares with the truth and
with the mistakes that people make, so that it can name them. How each exercise is judged stands in
`exercise_checks`; this file holds the frame and the comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from sobook.errors import suggest

__all__ = ["Verdict", "check", "judge", "known"]


class Wrong(Exception):
    """An answer that is not right; the message says what is off, to the student."""


@dataclass(frozen=True)
class Verdict:
    """What came of checking an answer.

    Attributes:
        exercise: such as ``"03.2"``.
        passed: is the answer right?
        message: one or two sentences for the student.
    """

    exercise: str
    passed: bool
    message: str

    def __str__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.exercise}: {self.message}"

    __repr__ = __str__

    def _ipython_display_(self) -> None:
        """Nothing: `check` has shown it already."""


def check(exercise: str, answer: object = None) -> Verdict:
    """Judge an answer and show the verdict; never raises, whatever the answer is.

    Args:
        exercise: notebook and number, such as ``"03.2"``.
        answer: what the exercise asks for, usually a function.

    Returns:
        The verdict, for `sobook grade` and for tests.

    >>> verdict = check("00.2", lambda before, after: (after - before) / (1 - before))
    ✓ 00.2: right.
    >>> verdict = check("00.2", lambda before, after: after - before)
    ✗ 00.2: that is the change of Recall@1 itself; it is asked for as a share of the errors...
    """
    verdict = judge(exercise, answer)
    _show(verdict)
    return verdict


def judge(exercise: str, answer: object) -> Verdict:
    """As `check`, without showing anything."""
    from sobook.course.checks import CHECKS

    if exercise not in CHECKS:
        near = suggest(str(exercise), CHECKS)
        return Verdict(str(exercise), False, f"there is no exercise {exercise!r}.{near}")
    try:
        CHECKS[exercise](answer)
    except Wrong as found:
        return Verdict(exercise, False, str(found))
    except Exception as error:  # of any kind: a wrong answer must not stop a notebook
        return Verdict(exercise, False, f"it could not be judged: {_in_words(error)}.")
    return Verdict(exercise, True, "right.")


def known(notebook: str = "") -> tuple[str, ...]:
    """The exercises there are, of one notebook (``"03"``) or of all.

    >>> known("03")
    ('03.1', '03.2', '03.3')
    """
    from sobook.course.checks import CHECKS

    return tuple(sorted(name for name in CHECKS if name.startswith(notebook)))


def _show(verdict: Verdict) -> None:
    """Print; in a notebook, display, with the verdict as metadata for `sobook grade`."""
    try:
        from IPython import get_ipython
    except ImportError:
        shell = None
    else:
        shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        print(verdict)
        return
    from IPython.display import display

    record = {
        "exercise": verdict.exercise,
        "passed": verdict.passed,
        "message": verdict.message,
    }
    display({"text/plain": str(verdict)}, raw=True, metadata={"sobook": record})


# --- what checks are made of ---------------------------------------------------------------------


def _in_words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def call(answer: object, *arguments, name: str = "your function"):
    """Call a student's function on copies of the arguments; what goes wrong becomes `Wrong`."""
    if not callable(answer):
        raise Wrong(
            f"hand over the function itself, {name} without parentheses, not what it returns "
            f"(this is {_kind(answer)})."
        )
    copies = [a.copy() if isinstance(a, np.ndarray) else _clone(a) for a in arguments]
    try:
        value = answer(*copies)
    except Exception as error:
        raise Wrong(f"{name} stopped with {_in_words(error)}.") from None
    if value is None:
        raise Wrong(f"{name} returns nothing: is there a `return` at its end?")
    return value


def _clone(value):
    return value.clone() if hasattr(value, "clone") else value


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape else type(value).__name__


Clues = Iterable[tuple[object, str]]


def number(value, expected: float, clues: Clues = (), *, tolerance: float = 1e-4) -> None:
    """Compare a number; `clues` are (value of a typical mistake, what to say of it).

    Raises:
        Wrong: with the clue that fits, or what the number has to do with the expected one.
    """
    value = as_array(value)
    if value.size != 1:
        raise Wrong(f"one number is asked for, but there is an array of shape {value.shape}.")
    got = float(value.reshape(()) if value.ndim == 0 else value.ravel()[0])
    if math.isnan(got):
        raise Wrong("the answer is NaN, which is also what the stub returns: nothing there yet?")
    if _close(got, expected, tolerance):
        return
    for mistake, sentence in clues:
        if _close(got, float(mistake), tolerance):
            raise Wrong(sentence)
    raise Wrong(_relation(got, expected, tolerance) + f" Yours {got:.6g}, expected {expected:.6g}.")


def array(value, expected, clues: Clues = (), *, tolerance: float = 1e-4) -> None:
    """Compare an array: shape first, then values, then what the difference looks like."""
    value, expected = as_array(value), np.asarray(expected)
    if value.shape != expected.shape:
        hint = " Transposed?" if value.shape == expected.shape[::-1] else ""
        raise Wrong(f"the shape is {value.shape}, expected {expected.shape}.{hint}")
    if np.isnan(value.astype(float)).any():
        raise Wrong("there is NaN in the answer: a division by 0, or the stub's placeholder?")
    if _same(value, expected, tolerance):
        return
    for mistake, sentence in clues:
        if np.shape(mistake) == value.shape and _same(value, np.asarray(mistake), tolerance):
            raise Wrong(sentence)
    raise Wrong(_array_relation(value, expected, tolerance))


def as_array(value) -> np.ndarray:
    """NumPy's view of a number, list, array or tensor."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        found = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise Wrong("the answer has rows of different lengths; an array is asked for.") from None
    if found.dtype.kind not in "biuf":
        raise Wrong(f"numbers are asked for, but this is {_kind(value)}.")
    return found


def _close(got: float, expected: float, tolerance: float) -> bool:
    return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance * 1e-2)


def _same(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    scale = max(float(np.abs(expected).max(initial=0)), 1e-12)
    return bool(np.allclose(got, expected, rtol=tolerance, atol=tolerance * scale))


# How wrong numbers are often related to the right one.
_FACTORS = {
    -1: "the sign is the wrong way round.",
    2: "it is twice too large: is every pair counted twice?",
    0.5: "it is half of what it should be: a factor 2 is missing.",
    100: "it is a hundred times too large: a share is asked for, not a percentage.",
    0.01: "it is a hundred times too small.",
}


def _relation(got: float, expected: float, tolerance: float) -> str:
    for factor, sentence in _FACTORS.items():
        if _close(got, factor * expected, tolerance):
            return sentence
    if expected > 0 and _close(got, expected**2, tolerance):
        return "it is the square of what is asked for: the root is missing."
    if expected > 0 and _close(got, math.sqrt(expected), tolerance):
        return "it is the square root of what is asked for."
    if expected and _close(got, 1 / expected, tolerance):
        return "it is the reciprocal of what is asked for."
    if _close(got, 1 - expected, tolerance):
        return "it is one minus what is asked for."
    if abs(abs(got - expected) - 1) < tolerance:
        return "it is off by one."
    return "not yet."


def _array_relation(got: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    got, expected = got.astype(float), expected.astype(float)
    square = got.ndim == 2 and got.shape[0] == got.shape[1]
    if square and _same(got.T, expected, tolerance):
        return "it is the transpose of what is asked for."
    if _same(np.sort(got, None), np.sort(expected, None), tolerance):
        return "the right numbers, but in the wrong places: look at the order."
    difference = got - expected
    if _same(difference, np.full_like(difference, difference.flat[0]), tolerance):
        return f"every entry is off by the same {difference.flat[0]:.4g}."
    if got.ndim == 2 and _same(_unit(got), _unit(expected), tolerance):
        return "the directions are right, the lengths are not: rows must have unit length."
    known = np.abs(expected) > 1e-9
    ratio = got[known] / expected[known]
    if known.any() and np.allclose(ratio, ratio.flat[0], rtol=tolerance):
        factor = float(ratio.flat[0])
        for value, sentence in _FACTORS.items():
            if _close(factor, value, tolerance):
                return sentence
        return f"every entry is {factor:.4g} times what it should be."
    worst = np.unravel_index(np.abs(difference).argmax(), got.shape)
    place = tuple(int(i) for i in worst)
    return (
        f"{int((np.abs(difference) > tolerance).sum())} of {got.size} entries are off; the worst, "
        f"at {place}, is {got[worst]:.4g} and should be {expected[worst]:.4g}."
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


Check = Callable[[object], None]
