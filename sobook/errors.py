"""What goes wrong and is the caller's to mend: one base class, and near matches for typos.

Every message says what is wrong, where, and what to do about it, and no password or token.
"""

import dataclasses
import difflib
import numbers
import os
import re
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

_SECRET = re.compile(
    r"(?:(?<=://)|(?<=[ps]:/))[^\s/]+(?=@)"  # user:password@ of an address, also made a path
    r"|(?<=[?&])([\w.-]+=)[^\s&#'\"]+"  # what its ?name= is set to
    r"|\bhf_[A-Za-z0-9]{16,}"  # a token of the Hub
)
_SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def without_secrets(text: str) -> str:
    """A text without passwords and tokens: of addresses, and of the environment.

    >>> without_secrets("https://me:word@host/file?token=abc")
    'https://…@host/file?token=…'
    """
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRET_NAMES) and len(value) >= 8:
            text = text.replace(value, "…")
    return _SECRET.sub(lambda found: f"{found[1] or ''}…", text)


class SobookError(ValueError):
    """Base class of the errors that sobook raises on purpose."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class DatasetError(SobookError):
    """A data set that is missing, incomplete, or not what it claims to be."""


class ImageError(SobookError):
    """An image file that is missing or cannot be decoded."""


class DownloadError(SobookError, OSError):
    """A file that cannot be fetched here and now."""


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
    """Refuse a value that is not one of `choices`, naming the near match.

    >>> check_choice("schedule", "cosin", ("cosine", "constant"))
    Traceback (most recent call last):
    sobook.errors.SobookError: unknown schedule 'cosin': choose cosine or constant. Did you mean...
    """
    choices = tuple(choices)
    if value not in choices:
        listed = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
        raise SobookError(
            f"unknown {name} {value!r}: choose {listed}.{suggest(str(value), choices)}"
        )


def check_fields(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not among the `known` settings of `what`, naming the near match.

    >>> check_fields("TrainConfig", ["epoch"], ["epochs", "seed"])
    Traceback (most recent call last):
    sobook.errors.SobookError: unknown setting 'epoch' of TrainConfig. Did you mean 'epochs'?
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            raise SobookError(f"unknown setting {name!r} of {what}.{suggest(name, known)}")


_EXPECTED = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "text",
    dict: "a table of names and values",
    tuple: "a list",
}


def plain(name: str, value: Any, kind: Any) -> Any:
    """The value of a setting as plain Python, refused where it is not of its type.

    Numbers of NumPy and torch become Python's and paths become text, so a run is the same run
    whatever its settings were computed with. Whole numbers serve as floats, and 8.0 as 8; text
    and truth values do not serve as numbers.

    Args:
        name: of the setting, for the error.
        value: what was given.
        kind: what its annotation says: one of int, float, bool, str and None, a union of these,
            or dict[str, …] and tuple[…, ...] of them.

    >>> plain("lr", 1, float), plain("dim", None, int | None)
    (1.0, None)
    >>> plain("epochs", "8", int)
    Traceback (most recent call last):
    sobook.errors.SobookError: epochs is '8': it must be a whole number.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif getattr(value, "shape", None) == ():  # a number of NumPy or torch
        # As it is printed: np.float32(0.1) is 0.1, and not 0.10000000149.
        is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
        value = float(str(value)) if is_float else value.item()
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if union else (kind,)
    is_number = isinstance(value, numbers.Real) and type(value) is not bool
    is_number = is_number and abs(value) <= sys.float_info.max  # which NaN is not either
    for one in sorted(kinds, key=lambda one: one is not type(value)):  # what it is comes first
        origin, inner = typing.get_origin(one) or one, typing.get_args(one)
        if one is Any or (one in (bool, str, types.NoneType) and isinstance(value, one)):
            return value
        if one in (int, float) and is_number and (one is float or value == int(value)):
            return one(value)
        if origin is dict and isinstance(value, Mapping):
            each = inner[1] if inner else Any
            return {
                plain(f"a key of {name}", key, str): plain(f"{name}.{key}", item, each)
                for key, item in value.items()
            }
        if origin is tuple and isinstance(value, list | tuple):
            each = inner if inner[-1] is not Ellipsis else inner[:1] * len(value)
            if len(each) == len(value):
                pairs = enumerate(zip(value, each, strict=True))
                return tuple(plain(f"{name}[{i}]", item, kind) for i, (item, kind) in pairs)
    names = [_EXPECTED.get(typing.get_origin(one) or one, "None") for one in kinds]
    raise SobookError(f"{name} is {reprlib.repr(value)}: it must be {' or '.join(names)}.")


def check_types(settings: Any) -> None:
    """Make the fields of a (frozen) dataclass `plain`, by their annotations."""
    kinds = typing.get_type_hints(type(settings))
    for item in dataclasses.fields(settings):
        value = plain(item.name, getattr(settings, item.name), kinds[item.name])
        object.__setattr__(settings, item.name, value)


def first_line(error: BaseException, most: int = 120) -> str:
    """The first line of an error's text, or its type where it has none."""
    text = without_secrets(str(error).strip())
    return (text.splitlines() or [type(error).__name__])[0][:most]
