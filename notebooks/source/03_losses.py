# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Losses, a short history
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/03_losses.ipynb)
#
# A frozen encoder already retrieves (notebook 02). To make it better at *your* classes you need a loss that says which images belong together. Fifteen years of such losses differ in their answers to three questions: what is compared with what, when is a comparison good enough, and who gets the gradient? This notebook draws the third answer for each of them, on the same nine points.
#
# **What you will learn**
#
# - what contrastive, triplet, N-pair, supervised contrastive, NormFace, ArcFace, ProxyNCA and SoftTriple compare, each with its formula and its source;
# - to read a loss by its gradient: which images move, where to, and which are left alone;
# - why semi-hard mining ignores the worst image, and why a softmax over cosines needs a scale;
# - that two losses with different names can be one and the same;
# - how little a table of losses proves when each was trained once.
#
# **Before you start** Notebooks 00 and 02. You need the chain rule, the exponential and the idea of a softmax.
#
# **Time** About half a minute on a two-core laptop.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from ipywidgets import interact
from matplotlib.patches import Circle
from pytorch_metric_learning import losses, miners

from sobook import figures
from sobook.course import exercises
from sobook.course.predictions import fold, predict, reveal
from sobook.losses import ProxyAnchor
from sobook import baselines
from sobook.training.heads import HeadConfig, fit_head, frozen_recall

# %% [markdown]
# Notation: $B$ images in a batch, $C$ classes, $D$ dimensions. $x_i$ is an embedding and $y_i$ its class; $p_c$ a vector of class $c$; all of unit length. $s$ is a cosine, $d$ a Euclidean distance; for unit vectors $d^2 = 2 - 2s$. $[z]_+ = \max(0, z)$.
#
# The losses are those of [pytorch-metric-learning](https://github.com/KevinMusgrave/pytorch-metric-learning). Where five lines explain a formula, we write them and compare:

# %%
def cmp(what, ours, library):
    """Print two values of a loss, and whether they are the same."""
    same = torch.allclose(ours, library, rtol=1e-4, atol=1e-5)
    verdict = "same" if same else "DIFFERENT"
    print(f"{what}: ours {ours:.4f}, library {library:.4f}, {verdict}")


# %% [markdown] tags=["slide"]
# ## 1 · Nine embeddings on a circle
#
# In two dimensions unit vectors lie on a circle, so a batch fits into a picture. Three classes. One image of the blue class has strayed into the orange one: a mislabeled picture, or a bird in bad light.

# %%
ANGLES = [100, 125, 155, 25, 5, 50, 70, 235, 270]  # degrees
STRAY = 3  # the image at 25°
y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])


def on_circle(degrees):
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float))
    return torch.stack([radians.cos(), radians.sin()], dim=1)  # (N, 2)


x = on_circle(ANGLES)  # (9, 2)

# %% [markdown]
# The only thing that a loss tells an image is where to go: against the gradient. That is the arrow.

# %%
def arrows(loss, x=x):
    """−∂L/∂x of every embedding: (B, 2)."""
    free = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(free, y), free)
    return -gradient


# %% [markdown]
# How long an arrow is matters only relative to the others. AdamW divides a constant factor away: a loss times ten trains the same. So in every picture below **the arrows add up to the same total length**; read them as shares of it.

# %% tags=["hide-input"]
LOOKS = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")]
TOTAL = 1.0  # length of all arrows of a picture together, in radii


def draw(axis, title, arrow=None, x=x, vectors=None, owner=None):
    """Nine embeddings, their arrows, and class vectors as stars."""
    axis.add_patch(Circle((0, 0), 1, fill=False, ec="#C4C4C4", lw=1))
    if vectors is not None:
        for row, c in zip(vectors.tolist(), owner.tolist(), strict=True):
            look = {"color": LOOKS[c][0], "ec": "#222222", "lw": 1}
            axis.scatter(*row, marker="*", s=270, **look)
    for c, (color, marker) in enumerate(LOOKS):
        axis.scatter(*x[y == c].T, c=color, marker=marker, s=75, zorder=3)
    axis.text(*(1.12 * x[STRAY]), "stray", va="center")
    for start, step in zip(x.tolist(), shares(arrow), strict=True):
        if (length := np.hypot(*step)) > 0.03:
            style = {"arrowstyle": "-|>", "lw": 2, "color": "#222222"}
            # A short arrow gets a small head: its point has to stay visible.
            head = np.clip(60 * length, 5, 13)
            style |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": head}
            end = np.add(start, step)
            axis.annotate("", end, start, arrowprops=style, zorder=4)
    axis.set(xlim=(-1.2, 1.6), ylim=(-1.15, 1.4), aspect="equal")
    axis.set_title(title, fontsize=13, pad=2)
    axis.set_axis_off()


def shares(arrow):
    """Arrows (B, 2) with a total length of TOTAL."""
    if arrow is None:
        return np.zeros((len(y), 2))
    return (TOTAL * arrow / arrow.norm(dim=1).sum().clamp_min(1e-9)).numpy()


def share_of_stray(arrow):
    lengths = arrow.norm(dim=1)
    return float(lengths[STRAY] / lengths.sum())


def gallery(pictures, columns=3):
    """One picture per loss: {title: (loss, vectors, owner)}."""
    rows = -(-len(pictures) // columns)
    figure = figures.new_figure(3.9 * columns, 3.9 * rows)
    figure.get_layout_engine().set(h_pad=0.1)  # room for two lines of title
    axes = np.ravel(figure.subplots(rows, columns))[: len(pictures)]
    said = []
    for axis, title in zip(axes, pictures, strict=True):
        loss, *vectors = pictures[title]
        arrow = arrows(loss)
        draw(axis, title, arrow, x, *vectors)
        said.append(f"{title}: {share_of_stray(arrow):.0%}")
    alt = "Arrows of the negative gradient at nine points on a circle. "
    alt += "Share of the stray: " + "; ".join(said).replace("\n", " ")
    return figures.finish(figure, alt + ".")


# %% tags=["slide", "hide-input"]
figure = figures.new_figure(3.9, 3.9)
draw(figure.subplots(), "the batch")
figures.finish(
    figure,
    "Nine points on a circle: blue at 100, 125 and 155 degrees and a stray at "
    "25; orange at 5, 50 and 70; green at 235 and 270.",
)

# %% [markdown] tags=["slide"]
# Before reading on: which of the nine would *you* move, and where to?
#
# ## 2 · Pairs: the contrastive loss
#
# **Compares** two images. Same class: close. Other class: at least $m$ apart, and then no more.
#
# $$
# L = \begin{cases}\tfrac12\,d_{ij}^2 & y_i = y_j\\ \tfrac12\,[m - d_{ij}]_+^2 & y_i \ne y_j\end{cases}
# $$
#
# S. Chopra, R. Hadsell and Y. LeCun, CVPR 2005, for faces; the form above: R. Hadsell, S. Chopra and Y. LeCun, [Dimensionality Reduction by Learning an Invariant Mapping](https://doi.org/10.1109/CVPR.2006.100), CVPR 2006. The idea of two copies of one network is older: J. Bromley et al., Signature Verification Using a "Siamese" Time Delay Neural Network, NIPS 1993.
#
# **Predict.** Nine images make 36 pairs, 10 of them of one class. With $m = 1$, an angle of 60°, how many of the 36 have a gradient?

# %%
predict("03.a", None)

# %%
def distances(x):
    return (2 - 2 * x @ x.T).clamp_min(0).sqrt()  # (B, B)


def contrastive_pairs(x, margin):
    """(B, B) bool, twice: positive and negative pairs at work, i < j."""
    same = y[:, None] == y
    once = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
    return same & once, ~same & once & (distances(x) < margin)


# %% tags=["slide", "hide-input"]
positive, negative = contrastive_pairs(x, margin=1.0)
works = int(positive.sum() + negative.sum())
pair_losses = {
    f"contrastive, m = {m}": (losses.ContrastiveLoss(neg_margin=m),)
    for m in (0.3, 1.0, 1.7)
}
reveal("03.a", gallery(pair_losses), truth=works)

# %% [markdown]
# Every positive pair pulls, however close it is already; of the negative pairs only those within the margin push. A larger margin lets more of them in. At $m = 1$ the stray is a mixed case: its own class pulls it home, and three orange images push it, two of them away from home. They nearly cancel, so the worst image of the batch has next to no arrow.
#
# The library has the same idea with another shape: hinges that are *not* squared, and two averages, over the positive and over the negative pairs that are not yet content. A name is not a formula; read the code of what you run.

# %%
def contrastive(x, margin=1.0):
    d = distances(x)
    positive, negative = contrastive_pairs(x, margin)
    return d[positive].mean() + (margin - d[negative]).mean()


cmp("contrastive", contrastive(x), losses.ContrastiveLoss()(x, y))

# %% [markdown] tags=["slide"]
# ## 3 · Triplets, and which of them
#
# A pair loss asks for absolute distances: below zero, beyond $m$. Retrieval needs only an order. **Compares** an anchor $a$ with one image of its class and one of another: the positive should be nearer than the negative, by a margin.
#
# $$
# L = [\,d_{ap} - d_{an} + m\,]_+
# $$
#
# K. Weinberger and L. Saul, [Distance Metric Learning for Large Margin Nearest Neighbor Classification](https://jmlr.org/papers/v10/weinberger09a.html), JMLR 2009 (first NIPS 2005), for a linear map; F. Schroff, D. Kalenichenko and J. Philbin, [FaceNet](https://arxiv.org/abs/1503.03832), CVPR 2015, for a network. FaceNet's distances are squared, the library's are not.
#
# A batch of $B$ images has of the order of $B^3$ triplets, and most have no gradient any more. So one *mines*. FaceNet's three kinds:
#
# | kind | where the negative is | loss |
# |---|---|---|
# | easy | beyond the margin: $d_{an} \ge d_{ap} + m$ | 0 |
# | semi-hard | farther than the positive, but within the margin: $d_{ap} < d_{an} < d_{ap} + m$ | between 0 and $m$ |
# | hard | nearer than the positive: $d_{an} \le d_{ap}$ | at least $m$ |

# %% [markdown]
# ### Exercise 1 · Easy, semi-hard or hard? (warm-up)
#
# Put the table into code. The cell counts the kinds among all triplets of the nine images.
#
# <details><summary>Hint</summary>
#
# Two comparisons are enough; begin with the one that makes a triplet hard.
#
# </details>

# %%
def kind_of(d_ap, d_an, margin):
    """ "easy", "semi-hard" or "hard"."""
    return "?"  # your code here


def count_kinds(function, margin=0.1):
    d = distances(x)
    triples = torch.cartesian_prod(*[torch.arange(len(y))] * 3)  # a, p, n
    a, p, n = triples.T
    keep = (a != p) & (y[a] == y[p]) & (y[a] != y[n])
    return pd.Series(
        [
            function(d[i, j].item(), d[i, k].item(), margin)
            for i, j, k in triples[keep].tolist()
        ]
    ).value_counts()


print(count_kinds(kind_of).to_string())
exercises.check("03.1", kind_of)

# %% tags=["solution"]
def kind_of(d_ap, d_an, margin):
    if d_an <= d_ap:
        return "hard"
    return "semi-hard" if d_an < d_ap + margin else "easy"


print(count_kinds(kind_of).to_string())
exercises.check("03.1", kind_of)

# %% [markdown] tags=["slide"]
# FaceNet takes the semi-hard ones. The hardest negatives, its authors found, can bring training down to a bad minimum early on; and the hardest triplet of a batch is often a mislabeled image.
#
# **Predict.** The stray lies in the middle of the wrong class. Does semi-hard mining send it home, leave it alone, or send it away?

# %%
predict("03.b", None, choices=("home", "left alone", "away"))

# %% tags=["slide", "hide-input"]
MARGIN = 0.1


def mined(kind):
    miner = miners.TripletMarginMiner(margin=MARGIN, type_of_triplets=kind)
    return baselines.MinedLoss(losses.TripletMarginLoss(margin=MARGIN), miner)


triplet_losses = {
    "all triplets": (mined("all"),),
    "semi-hard triplets": (mined("semihard"),),
    "hard triplets": (mined("hard"),),
}
a, p, n = mined("semihard").miner(x, y)
inside = int(((a == STRAY) | (p == STRAY)).sum())
step = arrows(triplet_losses["semi-hard triplets"][0])[STRAY]
tangent = torch.tensor([-x[STRAY, 1], x[STRAY, 0]])  # towards larger angles
along = float(step @ tangent)
truth = (
    "left alone" if abs(along) < 1e-4 else "home" if along > 0 else "away"
)
reveal(
    "03.b",
    gallery(triplet_losses),
    f"Of {len(a)} semi-hard triplets the stray is anchor or positive in "
    f"{inside}, and negative in {int((n == STRAY).sum())}.",
    truth=truth,
)

# %% [markdown]
# No triplet with the stray as anchor or positive is semi-hard: its negatives are either far too near or far enough. It takes part only as *somebody else's* negative, an orange anchor's, and is pushed along the circle, deeper into the wrong side. Semi-hard mining gives up on what is badly wrong. That is a protection against wrong labels, and a blind spot for hard classes. All triplets, or the hard ones, send it home.
#
# ### Which pairs are at work?
#
# Move the stray, change the margin, change the loss. Green lines pull, dashed purple lines push; the thicker a line, the more pairs or triplets stand behind it. Try three things: bring the stray home step by step and watch semi-hard mining wake up; widen the margin until all triplets are at work; raise the margin of the contrastive loss until the first orange image pushes the stray.

# %% tags=["hide-input"]
def at_work(kind, x, margin):
    """How often each pair pulls and pushes: two (B, B) arrays, i < j."""
    d, same = distances(x), y[:, None] == y
    if kind == "contrastive":
        return [part.double().numpy() for part in contrastive_pairs(x, margin)]
    ap, an = d[:, :, None], d[:, None, :]  # a, p, n
    valid = same[:, :, None] & ~same[:, None, :]
    valid &= ~torch.eye(len(y), dtype=torch.bool)[:, :, None]
    chosen = valid & (an < ap + margin)
    if kind == "semi-hard triplets":
        chosen &= an > ap
    counts = chosen.sum(2), chosen.sum(1)  # (B, B) each: a with p, a with n
    return [(part + part.T).triu(1).double().numpy() for part in counts]


def pairs_picture(axis, kind, x, margin):
    """The pairs that a loss acts on, as lines."""
    parts = at_work(kind, x, margin)
    most = max(1, *(part.max() for part in parts))
    looks = [("#009E73", "-"), ("#882255", (0, (3, 1.5)))]
    for part, (color, dash) in zip(parts, looks, strict=True):
        for i, j in np.argwhere(part):
            width = 0.6 + 3.4 * part[i, j] / most
            axis.plot(*x[[i, j]].T, color=color, ls=dash, lw=width, alpha=0.7)
    pull, push = (int((part > 0).sum()) for part in parts)
    title = f"{kind}, margin {margin:g}\n{pull} pairs pull, {push} push"
    draw(axis, title, None, x)
    return title.replace("\n", ": ")


KINDS = ("contrastive", "all triplets", "semi-hard triplets")


def play(stray=25, margin=0.3, loss=KINDS[2]):
    figure = figures.new_figure(4.8, 4.8)
    figure.get_layout_engine().set(h_pad=0.1)
    moved = on_circle([*ANGLES[:STRAY], stray, *ANGLES[STRAY + 1 :]])
    said = pairs_picture(figure.subplots(), loss, moved, margin)
    return figures.finish(figure, f"Stray at {stray} degrees; {said}.")


# %%
_ = interact(
    play, stray=(-20, 150, 5), margin=(0.05, 1.5, 0.05), loss=list(KINDS)
)

# %% [markdown]
# On a page without a running kernel there are no sliders; three stills instead:

# %% tags=["slide", "hide-input"]
figure = figures.new_figure(12, 4.3)
figure.get_layout_engine().set(h_pad=0.1)
said = [
    pairs_picture(axis, kind, x, 0.3)
    for axis, kind in zip(figure.subplots(1, 3), KINDS, strict=True)
]
figures.finish(figure, "Pairs at work. " + "; ".join(said) + ".")

# %% [markdown] tags=["slide"]
# ## 4 · One against many: N-pair and supervised contrastive
#
# A triplet looks at one negative at a time. **N-pair compares** an anchor with its positive and with one image of *every* other class of the batch, in one go. The batch holds $N$ classes with one pair $(x_i, x_i^+)$ each:
#
# $$
# L = \frac1N\sum_i \log\Big(1+\sum_{j\ne i} e^{\,x_i^\top x_j^+ - x_i^\top x_i^+}\Big)
# $$
#
# K. Sohn, [Improved Deep Metric Learning with Multi-class N-pair Loss Objective](https://papers.nips.cc/paper/2016/hash/6b180037abbebea991d8b1232f8a8ca9-Abstract.html), NIPS 2016. Multiply out, and it is a cross-entropy: each anchor is to pick its own partner among the $N$.

# %%
anchors, partners = x[[0, 5, 7]], x[[1, 6, 8]]  # one pair per class
cosines = anchors @ partners.T  # (N, N)
own = cosines.diagonal()
by_formula = (cosines - own[:, None]).exp().sum(1).log().mean()
as_softmax = F.cross_entropy(cosines, torch.arange(3))
cmp("N-pair, formula and cross-entropy", by_formula, as_softmax)
pairs, pair_labels = torch.cat([anchors, partners]), torch.arange(3).repeat(2)
cmp("N-pair", as_softmax, losses.NPairsLoss()(pairs, pair_labels))

# %% [markdown]
# **Supervised contrastive compares** every image with *all* others of the batch, and has a temperature $T$:
#
# $$
# L = \frac1B\sum_i \frac{-1}{|P_i|}\sum_{p\in P_i}\log\frac{e^{s_{ip}/T}}{\sum_{a\ne i}e^{s_{ia}/T}} ,
# $$
#
# with $P_i$ the other images of class $y_i$. P. Khosla et al., [Supervised Contrastive Learning](https://arxiv.org/abs/2004.11362), NeurIPS 2020. The exponentials do the mining: the most similar images get most of the gradient, and $T$ says how sharply.

# %% tags=["slide", "hide-input"]
gallery(
    {
        f"supervised contrastive, T = {T}": (
            baselines.make("sup_con", 3, 2, temperature=T),
        )
        for T in (1.0, 0.3, 0.1)
    }
)

# %% [markdown]
# With a large $T$ everybody moves a little. With a small one the arrows gather where the classes mix, and the stray has the longest: it must leave its neighbors, and no rule says that it is too wrong to be helped.
#
# ### Exercise 2 · Find the bug
#
# This implementation of the formula runs, and a head can be trained with it. It is wrong. Find out where, and fix it.
#
# <details><summary>Hint</summary>
#
# Write down the sums for a single image $i$. Which images are in $P_i$, and which under the sum in the denominator?
#
# </details>

# %%
def sup_con(embeddings, labels, temperature=0.1):
    unit = F.normalize(embeddings, dim=1)
    logits = unit @ unit.T / temperature  # (B, B)
    same = labels[:, None] == labels
    log_share = logits - logits.logsumexp(1, keepdim=True)
    return -((log_share * same).sum(1) / same.sum(1)).mean()


cmp("supervised contrastive", sup_con(x, y), losses.SupConLoss()(x, y))
exercises.check("03.2", sup_con)

# %% tags=["solution"]
def sup_con(embeddings, labels, temperature=0.1):
    unit = F.normalize(embeddings, dim=1)
    logits = unit @ unit.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool)
    same = (labels[:, None] == labels) & ~itself  # not its own positive
    others = logits.masked_fill(itself, float("-inf"))  # nor in the sum
    log_share = logits - others.logsumexp(1, keepdim=True)
    return -((log_share * same).sum(1) / same.sum(1)).mean()


cmp("supervised contrastive", sup_con(x, y), losses.SupConLoss()(x, y))
exercises.check("03.2", sup_con)

# %% [markdown] tags=["slide"]
# ## 5 · Vectors for classes: softmax with cosines
#
# All losses so far need a batch in which classes meet. Meanwhile face recognition trained plain classifiers and used the layer before the last as the embedding. The last layer of a classifier has one vector per class; normalize it and the embedding, and its logits are cosines. **NormFace compares** an image with $C$ learned class vectors:
#
# $$
# L_i = -\log\frac{e^{\alpha s_{i,y_i}}}{\sum_c e^{\alpha s_{ic}}}, \qquad s_{ic} = x_i^\top p_c .
# $$
#
# F. Wang, X. Xiang, J. Cheng and A. Yuille, [NormFace](https://arxiv.org/abs/1704.06369), ACM Multimedia 2017. The scale $\alpha$ is new: a plain classifier lets the lengths of its vectors do that.
#
# **Predict.** 50 classes, and no scale ($\alpha = 1$). Before training, all cosines are about 0 and the loss is $\log 50 \approx 3.9$. How low can it get, at best?

# %%
predict("03.c", None)

# %% tags=["slide", "hide-input"]
def lowest(alpha, classes=50):
    """Loss of images on their class vectors, and these on a simplex."""
    cosines = np.full(classes, -1 / (classes - 1))
    cosines[0] = 1.0
    return float(-np.log(np.exp(alpha) / np.exp(alpha * cosines).sum()))


bounds = pd.Series({alpha: lowest(alpha) for alpha in (1, 2, 4, 8, 16, 32)})
bounds = bounds.map("{:.4f}".format).rename_axis("α").to_frame("lowest loss")
reveal("03.c", bounds.T, truth=lowest(1))

# %% [markdown]
# The best there is: every image on its class vector, and these as far apart as $C$ directions can be, at cosines of $-1/(C-1)$. Then $L = \log\big(1+(C-1)\,e^{-\alpha C/(C-1)}\big)$, which is Proposition 2 of NormFace. Cosines end at 1, so without a scale even perfect embeddings keep a large loss, and a gradient that pulls at images that are in the right place. A scale of 16 or more removes it.

# %%
P = on_circle([125, 35, 250])  # one vector per class


def norm_face(x, P, alpha):
    return F.cross_entropy(alpha * x @ P.T, y)


def with_vectors(loss, vectors):
    """Put class vectors into a loss of the library: (rows, 2)."""
    (weight,) = loss.parameters()
    weight.data = vectors if weight.shape == vectors.shape else vectors.T
    return loss


library = losses.NormalizedSoftmaxLoss(3, 2, temperature=1 / 16)
cmp("NormFace", norm_face(x, P, 16), with_vectors(library, P)(x, y))

# %% [markdown]
# **ArcFace** makes the task harder than the test: the image's *own* angle is enlarged by a margin $m$ before the softmax.
#
# $$
# \text{own logit} = \alpha\cos(\theta_{i,y_i} + m), \qquad \theta = \arccos s
# $$
#
# J. Deng, J. Guo, N. Xue and S. Zafeiriou, [ArcFace](https://arxiv.org/abs/1801.07698), CVPR 2019.

# %%
def arc_face(x, P, alpha=64.0, degrees=28.6):
    own = F.one_hot(y, len(P)).bool()
    angle = (x @ P.T).acos()  # (B, C)
    angle = torch.where(own, angle + np.deg2rad(degrees), angle)
    return F.cross_entropy(alpha * angle.cos(), y)


library = with_vectors(losses.ArcFaceLoss(3, 2), P)
cmp("ArcFace", arc_face(x, P), library(x, y))

# %% tags=["slide", "hide-input"]
one_each = torch.arange(3)


def class_loss(name, vectors=P, **options):
    return with_vectors(baselines.make(name, 3, 2, **options), vectors)


gallery(
    {
        "NormFace, α = 2": (
            class_loss("normalized_softmax", temperature=1 / 2),
            *(P, one_each),
        ),
        "NormFace, α = 16": (
            class_loss("normalized_softmax", temperature=1 / 16),
            *(P, one_each),
        ),
        "ArcFace, α = 16, m = 28.6°": (
            class_loss("arcface", scale=16),
            *(P, one_each),
        ),
    }
)

# %% [markdown]
# Stars are class vectors. With a small scale everybody moves. With α = 16 one image takes nearly all of the gradient: the stray. The other eight are nearest to their own star, and a softmax asks for no more. ArcFace's margin asks for more: now an orange image between two stars has to move as well.
#
# Note what has disappeared: images do not see each other any more. Each looks at the stars alone.
#
# ## 6 · The same thing under another name: proxies
#
# Metric learning came to class vectors by itself, from triplets. **ProxyNCA compares** an image with one *proxy* per class, in place of all positives and negatives:
#
# $$
# L_i = -\log\frac{e^{-d^2(x_i,\,p_{y_i})}}{\sum_{c\ne y_i}e^{-d^2(x_i,\,p_c)}}
# $$
#
# Y. Movshovitz-Attias et al., [No Fuss Distance Metric Learning using Proxies](https://arxiv.org/abs/1703.07464), ICCV 2017. **ProxyNCA++** keeps the image's own proxy in the denominator, like any softmax, and divides the squared distances by a low temperature, $T = 1/9$ in the paper. E. W. Teh, T. DeVries and G. Taylor, [ProxyNCA++](https://arxiv.org/abs/2004.01113), ECCV 2020, who also raise the proxies' learning rate and pool by maximum. The library's `ProxyNCALoss` has it in the denominator, too; its `softmax_scale` is $1/T$.
#
# ### Exercise 3 · Derive, then check
#
# For unit vectors, ProxyNCA++ at temperature $T$ *is* NormFace with a certain scale $\alpha$. Which? Derive it on paper, from $d^2 = 2 - 2s$, then write it down. The cell compares the two losses on the nine images.
#
# <details><summary>Hint</summary>
#
# A softmax does not change when the same number is added to all its logits.
#
# </details>

# %%
def scale_of(temperature):
    """α of the NormFace that equals ProxyNCA++ at this temperature."""
    return float("nan")  # your code here


def compare_nca(function):
    for T in (1.0, 1 / 9):
        library = losses.ProxyNCALoss(3, 2, softmax_scale=1 / T)
        theirs = with_vectors(library, P)(x, y)
        cmp(f"ProxyNCA++, T = {T:.2f}", norm_face(x, P, function(T)), theirs)


compare_nca(scale_of)
exercises.check("03.3", scale_of)

# %% tags=["solution"]
def scale_of(temperature):
    # −d²/T = −2/T + 2s/T: the first part is the same for all classes.
    return 2 / temperature


compare_nca(scale_of)
exercises.check("03.3", scale_of)

# %% [markdown] tags=["slide"]
# So two lines of work, face recognition and retrieval, arrived at one loss. ProxyNCA++ found the low temperature decisive in 2020; NormFace had introduced it in 2017, as the scale. Before you compare two losses, check that they differ.
#
# ## 7 · Several vectors per class: SoftTriple
#
# Birds of one species may look quite different: male and female, flying and sitting. **SoftTriple compares** an image with $K$ centers per class and takes a soft maximum over them:
#
# $$
# S_{ic} = \sum_k \frac{e^{s_{ick}/\gamma}}{\sum_{k'} e^{s_{ick'}/\gamma}}\, s_{ick}, \qquad
# L_i = -\log\frac{e^{\lambda(S_{i,y_i}-\delta)}}{e^{\lambda(S_{i,y_i}-\delta)}+\sum_{c\ne y_i}e^{\lambda S_{ic}}} .
# $$
#
# Q. Qian et al., [SoftTriple Loss](https://arxiv.org/abs/1909.05235), ICCV 2019. The paper also shows that a softmax loss *is* a smoothed triplet loss, with class vectors as the images compared.

# %%
def soft_triple(x, centers, scale=20.0, gamma=0.1, margin=0.01):
    s = (x @ centers.T).reshape(len(x), 3, -1)  # (B, C, K)
    S = ((s / gamma).softmax(2) * s).sum(2)  # (B, C)
    return F.cross_entropy(scale * (S - margin * F.one_hot(y, 3)), y)


centers = on_circle([115, 35, 20, 60, 235, 265])  # K = 2 for each class
library = losses.SoftTripleLoss(3, 2, centers_per_class=2)
library = with_vectors(library, centers)
cmp("SoftTriple", soft_triple(x, centers), library(x, y))

# %% [markdown]
# The blue class has a second center near the stray, as if it had learned that there are two kinds of blue. **What will the stray do now?**

# %% tags=["slide", "hide-input"]
fold(
    gallery(
        {
            "NormFace, α = 20": (
                class_loss("normalized_softmax", temperature=1 / 20),
                *(P, one_each),
            ),
            "SoftTriple, 2 centers per class": (
                class_loss("soft_triple", centers, centers_per_class=2),
                *(centers, one_each.repeat_interleave(2)),
            ),
        },
        columns=2,
    )
)

# %% [markdown]
# It need not go home: it has a center of its own next to it. The longest arrow now belongs to an orange image, which stands between that blue center and an orange one. Whether this helps depends on whether the stray *is* a second kind of blue, or a mistake.
#
# ## 8 · What comes next: Proxy Anchor
#
# One loss is left, the one that this course trains with. **Proxy Anchor compares** each proxy with all images of the batch. NormFace and ProxyNCA take a softmax over the classes, image by image: along the *rows* of the matrix of cosines. Proxy Anchor goes down its *columns*, proxy by proxy, so images of one batch compete again:
#
# $$
# L = \frac{1}{|P^+|}\sum_{p\in P^+}\log\Big(1+\sum_{x\in X_p^+}e^{-\alpha(s(x,p)-\delta)}\Big)
# +\frac{1}{|P|}\sum_{p\in P}\log\Big(1+\sum_{x\in X_p^-}e^{\alpha(s(x,p)+\delta)}\Big) .
# $$
#
# Here $P$ are all proxies and $P^+$ those of the classes in the batch; $X_p^+$ are the images of the batch that are of $p$'s class, $X_p^-$ all others; $\alpha$ is the scale and $\delta$ the margin (32 and 0.1 in the paper's code). Notebook 04 takes the formula apart.
#
# S. Kim, D. Kim, M. Cho and S. Kwak, [Proxy Anchor Loss](https://arxiv.org/abs/2003.13911), CVPR 2020. Beside the losses of this notebook, all nine on the same nine images:

# %% tags=["slide", "hide-input"]
everything = {
    "2006 contrastive\ntwo images": (baselines.make("contrastive", 3, 2),),
    "2015 semi-hard triplets\nthree images": (mined("semihard"),),
    "2020 supervised contrastive\none image with all others": (
        baselines.make("sup_con", 3, 2),
    ),
    "2017 NormFace, α = 18\none vector per class": (
        class_loss("normalized_softmax", temperature=1 / 18),
        *(P, one_each),
    ),
    "2019 ArcFace, α = 64\none vector, own angle + m": (
        class_loss("arcface"),
        *(P, one_each),
    ),
    "2017 ProxyNCA, T = 1\none proxy per class": (
        class_loss("proxy_nca", softmax_scale=1),
        *(P, one_each),
    ),
    "2020 ProxyNCA++, T = 1/9\none proxy per class": (
        class_loss("proxy_nca", softmax_scale=9),
        *(P, one_each),
    ),
    "2019 SoftTriple\ntwo centers per class": (
        class_loss("soft_triple", centers, centers_per_class=2),
        *(centers, one_each.repeat_interleave(2)),
    ),
    "2020 Proxy Anchor\neach proxy with the batch": (
        with_vectors(ProxyAnchor(3, 2), P),
        *(P, one_each),
    ),
}
gallery(everything)

# %% [markdown]
# Three things to see. NormFace and ProxyNCA++ are the same picture; exercise 3 says why. Losses with stars and a large scale leave the green class alone, where all is well; the contrastive loss still pulls its two images together. And Proxy Anchor moves the blue image at 155°, which is nearest to its own star. The green star is 95° away from it, a cosine of −.09, and that is not yet below $-\delta = -.1$. Where the softmax losses compare stars with each other, Proxy Anchor compares each cosine with a fixed number.
#
# | | compares | asks for | who gets the gradient |
# |---|---|---|---|
# | contrastive | two images | fixed distances | all positive pairs, negatives within the margin |
# | triplet | three images | an order, with a margin | the triplets that were mined |
# | N-pair, supervised contrastive | one image with the batch | an order | the most similar images |
# | NormFace, ProxyNCA++ | one image with $C$ vectors | an order | images not nearest to their own vector |
# | ArcFace | the same | an order, with a margin | those, and images near a border |
# | SoftTriple | one image with $C\cdot K$ vectors | an order | images whose nearest center is foreign |
# | Proxy Anchor | one vector with the batch | fixed cosines, $\delta$ and $-\delta$ | the hardest images of each vector |

# %% [markdown] tags=["slide"]
# ## 9 · Train with all of them
#
# The same frozen features of the drawn birds, the same linear head with 128 dimensions, the same batches of 100 images; only the loss changes. 50 species to train on, 50 others to test. All losses have the library's default settings, apart from what the name says.
#
# **Predict.** After 20 epochs, which loss has the highest Recall@1 on unseen species?

# %%
RUNS = {
    "contrastive": ("contrastive", {}),
    "triplet, semi-hard": ("triplet", {"margin": 0.05}),
    "supervised contrastive": ("sup_con", {}),
    "NormFace": ("normalized_softmax", {}),
    "ArcFace": ("arcface", {}),
    "ProxyNCA": ("proxy_nca", {"softmax_scale": 1}),
    "ProxyNCA++": ("proxy_nca", {"softmax_scale": 9}),
    "SoftTriple": ("soft_triple", {}),
    "Proxy Anchor": ("proxy_anchor", {}),
}
predict("03.d", None, choices=tuple(RUNS))

# %%
base = HeadConfig(validation_fraction=0.0, device=session.device)


def recall(name, epochs, seed):
    loss, options = RUNS[name]
    config = base.replace(loss=loss, loss_options=options)
    return fit_head(config.replace(epochs=epochs, seed=seed))["recall_at_1"]


# %% tags=["slide", "hide-input"]
frozen = frozen_recall(base)
looks = "5 epochs", "20 epochs", "20 epochs, another seed"
rows = {"frozen encoder": dict.fromkeys(looks, frozen)}
for name in RUNS:
    found = recall(name, 5, 0), recall(name, 20, 0), recall(name, 20, 1)
    rows[name] = dict(zip(looks, found, strict=True))
table = pd.DataFrame(rows).T.rename_axis("Recall@1, unseen species")
best = table["20 epochs"].idxmax()
reveal("03.d", table.round(4), truth=best)

# %% [markdown]
# Read the table from right to left.
#
# - **The last two columns differ in nothing but luck**, the start values and the order of the batches. Differences between losses that are no larger than those between the two columns say nothing.
# - **Five epochs and twenty order the losses differently.** Which is "best" depends on when you look, and after twenty epochs some of them are still rising.
# - **Nobody tuned anything.** The learning rates are those that suit Proxy Anchor; ArcFace's defaults were made for millions of faces. A loss with the wrong scale looks like a bad loss.
# - **Only a linear map is trained here**, of features that are good already. It says little about fine-tuning a whole network.
#
# So what does it show? That every one of them, also the oldest, can be trained in a second, and that after 20 epochs all are above the frozen encoder. It does *not* show which is best. That takes several seeds, training until nothing moves any more, and settings chosen on other classes than those that are reported: notebooks 08 and 09. K. Musgrave, S. Belongie and S.-N. Lim did it on the real benchmarks in [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), ECCV 2020, and found that under equal conditions the newest losses were hardly better than contrastive and triplet losses.

# %% [markdown]
# ### Exercise 4 · Criticize a claim
#
# Two losses, six settings each, with Recall@1 on held-out *training* species (validation) and on the unseen ones (test):

# %%
base_tuned = base.replace(validation_fraction=0.2)


def both_recalls(config):
    found = fit_head(config)
    return found["validation_recall_at_1"], found["recall_at_1"]


grid = []
for scale in (16, 32, 64):
    for m in (11.5, 28.6):
        options = {"margin": m, "scale": scale}
        config = base_tuned.replace(loss="arcface", loss_options=options)
        grid.append(("ArcFace", scale, m, *both_recalls(config)))
    for m in (0.1, 0.2):
        config = base_tuned.replace(scale=float(scale), margin=m)
        grid.append(("Proxy Anchor", scale, m, *both_recalls(config)))
columns = ["loss", "scale", "margin", "validation", "test"]
grid = pd.DataFrame(grid, columns=columns).sort_values(columns[:3])
grid.reset_index(drop=True)

# %% tags=["hide-input"]
arc, anchor = (grid[grid["loss"] == n] for n in ("ArcFace", "Proxy Anchor"))
default = anchor.query("scale == 32 and margin == 0.1")["test"].item()
claimed = arc["test"].max() - default
print(
    f"The claim: 'ArcFace reaches {arc['test'].max():.4f}, Proxy Anchor "
    f"{default:.4f} with its published settings: ArcFace is better by "
    f"{claimed:.4f}.'"
)

# %% [markdown]
# Every number in that sentence is true. Two choices behind it are not fair: ArcFace had six tries and Proxy Anchor one, and the best of the six was picked on the *test* species. Write `fair_gain`: for both losses choose the setting on the validation species, then report the difference of the test values, ours minus theirs.
#
# <details><summary>Hint</summary>
#
# `frame["validation"].idxmax()` is the index of the chosen row, `frame.loc[index, "test"]` its test value.
#
# </details>

# %%
def fair_gain(ours, theirs):
    """Two frames with columns validation and test; one row per setting."""
    return float("nan")  # your code here


print(f"claimed {claimed:+.4f}, fair {fair_gain(arc, anchor):+.4f}")
exercises.check("03.4", fair_gain)

# %% tags=["solution"]
def fair_gain(ours, theirs):
    chosen = [f.loc[f["validation"].idxmax(), "test"] for f in (ours, theirs)]
    return chosen[0] - chosen[1]


print(f"claimed {claimed:+.4f}, fair {fair_gain(arc, anchor):+.4f}")
exercises.check("03.4", fair_gain)

# %% [markdown]
# The fair number is no finding either: it is one seed, twenty epochs, and a difference no larger than some of those between two seeds in section 9. But with settings chosen in the same way for both losses, nothing is left to claim.
#
# ## Summary
#
# - A loss answers three questions: what is compared with what, what is good enough, who gets the gradient. Draw the gradient on a few points; it says more than the formula.
# - Pair and triplet losses compare images of a batch and depend on which pairs and triplets are in it. Semi-hard mining leaves the worst images alone, on purpose.
# - N-pair and supervised contrastive losses put all of the batch into one softmax; the temperature does the mining.
# - Class vectors, also called proxies, make every class present in every batch. Cosines need a scale, since they end at 1. NormFace and ProxyNCA++ are one loss.
# - A table with one run per loss, at one number of epochs and default settings, is a list of numbers and not a ranking.
#
# **What is still open.** From NormFace on, every loss learns one vector per class and tells images where to go relative to these vectors. Nobody has told the *vectors* where to stand relative to each other. And Proxy Anchor, alone among the losses with vectors, asks for fixed cosines instead of an order. Notebook 04 builds it line by line and watches what its proxies do.
#
# ## Questions
#
# **1.** A batch of 100 images is drawn at random from eleven thousand classes. What is left of a contrastive loss? Of NormFace?
#
# <details><summary>Answer</summary>
#
# Hardly two of the images share a class, so the contrastive loss only pushes: nothing is pulled together. One composes batches on purpose, with a few images of each class. NormFace has its positive in every case, the image's own class vector.
#
# </details>
#
# **2.** Why does an old loss with a sum over pairs need a miner, and supervised contrastive none?
#
# <details><summary>Answer</summary>
#
# In a mean over triplets every triplet at work counts the same, and most are not at work. In a softmax the weights are exponentials of the similarities, so the hardest comparisons take most of the gradient by themselves. The temperature is the miner.
#
# </details>
#
# **3.** The original ProxyNCA leaves the image's own proxy out of the denominator. Can its loss be negative? What does that do to images that are already well placed?
#
# <details><summary>Answer</summary>
#
# Yes: with its own proxy nearer than all others, the fraction exceeds 1 and its negative logarithm is below 0. The gradient does not fade as an image becomes right; it is pulled towards its proxy and away from the others for as long as distances can change. With it in the denominator the loss stops at 0 and the image is left alone.
#
# </details>
#
# ## Further reading
#
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), ECCV 2020: the losses of this notebook under equal conditions. If you read one paper of this list, read this one.
# - K. Roth et al., [Revisiting Training Strategies and Generalization Performance in Deep Metric Learning](https://arxiv.org/abs/2002.08473), ICML 2020: the same year, the same conclusion, other experiments.
# - C.-Y. Wu, R. Manmatha, A. Smola, P. Krähenbühl, [Sampling Matters in Deep Embedding Learning](https://arxiv.org/abs/1706.07567), ICCV 2017: which pairs are in the batch, against which loss is applied to them.
# - A. Zhai, H.-Y. Wu, [Classification is a Strong Baseline for Deep Metric Learning](https://arxiv.org/abs/1811.12649), BMVC 2019: normalized softmax, done with care, on the retrieval benchmarks.
# - M. Boudiaf et al., [A Unifying Mutual Information View of Metric Learning](https://arxiv.org/abs/2003.08983), ECCV 2020: why cross-entropy does the work of pair losses.
