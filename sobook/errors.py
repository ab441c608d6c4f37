"""Errors that the caller can fix: one base class, suggestions for typos, checks of settings.

A message says what is wrong, where, and what to do.
"""

import difflib
import numbers
import os
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


class SobookError(ValueError):
    """Base class of the errors that sobook raises on purpose."""


class DatasetError(SobookError):
    """A data set that is missing, incomplete, or not what it claims to be."""


class ImageError(SobookError):
    """An image file that is missing or cannot be decoded."""


class DownloadError(SobookError, OSError):
    """A file that cannot be downloaded."""


class EncoderError(SobookError):
    """An encoder that cannot be made: unknown name, or weights that do not fit."""


class RunError(SobookError):
    """A run folder that is not one, is not finished, or belongs to other settings."""


class TrainingError(SobookError, RuntimeError):
    """Training that cannot continue; the message says why, and where it can resume."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for a near miss, an empty string otherwise."""
    known = {str(choice).casefold(): choice for choice in choices}
    near = difflib.get_close_matches(str(word).casefold(), known, n=1)
    return f" Did you mean {str(known[near[0]])!r}?" if near else ""


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of `choices`; the message lists them and the near match."""
    choices = tuple(choices)
    if value not in choices:
        listed = " or ".join(filter(None, [", ".join(choices[:-1]), *choices[-1:]]))
        what = f"choose {listed}" if choices else "there is none"
        raise SobookError(f"unknown {name} {value!r}: {what}.{suggest(str(value), choices)}")


def check_fields(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not among the `known` settings of `what`, as `check_choice` does."""
    known = tuple(known)
    for name in names:
        check_choice(f"setting of {what}", name, known)


_EXPECTED = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}
_EXPECTED |= {dict: "a table of names and values", tuple: "a list", types.NoneType: "None"}


def plain(name: str, value: Any, kind: Any) -> Any:
    """Value of the setting `name` as plain Python, refused where it is not what `kind` says.

    Scalars of NumPy and torch become Python's and paths become text, so that a run is the same run
    whatever its settings were computed with. Whole numbers serve as floats, and 8.0 as 8.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif getattr(value, "shape", None) == ():  # floats as printed: np.float32(0.1) is 0.1
        is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
        value = float(str(value)) if is_float else value.item()
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if is_union else (kind,)
    is_number = isinstance(value, int | float) and type(value) is not bool
    is_number = is_number and abs(value) <= sys.float_info.max  # also refuses NaN
    for choice in sorted(kinds, key=lambda choice: choice is not type(value)):  # exact type first
        origin, inner = typing.get_origin(choice) or choice, typing.get_args(choice)
        if choice is Any or choice in (bool, str, types.NoneType) and isinstance(value, choice):
            return value
        if choice in (int, float) and is_number and choice(value) == value:
            return choice(value)
        if origin is dict and isinstance(value, Mapping):
            items = {plain(f"a key of {name}", key, str): value[key] for key in value}
            return {k: plain(f"{name}.{k}", v, (*inner, Any, Any)[1]) for k, v in items.items()}
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(plain(f"{name}[{i}]", item, inner[0]) for i, item in enumerate(value))
    expected = " or ".join(_EXPECTED[typing.get_origin(k) or k] for k in kinds)
    raise SobookError(f"{name} is {reprlib.repr(value)}: it must be {expected}.")


def check_types(settings: Any) -> None:
    """Make the fields of a (frozen) dataclass `plain`, by their annotations."""
    for field, kind in typing.get_type_hints(type(settings)).items():
        object.__setattr__(settings, field, plain(field, getattr(settings, field), kind))


def first_line(error: BaseException, most: int = 120) -> str:
    """First line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most].rstrip()
