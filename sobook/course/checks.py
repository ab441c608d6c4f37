"""Checks of the exercises of the course: on which inputs, and which mistakes are known.

One function per exercise, in the order of the notebooks; `CHECKS` at the end numbers them. Each
yields what typical mistakes give, with a sentence that names each, and then what the student's
function gives, with the truth, computed the slow way (and a tolerance, where it is not the usual).
"""

import math
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from sobook import files
from sobook.course.compare import Steps, Wrong, as_array, call, settle, unit_rows


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The C(C−1) entries off the diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _cosines(rows: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of rows."""
    return unit_rows(rows) @ unit_rows(rows).T


def _check_tensor(value: object) -> None:
    if not torch.is_tensor(value):
        raise Wrong("the value is right, but it is no longer a tensor: no gradient can flow.")


def recall_at_k(answer) -> Steps:
    rows, labels = unit_rows(_rng().standard_normal((40, 6))), np.repeat(np.arange(10), 4)
    cosines = rows @ rows.T
    by_rank = labels[np.argsort(-(cosines - 10 * np.eye(len(rows))), axis=1)] == labels[:, None]
    farthest_first = labels[np.argsort(cosines, axis=1)] == labels[:, None]
    for k in (1, 3):
        relevant = by_rank[:, :k]
        yield 1.0, "every query found itself: set the diagonal of the cosines aside first."
        yield farthest_first[:, :k].any(1).mean(), "these are the *least* similar: sort downwards."
        yield relevant.mean(), "that is precision; Recall@K asks if *any* of the k is relevant."
        yield by_rank[:, : k - 1].any(1).mean(), "one neighbor too few: k besides the query."
        yield call(answer, rows, labels, k), relevant.any(1).mean()


def errors_removed(answer) -> Steps:
    for before, after in ((0.4, 0.7), (0.6, 0.5)):
        gain, errors = after - before, 1 - before
        yield gain, "that is the change of Recall@1 itself: divide by the errors, 1 − before."
        yield gain / before, "that is relative to the hits; divide by the errors, 1 − before."
        yield (1 - after) / errors, "that is the fraction of the errors that is *left*."
        yield 0.0, "errors can also be added: the value may be negative, so do not clip it at 0."
        yield call(answer, before, after), gain / errors


def rms_cosine(answer) -> Steps:
    rows = _rng(1).standard_normal((12, 5)) * _rng(2).uniform(0.5, 3, (12, 1))
    gram = _cosines(rows)
    off, off_raw = _off_diagonal(gram), _off_diagonal(rows @ rows.T)
    by_column = rows / np.linalg.norm(rows, axis=0)
    mixed = by_column @ by_column.T
    as_given, half = np.sqrt((mixed**2).mean()), np.sqrt((_off_diagonal(mixed) ** 2).mean())
    yield as_given, "this is the function as it was given."
    yield half, "better: but columns have unit length; proxies are rows, so use axis 1."
    yield np.sqrt((gram**2).mean()), "leave out the diagonal: its C ones are not pairs."
    yield np.sqrt((off**2).sum() / gram.size), "divide by the C(C−1) pairs, not by C²."
    yield np.sqrt((off_raw**2).mean()), "scale the rows to unit length first."
    yield np.abs(off).mean(), "that is the mean absolute cosine: square, average, root."
    yield call(answer, rows), np.sqrt((off**2).mean())


def split_by_class(answer) -> None:
    labels = _rng().permutation(np.repeat(np.arange(20), _rng(1).integers(2, 6, 20)))
    parts = call(answer, labels, 0.25, 0)
    if not isinstance(parts, (tuple, list)) or len(parts) != 2:
        raise Wrong("two arrays of indices are asked for: (train, held out).")
    train, held_out = (as_array(part) for part in parts)
    if train.dtype == bool or held_out.dtype == bool:
        raise Wrong("these are masks; indices are asked for: np.flatnonzero(mask).")
    if len(held_out) == 0:
        raise Wrong("nothing is held out.")
    if not np.array_equal(np.sort([*train, *held_out]), np.arange(len(labels))):
        raise Wrong("every image must be in exactly one of the two parts.")
    if len(both := np.intersect1d(labels[train], labels[held_out])):
        raise Wrong(f"{len(both)} classes are in both parts: draw *classes*, not images.")
    if (got := len(np.unique(labels[held_out]))) != 5:
        raise Wrong(f"{got} classes are held out; a fraction of 0.25 of 20 classes is 5.")
    if np.array_equal(train, as_array(call(answer, labels, 0.25, 1)[0])):
        raise Wrong("another seed gives the same split: draw the classes with the seed.")


def chance_recall(answer) -> Steps:
    labels = np.repeat(np.arange(5), [2, 3, 4, 10, 21])
    counts, total = np.bincount(labels), len(labels)
    yield ((counts / total) ** 2).sum(), "an image cannot find itself: n_c − 1 of N − 1."
    yield 1 / len(counts), "that holds for very many images, equally many in each class."
    yield ((counts - 1) / (total - 1)).mean(), "larger classes send more queries: weight n_c / N."
    yield call(answer, labels), (counts * (counts - 1)).sum() / (total * (total - 1))


def labels_from_zero(answer) -> Steps:
    labels = np.array([101, 101, 150, 103, 150, 200])
    yield labels - 101, "gaps remain, and with them rows of proxies that belong to no class."
    yield [0, 0, 1, 2, 1, 3], "numbered in order of appearance; use the order of the old labels."
    yield call(answer, labels), [0, 0, 2, 1, 2, 3]


def patchify(answer) -> Steps:
    batch = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    blocks = batch.reshape(2, 3, 2, 2, 3, 2)  # (B, channel, row, y, column, x)

    def ordered(*axes):
        return blocks.permute(*axes).reshape(2, 6, 12).numpy()

    reshaped = batch.reshape(2, 6, 12).numpy()
    yield reshaped, "one reshape cuts across patches: split rows and columns, then permute."
    yield ordered(0, 2, 4, 3, 5, 1), "within a patch, channels come first; yours have them last."
    yield ordered(0, 4, 2, 1, 3, 5), "patches go row by row; yours go column by column."
    yield call(answer, batch, 2), ordered(0, 2, 4, 1, 3, 5)


def tokens(answer) -> Steps:
    for side, patch, prefix in ((64, 8, 2), (224, 16, 1)):
        grid = side // patch
        yield grid**2, "the tokens before the patches are missing."
        yield grid + prefix, "patches fill a square: rows times columns."
        yield side**2 // patch + prefix, "a patch has p × p pixels, not p."
        yield call(answer, side, patch, prefix), grid**2 + prefix


def genus_recall(answer) -> Steps:
    wrong, related = 0.4, 0.7
    yield wrong * related, "those are the errors within the genus; right species count, too."
    yield 1 - wrong + related, "related_share is a fraction of the *errors*: multiply."
    yield 1 - wrong, "that is the recall of the species: some errors are of the right genus."
    yield call(answer, wrong, related), 1 - wrong + wrong * related


def triplet_kind(answer) -> None:
    cases = {  # the last two are on the borders, exact in binary
        (0.5, 0.9, 0.2): ("easy", "it is far beyond the positive. Are d_ap and d_an exchanged?"),
        (0.5, 0.6, 0.2): ("semi-hard", "it is farther than the positive, but within the margin."),
        (0.5, 0.3, 0.2): ("hard", "it is nearer than the positive, by however little."),
        (0.5, 0.6, 0.05): ("easy", "right for a margin of 0.2, but yours does not follow it."),
        (0.5, 0.5, 0.25): ("hard", "as near as the positive: semi-hard is *farther*."),
        (0.5, 0.75, 0.25): ("easy", "just at the margin (d_an = d_ap + m) the loss is 0."),
    }
    for case, (kind, why) in cases.items():
        if (got := str(call(answer, *case))) not in ("easy", "semi-hard", "hard"):
            raise Wrong(f'the answer is "easy", "semi-hard" or "hard"; this is {got!r}.')
        if got != kind:
            raise Wrong(f"(d_ap, d_an, margin) = {case} is {kind}, not {got}: {why}")


def supervised_contrastive(answer) -> Steps:
    rows = torch.from_numpy(_rng(4).standard_normal((7, 3)) * _rng(5).uniform(0.5, 3, (7, 1)))
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    unit, itself = unit_rows(rows.numpy()), np.eye(len(rows), dtype=bool)
    same = labels.numpy()[:, None] == labels.numpy()
    every = np.ones_like(same)

    def loss(top=same & ~itself, below=~itself, *, x=unit, t=0.2, divide=True, mean_inside=False):
        """The formula, or with a mistake, such as other pairs above or below the fraction."""
        logits, positives = x @ x.T / t, top.sum(1)
        e = np.exp(logits)
        total = (e * below).sum(1, keepdims=True)
        if mean_inside:
            return -np.log((e * top).sum(1) / positives / total[:, 0]).mean()
        each = ((logits - np.log(total)) * top).sum(1)
        return -(each / positives if divide else each).mean()

    yield loss(same, every), "this is the function as it was given."
    yield loss(same), "better: but an image is still among its own positives."
    yield loss(below=every), "better: but an image is still in its own denominator."
    yield loss(divide=False), "divide by |P_i|: the inner sum is a mean over the positives."
    yield loss(mean_inside=True), "the mean over positives is outside of the logarithm."
    yield loss(below=~same), "in the denominator are all other images, not only negatives."
    yield loss(x=rows.numpy()), "scale the rows to unit length first."
    yield loss(t=0.1), "it does not follow the temperature."
    value = call(answer, rows, labels, 0.2)
    yield value, loss()
    _check_tensor(value)


def scale_of_nca(answer) -> Steps:
    for temperature in (1 / 9, 0.5, 3.0):
        yield 1 / temperature, "where is the 2 of d² = 2 − 2s?"
        yield temperature / 2, "that is the temperature of NormFace; its scale is asked for."
        yield -2 / temperature, "the sign: a large cosine is a small distance."
        yield 2 * temperature, "a *low* temperature is a *large* scale."
        yield call(answer, temperature), 2 / temperature


def fair_gain(answer) -> Steps:
    rng = _rng(6)
    for _ in range(3):
        recalls = rng.uniform(0.4, 0.6, (2, 5, 2)).round(3)
        ours, theirs = (pd.DataFrame(rows, columns=["validation", "test"]) for rows in recalls)
        chosen = [frame.loc[frame["validation"].idxmax()] for frame in (ours, theirs)]
        best = [frame["test"].max() for frame in (ours, theirs)]
        average = ours["test"].mean() - theirs["test"].mean()
        validated = chosen[0]["validation"] - chosen[1]["validation"]
        yield best[0] - best[1], "that chooses both settings on the test species."
        yield best[0] - chosen[1]["test"], "ours is still chosen on the test species."
        yield validated, "those values chose the settings: report the test values."
        yield average, "a mean over settings: nobody would use the bad ones. Choose one."
        yield call(answer, ours, theirs), chosen[0]["test"] - chosen[1]["test"]


def loss_at_zero(answer) -> Steps:
    labels, classes = torch.tensor([0, 0, 1, 3, 3, 3, 4]), 6
    positives = np.bincount(labels, minlength=classes)
    present = positives > 0

    def terms(margin, scale):
        """Pull and push of each class, with every cosine 0."""
        e = math.exp(margin * scale)
        return np.log1p(positives * e), np.log1p((len(labels) - positives) * e)

    pull, push = terms(0.1, 32.0)
    usual = pull[present].mean() + push.mean()
    without_one = np.log(positives[present]).mean() + np.log(len(labels) - positives).mean()
    without_one += 2 * 0.1 * 32
    wrong_sign = terms(-0.1, 32.0)[0][present].mean() + push.mean()
    yield pull.mean() + push.mean(), "average the pull over the classes *in the batch*, P⁺, only."
    yield pull[present].mean() + push[present].mean(), "average the push over *all* C proxies."
    yield pull[present].sum() + push.sum(), "these are sums: both terms are means."
    yield pull[present].mean(), "only the pull is there: where is the push?"
    yield push.mean(), "only the push is there: where is the pull?"
    yield without_one, "the 1 is missing: log(1 + Σ…), not log(Σ…)."
    yield wrong_sign, "the sign of the margin in the pull: −α(0 − δ) is +αδ."
    yield call(answer, labels, classes, 0.1, 32.0), usual
    pull, push = terms(0.05, 20.0)
    yield usual, "right for α = 32 and δ = 0.1, but it does not follow other values of them."
    truth = pull[present].mean() + push.mean()
    yield call(answer, labels, classes, 0.05, 20.0), truth


def row_softmax(answer) -> Steps:
    cosines = torch.from_numpy(_rng().uniform(-1, 1, (5, 4))).float()
    labels, logits = torch.tensor([0, 3, 1, 1, 2]), 32 * cosines
    total = cross_entropy(logits, labels, reduction="sum")
    twice = cross_entropy(logits.softmax(1), labels)
    yield cross_entropy(cosines, labels), "the scale α is missing: logits are α·s."
    yield total, "that is the sum over images: take the mean."
    yield twice, "cross_entropy takes logits: it applies the softmax itself."
    yield cross_entropy(-logits, labels), "the sign of the logits: a large cosine is good."
    yield call(answer, cosines, labels), cross_entropy(logits, labels)


def effective_negatives(answer) -> Steps:
    weights = torch.from_numpy(_rng().random((7, 3)) ** 4).float()
    w = weights.numpy().astype(float)
    total, squares = w.sum(0), (w**2).sum(0)
    yield total / squares, "square the sum in the numerator: a column's weights need not sum to 1."
    yield 1 / squares, "weights of a column need not sum to 1: divide by (Σw)²."
    yield (w > 0).sum(0), "that counts all negatives, however small their weight."
    yield call(answer, weights), total**2 / squares


def anchor_left_out(answer) -> Steps:
    drawn = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3))
    embeddings, proxies, labels = drawn[0], drawn[1, :4], torch.tensor([0, 0, 1, 1, 1, 3])
    own = (labels[:, None] == torch.arange(4)).numpy()
    cosines = unit_rows(embeddings.numpy()) @ unit_rows(proxies.numpy()).T

    def loss(pull_ones=0, push_ones=0):
        """Proxy Anchor; or what does not count adds e⁰ = 1 to the sums."""
        pull = (np.exp(-8 * (cosines - 0.2)) * own + pull_ones * ~own).sum(0)
        push = (np.exp(8 * (cosines + 0.2)) * ~own + push_ones * own).sum(0)
        return np.log1p(pull)[own.any(0)].mean() + np.log1p(push).mean()

    value = call(answer, embeddings.requires_grad_(), labels, proxies, 0.2, 8.0)
    yield loss(1, 1), "this is the function as it was given."
    yield loss(0, 1), "the pull is right; what do own entries add to the push?"
    yield loss(1, 0), "the push is right; what do the others' entries add to the pull?"
    yield value, loss()
    _check_tensor(value)

    @wraps(answer)
    def slope(embeddings, *others):
        return torch.autograd.grad(answer(embeddings, *others), embeddings)[0]

    one_class = torch.zeros_like(labels)  # then a column of the push has no entry that counts
    if not np.isfinite(as_array(call(slope, embeddings, one_class, proxies, 0.2, 8.0))).all():
        raise Wrong(
            "the value is right, but the gradient is NaN where no entry of a column counts, as in "
            "a batch of one class: was −∞ added? masked_fill with −10⁴ is safe (Question 1)."
        )


def so_from_spectrum(answer) -> Steps:
    for shape in ((6, 9), (9, 4)):
        unit = unit_rows(_rng().standard_normal(shape))
        sigma, classes = np.linalg.svd(unit, compute_uv=False), shape[0]
        fourth, pairs = (sigma**4).sum(), classes * (classes - 1)
        zeros = "P̂P̂ᵀ has C eigenvalues: with C > D, C − D of them are 0, and each adds (0 − 1)²."
        yield (sigma**2).sum() - classes, "Σσ² is always C: the norm squares them *again*, to σ⁴."
        yield fourth, "subtract the identity: −2‖P̂‖² + C = −C."
        yield (fourth - classes) / pairs, "that is the mean over pairs; the sum is asked for."
        yield ((sigma**2 - 1) ** 2).sum(), zeros
        yield ((sigma - 1) ** 2).sum(), "the eigenvalues of P̂P̂ᵀ are σ², not σ."
        truth = np.square(unit @ unit.T - np.eye(classes)).sum()
        yield call(answer, sigma, classes), truth


def simplex(answer) -> None:
    for dim in (2, 3, 8):
        rows = as_array(call(answer, dim)).astype(float)
        if rows.shape != (dim + 1, dim):
            raise Wrong(f"for D = {dim} the shape is {rows.shape}, expected {(dim + 1, dim)}.")
        if not np.isfinite(rows).all() or not rows.any(1).all():
            raise Wrong("a row has length 0 or is not a number: it has no direction.")
        off = _off_diagonal(_cosines(rows))
        if off.max() > 0.999:
            raise Wrong(f"D = {dim}: two of the directions coincide.")
        if np.abs(off).max() > 1 / dim + 1e-4:  # the Welch bound of D + 1 directions
            between = f"cosines from {off.min():.3f} to {off.max():.3f}"
            raise Wrong(f"D = {dim}: not equiangular yet: {between}.")


def one_sided(answer) -> Steps:
    lengths = np.array([[1], [2], [0.5], [3], [1]])
    proxies = torch.from_numpy(_rng().standard_normal((5, 3)) * lengths).float()
    rows = proxies.numpy().astype(float)
    off, count = _off_diagonal(_cosines(rows)), len(rows)
    acute = np.maximum(off, 0)
    raw = np.maximum(_off_diagonal(rows @ rows.T), 0)
    total = (acute**2).sum()
    value = call(answer, proxies)
    yield (off**2).mean(), "that is still the two-sided one: negative cosines are punished."
    yield total, "that is the sum over pairs: take the mean."
    yield (total + count) / count**2, "leave out the diagonal: its ones are not pairs."
    yield (raw**2).mean(), "scale the rows to unit length first."
    yield (np.minimum(off, 0) ** 2).mean(), "that punishes the *obtuse* angles."
    yield total / (acute > 0).sum(), "average over all pairs; negative cosines count as 0."
    yield value, (acute**2).mean()
    _check_tensor(value)


def class_penalty(answer) -> Steps:
    weight = torch.from_numpy(_rng(8).standard_normal((7, 4)))
    in_rows = {"many": weight, "few": torch.from_numpy(_rng(9).standard_normal((3, 8)))}

    def mean_square(matrix):
        return (_off_diagonal(_cosines(matrix)) ** 2).mean()

    values, turned = {}, set()  # turned: dimensions taken for classes
    for name, rows in in_rows.items():
        for place, given in {"rows": rows, "columns": rows.T.contiguous()}.items():
            values[name, place] = call(answer, given, len(rows))
            value = as_array(values[name, place])
            if value.size == 1 and abs(value.item() - mean_square(rows.numpy().T)) < 1e-6:
                turned.add((name, place))
    if turned == {("many", "rows"), ("many", "columns")}:
        raise Wrong("the shorter side need not be the classes: compare with num_classes.")
    if turned == {("few", "rows"), ("few", "columns")}:
        raise Wrong("the longer side need not be the classes: compare with num_classes.")
    if turned and {place for _, place in turned} == {"rows"}:
        raise Wrong("right for columns; class vectors in rows are turned as well.")
    if turned and {place for _, place in turned} == {"columns"}:
        raise Wrong("class vectors in columns: those are the dimensions, not the classes.")
    for (name, _), value in values.items():
        yield value, mean_square(in_rows[name].numpy())
        _check_tensor(value)


def closest_pair(answer) -> Steps:
    unit = unit_rows(_rng(3).standard_normal((9, 4)))
    cosines = unit @ unit.T
    off = _off_diagonal(cosines)
    pair = as_array(call(answer, cosines))
    if pair.shape != (2,):
        raise Wrong(f"two numbers (i, j) are asked for, not an array of shape {pair.shape}.")
    i, j = (int(index) for index in pair)
    if i == j:
        raise Wrong("i and j are the same: leave the diagonal out.")
    if not (0 <= i < 9 and 0 <= j < 9):
        raise Wrong(f"({i}, {j}) is outside the 9 × 9 matrix: np.unravel_index gives both.")
    yield off.min(), "that is the *most distant* pair: take the maximum."
    yield off[np.abs(off).argmax()], "that is the largest |cosine|; here the sign counts."
    yield cosines[i, j], off.max()  # the cosine of the pair, and the largest there is


def mean_cosine(answer) -> Steps:
    unit = unit_rows(_rng().standard_normal((8, 3)) + 0.5)
    count, mean = len(unit), unit.mean(0)
    square = mean @ mean
    yield square, "‖mean‖² is the mean over all C² entries, including the diagonal."
    yield np.linalg.norm(mean), "that is the length of the mean proxy, and not squared."
    yield count * square / (count - 1), "the C ones of the diagonal are still in it."
    yield unit.mean(), "that averages coordinates; average the rows to one vector (axis 0)."
    yield call(answer, unit), _off_diagonal(unit @ unit.T).mean()


def centered(answer) -> Steps:
    unit = unit_rows(_rng().standard_normal((8, 3)) + 0.8)
    own_mean = "that subtracts each row's own mean; subtract the mean *proxy*, unit.mean(axis=0)."
    yield unit_rows(unit - unit.mean(1, keepdims=True)), own_mean
    yield unit_rows(unit + unit.mean(0)), "the sign: subtract the mean proxy."
    yield call(answer, unit), unit_rows(unit - unit.mean(0))


def directions_for(answer) -> Steps:
    points = _rng().standard_normal((60, 8)) * 0.8 ** np.arange(8) + 5
    sigma = np.linalg.svd(points - points.mean(0), compute_uv=False)
    raw = np.linalg.svd(points, compute_uv=False)
    kept, sigma_kept, raw_kept = (np.cumsum(s) / s.sum() for s in (sigma**2, sigma, raw**2))
    for fraction in (0.9, 0.99, 0.5):
        expected = (kept < fraction).sum() + 1
        yield expected - 1, "off by one: an index counts from 0, a number of components from 1."
        yield (raw_kept < fraction).sum() + 1, "variance is about the mean: center the points."
        yield (sigma_kept < fraction).sum() + 1, "variance goes with σ²."
        yield call(answer, fraction, points), expected


def shared_neighbors(answer) -> Steps:
    first = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [2, 1, 0]])
    second = np.array([[3, 2, 1], [0, 4, 5], [4, 5, 6], [2, 5, 1]])
    common = np.array([np.isin(a, b).sum() for a, b in zip(first, second, strict=True)])
    yield (first == second).mean(), "order does not matter: look anywhere in the same row."
    yield common.mean(), "that is the number of shared neighbors: divide by k."
    yield (common > 0).mean(), "that asks for at least one; the mean fraction is asked for."
    yield np.isin(first, second).mean(), "compare row with row: np.isin looks everywhere."
    yield call(answer, first, second), common.mean() / 3


def nearest_in_plane(answer) -> Steps:
    plane = _rng().uniform(1, 9, (15, 2))
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    cosines, far = _cosines(plane), np.eye(len(plane)) * 1e6
    yield np.arange(len(plane)), "every point is its own nearest: set the diagonal aside."
    yield (cosines - far).argmax(1), "that is by cosine: on a map, plain distance counts."
    yield distances.argmax(1), "these are the points furthest away."
    yield call(answer, plane), (distances + far).argmin(1)


def interval_by_hand(answer) -> Steps:
    differences = np.array([0.012, -0.004, 0.02, 0.007, -0.001])
    n, mean, deviation = len(differences), differences.mean(), differences.std(ddof=1)
    t, error = stats.t.ppf(0.975, n - 1), deviation / math.sqrt(n)

    def around(half_width):
        return np.array([mean - half_width, mean + half_width])

    yield around(t * differences.std() / math.sqrt(n)), "ddof=1: a sample's deviation has n − 1."
    yield around(t * deviation), "the interval of the *mean* is narrower by √n."
    yield around(stats.norm.ppf(0.975) * error), "that is the normal's 1.96; five values need t."
    yield around(1.96 * error), "that is the normal's 1.96; five values need t."
    yield around(stats.t.ppf(0.95, n - 1) * error), "that is 90 %: two tails share the 5 %."
    yield around(stats.t.ppf(0.975, n) * error), "n − 1 degrees of freedom, not n."
    yield around(-t * error), "low and high are exchanged."
    got = as_array(call(answer, differences)).ravel()
    yield got, around(t * error), 1e-5


def seeds_needed(answer) -> Steps:
    normal = "with the normal's 1.96: for few seeds t is larger, and depends on n."
    for half_width, deviation in ((0.01, 0.02), (0.005, 0.013)):
        n, ratio = 2, deviation / half_width
        while stats.t.ppf(0.975, n - 1) * ratio / math.sqrt(n) > 1:
            n += 1
        yield 2, "2 is what the stub returns."
        yield n - 1, "one too few: its interval is still a little too wide."
        yield n + 1, "one too many: the interval is narrow enough one seed earlier."
        yield math.ceil((1.959964 * ratio) ** 2), normal
        yield math.ceil(ratio**2), "the factor t is missing."
        yield call(answer, half_width, deviation), n


def optimism(answer) -> Steps:
    recalls = 0.6 + 0.02 * _rng().standard_normal((40, 6))
    best, mean = recalls.max(1), recalls.mean()
    yield recalls.max() - mean, "that is the best of all: take each row's best, then the mean."
    yield recalls.max(0).mean() - mean, "the axis: a row is one try of E looks."
    yield best.mean(), "that is what gets reported; how much *too high* is it?"
    yield call(answer, recalls), best.mean() - mean, 1e-5


def standard_error(answer) -> Steps:
    labels = np.repeat(np.arange(12), 20)
    hits = (_rng().random(240) < _rng(1).uniform(0.2, 0.95, 12)[labels]).astype(float)
    shuffled = _rng(2).permutation(240)
    recalls = hits.reshape(12, 20).mean(1)
    images = hits.std(ddof=1) / math.sqrt(240)
    yield images, "that takes 240 images for 240 independent draws: there are 12 species."
    yield hits.std() / math.sqrt(240), "that still counts images, and with ddof=0: count species."
    yield hits.std(ddof=1) / math.sqrt(12), "the scatter is that of the species' recalls."
    yield recalls.std() / math.sqrt(12), "ddof=1: a sample's deviation has C − 1."
    yield recalls.std(ddof=1), "that is the scatter of one species; their mean scatters √C less."
    yield recalls.std(ddof=1) / math.sqrt(240), "divide by the root of the number of *species*."
    value, truth = call(answer, hits[shuffled], labels[shuffled]), recalls.std(ddof=1) / 12**0.5
    yield value, truth, 1e-5


def mean_negative(answer) -> Steps:
    for s_plus, classes in ((0.8, 5), (0.5, 101)):
        yield -s_plus / classes, "an image has C − 1 negatives, not C."
        yield s_plus / (classes - 1), "positives and negatives sum to 0: mind the sign."
        yield -s_plus, "that is their sum; the mean is asked for."
        yield call(answer, s_plus, classes), -s_plus / (classes - 1)


def after_tilt(answer) -> Steps:
    cosines = _rng(8).uniform(-1, 1, (6, 4))
    for t in (0.1, 0.4):
        yield (1 - t) * cosines + t, "the new coordinates have opposite signs: −t, not +t."
        yield cosines - t, "the old coordinates shrink: √(1−t) twice is a factor 1 − t."
        yield np.sqrt(1 - t) * cosines - t, "both vectors shrink by √(1−t)."
        yield cosines, "nothing is tilted yet."
        yield call(answer, cosines, t), (1 - t) * cosines - t


def holm_by_hand(answer) -> Steps:
    for p in ([0.04, 0.01, 0.03, 0.2], [0.001, 0.9, 0.02], [0.03, 0.03]):
        values = np.asarray(p)
        order = np.argsort(values)
        factors = len(p) - np.arange(len(p))
        steps = values[order] * factors
        right, unordered = np.empty(len(p)), np.empty(len(p))
        right[order] = np.minimum(np.maximum.accumulate(steps), 1)
        unordered[order] = np.minimum(steps, 1)
        yield np.minimum(values * len(p), 1), "that is Bonferroni: the factor falls by one a step."
        yield unordered, "a larger p must not get a smaller correction: keep the largest so far."
        yield np.minimum(steps, 1), "the result is sorted: return it in the order of the input."
        yield right[order], "the result is sorted: return it in the order of the input."
        yield call(answer, p), right


def letters(statements: dict[str, dict], answer) -> str:
    """A choice of letters: what is wrong or missing, or why each letter holds."""
    given = {letter for letter in str(answer).lower() if letter.isalnum()}
    if not isinstance(answer, str) or not given:
        raise Wrong('no letters are given yet; write them into the quotes, such as "ac".')
    if unknown := sorted(given - {*statements}):
        raise Wrong(f"{unknown[0]!r} is none of the letters here.")
    reasons = {letter: f"{letter}: {one['why']}" for letter, one in statements.items()}
    holds = [letter for letter, one in statements.items() if one["holds"]]
    for letter in sorted(given - {*holds}):
        raise Wrong(reasons[letter])
    if missing := len({*holds} - given):
        raise Wrong(f"{missing} more of these hold{'s' if missing == 1 else ''}.")
    return "\n  ".join(["right.", *(reasons[letter] for letter in holds)])


def nearest(answer) -> Steps:
    query = _rng().standard_normal(5)
    gallery = _rng(1).standard_normal((20, 5)) * _rng(2).uniform(0.2, 5, (20, 1))
    order = np.argsort(-(unit_rows(gallery) @ query))
    by_distance = np.argsort(np.linalg.norm(gallery - query, axis=1))
    yield np.argsort(-(gallery @ query))[:4], "by dot product, long rows win: scale them first."
    yield order[:-5:-1], "these are the *least* similar: sort downwards."
    yield order[3::-1], "the right four, but the furthest first: nearest first, please."
    yield by_distance[:4], "by distance, of rows of different lengths: use cosines."
    yield order[1:5], "the first is left out; but this query is not part of the gallery."
    yield call(answer, query, gallery, 4), order[:4]


def threshold_for(answer) -> Steps:
    similarities = np.round(_rng().uniform(0.2, 1, 30), 3)
    right = _rng(1).random(30) < similarities
    for wanted in (0.7, 0.8):
        good_enough = [t for t in similarities if right[similarities >= t].mean() >= wanted]
        yield max(good_enough), "that refuses nearly everything: the *smallest* that will do."
        yield similarities.min(), "that one answers everything, however unsure."
        yield wanted, "that is the fraction wanted, not a similarity."
        yield np.quantile(similarities, wanted), "a quantile does not ask how many are right."
        yield call(answer, similarities, right, wanted), min(good_enough)


def without_common(answer) -> Steps:
    cosines = np.array([0.97, 0.8, 0.62])
    for length in (0.7, 0.4):
        square = length**2
        yield cosines - square, "the rest is shorter than 1: divide by 1 − m²."
        yield (cosines - length) / (1 - length), "the common part adds m·m to a cosine, not m."
        yield cosines / (1 - square), "the common part has to be subtracted first."
        yield cosines * (1 - square) + square, "that is the way back: from y to x."
        yield call(answer, cosines, length), (cosines - square) / (1 - square)


def threshold_by_hand(answer) -> Steps:
    rows = unit_rows(_rng().standard_normal((30, 4)))
    cosines = rows @ rows.T
    away = cosines - 9 * np.eye(len(rows))
    for k, refuse in ((5, 0.1), (3, 0.25)):
        nearness, itself, single, fewer = (
            -np.sort(-of, axis=1)[:, :many].mean(1)
            for of, many in ((away, k), (cosines, k), (away, 1), (away, k - 1))
        )
        yield np.quantile(itself, refuse), "each picture still finds itself; a new one cannot."
        yield np.quantile(nearness, 1 - refuse), "that refuses all but so many: mind the side."
        yield np.quantile(single, refuse), "nearness is the mean of k, not the nearest alone."
        yield np.quantile(fewer, refuse), "that is the mean of k − 1: the slice is 1 to k + 1."
        yield nearness.min(), "that refuses none."
        yield call(answer, rows, k, refuse), np.quantile(nearness, refuse)


_BY_NOTEBOOK = {
    "00": (recall_at_k, errors_removed, rms_cosine),  # start here
    "01": (split_by_class, chance_recall, labels_from_zero),  # data
    "02": (patchify, tokens, genus_recall),  # DeiT features
    "03": (triplet_kind, supervised_contrastive, scale_of_nca, fair_gain),  # losses
    "04": (loss_at_zero, row_softmax, effective_negatives, anchor_left_out),  # Proxy Anchor
    "05": (so_from_spectrum, simplex, one_sided, class_penalty),  # soft orthogonality
    "06": (closest_pair, mean_cosine, centered),  # proxy geometry
    "07": (directions_for, shared_neighbors, nearest_in_plane),  # embedding maps
    "08": (interval_by_hand, seeds_needed, optimism, standard_error),  # benchmark
    "09": (mean_negative, after_tilt, holm_by_hand),  # what moves Recall@1
    "10": (nearest, without_common, threshold_for, threshold_by_hand),  # your images
}
_CHOICES = files.read_toml(Path(__file__).with_name("choices.toml"))
CHECKS: dict[str, Callable[[object], str | None]] = {
    f"{notebook}.{number}": partial(settle, check)
    for notebook, checks in _BY_NOTEBOOK.items()
    for number, check in enumerate(checks, 1)
}
CHECKS |= {exercise: partial(letters, _CHOICES[exercise]) for exercise in _CHOICES}
