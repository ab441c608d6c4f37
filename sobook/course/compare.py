"""What checks are made of: call a student's function, compare, and say how the two differ.

`number` and `array` compare an answer with the expected value and with the results of typical
mistakes (clues); where none of them fits, the message says how the answer relates to the expected
value. Whatever is not right raises `Wrong`. How each exercise uses them is in `checks`.
"""

import math
from collections.abc import Callable

import numpy as np

from sobook.errors import first_line

Check = Callable[[object], None]  # judges an answer; raises Wrong
Clue = tuple[object, str]  # (value that a typical mistake gives, what to say about it)


class Wrong(Exception):
    """An answer that is not right; the message says what is off, to the student."""


def call(answer: object, *arguments: object) -> object:
    """Call a student's function on copies of the arguments; what goes wrong becomes `Wrong`."""
    if not callable(answer):
        raise Wrong(
            "hand over the function itself, its name without parentheses, not what it returns "
            f"(this is {_kind(answer)})."
        )
    name = getattr(answer, "__name__", "your function")
    try:
        value = answer(*(_copy(argument) for argument in arguments))
    except Exception as error:
        raise Wrong(f"{name} stopped with {describe_error(error)}.") from None
    if value is None:
        raise Wrong(f"{name} returns nothing: is there a `return` at its end?")
    return value


def number(value: object, expected: float, *clues: Clue, tolerance: float = 1e-4) -> None:
    """Compare a number.

    Args:
        value: the answer.
        expected: the truth.
        *clues: (value of a typical mistake, what to say about it).
        tolerance: relative.

    Raises:
        Wrong: with the clue that fits, or how the number relates to the expected one.
    """
    value = as_array(value)
    if value.size != 1:
        raise Wrong(f"one number is asked for, but this is an array of shape {value.shape}.")
    got = float(value.item())
    if math.isnan(got):
        raise Wrong("the answer is NaN, which is also what the stub returns: nothing there yet?")
    if _close(got, expected, tolerance):
        return
    for mistake, sentence in clues:
        if _close(got, float(mistake), tolerance):
            raise Wrong(sentence)
    raise Wrong(_relation(got, expected, tolerance) + f" Yours {got:.6g}, expected {expected:.6g}.")


def array(value: object, expected: object, *clues: Clue, tolerance: float = 1e-4) -> None:
    """Compare an array: shape first, then values, then what the difference looks like.

    Args:
        value, expected, clues, tolerance: as for `number`.

    Raises:
        Wrong: with the clue that fits, or how the array relates to the expected one.
    """
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


def as_array(value: object) -> np.ndarray:
    """NumPy's view of a number, list, array or tensor.

    Raises:
        Wrong: it holds something other than numbers, or has rows of different lengths.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        converted = np.asarray(value)
    except ValueError:
        raise Wrong("the answer has rows of different lengths; an array is asked for.") from None
    if converted.dtype.kind not in "biuf":
        raise Wrong(f"numbers are asked for, but this is {_kind(value)}.")
    return converted


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """The rows scaled to unit length."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def describe_error(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def _copy(value):
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.clone() if hasattr(value, "clone") else value


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape else type(value).__name__


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
    100: "it is a hundred times too large: a fraction is asked for, not a percentage.",
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
    if got.ndim == 2 and _same(unit_rows(got), unit_rows(expected), tolerance):
        return "the directions are right, the lengths are not: rows must have unit length."
    not_zero = np.abs(expected) > 1e-9
    ratio = got[not_zero] / expected[not_zero]
    if not_zero.any() and np.allclose(ratio, ratio.flat[0], rtol=tolerance):
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
