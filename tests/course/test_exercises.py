"""Exercises: solutions pass, stubs do not, and typical mistakes are named."""

import ast
import contextlib
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.decomposition import PCA

from sobook.course import compare, exercises
from sobook.course.checks import CHECKS
from sobook.course.exercises import judge

SOURCE = Path(__file__).resolve().parents[2] / "notebooks" / "source"
NAMES = exercises.known()


def cells(notebook: str) -> list[str]:
    (script,) = SOURCE.glob(f"{notebook}_*.py")
    return re.split(r"(?m)^(?=# %%)", script.read_text(encoding="utf-8"))


def answers(exercise: str) -> dict[str, object]:
    """The functions of an exercise as the notebook has them: the stub's and the solution's."""
    found = {}
    for cell in cells(exercise[:2]):
        if f'exercises.check("{exercise}"' in cell:
            kind = "solution" if cell.startswith('# %% tags=["solution"]') else "stub"
            found[kind] = run_function(cell, exercise)
    return found


def run_function(cell: str, exercise: str):
    """Define what a cell hands to `check`, a function or a value, without the rest of it."""
    name = re.search(rf'exercises\.check\("{exercise}", (\w+)\)', cell).group(1)
    nodes = ast.parse(cell).body
    body = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == name]
    body += [
        n for n in nodes if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == name
    ]
    room = {"np": np, "torch": torch, "F": F, "math": math, "stats": stats}
    room["variance_kept"] = lambda x: np.cumsum(PCA().fit(x).explained_variance_ratio_)
    room["soft_orthogonality"] = room["orthogonality"] = two_sided
    exec(compile(ast.Module(body, []), exercise, "exec"), room)
    return room[name]


def two_sided(P):
    unit = F.normalize(P, dim=1)
    return ((unit @ unit.T).square().sum() - len(P)) / (len(P) * (len(P) - 1))


def right(exercise):
    return answers(exercise)["solution"]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("exercise", NAMES)
def test_the_solution_passes_and_the_stub_does_not(exercise):
    found = answers(exercise)
    assert set(found) == {"stub", "solution"}
    verdict = judge(exercise, found["solution"])
    assert verdict.passed, verdict
    assert not judge(exercise, found["stub"]).passed


def test_a_right_choice_of_letters_says_why_each_holds():
    assert judge("00.4", "abe").message.count("\n  ") == 3
    assert re.findall(r"\n  (\w): ", judge("09.4", "D, b").message) == ["b", "d"]


def test_notebooks_number_their_exercises_in_order_and_all_are_known():
    scripts = sorted(SOURCE.glob("[0-9][0-9]_*.py"))
    assert len(scripts) == 11
    for script in scripts:
        text, number = script.read_text(encoding="utf-8"), script.stem[:2]
        titles = re.findall(r"(?m)^# ### Exercise (\d)", text)
        assert len(titles) >= 3 and titles == sorted(titles)
        checked = re.findall(rf'exercises\.check\("{number}\.(\d)"', text)
        assert checked == [title for title in titles for _ in ("stub", "solution")]
        assert exercises.known(number) == tuple(f"{number}.{title}" for title in titles)


def cosines_of(x):
    return x @ x.T


def recall(x, labels, k, away=9):
    nearest = np.argsort(away * np.eye(len(x)) - x @ x.T)[:, :k]
    return (labels[nearest] == labels[:, None]).any(1).mean()


# exercise, a wrong answer, and what the verdict has to say of it
MISTAKES = [
    ("00.1", lambda x, y, k: recall(x, y, k, away=0), "itself"),
    ("00.1", lambda x, y, k: 100 * recall(x, y, k), "percentage"),
    ("00.2", lambda a, b: b - a, "change of Recall@1 itself"),
    ("00.2", lambda a, b: max((b - a) / (1 - a), 0), "do not clip"),
    ("00.3", lambda p: np.sqrt((cosines_of(columns(p)) ** 2).mean()), "as it was given"),
    ("00.3", lambda p: np.sqrt((off(cosines_of(columns(p))) ** 2).mean()), "use axis 1"),
    ("00.3", lambda p: (off(cosines_of(unit(p))) ** 2).mean(), "root"),
    ("01.1", lambda y, share, seed: (np.arange(len(y)), np.arange(0)), "nothing is held out"),
    ("01.1", lambda y, share, seed: by_image(y, seed), "both parts"),
    ("01.1", lambda y, share, seed: (~np.isin(y, np.arange(5)), np.isin(y, np.arange(5))), "masks"),
    ("01.1", lambda y, share, seed: (np.flatnonzero(y >= 5), np.flatnonzero(y < 5)), "seed"),
    ("01.1", lambda y, share, seed: (np.flatnonzero(y >= 6), np.flatnonzero(y < 6)), "6 classes"),
    ("01.2", lambda y: ((np.bincount(y) / len(y)) ** 2).sum(), "cannot find itself"),
    ("01.2", lambda y: 1 / len(np.unique(y)), "equally many"),
    ("01.3", lambda y: y - y.min(), "gaps"),
    ("01.3", lambda y: np.unique(y, return_inverse=True)[1] + 1, "off by one"),
    ("02.1", lambda x, p: x.reshape(len(x), -1, 3 * p * p), "cuts across patches"),
    ("02.1", lambda x, p: x[:, :, :p, :p].reshape(len(x), -1), "shape"),
    ("02.2", lambda side, patch, prefix: (side // patch) ** 2, "before the patches"),
    ("02.2", lambda side, patch, prefix: side // patch + prefix, "square"),
    ("02.3", lambda wrong, related: wrong * related, "right species count"),
    ("02.3", lambda wrong, related: 1 - wrong, "species"),
    ("03.1", lambda ap, an, m: "hard" if an <= ap else "easy", "within the margin"),
    ("03.1", lambda ap, an, m: kind(an, ap, m), "exchanged"),
    ("03.1", lambda ap, an, m: kind(ap, an, 0.2), "does not follow it"),
    ("03.1", lambda ap, an, m: "semi-hard" if abs(ap - an) < m + 0.1 else "easy", "however little"),
    ("03.1", lambda ap, an, m: "medium", "'medium'"),
    ("03.1", lambda ap, an, m: kind(ap, an, m, closed=True), "as near as the positive"),
    ("03.1", lambda ap, an, m: "semi-hard" if an == ap + m else kind(ap, an, m), "the loss is 0"),
    ("03.2", lambda x, y, t: sup_con(x, y, t), "own positives"),
    ("03.2", lambda x, y, t: right("03.2")(x, y, t).item(), "no longer a tensor"),
    ("03.3", lambda t: 1 / t, "where is the 2"),
    ("03.3", lambda t: 2 * t, "low"),
    ("03.4", lambda a, b: a.test.max() - b.test.max(), "chooses both settings on the test"),
    ("03.4", lambda a, b: a.validation.max() - b.validation.max(), "report the test values"),
    ("04.1", lambda y, C, margin, scale: zero_loss(y, C, margin, scale), "P⁺"),
    ("04.1", lambda y, C, margin, scale: right("04.1")(y, C), "does not follow"),
    ("04.2", lambda s, y: F.cross_entropy(s, y), "α is missing"),
    ("04.2", lambda s, y: F.cross_entropy((32 * s).softmax(1), y), "logits"),
    ("04.3", lambda w: 1 / w.square().sum(0), "need not sum to 1"),
    ("04.3", lambda w: w.sum(1).square() / w.square().sum(1), "shape"),
    ("04.4", lambda x, y, p, m, s: anchor(x, y, p, m, s, push_zero=True), "the pull is right"),
    ("04.4", lambda x, y, p, m, s: anchor(x, y, p, m, s, pull_zero=True), "the push is right"),
    ("04.4", lambda x, y, p, m, s: right("04.4")(x, y, p, m, s).item(), "no gradient"),
    ("04.4", lambda x, y, p, m, s: anchor(x, y, p, m, s, added=True), "batch of one class"),
    ("05.1", lambda sigma, C: (sigma**2).sum() - C, "squares them"),
    ("05.1", lambda sigma, C: ((sigma**2 - 1) ** 2).sum(), "C eigenvalues"),
    ("05.2", lambda D: np.random.default_rng(0).standard_normal((D + 1, D)), "not equiangular"),
    ("05.2", lambda D: np.eye(D + 1), "shape"),
    ("05.2", lambda D: np.vstack([np.eye(D), np.eye(D)[:1]]), "coincide"),
    ("05.3", two_sided, "two-sided"),
    ("05.3", lambda P: float(right("05.3")(P)), "no gradient"),
    ("05.4", lambda w, c: two_sided(w), "columns: those are the dimensions"),
    ("05.4", lambda w, c: two_sided(w.T), "rows are turned as well"),
    ("05.4", lambda w, c: two_sided(min(w, w.T, key=len)), "shorter side"),
    ("05.4", lambda w, c: two_sided(max(w, w.T, key=len)), "longer side"),
    ("05.4", lambda w, c: two_sided(w if len(w) == c else w.T).item(), "no longer a tensor"),
    ("06.1", lambda c: np.unravel_index(c.argmax(), c.shape), "diagonal"),
    ("06.1", lambda c: np.unravel_index(c.argmin(), c.shape), "most distant"),
    ("06.1", lambda c: (c - 2 * np.eye(len(c))).argmax(), "two numbers"),
    ("06.1", lambda c: (0, len(c) - 1), r"not yet. Yours .* expected 0\.\d"),
    ("06.2", lambda u: u.mean(0) @ u.mean(0), "diagonal"),
    ("06.2", lambda u: np.linalg.norm(u.mean(0)), "not squared"),
    ("06.3", lambda u: u - u.mean(0), "unit length"),
    ("06.3", lambda u: unit(u - u.mean(1, keepdims=True)), "own mean"),
    ("07.1", lambda share, x: right("07.1")(share, x) - 1, "off by one"),
    ("07.1", lambda share, x: np.cumsum(x.var(axis=0)), "one number"),
    ("07.2", lambda a, b: (a == b).mean(), "order does not matter"),
    ("07.2", lambda a, b: np.isin(a, b).mean(), "row with row"),
    ("07.3", lambda x: np.arange(len(x)), "its own nearest"),
    ("07.3", lambda x: (unit(x) @ unit(x).T - 9 * np.eye(len(x))).argmax(1), "cosine"),
    ("08.1", lambda d: right("08.1")(d)[::-1], "exchanged"),
    ("08.1", lambda d: stats.norm.interval(0.95, d.mean(), stats.sem(d)), "five values need t"),
    ("08.2", lambda h, s: int(np.ceil((1.96 * s / h) ** 2)), "1.96"),
    ("08.2", lambda h, s: int(np.ceil((s / h) ** 2)), "factor t|1.96"),
    ("08.3", lambda r: r.max() - r.mean(), "best of all"),
    ("08.3", lambda r: r.max(0).mean() - r.mean(), "axis"),
    ("08.4", lambda h, y: np.std(h, ddof=1) / np.sqrt(len(h)), "12 species"),
    ("08.4", lambda h, y: np.std(by_class(h, y), ddof=1), "√C"),
    ("09.1", lambda s, c: -s / c, "C − 1 negatives"),
    ("09.1", lambda s, c: s / (c - 1), "sign"),
    ("09.2", lambda s, t: (1 - t) * s + t, "opposite signs"),
    ("09.2", lambda s, t: np.sqrt(1 - t) * s - t, "both"),
    ("09.3", lambda p: np.minimum(np.asarray(p) * len(p), 1), "Bonferroni"),
    ("09.3", lambda p: np.minimum(np.sort(p) * (len(p) - np.arange(len(p))), 1), "sorted"),
    ("09.3", lambda p: [min(x * (len(p) - sorted(p).index(x)), 1) for x in p], "largest so far"),
    ("10.1", lambda q, g, k: np.argsort(-(g @ q))[:k], "dot product"),
    ("10.1", lambda q, g, k: np.argsort(-(unit(g) @ q))[:k][::-1], "nearest first"),
    ("10.2", lambda s, m: s - m**2, "divide by 1 − m²"),
    ("10.2", lambda s, m: (s - m) / (1 - m), "not m"),
    ("10.3", lambda s, right, wanted: wanted, "not a similarity"),
    ("10.3", lambda s, right, wanted: s.min(), "answers everything"),
    ("10.4", lambda x, k, q: np.quantile(nearness(x, k, 0), q), "finds itself"),
    ("10.4", lambda x, k, q: np.quantile(nearness(x, 1), q), "mean of k"),
]
LETTERS = {
    "00.4": [("abce", "416"), ("d", "section 2"), ("a", "2 more of"), ("axe", "'x' is none")],
    "01.4": [("bcd", "protocol"), ("bc", "1 more of these holds"), (3, "no letters")],
    "02.4": [("bc", "seen already"), ("a", "no test"), ("e", "not causal"), ("b", "1 more")],
    "06.4": [("b", "same 40"), ("d", "root"), ("ac", "1 more")],
    "07.4": [("ab", "usual choice"), ("e", "test classes"), ("ac", "1 more")],
    "09.4": [("abd", "ten paired seeds"), ("b", "1 more"), ("", "no letter"), ("ce", "above")],
    "10.5": [("abd", "chosen on the pictures of the index"), ("ab", "2 more"), ("", "no letter")],
}
MISTAKES += [(exercise, *pair) for exercise, pairs in LETTERS.items() for pair in pairs]


def by_image(labels, seed):
    return np.split(np.random.default_rng(seed).permutation(len(labels)), [3 * len(labels) // 4])


def columns(rows):
    return rows / np.linalg.norm(rows, axis=0)


def nearness(x, k, away=9):
    return -np.sort(away * np.eye(len(x)) - x @ x.T, axis=1)[:, :k].mean(1)


def off(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def kind(ap, an, margin, closed=False):
    if an < ap or (an == ap and not closed):
        return "hard"
    return "semi-hard" if an < ap + margin else "easy"


def sup_con(x, labels, temperature):
    """The formula with every image among its own positives."""
    logits = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T / temperature
    same = labels[:, None] == labels
    others = logits.masked_fill(torch.eye(len(x), dtype=torch.bool), -math.inf)
    log_share = logits - others.logsumexp(1, keepdim=True)
    return -((log_share * same).sum(1) / same.sum(1)).mean()


def anchor(x, labels, proxies, margin, scale, pull_zero=False, push_zero=False, added=False):
    cosines = F.normalize(x, dim=1) @ F.normalize(proxies, dim=1).T
    own = F.one_hot(labels, len(proxies)).bool()
    pull = (-scale * (cosines - margin)).masked_fill(~own, 0 if pull_zero else -1e4)
    push = (scale * (cosines + margin)).masked_fill(own, 0 if push_zero else -1e4)
    if added:  # NaN where a whole column is −∞
        push = scale * (cosines + margin) + (~own).float().log()
    return F.softplus(pull.logsumexp(0))[own.any(0)].mean() + F.softplus(push.logsumexp(0)).mean()


def zero_loss(labels, classes, margin, scale):
    """The pull averaged over all classes."""
    positives = np.bincount(labels, minlength=classes)
    e = np.exp(margin * scale)
    return np.log1p(positives * e).mean() + np.log1p((len(labels) - positives) * e).mean()


def by_class(hits, labels):
    return [hits[labels == one].mean() for one in np.unique(labels)]


def test_every_exercise_has_typical_mistakes():
    counts = Counter(exercise for exercise, *_ in MISTAKES)
    assert set(counts) == set(NAMES) and min(counts.values()) >= 2


@pytest.mark.parametrize("exercise", [name for name in NAMES if name not in LETTERS])
def test_every_clue_can_be_given(exercise):
    """The value of its mistake differs from the truth and from those of the clues before it."""
    check, clues, listed, given = CHECKS[exercise].args[0], [], set(), set()
    with contextlib.suppress(compare.Wrong):  # raised by what is asked of the answer itself
        for value, other, *tolerance in check(zero) or ():
            if isinstance(other, str):
                clues.append((value, other))
                listed.add(other)
            else:
                given |= {message(mistake, other, clues, *tolerance) for mistake, _ in clues}
                clues = []
    assert listed <= given


@pytest.mark.parametrize("exercise, wrong, says", MISTAKES)
def test_a_typical_mistake_is_named(exercise, wrong, says):
    verdict = judge(exercise, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict


def stop(*_):
    raise KeyError("a mistake of mine")


def zero(*_):
    return torch.zeros(())


def message(*compared):
    """What is said of a wrong answer, "" of a right one."""
    try:
        compare.compare(*compared)
    except compare.Wrong as wrong:
        return str(wrong)
    return ""


NONSENSE = [None, "text", 3, float("nan"), [], object(), stop, zero, lambda: 1]
NONSENSE += [lambda *_: None, lambda *_: "text", lambda *_: np.zeros((2, 2, 2))]
NONSENSE += [lambda *_: [[1], [1, 2]], lambda *_: torch.tensor(float("inf"))]


@pytest.mark.parametrize("exercise", NAMES)
def test_nothing_raises_and_nothing_silly_passes(exercise, capsys):
    for answer in NONSENSE:
        verdict = exercises.check(exercise, answer)
        assert not verdict.passed and len(verdict.message) > 10
    assert "could not be judged" not in capsys.readouterr().out


def test_an_answer_cannot_change_what_it_is_compared_with():
    def spoils(x, labels, k):
        x[:] = 0
        return 1.0

    before = judge("00.1", spoils)
    assert str(judge("00.1", spoils)) == str(before)
    assert judge("00.1", right("00.1")).passed


def test_unknown_exercises_get_the_near_match():
    verdict = exercises.check("04.20", 1)
    assert not verdict.passed and "Did you mean '04.2'" in verdict.message


TABLE = np.array([[1.0, 2.0], [3.0, 5.0], [-8.0, 11.0]])


@pytest.mark.parametrize(
    "got, expected, says",
    [
        (-2.0, 2.0, "sign"),
        (4.2, 2.1, "twice"),
        (1.05, 2.1, "factor 2"),
        (210, 2.1, "percentage"),
        (9, 3, "root"),
        (3.0, 4.0, "off by one"),
        (0.3, 0.7, "one minus"),
        (0.25, 4.0, "reciprocal"),
        (5.0, 4.1, "not yet. Yours 5, expected 4.1"),
        (TABLE.T, TABLE, "Transposed"),
        (TABLE + 0.5, TABLE, "same 0.5"),
        (-TABLE, TABLE, "sign"),
        (3 * TABLE, TABLE, "lengths"),
        (TABLE[::-1], TABLE, "order"),
        (TABLE * [[1.0], [2.0], [3.0]], TABLE, "unit length"),
        (TABLE + np.eye(3, 2), TABLE, r"2 of 6 entries are off; the worst, at \(0, 0\), is 2 and"),
    ],
)
def test_how_a_wrong_answer_relates_to_the_right_one(got, expected, says):
    assert re.search(says, message(got, expected))
