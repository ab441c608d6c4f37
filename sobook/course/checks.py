"""How each exercise of the course is judged: on which inputs, and which mistakes are known.

One function an exercise, named by notebook and number; `CHECKS` at the end lists them. Each
computes the truth the slow way, and beside it what comes out of typical mistakes, so that
`sobook.course.exercises.check` can name the one that was made.
"""

import math

import numpy as np
import torch

from sobook import geometry
from sobook.course.exercises import Check, Wrong, array, as_array, call, number


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _off(matrix: np.ndarray) -> np.ndarray:
    """The C(C−1) entries beside the diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


# --- 00 · start here -----------------------------------------------------------------------------


def recall_at_k(answer) -> None:
    rows, labels = _unit(_rng().standard_normal((40, 6))), np.repeat(np.arange(10), 4)
    cosines = rows @ rows.T
    for k in (1, 3):
        alone = cosines - 10 * np.eye(len(rows))
        right = labels[np.argsort(-alone, axis=1)[:, :k]] == labels[:, None]
        far = labels[np.argsort(cosines, axis=1)[:, :k]] == labels[:, None]
        cut = labels[np.argsort(-cosines, axis=1)[:, 1:k]] == labels[:, None]
        number(
            call(answer, rows, labels, k, name="recall_at_k"),
            right.any(1).mean(),
            [
                (1.0, "every query found itself: set the diagonal of the cosines aside first."),
                (far.any(1).mean(), "these are the *least* similar pictures: sort downwards."),
                (right.mean(), "that is the share of right neighbors (precision); Recall@K asks "
                 "whether *any* of the k is right."),
                (cut.any(1).mean(), "one neighbor too few: k of them besides the query itself."),
                (right.any(1).sum(), "that is the number of queries: divide by it."),
            ],
        )  # fmt: skip


def rms_cosine(answer) -> None:
    rows = _rng(1).standard_normal((12, 5)) * _rng(2).uniform(0.5, 3, (12, 1))
    count, gram, raw = len(rows), _unit(rows) @ _unit(rows).T, rows @ rows.T
    off, off_raw = _off(gram), _off(raw)
    rms = np.sqrt((off**2).mean())
    number(
        call(answer, rows, name="rms_cosine"),
        rms,
        [
            (np.sqrt((gram**2).mean()), "the diagonal is in it: its C ones are no pairs."),
            (np.sqrt((off**2).sum() / count**2), "divide by the C(C−1) pairs, not by C²."),
            (np.sqrt((off_raw**2).mean()), "rows must be scaled to unit length first."),
            (rms**2, "that is the mean square: the root is missing."),
            (off.mean(), "that is the mean cosine: square before you average."),
            (np.abs(off).mean(), "that is the mean absolute cosine: square, average, root."),
        ],
    )


def errors_removed(answer) -> None:
    for before, after in ((0.4, 0.7), (0.6, 0.5)):
        number(
            call(answer, before, after, name="errors_removed"),
            (after - before) / (1 - before),
            [
                (after - before, "that is the change of Recall@1 itself; it is asked for as a "
                 "share of the errors there were, 1 − before."),
                ((after - before) / before, "that is relative to the right answers; take the "
                 "errors, 1 − before, as the measure."),
                ((1 - after) / (1 - before), "that is the share of errors that is *left*."),
                ((before - after) / (1 - before), "the sign is the wrong way round: fewer errors "
                 "count as positive."),
            ],
        )  # fmt: skip


# --- 01 · data -----------------------------------------------------------------------------------


def split_by_class(answer) -> None:
    labels = _rng().permutation(np.repeat(np.arange(20), _rng(1).integers(2, 6, 20)))
    found = call(answer, labels, 0.25, 0, name="split_by_class")
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise Wrong("two arrays of indices are asked for: (train, held out).")
    kept, held = (as_array(part) for part in found)
    if kept.dtype == bool or held.dtype == bool:
        raise Wrong("these are masks; indices are asked for: np.flatnonzero(mask).")
    if len(held) == 0:
        raise Wrong("nothing is held out.")
    if len(kept) + len(held) != len(labels) or len(np.union1d(kept, held)) != len(labels):
        raise Wrong("every picture must be in exactly one of the two parts.")
    both = np.intersect1d(labels[kept], labels[held])
    if len(both):
        raise Wrong(f"{len(both)} classes are in both parts: draw *classes*, not pictures.")
    if (got := len(np.unique(labels[held]))) != 5:
        raise Wrong(f"{got} classes are held out; a share of 0.25 of 20 classes is 5.")
    if np.array_equal(kept, as_array(call(answer, labels, 0.25, 1)[0])):
        raise Wrong("another seed gives the same split: draw the classes with the seed.")


def chance_recall(answer) -> None:
    labels = np.repeat(np.arange(5), [2, 3, 4, 10, 21])
    counts = np.bincount(labels)
    total = counts.sum()
    number(
        call(answer, labels, name="chance_recall_at_1"),
        (counts * (counts - 1)).sum() / (total * (total - 1)),
        [
            (((counts / total) ** 2).sum(), "a picture cannot find itself: n_c − 1 of N − 1."),
            (1 / len(counts), "that holds for very many pictures, equally many in each class."),
            ((counts * (counts - 1)).sum() / total**2, "there are N − 1 others, not N."),
            (((counts - 1) / (total - 1)).mean(), "classes with more pictures send more queries: "
             "weigh class c by n_c / N."),
        ],
    )  # fmt: skip


def labels_from_zero(answer) -> None:
    labels = np.array([101, 101, 150, 103, 150, 200])
    array(
        call(answer, labels, name="labels_from_zero"),
        np.array([0, 0, 2, 1, 2, 3]),
        [
            (labels - 101, "that only moves the first label to 0: gaps remain, and with them rows "
             "of proxies that belong to nobody."),
            (np.array([0, 0, 1, 2, 1, 3]), "each class has a number of its own, but in order of "
             "appearance: in order of the old labels is asked for."),
            (np.array([1, 1, 3, 2, 3, 4]), "off by one: the first class is 0."),
        ],
    )  # fmt: skip


# --- 02 · DeiT features --------------------------------------------------------------------------


def patchify(answer) -> None:
    batch = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    blocks = batch.reshape(2, 3, 2, 2, 3, 2)  # (B, channel, row, y, column, x)

    def ordered(*axes):
        return blocks.permute(*axes).reshape(2, 6, 12).numpy()

    value = call(answer, batch, 2, name="patchify")
    if not np.any(as_array(value)):
        raise Wrong("all zeros: that is still the stub.")
    array(
        value,
        ordered(0, 2, 4, 1, 3, 5),
        [
            (batch.reshape(2, 6, 12).numpy(), "one reshape is not enough: it cuts across patches. "
             "Split rows and columns into (number, p), then permute."),
            (ordered(0, 2, 4, 3, 5, 1), "within a patch channels come first, then rows, then "
             "columns; yours has channels last."),
            (ordered(0, 4, 2, 1, 3, 5), "patches go row by row; yours go column by column."),
            (ordered(0, 2, 4, 1, 5, 3), "within a patch, rows and columns are exchanged."),
        ],
    )  # fmt: skip


def genus_recall(answer) -> None:
    wrong, related = 0.4, 0.7
    number(
        call(answer, wrong, related, name="genus_recall"),
        1 - wrong + wrong * related,
        [
            (wrong * related, "those are the errors within the genus; right species count, too."),
            (1 - wrong + related, "related_share is a share of the *errors*: multiply."),
            (1 - wrong * related, "errors of the right genus are hits here, not misses."),
            (1 - wrong, "that is the recall of the species: some errors are of the right genus."),
        ],
    )


def tokens(answer) -> None:
    for side, patch, prefix in ((64, 8, 2), (224, 16, 1)):
        grid = side // patch
        number(
            call(answer, side, patch, prefix, name="number_of_tokens"),
            grid**2 + prefix,
            [
                (grid**2, "the tokens before the patches are missing."),
                (grid + prefix, "patches fill a square: rows times columns."),
                ((side // patch + prefix) ** 2, "add the prefix tokens after squaring."),
                (side**2 // patch + prefix, "a patch has p × p pixels, not p."),
            ],
        )


# --- 03 · Proxy Anchor ---------------------------------------------------------------------------


def loss_at_zero(answer) -> None:
    labels, classes, margin, scale = torch.tensor([0, 0, 1, 3, 3, 3, 4]), 6, 0.1, 32.0
    positives = np.bincount(labels, minlength=classes)
    present, e = positives > 0, math.exp(margin * scale)
    pull, push = np.log1p(positives * e), np.log1p((len(labels) - positives) * e)
    right = pull[present].mean() + push.mean()
    number(
        call(answer, labels, classes, margin, scale, name="loss_at_zero_cosines"),
        right,
        [
            (pull.mean() + push.mean(), "the pull is averaged over the classes *in the batch*, P⁺, "
             "not over all C."),
            (pull[present].mean() + push[present].mean(), "the push is averaged over *all* C "
             "proxies: the absent ones are pushed as well."),
            (pull[present].sum() + push.sum(), "these are sums: both terms are means."),
            (pull[present].mean(), "only the pull is there: where is the push?"),
            (push.mean(), "only the push is there: where is the pull?"),
            (np.log1p(positives[present] * math.exp(-margin * scale)).mean() + push.mean(),
             "the sign of the margin in the pull: −α(0 − δ) is +αδ."),
            (np.log(positives[present] * e).mean() + np.log((len(labels) - positives) * e).mean(),
             "the 1 in log(1 + …) is missing."),
        ],
    )  # fmt: skip
    value = call(answer, labels, classes, 0.05, 20.0, name="loss_at_zero_cosines")
    e = math.exp(0.05 * 20)
    pull, push = np.log1p(positives * e), np.log1p((len(labels) - positives) * e)
    if abs(float(as_array(value)) - pull[present].mean() - push.mean()) > 1e-3:
        raise Wrong("right for α = 32 and δ = 0.1, but it does not follow other values of them.")


def row_softmax(answer) -> None:
    cosines = torch.from_numpy(_rng().uniform(-1, 1, (5, 4))).float()
    labels = torch.tensor([0, 3, 1, 1, 2])
    loss = torch.nn.functional.cross_entropy
    value = call(answer, cosines, labels, name="row_softmax")
    right = float(loss(32 * cosines, labels))
    number(
        value,
        right,
        [
            (0.0, "0 is what the stub returns."),
            (float(loss(cosines, labels)), "the scale α is missing: logits are α·s."),
            (float(loss(32 * cosines, labels, reduction="sum")), "that is the sum over images: "
             "take the mean."),
            (-right, "the sign: the loss is *minus* the log-probability."),
            (float(loss(cosines.softmax(1), labels)), "cross_entropy takes logits: it applies "
             "the softmax itself."),
            (float(loss((32 * cosines).softmax(1), labels)), "cross_entropy takes logits: it "
             "applies the softmax itself."),
            (float(loss(-32 * cosines, labels)), "the sign of the logits: a large cosine is good."),
        ],
    )  # fmt: skip


def effective_negatives(answer) -> None:
    weights = torch.from_numpy(_rng().random((7, 3)) ** 4).float()
    w = weights.numpy().astype(float)
    array(
        call(answer, weights, name="effective_negatives"),
        w.sum(0) ** 2 / (w**2).sum(0),
        [
            (w.sum(0) / (w**2).sum(0), "square the sum in the numerator: weights of a column need "
             "not sum to 1."),
            ((w**2).sum(0) / w.sum(0) ** 2, "it is upside down: equal weights of n must give n."),
            (1 / (w**2).sum(0), "weights of a column need not sum to 1: divide by (Σw)²."),
            ((w > 0).sum(0), "that counts all negatives, however small their weight."),
        ],
    )  # fmt: skip


# --- 04 · soft orthogonality ---------------------------------------------------------------------


def so_from_spectrum(answer) -> None:
    for shape in ((6, 9), (9, 4)):
        unit = _unit(_rng().standard_normal(shape))
        sigma, classes = np.linalg.svd(unit, compute_uv=False), shape[0]
        number(
            call(answer, sigma, classes, name="so_from_spectrum"),
            np.square(unit @ unit.T - np.eye(classes)).sum(),
            [
                ((sigma**2).sum() - classes, "Σσ² is ‖P̂‖² = C, always: eigenvalues of the Gram "
                 "matrix are σ², and the norm squares them *again*."),
                ((sigma**4).sum(), "the identity is still to be subtracted: −2‖P̂‖² + C = −C."),
                ((sigma**4).sum() - 2 * classes, "the + C at the end of the identity is missing."),
                ((sigma**4).sum() + classes, "the sign: −2‖P̂‖² + C is −C."),
                ((sigma**4).sum() / (classes * (classes - 1)), "the sum is asked for, not the "
                 "mean over pairs."),
                (((sigma**4).sum() - classes) / (classes * (classes - 1)), "that is the mean over "
                 "pairs; the sum is asked for."),
                (((sigma - 1) ** 2).sum(), "the eigenvalues of P̂P̂ᵀ are σ², not σ."),
            ],
        )  # fmt: skip


def one_sided(answer) -> None:
    proxies = torch.from_numpy(_rng().standard_normal((5, 3))).float()
    scaled = proxies * torch.tensor([[1.0], [2.0], [0.5], [3.0], [1.0]])
    unit = _unit(scaled.numpy().astype(float))
    off = _off(unit @ unit.T)
    raw = _off((scaled @ scaled.T).numpy().astype(float))
    positive = np.maximum(off, 0)
    right = (positive**2).mean()
    count = len(unit)
    value = call(answer, scaled, name="one_sided")
    number(
        value,
        right,
        [
            ((off**2).mean(), "that is still the two-sided one: negative cosines are punished."),
            ((positive**2).sum(), "that is the sum over pairs: take the mean."),
            (((positive**2).sum() + count) / count**2, "the diagonal is in it: its ones are no "
             "pairs."),
            ((positive**2).sum() / count**2, "divide by the C(C−1) pairs, not by C²."),
            ((np.maximum(raw, 0) ** 2).mean(), "scale the rows to unit length first."),
            (positive.mean(), "the square is missing."),
            ((np.minimum(off, 0) ** 2).mean(), "that punishes the *obtuse* angles."),
            ((positive**2).sum() / (positive > 0).sum(), "average over all pairs; those with "
             "negative cosines count as 0."),
        ],
    )  # fmt: skip
    if not torch.is_tensor(value):
        raise Wrong("the value is right, but it is no tensor any more: no gradient can flow.")


def simplex(answer) -> None:
    for dim in (2, 3, 8):
        rows = as_array(call(answer, dim, name="simplex"))
        if rows.shape != (dim + 1, dim):
            raise Wrong(f"for D = {dim} the shape is {rows.shape}, expected {(dim + 1, dim)}.")
        if not np.isfinite(rows).all() or (np.linalg.norm(rows, axis=1) < 1e-9).any():
            raise Wrong("a row has length 0 or is not a number: it has no direction.")
        shape = geometry.describe(rows)
        off = _off(shape.cosines)
        if shape.coherence <= shape.welch_bound + 1e-4:
            continue
        got = f"D = {dim}: largest |cosine| {shape.coherence:.3f}, bound {shape.welch_bound:.3f}."
        if off.max() > 0.999:
            raise Wrong(f"two of the directions coincide. {got}")
        if off.max() > shape.welch_bound + 1e-4 and abs(shape.orthogonality) < 1.05 * max(
            shape.orthogonality_floor, 1e-9
        ):
            raise Wrong(f"a tight frame, so the mean is as low as can be, but not the max. {got}")
        if (off < -0.999).any():
            raise Wrong(f"two directions are opposite: SO sees them as the same line. {got}")
        raise Wrong(f"not equiangular yet: cosines from {off.min():.3f} to {off.max():.3f}. {got}")


# --- 05 · proxy geometry -------------------------------------------------------------------------


def closest_pair(answer) -> None:
    unit = _unit(_rng(3).standard_normal((9, 4)))
    cosines = unit @ unit.T
    off = cosines - 5 * np.eye(9)
    found = as_array(call(answer, cosines, name="closest_pair"))
    if found.shape != (2,):
        raise Wrong(f"two numbers (i, j) are asked for, not {found.shape} of them.")
    i, j = (int(k) for k in found)
    if i == j:
        raise Wrong("i and j are the same: the diagonal has won, and it must not take part.")
    if not (0 <= i < 9 and 0 <= j < 9):
        raise Wrong(f"({i}, {j}) is outside the 9 × 9 matrix: unravel_index turns a place in the "
                    "flat matrix into row and column.")  # fmt: skip
    if math.isclose(cosines[i, j], off.max()):
        return
    if math.isclose(cosines[i, j], cosines.min()):
        raise Wrong("that is the *most distant* pair: take the maximum.")
    largest = np.abs(off + 5 * np.eye(9) - np.eye(9)).max()
    if math.isclose(abs(cosines[i, j]), largest):
        raise Wrong("that is the largest |cosine|; here the sign counts.")
    raise Wrong(f"the cosine of {i} and {j} is {cosines[i, j]:.3f}, the largest {off.max():.3f}.")


def mean_cosine(answer) -> None:
    unit = _unit(_rng().standard_normal((8, 3)) + 0.5)
    count, mean = len(unit), unit.mean(0)
    number(
        call(answer, unit, name="mean_cosine"),
        _off(unit @ unit.T).mean(),
        [
            (mean @ mean, "‖mean‖² is the mean over all C² entries, the diagonal among them."),
            (np.linalg.norm(mean), "that is the length of the mean proxy, and not squared."),
            (count * mean @ mean / (count - 1), "the C ones of the diagonal are still in it."),
            (unit.mean(), "that averages coordinates; average the rows to one vector (axis 0)."),
            ((count * mean @ mean - 1) / count, "divide by C − 1, the partners of a proxy."),
        ],
    )


def centered(answer) -> None:
    unit = _unit(_rng().standard_normal((8, 3)) + 0.8)
    moved = unit - unit.mean(0)
    array(
        call(answer, unit, name="without_lean"),
        _unit(moved),
        [
            (moved, "the mean is gone, but the rows have lost their unit length: scale again."),
            (unit, "nothing has changed."),
            (_unit(unit - unit.mean(1, keepdims=True)), "that subtracts each row's own mean; "
             "subtract the mean *proxy*, unit.mean(axis=0)."),
            (unit - unit.mean(1, keepdims=True), "that subtracts each row's own mean; "
             "subtract the mean *proxy*, unit.mean(axis=0), then scale again."),
            (_unit(unit + unit.mean(0)), "the sign: subtract the mean proxy."),
        ],
    )  # fmt: skip


# --- 06 · embedding maps -------------------------------------------------------------------------


def directions_for(answer) -> None:
    points = _rng().standard_normal((60, 8)) * 2.0 ** -np.arange(8) + 5
    moved = points - points.mean(0)
    sigma = np.linalg.svd(moved, compute_uv=False)
    for share in (0.5, 0.9, 0.99):
        kept = np.cumsum(sigma**2) / (sigma**2).sum()
        right = int((kept < share).sum()) + 1
        number(
            call(answer, share, points, name="directions_for"),
            right,
            [
                (right - 1, "off by one: an index counts from 0, a number of components from 1."),
                ((np.cumsum(sigma) / sigma.sum() < share).sum() + 1, "variance goes with σ²."),
                (8 - right, "that is how many are left over."),
            ],
        )


def shared_neighbors(answer) -> None:
    near = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [2, 1, 0]])
    other = np.array([[3, 2, 1], [0, 4, 5], [4, 5, 6], [2, 5, 1]])
    common = np.array([len(np.intersect1d(a, b)) for a, b in zip(near, other, strict=True)])
    number(
        call(answer, near, other, name="shared_neighbors"),
        common.mean() / 3,
        [
            ((near == other).mean(), "order does not matter: look for each index anywhere in the "
             "same row of the other."),
            (common.mean(), "that is the number of shared neighbors: divide by k."),
            ((common > 0).mean(), "that asks for at least one; the mean share is asked for."),
            (np.isin(near, other).mean(), "compare row with row: np.isin looks in the whole "
             "matrix."),
            (common.mean() / 6, "divide by k, not by 2k."),
        ],
    )  # fmt: skip


def nearest_in_plane(answer) -> None:
    plane = _rng().uniform(1, 9, (15, 2))
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    cosines = _unit(plane) @ _unit(plane).T
    far = np.eye(len(plane)) * 1e6
    array(
        call(answer, plane, name="nearest_on_the_map"),
        (apart + far).argmin(1),
        [
            (np.arange(len(plane)), "every point is its own nearest: set the diagonal aside."),
            ((cosines - far).argmax(1), "that is by cosine: on a map, plain distance counts."),
            (apart.argmax(1), "these are the points furthest away."),
            ((plane @ plane.T - far).argmax(1), "a large dot product is not a small distance."),
        ],
    )


# --- 07 · benchmark ------------------------------------------------------------------------------


def interval_by_hand(answer) -> None:
    from scipy import stats

    d = np.array([0.012, -0.004, 0.02, 0.007, -0.001])
    n, mean = len(d), d.mean()
    t, z, s = stats.t.ppf(0.975, n - 1), stats.norm.ppf(0.975), d.std(ddof=1)

    def around(half):
        return np.array([mean - half, mean + half])

    low_high = around(t * s / math.sqrt(n))
    found = as_array(call(answer, d, name="interval_by_hand")).ravel()
    array(
        found,
        low_high,
        [
            (around(t * d.std() / math.sqrt(n)), "ddof=1: a sample's deviation divides by n − 1."),
            (around(t * s), "the interval of the *mean* is narrower by √n."),
            (around(t * s / n), "divide by √n, not by n."),
            (around(z * s / math.sqrt(n)), "that is the normal's 1.96; five values need t."),
            (around(stats.t.ppf(0.95, n - 1) * s / math.sqrt(n)), "that is the 90 % interval: the "
             "5 % are shared by two tails, so t at 0.975."),
            (around(stats.t.ppf(0.975, n) * s / math.sqrt(n)), "n − 1 degrees of freedom, not n."),
            (low_high[::-1], "low and high are exchanged."),
        ],
        tolerance=1e-5,
    )  # fmt: skip


def seeds_needed(answer) -> None:
    from scipy import stats

    def least(factor, half, scatter, start=2):
        n = start
        while factor(n) * scatter / math.sqrt(n) > half:
            n += 1
        return n

    for half, scatter in ((0.01, 0.02), (0.005, 0.013)):
        right = least(lambda n: stats.t.ppf(0.975, n - 1), half, scatter)
        number(
            call(answer, half, scatter, name="seeds_needed"),
            right,
            [
                (2, "2 is what the stub returns."),
                (right - 1, "one too few: its interval is still a little too wide."),
                (right + 1, "one too many: the interval is narrow enough one seed earlier."),
                (least(lambda n: 1.959964, half, scatter), "with the normal's 1.96: for few seeds "
                 "t is larger, and depends on n."),
                (math.ceil((1.959964 * scatter / half) ** 2), "with the normal's 1.96: for few "
                 "seeds t is larger, and depends on n."),
                (math.ceil((scatter / half) ** 2), "the factor t is missing."),
            ],
        )  # fmt: skip


def optimism(answer) -> None:
    recalls = 0.6 + 0.02 * _rng().standard_normal((40, 6))
    number(
        call(answer, recalls, name="optimism"),
        recalls.max(1).mean() - recalls.mean(),
        [
            (recalls.max() - recalls.mean(), "that is the best of all; the best of each row, then "
             "the mean over rows."),
            (recalls.max(0).mean() - recalls.mean(), "the axis: a row is one try of E looks."),
            (recalls.max(1).mean(), "that is what gets reported; how much *too high* is it?"),
            (recalls.mean() - recalls.max(1).mean(), "the sign: the best is above the mean."),
            (np.median(recalls.max(1)) - np.median(recalls), "means, not medians."),
        ],
        tolerance=1e-5,
    )  # fmt: skip


# --- 08 · your images ----------------------------------------------------------------------------


def nearest(answer) -> None:
    query = _rng().standard_normal(5)
    gallery = _rng(1).standard_normal((20, 5)) * _rng(2).uniform(0.2, 5, (20, 1))
    cosines = _unit(gallery) @ query / np.linalg.norm(query)
    order = np.argsort(-cosines)[:4]
    array(
        call(answer, query, gallery, 4, name="nearest"),
        order,
        [
            (np.argsort(-(gallery @ query))[:4], "that is by dot product: long rows win. Scale "
             "the rows to unit length."),
            (np.argsort(cosines)[:4], "these are the *least* similar: sort downwards."),
            (order[::-1], "the right four, the furthest first: nearest first, please."),
            (np.argsort(np.linalg.norm(gallery - query, axis=1))[:4], "that is by distance, and "
             "of rows of different lengths: use cosines."),
            (np.argsort(-cosines)[1:5], "the first is left out; but this query is not part of the "
             "gallery, so nothing has to be left out."),
        ],
    )  # fmt: skip


def threshold_for(answer) -> None:
    similarities = np.round(_rng().uniform(0.2, 1, 30), 3)
    right = _rng(1).random(30) < similarities
    by_value = {
        float(t): right[similarities >= t].mean() for t in np.sort(similarities) if t is not None
    }
    for wanted in (0.7, 0.8):
        good = [t for t, share in by_value.items() if share >= wanted]
        number(
            call(answer, similarities, right, wanted, name="threshold_for"),
            min(good),
            [
                (max(good), "that one refuses nearly everything: the *smallest* that will do."),
                (similarities.min(), "that one answers everything, however unsure."),
                (wanted, "that is the share wanted, not a similarity."),
                (np.quantile(similarities, wanted), "a quantile looks at similarities only; what "
                 "counts is how many of the answers above it are right."),
                (np.quantile(similarities, 1 - wanted), "a quantile looks at similarities only; "
                 "what counts is how many of the answers above it are right."),
            ],
        )  # fmt: skip


def class_centers(answer) -> None:
    rows, labels = _unit(_rng().standard_normal((12, 4)) + 0.3), np.arange(12) % 3
    sums = np.stack([rows[labels == c].sum(0) for c in range(3)])
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    array(
        call(answer, rows, labels, name="class_centers"),
        _unit(sums),
        [
            (means, "these are the means; scaled to unit length they can be compared by cosine."),
            (sums, "these are sums: scale them to unit length."),
            (rows[:3], "that is one picture of each class, not their mean."),
        ],
    )


CHECKS: dict[str, Check] = {
    "00.1": recall_at_k,
    "00.2": errors_removed,
    "00.3": rms_cosine,
    "01.1": split_by_class,
    "01.2": chance_recall,
    "01.3": labels_from_zero,
    "02.1": patchify,
    "02.2": tokens,
    "02.3": genus_recall,
    "03.1": loss_at_zero,
    "03.2": row_softmax,
    "03.3": effective_negatives,
    "04.1": so_from_spectrum,
    "04.2": simplex,
    "04.3": one_sided,
    "05.1": closest_pair,
    "05.2": mean_cosine,
    "05.3": centered,
    "06.1": directions_for,
    "06.2": shared_neighbors,
    "06.3": nearest_in_plane,
    "07.1": interval_by_hand,
    "07.2": seeds_needed,
    "07.3": optimism,
    "08.1": nearest,
    "08.2": threshold_for,
    "08.3": class_centers,
}
