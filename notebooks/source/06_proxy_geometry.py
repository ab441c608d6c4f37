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
# A heatmap of proxy cosines is the picture this course is named after. This notebook makes it, and then does not stop there: what do the colors amount to, where do they come from, and does any of it matter for retrieval?
#
# **What you will learn**
#
# - to explore two runs at once: heatmap, map, angles and pictures that answer each other, epoch by epoch;
# - to read a set of proxies in six numbers, each beside what chance gives and what no set can beat;
# - to read a heatmap of cosines, an angle histogram and a spectrum, and to see what each of them hides;
# - how much of the correlation between proxies is one single direction that all of them share;
# - how far class means and proxies are from each other, and from neural collapse;
# - whether two proxies are close because the two classes look alike;
# - whether it matters: are classes with close proxies the ones whose images get mixed up?
#
# **Before you start** Notebooks 04 (Proxy Anchor) and 05 (soft orthogonality). You need cosines, singular values and the idea of a rank correlation.
#
# **Time** Less than a minute on a two-core laptop once the two training runs exist, and the minutes of their training (notebook 00) if they do not; on a T4 GPU in full mode: not measured.
#
# **Versions last run** and the machine: printed by the first cell. Every section asks before it shows: write your prediction down, then run.

# %% tags=["setup"]
from sobook.course import setup

session = setup()

# %%
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sobook import figures, geometry, retrieval
from sobook.aviary import species as aviary
from sobook.course import exercises
from sobook.data import image_sets
from sobook.interactive import explorer, playground
from sobook.embedding import embed
from sobook.losses import SO_WEIGHT

# %% [markdown]
# ## 1 · Two sets of proxies
#
# The same two runs as in notebook 05: Proxy Anchor alone (PA), and Proxy Anchor with soft orthogonality (PA+SO). Data, encoder, seed and number of epochs are the same; only the weight of the SO term differs. A run that is finished on this machine is loaded, not repeated.

# %%
runs = {
    "PA": session.fit(session.config(so_weight=0.0)),
    "PA+SO": session.fit(session.config(so_weight=SO_WEIGHT)),
}
proxies = {name: run.proxies() for name, run in runs.items()}  # (C, D) each, of the epoch kept
C, D = proxies["PA"].shape
for name, run in runs.items():
    print(f"{name}: {C} proxies in {D} dimensions; epoch {run.state['selected_epoch']} of {run.config.epochs} was kept")

# %% [markdown]
# The epoch is kept by Recall@1 on held-out training classes, so the two runs need not keep the same one. Where this could matter, section 6 shows every epoch.
#
# ### Touch first
#
# Below are both runs in one page, on a few species so that this notebook stays small. It needs no kernel. **What to look at first:** press ▶ and watch heatmap and angles while PA trains, then switch to PA+SO and play again. Then click the reddest cell that is left: the pictures say whether the two species look alike, and how often either run takes one for the other.
#
# **What would mislead you.** Only proxies move with the slider: the images stand where the encoder of the kept epoch put them. On the map, proxies are placed by a rule, and their distances mean little (notebook 07). And a few species are not all: the numbers in the table are those of all proxies, the heatmap shows those of the species drawn.

# %%
heatmaps = figures.proxy_heatmaps(proxies, difference=True)
small = explorer.from_runs(list(runs.values()), classes=16, per_class=6)
small.beside(heatmaps, height=1000)

# %% [markdown]
# The page with all species is a file of a few megabytes, too large for a notebook. It is written next to the runs; open it in a browser. On the command line: `sobook explore RUN RUN --out explorer.html`.

# %%
page = explorer.from_runs(list(runs.values()), classes=100, per_class=20)
print(page.save(session.data_root / "explorer.html").name, "written:", page)

# %% [markdown]
# ### By hand
#
# What pulls at a proxy? Drag the discs. Orange arrows are where Proxy Anchor would move them, blue ones where λ·SO would; a step of descent follows their sum. **Try this:** three classes on the circle, λ as high as it goes, *Run*. SO stops falling at its floor, 0.25: in a plane, three directions cannot be orthogonal. Change to the sphere, and they can. Then take 8 classes, and find the floor of the sphere.

# %%
turns = np.radians([90, 210, 330])
star = figures.new_figure(4, 4)
axis = star.subplots()
circle = np.linspace(0, 2 * np.pi, 200)
axis.plot(np.cos(circle), np.sin(circle), color="#888888", lw=1)
for c, turn in enumerate(turns):
    axis.annotate("", (np.cos(turn), np.sin(turn)), (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 3, "color": figures.method_color("PA+SO")})
    axis.text(1.3 * np.cos(turn), 1.2 * np.sin(turn), f"proxy {c + 1}", ha="center", va="center")
axis.set(xlim=(-1.7, 1.7), ylim=(-1.4, 1.4), aspect="equal")
axis.set_axis_off()
figures.finish(star, "Three proxies on a circle at 120 degrees: the least SO that three directions in a plane can have.")
playground.page(num_classes=3, dim=2, so_weight=100).beside(star)

# %%
three = geometry.describe(np.stack([np.cos(turns), np.sin(turns)], axis=1))
print(f"three proxies at 120°: SO {three.rms_cosine**2:.4f}, floor {three.orthogonality_floor / 6:.4f}; coherence {three.coherence:.4f}, Welch bound {three.welch_bound:.4f}")

# %% [markdown] tags=["slide"]
# ## 2 · Numbers first
#
# Pictures persuade quickly, and not always of what is true. So numbers come first, and each of them needs something to be held against.
#
# Let $\hat P$ be the proxies scaled to unit length, and $c_{ij} = \hat p_i^\top \hat p_j$ the cosine of two of them.
#
# | number | meaning | random directions | least possible |
# |---|---|---|---|
# | RMS cosine $\sqrt{\tfrac{1}{C(C-1)}\sum_{i\ne j} c_{ij}^2}$ | typical correlation; its square is SO | $1/\sqrt D$ | $\sqrt{\max(0, C/D-1)/(C-1)}$ |
# | mean cosine | is there a common mode? | $0$ | $-1/(C-1)$ |
# | coherence $\max_{i\ne j}\lvert c_{ij}\rvert$ | the worst pair | grows with $C$ | Welch bound |
# | mean angle | the same in degrees | $90°$ | – |
# | effective rank | how many directions are really used | a little below $\min(C, D)$ | $\min(C, D)$ is the most |
# | $\lVert\hat P\hat P^\top-I\rVert_F^2$ | SO as a sum | $C(C-1)/D$ | floor $\max(0, C^2/D-C)$ |
#
# **Predict.** With this $C$ and $D$: what is the typical cosine of two random directions? Does training with PA alone push proxies apart, as its second term seems to ask, or together? Write your guesses down.

# %% tags=["slide"]
rng = np.random.default_rng(session.seed)
shapes = {
    "random directions": geometry.describe(rng.standard_normal((C, D))),
    "before training": geometry.describe(runs["PA"].proxies(0)),
    "PA": geometry.describe(proxies["PA"]),
    "PA+SO": geometry.describe(proxies["PA+SO"]),
}
COLUMNS = ["rms_cosine", "mean_cosine", "coherence", "mean_angle", "effective_rank", "orthogonality"]
table = pd.DataFrame({name: shape.summary() for name, shape in shapes.items()}).T[COLUMNS]

floor, welch = geometry.orthogonality_floor(C, D), geometry.welch_bound(C, D)
table.loc["no set can beat"] = {
    "rms_cosine": np.sqrt(floor / (C * (C - 1))),
    "coherence": welch,
    "effective_rank": min(C, D),
    "orthogonality": floor,
}
table.round(3)

# %%
chance = shapes["PA"].chance_cosine
print(f"chance, 1/√{D} = {chance:.3f}; Welch bound {welch:.3f}; floor of the sum {floor:.1f}")
for name in ("before training", "PA", "PA+SO"):
    shape = shapes[name]
    print(f"{name:>15}: RMS cosine {shape.rms_cosine:.3f} = {shape.rms_cosine / chance:.2f} × chance")

# %% [markdown]
# **What we see.** Three things are worth saying before any picture.
#
# - *Before training* the numbers are those of random directions. Near-orthogonality at the start is no achievement; it is what $D$ dimensions give away for nothing.
# - *The rows below it* say what training does to that gift, without and with SO. The factor printed last is the honest way to say it: times chance, not "correlated" or "decorrelated".
# - *Coherence* is the worst of $C(C-1)/2$ pairs, so even random directions score far above $1/\sqrt D$ on it. Compare it with the random row, never with $1/\sqrt D$.
#
# While $C \le D$, the floor and the Welch bound are zero: nothing forbids orthogonal proxies. Standard Online Products has 11,318 training classes; there, both are positive, and the last row of the table becomes the one to look at.

# %% [markdown]
# ### Exercise 1 · The closest pair
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
    """The numbers (i, j) of the two different classes with the largest cosine."""
    return 0, 1  # your code here


def compare(closest_pair):
    i, j = closest_pair(shapes["PA"].cosines)
    names = runs["PA"].state["class_names"]
    print(f"{names[i]} and {names[j]}: " + ", ".join(f"{name} {shapes[name].cosines[i, j]:.4f}" for name in proxies))
    print(f"yours under PA {shapes['PA'].cosines[i, j]:.4f}, expected {geometry.off_diagonal(shapes['PA'].cosines).max():.4f}")


compare(closest_pair)
exercises.check("06.1", closest_pair)

# %% tags=["solution"]
def closest_pair(cosines):
    off = cosines - 2 * np.eye(len(cosines))  # the diagonal can no longer win
    return tuple(int(k) for k in np.unravel_index(off.argmax(), off.shape))


compare(closest_pair)
exercises.check("06.1", closest_pair)

# %% [markdown] tags=["slide"]
# ## 3 · The heatmap
#
# **Predict.** Species of the aviary belong to genera: the same silhouette and base colors, different field marks. If you saw all $C \times C$ cosines as a picture, ordered so that similar proxies stand together, what pattern would PA show? And PA+SO?
#
# Two heatmaps can be compared only when they share the order of the classes *and* the scale of the colors. Both are fixed here: the order is clustered on PA's cosines and used for both, the scale is centered on zero and common. The strip at the left shows the genus of each row. (On CUB, in full mode, the last word of the English name takes its place: all albatrosses, all sparrows.)

# %% tags=["slide"]
class_names = runs["PA"].state["class_names"]  # such as 007.Barred_Ambertail
genus = np.array([name.split("_")[-1] for name in class_names])  # (C,)
figures.proxy_heatmaps(proxies, groups=genus, difference=True)

# %% [markdown]
# The third panel is the difference, on the same scale: blue where SO took cosine away. Is it blue everywhere alike (a direction that all share was removed), or in blocks (relatives were driven apart)? Section 7 puts a number on this.
#
# Look at the strip first: where its color stays the same over neighboring rows, the clustering, which knows nothing of genera, has put a genus together. Then compare a block of the left panel with the same place at the right.
#
# One warning. The order was *fitted to PA*. Any set of cosines looks more structured in its own order than in another's, so the left panel has an advantage. A numerical comparison has no such advantage: mean cosine within a genus and between genera.

# %%
same_genus = genus[:, None] == genus[None, :]  # (C, C)
within = geometry.off_diagonal(same_genus).astype(bool)  # (C(C−1)/2,)
rows = {}
for name in ("before training", "PA", "PA+SO"):
    cosines = geometry.off_diagonal(shapes[name].cosines)
    rows[name] = {"within a genus": cosines[within].mean(), "between genera": cosines[~within].mean()}
rows = pd.DataFrame(rows).T
rows["difference"] = rows["within a genus"] - rows["between genera"]
print(f"{within.sum()} pairs within a genus, {(~within).sum()} between genera")
rows.round(3)

# %% [markdown]
# The difference in the last column is what the blocks in the heatmap are made of. Proxies are never told about genera: whatever difference there is came through the images, whose embeddings pull proxies of similar species into similar directions.

# %% [markdown] tags=["slide"]
# ## 4 · Angles, and what random directions would do
#
# The angle $\theta$ between two random directions in $D$ dimensions has the density
#
# $$p(\theta) \propto \sin^{D-2}\theta, \qquad \operatorname{std}(\cos\theta) = 1/\sqrt D .$$
#
# **Predict.** Is the histogram of PA's angles (a) the same bell, shifted; (b) the same place, wider; (c) with a tail to one side? What should SO do: narrow it, move it, or cut the tail?

# %% tags=["slide"]
figures.angle_histogram(proxies)

# %%
angles = {name: np.degrees(np.arccos(geometry.off_diagonal(shapes[name].cosines))) for name in shapes}
pd.DataFrame(
    {
        name: {
            "mean": values.mean(),
            "std": values.std(),
            "smallest": values.min(),
            "largest": values.max(),
            "share below 80°": (values < 80).mean(),
        }
        for name, values in angles.items()
    }
).T.round(2)

# %% [markdown]
# **Why.** SO is a mean of *squared* cosines, so it pulls hardest at the largest ones and does not care about their sign: a cosine of −0.4 costs as much as +0.4. It therefore narrows the histogram around 90° from both sides. Narrower than the gray curve is possible as long as $C \le D$: random directions are near-orthogonal by accident, optimized ones on purpose.
#
# What the histogram hides: *which* pairs sit in a tail. For that there is the heatmap. What the heatmap hides: how many pairs make up a faint background. For that there is the histogram.

# %% [markdown] tags=["slide"]
# ## 5 · The spectrum
#
# Let $\sigma_1 \ge \sigma_2 \ge \dots$ be the singular values of $\hat P$. Two identities connect them with what we had:
#
# $$\sum_k \sigma_k^2 = C, \qquad \lVert\hat P\hat P^\top - I\rVert_F^2 = \sum_k \sigma_k^4 - C .$$
#
# The first is fixed, so SO is small exactly when the $\sigma_k^2$ are equal: a flat spectrum. The effective rank (Roy and Vetterli, 2007) turns flatness into a count: with $q_k = \sigma_k / \sum_l \sigma_l$,
#
# $$\operatorname{erank}(\hat P) = \exp\Big(-\sum_k q_k \log q_k\Big).$$
#
# **Predict.** If all proxies shared one strong direction, what would the curve look like?

# %% tags=["slide"]
figures.spectra(proxies)

# %%
for name in ("PA", "PA+SO"):
    s = shapes[name].spectrum  # (min(C, D),)
    q = s / s.sum()
    erank = np.exp(-(q * np.log(q)).sum())
    print(f"{name:>6}: Σσ² = {np.sum(s**2):.2f} (C = {C});  Σσ⁴ − C = {np.sum(s**4) - C:.3f}, "
          f"‖P̂P̂ᵀ − I‖² = {shapes[name].orthogonality:.3f};  effective rank {erank:.2f};  "
          f"largest direction holds {s[0] ** 2 / C:.0%} of Σσ²")

# %% [markdown]
# A steep start of the curve means that a few directions are shared by many proxies; a low end means that some directions are hardly used at all. The last number of each line deserves a section of its own (section 7): how much does the strongest direction hold?

# %% [markdown] tags=["slide"]
# ## 6 · Over the epochs
#
# A run keeps its proxies after every epoch (`run.proxies(epoch)`; epoch 0 is before training), so we can watch.
#
# **Predict.** Does correlation build up at once, when the proxies with their high learning rate run ahead of the encoder, or gradually? Does SO slow its growth, or does it first let it grow and then undo it?

# %% tags=["slide"]
moved = {name: geometry.movement([run.proxies(line["epoch"]) for line in run.epochs]) for name, run in runs.items()}
figures.proxy_ribbons(moved, {name: [line.get("recall_at_1") for line in run.epochs] for name, run in runs.items()}, dim=D)

# %%
for name in runs:
    values = moved[name].rms_cosine
    steps = np.diff(values)
    print(f"{name:>6}: RMS cosine {values[0]:.3f} → {values[-1]:.3f}; largest change in epoch {np.abs(steps).argmax() + 1} "
          f"({steps[np.abs(steps).argmax()]:+.3f}); a proxy turned by {np.median(moved[name].from_start[-1]):.0f}° in all (median), "
          f"by {np.median(moved[name].step[-1]):.1f}° in the last epoch")

# %% [markdown]
# The first epoch is the warm-up: the backbone is frozen, and only head and proxies learn. What the curves do there is therefore about proxies finding their classes; what they do later is about encoder and proxies moving together.

# %% [markdown] tags=["slide"]
# ## 7 · The common mode: how much of it is one shared direction?
#
# Correlation can come in two kinds. Either particular pairs are close (two similar species), or *all* proxies share one direction, as umbrellas do in wind. The second kind is called a common mode. It is boring: one vector describes it. And it is cheap to measure, since the mean cosine depends on the mean proxy $\bar p = \frac1C\sum_i \hat p_i$ alone:
#
# $$\frac{1}{C(C-1)}\sum_{i \ne j} c_{ij} = \frac{C\lVert\bar p\rVert^2 - 1}{C - 1}.$$
#
# The RMS splits into mean and spread, $\text{rms}^2 = \text{mean}^2 + \text{variance}$, so $\text{mean}^2/\text{rms}^2$ is the fraction of SO that a common mode accounts for. A second, rougher way to ask: subtract $\bar p$ from every proxy, normalize, and describe again.
#
# **Predict.** What share will it be for PA: nearly nothing, about half, nearly all?

# %% tags=["slide"]
sets = {"random directions": rng.standard_normal((C, D)), **proxies}
rows = {}
for name, p in sets.items():
    before, after = geometry.describe(p), geometry.describe(geometry.without_common_mode(p))
    rows[name] = {
        "mean cosine": before.mean_cosine,
        "share of SO due to the mean": before.common_mode_share,
        "RMS cosine": before.rms_cosine,
        "… mean proxy subtracted": after.rms_cosine,
        "coherence": before.coherence,
        "… mean proxy subtracted ": after.coherence,
        "mean cosine afterwards": after.mean_cosine,
    }
pd.DataFrame(rows).round(3)

# %%
for name, p in proxies.items():
    unit = geometry.unit_rows(p)
    mean = unit.mean(axis=0)
    top = np.linalg.svd(unit, full_matrices=False)[2][0]  # (D,) strongest shared direction
    share = rows[name]["share of SO due to the mean"]
    left = rows[name]["… mean proxy subtracted"] / rows[name]["RMS cosine"]
    print(f"{name:>6}: the common mode accounts for {share:.0%} of SO; with the mean proxy subtracted {left:.0%} of the "
          f"RMS cosine is left; |cos(strongest direction, mean proxy)| = {abs(top @ mean) / np.linalg.norm(mean):.2f}")

# %% [markdown]
# **How to read this.** If the share is small, the correlation is *between particular classes*: removing one direction would not cure it, and a constraint on all pairs has something to do. If it is large, much of what a heatmap shows is one faint tint over everything, and subtracting one vector would remove it. What is left after the subtraction is the part that tells classes apart. (That the mean cosine then sits at about $-1/(C-1)$ is arithmetic, since centered vectors sum to zero, and not a finding.)
#
# The last number guards against a wrong shortcut: "the strongest direction" and "the mean direction" are the same only where it is near 1.
#
# **But why should all proxies share a direction?** Nothing in the loss asks for it. Here is a hypothesis. The second term of Proxy Anchor pushes each proxy away from the images of *all other* classes, which is to say from nearly all images. If the images have a common direction, every proxy is pushed against that same direction. **Predict** the sign of the cosine between the mean proxy and the mean image, then run.

# %%
def training_images(run):
    """The images whose classes have proxies, with labels in the order of the proxies."""
    config = run.config
    train = image_sets.load(config.dataset, "train", config.root, allow_partial=config.allow_partial, **config.options)
    return train.subset(np.isin(np.array(train.class_names)[train.labels], run.state["class_names"]))


images = training_images(runs["PA"])  # both runs hold out the same classes
embeddings = {name: embed(run.encoder().to(session.device), images, progress=False) for name, run in runs.items()}  # (N, D) each
for name in proxies:
    mean_image, mean_proxy = embeddings[name].mean(axis=0), geometry.unit_rows(proxies[name]).mean(axis=0)
    cosine = mean_image @ mean_proxy / np.linalg.norm(mean_image) / np.linalg.norm(mean_proxy)
    print(f"{name:>6}: cosine of mean proxy and mean image {cosine:+.2f}; two images of different classes have cosine "
          f"{(embeddings[name] @ embeddings[name].T)[images.labels[:, None] != images.labels].mean():+.2f} on average")

# %% [markdown] tags=["slide"]
# A clearly negative cosine is what the hypothesis says: the proxies point away from the images as a whole. That makes the common mode a property of the *pair* of images and proxies, and no sign that classes are mixed up: a direction which all images share does not change who is nearest to whom by much.
#
# ### How far are class means from their proxies?
#
# A proxy is often called the center of its class. It is not (notebook 07 draws it): the loss asks that it separates, not that it sits in the middle. *Neural collapse* (Papyan, Han and Donoho, 2020) names what happens when a classifier is trained to the very end: images collapse onto their class means (NC1 → 0), the means become equally long and equally far apart, a simplex with cosines $-1/(C-1)$ (NC2 → 0), and classifier and means become the same (NC3 → 0). With proxies in place of the classifier we can ask how far these runs are from that end.
#
# **Predict.** SO pushes proxies towards right angles. Does that bring the *class means* nearer to a simplex as well?

# %% tags=["slide"]
collapsed = {name: geometry.collapse(embeddings[name], images.labels, proxies[name]) for name in proxies}
pd.DataFrame({name: {"angle of class mean and proxy (°)": c.angle.mean(), "NC1: spread within / between": c.nc1, "NC2: unequal lengths": c.nc2_norms,
                     "NC2: distance from the simplex": c.nc2_angles, "NC3: means are not proxies": c.nc3} for name, c in collapsed.items()}).T.round(3)

# %%
for name in collapsed:
    means = geometry.describe(geometry.class_means(embeddings[name], images.labels, C))
    print(f"{name:>6}: RMS cosine of the proxies {shapes[name].rms_cosine:.3f}, of the class means {means.rms_cosine:.3f} "
          f"(without their common mode {means.rms_cosine_centred:.3f}; a simplex has {-shapes[name].simplex_cosine:.3f})")

# %% [markdown]
# Read the two columns of that print side by side. What SO was asked for, it did: the proxies. Whether the class means followed is a separate number, and retrieval sees images only.
#
# ### Exercise 2 · The mean cosine without any pair
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
    """Mean cosine of two different rows of `unit`, (C, D) rows of unit length."""
    return float("nan")  # your code here


print(f"yours {mean_cosine(geometry.unit_rows(proxies['PA'])):.6f}, expected {shapes['PA'].mean_cosine:.6f}")
exercises.check("06.2", mean_cosine)

# %% tags=["solution"]
def mean_cosine(unit):
    mean = unit.mean(axis=0)  # (D,)
    return float((len(unit) * mean @ mean - 1) / (len(unit) - 1))


print(f"yours {mean_cosine(geometry.unit_rows(proxies['PA'])):.6f}, expected {shapes['PA'].mean_cosine:.6f}")
exercises.check("06.2", mean_cosine)

# %% [markdown]
# ### Exercise 3 · Remove the common mode
#
# Write the centering yourself: subtract the mean proxy from unit proxies, then scale the rows to unit length again. What becomes of the RMS cosine of PA's proxies, and what of PA+SO's? Open end: subtract the first *two* principal directions instead. When is there nothing left to explain?
#
# <details><summary>Hint</summary>
#
# `unit.mean(axis=0)` is the mean proxy, (D,); NumPy subtracts it from every row.
#
# </details>

# %%
def without_lean(unit):
    """Unit proxies (C, D), their mean subtracted, of unit length again."""
    return unit  # your code here


for name, p in proxies.items():
    left = geometry.describe(without_lean(geometry.unit_rows(p)))
    print(f"{name:>6}: RMS cosine {shapes[name].rms_cosine:.3f}, without the common mode {left.rms_cosine:.3f}; chance {left.chance_cosine:.3f}")
exercises.check("06.3", without_lean)

# %% tags=["solution"]
def without_lean(unit):
    moved = unit - unit.mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


for name, p in proxies.items():
    left = geometry.describe(without_lean(geometry.unit_rows(p)))
    print(f"{name:>6}: RMS cosine {shapes[name].rms_cosine:.3f}, without the common mode {left.rms_cosine:.3f}; chance {left.chance_cosine:.3f}")
exercises.check("06.3", without_lean)

# %% [markdown] tags=["slide"]
# ## 8 · Does proxy cosine follow the look of the species?
#
# We drew the birds, so we know what they have in common: thirteen field marks (cap, wing bars, leg color …) beside the genus. If proxies carry meaning, species that share more marks should have closer proxies.
#
# There is a trap in the statistics. $C$ proxies make $C(C-1)/2$ pairs, and those are not independent: one odd species spoils $C - 1$ of them. A textbook p-value for that many pairs would be far too sure of itself. The remedy is to shuffle *classes*, not pairs: rename the species at random, compute Spearman's ρ again, and see what range of ρ pure chance gives (Mantel's test).
#
# **Predict.** Is ρ larger under PA or under PA+SO? SO asks for all cosines to be small; it does not ask for their *order* to change.

# %% tags=["slide"]
def shared_marks(class_names, options):
    """(C, C) number of field marks two species have in common."""
    known = {"species": 100, "seed": 0} | options
    species = aviary.attributes(known["species"], seed=known["seed"])
    marks = species.loc[[int(name.partition('.')[0]) - 1 for name in class_names], list(aviary.CHOICES)].to_numpy()
    return (marks[:, None] == marks[None, :]).sum(axis=2)


def rho(a, b, chosen=slice(None)):
    """Spearman's rank correlation over pairs of classes."""
    return float(spearmanr(geometry.off_diagonal(a)[chosen], geometry.off_diagonal(b)[chosen]).statistic)


def renamed(within_genus):
    """The classes in another order: any, or one that exchanges only species of the same genus."""
    if not within_genus:
        return generator.permutation(C)
    order = np.arange(C)
    for name in np.unique(genus):
        members = np.flatnonzero(genus == name)
        order[members] = generator.permutation(members)
    return order


def chance_range(a, b, chosen=slice(None), within_genus=False, rounds=400):
    """The middle 95 % of ρ when the classes of b are renamed at random (Mantel)."""
    orders = [renamed(within_genus) for _ in range(rounds)]
    low, high = np.quantile([rho(a, b[np.ix_(order, order)], chosen) for order in orders], [0.025, 0.975])
    return f"{low:+.2f} … {high:+.2f}"


generator = np.random.default_rng(0)
looks = {"same genus": same_genus.astype(float)}
if session.quick:  # the marks are known for birds that we drew
    marks = looks["shared field marks"] = shared_marks(class_names, runs["PA"].config.options)

rows = []
for look, similarity in looks.items():
    for name in ("before training", "PA", "PA+SO"):
        rows.append([look, name, rho(shapes[name].cosines, similarity), chance_range(shapes[name].cosines, similarity)])
pd.DataFrame(rows, columns=["proxy cosine against", "proxies", "Spearman ρ", "by chance (95 %)"]).round(3)

# %% [markdown]
# The row "before training" is the control: random proxies know nothing of birds, and ρ has to fall inside the range of chance (in about one draw out of twenty it does not).
#
# A finer question remains. Species of one genus share most of their marks anyway, so "shared marks" may only repeat "same genus". Does the number of shared marks still matter *among pairs of the same genus*?

# %%
if session.quick:
    shown = figures.attribute_lens(proxies, marks, what=f"field marks in common, of {len(aviary.CHOICES)}")
else:
    shown = None
    print("The field marks are known for the drawn birds only: see quick mode.")
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
            "by chance (95 %)": chance_range(cosines, marks, within, within_genus=True),
            "ρ, pairs of different genera": round(rho(cosines, marks, ~within), 2),
        }
    shown = pd.DataFrame(rows).T
shown

# %% [markdown]
# For the pairs of one genus, species are renamed only within their genus. Look how wide that range of chance is: the pairs are few, and they share species. Judge each row against its range, and the ranges with the row "before training" in mind: those proxies are random numbers, so whatever their ρ is, it is luck. If it lies outside its range, you are looking at one of the five in a hundred, and at the reason why a lone ρ just outside a range is no discovery either. (A range need not be centered on zero: genera that are more alike as a whole stay so when their members swap names.)
#
# **Why it is not obvious what to wish for.** A proxy cosine that follows likeness is knowledge: the model has noticed that two species are relatives. SO pays for taking some of that knowledge out of the proxies. Whether it was *useful* knowledge for retrieval cannot be read from proxies at all. We have to look at images.

# %% [markdown] tags=["slide"]
# ## 9 · Does it matter?
#
# The claim behind soft orthogonality is that proxies which sit close together make their classes hard to tell apart. That can be tested. For every pair of training classes we have the cosine of their proxies; and we can count how often their images are mixed up in retrieval:
#
# $$\text{confusion}_{ij} = \text{share of the } R \text{ nearest images of class } i\text{'s images that belong to class } j,$$
#
# with $R$ the number of relevant images there are (images per class less the query itself).
#
# A caveat that no reader should have to find alone: *test classes have no proxies*. They were never trained on; that is the whole point of the benchmark. So this test uses training classes and training images, where confusion is smaller than in earnest.
#
# **Predict.** The sign of ρ, under PA and under PA+SO.

# %%
def confusion(embeddings, labels, k):
    """(C, C) share of the k nearest images of class i's images that are of class j."""
    _, found = retrieval.nearest_neighbors(embeddings, k)  # (N, k), the query itself left out
    counts = np.zeros((labels.max() + 1, labels.max() + 1))
    np.add.at(counts, (labels[:, None], labels[found]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


R = int(np.bincount(images.labels).min()) - 1
confusions = {name: confusion(e, images.labels, R) for name, e in embeddings.items()}
for name, matrix in confusions.items():
    print(f"{name:>6}: {1 - np.diag(matrix).mean():.1%} of the {R} nearest images are of another class")

# %% tags=["slide"]
figures.confusion_vs_cosine(shapes["PA"].cosines, confusions["PA"], name="PA")

# %%
figures.confusion_vs_cosine(shapes["PA+SO"].cosines, confusions["PA+SO"], name="PA+SO")

# %%
def both_ways(matrix):
    return (matrix + matrix.T) / 2


rows = {}
for name in proxies:
    cosines, mixed = shapes[name].cosines, both_ways(confusions[name])
    rows[name] = {
        "ρ, all pairs": round(rho(cosines, mixed), 2),
        "by chance (95 %)": chance_range(cosines, mixed),
        "ρ, pairs of one genus": round(rho(cosines, mixed, within), 2),
        "by chance (95 %) ": chance_range(cosines, mixed, within, within_genus=True),
        "ρ, pairs of different genera": round(rho(cosines, mixed, ~within), 2),
    }
pd.DataFrame(rows).T

# %% [markdown] tags=["slide"]
# **Correlation, and then?** A positive ρ says that close proxies and mixed-up images go together. It does not say which makes which: two look-alike species would give close proxies *and* mixed-up images, with no arrow from one to the other. The column "pairs of one genus" takes part of the likeness out of the comparison, not all of it.
#
# But we own something better than a correlation: an intervention. SO pushed proxies apart by force. If close proxies *caused* confusion, then the pairs whose cosine SO lowered most should be those whose confusion fell most.

# %% tags=["slide"]
change_of_cosine = shapes["PA+SO"].cosines - shapes["PA"].cosines
change_of_confusion = both_ways(confusions["PA+SO"]) - both_ways(confusions["PA"])
value = rho(change_of_cosine, change_of_confusion)
by_chance = chance_range(change_of_cosine, change_of_confusion)
low, high = map(float, by_chance.split(" … "))
print(f"change of cosine against change of confusion: ρ = {value:+.2f}; chance gives {by_chance}")
close = np.quantile(geometry.off_diagonal(shapes["PA"].cosines), 0.9)
pairs = geometry.off_diagonal(shapes["PA"].cosines) >= close
for name in proxies:
    print(f"{name:>6}: the tenth of pairs that is closest under PA has a mean cosine of "
          f"{geometry.off_diagonal(shapes[name].cosines)[pairs].mean():+.3f} and a mean confusion of "
          f"{geometry.off_diagonal(both_ways(confusions[name]))[pairs].mean():.4f} (all pairs {geometry.off_diagonal(both_ways(confusions[name])).mean():.4f})")
if low <= value <= high:
    print("→ No sign that pushing two proxies apart separates their images: ρ lies within what chance gives.")
else:
    print(f"→ Pairs whose proxies SO pushed apart became {'less' if value > 0 else 'more'} often confused than the others.")

# %% [markdown]
# The sentence after the arrow is computed, and it is about *one* pair of runs on training images. Whether any of this reaches new species, over several seeds and with an interval, is the question of notebook 08. Geometry is a diagnosis, retrieval is the outcome: never report the first as if it were the second.

# %% [markdown]
# ## Summary
#
# - Hold every geometric number against two others: what random directions give ($1/\sqrt D$ for the RMS cosine) and what no set can beat (the floor, the Welch bound).
# - Heatmap, histogram and spectrum show the same matrix: *which* pairs, *how many* pairs, *how many directions*. Fix order and scale before comparing two of them.
# - $\text{rms}^2 = \text{mean}^2 + \text{variance}$ separates the common mode of all proxies from closeness of particular pairs; the mean proxy alone gives the first.
# - Proxies know about likeness only through images. Pairs of classes are not independent: shuffle classes to see what chance gives.
# - What SO changed: the proxies. What it need not have changed: the class means, and who is nearest to whom. The tables of section 7 and the arrow of section 9 say what it was this time.
# - Close proxies and confused images can go together without one making the other; what SO changed, compared pair by pair, is a better test than the correlation itself.
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
# ## Further reading
#
# - F. Saberi-Movahed et al., [Deep Metric Learning with Soft Orthogonal Proxies](https://arxiv.org/abs/2306.13055), 2023: the idea this course is built around, that proxies should be as orthogonal as possible. We know its abstract, not its figures; the geometry shown here is our own.
# - S. Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020: where the proxies come from.
# - N. Bansal, X. Chen, Z. Wang, [Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?](https://arxiv.org/abs/1810.09102), NeurIPS 2018: soft orthogonality on network weights, and its relatives.
# - V. Papyan, X. Y. Han, D. Donoho, Prevalence of neural collapse during the terminal phase of deep learning training, PNAS 2020: NC1 to NC3.
# - O. Roy, M. Vetterli, The effective rank, EUSIPCO 2007: the count used in section 5, with its properties.
# - L. Welch, Lower bounds on the maximum cross correlation of signals, IEEE Transactions on Information Theory, 1974: why coherence cannot vanish once there are more vectors than dimensions.
