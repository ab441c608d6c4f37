"""The exercises of the course: `check` says whether an answer is right and, if not, what is off.

An exercise is known by notebook and number, ``"04.2"``. Its answer is usually the function that
the notebook asks for. How each exercise is judged is in `checks`.
"""

from dataclasses import asdict, dataclass

from sobook.course.checks import CHECKS
from sobook.course.compare import Wrong, describe_error
from sobook.course.session import notebook_shell
from sobook.errors import suggest


@dataclass(frozen=True)
class Verdict:
    """Result of checking an answer."""

    exercise: str
    passed: bool
    message: str  # one or two sentences for the student

    def __str__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.exercise}: {self.message}"

    __repr__ = __str__

    def _ipython_display_(self) -> None:
        """Show nothing: `check` has printed the verdict already."""


def check(exercise: str, answer: object = None) -> Verdict:
    """Judge an answer and show the verdict; never raises, whatever the answer is.

    Args:
        exercise: notebook and number, such as ``"04.2"``.
        answer: what the exercise asks for, usually a function.

    In a notebook the output carries the verdict as metadata, for `sobook grade`.

    >>> verdict = check("00.2", lambda before, after: (after - before) / (1 - before))
    ✓ 00.2: right.
    >>> verdict = check("00.2", lambda before, after: after - before)
    ✗ 00.2: that is the change of Recall@1 itself: divide by the errors, 1 − before.
    """
    verdict = judge(exercise, answer)
    if notebook_shell() is None:
        print(verdict)
    else:
        from IPython.display import display

        display({"text/plain": str(verdict)}, raw=True, metadata={"sobook": asdict(verdict)})
    return verdict


def judge(exercise: str, answer: object) -> Verdict:
    """Judge an answer as `check` does, without showing anything."""
    if exercise not in CHECKS:
        near = suggest(str(exercise), CHECKS)
        return Verdict(str(exercise), False, f"there is no exercise {exercise!r}.{near}")
    try:
        why = CHECKS[exercise](answer)
    except Wrong as wrong:
        return Verdict(exercise, False, str(wrong))
    except Exception as error:  # any error: a wrong answer must not stop a notebook
        return Verdict(exercise, False, f"it could not be judged: {describe_error(error)}.")
    return Verdict(exercise, True, why or "right.")


def known(notebook: str = "") -> tuple[str, ...]:
    """List the exercises of one notebook (``"04"``), or of all.

    >>> known("04")
    ('04.1', '04.2', '04.3', '04.4')
    """
    return tuple(sorted(name for name in CHECKS if name.startswith(notebook)))
