# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/01_data.ipynb)
#
# Notebook 00 left a question: a large change of the proxies, and a search that hardly moved. Before anybody explains a number, it is worth knowing what it was measured on. What a model can learn, and what its score means, is decided before the first gradient: by which pictures there are, which of them are kept apart, and what is done to them on the way to the network.
#
# **What you will learn**
#
# - what an `ImageSet` is, and how the drawn birds of the course are made;
# - why test *classes* must be new, with an experiment that only drawn birds, or very many photographs, allow;
# - what the four benchmarks of the literature hold, and how to get them;
# - how a file becomes a training batch and, differently, an evaluation picture;
# - traps in picture files that no error message warns you of.
#
# **Before you start** [00 · Start here](00_start_here.ipynb), for what Recall@K is.
#
# **Time** Under a minute of computing on a two-core laptop.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import dataclasses
import hashlib
import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.linalg import block_diag
from torch import nn

from sobook import figures
from sobook.course.aviary import species as aviary
from sobook.course.aviary.scene import NUISANCE
from sobook.course import exercises
from sobook.course.predictions import predict, reveal
from sobook.data import benchmarks, image_sets, loader, pixels
from sobook.errors import SobookError
from sobook.embedding import embed
from sobook.encoder import Encoder, make_head
from sobook.losses import ProxyAnchor
from sobook.retrieval import evaluate
from sobook.statistics import compare_classes, verdict

name = session.config().dataset  # aviary in quick mode, cub200 in full mode
image_sets.prepare(name, progress=not session.quick)
train = image_sets.load(name, "train")
test = image_sets.load(name, "test")

# %% [markdown] tags=["slide"]
# ## 1 · What a data set is here
#
# Paths, labels, names of the classes: nothing more. Pixels are read later, by another file. An `ImageSet` does not change, and labels always count from 0 to $C-1$, so that label `c` is row `c` of the proxies.

# %%
print(train.describe())

# %%
for i in (0, len(train) // 2, len(train) - 1):
    path, label = train.paths[i], train.labels[i]
    print(f"{i:6,}  {path.parent.name}/{path.name}  label {label}")
few = train.subset([0, 1, len(train) - 1])
print(f"labels of a subset are numbered anew: {few.labels}")

# %% [markdown] tags=["slide"]
# ## 2 · Birds in families
#
# The birds of the course are drawn by `sobook/course/aviary/`. A *genus* fixes the silhouette and the base colors; its ten *species* differ in field marks: cap, throat, wing bars and so on. Because we drew them, we can ask things that no photograph answers. Here is one genus, one row per species, with the marks in which its species differ. In the last column, which half of the data set a species belongs to:

# %%
marks = aviary.attributes(100)  # one row per species, for all 100
field_marks = list(marks.columns[4:])  # after index, name, genus and form
family = marks[marks.genus == marks.genus[20]]
varying = [mark for mark in field_marks if family[mark].nunique() > 1]
print(f"{family.genus.iloc[0]}, a {family.form.iloc[0]}: ", end="")
print(f"{len(varying)} of {len(field_marks)} marks vary")
half = np.where(family["index"] < 50, "train", "test")
family.set_index("name")[varying].assign(half=half)

# %% tags=["slide"]
all_species = aviary.species(100)
relatives = [all_species[index] for index in family["index"]][:5]
figures.finish(
    figures.contact_sheet(
        [
            np.asarray(aviary.draw(one, i))
            for one in relatives
            for i in range(6)
        ],
        [one.name if i == 0 else "" for one in relatives for i in range(6)],
        columns=6,
    ),
    "Five species of one genus, six pictures each, in rows: "
    + ", ".join(one.name for one in relatives)
    + ".",
)

# %% [markdown]
# Cover the captions and try to tell the rows apart: pose, light and background change more from picture to picture than the marks do from species to species. That is what makes it a task.
#
# **Predict.** In how many of the thirteen marks do two species of one genus differ, on average?

# %%
predict("01.a", None)

# %%
pairs = pd.DataFrame(
    itertools.combinations(range(len(marks)), 2), columns=["a", "b"]
)
values = marks[field_marks].astype(str).to_numpy()  # (100, marks)
differ = (values[pairs.a] != values[pairs.b]).sum(axis=1)
genera = marks.genus.to_numpy()
same_genus = genera[pairs.a] == genera[pairs.b]
pairs["pair"] = np.where(same_genus, "same genus", "other genus")
pairs["marks that differ"] = differ
counts = pairs.groupby("pair")["marks that differ"]
counts = counts.value_counts(normalize=True).unstack(fill_value=0)
reveal(
    "01.a",
    counts.loc[["same genus", "other genus"]]
    .style.format("{:.0%}")
    .background_gradient(cmap="Blues", axis=None, vmax=1.6),
    truth=differ[same_genus].mean(),
)

# %% [markdown]
# Within a genus a handful of marks at most; between genera many more, and the silhouette besides. A model that only sees shape finds the genus and then guesses among its species. Which marks separate relatives most often?

# %%
related = pairs[same_genus]
fraction = (values[related.a] != values[related.b]).mean(axis=0)
by_mark = pd.Series(fraction, field_marks, name="relatives that differ in it")
by_mark = by_mark.sort_values(ascending=False).to_frame()
by_mark.style.format("{:.0%}").bar(color="#CFE3F1", vmin=0)

# %% [markdown]
# Keep this table in mind for the crops below: a mark that is small, at the edge, or shown by color alone can be destroyed by augmentation.

# %% [markdown] tags=["slide"]
# ## 3 · What varies, and what does not
#
# Forty pictures of **one** species. Everything that changes here is *nuisance*: an embedding should ignore all of it. The table below has its sizes: movement of head, wing and tail (`pose`; 0 is a stuffed bird); `tilt` in degrees either way; `scale`, the fraction of the frame that the bird spans, and `place`, its shift as a fraction of the frame; `light`, how much darker it may get, and `cast`, how much each color channel may change, both as fractions; `blur`, the largest radius in pixels; `noise`, the largest amplitude of 255 gray levels; `occluded`, the fraction of pictures with a twig or leaves in front.

# %% tags=["slide"]
one = relatives[1]
figures.finish(
    figures.contact_sheet(
        [np.asarray(aviary.draw(one, i, size=64)) for i in range(40)]
    ),
    f"Forty pictures of one species, {one.name}, in different poses, sizes,"
    " places, lights and backgrounds.",
)

# %%
amounts = pd.Series(dataclasses.asdict(NUISANCE), name="how much it varies")
amounts.to_frame()

# %% [markdown]
# **Draw the same bird twice: how many pixels differ?** A seed fixes every picture by itself. So the order of drawing, the number of processes and the machine make no difference, and the birds of this page are the birds of yours, to the byte.


# %%
def fingerprint(image):
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


again = aviary.draw(one, 7)
print("drawn once: ", fingerprint(aviary.draw(one, 7)))
print("drawn again:", fingerprint(again))
print("other seed: ", fingerprint(aviary.draw(one, 7, seed=1)))
if session.quick:
    on_disk = next(
        path
        for path in (*train.paths, *test.paths)
        if path.parent.name == one.folder and path.stem == "0007"
    )
    print("on disk:    ", fingerprint(pixels.read_image(on_disk)))

# %% [markdown] tags=["slide"]
# ## 4 · Why test classes must be new
#
# The split of the field is *class-disjoint*, also called zero-shot: the first half of the classes is for training, the second half for testing. Not one class is in both.


# %%
def genus(class_name):
    """051.Little_Mossdove → Mossdove; also serves for the birds of CUB."""
    return class_name.split("_")[-1]


overlap = {
    "images": set(train.paths) & set(test.paths),
    "species": set(train.class_names) & set(test.class_names),
    "genera": {genus(n) for n in train.class_names}
    & {genus(n) for n in test.class_names},
}
print({what: len(both) for what, both in overlap.items()})

# %% [markdown]
# The *species* are all new. Their *genera* are not: each genus has species in both halves. So a model can learn from the training species which kinds of marks matter, and is then asked about other combinations of them. (CUB is stricter than its 200 bird names suggest: it is sorted by name, so families stay together, and only two of its hundred test classes, the White Pelican and the Green-tailed Towhee, share the last word of their name with a training class. `split_by_genus=1` draws the aviary's line between genera as well.)
#
# Why not just keep some *pictures* of every class apart, as for a classifier? Such a test is called *closed-set*. To compare the two fairly, the same pictures of the same species should serve in both; else one measures how hard the species are. A *crossover* does that. Two heads are trained with Proxy Anchor on frozen features: head A on the first half of the species, head B on the second half, and of each species on three quarters of the pictures only. Then every species has one head that knows it and one that does not, and the last quarter of its pictures was seen by neither:
#
# 1. the head that knows the species, on pictures it was trained on;
# 2. the head that knows the species, on **new pictures** (closed-set);
# 3. the head that does not know the species, on the same new pictures (class-disjoint).
#
# **Predict** the order of the three by their *gain* over the frozen features after 60 epochs, smallest first.

# %%
TESTS = ("trained pictures", "new pictures", "new species")
predict("01.b", None, choices=TESTS, order=True)

# %%
config = session.config()
encoder = Encoder.create(config.encoder, weights=config.weights)
encoder = encoder.to(session.device)
halves = []  # (features, labels, place of a picture among those of its class)
for part in (train, test):
    x = torch.from_numpy(embed(encoder, part, progress=False))  # (N, F)
    y = torch.from_numpy(part.labels)
    halves.append((x, y, torch.arange(len(y)) - torch.searchsorted(y, y)))


def train_head(features, labels, epochs):
    """A head on frozen features, with Proxy Anchor."""
    torch.manual_seed(session.seed)
    width = features.shape[1]
    head, loss = make_head(width, 128), ProxyAnchor(int(labels.max()) + 1, 128)
    optimizer = torch.optim.AdamW(
        [
            {"params": head.parameters(), "lr": 1e-3},
            {"params": loss.parameters(), "lr": 1e-2},
        ]
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(features)).split(100):
            optimizer.zero_grad()
            loss(head(features[rows]), labels[rows]).backward()
            optimizer.step()
    return head.eval()


heads = {
    epochs: [
        train_head(x[p % 4 > 0], y[p % 4 > 0], epochs) for x, y, p in halves
    ]
    for epochs in (20, 60)
}  # A and B each

# %% [markdown]
# Each half is searched by itself: `block_diag` puts the two halves into dimensions of their own, where their cosines are 0, so that one call evaluates both searches and all hundred species stay paired.


# %% tags=["slide"]
@torch.inference_mode()
def evaluated(models, new):
    """Both halves, each under its model: new pictures, or as many others."""
    embeddings, labels = [], []
    for half, (model, (x, y, p)) in enumerate(zip(models, halves, strict=True)):
        chosen = p % 4 == (0 if new else 1)
        embeddings.append(F.normalize(model(x[chosen]), dim=1).numpy())
        labels.append(y[chosen].numpy() + 1000 * half)
    labels = np.unique(np.concatenate(labels), return_inverse=True)[1]
    return evaluate(block_diag(*embeddings), labels, ks=(1,))


frozen = [nn.Identity(), nn.Identity()]
before = {new: evaluated(frozen, new) for new in (False, True)}
after, rows = {}, []
for epochs, (A, B) in heads.items():
    after["trained pictures", epochs] = evaluated((A, B), False)
    after["new pictures", epochs] = evaluated((A, B), True)
    after["new species", epochs] = evaluated((B, A), True)
gains = {
    key: compare_classes(before[key[0] != "trained pictures"], found)
    for key, found in after.items()
}
for (which, epochs), g in gains.items():
    label = f"{which}, {epochs} epochs"
    rows.append((label, g.difference, g.low, g.high, which))
excess = {
    e: compare_classes(after["new species", e], after["new pictures", e])
    for e in heads
}
said = [
    f"{e} epochs, closed-set against class-disjoint on the same pictures: "
    f"{verdict(one, list(excess.values()))}, {one}"
    for e, one in excess.items()
]
reveal(
    "01.b",
    figures.interval_plot(rows, "gain of Recall@1 by training", reference=0.0),
    *said,
    truth=sorted(TESTS, key=lambda which: gains[which, 60].difference),
)

# %% [markdown]
# In the committed run the order is the same after 20 and after 60 epochs; after 60 the gain is .16 on trained pictures, .08 on new pictures of known species, and a little less on new species, by a difference too small for this experiment to show. Between the first and the second lies what training learned about *these pictures*; between the second and the third, what it learned about *these species*; what is left in the third it learned about *birds*. How much each of them holds depends on network, data and length of training, and nobody knows it beforehand: a larger network learns more by heart. Only the last is of use for classes that were not trained on, so only the third test answers our question, and a score from a closed-set split cannot be held against it. For the same reason the official train and test lists of CUB and Cars, made for classification, are not used in metric learning.

# %% [markdown] tags=["slide"]
# ## 5 · Held-out training classes
#
# Something has to choose the number of epochs, the learning rate, the weight of a loss. If the test classes do it, they have been trained on after all, only by hand. So a fraction of the *training classes* is set aside as whole classes, and labels are numbered anew in both parts:

# %% tags=["slide"]
fit_part, validation = image_sets.hold_out(train, fraction=0.2, seed=0)
parts = {"train": fit_part, "validation": validation, "test": test}
table = {
    part: {
        "images": len(s),
        "classes": s.num_classes,
        "labels": f"0..{s.labels.max()}",
        "genera": len({genus(n) for n in s.class_names}),
    }
    for part, s in parts.items()
}
pd.DataFrame(table).T

# %%
for a, b in itertools.combinations(parts, 2):
    names_a, names_b = set(parts[a].class_names), set(parts[b].class_names)
    kin = set(map(genus, names_a)) & set(map(genus, names_b))
    print(f"{a} and {b} share ", end="")
    print(f"{len(names_a & names_b)} species and {len(kin)} genera")

# %% [markdown]
# Drawn, one column per class. On top, how a classifier's data are divided: some pictures of *every* class to each part. Below, the split of metric learning, with the held-out training classes:

# %%
by_class = {p: np.array(s.class_names)[s.labels] for p, s in parts.items()}
mixed = np.concatenate(list(by_class.values()))
mixed = np.random.default_rng(0).permutation(mixed)
borders = np.cumsum([len(s) for s in parts.values()])[:-1]
closed = dict(zip(by_class, np.split(mixed, borders), strict=True))
figures.split_chart(
    {"closed set": closed, "class-disjoint": by_class}, show=200
)

# %% [markdown]
# No species is shared anywhere, genera are: every genus of the validation species and every genus of the test species also has training species. So validation asks the same kind of question as the test will. Its score is still not comparable with the test's, since it searches among fewer classes, which is easier. It serves to *choose*, not to report.
#
# ### Exercise 1 · Find the bug: a class-disjoint split
#
# A colleague writes the split: given the labels of `N` pictures, return the indices of the training pictures and of the held-out ones, so that a `fraction` of the *classes* (rounded, drawn with the seed) is held out whole. The function below holds out a fifth of the pictures, and training on it gives wonderful validation scores. Mend it.
#
# <details><summary>Hint</summary>
#
# `np.random.default_rng(seed).permutation(np.unique(labels))` shuffles the classes; `np.isin(labels, chosen)` marks the pictures of some of them.
#
# </details>


# %%
def split_by_class(labels, fraction, seed):
    """Indices (train, held out) such that no class is in both."""
    order = np.random.default_rng(seed).permutation(len(labels))
    count = round(fraction * len(labels))
    return order[count:], order[:count]


def report(split, labels=train.labels, fraction=0.2):
    kept, held = split(labels, fraction, seed=0)
    wanted = round(fraction * len(np.unique(labels)))
    both = np.intersect1d(labels[kept], labels[held])
    print(f"classes held out: yours {len(np.unique(labels[held]))}, ", end="")
    print(f"expected {wanted}")
    print(f"classes in both parts: yours {len(both)}, expected 0")


report(split_by_class)
exercises.check("01.1", split_by_class)


# %% tags=["solution"]
def split_by_class(labels, fraction, seed):
    classes = np.unique(labels)
    count = round(fraction * len(classes))
    chosen = np.random.default_rng(seed).permutation(classes)[:count]
    held = np.isin(labels, chosen)  # (N,) bool
    return np.flatnonzero(~held), np.flatnonzero(held)


report(split_by_class)
exercises.check("01.1", split_by_class)

# %% [markdown] tags=["slide"]
# ## 6 · The four benchmarks
#
# What the literature reports on. The table is read from `data/benchmarks.toml`, the file that the code itself goes by.

# %% tags=["slide"]
rows = {}
for key, card in benchmarks.cards().items():
    splits = card["splits"]
    size = {
        s: f"{v['images']:,} of {v['classes']:,}" for s, v in splits.items()
    }
    rows[key] = {
        "title": card["title"],
        "training images of classes": size.pop("train"),
        "test": "; ".join(f"{split} {text}" for split, text in size.items()),
        "images per class": f"{card['images'] / card['classes']:.1f}",
        "Recall@K at": ", ".join(map(str, card["recall_at"])),
        "license": card["license"],
    }
table = pd.DataFrame(rows).T.style
table.set_properties(**{"text-align": "left", "vertical-align": "top"})

# %% [markdown]
# Read the column *images per class* before any Recall@K. Where a query has dozens of relevant images, one of them is easily first; where it has four, Recall@1 is another task altogether. And read *classes*: from CUB to SOP the number of proxies grows a hundredfold, which will decide whether proxies *can* be orthogonal at all ([05](05_soft_orthogonality.ipynb)).
#
# To get one, in a terminal:
#
# ```sh
# sobook prepare cub200 --root ~/datasets
# ```
#
# An interrupted download resumes where it stopped, the archive is verified, and the counts are compared with the table. What may not or cannot be fetched by a program says how a person gets it:

# %%
for key, card in benchmarks.cards().items():
    size = sum(archive.get("size", 0) for archive in card["archives"])
    how = "fetched" if "url" in card["archives"][0] else "by hand"
    amount = f"{size / 1e9:.2f} GB" if size else "size not published"
    print(f"{key} ({how}, {amount}): {card['by_hand']}\n")

# %% [markdown]
# ### Exercise 2 · Derive and check: what would chance score?
#
# Before any model, know what a model that knows nothing would get. If every query is answered by a picture drawn at random from the others, with $n_c$ pictures in class $c$ and $N = \sum_c n_c$, what Recall@1 do you expect? Derive it, code it, and compare with random vectors, averaged over a few draws.
#
# <details><summary>Hint</summary>
#
# Condition on the class of the query: it is c with probability $n_c/N$, and then $n_c-1$ of the $N-1$ others are right.
#
# </details>


# %%
def chance_recall_at_1(labels):
    """Expected Recall@1 of random neighbors; labels (N,)."""
    return float("nan")  # your code here


rng = np.random.default_rng(0)
noise = rng.standard_normal((8, len(test), 8), dtype=np.float32)
measured = np.array(
    [evaluate(x, test.labels, ks=(1,)).recall[1] for x in noise]
)
spread = measured.std(ddof=1) / np.sqrt(len(measured))


def report_chance(function):
    print(f"yours {function(test.labels):.5f}, measured ", end="")
    print(f"{measured.mean():.5f} ± {spread:.5f} (standard error)")


report_chance(chance_recall_at_1)
exercises.check("01.2", chance_recall_at_1)


# %% tags=["solution"]
def chance_recall_at_1(labels):
    counts = np.bincount(labels)  # n_c
    total = counts.sum()  # N
    # A query of class c (probability n_c / N) has n_c − 1 relevant images
    # among N − 1 others.
    return float((counts * (counts - 1)).sum() / (total * (total - 1)))


report_chance(chance_recall_at_1)
exercises.check("01.2", chance_recall_at_1)

# %% [markdown] tags=["slide"]
# ## 7 · Your own folder, and some traps
#
# A folder with one subfolder per class is a data set: `sobook.load("folder", "train", root=…)`. Picture files from the wild hold surprises. Here is one bird, saved in five ways that cameras, scanners, printers and designers use every day: as a photograph that knows it was turned (EXIF), for print (CMYK), gray, with a palette, and cut out (with transparency). **Predict:** how many of the five does a plain `Image.open` hand to the network in another shape than (72 or 96, 96, 3)?

# %%
predict("01.c", None)

# %%
bird = aviary.draw(relatives[0], 3, size=96)
folder = Path(tempfile.mkdtemp())
for class_name in ("a_bird", "another"):  # a data set needs two classes
    (folder / class_name).mkdir()
    bird.save(folder / class_name / "plain.png")

sideways = Image.Exif()
sideways[0x0112] = 6  # "turn me by 90 degrees to see me upright"
upright = bird.crop((0, 12, 96, 84))  # wider than high
turned = upright.rotate(90, expand=True)
turned.save(folder / "a_bird" / "exif.jpg", exif=sideways, quality=95)
bird.convert("CMYK").save(folder / "a_bird" / "print.jpg", quality=95)
bird.convert("L").save(folder / "a_bird" / "gray.png")
bird.quantize(32).save(folder / "a_bird" / "palette.png")
inside = np.hypot(*(np.indices((96, 96)) - 47.5)) < 46
mask = Image.fromarray((inside * 255).astype(np.uint8))
cut_out = Image.merge("RGBA", (*bird.split(), mask))
cut_out.save(folder / "a_bird" / "cut_out.png")

# %% tags=["slide"]
kinds = ["plain.png", "exif.jpg", "gray.png", "palette.png"]
kinds += ["cut_out.png", "print.jpg"]
files = [folder / "a_bird" / kind for kind in kinds]
opened = {path.name: np.asarray(Image.open(path)) for path in files}
rows = {
    path.name: {
        "mode": Image.open(path).mode,
        "plain open": opened[path.name].shape,
        "read_image": np.asarray(pixels.read_image(path)).shape,
    }
    for path in files
}
wrong = sum(row["plain open"] != row["read_image"] for row in rows.values())
reveal("01.c", pd.DataFrame(rows).T, truth=wrong)

# %% [markdown]
# Two dimensions, or four channels, may at least end in an error. The worst are those that do not: a sideways photograph is simply sideways; a palette picture opened plainly is a matrix of *color numbers*, which looks like a gray picture and is none; and whoever takes the first three of four channels gets inks for colors, or what was meant to be cut away. In the figure, the upper line is what plain opening gives (shown as a network would see it), the lower what `read_image` gives.


# %%
def as_network_sees(array):
    """Gray values as they stand; the first three channels of four."""
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return array[..., :3]


plain = [as_network_sees(array) for array in opened.values()]
read = [np.asarray(pixels.read_image(path)) for path in files]
titles = [f"{path.stem}: plain" for path in files]
figures.finish(
    figures.contact_sheet(
        plain + read, titles + ["read_image"] * len(files), columns=6
    ),
    "The same bird from six files: opened plainly it is fine, sideways, gray,"
    " nearly black, not cut out, in false colors; read_image gives upright RGB"
    " each time.",
)

# %% [markdown]
# A file that cannot be opened is named once, with the reason, and left out; missing pictures of a benchmark are an error instead, because published numbers are made on all of them.

# %%
(folder / "another" / "broken.jpg").write_bytes(b"\xff\xd8 half a photograph")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    own = image_sets.load("folder", "test", root=folder)
print(str(caught[-1].message).replace(str(folder), "…"))
print(len(own), "picture left of the class", own.class_names[0])
try:
    pixels.read_image(folder / "another" / "broken.jpg")
except SobookError as error:
    print("read_image says:", str(error).replace(str(folder), "…"))

# %% [markdown] tags=["slide"]
# ## 8 · From files to batches
#
# Decoding is slow, so it happens once: `pixels.decode` keeps all pictures, resized, in one flat file. Training then cuts *random resized crops*: a random part of the picture, at least `crop_scale` of its area, stretched to the network's input, and flipped half of the time. Twelve draws from one picture: first keeping at least a fifth of the area, as Hyp-ViT and HIER do for DeiT, then at least as much as the runs of this mode keep (`config.crop_scale`), then at least four fifths.

# %% tags=["slide"]
side = Encoder.create(config.encoder, weights=None).image_size
chosen = train.subset([len(train) // 3])
larger = round(side * 1.5)
source = pixels.decode(chosen, larger, enlarge=False, progress=False)


def crops(scale, count=12):
    for epoch in range(count):
        batches = loader.TrainingBatches(
            source,
            chosen.labels,
            image_size=side,
            batch_size=1,
            crop_scale=scale,
            epoch=epoch,
        )
        yield batches[0][0][0].permute(1, 2, 0).numpy()  # (H, W, 3)


whole = np.asarray(pixels.read_image(chosen.paths[0]))
blank = [np.full_like(whole, 255)] * 11
rows = [*crops(0.2), *crops(config.crop_scale), *crops(0.8)]
figures.finish(
    figures.contact_sheet([whole, *blank, *rows], columns=12),
    "A bird, and three rows of twelve random crops of it that keep at least"
    f" 20%, {config.crop_scale:.0%} and 80% of its area.",
)

# %% [markdown]
# The single picture on top is the original. Look, here and in the batch below, for crops that have lost the head, the legs, or the very mark by which the species is known: to ask a network to give these the same embedding as the whole bird is a strong demand. It is the price of what crops teach, that place and size do not matter. How hard to crop is a choice like any other: birds with small marks at small size want more care than photographs at 224 pixels.
#
# A whole batch, as the network gets it:

# %%
small, _ = image_sets.hold_out(train, fraction=0.5, seed=1)
source_all = pixels.decode(small, larger, enlarge=False, progress=False)


def batches_of(epoch):
    return loader.TrainingBatches(
        source_all,
        small.labels,
        image_size=side,
        batch_size=20,
        images_per_class=2,
        crop_scale=config.crop_scale,
        seed=session.seed,
        epoch=epoch,
    )


batches = batches_of(epoch=1)
batch, labels = batches[0]  # (B, 3, H, W) uint8, (B,)
print(tuple(batch.shape), batch.dtype, labels.tolist())
figures.finish(
    figures.contact_sheet(list(batch.permute(0, 2, 3, 1).numpy()), columns=10),
    "A training batch of twenty crops, two each of ten species; several show"
    " parts of the bird only.",
)

# %% [markdown]
# Here `images_per_class=2` puts pairs into the batch, as methods that compare pictures with pictures need it. Proxy Anchor compares pictures with proxies, so plain random batches will do, and they are the default.
#
# **Ask for the same batch again: the same crops?** The random numbers of a batch depend on the seed, the epoch and the number of the batch, and on nothing else. So it does not matter how many processes prepare batches, or whether a training run was interrupted.

# %%
twin = batches_of(epoch=1)
torch.manual_seed(999)  # the global generator has no say
print("same batch again:  ", torch.equal(twin[0][0], batch))
print("next batch is other:", not torch.equal(twin[1][0], batch))

# %% [markdown] tags=["slide"]
# ## 9 · At evaluation: no chance involved
#
# Evaluation resizes the short side to 256 for an input of 224, in proportion for other sizes, and takes the center. Left the picture, right what of it reaches the network:

# %% tags=["slide"]
short = loader.evaluation_short_side(side)
print(f"short side {short}, then the central {side} × {side}")
few = test.subset(np.linspace(0, len(test) - 1, 8).astype(int))
seen = pixels.decode(few, short, progress=False)
(crop,) = loader.evaluation_batches(seen, side, batch_size=8)  # (8, 3, H, W)
before_after = [
    picture
    for path, cut in zip(
        few.paths, crop.permute(0, 2, 3, 1).numpy(), strict=True
    )
    for picture in (np.asarray(pixels.read_image(path)), cut)
]
figures.finish(
    figures.contact_sheet(
        before_after, ["picture", "evaluated"] * len(few), columns=8
    ),
    "Eight pictures, each beside its evaluation crop, which lacks a narrow rim"
    " and is a little blurred.",
)

# %% [markdown]
# ### Exercise 3 · Warm-up: labels that count from 0
#
# Label `c` is row `c` of the proxies, so labels must be 0, 1, 2 … without gaps. The test classes of CUB have the ids 101 to 200, and a subset of them has gaps. Turn any whole numbers into such labels, in the order of the old ones. What would a label of 150 do to a loss with 100 proxies? And to one with 200?
#
# <details><summary>Hint</summary>
#
# The new label of an image is the place of its old label among the sorted different ones. `np.unique` has an option that returns just that.
#
# </details>


# %%
def labels_from_zero(labels):
    """(N,) any whole numbers → 0..C−1, in the order of the old ones."""
    return np.full(len(labels), -1)  # your code here


ids = np.array([101, 150, 103, 101])
print(f"yours {labels_from_zero(ids)}, expected [0 2 1 0]")
exercises.check("01.3", labels_from_zero)


# %% tags=["solution"]
def labels_from_zero(labels):
    return np.unique(labels, return_inverse=True)[1]


ids = np.array([101, 150, 103, 101])
print(f"yours {labels_from_zero(ids)}, expected [0 2 1 0]")
exercises.check("01.3", labels_from_zero)

# %% [markdown]
# ### Exercise 4 · Design: what is wrong with this plan?
#
# A student plans an experiment on CUB. *"(a) We hold out twenty whole training classes for validation. (b) As test set we take the pictures that `train_test_split.txt` marks as test, of all 200 classes. (c) We report the epoch with the best Recall@1 on the test set. (d) Some test species have relatives among the training species, and we leave them in. (e) We get .79 on CUB and .75 on Stanford Online Products, so our model is better at birds than at products."* Which of the five must be changed? Give the letters.

# %%
must_change = ""  # such as "ad"
exercises.check("01.4", must_change)

# %% tags=["solution"]
must_change = "bce"
exercises.check("01.4", must_change)

# %% [markdown]
# ## Summary
#
# - A data set is paths and labels; the pictures of the course are drawn, with known marks, and identical everywhere.
# - Relatives differ in few marks, so the nearest wrong answers are relatives.
# - Train and test share no class. A gain on known classes is not a gain on new ones, so only the disjoint test counts; and what is chosen is chosen on held-out *training* classes.
# - Benchmarks differ in images per class and in number of classes by orders of magnitude: their Recall@K values are not to be compared with each other.
# - Training crops at random, but from the seed alone; evaluation resizes and takes the center.
#
# ## Questions
#
# 1. Recall@1 on the held-out training classes is usually higher than on the test classes. Does this make the choice of an epoch invalid?
#
# <details><summary>Answer</summary>
#
# No: it only has to rank epochs in about the right order. It is higher because fewer classes are searched, and because the best of several epochs was taken; so it must not be reported in the place of the test score.
#
# </details>
#
# 2. A library reports a Recall@1 on CUB that is many points above everyone else's. Its code reads `train_test_split.txt`. What has happened?
#
# <details><summary>Answer</summary>
#
# That file is the classification split: every class has pictures in both parts. It is a closed-set test, the second one of section 4, and does not compare with class-disjoint numbers.
#
# </details>
#
# 3. Why would you expect Recall@1 on SOP to fall if you kept only two pictures of every class?
#
# <details><summary>Answer</summary>
#
# Every query would have a single relevant image, and it would have to be nearer than all other products. With more relevant images, any of them will do.
#
# </details>
#
# **Still open.** We know now what Recall@1 is measured on: new species, whose relatives were seen in training, under light and poses that say nothing about them. Before a loss can be blamed or praised, one should know how far the *network* gets that has never been trained on any of this, and where it errs: [02 · DeiT features](02_deit_features.ipynb).
#
# ## Further reading
#
# - H. O. Song, Y. Xiang, S. Jegelka, S. Savarese, *Deep Metric Learning via Lifted Structured Feature Embedding*, CVPR 2016: introduces SOP.
# - C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie, *The Caltech-UCSD Birds-200-2011 Dataset*, 2011: what attributes and parts CUB has beside its labels.
# - Z. Liu, P. Luo, S. Qiu, X. Wang, X. Tang, *DeepFashion*, CVPR 2016: In-Shop, with a gallery apart from the queries.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), 2020: why choosing on test classes has misled the field.
