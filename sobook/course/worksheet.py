"""A worksheet with numbers of its own for each student: one small task per notebook.

A task is text, the student's data and one number as its answer. The data are drawn from the
student's id, by Python's own generator, so they are the same on every machine. A teacher sets
``SOBOOK_WORKSHEET_SALT`` to a secret when grading: then the data change, and a number that was
typed in is wrong where a computation is still right.
`sobook.course.exercises.variant` hands them out and checks them.
"""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from scipy import stats

from sobook.errors import SobookError

# Three digits are enough.
_RELATIVE, _ABSOLUTE = 2e-3, 1e-5


@dataclass(frozen=True)
class Task:
    """What one student is asked on one notebook."""

    text: str
    data: dict[str, object]
    _answer: float = field(repr=False)
    _mistakes: dict[str, float] = field(repr=False)  # what to say, and the number that shows it

    def judge(self, value: object) -> tuple[bool, str]:
        """Whether a number is right, and a sentence that never gives the answer away."""
        try:
            number = float(value)  # type: ignore[arg-type]  # whatever it is
        except (TypeError, ValueError):
            return False, "one number is asked for."
        if math.isnan(number):
            return False, "there is no number yet."
        if _close(number, self._answer):
            return True, "right"
        for sentence, mistaken in self._mistakes.items():
            if _close(number, mistaken):
                return False, sentence
        return False, "not yet."


def tasks(student: str) -> dict[str, Task]:
    """The worksheet of a student: notebook → task.

    Args:
        student: an id; spaces around it and upper case make no difference. The data also depend on
            the environment variable ``SOBOOK_WORKSHEET_SALT``.

    Raises:
        SobookError: the id is empty.
    """
    student = str(student).strip().lower()
    if not student:
        raise SobookError("a worksheet needs the student's id, such as variant('s1234567').")
    # A generator for each task: a task that changes leaves the others as they are.
    drawn_from = f"{os.environ.get('SOBOOK_WORKSHEET_SALT', '')}{student}"
    return {name: make(random.Random(f"{drawn_from}/{name}")) for name, make in _TASKS.items()}


def _close(number: float, target: float) -> bool:
    return math.isclose(number, target, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _uniform(dice: random.Random, low: float, high: float, digits: int) -> float:
    return round(dice.uniform(low, high), digits)


def _recall(dice: random.Random) -> Task:
    queries = [dice.randint(0, 4) for _ in range(9)]
    neighbors = [
        [label if dice.random() < 0.35 else (label + dice.randint(1, 4)) % 5 for _ in range(4)]
        for label in queries
    ]

    def recall(k: int) -> float:
        pairs = zip(queries, neighbors, strict=True)
        return sum(label in near[:k] for label, near in pairs) / len(queries)

    hits = sum(near[:2].count(label) for label, near in zip(queries, neighbors, strict=True))
    return Task(
        "Recall@2 of these queries: the label of each, and those of its four nearest neighbors, "
        "nearest first.",
        {"queries": queries, "neighbors": neighbors},
        recall(2),
        {
            "that is precision; Recall@2 asks for one relevant neighbor or more.": hits / 18,
            "that is Recall@1: look at two neighbors.": recall(1),
            "that is Recall@4: look at two neighbors.": recall(4),
        },
    )


def _chance(dice: random.Random) -> Task:
    sizes = [dice.randint(2, 40) for _ in range(5)]
    total = sum(sizes)
    return Task(
        "The expected Recall@1 of neighbors drawn at random, with so many images in each class.",
        {"images_per_class": sizes},
        sum(n * (n - 1) for n in sizes) / (total * (total - 1)),
        {
            "an image cannot find itself: n − 1 of N − 1.": sum((n / total) ** 2 for n in sizes),
            "classes are not equally large.": 1 / len(sizes),
        },
    )


def _attention(dice: random.Random) -> Task:
    patch, prefix = dice.choice((8, 14, 16)), dice.choice((1, 2))
    side = patch * dice.randint(8, 20)
    patches = (side // patch) ** 2
    return Task(
        "The number of pairs of tokens in one attention head (each token with every token, itself "
        "included) for a square picture.",
        {"side": side, "patch": patch, "prefix_tokens": prefix},
        (patches + prefix) ** 2,
        {
            "the tokens before the patches are missing.": patches**2,
            "that is the number of tokens: every token looks at every token.": patches + prefix,
        },
    )


def _softmax(dice: random.Random) -> Task:
    cosines = [_uniform(dice, -0.2, 0.6, 2) for _ in range(4)]
    scale, own = dice.choice((8, 12, 16)), dice.randint(0, 3)

    def loss(factor: float) -> float:
        return math.log(sum(math.exp(factor * (s - cosines[own])) for s in cosines))

    return Task(
        "The cross-entropy of one image that chooses among four class vectors with logits "
        "scale · cosine; `own` counts from 0.",
        {"cosines": cosines, "scale": scale, "own": own},
        loss(scale),
        {"the scale is missing: logits are scale · cosine.": loss(1)},
    )


def _weight(dice: random.Random) -> Task:
    scale, margin = dice.choice((16, 24, 32)), _uniform(dice, 0.05, 0.15, 2)
    cosines = [_uniform(dice, -margin - 0.08, -margin + 0.08, 3) for _ in range(3)]

    def weight(one: float, shift: float) -> float:
        exponentials = [math.exp(scale * (s + shift)) for s in cosines]
        return exponentials[0] / (one + sum(exponentials))

    return Task(
        "Proxy Anchor: the weight of the first of these three negatives of a proxy, in the "
        "gradient of the push.",
        {"cosines": cosines, "scale": scale, "margin": margin},
        weight(1, margin),
        {
            "the 1 inside the logarithm is missing.": weight(0, margin),
            "the margin is missing: exponents are α (s + δ).": weight(1, 0),
            "the sign of the margin: exponents are α (s + δ).": weight(1, -margin),
        },
    )


def _floor(dice: random.Random) -> Task:
    dim = dice.choice((32, 48, 64, 96, 128))
    classes = dim + dice.randint(10, 200)
    total = classes**2 / dim - classes
    return Task(
        "The lowest RMS cosine that so many directions can have in so many dimensions.",
        {"C": classes, "D": dim},
        math.sqrt(total / (classes * (classes - 1))),
        {
            "that is chance, 1/√D; the floor is lower.": 1 / math.sqrt(dim),
            "that is the floor of the sum of squares.": total,
            "take the root: RMS is the root of the mean square.": total / classes / (classes - 1),
        },
    )


def _common_mode(dice: random.Random) -> Task:
    classes, length = dice.randint(20, 200), _uniform(dice, 0.3, 0.6, 2)
    mean = (classes * length**2 - 1) / (classes - 1)
    rms = round(mean * dice.uniform(1.1, 1.6), 3)
    return Task(
        "The fraction of soft orthogonality (the mean squared cosine) that the common mode "
        "accounts for, from the length of the mean of the unit proxies and the RMS cosine.",
        {"C": classes, "length_of_the_mean_proxy": length, "rms_cosine": rms},
        (mean / rms) ** 2,
        {
            "square it: the term is a mean of squares.": mean / rms,
            "‖mean‖² still holds the C ones of the diagonal.": length**4 / rms**2,
        },
    )


def _shared(dice: random.Random) -> Task:
    space = [dice.sample(range(12), 4) for _ in range(6)]
    plane = [
        [*dice.sample(near, kept), *dice.sample([i for i in range(12) if i not in near], 4 - kept)]
        for near, kept in ((near, dice.randint(0, 4)) for near in space)
    ]
    common = [len(set(a) & set(b)) for a, b in zip(space, plane, strict=True)]
    aligned = sum(
        a == b for x, y in zip(space, plane, strict=True) for a, b in zip(x, y, strict=True)
    )
    return Task(
        "The fraction of neighbors in the space that are neighbors on the map as well.",
        {"space": space, "map": plane},
        sum(common) / 24,
        {
            "that is a number of neighbors per point: divide by four.": sum(common) / 6,
            "order does not matter: look anywhere in the same row.": aligned / 24,
        },
    )


def _half_width(dice: random.Random) -> Task:
    differences = [_uniform(dice, -0.02, 0.03, 4) for _ in range(dice.randint(4, 7))]
    n = len(differences)
    mean = sum(differences) / n
    squares = sum((d - mean) ** 2 for d in differences)
    t = float(stats.t.ppf(0.975, n - 1))
    error = math.sqrt(squares / (n - 1) / n)
    return Task(
        "Half the width of the 95 % t interval of the mean of these paired differences.",
        {"differences": differences},
        t * error,
        {
            "with so few seeds it is t, not 1.96.": 1.959964 * error,
            "that is the whole width.": 2 * t * error,
            "the mean of n values is more certain than one of them: divide by √n.": (
                t * error * math.sqrt(n)
            ),
            "a sample's deviation divides by n − 1.": t * math.sqrt(squares) / n,
        },
    )


def _holm(dice: random.Random) -> Task:
    family = dice.randint(5, 9)
    first, second = _uniform(dice, 0.002, 0.006, 4), _uniform(dice, 0.0062, 0.009, 4)
    rest = [_uniform(dice, 0.02, 0.9, 4) for _ in range(family - 2)]
    p_values = [first, second, *rest]
    dice.shuffle(p_values)
    return Task(
        "The second smallest of these p-values, corrected for the family by Holm's method.",
        {"p": p_values},
        max(family * first, (family - 1) * second),
        {
            "that is not corrected.": second,
            "that is Bonferroni's: Holm multiplies the second smallest by n − 1.": family * second,
        },
    )


def _threshold(dice: random.Random) -> Task:
    similarities = sorted(dice.sample(range(300, 990), 10), reverse=True)
    right = [index < 2 or dice.random() < 0.75 - 0.06 * index for index in range(10)]
    cosines = [value / 1000 for value in similarities]
    wanted = dice.choice((0.7, 0.75, 0.8))
    fit = [t for i, t in enumerate(cosines, 1) if sum(right[:i]) / i >= wanted]
    answers = list(zip(cosines, right, strict=True))
    dice.shuffle(answers)
    return Task(
        "The smallest of these cosines t for which at least the fraction `wanted` of the answers "
        "with cosine ≥ t is right. Each answer: its cosine, and whether it is right.",
        {"answers": answers, "wanted": wanted},
        min(fit),
        {
            "that refuses more than it has to: the *smallest* that will do.": max(fit),
            "that answers everything.": min(cosines) if min(fit) != min(cosines) else math.inf,
        },
    )


_TASKS: dict[str, Callable[[random.Random], Task]] = {
    "00": _recall,
    "01": _chance,
    "02": _attention,
    "03": _softmax,
    "04": _weight,
    "05": _floor,
    "06": _common_mode,
    "07": _shared,
    "08": _half_width,
    "09": _holm,
    "10": _threshold,
}
