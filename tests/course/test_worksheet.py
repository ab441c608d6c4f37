"""Worksheets by student id: stable, different, judged by slow computations of their own."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from sobook.course import exercises
from sobook.errors import SobookError
from sobook.losses import ProxyAnchor
from sobook.statistics import holm

STUDENTS = [f"s{number}" for number in range(60)]
NAMES = [f"{number:02}" for number in range(11)]


def recall(queries, neighbors):
    return np.mean([label in near[:2] for label, near in zip(queries, neighbors, strict=True)])


def chance(images_per_class):
    labels = np.repeat(np.arange(len(images_per_class)), images_per_class)
    pairs = itertools.permutations(labels, 2)
    return np.mean([a == b for a, b in pairs])


def attention(side, patch, prefix_tokens):
    tokens = prefix_tokens + len(range(0, side, patch)) ** 2
    return tokens * tokens


def softmax(cosines, scale, own):
    logits = scale * torch.tensor([cosines], dtype=torch.float64)
    return F.cross_entropy(logits, torch.tensor([own])).item()


def weight(cosines, scale, margin):
    """By autograd on the package's loss: the first proxy and three images of other classes."""
    loss = ProxyAnchor(2, 2, margin=margin, scale=scale)
    with torch.no_grad():
        loss.proxies[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    s = torch.tensor(cosines)
    x = torch.stack([s, (1 - s**2).sqrt()], dim=1).requires_grad_()
    labels = torch.ones(len(s), dtype=torch.long)
    pull = -scale * (x[:, 1] - margin)
    (gradient,) = torch.autograd.grad(loss(x, labels) - F.softplus(pull.logsumexp(0)), x)
    # The tangent at x towards the proxy; the second proxy has no negatives here.
    tangent = torch.stack([1 - s**2, -s * (1 - s**2).sqrt()], dim=1)
    push = (gradient * tangent).sum(1) / tangent.square().sum(1)
    return (push[0] * 2 / scale).item()


def floor(C, D):
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((C, D)))[
        0
    ]  # equal singular values
    gram = frame @ frame.T * C / D
    mean_square = (np.square(gram).sum() - C) / (C * (C - 1))  # of a tight frame of unit rows
    return math.sqrt(mean_square)


def common_mode(C, length_of_the_mean_proxy, rms_cosine):
    mean = (C**2 * length_of_the_mean_proxy**2 - C) / (C**2 - C)
    return mean**2 / rms_cosine**2


def shared(**both):
    space, plane = both["space"], both["map"]
    return np.mean([i in there for near, there in zip(space, plane, strict=True) for i in near])


def half_width(differences):
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return (interval.high - interval.low) / 2


def corrected(p):
    return sorted(holm(p))[1]


def threshold(answers, wanted):
    cosines, right = (np.array(column) for column in zip(*answers, strict=True))
    return min(t for t in cosines if right[cosines >= t].mean() >= wanted)


SLOW = (recall, chance, attention, softmax, weight, floor, common_mode, shared)
SLOW = dict(zip(NAMES, (*SLOW, half_width, corrected, threshold), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right(name):
    for student in STUDENTS[:12]:
        task = exercises.variant(student).tasks[name]
        assert SLOW[name](**task.data) == pytest.approx(task._answer, rel=1e-3)
        assert task.judge(SLOW[name](**task.data)) == (True, "right")


@pytest.mark.parametrize("name", NAMES)
def test_students_have_different_numbers(name):
    sheets = [exercises.variant(student).tasks[name] for student in STUDENTS]
    assert len({str(task.data) for task in sheets}) >= 40
    mine, others = sheets[0], sheets[1:]
    copied = [mine.judge(other._answer)[0] for other in others]
    assert np.mean(copied) < 0.35  # few values are possible where something is counted


def test_a_whole_sheet_cannot_be_copied():
    sheets = [exercises.variant(student).tasks for student in STUDENTS]
    for a, b in itertools.combinations(sheets, 2):
        assert sum(b[name].judge(a[name]._answer)[0] for name in NAMES) <= 4


def test_there_is_no_key_to_hand_in():
    """`s.check("05", s.answers["05"])` was graded as right."""
    sheet = exercises.variant("s1")
    assert not hasattr(sheet, "answers") and not hasattr(sheet.tasks["05"], "answer")


def test_with_a_salt_numbers_are_others_and_a_computation_is_still_right(monkeypatch):
    known = {name: task._answer for name, task in exercises.variant("s1").tasks.items()}
    monkeypatch.setenv("SOBOOK_WORKSHEET_SALT", "secret")
    salted = exercises.variant("s1").tasks
    assert sum(salted[name].judge(known[name])[0] for name in NAMES) <= 4
    assert all(salted[name].judge(SLOW[name](**salted[name].data))[0] for name in NAMES)


def test_a_student_finds_the_same_sheet_again_on_every_python():
    assert str(exercises.variant(" S1234567 ")).replace("S", "s") == str(
        exercises.variant("s1234567")
    ).replace("S", "s")
    known = exercises.variant("s1234567").tasks
    assert known["05"].data == {"C": 84, "D": 64}
    assert known["01"].data == {"images_per_class": [20, 11, 8, 14, 28]}
    assert known["08"].data == {"differences": [-0.0082, 0.008, 0.0019, 0.0124]}
    assert known["09"].data == {"p": [0.5174, 0.5267, 0.0577, 0.0072, 0.0024, 0.2266]}


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_named_and_the_answer_is_never_given_away(name):
    for student in STUDENTS[:20]:
        sheet = exercises.variant(student)
        task = sheet.tasks[name]
        assert "answer" not in task.data and "answer=" not in repr(task)
        told = [task.judge(mistaken) for mistaken in task._mistakes.values()]
        assert all(passed or said in task._mistakes for passed, said in told)
        verdict = sheet.check(name, -7.7)
        assert not verdict.passed and verdict.message == f"not yet. ({student})"


@pytest.mark.parametrize("value", [None, "text", float("nan"), [1, 2], object(), float("inf")])
def test_nothing_raises_and_nothing_silly_passes(value):
    sheet = exercises.variant("s1")
    assert not any(sheet.check(name, value).passed for name in NAMES)


def test_a_wrong_name_and_an_empty_id():
    verdict = exercises.variant("s1").check("50", 1)
    assert not verdict.passed and "no task" in verdict.message
    with pytest.raises(SobookError, match="student's id"):
        exercises.variant(" ")
