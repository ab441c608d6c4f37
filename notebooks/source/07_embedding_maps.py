# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Embedding maps
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/07_embedding_maps.ipynb)
#
# Notebook 06 looked at proxies in numbers, and ended with two cones: images on one side, proxies on the other. This notebook looks at the images. Every paper on metric learning has a picture with colored islands; we make such pictures, and then check what they can be trusted with.
#
# **What you will learn**
#
# - to lay embeddings out in the plane, linearly (PCA) and by neighborhood (UMAP), and what each of the two keeps;
# - to measure how far a map can be trusted: trustworthiness, shared neighbors, Recall@1 on the map itself;
# - what distances, sizes and gaps in a UMAP mean, and what changes with seed and settings;
# - where the proxies lie among the embeddings of their own classes, and why test classes have none;
# - what no map can show: hubs, failing queries, which model is better.
#
# **Before you start** Notebooks 04 and 05 for the two models, 06 for the proxies. Nearest neighbors by cosine are all the mathematics needed.
#
# **Time** About a minute of computing on a two-core laptop.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from sobook import figures, geometry
from sobook.course.aviary import microscope
from sobook.course import exercises
from sobook.course.predictions import predict, reveal
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.course.pages import explorer
from sobook.losses import SO_WEIGHT
from sobook.retrieval import evaluate, nearest_neighbors

plt.rcParams["figure.dpi"] = 66  # many maps: a small notebook

# %% [markdown] tags=["slide"]
# ## 1 · One set of pictures, two spaces
#
# The two runs are those of the other notebooks. Of the test images we take the same number of each class, some hundreds in all: enough to see everything a map has to say, few enough to make a dozen of them.

# %%
runs = {
    "PA": session.fit(session.config(so_weight=0.0)),
    "PA+SO": session.fit(session.config(so_weight=SO_WEIGHT)),
}
config = runs["PA"].config


def some_images(split, classes=None, total=750):
    """About `total` images, equally many of each class; of those named."""
    images = image_sets.load(
        config.dataset,
        split,
        config.root,
        allow_partial=config.allow_partial,
        **config.options,
    )
    if classes is not None:
        names = np.array(images.class_names)[images.labels]
        images = images.subset(np.isin(names, classes))
    each = max(2, total // images.num_classes)
    order = np.arange(len(images))
    place = order - np.searchsorted(images.labels, images.labels)
    return images.subset(order[place < each])


test = some_images("test")
spaces = {
    name: embed(run.encoder().to(session.device), test, progress=False)
    for name, run in runs.items()
}  # (N, D) each
N, D = spaces["PA"].shape
names = [n.partition(".")[2].replace("_", " ") for n in test.class_names]
genus = np.array([n.split("_")[-1] for n in test.class_names])  # (C,)
genera, genus_of = np.unique(genus, return_inverse=True)
print(f"{N:,} images of {test.num_classes} test classes in {D} dimensions")
for name, points in spaces.items():
    print(f"{name}: {evaluate(points, test.labels)}")

# %% [markdown]
# (These recalls are not those of notebook 08, where every test image takes part: here a query has fewer wrong images to meet, but fewer right ones as well.)

# %% [markdown] tags=["slide"]
# ## 2 · The best flat picture: PCA
#
# PCA projects onto the plane in which the points vary most. It is linear: straight lines stay straight, nothing is torn, and the fraction of the variance kept says how much the picture holds.
#
# **Predict.** If the embeddings filled their $D$ dimensions evenly, two of them would hold $2/D$ of the variance. How much do they hold here, as a fraction, for PA?

# %%
predict("07.a", None)


# %% tags=["slide"]
def variance_kept(points):
    """(min(N, D),) fraction of the variance in the first k directions."""
    fitted = PCA(svd_solver="full").fit(points)
    return np.cumsum(fitted.explained_variance_ratio_)


kept = {name: variance_kept(points) for name, points in spaces.items()}
said = [
    f"{name}: the first 2 directions hold {values[1]:.0%}, the first 10 hold "
    f"{values[9]:.0%}"
    for name, values in kept.items()
]
reveal(
    "07.a",
    f"evenly filled, 2 of {D} directions would hold {2 / D:.1%}",
    *said,
    truth=kept["PA"][1],
)

# %% [markdown]
# Colors are genera, fifty species being too many for colors; below each map, the part in the frame is enlarged, and one genus shown by species: each has a shape and a color of its own there, which have nothing to do with the genera above:

# %%
largest = int(np.bincount(genus_of[test.labels]).argmax())
inset = (largest, test.labels, f"{genera[largest]}, by species")
by_genus = {"class_names": genera, "inset": inset}
figures.embedding_maps(spaces, genus_of[test.labels], method="pca", **by_genus)

# %% [markdown]
# Look for one color and ask whether it is alone in its place; then, in the enlarged part, whether a species is. Mostly it is not: you could hardly retrieve anything by looking, although the nearest neighbor in the full space is right far more often, as section 1 printed. The plane is honest and too small. What overlaps here is the shadow; in other directions the classes are apart. How many other directions is a question of its own, and the answer is not $D$:
#
# ### Exercise 1 · Warm-up: how many directions?
#
# How many principal components does it take to keep 90 % of the variance of PA's embeddings? Use `variance_kept`.
#
# <details><summary>Hint</summary>
#
# `variance_kept` rises: `np.searchsorted` finds the place where it reaches the fraction, counted from 0.
#
# </details>


# %%
def directions_for(share, points):
    """The fewest principal components that keep `share` of the variance."""
    return float("nan")  # your code here


expected = PCA(0.9, svd_solver="full").fit(spaces["PA"]).n_components_
print(f"yours {directions_for(0.9, spaces['PA'])}, expected {expected}")
exercises.check("07.1", directions_for)


# %% tags=["solution"]
def directions_for(share, points):
    kept = variance_kept(points)
    return int(np.searchsorted(kept, share, side="right")) + 1


print({name: directions_for(0.9, points) for name, points in spaces.items()})
print(f"yours {directions_for(0.9, spaces['PA'])}, expected {expected}")
exercises.check("07.1", directions_for)

# %% [markdown] tags=["slide"]
# ## 3 · The neighborhood map: UMAP
#
# UMAP gives up on straight lines and keeps neighbors. It joins every point to its $k$ nearest ones with weights that fall off from 1 at the nearest,
#
# $$w_{j \mid i} = \exp\!\big(-\max(0,\, d_{ij} - \rho_i)/\sigma_i\big), \qquad w_{ij} = w_{j\mid i} + w_{i\mid j} - w_{j\mid i}\,w_{i\mid j},$$
#
# where $\rho_i$ is the distance to the nearest neighbor and $\sigma_i$ is set so that every point has about the same total weight. Then it looks for places in the plane whose own weights $v_{ij} = 1/(1 + a\,\lVert y_i - y_j\rVert^{2b})$ fit, by pulling joined points together and pushing random other ones apart.
#
# Two things follow from the formulas, before any picture. Because each point brings its own $\rho_i$ and $\sigma_i$, **density is evened out**. And because only the $k$ nearest are joined, **no term asks for the distance between two islands**: what there is of it comes from the few edges between them and from the start of the layout, which UMAP takes from the graph as a whole. Section 5 measures how much that is.
#
# Will the PA+SO map look more orderly than the PA map? Decide before you look, and decide what "more orderly" would mean.
#
# (UMAP's numerical code is compiled once, by `make install` or else before the first map, which then takes some ten seconds longer. The neighbors are exact ones, handed to UMAP ready-made; by itself, it would search them approximately.)

# %% tags=["slide"]
figures.embedding_maps(spaces, genus_of[test.labels], **by_genus)

# %% [markdown]
# Each model has its own map, fitted on its own; the same place in both means nothing. What may be compared: whether a color forms one island or several, whether islands touch, how many stray points sit in a foreign color. Islands here are genera; what a search has to tell apart, species, shows in the enlarged part only.
#
# It is tempting to go on and say which model is better. Resist for a section.

# %% [markdown] tags=["slide"]
# ## 4 · How far to trust it: three numbers
#
# **Shared neighbors.** Of the $k$ nearest images in $D$ dimensions, which fraction are among the $k$ nearest on the map?
#
# **Trustworthiness** (Venna and Kaski) asks whether neighbors on the map are true ones, and counts a false one by how far away it really is. With $U_i$ the false neighbors of point $i$ and $r_{ij}$ their rank in the space,
#
# $$T = 1 - \frac{2}{Nk(2N - 3k - 1)} \sum_i \sum_{j \in U_i} (r_{ij} - k).$$
#
# Exchange map and space and it is called **continuity**: are true neighbors still neighbors on the map, or was something torn?
#
# **Recall@1 on the map.** If the plane were our embedding, how good would retrieval be?
#
# **Predict** the fraction of shared neighbors ($k = 15$) on the UMAP of PA.

# %%
predict("07.b", None)

# %% [markdown]
# ### Exercise 2 · Find the bug: shared neighbors
#
# A colleague computes the first of the three numbers. `near` and `near_on_map` are (N, k) arrays of indices; the order within a row does not matter. The result looks excellent for every map. What is wrong?
#
# <details><summary>Hint</summary>
#
# `near[:, :, None] == near_on_map[:, None, :]` compares each index with all of the same row.
#
# </details>

# %%
K = 15


def shared_neighbors(near, near_on_map):
    """Mean fraction of a row of `near` that is in that row of `near_on_map`."""
    return float(np.isin(near, near_on_map).mean())


small = (
    np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3]]),
    np.array([[3, 2, 1], [0, 4, 5], [4, 5, 6]]),
)
print(f"yours {shared_neighbors(*small):.4f}, expected {4 / 9:.4f}")
exercises.check("07.2", shared_neighbors)


# %% tags=["solution"]
def shared_neighbors(near, near_on_map):
    alike = near[:, :, None] == near_on_map[:, None, :]  # (N, k, k)
    return float(alike.any(axis=2).mean())


print(f"yours {shared_neighbors(*small):.4f}, expected {4 / 9:.4f}")
exercises.check("07.2", shared_neighbors)


# %%
def nearest_on_map(plane, k):
    """(N, k) nearest points in the plane, the point itself left out."""
    index = NearestNeighbors(n_neighbors=k).fit(plane)
    return index.kneighbors(return_distance=False)


def overlap(near, near_on_map):  # as in the exercise, another way
    shared = [
        len(np.intersect1d(a, b))
        for a, b in zip(near, near_on_map, strict=True)
    ]
    return float(np.mean(shared)) / near.shape[1]


def judge(points, plane, labels):
    unit = geometry.unit_rows(points)  # then distances order as cosines do
    near = nearest_neighbors(points, K)[1]
    on_map = nearest_on_map(plane, K)
    return {
        "trustworthiness": trustworthiness(unit, plane, n_neighbors=K),
        "continuity": trustworthiness(plane, unit, n_neighbors=K),
        f"shared of {K} neighbors": overlap(near, on_map),
        "Recall@1 in the space": (labels[near[:, 0]] == labels).mean(),
        "Recall@1 on the map": (labels[on_map[:, 0]] == labels).mean(),
    }


maps = {}
for name, points in spaces.items():
    maps[name, "PCA"] = figures.project(points, method="pca")
    maps[name, "UMAP"] = figures.project(points)  # as drawn in section 3
judged = pd.DataFrame(
    {key: judge(spaces[key[0]], m, test.labels) for key, m in maps.items()}
).T
reveal(
    "07.b",
    judged.round(2),
    truth=judged.loc[("PA", "UMAP"), f"shared of {K} neighbors"],
)

# %% [markdown]
# **What we see.** Trustworthiness is a forgiving number: a false neighbor which is really the thirtieth nearest of many hundreds costs it next to nothing. Shared neighbors and Recall@1 are strict, and they are what retrieval is about. Quote all three, or the strict ones.
#
# In the committed run the trustworthiness of both UMAPs is 0.99; yet only 0.64 of a point's neighbors are kept on either.
#
# And mind the last two columns: the difference between PA and PA+SO *on the map* need not be the difference between PA and PA+SO in the space. The map is one more noisy instrument.

# %% [markdown] tags=["slide"]
# ## 5 · What a map shows that is not there
#
# Three habits of reading a UMAP, each tested on the maps above.
#
# 1. *"These two islands are far apart, so the classes are very different."* If so, the distances between class centers on the map should follow those in the space.
# 2. *"This island is large, so the class is diverse."* Then the spread of a class on the map should follow its spread in the space.
# 3. *"There are clear clusters, so the model has found structure."* Then a map of structureless points should have none.
#
# **Predict** Spearman's ρ between distances of classes in the space and on the UMAP of PA (1: same order, 0: unrelated).

# %%
predict("07.c", None)


# %% tags=["slide"]
def centers_and_spreads(points, labels):
    """Class means (C, ·) and each class' mean distance from its own (C,)."""
    centers = np.stack(
        [points[labels == c].mean(axis=0) for c in np.unique(labels)]
    )
    spread = [
        np.linalg.norm(points[labels == c] - m, axis=1).mean()
        for c, m in enumerate(centers)
    ]
    return centers, np.array(spread)


rows = {}
for (name, kind), plane in maps.items():
    space = geometry.unit_rows(spaces[name])
    true_centers, true_spread = centers_and_spreads(space, test.labels)
    centers, spread = centers_and_spreads(plane, test.labels)
    rows[name, kind] = {
        "distances between classes": spearmanr(
            pdist(true_centers), pdist(centers)
        ).statistic,
        "sizes of classes": spearmanr(true_spread, spread).statistic,
    }
reveal(
    "07.c",
    "Spearman ρ between the space and the map",
    pd.DataFrame(rows).T.round(2),
    truth=rows["PA", "UMAP"]["distances between classes"],
)

# %% [markdown]
# On both UMAPs, ρ of the distances is below that of PCA, which UMAP is supposed to beat. (The last digits of a UMAP differ from machine to machine, so read them off the table.) So a UMAP does keep coarse distances in part, more than its formula asks for: islands of relatives tend to be on the same continent. But such a ρ means that many pairs of classes stand in the wrong order, and sizes are worse: evening out density is what $\rho_i$ and $\sigma_i$ are for.
#
# Now the third habit. Below are *random directions*, with no classes at all, mapped with the least possible number of neighbors, with one more, and with the usual number. (UMAP counts a point among its own neighbors, so 2 means: one other.)

# %%
noise = np.random.default_rng(session.seed).standard_normal((500, D))
noise_maps = {k: figures.project(noise, n_neighbors=k) for k in (2, 3, 15)}
figure = figures.new_figure(11, 4.1)
for axis, (k, plane) in zip(
    figure.subplots(1, 3), noise_maps.items(), strict=True
):
    axis.scatter(*plane.T, s=8, color=figures.COLORS["chance"], lw=0)
    axis.set(xticks=[], yticks=[], xlabel=f"UMAP, {k} neighbors")
    axis.set_title("random directions")
figures.finish(
    figure,
    "UMAP maps of 500 random directions with 2, 3 and 15 neighbors: many small"
    " islands, then filaments, then one cloud without structure.",
)

# %%
near = nearest_neighbors(noise, K)[1]
unit = geometry.unit_rows(noise)
for k, plane in noise_maps.items():
    trust = trustworthiness(unit, plane, n_neighbors=K)
    shared = overlap(near, nearest_on_map(plane, K))
    print(f"{k:>2} neighbors: trustworthiness {trust:.2f}, ", end="")
    print(f"{shared:.0%} of the {K} neighbors shared")

# %% [markdown]
# With very few neighbors, pure noise has islands and filaments: UMAP has to put joined points together, and chance joins some. With the usual number it has none: here the picture tells the truth. So of the three habits the third is the safest, *if* the setting is an ordinary one and stated. The numbers give noise away under all three: trustworthiness and shared neighbors are far below those of the real maps.

# %% [markdown] tags=["slide"]
# ## 6 · Another seed, another map
#
# The same points, two seeds, three values of $k$: what stays, what moves? **Predict** the fraction of a point's 15 neighbors on the map that a change of *seed* alone leaves in place.

# %%
predict("07.d", None)

# %% tags=["slide"]
points = spaces["PA+SO"]
panel = {
    (k, seed): figures.project(points, n_neighbors=k, seed=seed)
    for k, seed in ((5, 0), (5, 1), (15, 1), (50, 0))
}
panel[15, 0] = maps["PA+SO", "UMAP"]  # this one we have
drawn = figures.map_panel(points, genus_of[test.labels], class_names=genera)


# %%
def agreement(one, other):
    """Do two maps of the same points agree?"""
    centers = [centers_and_spreads(m, test.labels)[0] for m in (one, other)]
    return {
        f"shared of {K} neighbors": overlap(
            nearest_on_map(one, K), nearest_on_map(other, K)
        ),
        "ρ of distances between classes": spearmanr(
            pdist(centers[0]), pdist(centers[1])
        ).statistic,
    }


pairs = {
    "another seed (15 neighbors)": ((15, 0), (15, 1)),
    "another seed (5 neighbors)": ((5, 0), (5, 1)),
    "5 against 15 neighbors": ((5, 0), (15, 0)),
    "15 against 50 neighbors": ((15, 0), (50, 0)),
}
agreed = pd.DataFrame(
    {what: agreement(panel[a], panel[b]) for what, (a, b) in pairs.items()}
).T
reveal(
    "07.d",
    drawn,
    agreed.round(2),
    truth=agreed.iloc[0, 0],
)

# %% [markdown]
# **What we see.** Islands mostly keep their members and change their places. A change of seed alone, with nothing learned and nothing lost, replaces part of a point's neighborhood and reorders the distances between classes. A difference between *models* which is no larger than this difference between *seeds* is not a difference. And the number of islands depends on $k$: it is partly a setting, not only a discovery.

# %% [markdown] tags=["slide"]
# ## 7 · Where are the proxies?
#
# Test classes have **no proxies**: proxies are parameters of the training loss, one for each training class, and the test classes were never part of it. Anyone who draws proxies among test embeddings draws those of *other* classes. So for this section we change to training images.
#
# In the loss, image and proxy of a class attract each other. **Predict** the mean cosine of an image with its own proxy, under PA: near 1, about a half, near 0?

# %%
predict("07.e", None)

# %% tags=["slide"]
train = some_images("train", classes=runs["PA"].state["class_names"], total=600)
trained = {
    name: embed(run.encoder().to(session.device), train, progress=False)
    for name, run in runs.items()
}  # (N, D) each
proxies = {name: run.proxies().numpy() for name, run in runs.items()}  # (C, D)


def where_proxies_lie(name):
    """Cosines of images, proxies and both, and who is nearest to whom."""
    x, p = geometry.unit_rows(trained[name]), geometry.unit_rows(proxies[name])
    to_proxies, to_images = x @ p.T, x @ x.T  # (N, C) and (N, N)
    same = train.labels[:, None] == train.labels[None, :]
    others = same & ~np.eye(len(x), dtype=bool)
    own = np.arange(len(p)) == train.labels[:, None]  # (N, C)
    closest = train.labels[to_proxies.argmax(axis=0)]  # (C,) class of an image
    to_other = (p @ p.T - 2 * np.eye(len(p))).max(axis=1)  # (C,) nearest proxy
    return {
        "cosine image – own proxy": to_proxies[own].mean(),
        "cosine image – other proxies": to_proxies[~own].mean(),
        "cosine image – image, same class": to_images[others].mean(),
        "cosine image – image, other class": to_images[~same].mean(),
        "images whose nearest proxy is their own": (
            to_proxies.argmax(axis=1) == train.labels
        ).mean(),
        "proxies whose nearest image is of their class": (
            closest == np.arange(len(p))
        ).mean(),
        "proxies nearer to another proxy than to any image": (
            to_other > to_proxies.max(axis=0)
        ).mean(),
    }


rows = {name: where_proxies_lie(name) for name in runs}
reveal(
    "07.e",
    pd.DataFrame(rows).round(2),
    truth=rows["PA"]["cosine image – own proxy"],
)

# %%
of_proxy = np.array([n.split("_")[-1] for n in train.class_names])  # (C,)
kinds, kind_of = np.unique(of_proxy, return_inverse=True)
proxy_maps = figures.embedding_maps(
    trained,
    kind_of[train.labels],
    proxies=proxies,
    proxy_labels=kind_of,
    class_names=kinds,
)
proxy_maps

# %% [markdown]
# Every star is the proxy of one species, and has the color of its genus. Look at whether stars sit on islands of their own color, or keep to themselves.
#
# **Why a proxy is not the mean of its class.** Proxy Anchor does not ask for cosines near 1. It asks an image to have a cosine above $+\delta$ with its own proxy and below $-\delta$ with all others, where $\delta$ is small; there are many others, so their push can win over the one pull. What counts is which *side* of zero an image is on. A proxy is therefore less like a flag in the middle of its class than like the normal vector of a plane that has its class on one side and the rest on the other: a linear classifier. Compare the first row of the table with the third: images are far closer to their classmates than to their proxy.
#
# **And why may the two maps look so different?** Look at the last row of the table. UMAP sees neighbors only. Where a proxy's nearest points are other proxies, the stars gather on an island of their own, as under PA: one on top of the other, so that little but their black outlines can be seen. Where its nearest points are images, stars sit among these. A modest change of cosines flips which is nearer, and the picture flips with it. However striking such a difference looks, it has this plain reason, and it says nothing about retrieval, in which proxies take no part.

# %%
rows = {}
for name in runs:
    x, p = geometry.unit_rows(trained[name]), geometry.unit_rows(proxies[name])
    means = geometry.class_means(x, train.labels, len(p))
    means = geometry.unit_rows(means)
    rows[name] = {
        "cosine of proxy and class mean": np.mean((means * p).sum(axis=1)),
        "RMS cosine of proxies": geometry.describe(p).rms_cosine,
        "RMS cosine of class means": geometry.describe(means).rms_cosine,
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# SO acts on *proxies*, and the RMS cosine of proxies follows. In the committed run that of the class means goes the other way, from 0.59 to 0.72; and it is images, not proxies, that retrieval sees.

# %% [markdown]
# ### Both in one page
#
# The same map with everything linked to it: click a point, and its nearest images under both runs appear below; move the slider, and the stars go their way from chance to where they ended. Hollow dots are test species, which have no star. Images and kept proxies of a run are *one* fit; stars of other epochs are put onto that map by their nearest images, and the second run's map is turned onto the first one's, so that switching runs moves points as little as possible.

# %%
explorer.from_runs(list(runs.values()), classes=14, per_class=6).beside(
    proxy_maps, height=1000
)

# %% [markdown]
# ### The queries that changed
#
# A map shows thousands of points and no reasons. A retrieval wall shows four queries and all of the reasons. PA stands above PA+SO. First those *fixed by SO* (wrong before, right after), then those *broken by SO*. A wall of the first kind alone would be advertising: count both.

# %%
found = {name: nearest_neighbors(x, 6)[1] for name, x in spaces.items()}
right = {
    name: test.labels[f] == test.labels[:, None] for name, f in found.items()
}
fixed, broken = (
    figures.pick_queries(which, right, N) for which in ("fixed", "broken")
)
both = right["PA"][:, 0] & right["PA+SO"][:, 0]
neither = ~right["PA"][:, 0] & ~right["PA+SO"][:, 0]
print(f"of {N} queries, right under both {both.sum()}, ", end="")
print(f"wrong under both {neither.sum()}, ", end="")
print(f"fixed by SO {len(fixed)}, broken by SO {len(broken)}")

# %%
pictures = pixels.decode(test, 64, progress=False)


def wall(which, number=3):
    chosen = figures.pick_queries(
        which,
        right,
        number,
        gallery_labels=test.labels[found["PA+SO"]],
        labels=test.labels,
    )
    shown = {name: f[chosen] for name, f in found.items()}  # (Q, 6) each
    notes = {
        name: microscope.name_mistakes(test, chosen, rows)
        for name, rows in shown.items()
    }
    return figures.retrieval_comparison(
        [pictures[i] for i in chosen],
        {
            n: [[pictures[j] for j in row] for row in f]
            for n, f in shown.items()
        },
        {name: r[chosen] for name, r in right.items()},
        titles=[names[test.labels[i]] for i in chosen],
        captions={name: words for name, (words, _) in notes.items()},
        spots={name: circles for name, (_, circles) in notes.items()},
    )


wall("fixed") if len(fixed) else print("none was fixed")

# %%
wall("broken") if len(broken) else print("none was broken")

# %% [markdown]
# Circles show the marks in which a wrong relative differs from the query. `wall("hardest")` and `wall("confused")` show the queries with the fewest relevant images, and those of the pair of species that is mixed up most.

# %% [markdown] tags=["slide"]
# ## 8 · What a map cannot show
#
# - **That a model is better.** Retrieval quality is a number over all queries; a map is one seed of one layout of some of them. Use Recall@1 with an interval (notebook 08).
# - **Orthogonality of proxies.** Forty directions at right angles have no arrangement in the plane which shows it; the heatmap of notebook 06 does.
# - **Distances, sizes and gaps.** Tested in section 5.
# - **Hubs.** In many dimensions some images are among the nearest neighbors of very many others, and some of none. On a map every point looks alike. How many queries does an image answer, among their ten nearest?

# %% tags=["slide"]
K_HUB = 10
rows = {}
for name, points in spaces.items():
    listed = np.bincount(
        nearest_neighbors(points, K_HUB)[1].ravel(), minlength=N
    )  # (N,) in how many lists an image is; 10 on average
    spread = listed - listed.mean()
    rows[name] = {
        "most often listed": listed.max(),
        "never listed": f"{(listed == 0).mean():.0%}",
        "skewness": round((spread**3).mean() / (spread**2).mean() ** 1.5, 2),
    }
pd.DataFrame(rows).T

# %% [markdown]
# (A skewness of 0 would be a list in which all images occur about equally often on both sides of the mean. Hubs are the subject of Radovanović, Nanopoulos and Ivanović, 2010.)
#
# - **The queries that fail.** They are a few points of the wrong color under others. Retrieval walls show them (above).
#
# What a map is good for: finding mislabeled images, duplicates and odd groups, to be looked at one by one; and making one curious.

# %% [markdown]
# ### Exercise 3 · Derive and check: retrieve on the map
#
# What would you retrieve if the map were all you had? Write the nearest *other* point of every point, by plain distance: from $\lVert a-b\rVert^2 = \lVert a\rVert^2 - 2a^\top b + \lVert b\rVert^2$, or directly. The cell scores it. Then try to beat the map: more dimensions (`PCA(8)`), more neighbors in UMAP, another seed. Which of these changes more than another seed does?
#
# <details><summary>Hint</summary>
#
# All distances at once: `plane[:, None] - plane[None]` has shape (N, N, 2). Put something large on the diagonal before `argmin`.
#
# </details>


# %%
def nearest_on_the_map(plane):
    """(N, 2) points → (N,) index of the nearest other point of each."""
    return np.arange(len(plane))  # your code here: this finds the point itself


own_map = figures.project(spaces["PA"], method="pca")  # (N, 2)
hit = test.labels[nearest_on_the_map(own_map)] == test.labels
in_space = evaluate(spaces["PA"], test.labels).recall[1]
print(f"Recall@1 on the map: {hit.mean():.3f}; in the space: {in_space:.3f}")
exercises.check("07.3", nearest_on_the_map)


# %% tags=["solution"]
def nearest_on_the_map(plane):
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=2)  # (N, N)
    np.fill_diagonal(apart, np.inf)
    return apart.argmin(axis=1)


own_map = figures.project(spaces["PA"], method="pca")  # (N, 2)
hit = test.labels[nearest_on_the_map(own_map)] == test.labels
in_space = evaluate(spaces["PA"], test.labels).recall[1]
print(f"Recall@1 on the map: {hit.mean():.3f}; in the space: {in_space:.3f}")
exercises.check("07.3", nearest_on_the_map)

# %% [markdown]
# ### Exercise 4 · Criticize a figure
#
# A paper shows two UMAPs of test embeddings, of a baseline and of its method, with this caption: *"(cosine, 5 neighbors) Our method separates the classes better: the islands are smaller and further apart."* Which objections hold? Give the letters.
#
# - **a** Sizes and distances of islands are what UMAP does not promise to keep.
# - **b** UMAP must not be used with cosine similarity.
# - **c** One seed each: how different are two seeds of the *same* model?
# - **d** No number says how much of the neighborhoods either map keeps.
# - **e** The classes of the map were trained on.

# %%
my_objections = ""  # such as "be"
exercises.check("07.4", my_objections)

# %% tags=["solution"]
my_objections = "acd"
exercises.check("07.4", my_objections)

# %% [markdown]
# ## Summary
#
# - PCA keeps what is global and flat, and says how much; UMAP keeps neighborhoods, and does not say how badly.
# - Trustworthiness is lenient. Shared neighbors and Recall@1 on the map are strict. Quote them under the picture.
# - Distances between islands follow those of the space in part, their sizes less; with few neighbors, noise has islands too.
# - Two seeds of the same map differ. A difference between two models has to be larger than that.
# - Proxies exist for training classes only. They work like the normals of planes, not like the centers of classes.
#
# ## Questions
#
# 1. A reviewer asks for "a t-SNE showing that the classes are better separated with SO". What do you offer instead?
#
# <details><summary>Answer</summary>
#
# Recall@1 and MAP@R on the test classes for several seeds, with an interval of the paired difference; and, if a picture is wanted, both maps with several seeds each and trustworthiness and shared neighbors under them. The map illustrates a number, it does not replace it.
#
# </details>
#
# 2. A map has a trustworthiness of 0.95. Can you retrieve images by nearest neighbors on it?
#
# <details><summary>Answer</summary>
#
# You can, but section 4 shows what it costs: Recall@1 falls, and a large part of the true neighbors is not among those of the map. Trustworthiness forgives a false neighbor that is really fairly near, and a fairly near image of another species is just the error that counts.
#
# </details>
#
# 3. Why is each model's map fitted on its own, and not both models' embeddings together on one map?
#
# <details><summary>Answer</summary>
#
# The two runs have two different spaces: direction 17 of the one has nothing to do with direction 17 of the other, so cosines between embeddings of different models mean nothing. A common map would show two continents, one for each model, and no comparison.
#
# </details>
#
# **Still open.** The two models look alike on every map, and neither map can say which of them is better. Everything so far was *one* pair of runs. Before anybody explains why a large change of the proxies does so little for the search, it has to be shown that it does: several seeds, and a comparison made once, properly. [08 · Benchmark](08_benchmark.ipynb).
#
# ## Further reading
#
# - L. McInnes, J. Healy, J. Melville, [UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction](https://arxiv.org/abs/1802.03426), 2018: the method, with its graph and its loss.
# - J. Venna, S. Kaski, *Neighborhood preservation in nonlinear projection methods: an experimental study*, ICANN 2001: trustworthiness and continuity.
# - M. Radovanović, A. Nanopoulos, M. Ivanović, Hubs in space: popular nearest neighbors in high-dimensional data, JMLR 11, 2010.
# - M. Wattenberg, F. Viégas, I. Johnson, [How to Use t-SNE Effectively](https://distill.pub/2016/misread-tsne/), Distill 2016: the same warnings for the older method, with interactive examples.
# - S. Kim, D. Kim, M. Cho, S. Kwak, *Proxy Anchor Loss for Deep Metric Learning*, CVPR 2020: the forces between proxies and images that section 7 looks at.
