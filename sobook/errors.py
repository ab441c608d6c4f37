"""What goes wrong and is the caller's to mend: one base class, and near matches for typos.

Every message says what is wrong, where, and what to do about it.
"""

import difflib
from collections.abc import Iterable


class SobookError(ValueError):
    """Base class of the errors that sobook raises on purpose."""


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
    near = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


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


def first_line(error: BaseException, most: int = 120) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
