"""Parts of checks: call a student's function, and say how its answer and the truth differ.

`settle` compares what a check yields, first with the truth, then with the results of typical
mistakes (clues); where none fits, it says how the answer relates to the truth. Whatever is not
right raises `Wrong`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sobook.errors import first_line

Clue = tuple[object, str]  # (value that a typical mistake gives, what to say about it)
Steps = Iterator[tuple]  # clues, and (value, truth) or (value, truth, tolerance) after them

# How wrong numbers are often related to the right ones.
_RELATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the sign is the wrong way round.": np.negative,
    "it is twice too large: is every pair counted twice?": lambda x: 2 * x,
    "it is half of what it should be: a factor 2 is missing.": lambda x: x / 2,
    "it is a hundred times too large: give a fraction, not a percentage.": lambda x: 100 * x,
    "it is the square of what is asked for: the root is missing.": np.square,
    "it is the square root of what is asked for.": np.sqrt,
    "it is the reciprocal of what is asked for.": lambda x: 1 / x,
    "it is one minus what is asked for.": lambda x: 1 - x,
    "it is off by one: too large.": lambda x: x + 1,
    "it is off by one: too small.": lambda x: x - 1,
}


class Wrong(Exception):
    """An answer that is not right; the message says what is off, to the student."""


def settle(check: Callable[[object], Steps | None], answer: object) -> None:
    """Compare each value that a check yields with its truth, knowing the clues yielded before."""
    clues: list[Clue] = []
    for value, other, *tolerance in check(answer) or ():
        if isinstance(other, str):
            clues.append((value, other))
        else:
            compare(value, other, clues, *tolerance)
            clues = []


def call(answer: object, *arguments: object) -> object:
    """Call a student's function on copies of the arguments; what goes wrong becomes `Wrong`."""
    if not callable(answer):
        raise Wrong(f"hand over the function itself, its name without (); this is {_kind(answer)}.")
    name = getattr(answer, "__name__", "your function")
    try:
        value = answer(*copy.deepcopy(arguments))
    except Exception as error:
        raise Wrong(f"{name} stopped with {describe_error(error)}.") from None
    if value is None:
        raise Wrong(f"{name} returns nothing: is there a `return` at its end?")
    return value


def compare(
    value: object, expected: object, clues: Sequence[Clue] = (), tolerance: float = 1e-4
) -> None:
    """Compare a number or an array: shape first, then values, then what the difference looks like.

    `tolerance` is relative to the largest entry.

    Raises:
        Wrong: with the clue that fits, or how the answer relates to the expected one.
    """
    value, expected = as_array(value), np.asarray(expected, float)
    if expected.ndim == 0 and value.size != 1:
        raise Wrong(f"one number is asked for, but this is an array of shape {value.shape}.")
    if expected.ndim and value.shape != expected.shape:
        hint = " Transposed?" if value.shape == expected.shape[::-1] else ""
        raise Wrong(f"the shape is {value.shape}, expected {expected.shape}.{hint}")
    got = value.astype(float).reshape(expected.shape)
    if np.isnan(got).any():
        raise Wrong("there is NaN in the answer: a division by 0, or the stub's placeholder?")
    if _same(got, expected, tolerance):
        return
    numbers = "" if got.ndim else f" Yours {got:.6g}, expected {expected:.6g}."
    with np.errstate(all="ignore"):
        relations = [(change(expected), text + numbers) for text, change in _RELATIONS.items()]
        for mistake, sentence in [*clues, *relations]:
            if _same(got, np.asarray(mistake, float), tolerance):
                raise Wrong(sentence)
        raise Wrong(_difference(got, expected, tolerance) if got.ndim else f"not yet.{numbers}")


def as_array(value: object) -> np.ndarray:
    """NumPy's view of a number, list, array or tensor; `Wrong` where it is none."""
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
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def describe_error(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape else type(value).__name__


def _same(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    margin = tolerance * np.abs(expected).max(initial=1e-2)
    return got.shape == expected.shape and np.allclose(got, expected, rtol=0, atol=margin)


def _difference(got: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    if _same(np.sort(got, None), np.sort(expected, None), tolerance):
        return "the right numbers, but in the wrong places: look at the order."
    if got.ndim == 2 and _same(unit_rows(got), unit_rows(expected), tolerance):
        return "the directions are right, the lengths are not: rows must have unit length."
    difference = got - expected
    first, far = difference.flat[0], np.abs(difference)
    if _same(difference, np.full_like(difference, first), tolerance):
        return f"every entry is off by the same {first:.4g}."
    place = tuple(int(i) for i in np.unravel_index(far.argmax(), got.shape))
    return (
        f"{(far > tolerance).sum()} of {got.size} entries are off; the worst, at {place}, is "
        f"{got[place]:.4g} and should be {expected[place]:.4g}."
    )
