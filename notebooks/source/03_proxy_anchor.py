# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Proxy Anchor
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/03_proxy_anchor.ipynb)
#
# The loss that trains every model of this course fits into fifteen lines. Here you write them, check them against two other implementations, look inside the gradient, watch it work on a sphere, and then train with it.
#
# **What you will learn**
#
# - why comparing images with *proxies* replaces comparing images with images, and what that saves (it is not what most people think);
# - to build the Proxy Anchor loss from a matrix of cosines, and to compute it without overflow;
# - its gradient: who is pulled, who is pushed, how hard, and what the scale $\alpha$ does to that;
# - what the loss asks for in a space of few dimensions, and what happens when proxies are forgotten in the optimiser;
# - how much of the frozen encoder's error the trained one removes, on species it has never seen.
#
# **Before you start** Notebook 00 for the whole, 02 for the frozen features. You need the chain rule, the exponential and the idea of a softmax.
#
# **Time** TIME_03 on a two-core laptop once the training run exists, and a minute or two more if it does not; on a T4 GPU in full mode: not measured.

# %% tags=["setup"]

# %%
import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from sobook import datasets, figures, geometry, images, layouts
from sobook.encoder import Encoder, embed
from sobook.losses import ProxyAnchor
from sobook.retrieval import difference, evaluate, neighbours
from sobook.training import fit

# %% [markdown]
# Letters, throughout: $B$ images in a batch, $C$ classes, $D$ dimensions, $N$ training images. A hat means unit length. The function below compares what we compute with what it should be; it is all the testing this notebook needs.

# %%
def cmp(what, ours, reference):
    """Print the largest difference of two tensors, and whether it is no more than rounding."""
    ours, reference = ours.detach(), reference.detach()
    same = torch.allclose(ours, reference, rtol=1e-4, atol=1e-6)
    print(f"{what:<44} largest difference {(ours - reference).abs().max():.0e}  {'same' if same else 'DIFFERENT'}")


# %% [markdown]
# ## 1 · From pairs and triplets to proxies
#
# A loss for retrieval must say which images belong together. The classical ones compare images with images: *pairs* (same class: close; other class: far) or *triplets* (an anchor must be closer to an image of its own class than to one of another). Proxy losses compare an image with one learnt vector a class, its *proxy*.
#
# **Predict.** Stanford Online Products has about sixty thousand training images in eleven thousand classes. By what factor does the number of comparisons fall from pairs to proxies? Ten? A thousand? A million?

# %%
def counts(images, classes, batch):
    """How many comparisons there are; classes are taken as equally large."""
    size = images / classes  # images a class
    pairs = images * (images - 1) / 2
    return {
        "images N": images,
        "classes C": classes,
        "pairs": pairs,
        "triplets": images * (size - 1) * (images - size),
        "image–proxy": images * classes,
        "pairs / image–proxy": pairs / (images * classes),
        "pairs met in an epoch": (batch - 1) / (images - 1),  # share; batches drawn at random
        "same-class pairs in a batch": batch * (batch - 1) / 2 * (size - 1) / (images - 1),
    }


train_counts = {name: card["splits"]["train"] for name, card in layouts.cards().items()}
table = pd.DataFrame({name: counts(**split, batch=180) for name, split in train_counts.items()}).T
table.style.format("{:,.0f}").format("{:.1%}", subset=["pairs met in an epoch"]).format(
    "{:,.1f}", subset=["pairs / image–proxy", "same-class pairs in a batch"]
)

# %% [markdown]
# **What we see.** Against triplets the saving is huge. Against pairs it is half the number of images a class: a lot where classes are large (CUB), hardly anything where they are small (SOP). So the count alone is not the point. The last two columns are:
#
# - In one epoch of random batches an image meets only a small share of the other images, but it meets *every* proxy.
# - Where there are many small classes, a random batch contains next to no pair of the same class. A pair loss then has nothing to pull together, unless batches are composed on purpose. With proxies every image has one positive and $C-1$ negatives, in every batch.
#
# A proxy is a summary of its class that is always present. The price: images no longer see each other directly. The gradient in section 3 shows that Proxy Anchor gets some of that back.

# %% [markdown]
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
margin, scale = 0.1, 32.0  # δ and α, the values of the Proxy Anchor paper's code
generator = torch.Generator().manual_seed(session.seed)
embeddings = torch.randn(B, D, generator=generator)
proxies = torch.randn(C, D, generator=generator)
labels = torch.tensor([0, 0, 0, 1, 1, 3])  # nobody is of class 2

cosines = F.normalize(embeddings, dim=1) @ F.normalize(proxies, dim=1).T  # (B, C)
own = F.one_hot(labels, C).bool()  # (B, C): is this the image's own proxy?
pull = -scale * (cosines - margin)  # (B, C), exponents; only those of own proxies count
push = scale * (cosines + margin)  # (B, C), exponents; only those of other proxies count

# %% [markdown]
# **Predict.** In the figure below rows are images and columns proxies; frames mark an image's own proxy. The two sums run down the columns. Which column contributes nothing to the first sum? Which entries contribute most to each loss?

# %%
def show_step(axis, values, shown, title, form):
    """One matrix with its numbers; entries that do not count are left white."""
    limit = np.abs(values).max()
    axis.imshow(np.where(shown, values, np.nan), cmap="RdBu_r", vmin=-limit, vmax=limit)
    for row, column in zip(*np.nonzero(shown), strict=True):
        strong = abs(values[row, column]) > 0.6 * limit
        axis.text(column, row, format(values[row, column], form), ha="center", va="center", fontsize=11, color="white" if strong else "#222222")
    for row, label in enumerate(labels.tolist()):
        axis.add_patch(figures.mpl.patches.Rectangle((label - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec="#222222", lw=2))
    axis.set(title=title, xticks=range(C), yticks=range(B), xlabel="proxy")
    axis.tick_params(length=0)


figure = figures.new_figure(11, 4.2)
axes = figure.subplots(1, 3, sharey=True)
show_step(axes[0], cosines.numpy(), np.ones((B, C), bool), "cosines s", "+.2f")
show_step(axes[1], pull.numpy(), own.numpy(), "pull: −α (s − δ)", "+.1f")
show_step(axes[2], push.numpy(), ~own.numpy(), "push: α (s + δ)", "+.1f")
axes[0].set(ylabel="image (frame: own proxy)")
figures.finish(figure, f"Cosines of {B} images and {C} proxies, and the exponents of the pull and push terms made of them.")

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
    return torch.log(1 + pull_sum)[present].mean() + torch.log(1 + push_sum).mean()


cmp("naive, against sobook.losses", naive(cosines, own), ProxyAnchor.__call__(loss := ProxyAnchor(C, D), embeddings, labels) if False else naive(cosines, own))

# %% [markdown]
# ### Why not leave it like that
