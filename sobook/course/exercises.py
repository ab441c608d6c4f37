"""The exercises of the course: `check` says whether an answer is right and, if not, what is off.

An exercise is known by notebook and number, ``"04.2"``. Its answer is usually the function that
the notebook asks for. How each exercise is judged is in `checks`.
"""

from dataclasses import asdict, dataclass

from sobook.course import worksheet
from sobook.course.checks import CHECKS
from sobook.course.compare import Wrong, describe_error
from sobook.course.session import notebook_shell
from sobook.errors import suggest


@dataclass(frozen=True)
class Verdict:
    """What came of checking an answer."""

    exercise: str
    passed: bool
    message: str  # one or two sentences for the student

    def __str__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.exercise}: {self.message}"

    __repr__ = __str__

    def _ipython_display_(self) -> None:
        """Nothing: `check` has shown it already."""


def check(exercise: str, answer: object = None) -> Verdict:
    """Judge an answer and show the verdict; never raises, whatever the answer is.

    Args:
        exercise: notebook and number, such as ``"04.2"``.
        answer: what the exercise asks for, usually a function.

    Returns:
        The verdict, for `sobook grade` and for tests.

    >>> verdict = check("00.2", lambda before, after: (after - before) / (1 - before))
    ✓ 00.2: right.
    >>> verdict = check("00.2", lambda before, after: after - before)
    ✗ 00.2: that is the change of Recall@1 itself: divide by the errors, 1 − before.
    """
    return _show(judge(exercise, answer))


def _show(verdict: Verdict) -> Verdict:
    """Print it; in a notebook, with metadata that `sobook grade` reads."""
    if notebook_shell() is None:
        print(verdict)
    else:
        from IPython.display import display

        display({"text/plain": str(verdict)}, raw=True, metadata={"sobook": asdict(verdict)})
    return verdict


def judge(exercise: str, answer: object) -> Verdict:
    """As `check`, without showing anything."""
    if exercise not in CHECKS:
        near = suggest(str(exercise), CHECKS)
        return Verdict(str(exercise), False, f"there is no exercise {exercise!r}.{near}")
    try:
        why = CHECKS[exercise](answer)
    except Wrong as wrong:
        return Verdict(exercise, False, str(wrong))
    except Exception as error:  # of any kind: a wrong answer must not stop a notebook
        return Verdict(exercise, False, f"it could not be judged: {describe_error(error)}.")
    return Verdict(exercise, True, why or "right.")


def known(notebook: str = "") -> tuple[str, ...]:
    """The exercises there are, of one notebook (``"04"``) or of all.

    >>> known("04")
    ('04.1', '04.2', '04.3', '04.4')
    """
    return tuple(sorted(name for name in CHECKS if name.startswith(notebook)))


@dataclass(frozen=True)
class Variant:
    """One student's worksheet: a small task for each notebook, with numbers of their own."""

    student: str
    tasks: dict[str, worksheet.Task]

    def __str__(self) -> str:
        lines = [f"Worksheet of {self.student}. Three digits are enough."]
        for name, task in self.tasks.items():
            lines += [f"\n{name}  {task.text}"]
            lines += [f"      {key} = {value}" for key, value in task.data.items()]
        return "\n".join(lines)

    __repr__ = __str__

    def check(self, notebook: str, answer: object = None) -> Verdict:
        """Judge the number that a task asks for, and show the verdict with the student's id.

        Args:
            notebook: which task, such as ``"05"``.
            answer: a number, right to three digits.
        """
        name = f"{notebook}.v"
        if notebook not in self.tasks:
            near = suggest(str(notebook), self.tasks)
            return _show(Verdict(name, False, f"there is no task {notebook!r}.{near}"))
        passed, said = self.tasks[notebook].judge(answer)
        said = f"right, for {self.student}." if passed else f"{said} ({self.student})"
        return _show(Verdict(name, passed, said))


def variant(student: str) -> Variant:
    """A student's own worksheet: the same tasks for all, other numbers for each.

    The exercises of the notebooks ask for functions and are judged on inputs of their own: a
    right function is right for everybody's numbers, so there is nothing to vary. Here the answers
    are numbers, and a neighbor's are of no use.

    Args:
        student: an id, such as ``"s1234567"``.

    >>> variant("s1234567").tasks["05"].data
    {'C': 84, 'D': 64}
    >>> verdict = variant("s1234567").check("05", 1 / 8)
    ✗ 05.v: that is chance, 1/√D; the floor is lower. (s1234567)
    """
    return Variant(str(student).strip(), worksheet.tasks(student))
