# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Proxy Anchor
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/04_proxy_anchor.ipynb)
#
# The loss that trains every model of this course fits into fifteen lines. Here you write them, check them against two other implementations, look inside the gradient, watch it work on a sphere, and then train with it.
#
# **What you will learn**
#
# - why comparing images with *proxies* replaces comparing images with images, and what that saves (it is not what most people think);
# - to build the Proxy Anchor loss from a matrix of cosines, and to compute it without overflow;
# - its gradient: who is pulled, who is pushed, how hard, and what the scale $\alpha$ does to that;
# - what the loss asks for in a space of few dimensions, and what happens when proxies are forgotten in the optimizer;
# - how much of the frozen encoder's error the trained one removes, on species it has never seen.
#
# **Before you start** Notebook 00 for the whole, 02 for the frozen features, 03 for the losses that came before. You need the chain rule, the exponential and the idea of a softmax.
#
# **Time** About half a minute of computing on a two-core laptop: the training run comes with the course.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import nn

from sobook import figures, geometry
from sobook.course import exercises
from sobook.course.predictions import predict, reveal
from sobook.data import benchmarks, image_sets, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.losses import ProxyAnchor
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict

# %% [markdown]
# Notation, throughout: $B$ images in a batch, $C$ classes, $D$ dimensions, $N$ training images. A hat means unit length. The function below compares what we compute with what it should be; it is all the testing this notebook needs.


# %%
def cmp(what, ours, reference):
    """Largest difference of two tensors; whether it is just rounding."""
    ours, reference = ours.detach(), reference.detach()
    same = torch.allclose(ours, reference, rtol=1e-4, atol=1e-6)
    print(
        f"{what:<44} largest difference {(ours - reference).abs().max():.0e}  "
        f"{'same' if same else 'DIFFERENT'}"
    )


# %% [markdown] tags=["slide"]
# ## 1 · From pairs and triplets to proxies
#
# Notebook 03 met two families of losses: some compare images with images, in *pairs* or *triplets*, others compare an image with one learned vector per class, its *proxy*. What does the step from the one to the other save?
#
# **Predict.** Stanford Online Products has about sixty thousand training images in eleven thousand classes. By what factor does the number of comparisons fall from pairs to proxies? Ten? A thousand? A million?

# %%
predict("04.a", None)


# %% tags=["slide"]
def counts(N, C, B):
    """How many comparisons there are; classes are taken as equally large."""
    size = N / C  # images per class
    pairs = N * (N - 1) / 2
    return {
        "images N": N,
        "classes C": C,
        "pairs": pairs,
        "triplets": N * (size - 1) * (N - size),
        "image–proxy": N * C,
        "pairs / image–proxy": pairs / (N * C),
        "pairs met in an epoch": (B - 1)
        / (N - 1),  # share; batches drawn at random
        "same-class pairs in a batch": B
        * (B - 1)
        / 2
        * (size - 1)
        / (N - 1),  # expected number
    }


train_counts = {
    name: card["splits"]["train"] for name, card in benchmarks.cards().items()
}
table = pd.DataFrame(
    {
        name: counts(n["images"], n["classes"], B=180)
        for name, n in train_counts.items()
    }
)
form = {
    "pairs / image–proxy": "{:.1f}",
    "pairs met in an epoch": "{:.1%}",
    "same-class pairs in a batch": "{:.1f}",
}
reveal(
    "04.a",
    table.apply(
        lambda row: row.map(form.get(row.name, "{:,.0f}").format), axis=1
    ),
    truth=table.loc["pairs / image–proxy", "sop"],
)

# %% [markdown]
# **What we see.** Against triplets the saving is huge. Against pairs it is half the number of images per class: a lot where classes are large (CUB), hardly anything where they are small (SOP). So the count alone is not the point. The last two rows are:
#
# - In one epoch of random batches an image meets only a small share of the other images, but it meets *every* proxy.
# - Where there are many small classes, a random batch contains next to no pair of the same class. A pair loss then has nothing to pull together, unless batches are composed on purpose. With proxies every image has one positive and $C-1$ negatives, in every batch.
#
# A proxy is a summary of its class that is always present. The price: images no longer see each other directly. The gradient in section 3 shows that Proxy Anchor gets some of that back.

# %% [markdown] tags=["slide"]
# ## 2 · The loss, from cosines
#
# With $s(x,p) = \hat x^\top\hat p$ the cosine of an embedding and a proxy, a scale $\alpha$ and a margin $\delta$, the loss is
#
# $$
# L = \underbrace{\frac{1}{|P^+|}\sum_{p\in P^+}\log\Big(1+\sum_{x\in X_p^+}e^{-\alpha\,(s(x,p)-\delta)}\Big)}_{\text{pull}}
# \;+\;\underbrace{\frac{1}{|P|}\sum_{p\in P}\log\Big(1+\sum_{x\in X_p^-}e^{\alpha\,(s(x,p)+\delta)}\Big)}_{\text{push}} .
# $$
#
# $P$ are all $C$ proxies, $P^+$ those whose class occurs in the batch, $X_p^+$ the images of the batch that belong to $p$, $X_p^-$ those that do not. **Each proxy is an anchor that looks at the whole batch**; that is where the name comes from. We build it step by step, on a batch small enough to see.

# %%
B, C, D = 6, 4, 8
# δ and α: the values of the Proxy Anchor paper's code
margin, scale = (
    0.1,
    32.0,
)
generator = torch.Generator().manual_seed(session.seed)
embeddings = torch.randn(B, D, generator=generator)
proxies = torch.randn(C, D, generator=generator)
labels = torch.tensor([0, 0, 0, 1, 1, 3])  # nobody is of class 2

# (B, C)
cosines = (
    F.normalize(embeddings, dim=1) @ F.normalize(proxies, dim=1).T
)
own = F.one_hot(labels, C).bool()  # (B, C): is this the image's own proxy?
# (B, C), exponents; only those of own proxies count
pull = -scale * (
    cosines - margin
)
# (B, C), exponents; only those of other proxies count
push = scale * (
    cosines + margin
)

# %% [markdown] tags=["slide"]
# **Predict.** In the figure below rows are images and columns proxies; frames mark an image's own proxy. The two sums run down the columns. Which column contributes nothing to the first sum? Which entries contribute most to each loss?


# %% tags=["slide", "hide-input"]
def show_step(axis, values, shown, title, form):
    """One matrix with its numbers; entries that do not count are left white."""
    limit = np.abs(values).max()
    axis.imshow(
        np.where(shown, values, np.nan), cmap="RdBu_r", vmin=-limit, vmax=limit
    )
    for row, column in zip(*np.nonzero(shown), strict=True):
        strong = abs(values[row, column]) > 0.6 * limit
        axis.text(
            column,
            row,
            format(values[row, column], form),
            ha="center",
            va="center",
            fontsize=11,
            color="white" if strong else "#222222",
        )
    for row, label in enumerate(labels.tolist()):
        axis.add_patch(
            Rectangle(
                (label - 0.46, row - 0.46),
                0.92,
                0.92,
                fill=False,
                ec="#222222",
                lw=2,
            )
        )
    axis.set(title=title, xticks=range(C), yticks=range(B), xlabel="proxy")
    axis.tick_params(length=0)


figure = figures.new_figure(11, 4.2)
axes = figure.subplots(1, 3, sharey=True)
show_step(axes[0], cosines.numpy(), np.ones((B, C), bool), "cosines s", "+.2f")
show_step(axes[1], pull.numpy(), own.numpy(), "pull: −α (s − δ)", "+.1f")
show_step(axes[2], push.numpy(), ~own.numpy(), "push: α (s + δ)", "+.1f")
axes[0].set(ylabel="image (frame: own proxy)")
figures.finish(
    figure,
    f"Cosines of {B} images and {C} proxies, and the exponents of the pull "
    "and push terms made of them.",
)

# %% [markdown]
# Column 2 has no frame: no image of that class is in the batch, so it takes no part in the pull. But all six images are its negatives, so it takes part in the push. That is why the first mean is over $P^+$ and the second over all proxies.
#
# A positive exponent means *not yet good enough*: an own cosine below $\delta$, another's above $-\delta$. Because $\alpha$ multiplies cosines, exponents are large, and the largest of a column swallows the rest of its sum.
#
# Now the formula, literally:


# %%
def naive(cosines, own, margin=0.1, scale=32.0):
    """The formula as it stands."""
    pull_sum = (torch.exp(-scale * (cosines - margin)) * own).sum(0)  # (C,)
    push_sum = (torch.exp(scale * (cosines + margin)) * ~own).sum(0)  # (C,)
    present = own.any(0)  # (C,): P⁺
    return (
        torch.log(1 + pull_sum)[present].mean() + torch.log(1 + push_sum).mean()
    )


print(f"loss of this batch: {naive(cosines, own):.4f}")

# %% [markdown] tags=["slide"]
# ### Why a logarithm of a sum of exponentials
#
# One could add up the hinges $\max(0, z_x)$ of all images instead. The log-sum-exp $\ell = \log\sum_x e^{z_x}$ is chosen because it is a *smooth maximum*. With $m$ the largest of $n$ exponents, one term of the sum is $e^m$ and none is larger, so
#
# $$
# m \;\le\; \ell \;\le\; m + \log n ,
# $$
#
# and dividing by $\alpha$, the scale in the exponents, brings it within $\log(n)/\alpha$ of the largest cosine. So each proxy is judged by its *hardest* image, but differentiably, and the others count as far as they come close. The 1 adds one image that is always there, with exponent 0: the maximum is never below 0, so a column in which all is well stops at a loss near 0 instead of wanting more for ever.
#
# ### Why nobody computes it like that
#
# On a GPU, networks often run in half precision. The largest float16 is about $6.5\cdot10^4$, the largest float32 about $3.4\cdot10^{38}$; so $e^z$ overflows near $z = 11$ and near $z = 89$. **Predict:** an image has wandered onto a foreign proxy ($s = 1$). At $\alpha = 32$, in which of the three types below is the loss still a number? At $\alpha = 100$? And what is the *gradient* of a loss that has overflowed?


# %% tags=["slide"]
def naive_push(s, scale):
    return torch.log(1 + torch.exp(scale * (s + margin)).sum())


def stable_push(s, scale):
    return F.softplus((scale * (s + margin)).logsumexp(0))


def value_and_gradient(function, dtype, scale):
    # one proxy, four negatives
    s = torch.tensor(
        [1.0, 0.5, 0.1, -0.2], dtype=dtype, requires_grad=True
    )
    value = function(s, scale)
    value.backward()
    return f"{value.item():.3f}", f"{s.grad[0].item():.3f}"


rows = []
for scale_tried in (32, 100):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        naive_result, stable_result = (
            value_and_gradient(f, dtype, scale_tried)
            for f in (naive_push, stable_push)
        )
        rows.append(
            [
                scale_tried,
                str(dtype).removeprefix("torch."),
                *naive_result,
                *stable_result,
            ]
        )
pd.DataFrame(
    rows,
    columns=[
        "α",
        "type",
        "naive loss",
        "naive gradient",
        "stable loss",
        "stable gradient",
    ],
)

# %% [markdown]
# **What we see.** `inf` in the loss becomes `nan` in the gradient (it is $\infty/\infty$), and one `nan` step destroys a model. The remedy is old. Take the largest exponent $m$ out of the sum,
#
# $$\log\sum_x e^{z_x} = m + \log\sum_x e^{z_x - m}, \qquad m = \max_x z_x ,$$
#
# and no exponential exceeds 1. The 1 in front of our sum is one more term, $e^0$, so
#
# $$\log\Big(1+\sum_x e^{z_x}\Big) = \log\big(1 + e^{\ell}\big) = \text{softplus}(\ell), \qquad \ell = \log\sum_x e^{z_x} .$$
#
# The stable form survives in half precision, but look at its digits: with three or four of them a loss near 35 is known to a few hundredths at best. So `sobook` does both: log-sum-exp, *and* float32 from the embeddings on, whatever precision the network runs in. At the usual $\alpha$ float32 alone would do, until somebody tries a larger $\alpha$.
#
# Now the whole thing:

# %%
NOTHING = -1e4  # stands for "not in this sum": exp(−10⁴) is exactly 0


def proxy_anchor(embeddings, labels, proxies, margin=0.1, scale=32.0):
    """Proxy Anchor: (B, D), (B,), (C, D) → a scalar."""
    # (B, C)
    cosines = (
        F.normalize(embeddings, dim=1) @ F.normalize(proxies, dim=1).T
    )
    own = F.one_hot(labels, len(proxies)).bool()  # (B, C)
    present = own.any(0)  # (C,): P⁺
    pull = (-scale * (cosines - margin)).masked_fill(~own, NOTHING)  # (B, C)
    push = (scale * (cosines + margin)).masked_fill(own, NOTHING)  # (B, C)
    pull_loss = F.softplus(pull.logsumexp(0))[present].mean()
    push_loss = F.softplus(push.logsumexp(0)).mean()
    return pull_loss + push_loss


cmp(
    "log-sum-exp against the literal formula",
    proxy_anchor(embeddings, labels, proxies),
    naive(cosines, own),
)

# %% [markdown]
# ### Check it
#
# A loss can be wrong and still train. So compare with the package's implementation, on a batch of realistic size, value *and* gradients.


# %%
def with_gradients(loss, embeddings, proxies):
    """A loss, and its gradients of embeddings (B, D) and proxies (C, D)."""
    return loss, *torch.autograd.grad(loss, (embeddings, proxies))


def check(name, build):
    """Compare our function with a loss module on several shapes."""
    for B, C, D in ((6, 4, 8), (90, 40, 128), (32, 200, 16)):
        torch.manual_seed(session.seed)
        module = build(C, D)
        x = torch.randn(B, D, requires_grad=True)
        y = torch.randint(C, (B,))
        theirs = with_gradients(module(x, y), x, module.proxies)
        ours = with_gradients(
            proxy_anchor(x, y, module.proxies), x, module.proxies
        )
        for what, a, b in zip(
            ("value", "gradient of embeddings", "gradient of proxies"),
            ours,
            theirs,
            strict=True,
        ):
            cmp(f"{name}, {(B, C, D)}: {what}", a, b)


check("sobook", lambda C, D: ProxyAnchor(C, D))

# %% [markdown]
# And with the library of notebook 03:

# %%
check("PML", lambda C, D: ProxyAnchorLoss(C, D, margin=0.1, alpha=32))

# %% [markdown]
# ### Exercise 1 · The loss before anything is learned
#
# Suppose that all cosines are 0: every embedding at right angles to every proxy. What is the loss of a batch? Write it as a function of the labels, $C$, $\delta$ and $\alpha$. (How many terms has each sum?) It is a number worth knowing: a training that starts far above it has something to explain.
#
# <details><summary>Hint</summary>
#
# At $s=0$ every exponent is $\alpha\delta$, in both sums. A class with $n_c$ images in the batch has $n_c$ positives and $B-n_c$ negatives.
#
# </details>


# %%
def loss_at_zero_cosines(labels, num_classes, margin=0.1, scale=32.0):
    """Proxy Anchor of a batch in which all cosines are 0; labels (B,)."""
    return float("nan")  # your code here


def compare_at_zero(function, B=90, C=40):
    labels = torch.randint(
        C, (B,), generator=torch.Generator().manual_seed(session.seed)
    )
    axes = torch.eye(C + 1)
    # embeddings on one axis, proxies on others
    expected = proxy_anchor(
        axes[:1].expand(B, -1), labels, axes[1:]
    )
    print(f"yours {float(function(labels, C)):.4f}, expected {expected:.4f}")
    for D in (16, 128, 1024, 16384):
        torch.manual_seed(session.seed)
        print(
            f"  random embeddings and proxies in {D:>6,} dimensions: "
            f"{proxy_anchor(torch.randn(B, D), labels, torch.randn(C, D)):.4f}"
        )


compare_at_zero(loss_at_zero_cosines)
exercises.check("04.1", loss_at_zero_cosines)


# %% tags=["solution"]
def loss_at_zero_cosines(labels, num_classes, margin=0.1, scale=32.0):
    positives = torch.bincount(
        labels, minlength=num_classes
    ).double()  # (C,): images of each class
    negatives = len(labels) - positives  # (C,)
    # every positive and every negative contributes this
    exponential = math.exp(
        scale * margin
    )
    pull = torch.log1p(positives[positives > 0] * exponential).mean()
    push = torch.log1p(negatives * exponential).mean()
    return float(pull + push)


compare_at_zero(loss_at_zero_cosines)
exercises.check("04.1", loss_at_zero_cosines)

# %% [markdown]
# Why do random vectors in few dimensions start higher? Their cosines are not 0 but spread with a standard deviation of $1/\sqrt D$, and the largest of a column counts most.

# %% [markdown] tags=["slide"]
# ## 3 · The gradient: who is pulled, who is pushed, and how hard
#
# The loss depends on embeddings and proxies through cosines only. So first differentiate with respect to one cosine. For a negative $x\in X_p^-$, with $z_x = \alpha(s(x,p)+\delta)$:
#
# $$
# \frac{\partial L}{\partial s(x,p)} = \frac{\alpha}{|P|}\,w^-_{xp}, \qquad
# w^-_{xp} = \frac{e^{z_x}}{1+\sum_{x'\in X_p^-}e^{z_{x'}}} ,
# $$
#
# and for a positive, with $z_x = -\alpha(s(x,p)-\delta)$, likewise $-\frac{\alpha}{|P^+|}w^+_{xp}$. The weights are a **softmax down the column, with one extra entry of 0**. That entry stands for "nothing left to do": where all exponents are very negative it takes the whole weight, and the gradient vanishes.


# %%
def gradient_of_cosines(cosines, own, margin=0.1, scale=32.0):
    """∂L/∂s by hand: (B, C) → (B, C)."""
    pull = (-scale * (cosines - margin)).masked_fill(~own, NOTHING)
    push = (scale * (cosines + margin)).masked_fill(own, NOTHING)
    # the extra entry of each column
    nothing_left = torch.zeros(
        1, cosines.shape[1]
    )
    # (B, C), columns sum to at most 1
    pull_weight = torch.cat([nothing_left, pull]).softmax(0)[
        1:
    ]
    push_weight = torch.cat([nothing_left, push]).softmax(0)[1:]
    return scale * (
        push_weight / cosines.shape[1] - pull_weight / own.any(0).sum()
    )


free = cosines.clone().requires_grad_()
(automatic,) = torch.autograd.grad(naive(free, own), free)
by_hand = gradient_of_cosines(cosines, own)
cmp("∂L/∂s by hand, against autograd", by_hand, automatic)
push_of_proxies = by_hand.clamp_min(0).sum(0)  # (C,)
print(
    f"push handed out by each proxy: {push_of_proxies.numpy().round(2)}, at "
    f"most α / |P| = {32 / len(push_of_proxies):.0f}"
)

# %% [markdown]
# Two bounds follow at once, because a softmax sums to 1. All the push that one proxy hands out, $\sum_x \lvert\partial L/\partial s(x,p)\rvert$ over its negatives, is at most $\alpha/|P|$, however many images there are and however wrong they are; and what a hard example gains, the others lose. So hard examples do not make the gradient *large*. They make it *narrow*: the same total falls on fewer of them. That is why one mislabeled image can do harm (it is the hardest of its column, and takes most of the weight), and why the *gradient* does not explode when it meets one. The loss itself goes on growing, by $\alpha$ for each unit of cosine: up to $\alpha(1+\delta) + \log n$ for $n$ negatives that all sit on the proxy.
#
# From cosines to embeddings it is one more step. Since $s = \hat x^\top\hat p$ and $\hat x = x/\lVert x\rVert$,
#
# $$
# \frac{\partial L}{\partial x} = \sum_p \frac{\partial L}{\partial s(x,p)}\;\frac{\hat p - s(x,p)\,\hat x}{\lVert x\rVert} .
# $$
#
# The vector $\hat p - s\hat x$ is the part of $\hat p$ at right angles to $x$: a cosine can only be changed by *turning*, so the gradient lies in the tangent of the sphere. It does not change the length of $x$ to first order, and the longer $x$ is, the less it turns.

# %%
x_hat, p_hat = F.normalize(embeddings, dim=1), F.normalize(proxies, dim=1)
tangents = p_hat[None] - cosines[:, :, None] * x_hat[:, None]  # (B, C, D)
# (B, D)
by_chain = (by_hand[:, :, None] * tangents).sum(1) / embeddings.norm(
    dim=1, keepdim=True
)

free = embeddings.clone().requires_grad_()
(automatic,) = torch.autograd.grad(proxy_anchor(free, labels, proxies), free)
cmp("∂L/∂x by hand, against autograd", by_chain, automatic)
print(
    "largest |cosine| of gradient and embedding: "
    f"{F.cosine_similarity(automatic, embeddings).abs().max():.0e}"
)

# %% [markdown] tags=["slide"]
# ### What α does
#
# **Predict**, for a proxy and its negatives:
#
# - left: with a single negative, how does its weight rise with its cosine? Where is it one half?
# - middle: a negative at $s = 0.2$ has a companion. What happens to *its* weight while the companion gets harder?
# - right: of all the negatives of a proxy, what share of the push do the hardest tenth get at $\alpha = 32$? Write this one down, between 0 and 1.

# %%
predict("04.b", None)

# %% tags=["slide", "hide-input"]
# α → line style
SCALES = {
    8: (0, (1, 1)),
    16: "-.",
    32: "-",
    64: (0, (5, 1.5)),
}
shades = dict(
    zip(
        SCALES,
        colormaps["viridis"](np.linspace(0.85, 0.1, len(SCALES))),
        strict=True,
    )
)
s = torch.linspace(-0.5, 0.8, 400)
random_cosines = torch.randn(
    500, 100, generator=torch.Generator().manual_seed(session.seed)
) / math.sqrt(128)  # of 100 proxies

figure = figures.new_figure(12, 3.8)
axes = figure.subplots(1, 3)
hardest_tenth = {}
for alpha, dash in SCALES.items():
    style = {"color": shades[alpha], "ls": dash, "label": f"α = {alpha}"}
    axes[0].plot(s, torch.sigmoid(alpha * (s + margin)), **style)
    pair = torch.stack(
        [
            torch.zeros_like(s),
            torch.full_like(s, alpha * (0.2 + margin)),
            alpha * (s + margin),
        ]
    )
    axes[1].plot(s, pair.softmax(0)[1], **style)
    # (500,)
    weights = (
        (alpha * random_cosines)
        .softmax(0)
        .sort(dim=0, descending=True)
        .values.mean(1)
    )
    axes[2].plot(
        np.linspace(0, 1, 501), np.append(0, weights.cumsum(0)), **style
    )
    hardest_tenth[alpha] = float(weights[:50].sum())
axes[0].axvline(-margin, color=figures.COLORS["chance"], ls=":", lw=1.6)
axes[0].text(-margin - 0.02, 0.96, "−δ", ha="right")
axes[1].axvline(0.2, color=figures.COLORS["chance"], ls=":", lw=1.6)
axes[2].axvline(0.1, color=figures.COLORS["chance"], ls=":", lw=1.6)
axes[0].set(title="one negative", xlabel="its cosine", ylabel="its weight")
axes[1].set(
    title="a negative at 0.2 in company",
    xlabel="the companion's cosine",
    ylabel="weight of the one at 0.2",
)
axes[2].set(
    title="500 negatives at random, D = 128",
    xlabel="share of negatives, hardest first",
    ylabel="their share of the push",
)
axes[2].legend(loc="lower right")
said = ", ".join(
    f"{share:.0%} at α = {alpha}" for alpha, share in hardest_tenth.items()
)
reveal(
    "04.b",
    figures.finish(
        figure,
        "Weights of negatives in the gradient for four scales; the hardest "
        f"tenth of negatives carries {said}.",
    ),
    f"The share of the hardest tenth: {said}.",
    truth=hardest_tenth[32],
)

# %% [markdown]
# **What we see.**
#
# - Left: a soft threshold at $-\delta$ (for positives, mirrored, at $+\delta$), about $4/\alpha$ wide. Beyond it, a negative is pushed with full weight however hard it is. The margin says *when* an example counts, the scale how sharply.
# - Middle: once the companion is harder, the one at 0.2 is let go, though its own position has not changed. **Weights depend on the rest of the batch.** This is how images see each other after all: through their proxy's column. The step is again a few $1/\alpha$ wide.
# - Right: small $\alpha$ treats all negatives alike (the curve comes near the diagonal), large $\alpha$ listens to the few hardest. At $\alpha\to\infty$ only the single hardest would count: mining of hard examples, without any miner.
#
# One thing is *not* in the formula: a term between two proxies. Nothing in Proxy Anchor looks at how proxies lie relative to each other; images alone push them about. Keep that for notebook 05.

# %% [markdown]
# ### Exercise 2 · Rows instead of columns
#
# Replace Proxy Anchor by the cross-entropy of a softmax *along the rows*: every image chooses among the proxies, with logits $\alpha\,s(x,p)$ (known as normalized softmax, a close relative of Proxy-NCA). Write it as a function of `cosines` and `labels`; one line is enough. The cell then makes image 1 harder and asks: does the gradient of image 0 change?
#
# <details><summary>Hint</summary>
#
# `F.cross_entropy(logits, labels)` applies the log-softmax along the rows itself and averages over the images.
#
# </details>


# %%
def row_softmax(cosines, labels, scale=32.0):
    """Mean over images, each choosing a proxy; (B, C), (B,) → a scalar."""
    return (0 * cosines).sum()  # your code here


def gradient_of_image_0(function, cosines):
    free = cosines.clone().requires_grad_()
    return torch.autograd.grad(function(free), free)[0][0]  # (C,)


def compare_influence(function, own=own, labels=labels):
    calm = torch.zeros(own.shape)  # (B, C), as in section 2
    harder = calm.clone()
    # image 1, of class 0, comes close to other proxies
    harder[1] = torch.tensor(
        [-0.3, 0.3, 0.3, 0.3]
    )
    for name, loss in (
        ("Proxy Anchor", lambda c: naive(c, own)),
        ("yours", lambda c: function(c, labels)),
    ):
        change = gradient_of_image_0(loss, harder) - gradient_of_image_0(
            loss, calm
        )
        print(
            f"{name:>12}: loss {loss(calm):.4f}, gradient of image 0 changes "
            f"by {change.abs().max():.4f}"
        )
    print(
        f"    expected: loss {math.log(own.shape[1]):.4f}, gradient of image "
        "0 changes by 0.0000"
    )


compare_influence(row_softmax)
exercises.check("04.2", row_softmax)


# %% tags=["solution"]
def row_softmax(cosines, labels, scale=32.0):
    return F.cross_entropy(scale * cosines, labels)


compare_influence(row_softmax)
exercises.check("04.2", row_softmax)

# %% [markdown]
# Along rows, an image's gradient depends on its own cosines alone. Down columns, on those of its competitors too. That is the difference between the two families, in one line of code.

# %% [markdown]
# ### Exercise 3 · How many negatives share the push? (open-ended)
#
# "The hardest tenth gets so much" depends on the tenth. A count without such a cut is the *effective number* $n_\text{eff} = (\sum_x w_x)^2 / \sum_x w_x^2$ of a column of weights: $n$ equal weights give $n$, a single large one gives 1. Write it for every column. Then try other $\alpha$, and more negatives: does the effective number grow with the batch?
#
# <details><summary>Hint</summary>
#
# Sum over the rows (`dim=0`) twice: once the weights and square the sum, once the squared weights.
#
# </details>


# %%
def effective_negatives(weights):
    """(Σw)² / Σw² of every column; weights (B, C) → (C,)."""
    return torch.full((weights.shape[1],), float("nan"))  # your code here


for alpha in SCALES:
    shared = effective_negatives((alpha * random_cosines).softmax(0))  # (100,)
    print(
        f"α = {alpha:>2}: of {len(random_cosines)} negatives, effectively "
        f"{shared.mean():.1f} share the push"
    )
exercises.check("04.3", effective_negatives)


# %% tags=["solution"]
def effective_negatives(weights):
    return weights.sum(0).square() / weights.square().sum(0)


for alpha in SCALES:
    shared = effective_negatives((alpha * random_cosines).softmax(0))  # (100,)
    print(
        f"α = {alpha:>2}: of {len(random_cosines)} negatives, effectively "
        f"{shared.mean():.1f} share the push"
    )
exercises.check("04.3", effective_negatives)

# %% [markdown]
# ### Exercise 4 · Find the bug
#
# A colleague wrote Proxy Anchor anew, a little shorter. It runs, and a network trains with it. But its value is not that of section 2. Find out where, and fix it.
#
# <details><summary>Hint</summary>
#
# Write down the column of a proxy with one positive and two negatives. How many terms has each of its two sums, in the formula and in the code?
#
# </details>

# %%
def shorter(embeddings, labels, proxies, margin=0.1, scale=32.0):
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(proxies, dim=1).T
    own = F.one_hot(labels, len(proxies)).bool()  # (B, C)
    pull = -scale * (cosines - margin) * own  # the others do not count
    push = scale * (cosines + margin) * ~own  # nor do the own ones here
    pull_loss = F.softplus(pull.logsumexp(0))[own.any(0)].mean()
    return pull_loss + F.softplus(push.logsumexp(0)).mean()


expected = proxy_anchor(embeddings, labels, proxies)
found = shorter(embeddings, labels, proxies)
print(f"section 2: {expected:.4f}, shorter: {found:.4f}")
exercises.check("04.4", shorter)

# %% tags=["solution"]
def shorter(embeddings, labels, proxies, margin=0.1, scale=32.0):
    # An exponent of 0 is no "does not count": it adds e⁰ = 1 to the sum.
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(proxies, dim=1).T
    own = F.one_hot(labels, len(proxies)).bool()  # (B, C)
    pull = (-scale * (cosines - margin)).masked_fill(~own, -1e4)
    push = (scale * (cosines + margin)).masked_fill(own, -1e4)
    pull_loss = F.softplus(pull.logsumexp(0))[own.any(0)].mean()
    return pull_loss + F.softplus(push.logsumexp(0)).mean()


expected = proxy_anchor(embeddings, labels, proxies)
found = shorter(embeddings, labels, proxies)
print(f"section 2: {expected:.4f}, shorter: {found:.4f}")
exercises.check("04.4", shorter)

# %% [markdown] tags=["slide"]
# ## 4 · On a sphere, where one can see it
#
# In three dimensions unit vectors live on a sphere. Let a small network (two layers) map made-up data, clouds of points in 16 dimensions, to three. It is trained with `sobook.losses.ProxyAnchor`, network and proxies together.


# %%
def clouds(classes, size=40, dim=16):
    """Made-up data: a Gaussian cloud per class, (N, 16), and labels."""
    generator = torch.Generator().manual_seed(session.seed)
    centers = 1.5 * torch.randn(classes, dim, generator=generator)
    labels = torch.arange(classes).repeat_interleave(size)
    return centers[labels] + torch.randn(
        len(labels), dim, generator=generator
    ), labels


def train_toy(classes, dim=3, proxy_lr=0.1, steps=300, lr=2e-3):
    """A small network; proxy_lr=None: proxies not in the optimizer."""
    torch.manual_seed(session.seed)
    points, labels = clouds(classes)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, dim))
    loss = ProxyAnchor(classes, dim)
    groups = [{"params": network.parameters(), "lr": lr}]
    if proxy_lr is not None:
        groups.append({"params": [loss.proxies], "lr": proxy_lr})
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    before = network(points).detach(), loss.proxies.detach().clone()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(network(points), labels)
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    return {
        "labels": labels,
        "before": before,
        "after": (network(points).detach(), loss.proxies.detach()),
        "losses": losses,
    }


def describe_toy(toy):
    """What became of it, in five numbers."""
    embeddings, proxies = (F.normalize(rows, dim=1) for rows in toy["after"])
    cosines = embeddings @ proxies.T  # (N, C)
    own = cosines.gather(1, toy["labels"][:, None])[:, 0]
    other = cosines.scatter(1, toy["labels"][:, None], -1.0).max(1).values
    moved = (F.normalize(toy["before"][1], dim=1) - proxies).norm(dim=1)
    return {
        "loss": toy["losses"][-1],
        "cosine to its own proxy": own.mean().item(),
        "to the nearest other": other.mean().item(),
        "points nearest to their own": (own > other).float().mean().item(),
        "largest cosine of two proxies": geometry.off_diagonal(
            (proxies @ proxies.T).numpy()
        ).max(),
        "proxies moved by": moved.mean().item(),
    }


# %% [markdown] tags=["slide"]
# **Predict.** Four classes on a sphere. Where will the points lie, and where the proxies? On top of each other?

# %% tags=["slide"]
four = train_toy(classes=4)
figures.spheres(
    {"before training": four["before"], "after training": four["after"]},
    four["labels"],
)

# %%
pd.Series(describe_toy(four)).round(3).to_frame("four classes")

# %% [markdown]
# **What we see.** Stars are proxies, dots are points, and what lies on the far side of the sphere is paler. Each class has become a tight cloud, and the loss is almost gone. But look at where the stars are: a cloud need not sit on its own proxy. The loss does not ask for that. It asks for an own cosine above $\delta = 0.1$ (an angle below about 84°) and for all others below $-\delta$, and once both hold with some room, the weights of section 3 are close to nothing. **A Proxy Anchor proxy is less the center of its class than the normal of a plane that cuts the class off from the others.**
#
# **Predict.** Now seven classes. Seven directions fit on a sphere comfortably. What will happen to the proxies?

# %%
predict("04.c", None, choices=("all apart", "some merge"))

# %% tags=["slide"]
seven = train_toy(classes=7)
both = {
    "four classes": describe_toy(four),
    "seven classes": describe_toy(seven),
}
closest = both["seven classes"]["largest cosine of two proxies"]
reveal(
    "04.c",
    figures.spheres({"after training": seven["after"]}, seven["labels"]),
    pd.DataFrame(both).round(3),
    truth="some merge" if closest > 0.95 else "all apart",
)

# %% [markdown]
# **What we see.** Not seven neat clouds. The loss stays high, and some proxies have merged: the largest cosine of two of them says how closely. (Classes 0, 2 and 6 in the committed figure: one star hides the other two, and their points are one cloud.) Does three-dimensional space have no room? One might think so: directions that are pairwise at obtuse angles exist only for $C \le D+1$ (in space, the four corners of a tetrahedron). But the loss does not ask that of proxies, nor of clouds. It compares clouds *with proxies*, and these may lie on opposite sides. Put the seven clouds on a ring around the north pole and their proxies on a ring around the south pole, each below its cloud:


# %%
def rings(classes, height):
    """Clouds on a ring in the north, proxies on the same ring in the south."""
    turn = 2 * math.pi * torch.arange(classes) / classes
    radius = math.sqrt(1 - height**2)
    flat = torch.stack([radius * turn.cos(), radius * turn.sin()], dim=1)
    up = torch.full((classes, 1), height)
    return torch.cat([flat, up], 1), torch.cat([flat, -up], 1)


north, south = rings(7, height=0.65)  # (7, 3) each
ring_cosines = north @ south.T
own_mean, other_max = ring_cosines.diagonal().mean(), ring_cosines[0, 1:].max()
by_hand = proxy_anchor(
    north.repeat_interleave(40, 0), torch.arange(7).repeat_interleave(40), south
)
print(
    f"rings: own cosine {own_mean:+.2f}, nearest other {other_max:+.2f}, ",
    end="",
)
print(f"loss {by_hand:.2f}; trained: loss {seven['losses'][-1]:.2f}")
for name, toy in (("four", four), ("seven", seven)):
    x, p = (F.normalize(rows, dim=1).mean(0) for rows in toy["after"])
    print(
        f"{name} classes, trained: cosine of mean embedding and mean proxy ",
        end="",
    )
    print(f"{F.cosine_similarity(x, p, dim=0):+.2f}")

# %% [markdown]
# On the rings all seven classes are told apart: own cosines are positive, all others negative. So there *is* room. But at seven the margins of $\pm\delta$ cannot all be kept, and the loss is no smaller than that of the run that let proxies merge: no term keeps two proxies apart, so nothing resists when some fall together. (Notebook 05 adds such a term and tries again.)
#
# The other lines show that training found the same trick by itself: already with four classes the mean embedding and the mean proxy point in opposite directions. Clouds on one cone, proxies on the opposite one. Keep this picture; section 6 meets it again in 128 dimensions, and notebook 09 finds out what makes it.
#
# **How will the loss of seven classes depend on $D$?**

# %% tags=["slide", "hide-input"]
DIMS = [2, 3, 4, 5, 6, 7, 8, 12]
final = [train_toy(classes=7, dim=dim)["losses"][-1] for dim in DIMS]

figure = figures.new_figure(7.5, 3.8)
axis = figure.subplots()
axis.plot(DIMS, final, "o-", color=figures.COLORS["PA"])
axis.set(
    xlabel="dimensions D",
    ylabel="loss after training",
    ylim=(0, None),
    title="seven classes",
)
figures.finish(
    figure,
    "Loss after training with seven classes, by dimension: "
    + ", ".join(
        f"{value:.1f} at D = {dim}"
        for dim, value in zip(DIMS, final, strict=True)
    )
    + ".",
)

# %% [markdown]
# Dimensions help, and quickly. Real embeddings have hundreds of dimensions, and CUB a hundred training classes: plenty of room. Stanford Online Products has eleven thousand classes, far more than dimensions. Keep the picture of the merged proxies.

# %% [markdown] tags=["slide"]
# ## 5 · The learning rate of the proxies
#
# Proxies are parameters of the *loss*, not of the network, and `torch.optim.AdamW(network.parameters())` does not know them. Nothing complains. **Predict:** what happens when they are left out? Does the loss still fall? And does a proxy need the same learning rate as the network?

# %% tags=["slide", "hide-input"]
# in units of the network's rate
RATES = {
    "left out": None,
    "× 1": 2e-3,
    "× 10": 2e-2,
    "× 100": 2e-1,
}
toys = {
    dim: {
        name: train_toy(7, dim, proxy_lr=rate) for name, rate in RATES.items()
    }
    for dim in (3, 16)
}

figure = figures.new_figure(11, 4)
axes = figure.subplots(1, 2)
dashes = [(0, (1, 1)), "-.", (0, (5, 1.5)), "-"]
rate_shades = colormaps["viridis"](np.linspace(0.85, 0.1, len(RATES)))
for axis, (dim, runs) in zip(axes, toys.items(), strict=True):
    for (name, toy), dash, shade in zip(
        runs.items(), dashes, rate_shades, strict=True
    ):
        axis.plot(toy["losses"], ls=dash, color=shade, label=f"proxies {name}")
    axis.set(
        title=f"seven classes, D = {dim}",
        xlabel="step",
        ylabel="Proxy Anchor loss",
        ylim=(0, 40),
    )
axes[1].legend()
last = "; ".join(
    f"D = {dim}: "
    + ", ".join(f"{name} {toy['losses'][-1]:.1f}" for name, toy in runs.items())
    for dim, runs in toys.items()
)
figures.finish(
    figure,
    "Loss over steps for four learning rates of the proxies; at the end "
    f"{last}.",
)

# %%
pd.DataFrame(
    {
        f"D = {dim}, {name}": describe_toy(toy)
        for dim, runs in toys.items()
        for name, toy in runs.items()
    }
).T.round(2)

# %% [markdown]
# **What we see.** The loss falls even with proxies that never move: the network drags the points to wherever the random proxies happen to stand. That is what makes the mistake so hard to notice. The last column gives it away: *moved by* zero. In three dimensions, where random proxies stand badly, the damage is plain; in sixteen there is more room, and it is smaller. (The [official Proxy Anchor code](https://github.com/tjddus9597/Proxy-Anchor-CVPR2020/issues/25) once had this very bug: when it was released, the proxies of its *baseline*, Proxy-NCA, were not given to the optimizer. The author writes that the omission came with the release and that they were optimized in the paper's experiments.)
#
# So test it, once, in your own code: take a step, and assert that the proxies are not what they were.
#
# Why a higher rate than the network's? The network comes trained and should move little; proxies start at random and have far to go. AdamW moves each coordinate by about its rate in each step. So, for the start that the official code uses (coordinates with a standard deviation of $\sqrt{2/C}$):

# %%
C, backbone_rate = 100, 1e-4
for factor in (1, 100):
    steps = math.sqrt(2 / C) / (factor * backbone_rate)
    print(
        f"proxy rate {factor:>3} × {backbone_rate:g}: about {steps:,.0f} "
        "steps to cross one standard deviation"
    )
steps_per_epoch = train_counts["cub200"]["images"] // 180
print(f"an epoch of CUB with batches of 180 has {steps_per_epoch} steps")

# %% [markdown]
# The official code multiplies by a hundred. And ours?

# %%
config = session.config(so_weight=0.0)
print(
    f"backbone {config.lr:g}, head {config.head_lr:g}, proxies "
    f"{config.proxy_lr:g}: {config.proxy_lr / config.lr:.0f} × the backbone's "
    "rate"
)

# %% [markdown]
# ## 6 · The real thing
#
# Now birds. Backbone, head and proxies are trained together, after a warm-up in which the backbone is frozen while head and proxies find each other. The epoch that is kept is the one with the best Recall@1 on *held-out training classes*; the test species have no say.

# %%
# drawn or fetched once
image_sets.prepare(
    config.dataset, config.root, progress=not session.quick
)
run = session.fit(config)
print(
    f"{config.epochs} epochs (the backbone is frozen in the first "
    f"{config.warmup_epochs}), epoch {run.state['selected_epoch']} kept; "
    f"{run.state['train_images']:,} images of {len(run.state['class_names'])} "
    "classes"
)

# %%
figures.training_curves({"PA": run.metrics}, dim=config.dim)

# %% [markdown]
# Read it from the left: the loss falls; the RMS cosine of the proxies *leaves* the level of random directions (dotted); retrieval of held-out classes improves. Whether the middle panel is a problem is the question of notebook 05.
#
# Compare the first loss values with exercise 1:

# %%
per_step = [line for line in run.metrics if line["kind"] == "step"]
C = len(run.state["class_names"])
torch.manual_seed(session.seed)
random_labels = torch.randint(C, (config.batch_size,))
at_random = proxy_anchor(
    torch.randn(config.batch_size, config.dim),
    random_labels,
    torch.randn(C, config.dim),
)
print(
    f"first step {per_step[0]['proxy_anchor']:.2f}; random embeddings of the "
    f"same shapes {at_random:.2f}; last step "
    f"{per_step[-1]['proxy_anchor']:.2f}"
)

# %% [markdown] tags=["slide"]
# ### Where do the training images stand now?
#
# The loss wanted own cosines above $\delta$ and others below $-\delta$. **Which of the two will it have got more of, on the training images? And, by the weights of section 3, how many of the negatives still matter?**

# %% tags=["slide", "hide-input"]
everything = image_sets.load(
    config.dataset, "train", config.root, **config.options
)
training, held_out = image_sets.hold_out(
    everything, config.validation_fraction, seed=config.seed
)
encoder = run.encoder().to(session.device)
# (N, D), no augmentation
trained_on = torch.from_numpy(
    embed(encoder, training, progress=False)
)
cosines = trained_on @ F.normalize(run.proxies(), dim=1).T  # (N, C)
own = F.one_hot(torch.from_numpy(training.labels), C).bool()

figure = figures.new_figure(9, 3.8)
axis = figure.subplots()
bins = np.linspace(-0.6, 1, 81)
axis.hist(
    cosines[~own].numpy(),
    bins,
    density=True,
    color=figures.COLORS["irrelevant"],
    alpha=0.75,
    label="to another proxy",
)
axis.hist(
    cosines[own].numpy(),
    bins,
    density=True,
    histtype="step",
    lw=2.4,
    color=figures.COLORS["relevant"],
    label="to its own proxy",
)
for place, name in ((-config.margin, "−δ"), (config.margin, "δ")):
    axis.axvline(place, color="#222222", ls=":", lw=1.6)
    axis.text(place, axis.get_ylim()[1], name, ha="center", va="bottom")
axis.set(xlabel="cosine of a training image and a proxy", ylabel="density")
axis.legend()
share = {
    "own above δ": (cosines[own] > config.margin).float().mean(),
    "others below −δ": (cosines[~own] < -config.margin).float().mean(),
}
figures.finish(
    figure,
    "Histogram of cosines of training images to their own and to other "
    "proxies: "
    + ", ".join(f"{value:.0%} {name}" for name, value in share.items())
    + ".",
)

# %%
for name, value in share.items():
    print(f"{name}: {value:.0%}")
at_home = cosines.argmax(1) == torch.from_numpy(training.labels)  # (N,)
print(f"nearest to their own proxy: {at_home.float().mean():.0%} of the images")
push = (config.scale * (cosines + config.margin)).masked_fill(own, NOTHING)
# (N, C)
weight = (
    torch.cat([torch.zeros(1, C), push])
    .softmax(0)[1:]
    .sort(dim=0, descending=True)
    .values
)
hardest = math.ceil(0.01 * len(weight))
print(
    "the hardest 1 % of a proxy's negatives get "
    f"{weight[:hardest].sum() / weight.sum():.0%} of its push"
)

# %% [markdown]
# Look at where the two humps stand. To tell the classes apart, each image only has to be closer to its own proxy than to all others; the third line above says for how many that holds. The humps need not lie symmetrically about zero, and here they do not. A proxy has nearly a whole batch of negatives and a handful of positives, so most of what moves it says "away". All proxies can obey at once through a *common mode*: images on one side, proxies on the other. Is that what happened? (And is the number of negatives its cause? That is a guess here, as is Question 3 below; notebook 09 tests what makes the common mode.)

# %% tags=["slide"]
# (D,) each
mean_image, mean_proxy = (
    trained_on.mean(0),
    F.normalize(run.proxies(), dim=1).mean(0),
)
start = F.normalize(run.proxies(0), dim=1).mean(0)
print(
    f"length of the mean proxy: {start.norm():.2f} before training, "
    f"{mean_proxy.norm():.2f} after (1: all the same, 0: no common mode)"
)
print(
    "cosine of the mean image and the mean proxy: "
    f"{F.cosine_similarity(mean_image, mean_proxy, dim=0):+.2f}"
)

# %% [markdown]
# A common mode makes *all* proxies more alike without telling any two classes apart. It is part of what the middle panel of the training curves shows; notebook 06 measures how much of it.
#
# ### Does it retrieve new species?
#
# Training images prove nothing about retrieval. **Predict:** by how much does Recall@1 rise over the frozen features on the test species (.01 is one point)? And on held-out training classes, by more or less?

# %%
predict("04.d", None)

# %%
test = image_sets.load(config.dataset, "test", config.root, **config.options)
frozen_encoder = Encoder.create(config.encoder, weights=config.weights).to(
    session.device
)
encoders = {"frozen": frozen_encoder, "PA": encoder}
sets = {"held-out training classes": held_out, "test species": test}
embedded = {
    (where, name): embed(e, s, progress=False)
    for where, s in sets.items()
    for name, e in encoders.items()
}
results = {
    key: evaluate(vectors, sets[key[0]].labels)
    for key, vectors in embedded.items()
}
gain = (
    results["test species", "PA"].recall[1]
    - results["test species", "frozen"].recall[1]
)
reveal(
    "04.d",
    figures.interval_plot(
        [
            (f"{name}, {where}", result.recall[1], *result.interval(1), name)
            for (where, name), result in results.items()
        ],
        "Recall@1",
    ),
    truth=gain,
)

# %%
compared = {
    where: compare_classes(results[where, "frozen"], results[where, "PA"])
    for where in sets
}
for where, found in compared.items():
    print(
        f"{where}: Recall@1 after training "
        f"{verdict(found, list(compared.values()))}, {found}"
    )
errors = {
    name: 1 - results["test species", name].recall[1] for name in encoders
}
print(
    "of the frozen encoder's errors on test species, training removes "
    f"{1 - errors['PA'] / errors['frozen']:.0%}"
)

# %% [markdown]
# The intervals are over classes: whole classes are drawn anew. The upper pair has few classes, hence wide intervals, and it chose the epoch, so it flatters a little. The lower pair is the one to report. For the difference the same classes are drawn for both encoders; that is the fair comparison, and the sentences above are made from it.
#
# ### Look at it
#
# Five queries among the test species, drawn at random and not chosen, with their nearest images under the trained encoder and the cosines below.

# %%
queries = np.random.default_rng(session.seed).choice(
    len(test), 5, replace=False
)
similarities, indices = nearest_neighbors(embedded["test species", "PA"], k=5)
pictures = pixels.decode(test, 96, progress=False)
names = [
    test.class_names[test.labels[q]].partition(".")[2].replace("_", " ")
    for q in queries
]
figures.retrieval_wall(
    [pictures[q] for q in queries],
    [[pictures[i] for i in indices[q]] for q in queries],
    test.labels[indices[queries]] == test.labels[queries][:, None],
    similarities[queries],
    names,
)

# %% [markdown]
# Look at the crossed ones: are they absurd, or relatives of the same shape that differ in a cap, a bar or a throat? And look at the cosines: a wrong neighbor can be just as close as a right one.
#
# ## Summary
#
# - Proxies save comparisons where classes are large; everywhere they give each image one positive and all negatives in every batch.
# - Proxy Anchor is two log-sum-exps down the columns of the matrix of cosines. Compute it as softplus of log-sum-exp, in float32.
# - Its gradient weights are a softmax down the column with one extra entry: hard examples get more, done ones nothing, and $\alpha$ sets how few share the push.
# - It asks for *obtuse* angles to all foreign proxies and has no term between proxies: in few dimensions some of them merge, and in many, images and proxies can move to opposite sides.
# - Proxies left out of the optimizer raise no error; check that they move, and give them a rate far above the backbone's.
#
# **Still open.** Training made the proxies more alike, and no term of the loss keeps two of them apart. Is that a fault? Notebook [05 · Soft orthogonality](05_soft_orthogonality.ipynb) adds such a term and looks at what it changes.
#
# ## Questions
#
# **1.** `proxy_anchor` marks entries that do not count with $-10^4$. Why not simply $-\infty$?
#
# <details><summary>Answer</summary>
#
# In the value, yes: $e^{-\infty}=0$. But if a whole column is $-\infty$ (a batch with images of one class only leaves that class without negatives), log-sum-exp is $-\infty$ and its gradient is $0/0$: NaN. Whether you notice depends on how the entries were marked. `masked_fill` and `torch.where` send no gradient back into a masked entry, so the NaN is dropped there; *adding* $-\infty$ passes it on, into every embedding of the batch. With $-10^4$ the exponential is exactly 0 as well, and no NaN arises in the first place.
#
# </details>
#
# **2.** You double $\alpha$. Which learning rates, if any, would you think about again?
#
# <details><summary>Answer</summary>
#
# The gradient has $\alpha$ as a factor, and its weights are shared by fewer examples, so it gets larger and noisier. AdamW divides by the size of the gradient, so the factor itself cancels; the noise does not. A clip on the gradient's norm bites earlier, too. So first look at how often clipping happens, then lower rates if the loss jumps about.
#
# </details>
#
# **3.** Why does a proxy of a class that is absent from the batch move at all? Is that good?
#
# <details><summary>Answer</summary>
#
# All images of the batch are its negatives, so it is pushed away from them (and they from it); it is pulled by nobody. Where many classes are absent from most batches (SOP), a proxy is pushed far more often than pulled, always away from where images are. That *may* be one reason why proxies share a direction. It is a guess: notebooks 05 and 06 measure the direction, and notebook 09 changes one suspected cause at a time.
#
# </details>
#
# ## Further reading
#
# - S. Kim, D. Kim, M. Cho, S. Kwak, [Proxy Anchor Loss for Deep Metric Learning](https://arxiv.org/abs/2003.13911), CVPR 2020: the loss, its gradient and the comparison with pair-based losses. The [official code](https://github.com/tjddus9597/Proxy-Anchor-CVPR2020) has the details: proxy rate, warm-up, start values.
# - Y. Movshovitz-Attias et al., No Fuss Distance Metric Learning Using Proxies, ICCV 2017: Proxy-NCA, where proxies come from; rows instead of columns.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), ECCV 2020: what remains of reported gains when everything but the loss is held fixed. Read it before believing any table, ours included.
# - [pytorch-metric-learning](https://github.com/KevinMusgrave/pytorch-metric-learning): this loss and many others behind one interface; the check in section 2 uses it.
# - F. Saberi-Movahed et al., [Deep Metric Learning with Soft Orthogonal Proxies](https://arxiv.org/abs/2306.13055), 2023: adds the missing term between proxies; notebook 05.
