# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Your images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/10_your_images.ipynb)
#
# A folder of pictures goes in; an index and a page to search with come out. Finding the nearest picture is the easy part. This notebook is about the hard one: when to believe it, and when to say "there is nothing like this here".
#
# **What you will learn**
#
# - what a folder must look like, and what happens to files that cannot be read;
# - to decide whether to train on your own pictures;
# - to choose a threshold on pictures you have, and to measure its errors on others;
# - verification and its error rates, hubs, domain shift, approximate search: what they are, and how to measure each;
# - what you may do with such a search, and what you should not.
#
# **Before you start** [00 · Start here](00_start_here.ipynb). Your own pictures, if you have some: at least eight classes (for training; a search alone works with fewer), in a folder each, with ten pictures or more.
#
# **Time** About a minute on a two-core laptop, its training included.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import io
import time
import warnings
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from IPython.display import HTML
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import skew
from sklearn.metrics import roc_curve

from sobook import figures
from sobook.course.aviary import species as aviary
from sobook.course import exercises
from sobook.course.pages import search_page
from sobook.course.predictions import beside, fold, predict, reveal
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import EncoderError
from sobook import search
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict
from sobook.training.loop import fit

# %% [markdown]
# Notation: $N$ pictures, $D$ dimensions; $x_i$ an embedding of unit length; $s$ a cosine of two of them.
#
# ## 1 · A folder of pictures
#
# One folder for each class, nothing else: no lists, no labels.
#
# ```
# my_pictures/
#     blue vase/      IMG_0012.jpg  IMG_0013.jpg  scan.png …
#     red teapot/     …
# ```
#
# Write the path of yours between the quotation marks. Left as it is, the next cell draws a folder that could be somebody's: new pictures of the fifty species in the second volume of the field guide, with an empty file and a text among them. No encoder that comes with the course was trained on these species; in section 2 we train one on half of them.

# %%
MY_PICTURES = ""  # for instance "~/pictures/pottery"


# %%
def draw_folder(folder, each=40):
    """A folder as people have them, with two files that are no pictures."""
    if (folder / "README.txt").exists():
        return folder
    for bird in aviary.species(100)[50:]:
        place = folder / bird.name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(each):  # the aviary itself has the pictures 0 to 39
            image = aviary.draw(bird, 100 + i)
            image.save(place / f"{i:02d}.png", compress_level=1)
    (place / "half_copied.jpg").write_bytes(b"")
    (folder / "README.txt").write_text("My birds, sorted by hand.\n")
    return folder


if MY_PICTURES:
    folder = Path(MY_PICTURES).expanduser()
else:
    folder = draw_folder(session.data_root / "my_birds")
classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
print(f"{len(classes)} folders: {', '.join(classes[:3])} …")

# %% [markdown] tags=["slide"]
# **Predict.** There is an empty file and a text in it. What will loading do? (What would you want it to do with ten thousand of your own?)

# %%
LOADING = ("stop", "skip them silently", "skip and name them")
predict("10.a", None, choices=LOADING)

# %% tags=["slide"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what is left out: shown below
    train, test = (
        image_sets.load("folder", split, folder) for split in ("train", "test")
    )
notes = dict.fromkeys(train.notes + test.notes)
reveal(
    "10.a",
    *(note.replace(str(folder), folder.name) for note in notes),
    truth="skip and name them",
)
print(f"training: {len(train):,} pictures of {train.num_classes} classes")
print(f"test:     {len(test):,} pictures of {test.num_classes} classes")

# %% [markdown]
# The classes were halved by name: the first half may train, the second half tests. (To choose the halves yourself, put the class folders into two folders called `train` and `test`.) One picture each of ten test classes:

# %% tags=["hide-input"]
shown = [
    int(np.flatnonzero(test.labels == label)[0])
    for label in range(min(test.num_classes, 10))
]
names = [test.class_names[test.labels[i]] for i in shown]
figures.finish(
    figures.contact_sheet(
        [
            np.asarray(pixels.read_image(test.paths[i]).resize((96, 96)))
            for i in shown
        ],
        [name.replace(" ", "\n") for name in names],
        columns=5,
    ),
    f"One picture each of {len(shown)} test classes: {', '.join(names)}.",
)

# %% [markdown] tags=["slide"]
# ## 2 · Which encoder?
#
# Three candidates: the **frozen** encoder; the encoder **fine-tuned in notebook 00** with Proxy Anchor (PA) on the first volume, so on other species of the same genera; and the frozen one fine-tuned **on this folder's** first half.
#
# Your own *photographs* need an encoder that has seen photographs. Set `PHOTOGRAPHS = True`: a DeiT-Tiny that has learned from ImageNet then takes the place of all three, if it can be downloaded (22 MB, once). [02 · DeiT features](02_deit_features.ipynb) has others.

# %%
PHOTOGRAPHS = False
PHOTO_ENCODER = "deit_tiny_distilled_patch16_224"

config = session.config(so_weight=0.0)
pa = session.fit(config)
encoders = {
    "frozen": Encoder.create(config.encoder, weights=config.weights),
    "notebook 00": pa.encoder(),
}
if PHOTOGRAPHS:
    try:
        encoders = {"DeiT-Tiny": Encoder.create(PHOTO_ENCODER)}
    except EncoderError as error:
        print(f"No DeiT-Tiny, so an encoder for drawn birds: {error}")

# %% [markdown]
# Training on a folder is one call. The settings below are for small folders: small batches, drawn from all pictures, and a few epochs, of which the last is kept. It is the frozen encoder that is trained here, so `on this folder` knows nothing of the first volume.

# %%
if not PHOTOGRAPHS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = fit(
            session.config(
                dataset="folder",
                root=str(folder),
                so_weight=0.0,
                epochs=session.pick(quick=3, full=30),
                batch_size=min(40, len(train) // 2),
                images_per_class=0,
                selection="last",
            )
        )
    encoders["on this folder"] = mine.encoder()

# %% [markdown] tags=["slide"]
# **Predict** the order on the test half, best first. The folder's own species are more like those asked about; the first volume has more pictures and twice the species.

# %%
predict("10.b", None, choices=tuple(encoders), order=True)

# %% tags=["slide", "hide-input"]
rows, results = {}, {}
for name, encoder in encoders.items():
    encoder.to(session.device).eval()
    rows[name] = embed(encoder, test, progress=False)  # (N, D)
    results[name] = evaluate(rows[name], test.labels)
recalls = {name: result.recall[1] for name, result in results.items()}
reveal(
    "10.b",
    figures.interval_plot(
        [
            (name, result.recall[1], *result.interval(1), name)
            for name, result in results.items()
        ],
        f"Recall@1 on {test.num_classes} classes",
    ),
    truth=sorted(recalls, key=recalls.get, reverse=True),
)

# %% [markdown]
# The intervals are over classes and say little about differences; the paired comparisons do.

# %% tags=["hide-input"]
others = [name for name in results if name != "notebook 00"]
found = [
    compare_classes(results[name], results["notebook 00"])
    for name in others
    if "notebook 00" in results
]
for name, comparison in zip(others, found, strict=False):
    print(
        f"notebook 00 against {name}: Recall@1 {verdict(comparison, found)}, "
        f"{comparison}"
    )
best = max(recalls, key=recalls.get)
print(f"\nwe search with: {best}")
encoder = encoders[best]

# %% [markdown]
# The lesson is not that training on one's own pictures is useless. One possible reason for the order here is the number of classes: few classes are few proxies, and little to push away from. But the two trainings also differ in their number of epochs, pictures, batches and in $\alpha$, so this comparison cannot say. An encoder that was fine-tuned on many relatives of what you search is the better start, and the frozen one is the baseline that any training has to beat.
#
# ## 3 · An index, and a query
#
# For searching, all pictures are embedded once: that is the *index*. A query is embedded in the same way, and its nearest pictures are the answer.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    whole = search.index_folder(encoder, folder, progress=False)
print(f"{len(whole):,} pictures, {whole.embeddings.shape[1]} numbers each")

# %% [markdown]
# To know what the search is worth we need pictures it has not seen, and classes it does not have. So we leave some out of a smaller index: **one class in five** entirely (of the drawn birds, two genera), and of the others **one picture in four**. Those are the *new* pictures.

# %%
rng = np.random.default_rng(session.seed)
name_of = np.array(whole.names)  # (N,)
if MY_PICTURES:
    group_of = name_of
else:
    group_of = np.array([name.split()[-1] for name in name_of])  # genus
groups = np.unique(group_of)
left_out = rng.choice(groups, max(1, len(groups) // 5), replace=False)
not_indexed = np.isin(group_of, left_out)  # (N,)
new = ~not_indexed & (np.arange(len(whole)) % 4 == 3)
known = ~not_indexed & ~new
print(
    f"in the index {known.sum():,} of {len(np.unique(name_of[known]))} classes"
)
print(f"new          {new.sum():,} of the same classes")
print(f"not indexed  {not_indexed.sum():,}: {', '.join(left_out)}")

# %%
strangers = whole.calibration.strangers  # section 5
index = search.Index(
    whole.embeddings[known],
    tuple(np.array(whole.paths)[known]),
    tuple(name_of[known]),
    calibration=search.calibrate(
        whole.embeddings[known], name_of[known], strangers
    ),
)

# %% [markdown] tags=["slide"]
# **Predict.** Of five new pictures, how many have a right nearest neighbor?

# %%
predict("10.c", None)

# %% tags=["slide", "hide-input"]
five = rng.choice(np.flatnonzero(new), 5, replace=False)
similarities, places = nearest_neighbors(
    whole.embeddings[five], 5, gallery=index.embeddings
)
index_names = np.array(index.names)
relevant = index_names[places] == name_of[five, None]  # (5, 5)


def thumbnail(path):
    return np.asarray(pixels.read_image(path).resize((96, 96)))


reveal(
    "10.c",
    figures.retrieval_wall(
        [thumbnail(whole.paths[i]) for i in five],
        [[thumbnail(index.paths[i]) for i in row] for row in places],
        relevant,
        similarities,
        [name.replace(" ", "\n") for name in name_of[five]],
    ),
    truth=int(relevant[:, 0].sum()),
)

# %% [markdown]
# Five pictures are a picture, not a measurement. All new ones:

# %%
near, places = nearest_neighbors(
    whole.embeddings[new], 5, gallery=index.embeddings
)
hits = index_names[places] == name_of[new, None]  # (Q, 5)
print(f"{new.sum():,} new pictures of {len(np.unique(index_names))} classes")
print(f"the nearest is right          {hits[:, 0].mean():.0%}")
print(f"one of the nearest five is    {hits.any(1).mean():.0%}")

# %% [markdown]
# ### Exercise 1 · Warm-up: search by hand
#
# `Index.search` in three lines: from one query vector and a gallery, the positions of the `k` nearest by cosine, nearest first. The check's vectors do not have unit length.
#
# <details><summary>Hint</summary>
#
# Divide the rows of the gallery by their lengths; the length of the query does not change the order. `np.argsort` sorts upwards.
#
# </details>


# %%
def nearest(query, gallery, k):
    """Positions (k,) of the rows nearest to the query by cosine."""
    return np.arange(k)  # your code here


exercises.check("10.1", nearest)


# %% tags=["solution"]
def nearest(query, gallery, k):
    lengths = np.linalg.norm(gallery, axis=1, keepdims=True)
    return np.argsort(-(gallery / lengths) @ query)[:k]


exercises.check("10.1", nearest)

# %% [markdown] tags=["slide"]
# ## 4 · What does a cosine of .9 mean?
#
# A nearest picture exists for every query, also for one that is no bird at all. Can the cosine tell? We ask with pictures of nothing. Here is one of each kind; "pieces" is a bird, cut up and put together at random.

# %% tags=["slide", "hide-input"]
KINDS = ("noise", "plain", "gradient", "checkerboard", "stripes", "disks")


def nothing(kind, rng, side=96):
    """A picture of nothing, (side, side, 3) uint8."""
    y, x = np.mgrid[:side, :side] / side
    first, second = rng.integers(0, 256, (2, 3))
    angle, count = rng.uniform(0, np.pi), rng.integers(2, 12)
    slope = np.cos(angle) * x + np.sin(angle) * y
    mix = 0 * x
    if kind == "noise":
        return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    if kind == "gradient":
        mix = (slope - slope.min()) / np.ptp(slope)
    if kind == "checkerboard":
        mix = ((x * count).astype(int) + (y * count).astype(int)) % 2
    if kind == "stripes":
        mix = np.sin(2 * np.pi * count * slope) > 0
    if kind == "disks":
        for _ in range(count):
            radius = rng.uniform(0.05, 0.3)
            a, b = rng.uniform(0, 1, 2)
            mix = np.where(
                (x - a) ** 2 + (y - b) ** 2 < radius**2, rng.random(), mix
            )
    return (first + mix[..., None] * (second - first)).astype(np.uint8)


def pieces(path, rng, grid=6, side=16):
    """A picture cut into squares that change places."""
    image = np.asarray(pixels.read_image(path).resize((grid * side,) * 2))
    squares = image.reshape(grid, side, grid, side, 3).swapaxes(1, 2)
    squares = rng.permutation(squares.reshape(-1, side, side, 3))
    squares = squares.reshape(grid, grid, side, side, 3).swapaxes(1, 2)
    return squares.reshape(image.shape)


rng = np.random.default_rng(session.seed)
odd = {kind: [nothing(kind, rng) for _ in range(50)] for kind in KINDS}
some = rng.choice(np.flatnonzero(new), 50)
odd["pieces"] = [pieces(whole.paths[i], rng) for i in some]
figures.finish(
    figures.contact_sheet([odd[kind][0] for kind in odd], list(odd), columns=7),
    f"One picture of each kind: {', '.join(odd)}.",
)

# %%
odd_rows = {
    kind: search.embed_images(encoder, [Image.fromarray(i) for i in images])
    for kind, images in odd.items()
}  # (50, D) each

# %% [markdown] tags=["slide"]
# **Predict** the cosine between a picture of noise and the nearest bird.

# %%
predict("10.d", None)

# %% tags=["slide", "hide-input"]
strange, _ = nearest_neighbors(odd_rows["noise"], 1, gallery=index.embeddings)
cosines = {
    "right": near[hits[:, 0], 0],
    "wrong": near[~hits[:, 0], 0],
    "noise": strange[:, 0],
}
figure = figures.new_figure(8.5, 3.6)
axis = figure.subplots()
low = min(values.min() for values in cosines.values())
bins = np.linspace(low, 1, 36)
looks = {
    "right": {"color": figures.COLORS["relevant"], "alpha": 0.5},
    "wrong": {
        "color": figures.COLORS["irrelevant"],
        "histtype": "step",
        "lw": 2.4,
    },
    "noise": {"color": "#222222", "histtype": "step", "ls": ":", "lw": 2.4},
}
for name, values in cosines.items():
    weights = np.full(len(values), 100 / len(values))
    axis.hist(values, bins, weights=weights, label=name, **looks[name])
axis.set(xlabel="cosine of the nearest picture", ylabel="% of the queries")
axis.legend(loc="upper left")
means = {name: f"{values.mean():.3f}" for name, values in cosines.items()}
reveal(
    "10.d",
    figures.finish(
        figure,
        "Histograms of the cosine of the nearest picture, for queries whose "
        f"nearest is right, is wrong, and for noise. Means: {means}.",
    ),
    f"Mean cosine of the nearest picture: {means}.",
    truth=strange.mean(),
)

# %% [markdown]
# All three crowd in a narrow band below 1. Notebook 09 found the reason: the embeddings share a direction. What is common to all says nothing about any:

# %%
mean = index.embeddings.mean(0)  # (D,)
length = np.linalg.norm(mean)
two = rng.choice(len(index), (2, 5000))
pairs = (index.embeddings[two[0]] * index.embeddings[two[1]]).sum(1)
print(f"length of the mean embedding     {length:.2f}")
print(f"its square                       {length**2:.2f}")
print(f"mean cosine of two random birds  {pairs.mean():.2f}")

# %% [markdown]
# A rule of thumb such as "above .8 is similar" means nothing for an encoder that has not been measured.
#
# ### Exercise 2 · Derive and check: the cosine without what is common
#
# Let all embeddings share a part of length $m$ along one unit vector $u$: $x = m\,u + \sqrt{1-m^2}\,y$, with $y$ of unit length and $y \perp u$. Derive the cosine of $y$ and $y'$ from that of $x$ and $x'$. Is the *order* of neighbors another one without the common part?
#
# <details><summary>Hint</summary>
#
# Multiply out $\langle x, x'\rangle$; two of the four terms are 0.
#
# </details>


# %%
def without_common(cosine, m):
    """The cosine of y and y', from that of x and x' and the common length."""
    return cosine  # your code here


print("of", near[:3, 0], "is left", without_common(near[:3, 0], length))
exercises.check("10.2", without_common)


# %% tags=["solution"]
def without_common(cosine, m):
    return (cosine - m**2) / (1 - m**2)


print("of", near[:3, 0], "is left", without_common(near[:3, 0], length))
exercises.check("10.2", without_common)

# %% [markdown]
# In this model the order stays, so the search gains nothing by it. What helps is to say what a number *means*, and for this we have a supply of answered questions: the index itself.
#
# ## 5 · Two questions, two scores
#
# "Is there anything like this here?" and "Is the first name right?" are different questions. `Index.judge` answers each by its own score:
#
# - **nearness**, the mean cosine of the ten nearest pictures, for the first;
# - **the vote** for the second. The ten nearest vote for their names, the one at rank $r$ with weight $1/\sqrt r$; the winner's part of the total is its *share*.
#
# Both are calibrated on known pictures: every picture of the index is asked *as if it were new*, with all the others as the index. The threshold of nearness is where it refuses 10 % of them. The share becomes a *chance*: how often was a vote like this right? (A logistic regression with one variable.) Asking once more, with the picture's own class taken out, says how often a class that is *not* there would still be answered.

# %%
own = index.calibration
print(f"threshold of nearness    {own.threshold:.3f}")
print(f"known pictures refused   {own.rates[0]:.0%}")
print(f"answered without class   {own.rates[1]:.0%}")

# %% [markdown] tags=["slide"]
# Third, the index knows forty **strangers**: noise, plain areas, gradients and checkerboards, embedded with it. A query that is nearer to one of them than to any picture is refused, whatever its nearness.
#
# **Predict.** What fraction of pictures of a *genus that is not indexed* will be refused? And what of a *species that is not indexed*, while its sister species are?

# %%
predict("10.e", None)  # the genus that is not indexed, in 0..1
predict("10.f", None)  # the species whose sisters are indexed

# %% [markdown]
# The rates below are measured on pictures that chose nothing: the new ones, the genera left out, other noise than the strangers. For the species, each new picture is asked with its own species taken out of the index; the threshold stays.

# %%
judged = index.judge(whole.embeddings[new])
told = {"new pictures, indexed": judged["nothing"]}
told["class not indexed"] = index.judge(whole.embeddings[not_indexed])[
    "nothing"
]

# %% tags=["hide-input"]
cos = whole.embeddings[new] @ index.embeddings.T  # (Q, M)
cos[name_of[new, None] == index_names] = -np.inf  # own species taken out
without = -np.sort(-cos, axis=1)[:, :10].mean(1)
sisters = without < own.threshold
told["species not indexed, sisters are"] = sisters
for kind, few in odd_rows.items():
    shown_before = kind in KINDS[:4]
    kind += " (strangers had it)" if shown_before else ""
    told[kind] = index.judge(few)["nothing"]
table = pd.DataFrame(
    {
        "pictures": {kind: len(values) for kind, values in told.items()},
        "said “nothing like this here”": {
            kind: f"{np.mean(values):.0%}" for kind, values in told.items()
        },
    }
)
refused = {kind: float(np.mean(values)) for kind, values in told.items()}
reveal(
    "10.e",
    table,
    beside("10.f", refused["species not indexed, sisters are"]),
    truth=refused["class not indexed"],
)

# %% tags=["slide", "hide-input"]
figure = figures.new_figure(8.5, 3.6)
axis = figure.subplots()
looks = {
    "new, indexed": (judged["nearness"], figures.COLORS["relevant"], "-"),
    "species not indexed": (without, figures.COLORS["frozen"], "--"),
    "genus not indexed": (
        index.judge(whole.embeddings[not_indexed])["nearness"],
        figures.COLORS["irrelevant"],
        "-.",
    ),
    "stripes": (index.judge(odd_rows["stripes"])["nearness"], "#222222", ":"),
}
for name, (values, color, line) in looks.items():
    axis.ecdf(values, color=color, ls=line, label=name)
axis.axvline(own.threshold, color="#555555", lw=1.2)
axis.text(own.threshold, 1.01, "threshold", ha="center", va="bottom")
axis.set(xlabel="nearness", ylabel="fraction at or below")
axis.set_xlim(np.quantile(looks["stripes"][0], 0.1), 1)
axis.legend(loc="upper left")
below = ", ".join(
    f"{name} {np.mean(look[0] < own.threshold):.0%}"
    for name, look in looks.items()
)
fold(
    figures.finish(
        figure,
        f"Cumulative distributions of nearness. Below the threshold: {below}.",
    )
)

# %% [markdown]
# Read the curves where they cross the gray line. A genus that is not there is noticed; a species whose sisters are there is not, for its sisters *are* like it, and the nearest wrong picture is as near as the nearest right one. No threshold on nearness can separate what lies on nearly the same curve. And a bird in pieces mostly passes for a bird: to this encoder a picture is, to a good part, a bag of patches.
#
# **Is the name right?** The second score. Of the new pictures that were answered, those given a chance of about so much were right so often:

# %% tags=["hide-input"]
answered = judged[~judged["nothing"]].copy()
answered["right"] = (
    answered["name"] == name_of[new][~judged["nothing"]]
).values
answered["said"] = pd.cut(answered["chance"], [0, 0.4, 0.6, 0.8, 1])
calibration = answered.groupby("said", observed=True).agg(
    pictures=("right", "size"),
    said=("chance", "mean"),
    right=("right", "mean"),
)
calibration.index = [
    f"chance {i.left:.0%} to {i.right:.0%}" for i in calibration.index
]
every = judged["name"].to_numpy() == name_of[new]
print(f"the name is right, all new pictures  {every.mean():.0%}")
print(f"the name is right, those answered    {answered['right'].mean():.0%}")
calibration[["said", "right"]] = calibration[["said", "right"]].map(
    "{:.0%}".format
)
calibration

# %% [markdown]
# In these words the search now answers. One new picture, one of a genus that is not indexed, and noise:

# %%
three = np.stack(
    [
        whole.embeddings[new][0],
        whole.embeddings[not_indexed][0],
        odd_rows["noise"][0],
    ]
)
truths = [name_of[new][0], name_of[not_indexed][0], "noise"]
for truth, (_, row) in zip(truths, index.judge(three).iterrows(), strict=True):
    print(f"{truth}: {search.sentence(row)}")

# %% [markdown]
# The noise is refused for another reason than the bird of the missing genus. Its nearness lies *above* the threshold, so by the first test alone it would have passed; but it is nearer to one of the strangers, a picture of nothing, than to any picture of a bird.
#
# ### Exercise 3 · A threshold for the answers to be right
#
# Sometimes the demand is on the answers: *of those given, 80 % must be right.* Answers are given where a score is at least $t$. Find the smallest $t$, among the scores there are, for which at least the wanted fraction of the *given* answers is right. (If none will do: $+\infty$, answer nothing.)
#
# <details><summary>Hint</summary>
#
# Try every value of `np.sort(scores)` in turn: `right[scores >= t].mean()` is the fraction of right ones among the answers given.
#
# </details>


# %%
def threshold_for(scores, right, wanted):
    """Smallest t for which answers with score ≥ t are right often enough."""
    return 0.0  # your code here


def report(threshold_for):
    for wanted in (0.8, 0.9):
        t = threshold_for(judged["chance"].to_numpy(), every, wanted)
        print(
            f"{wanted:.0%} right: {np.mean(judged['chance'] >= t):.0%} answered"
        )


report(threshold_for)
exercises.check("10.3", threshold_for)


# %% tags=["solution"]
def threshold_for(scores, right, wanted):
    for t in np.sort(scores):
        if right[scores >= t].mean() >= wanted:
            return t
    return np.inf


report(threshold_for)
exercises.check("10.3", threshold_for)

# %% [markdown]
# ### Exercise 4 · Find the bug
#
# A colleague sets the threshold by hand: nearness of every known picture, then the quantile that refuses so many. In the trial it refused hardly any *known* picture; in use it refuses half of the new ones. Find what is wrong, and mend it.


# %%
def threshold_by_hand(embeddings, k, refuse):
    """Nearness below which the fraction `refuse` of known pictures lies."""
    cosines = embeddings @ embeddings.T  # (N, N)
    nearness = -np.sort(-cosines, axis=1)[:, :k].mean(axis=1)
    return np.quantile(nearness, refuse)


print("by hand", threshold_by_hand(index.embeddings, 10, 0.1))
exercises.check("10.4", threshold_by_hand)


# %% tags=["solution"]
def threshold_by_hand(embeddings, k, refuse):
    cosines = embeddings @ embeddings.T  # (N, N)
    np.fill_diagonal(cosines, -np.inf)  # as if it were new
    nearness = -np.sort(-cosines, axis=1)[:, :k].mean(axis=1)
    return np.quantile(nearness, refuse)


print("by hand", threshold_by_hand(index.embeddings, 10, 0.1))
exercises.check("10.4", threshold_by_hand)

# %% [markdown] tags=["slide"]
# ## 6 · Verification: the same or not?
#
# A search asks *which*; a door asks *is it the same?* **Verification** looks at one pair and accepts it if its cosine is at least $t$. Two errors then: a *false match* (different classes, accepted) and a *false non-match* (same class, rejected). The curve of both over all $t$ is the ROC; where they are equal lies the **equal error rate** (EER).
#
# **Predict** the EER of the encoder we search with, on all pairs of test pictures.

# %%
predict("10.g", None)

# %%
upper = np.triu_indices(len(test), 1)
same = (test.labels[:, None] == test.labels)[upper]  # of all pairs
rocs, eer = {}, {}
for name, x in rows.items():
    false_match, match, _ = roc_curve(same, (x @ x.T)[upper])
    rocs[name] = false_match, match
    at = np.argmin(np.abs(false_match - (1 - match)))
    eer[name] = (false_match[at] + 1 - match[at]) / 2

# %% tags=["hide-input"]
figure = figures.new_figure(6.4, 4)
axis = figure.subplots()
for (name, (x, y)), line in zip(rocs.items(), ("-", "--", "-."), strict=False):
    keep = figures.style.evenly(np.arange(len(x)), 400)
    axis.plot(
        x[keep],
        1 - y[keep],
        ls=line,
        color=figures.style.method_color(name),
        label=f"{name}: EER {eer[name]:.1%}",
    )
equal = np.geomspace(0.001, 1, 100)
axis.plot(equal, equal, **figures.style.CHANCE_LINE)
axis.set(
    xscale="log",
    xlim=(0.001, 1),
    ylim=(0, 1),
    xlabel="false matches, of different pairs",
    ylabel="false non-matches",
)
axis.legend(loc="lower left")
strict = {
    name: float(1 - y[np.searchsorted(x, 0.001, side="right") - 1])
    for name, (x, y) in rocs.items()
}
reveal(
    "10.g",
    figures.finish(
        figure,
        "False non-matches against false matches. Equal error rates: "
        + ", ".join(f"{name} {rate:.1%}" for name, rate in eer.items()),
    ),
    "At one false match in 1,000, rejected although the same: "
    + ", ".join(f"{name} {rate:.0%}" for name, rate in strict.items()),
    truth=eer[best],
)

# %% [markdown]
# Look at the left end of the curves as well. At one false match in 1,000 nearly all pairs of the same species are rejected, with every encoder, and the one with the lowest EER is no better there than the frozen one. A better average error says little about the strict end, and for a door it is the strict end that counts.
#
# An EER sounds harmless until it is multiplied. A search in 1,000 pictures makes 1,000 comparisons for each query:

# %%
for size in (1_000, 1_000_000):
    print(
        f"{size:>9,} pictures: {size * eer[best]:>9,.0f} false matches at the "
        f"EER, {size / 1000:>5,.0f} at one in 1,000, for every query"
    )

# %% [markdown] tags=["slide"]
# ## 7 · Hubs
#
# In many dimensions some points are near to surprisingly many others: **hubs**. Count how often each picture is among the ten nearest of the others, $N_{10}$. Its mean is 10 by construction; the skewness of the counts measures hubness. Others are never found, by nobody.

# %% tags=["slide"]
hubs = {}
for name, x in rows.items():
    _, found_by = nearest_neighbors(x, 10)
    count = np.bincount(found_by.ravel(), minlength=len(x))  # N_10, (N,)
    hubs[name] = {
        "skewness": round(float(skew(count)), 2),
        "largest": int(count.max()),
        "never found": f"{np.mean(count == 0):.1%}",
    }
pd.DataFrame(hubs).T

# %% [markdown]
# A skewness near 0 means that there are no hubs to speak of. Where there is one, look at it first: it is often a duplicate, an empty picture or a wrong label. Remedies rescale each cosine by how popular its neighbor is (local scaling, CSLS).
#
# ## 8 · Domain shift
#
# The index was made from pictures of one kind; queries come from another camera. The same new pictures, changed: darker, blurred, without color, and strongly compressed.


# %% tags=["hide-input"]
def compressed(image, quality=8):
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file).convert("RGB")


SHIFTS = {
    "as they are": lambda image: image,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.45),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "compressed": compressed,
}
asked = rng.choice(np.flatnonzero(new), min(200, new.sum()), replace=False)
pictures = [pixels.read_image(whole.paths[i]) for i in asked]
figures.finish(
    figures.contact_sheet(
        [
            np.asarray(shift(pictures[0]).resize((96, 96)))
            for shift in SHIFTS.values()
        ],
        list(SHIFTS),
        columns=5,
    ),
    f"One picture under each shift: {', '.join(SHIFTS)}.",
)

# %% [markdown] tags=["slide"]
# **Predict** which of them hurts most.

# %%
predict("10.h", None, choices=tuple(SHIFTS)[1:])

# %%
shifted = {}
for name, shift in SHIFTS.items():
    x = search.embed_images(encoder, [shift(image) for image in pictures])
    said = index.judge(x)
    right = said["name"].to_numpy() == name_of[asked]
    shifted[name] = {
        "right": right.mean(),
        "chance it gives": said["chance"].mean(),
        "refused": said["nothing"].mean(),
    }

# %% tags=["slide", "hide-input"]
shifted = pd.DataFrame(shifted).T
reveal(
    "10.h",
    shifted.map("{:.0%}".format),
    truth=shifted["right"].iloc[1:].idxmin(),
)

# %% [markdown]
# Compare the first two columns: on pictures like those it was calibrated on, the chance is honest; under a shift it promises too much, and the refusals are the only warning. A threshold holds for pictures like those that chose it. Another camera, another light: measure again, with queries from there.
#
# ## 9 · A million pictures: approximate search
#
# Exact search compares the query with every picture. An **inverted file** (IVF) clusters the gallery first and looks into the few cells nearest to the query. It may miss the true neighbor; how often is its own recall, and it has nothing to do with whether the neighbor is *right*. We enlarge the index to 60,000 rows by jittering its embeddings.

# %%
size, cells = 60_000, 256
base = whole.embeddings[np.arange(size) % len(whole)]
big = base + 0.03 * rng.standard_normal(base.shape).astype(np.float32)
faiss.normalize_L2(big)
questions = np.ascontiguousarray(whole.embeddings[new][:200])
exact = faiss.IndexFlatIP(big.shape[1])
exact.add(big)
ivf = faiss.index_factory(
    big.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT
)
ivf.cp.niter = 5
ivf.train(big[:: size // 12_000])
ivf.add(big)


# %%
def milliseconds(engine, repeats=5):
    """For a query, at best: other programs can only add to the time."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.search(questions, 10)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / len(questions)


_, truth = exact.search(questions, 10)
exact_ms = milliseconds(exact, repeats=2)
curve = []
for looked_into in (1, 2, 4, 8, 16, 32, 64):
    ivf.nprobe = looked_into
    _, found = ivf.search(questions, 10)
    pairs = zip(found, truth, strict=True)
    kept = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in pairs])
    curve.append((looked_into, milliseconds(ivf), kept))

# %% tags=["slide", "hide-input"]
figure = figures.new_figure(7, 3.6)
axis = figure.subplots()
_, ms, kept = np.array(curve).T
axis.plot(ms, kept, "o-", color=figures.COLORS["PA+SO"])
for one in curve:
    axis.annotate(
        f"{one[0]}",
        one[1:],
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
    )
axis.axvline(exact_ms, **figures.style.CHANCE_LINE)
axis.text(exact_ms, 0.02, " exact", transform=axis.get_xaxis_transform())
axis.set(
    xscale="log",
    ylim=(min(kept) - 0.12, 1.03),
    xlabel="milliseconds for a query",
    ylabel="of the ten nearest, found",
)
recalled = ", ".join(f"{n}: {r:.0%}" for n, _, r in curve)
figures.finish(
    figure,
    "Recall of approximate search over time for a query, by the number of "
    f"cells looked into: {recalled}.",
)

# %% [markdown]
# The numbers at the dots say how many of the 256 cells were looked into. Times are of this machine at that moment and differ from run to run; the recalls hardly do. Below some ten thousand pictures exact search is fast enough, and `sobook` searches exactly, always.
#
# ## 10 · Drop in a picture
#
# With a kernel running, the button takes any picture of yours. (In a page that only shows this notebook there is no Python behind it; use the search page of section 11 there.)

# %%
search_page.widget(index, encoder, k=6)

# %% [markdown]
# What it answers, for the first of our five queries:

# %%
query = Path(whole.paths[five[0]])
HTML(search_page.answer(index, encoder, name_of[five[0]], query.read_bytes(), k=6))

# %% [markdown]
# ## 11 · Take it away
#
# **The index**, with all pictures of the folder and its own threshold, as plain NumPy arrays:

# %%
out = session.data_root / "my_search"
saved = whole.save(out / "index.npz")
with np.load(saved) as arrays:
    for name in arrays.files:
        print(f"{name:13} {arrays[name].shape}")
print(f"its own pictures, asked as if new: {whole.calibration}")

# %% [markdown]
# **A search page**: one HTML file with small pictures and their neighbors inside. It needs no network, no server and no Python. (Do not send pictures that are not yours to send: they are *inside*.)

# %%
page = search_page.page(index, out / "search.html", title="My pictures")
print(f"{page.parent.name}/{page.name}, {page.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# **In a terminal**, without any notebook; of each query it says what `judge` says:
#
# ```sh
# sobook search --encoder deit_tiny_distilled_patch16_224 --folder my_pictures --index mine.npz
# sobook search --encoder deit_tiny_distilled_patch16_224 --index mine.npz --query new.jpg
# sobook train --recipe photos --root my_pictures --run-dir runs/mine
# sobook search runs/mine --folder my_pictures --index mine.npz --page mine.html
# ```
#
# To use an encoder outside Python, or to share it, `sobook export runs/mine --onnx mine.onnx --hub my_model` writes other forms, with a model card.
#
# ## 12 · May you?
#
# **Licenses.** Three things have one each: the code, the weights, and the pictures. Weights are often free for research only, and it is unsettled how far the license of the training pictures reaches. A picture that you found is not a picture that you may index, copy into a page or train on. This course draws its own birds for that reason.
#
# **Privacy.** An embedding is not anonymous. Whoever has it and the encoder can tell whether *your* picture is in an index, and can find the others of the same thing. Photographs carry places and times, also where nobody looks: number plates, screens, children in the background. Deleting the pictures does not delete the index.
#
# **Faces.** The method of this course is the one by which faces are searched; change the folder and it is done. Do not. In the European Union, data that identify a person by the face are a special category, forbidden to process unless an exception holds (GDPR, article 9), and building face databases by scraping the network is banned (AI Act, article 5). Section 6 is the technical half of the reason: at one false match in a thousand, a search among a million people accuses a thousand who are not the one, and people have been arrested for being near in such a space. The rates are also not the same for everybody: error rates differ between groups, so an average hides who pays. And "nothing like this here" is what such a system is worst at when the person *is not in it, but a sister is*. If your project needs people, you need their consent, a lawyer, and a reason why no other way will do.
#
# ### Exercise 5 · Criticize a claim
#
# From a leaflet for this search: *"Names the bird right in the first place more often than not. In 50 trials with noise it said 'nothing like this here' every time. So whatever it does name is a species of your collection."* Which objections hold? Give the letters.
#
# - **a** It had noise among its strangers; a bird in pieces is nothing of the collection either, and mostly passes.
# - **b** A species that is not in the collection but has sisters there is mostly given a sister's name.
# - **c** Fifty pictures of noise are nearly one point in the space, so they are nearly one trial.
# - **d** The threshold was chosen on the pictures that the leaflet reports.
# - **e** "More often than not" depends on how many species are indexed, and on their relatives.

# %%
cosines = odd_rows["noise"] @ odd_rows["noise"].T
print(f"mean cosine of two pictures of noise {cosines.mean():.3f}")
my_objections = ""  # such as "ad"
exercises.check("10.5", my_objections)

# %% tags=["solution"]
my_objections = "abce"
exercises.check("10.5", my_objections)

# %% [markdown]
# ## Summary
#
# - A data set is a folder of folders. Every file in it is used or named.
# - Judge the encoders you have first. Training on a small folder has to beat them on classes it did not see.
# - A cosine by itself means nothing: what all embeddings share pushes all cosines up.
# - Whether there is anything like a picture, and whether its name is right, are two questions. The index answers both from its own pictures, each asked as if it were new.
# - It notices what is far from everything, and what it was shown as strange. It does not notice a sister of what it knows.
# - Rates hold for pictures like those that set them, and error rates per pair multiply with the size of the index.
#
# ## Questions
#
# **1.** Your folder has a class "other", with everything that fits nowhere. Should it be trained on? Should it be in the index?
#
# <details><summary>Answer</summary>
#
# Not trained on: its pictures have nothing in common, and the loss would pull them to one proxy all the same. In the index it does what the strangers do: a query that is nearest to it is like nothing of interest.
#
# </details>
#
# **2.** Each object was photographed twenty times in one sitting, always on the same table. Recall@1 is nearly perfect, and the search refuses half of all new photographs. Explain both.
#
# <details><summary>Answer</summary>
#
# Table and light are recognized, not the object; and a known picture asked as if it were new finds its nineteen twins, so the threshold lies where only twins come. Photograph some objects again elsewhere, and set the threshold with those.
#
# </details>
#
# **3.** You add three hundred pictures of new classes to the index. Must you train again? Must you set the threshold again?
#
# <details><summary>Answer</summary>
#
# Training, no: embed them and append; that is what a metric is for. The threshold, yes: it comes from the pictures that are there. (After retraining, <em>all</em> pictures must be embedded anew: embeddings of two encoders are not comparable.)
#
# </details>
#
# **Still open.** What would make the search notice the sister it does not have? More pictures of each species; a second look at the marks that differ; a person who is asked when two names are close. The course ends here, with a tool that says how often it is wrong. The rest is your data.
#
# ## Further reading
#
# - J. Johnson, M. Douze, H. Jégou, [Billion-scale similarity search with GPUs](https://arxiv.org/abs/1702.08734), 2017: faiss, which does the searching here.
# - M. Radovanović, A. Nanopoulos, M. Ivanović, *Hubs in Space: Popular Nearest Neighbors in High-Dimensional Data*, JMLR 2010.
# - Y. Sun, Y. Ming, X. Zhu, Y. Li, [Out-of-Distribution Detection with Deep Nearest Neighbors](https://arxiv.org/abs/2204.06507), ICML 2022: nearness as a score for "nothing like this".
# - P. Grother, M. Ngan, K. Hanaoka, *Face Recognition Vendor Test, Part 3: Demographic Effects*, NISTIR 8280, 2019.
