# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Proxy geometry
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/06_proxy_geometry.ipynb)
#
# Soft orthogonality (SO) was built in notebook 05, and it does to proxies what it promises. A heatmap of proxy cosines is where this course began. This notebook takes the picture apart: what do the colors amount to, where do they come from, and do they say anything about images?
#
# **What you will learn**
#
# - to explore two runs at once: heatmap, map, angles and pictures that answer each other, epoch by epoch;
# - to read a set of proxies in six numbers, each beside what chance gives and what no set can beat;
# - to read a heatmap of cosines, an angle histogram and a spectrum, and to see what each of them hides;
# - to tell a direction that all proxies share from closeness of particular pairs;
# - how far class means and proxies are from each other, and from neural collapse;
# - to test a correlation over pairs of classes without fooling yourself.
#
# **Before you start** Notebooks 04 (Proxy Anchor) and 05 (soft orthogonality). You need cosines, singular values and the idea of a rank correlation.
#
# **Time** About a minute of computing on a two-core laptop.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()

# %%
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sobook import figures, geometry, retrieval
from sobook.course.aviary import species as aviary
from sobook.course import exercises
from sobook.course.predictions import predict, reveal
from sobook.data import image_sets
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.course.pages import explorer, playground
from sobook.losses import SO_WEIGHT

# %% [markdown] tags=["slide"]
# ## 1 · Two sets of proxies
#
# The same two runs as in notebook 05: Proxy Anchor alone (PA), and Proxy Anchor with soft orthogonality (PA+SO). Data, encoder, seed and number of epochs are the same; only the weight of the SO term differs.

# %%
runs = {
    "PA": session.fit(session.config(so_weight=0.0)),
    "PA+SO": session.fit(session.config(so_weight=SO_WEIGHT)),
}
proxies = {name: run.proxies() for name, run in runs.items()}  # (C, D) each
C, D = proxies["PA"].shape
for name, run in runs.items():
    kept = run.state["selected_epoch"]
    print(f"{name}: {C} proxies in {D} dimensions; ", end="")
    print(f"epoch {kept} of {run.config.epochs} was kept")

# %% [markdown]
# The epoch is kept by Recall@1 on held-out training classes, so the two runs need not keep the same one. Where this could matter, section 6 shows every epoch.
#
# ### Touch first
#
# Below are both runs in one page, on a few species so that this notebook stays small. It needs no kernel. **What to look at first:** press ▶ and watch heatmap and angles while PA trains, then switch to PA+SO and play again. Then click the reddest cell that is left: the pictures say whether the two species look alike, and how often either run takes one for the other.
#
# **What would mislead you.** Only proxies move with the slider: the images stand where the encoder of the kept epoch put them. On the map, proxies are placed by a rule, and their distances mean little (notebook 07). And a few species are not all: the numbers in the table are those of all proxies, the heatmap shows those of the species drawn.

# %% tags=["slide"]
heatmaps = figures.proxy_heatmaps(proxies, difference=True)
small = explorer.from_runs(list(runs.values()), classes=16, per_class=6)
small.beside(heatmaps, height=1000)

# %% [markdown]
# The page with all species is a file of a few megabytes, too large for a notebook. On the command line: `sobook explore RUN RUN --out explorer.html`.
#
# ### By hand
#
# What pulls at a proxy? Drag the discs. Orange arrows are where Proxy Anchor would move them, blue ones where λ·SO would; a step of descent follows their sum. **Try this:** three classes on the circle, λ as high as it goes, *Run*. SO stops falling at its floor, 0.25: in a plane, three directions cannot be orthogonal. Change to the sphere, and they can. Then take 8 classes, and find the floor of the sphere.

# %%
turns = np.radians([90, 210, 330])
three = np.stack([np.cos(turns), np.sin(turns)], axis=1)
star = figures.new_figure(4, 4)
axis = star.subplots()
around = np.linspace(0, 2 * np.pi, 200)
axis.plot(np.cos(around), np.sin(around), color="#888888", lw=1)
arrow = {"arrowstyle": "-|>", "lw": 3, "color": figures.COLORS["PA+SO"]}
for c, (x, y) in enumerate(three):
    axis.annotate("", (x, y), (0, 0), arrowprops=arrow)
    axis.text(1.3 * x, 1.2 * y, f"proxy {c + 1}", ha="center", va="center")
axis.set(xlim=(-1.7, 1.7), ylim=(-1.4, 1.4), aspect="equal")
axis.set_axis_off()
figures.finish(
    star,
    "Three proxies on a circle at 120 degrees: the least SO that three"
    " directions in a plane can have.",
)
playground.page(num_classes=3, dim=2, so_weight=100).beside(star)

# %%
shape = geometry.describe(three)
print(f"three proxies at 120°: SO {shape.rms_cosine**2:.2f}, ", end="")
print(f"floor {shape.orthogonality_floor / 6:.2f}; ", end="")
print(f"coherence {shape.coherence:.2f}, Welch bound {shape.welch_bound:.2f}")

# %% [markdown] tags=["slide"]
# ## 2 · Numbers first
#
# Pictures persuade quickly, and not always of what is true. So numbers come first, and each of them needs something to be held against.
#
# Let $\hat P$ be the proxies scaled to unit length, and $c_{ij} = \hat p_i^\top \hat p_j$ the cosine of two of them.
#
# | number | meaning | random directions | least possible |
# |---|---|---|---|
# | RMS cosine $\sqrt{\tfrac{1}{C(C-1)}\sum_{i\ne j} c_{ij}^2}$ | typical correlation; its square is SO (the mean) | $1/\sqrt D$ | $\sqrt{\max(0, C/D-1)/(C-1)}$ |
# | mean cosine | is there a common mode? | $0$ | $-1/(C-1)$ |
# | coherence $\max_{i\ne j}\lvert c_{ij}\rvert$ | the worst pair | grows with $C$ | Welch bound |
# | mean angle | the same in degrees | $90°$ | – |
# | effective rank | how many directions are really used | a little below $\min(C, D)$ | $\min(C, D)$ is the most |
# | $\text{SO}_{\text{sum}}=\lVert\hat P\hat P^\top-I\rVert_F^2$ | SO as a sum | $C(C-1)/D$ | floor $\max(0, C^2/D-C)$ |
#
# Training with PA about doubles the RMS cosine of random directions, $1/\sqrt D$; notebook 05 printed the factor. Is that a few close pairs, or many? **Predict.** Of the pairs of random directions, one in forty or so has a cosine above $2/\sqrt D$. Which fraction of PA's pairs has?

# %%
predict("06.a", None)

# %% tags=["slide"]
rng = np.random.default_rng(session.seed)
shapes = {
    "random directions": geometry.describe(rng.standard_normal((C, D))),
    "before training": geometry.describe(runs["PA"].proxies(0)),
    "PA": geometry.describe(proxies["PA"]),
    "PA+SO": geometry.describe(proxies["PA+SO"]),
}
COLUMNS = ["rms_cosine", "mean_cosine", "coherence", "mean_angle"]
COLUMNS += ["effective_rank", "orthogonality"]
summaries = {name: shape.summary() for name, shape in shapes.items()}
table = pd.DataFrame(summaries).T[COLUMNS]

floor = geometry.orthogonality_floor(C, D)
welch = geometry.welch_bound(C, D)
table.loc["no set can beat"] = {
    "rms_cosine": np.sqrt(floor / (C * (C - 1))),
    "coherence": welch,
    "effective_rank": min(C, D),
    "orthogonality": floor,
}
chance = shapes["PA"].chance_cosine
times = {name: shape.rms_cosine / chance for name, shape in shapes.items()}
said = ", ".join(f"{name} {factor:.2f}" for name, factor in times.items())
above = {
    name: (geometry.off_diagonal(shape.cosines) > 2 * chance).mean()
    for name, shape in shapes.items()
}
often = ", ".join(f"{name} {part:.1%}" for name, part in above.items())
reveal(
    "06.a",
    table.round(3),
    f"RMS cosine in units of chance, 1/√{D} = {chance:.3f}: {said}.",
    f"Pairs with a cosine above twice that: {often}.",
    truth=above["PA"],
)

# %% [markdown]
# **What we see.** Three things are worth saying before any picture.
#
# - *Before training* the numbers are those of random directions. Near-orthogonality at the start is no achievement; it is what $D$ dimensions give away for nothing.
# - *The rows below it* say what training does to that gift, without and with SO. In the committed run (`aviary_finetune`, seed 0) PA ends at an RMS cosine of .193, about 2.2 times chance, and PA+SO at .036, 0.4 times. Saying "times chance" is the honest way, not "correlated" or "decorrelated".
# - *Coherence* is the worst of $C(C-1)/2$ pairs, so even random directions score far above $1/\sqrt D$ on it. Compare it with the random row, never with $1/\sqrt D$.
#
# While $C \le D$, the floor and the Welch bound are zero: nothing forbids orthogonal proxies. Stanford Online Products has 11,318 training classes; there, both are positive, and the last row of the table becomes the one to look at.

# %% [markdown]
# ### Exercise 1 · Warm-up: the closest pair
#
# Coherence names no names. Which two classes have the largest cosine under PA, and what is the cosine of the same two under PA+SO? The matrix is (C, C), with ones on its diagonal.
#
# <details><summary>Hint</summary>
#
# Subtract 2 from the diagonal, so that it cannot win; `argmax` gives a place in the flat matrix, `np.unravel_index` makes row and column of it.
#
# </details>


# %%
def closest_pair(cosines):
    """The numbers (i, j) of the two classes with the largest cosine."""
    return 0, len(cosines) - 1  # your code here: this is just some pair


def compare(closest_pair):
    i, j = closest_pair(shapes["PA"].cosines)
    names = runs["PA"].state["class_names"]
    print(f"{names[i]} and {names[j]}: ", end="")
    print(", ".join(f"{n} {shapes[n].cosines[i, j]:.4f}" for n in proxies))
    best = geometry.off_diagonal(shapes["PA"].cosines).max()
    print(f"yours under PA {shapes['PA'].cosines[i, j]:.4f}, ", end="")
    print(f"expected {best:.4f}")


compare(closest_pair)
exercises.check("06.1", closest_pair)


# %% tags=["solution"]
def closest_pair(cosines):
    off = cosines - 2 * np.eye(len(cosines))  # the diagonal can no longer win
    i, j = np.unravel_index(off.argmax(), off.shape)
    return int(i), int(j)


compare(closest_pair)
exercises.check("06.1", closest_pair)

# %% [markdown] tags=["slide"]
# ## 3 · The heatmap
#
# Under PA, two proxies *within* a genus have a larger mean cosine than two of different genera (notebook 00). **Predict.** Subtract the mean proxy from all of PA's proxies and scale them to unit length again. What becomes of that difference: larger, about the same (within a tenth), or smaller?

# %%
predict("06.b", None, choices=("larger", "about the same", "smaller"))

# %% [markdown]
# Heatmaps can be compared only when they share the order of the classes *and* the scale of the colors. Both are fixed here: classes stand genus by genus, black squares enclose the pairs of a genus, the scale is centered on zero and common. (On CUB, in full mode, the last word of the English name takes the place of the genus: all albatrosses, all sparrows.) The panel in the middle is PA with the mean proxy subtracted from every proxy; section 7 says why.

# %% tags=["slide"]
class_names = runs["PA"].state["class_names"]  # 007.Barred_Ambertail and so on
genus = np.array([name.split("_")[-1] for name in class_names])  # (C,)
panels = {
    "PA": proxies["PA"],
    "PA minus mean": geometry.without_common_mode(proxies["PA"]),
    "PA+SO": proxies["PA+SO"],
}
drawn = figures.proxy_heatmaps(
    panels, groups=genus, order=np.argsort(genus, kind="stable")
)

# %%
same_genus = genus[:, None] == genus[None, :]  # (C, C)
within = geometry.off_diagonal(same_genus).astype(bool)  # (C(C−1)/2,)
rows = {}
for name, p in {"before training": runs["PA"].proxies(0), **panels}.items():
    cosines = geometry.off_diagonal(geometry.describe(p).cosines)
    rows[name] = {
        "within a genus": cosines[within].mean(),
        "between genera": cosines[~within].mean(),
    }
rows = pd.DataFrame(rows).T
rows["difference"] = rows["within a genus"] - rows["between genera"]
ratio = rows.loc["PA minus mean", "difference"] / rows.loc["PA", "difference"]
reveal(
    "06.b",
    drawn,
    f"{within.sum()} pairs within a genus, {(~within).sum()} between genera",
    rows.round(3),
    truth="larger"
    if ratio > 1.1
    else "smaller"
    if ratio < 0.9
    else "about the same",
)

# %% [markdown]
# Two things make the left panel red. Nearly *all* of it is tinted, and the squares are redder than the rest. The middle panel keeps the squares and loses the tint; the right one has hardly anything of either.
#
# The difference in the last column is what the squares are made of. It does not shrink with the mean: what all proxies share tells no two genera apart, and without it the rest is a larger part of each unit vector. Proxies are never told about genera: whatever difference there is came through the images, whose embeddings pull proxies of similar species into similar directions.

# %% [markdown] tags=["slide"]
# ## 4 · Angles, and what random directions would do
#
# The angle $\theta$ between two random directions in $D$ dimensions has the density
#
# $$p(\theta) \propto \sin^{D-2}\theta, \qquad \operatorname{std}(\cos\theta) = 1/\sqrt D .$$
#
# Notebook 05 drew PA's angles against that bell: they move to smaller angles, all of them. **Predict** the *width* with SO: is the histogram of PA+SO's angles narrower than the bell, about as wide (within a quarter), or wider?

# %%
predict("06.c", None, choices=("narrower", "about as wide", "wider"))

# %% tags=["slide"]
angles = {}
for name, shape in shapes.items():
    values = np.degrees(np.arccos(geometry.off_diagonal(shape.cosines)))
    angles[name] = {
        "mean": values.mean(),
        "std": values.std(),
        "smallest": values.min(),
        "largest": values.max(),
        "fraction below 80°": (values < 80).mean(),
    }
angles = pd.DataFrame(angles).T
ratio = angles.loc["PA+SO", "std"] / angles.loc["random directions", "std"]
truth = "about as wide"
if abs(ratio - 1) > 0.25:
    truth = "wider" if ratio > 1 else "narrower"
reveal(
    "06.c",
    figures.angle_histogram(proxies),
    angles.round(2),
    truth=truth,
)

# %% [markdown]
# **Why.** SO is a mean of *squared* cosines, so it pulls hardest at the largest ones and does not care about their sign: a cosine of −0.4 costs as much as +0.4. It therefore narrows the histogram around 90° from both sides. Narrower than the gray curve is possible as long as $C \le D$: random directions are near-orthogonal by accident, optimized ones on purpose.
#
# What the histogram hides: *which* pairs sit in a tail. For that there is the heatmap. What the heatmap hides: how many pairs make up a faint background. For that there is the histogram.

# %% [markdown] tags=["slide"]
# ## 5 · The spectrum
#
# Let $\sigma_1 \ge \sigma_2 \ge \dots$ be the singular values of $\hat P$. By notebook 05, $\sum_k\sigma_k^2 = C$ is fixed and $\text{SO}_{\text{sum}} = \sum_k\sigma_k^4 - C$, so SO is small exactly when the $\sigma_k^2$ are equal: a flat spectrum. The effective rank (Roy and Vetterli, 2007) turns flatness into a count: with $q_k = \sigma_k / \sum_l \sigma_l$,
#
# $$\operatorname{erank}(\hat P) = \exp\Big(-\sum_k q_k \log q_k\Big).$$
#
# If all proxies shared one strong direction, what would the curve look like?

# %% tags=["slide"]
figures.spectra(proxies)

# %%
rows = {}
for name in ("PA", "PA+SO"):
    s = shapes[name].spectrum  # (min(C, D),)
    q = s / s.sum()
    rows[name] = {
        "effective rank": np.exp(-(q * np.log(q)).sum()),
        "fraction of Σσ² along the strongest": s[0] ** 2 / C,
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# A steep start of the curve means that a few directions are shared by many proxies; a low end means that some directions are hardly used at all. The last column deserves a section of its own (section 7): how much does the strongest direction hold?

# %% [markdown] tags=["slide"]
# ## 6 · Over the epochs
#
# A run keeps its proxies after every epoch (`run.proxies(epoch)`; epoch 0 is before training), so we can watch.
#
# **Predict.** In which epoch does the RMS cosine of PA's proxies change most? (The first is the warm-up: the backbone is frozen.)

# %%
predict("06.d", None)

# %% tags=["slide"]
moved = {
    name: geometry.movement([run.proxies(e["epoch"]) for e in run.epochs])
    for name, run in runs.items()
}
held_out = {
    n: [e.get("recall_at_1") for e in r.epochs] for n, r in runs.items()
}
rows = {}
for name in runs:
    values = moved[name].rms_cosine
    rows[name] = {
        "RMS cosine before": values[0],
        "at the end": values[-1],
        "largest change in epoch": int(np.abs(np.diff(values)).argmax()) + 1,
        "turned in all (median, °)": np.median(moved[name].from_start[-1]),
        "in the last epoch": np.median(moved[name].step[-1]),
    }
rows = pd.DataFrame(rows).T
reveal(
    "06.d",
    figures.proxy_ribbons(moved, held_out, dim=D),
    rows.round(2),
    truth=rows.loc["PA", "largest change in epoch"],
)

# %% [markdown]
# In the warm-up only head and proxies learn. What the curves do there is about proxies finding their classes; what they do later is about encoder and proxies moving together. SO works at once, in the first epoch, and holds the level.

# %% [markdown] tags=["slide"]
# ## 7 · The common mode: how much of it is one shared direction?
#
# Correlation can come in two kinds. Either particular pairs are close (two similar species), or *all* proxies share one direction, as umbrellas do in wind. The second kind is called a common mode. It is boring: one vector describes it. And it is cheap to measure, since the mean cosine depends on the mean proxy $\bar p = \frac1C\sum_i \hat p_i$ alone:
#
# $$\frac{1}{C(C-1)}\sum_{i \ne j} c_{ij} = \frac{C\lVert\bar p\rVert^2 - 1}{C - 1}.$$
#
# The RMS splits into mean and spread, $\text{rms}^2 = \text{mean}^2 + \text{variance}$, so $\text{mean}^2/\text{rms}^2$ is the fraction of SO that a common mode accounts for. A second, rougher way to ask: subtract $\bar p$ from every proxy, normalize, and describe again.
#
# **Predict** that fraction for PA, between 0 and 1.

# %%
predict("06.e", None)

# %% tags=["slide"]
sets = {"random directions": rng.standard_normal((C, D)), **proxies}
rows = {}
for name, p in sets.items():
    before = geometry.describe(p)
    after = geometry.describe(geometry.without_common_mode(p))
    rows[name] = {
        "mean cosine": before.mean_cosine,
        "fraction of SO due to the mean": before.common_mode_share,
        "RMS cosine": before.rms_cosine,
        "RMS cosine, mean subtracted": after.rms_cosine,
        "coherence": before.coherence,
        "coherence, mean subtracted": after.coherence,
    }
reveal(
    "06.e",
    pd.DataFrame(rows).round(3),
    truth=rows["PA"]["fraction of SO due to the mean"],
)

# %%
for name, p in proxies.items():
    unit = geometry.unit_rows(p)
    mean = unit.mean(axis=0)
    top = np.linalg.svd(unit, full_matrices=False)[2][0]  # (D,) strongest
    cosine = abs(top @ mean) / np.linalg.norm(mean)
    print(f"{name}: |cosine| of strongest direction and mean {cosine:.2f}")

# %% [markdown]
# **How to read this.** If the fraction is small, the correlation is *between particular classes*: removing one direction would not cure it, and a constraint on all pairs has something to do. If it is large, much of what a heatmap shows is one tint over everything, and subtracting one vector would remove it. What is left after the subtraction is the part that tells classes apart. In the committed run (`aviary_finetune`, seed 0) the mean accounts for .711 of PA's SO, and the RMS cosine without it is .127. The last lines guard against a wrong shortcut: "the strongest direction" and "the mean direction" are the same only where the cosine is near 1.
#
# **But why should all proxies share a direction?** Nothing in the loss asks for it, at first sight. A clue is where that direction points, seen from the images: *away* from the mean image, though the loss pulls images towards their proxies (notebook 04). SO takes most of the direction out of the proxies. **Predict** what that does to the images: are two training images of different classes closer to each other with SO than without, or further apart?

# %%
predict("06.f", None, choices=("closer", "further apart"))

# %%


def training_images(run):
    """The images whose classes have proxies, labeled as the proxies are."""
    config = run.config
    train = image_sets.load(
        config.dataset,
        "train",
        config.root,
        allow_partial=config.allow_partial,
        **config.options,
    )
    names = np.array(train.class_names)[train.labels]
    return train.subset(np.isin(names, run.state["class_names"]))


images = training_images(runs["PA"])  # both hold out the same classes
embeddings = {
    name: embed(run.encoder().to(session.device), images, progress=False)
    for name, run in runs.items()
}  # (N, D) each
strangers = images.labels[:, None] != images.labels
rows = {}
for name in proxies:
    x = embeddings[name].mean(axis=0)
    q = geometry.unit_rows(proxies[name]).mean(axis=0)
    cosines = embeddings[name] @ embeddings[name].T
    rows[name] = {
        "cosine of mean proxy and mean image": x
        @ q
        / np.linalg.norm(x)
        / np.linalg.norm(q),
        "mean cosine of images of two classes": cosines[strangers].mean(),
    }
rows = pd.DataFrame(rows).T
change = rows["mean cosine of images of two classes"].diff().iloc[-1]
truth = "closer" if change > 0 else "further apart"
reveal("06.f", rows.round(2), truth=truth)

# %% [markdown]
# In the committed run (`aviary_finetune`, seed 0) the cosine is −.931: images on one cone, proxies on the opposite one, as on the sphere of notebook 04. With SO the proxies' mean is short, but what there is of it points away just as much, and the images have crowded *more*. Keep this clue. What makes the two cones is the question of notebook 09.
#
# ### How far are class means from their proxies?
#
# A proxy is often called the center of its class. It is not (notebook 07 draws it): the loss asks that it separates, not that it sits in the middle. *Neural collapse* (Papyan, Han and Donoho, 2020) names what a classifier comes to when it is trained to the very end. With $\mu_c$ the mean embedding of class $c$, $\mu$ their mean, and the classifier's weights (here: the proxies) in the rows of $P$:
#
# - **NC1** embeddings become their class means: $\tfrac1C\operatorname{tr}(\Sigma_W\Sigma_B^+) \to 0$, with $\Sigma_W$ the covariance within classes, $\Sigma_B$ that of the class means and $^+$ the pseudo-inverse ($C$ centered means span $C-1$ directions at most, so $\Sigma_B$ has no inverse). Read it as scatter within classes per scatter between them, direction by direction.
# - **NC2** the *centered* means $\mu_c - \mu$ become equally long, and form a simplex: all their cosines go to $-1/(C-1)$.
# - **NC3** up to scale, classifier and centered means become the same: $\lVert M/\lVert M\rVert_F - P/\lVert P\rVert_F\rVert_F^2 \to 0$. (We center the proxies as well, since a shared direction decides nothing.)
# - **NC4** the classifier decides as the nearest class mean would: the fraction of images on which the two disagree goes to 0.
#
# In short: points at their class mean, means at the corners of a simplex, proxies at the means, and one decision from either. How far are these runs from that end? A number like NC1 needs something to be held against, so the first lines below give it for the frozen features, and for PA's embeddings with the labels shuffled, that is, for classes that are none. **Does pushing proxies towards right angles bring the class means nearer to a simplex?**

# %%
collapsed = {
    name: geometry.collapse(embeddings[name], images.labels, proxies[name])
    for name in proxies
}
rows = {
    name: {
        "angle of class mean and proxy (°)": c.angle.mean(),
        "NC1": c.nc1,
        "NC2: unequal lengths": c.nc2_norms,
        "NC2: from the simplex": c.nc2_angles,
        "NC3": c.nc3,
        "NC4: other decisions": c.nc4,
    }
    for name, c in collapsed.items()
}
config = runs["PA"].config
frozen_encoder = Encoder.create(config.encoder, weights=config.weights)
frozen = embed(frozen_encoder.to(session.device), images, progress=False)
frozen_means = geometry.class_means(
    geometry.unit_rows(frozen), images.labels, C
)
shuffled = np.random.default_rng(0).permutation(images.labels)
beside = {
    "frozen features": geometry.collapse(frozen, images.labels, frozen_means),
    "PA, labels shuffled": geometry.collapse(
        embeddings["PA"], shuffled, proxies["PA"]
    ),
}
for name, c in beside.items():
    print(f"{name}: NC1 {c.nc1:.2f}")
pd.DataFrame(rows).T.round(2)

# %%
rows = {}
for name in collapsed:
    means = geometry.class_means(embeddings[name], images.labels, C)
    means = geometry.describe(means)
    rows[name] = {
        "RMS cosine of the proxies": shapes[name].rms_cosine,
        "of the class means": means.rms_cosine,
        "of the class means, centered": means.rms_cosine_centered,
    }
print(f"a simplex of {C}: {-shapes['PA'].simplex_cosine:.3f}")
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Both runs are far from collapse. In the committed run NC1 is 14.89 under PA and 13.15 under PA+SO. Shuffled labels give 91.90, the frozen features 21.26: training went some of the way from there, not most of it. And angles of class mean and proxy are nearly right angles. Read the columns of the last table side by side. What SO was asked for, it did: the proxies. The class means did not follow, and retrieval sees images only.
#
# ### Exercise 2 · Derive and check: the mean cosine without any pair
#
# Compute the mean cosine of PA's proxies from the mean proxy alone, with the formula above: no (C, C) matrix, no loop. For eleven thousand classes this is the difference between a blink and a gigabyte.
#
# <details><summary>Hint</summary>
#
# $\lVert\sum_i\hat p_i\rVert^2$ is the sum of all $C^2$ cosines, of which $C$ are the ones of the diagonal.
#
# </details>


# %%
def mean_cosine(unit):
    """Mean cosine of two different rows of `unit`, (C, D), unit length."""
    return float("nan")  # your code here


yours = mean_cosine(geometry.unit_rows(proxies["PA"]))
print(f"yours {yours:.6f}, expected {shapes['PA'].mean_cosine:.6f}")
exercises.check("06.2", mean_cosine)


# %% tags=["solution"]
def mean_cosine(unit):
    mean = unit.mean(axis=0)  # (D,)
    return float((len(unit) * mean @ mean - 1) / (len(unit) - 1))


yours = mean_cosine(geometry.unit_rows(proxies["PA"]))
print(f"yours {yours:.6f}, expected {shapes['PA'].mean_cosine:.6f}")
exercises.check("06.2", mean_cosine)

# %% [markdown]
# ### Exercise 3 · Find the bug: remove the common mode
#
# A colleague centers the proxies: subtract the mean proxy from unit proxies, scale the rows to unit length again. The RMS cosine hardly changes, and the conclusion is that there is no common mode. What is wrong?
#
# <details><summary>Hint</summary>
#
# The mean proxy is a vector of $D$ numbers. What is the shape of the mean that is subtracted below?
#
# </details>


# %%
def without_mean(unit):
    """Unit proxies (C, D), their mean subtracted, of unit length again."""
    moved = unit - unit.mean(axis=1, keepdims=True)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def compare_centering(function):
    for name, p in proxies.items():
        left = geometry.describe(function(geometry.unit_rows(p)))
        print(f"{name:6} RMS cosine {shapes[name].rms_cosine:.3f}, ", end="")
        print(f"without the common mode {left.rms_cosine:.3f}")


compare_centering(without_mean)
exercises.check("06.3", without_mean)


# %% tags=["solution"]
def without_mean(unit):
    moved = unit - unit.mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


compare_centering(without_mean)
exercises.check("06.3", without_mean)

# %% [markdown] tags=["slide"]
# ## 8 · Does proxy cosine follow the look of the species?
#
# We drew the birds, so we know what they have in common: thirteen field marks (cap, wing bars, leg color …) beside the genus. If proxies carry meaning, species that share more marks should have closer proxies.
#
# There is a trap in the statistics. $C$ proxies make $C(C-1)/2$ pairs, and those are not independent: one odd species spoils $C - 1$ of them. A textbook p-value for that many pairs would be far too sure of itself. The remedy is to shuffle *classes*, not pairs: rename the species at random, compute Spearman's ρ again, and see what range of ρ pure chance gives (Mantel's test).
#
# **Predict.** Is ρ with "same genus" larger under PA or under PA+SO? SO asks for all cosines to be small; it does not ask for their *order* to change.

# %%
predict("06.g", None, choices=("PA", "PA+SO"))


# %%
def shared_marks(class_names, options):
    """(C, C) number of field marks two species have in common."""
    known = {"species": 100, "seed": 0} | options
    table = aviary.attributes(known["species"], seed=known["seed"])
    rows = [int(name.partition(".")[0]) - 1 for name in class_names]
    marks = table.loc[rows, list(aviary.CHOICES)].to_numpy()
    return (marks[:, None] == marks[None, :]).sum(axis=2)


def rho(a, b, chosen=slice(None)):
    """Spearman's rank correlation over pairs of classes."""
    a, b = (geometry.off_diagonal(matrix)[chosen] for matrix in (a, b))
    return float(spearmanr(a, b).statistic)


def renamed(within_genus):
    """The classes in another order: any, or one within each genus."""
    if not within_genus:
        return generator.permutation(C)
    order = np.arange(C)
    for name in np.unique(genus):
        members = np.flatnonzero(genus == name)
        order[members] = generator.permutation(members)
    return order


def chance_range(a, b, chosen=slice(None), within_genus=False, rounds=400):
    """The middle 95 % of ρ when classes are renamed at random (Mantel)."""
    orders = [renamed(within_genus) for _ in range(rounds)]
    found = [rho(a, b[np.ix_(order, order)], chosen) for order in orders]
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{low:+.2f} … {high:+.2f}"


# %% tags=["slide"]
generator = np.random.default_rng(0)
looks = {"same genus": same_genus.astype(float)}
if session.quick:  # the marks are known for birds that we drew
    marks = shared_marks(class_names, runs["PA"].config.options)
    looks["shared field marks"] = marks

rows = []
for look, similarity in looks.items():
    for name in ("before training", "PA", "PA+SO"):
        cosines = shapes[name].cosines
        by_chance = chance_range(cosines, similarity)
        rows.append([look, name, rho(cosines, similarity), by_chance])
columns = ["cosine against", "proxies", "Spearman ρ", "by chance (95 %)"]
table = pd.DataFrame(rows, columns=columns)
same = table[table["cosine against"] == "same genus"].set_index("proxies")
reveal(
    "06.g",
    table.round(3),
    truth=same.loc[["PA", "PA+SO"], "Spearman ρ"].idxmax(),
)

# %% [markdown]
# The row "before training" is the control: random proxies know nothing of birds, and ρ has to fall inside the range of chance (in about one draw out of twenty it does not).
#
# A finer question remains. Species of one genus share most of their marks anyway, so "shared marks" may only repeat "same genus". Does the number of shared marks still matter *among pairs of the same genus*?

# %%
shown = "The field marks are known for the drawn birds only."
if session.quick:
    what = f"field marks in common, of {len(aviary.CHOICES)}"
    shown = figures.attribute_lens(proxies, marks, what=what)
shown

# %% [markdown]
# The interval in each title draws *classes*, not pairs, with replacement: it says how far ρ would move with other species of the same kind. The table asks the finer question.

# %%
if session.quick:
    rows = {}
    for name in ("before training", "PA", "PA+SO"):
        cosines = shapes[name].cosines
        rows[name] = {
            "ρ, pairs of one genus": round(rho(cosines, marks, within), 2),
            "by chance (95 %)": chance_range(
                cosines, marks, within, within_genus=True
            ),
            "ρ, other pairs": round(rho(cosines, marks, ~within), 2),
        }
    shown = pd.DataFrame(rows).T
shown

# %% [markdown]
# For the pairs of one genus, species are renamed only within their genus. Look how wide that range of chance is: the pairs are few, and they share species. Look also at the row "before training": those proxies are random numbers, so whatever their ρ is, it is luck. If it lies outside its range, you are looking at one of the five in a hundred, and at the reason why a lone ρ just outside a range is no discovery. (A range need not be centered on zero: genera that are more alike as a whole stay so when their members swap names.)
#
# **Why it is not obvious what to wish for.** A proxy cosine that follows likeness is knowledge: the model has noticed that two species are relatives. SO pays for taking some of that knowledge out of the proxies. Whether it was *useful* knowledge for retrieval cannot be read from proxies at all. We have to look at images.

# %% [markdown] tags=["slide"]
# ## 9 · Does it matter?
#
# The claim behind soft orthogonality is that proxies which sit close together make their classes hard to tell apart. That can be tested. For every pair of training classes we have the cosine of their proxies; and we can count how often their images are mixed up in retrieval:
#
# $$\text{confusion}_{ij} = \text{fraction of the } R \text{ nearest images of class } i\text{'s images that belong to class } j,$$
#
# with $R$ the number of relevant images there are (images per class less the query itself).
#
# A caveat that no reader should have to find alone: *test classes have no proxies*. They were never trained on; that is the whole point of the benchmark. So this test uses training classes and training images, where confusion is smaller than in earnest.
#
# **Predict** Spearman's ρ between cosine and confusion under PA, between −1 and 1.

# %%
predict("06.h", None)


# %%
def confusion(embeddings, labels, k):
    """(C, C) of the k nearest images of class i's, the fraction of class j."""
    _, found = retrieval.nearest_neighbors(embeddings, k)  # (N, k)
    counts = np.zeros((labels.max() + 1, labels.max() + 1))
    np.add.at(counts, (labels[:, None], labels[found]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


R = int(np.bincount(images.labels).min()) - 1
confusions = {n: confusion(e, images.labels, R) for n, e in embeddings.items()}
for name, matrix in confusions.items():
    other = 1 - np.diag(matrix).mean()
    print(f"{name}: {other:.1%} of the {R} nearest images are of another class")

# %% tags=["slide"]
rows = {}
for name in proxies:
    cosines, mixed = shapes[name].cosines, confusions[name]
    mixed = (mixed + mixed.T) / 2  # both ways
    rows[name] = {
        "ρ, all pairs": round(rho(cosines, mixed), 2),
        "by chance (95 %)": chance_range(cosines, mixed),
        "ρ, pairs of one genus": round(rho(cosines, mixed, within), 2),
        "by chance (95 %) ": chance_range(
            cosines, mixed, within, within_genus=True
        ),
    }
reveal(
    "06.h",
    figures.confusion_vs_cosine(
        {name: shapes[name].cosines for name in proxies}, confusions
    ),
    pd.DataFrame(rows).T,
    truth=rows["PA"]["ρ, all pairs"],
)

# %% [markdown]
# **First the two lines above the figure.** In the committed run 53.2% of the nearest images are of another class under PA, and 50.0% under PA+SO. So in this pair of runs fewer images are mixed up with SO. These are the classes trained on, and it is one run each; on new species, over the five seeds of notebook 08, no difference in Recall@1 is shown.
#
# **Correlation, and then?** A positive ρ says that close proxies and mixed-up images go together. It does not say which makes which: two look-alike species would give close proxies *and* mixed-up images, with no arrow from one to the other. The column "pairs of one genus" takes part of the likeness out of the comparison, not all of it.
#
# One could compare what SO *changed*: pairs whose cosine fell most against pairs whose confusion fell most. That is a trap as well. The pairs whose cosine fell most are those that were closest, and what was extreme falls back in any second measurement (*regression to the mean*). A clean answer needs pairs drawn *at random*; notebook 09 draws them.
#
# ### Exercise 4 · Criticize a claim
#
# From a draft: *"With SO the RMS cosine of the 40 proxies falls from .193 to .036, below the chance level of 128 dimensions. The classes are therefore better separated, and look-alike species are confused less (`aviary_finetune`, seed 0)."* Which objections hold? Give the letters.
#
# - **a** Proxies are not images: the class means of the images moved closer together, not apart.
# - **b** The two numbers are of different numbers of proxies, so they cannot be compared.
# - **c** Most of what fell is one direction that all proxies shared, and it told no classes apart.
# - **d** The RMS cosine has nothing to do with what SO penalizes.
# - **e** It is one pair of runs, and no confusion is reported.

# %%
my_objections = ""  # such as "bd"
exercises.check("06.4", my_objections)

# %% tags=["solution"]
my_objections = "ace"
exercises.check("06.4", my_objections)

# %% [markdown]
# ## Summary
#
# - Hold every geometric number against two others: what random directions give ($1/\sqrt D$ for the RMS cosine) and what no set can beat (the floor, the Welch bound).
# - Heatmap, histogram and spectrum show the same matrix: *which* pairs, *how many* pairs, *how many directions*. Fix order and scale before comparing two of them.
# - $\text{rms}^2 = \text{mean}^2 + \text{variance}$ separates the common mode of all proxies from closeness of particular pairs; the mean proxy alone gives the first.
# - The mean proxy points *away* from the mean image: images and proxies lie on opposite cones.
# - Proxies know about likeness only through images. Pairs of classes are not independent: shuffle classes to see what chance gives.
# - What SO changed: the proxies. What did not follow: the class means, whose RMS cosine even rises. Training images are mixed up a little less often in this pair of runs; whether that carries over to new species takes several seeds (notebook 08).
#
# ## Questions
#
# **1.** A colleague reports a coherence of 0.3 in 128 dimensions, "more than three times chance, so the proxies are correlated". What is wrong?
#
# <details><summary>Answer</summary>
#
# $1/\sqrt D$ is the typical cosine of *one* random pair; coherence is the largest of thousands. Random directions in 128 dimensions have a coherence of about that size already (the first row of the table in section 2). Compare the maximum with the maximum of random directions.
#
# </details>
#
# **2.** Two sets of proxies have the same RMS cosine. One has a flat spectrum apart from one large singular value, the other a gently falling one. What differs, and which of the two would centering repair?
#
# <details><summary>Answer</summary>
#
# $\sum\sigma^4$ is the same, its distribution is not. In the first, all proxies share one direction; if that is the mean direction (check the cosine between the two), subtracting the mean proxy removes most of the correlation. In the second, the correlation is spread over many directions: groups of classes that are close to each other. Centering hardly helps there.
#
# </details>
#
# **3.** Why can we not draw the scatter plot of section 9 for the test species?
#
# <details><summary>Answer</summary>
#
# They have no proxies: proxies exist for classes in the training loss only, and test classes are disjoint from those. One could use class means of test embeddings in place of proxies, but those are made from the very images whose confusion they should explain.
#
# </details>
#
# **Still open.** Most of what SO takes away is one direction, and it points away from the images: two cones. Nothing in this notebook says what makes them, nor what the images look like while all this happens. For a look at the images themselves, on maps that are easily misread: [07 · Embedding maps](07_embedding_maps.ipynb).
#
# ## Further reading
#
# - F. Saberi-Movahed et al., [Deep Metric Learning with Soft Orthogonal Proxies](https://arxiv.org/abs/2306.13055), 2023: the idea this course is built around, that proxies should be as orthogonal as possible. We know its abstract, not its figures; the geometry shown here is our own.
# - S. Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020: where the proxies come from.
# - N. Bansal, X. Chen, Z. Wang, [Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?](https://arxiv.org/abs/1810.09102), NeurIPS 2018: soft orthogonality on network weights, and its relatives.
# - V. Papyan, X. Y. Han, D. Donoho, Prevalence of neural collapse during the terminal phase of deep learning training, PNAS 2020: NC1 to NC4.
# - O. Roy, M. Vetterli, The effective rank, EUSIPCO 2007: the count used in section 5, with its properties.
# - L. Welch, Lower bounds on the maximum cross correlation of signals, IEEE Transactions on Information Theory, 1974: why coherence cannot vanish once there are more vectors than dimensions.
