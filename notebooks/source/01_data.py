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
# What a model can learn, and what its score means, is decided before the first gradient: by which pictures there are, which of them are kept apart, and what is done to them on the way to the network.
#
# **What you will learn**
#
# - what an `ImageSet` is, and how the drawn birds of the course are made;
# - why test *classes* must be new, with an experiment that only drawn birds allow;
# - what the four benchmarks of the literature hold, and how to get them;
# - how a file becomes a training batch and, differently, an evaluation picture;
# - traps in picture files that no error message warns you of.
#
# **Before you start** [00 · Start here](00_start_here.ipynb), for what Recall@K is.
#
# **Time** Less than a minute on a two-core laptop once the Proxy Anchor run exists, plus a minute and a half if it does not; on a T4 GPU in full mode: not measured.
#
# **Versions last run** and the machine: printed by the first cell. Every section asks before it shows: write your prediction down, then run.

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
from PIL import Image

from sobook import figures
from sobook.aviary import species as aviary
from sobook.course import exercises
from sobook.data import benchmarks, image_sets, loader, pixels
from sobook.aviary.scene import NUISANCE
from sobook.encoder import Encoder
from sobook.retrieval import evaluate
from sobook.statistics import compare_classes
from sobook.training.loop import TrainConfig, fit

name = session.config().dataset  # aviary in quick mode, cub200 in full mode
image_sets.prepare(name, progress=not session.quick)
train, test = image_sets.load(name, "train"), image_sets.load(name, "test")

# %% [markdown]
# ## 1 · What a data set is here
#
# Paths, labels, names of the classes: nothing more. Pixels are read later, by another file. An `ImageSet` does not change, and labels always count from 0 to $C-1$, so that label `c` is row `c` of the proxies.

# %%
print(train.describe())

# %%
for i in (0, len(train) // 2, len(train) - 1):
    path, label = train.paths[i], train.labels[i]
    print(f"{i:6,}  {path.parent.name}/{path.name}  label {label} = {train.class_names[label]}")
train.subset([0, 1, len(train) - 1]).labels  # a subset is numbered anew: 0..C'−1

# %% [markdown] tags=["slide"]
# ## 2 · Birds in families
#
# The birds of the course are drawn by `sobook/aviary/`. A *genus* fixes the silhouette and the base colors; its ten *species* differ in field marks: cap, throat, wing bars and so on. Because we drew them, we can ask things that no photograph answers. Here is one genus, one row per species, with the marks in which its species differ. In the last column, which half of the data set a species belongs to:

# %%
marks = aviary.attributes(100)  # one row per species, for all 100
field_marks = list(marks.columns[4:])  # after index, name, genus and form
family = marks[marks.genus == marks.genus[20]]
varying = [mark for mark in field_marks if family[mark].nunique() > 1]
print(f"{family.genus.iloc[0]}, a {family.form.iloc[0]}: {len(varying)} of {len(field_marks)} marks vary")
family.set_index("name")[varying].assign(half=np.where(family["index"] < 50, "train", "test"))

# %% tags=["slide"]
all_species = aviary.species(100)
relatives = [all_species[index] for index in family["index"]][:5]  # five of the ten
figures.finish(
    figures.contact_sheet(
        [np.asarray(aviary.draw(one, instance)) for one in relatives for instance in range(6)],
        [one.name if instance == 0 else "" for one in relatives for instance in range(6)],
        columns=6,
    ),
    f"Five species of one genus, six pictures each, in rows: {', '.join(one.name for one in relatives)}.",
)

# %% [markdown] tags=["slide"]
# Cover the captions and try to tell the rows apart: pose, light and background change more from picture to picture than the marks do from species to species. That is what makes it a task.
#
# **In how many of the marks do two species of one genus differ? And two of different genera?**

# %% tags=["slide"]
pairs = pd.DataFrame(itertools.combinations(range(len(marks)), 2), columns=["a", "b"])
values = marks[field_marks].astype(str).to_numpy()  # (100, number of marks)
pairs["marks that differ"] = (values[pairs.a] != values[pairs.b]).sum(axis=1)
same_genus = marks.genus.to_numpy()[pairs.a] == marks.genus.to_numpy()[pairs.b]
pairs["pair"] = np.where(same_genus, "same genus", "other genus")
counts = pairs.groupby("pair")["marks that differ"].value_counts(normalize=True).unstack(fill_value=0)
counts.loc[["same genus", "other genus"]].style.format("{:.0%}").background_gradient(cmap="Blues", axis=None, vmax=1.6)

# %% [markdown]
# Within a genus a handful of marks at most; between genera many more, and the silhouette besides. A model that only sees shape finds the genus and then guesses among its species. Which marks separate relatives most often?

# %%
related = pairs[same_genus]
share = (values[related.a] != values[related.b]).mean(axis=0)
pd.Series(share, field_marks, name="pairs of relatives that differ in it").sort_values(ascending=False).to_frame().T.style.format("{:.0%}")

# %% [markdown]
# Keep this table in mind for the crops below: a mark that is small, at the edge, or shown by color alone can be destroyed by augmentation.

# %% [markdown] tags=["slide"]
# ## 3 · What varies, and what does not
#
# Forty pictures of **one** species. Everything that changes here is *nuisance*: an embedding should ignore all of it.

# %% tags=["slide"]
one = relatives[1]
figures.finish(
    figures.contact_sheet([np.asarray(aviary.draw(one, instance, size=64)) for instance in range(40)]),
    f"Forty pictures of one species, {one.name}, in different poses, sizes, places, lights and backgrounds.",
)

# %%
pd.Series(dataclasses.asdict(NUISANCE), name="how much pictures of one species differ").to_frame()

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
    on_disk = next(path for path in (*train.paths, *test.paths) if path.parent.name == one.folder and path.stem == "0007")
    print("on disk:    ", fingerprint(pixels.read_image(on_disk)))

# %% [markdown] tags=["slide"]
# ## 4 · Why test classes must be new
#
# The split of the field is *class-disjoint*, also called zero-shot: the first half of the classes is for training, the second half for testing. Not one class is in both.

# %%
def genus(class_name):
    """051.Little_Mossdove → Mossdove; the last word also serves for the birds of CUB."""
    return class_name.split("_")[-1]


overlap = {
    "images": set(train.paths) & set(test.paths),
    "species": set(train.class_names) & set(test.class_names),
    "genera": {genus(n) for n in train.class_names} & {genus(n) for n in test.class_names},
}
print({what: len(both) for what, both in overlap.items()})

# %% [markdown] tags=["slide"]
# The *species* are all new. Their *genera* are not: each genus has species in both halves, as most birds of CUB have relatives on the other side. So a model can learn from the training species which kinds of marks matter, and is then asked about other combinations of them.
#
# Is all that needed? Would it not do to keep some *pictures* of every class apart, as for a classifier? With drawn birds we can find out, because we can draw as many new pictures of any species as we like. We take the Proxy Anchor run of [00](00_start_here.ipynb) (trained now, if it is not on disk) and measure what training *gained* over frozen features, three times, with equally many species and pictures:
#
# 1. on pictures it was trained on;
# 2. on **new pictures of the same species**, which is a *closed-set* test;
# 3. on new pictures of **new species**, the *disjoint* test.
#
# **What do you expect: is the gain of the second test nearer to the first or to the third?**

# %%
config = TrainConfig(seed=session.seed)  # the quick run: Proxy Anchor on the aviary
run = fit(config)
by_folder = {one.folder: one for one in all_species}
known = [by_folder[class_name] for class_name in run.state["class_names"]]  # what it was trained on
unseen = list(np.random.default_rng(session.seed).permutation(np.array(all_species[50:], dtype=object))[: len(known)])
print(f"{len(known)} species known to the run, {len(unseen)} unseen ones")


def as_evaluated(image, side=64):
    """Short side 73, then the central 64 × 64: what section 9 shows."""
    short = loader.evaluation_short_side(side)
    margin = round((short - side) / 2)
    return np.asarray(image.resize((short, short), Image.Resampling.BICUBIC))[margin:][:side, margin:][:, :side]


def draw_all(species, instances):
    """(N, 3, 64, 64) uint8 pictures and (N,) labels."""
    pictures = [as_evaluated(aviary.draw(one, i)) for one in species for i in instances]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), np.repeat(np.arange(len(species)), len(instances))


sets = {  # the data set holds instances 0 to 39 of each species
    "1 · pictures it was trained on": draw_all(known, range(10)),
    "2 · new pictures, same species": draw_all(known, range(40, 50)),
    "3 · new species": draw_all(unseen, range(40, 50)),
}

# %% tags=["slide"]
frozen = Encoder.create(config.encoder, weights=config.weights)
trained = run.encoder()


@torch.inference_mode()
def evaluated(model, pictures, labels):
    model = model.to(session.device).eval()
    return evaluate(torch.cat([model(part.to(session.device)) for part in pictures.split(128)]), labels, ks=(1,))


scores = {which: (evaluated(frozen, *data), evaluated(trained, *data)) for which, data in sets.items()}
gains = {which: compare_classes(before, after) for which, (before, after) in scores.items()}
figures.interval_plot(
    [(which, gain.difference, gain.low, gain.high, "PA") for which, gain in gains.items()], "gain of Recall@1 by training", reference=0.0
)

# %%
print(pd.DataFrame({which: {"frozen": a.recall[1], "trained": b.recall[1]} for which, (a, b) in scores.items()}).T.round(3), "\n")
first, closed, disjoint = (gain.difference for gain in gains.values())
if closed > disjoint > 0:
    print(f"A closed-set test would have promised {closed / disjoint:.1f} times the gain that new species get.")
else:
    print(f"The closed-set gain is {closed:+.3f}, the gain on new species {disjoint:+.3f}.")
new_pictures = gains["2 · new pictures, same species"]
overlapping = new_pictures.low <= disjoint <= new_pictures.high
print("The gain on new species lies", "inside" if overlapping else "outside", "the interval of the closed-set gain.")

# %% [markdown]
# Compare gains, not levels: the species of the three tests are not equally hard. Between 1 and 2 lies what training learned about *these pictures*; between 2 and 3, what it learned about *these species*; what is left in 3 it learned about *birds*. Where the intervals overlap, this run does not show a gap: what it learned in so few epochs on so few species is mostly about birds. The longer and the larger a training, the more a network can learn by heart, and nobody knows beforehand how much. That is why the rule does not wait for the gap to be seen. Retrieval is used for classes that were not trained on, so only the third test answers the question, and a score from a closed-set split cannot be held against it. For the same reason the official train and test lists of CUB and Cars, made for classification, are not used in metric learning.

# %% [markdown] tags=["slide"]
# ## 5 · Held-out training classes
#
# Something has to choose the number of epochs, the learning rate, the weight of a loss. If the test classes do it, they have been trained on after all, only by hand. So a share of the *training classes* is set aside as whole classes, and labels are numbered anew in both parts:

# %%
fit_part, validation = image_sets.hold_out(train, fraction=0.2, seed=0)
parts = {"train": fit_part, "validation": validation, "test": test}
table = {
    part: {"images": len(s), "classes": s.num_classes, "labels": f"0..{s.labels.max()}", "genera": len({genus(n) for n in s.class_names})}
    for part, s in parts.items()
}
pd.DataFrame(table).T

# %%
for a, b in itertools.combinations(parts, 2):
    both = {what: len(set(map(f, parts[a].class_names)) & set(map(f, parts[b].class_names)))
            for what, f in (("species", str), ("genera", genus))}  # fmt: skip
    print(f"{a} and {b} share {both['species']} species and {both['genera']} genera")

# %% [markdown]
# Drawn, a column a class. On top, how a classifier's data are divided: some pictures of *every* class to each part. Below, the split of metric learning, with the held-out training classes:

# %% tags=["slide"]
by_class = {part: np.array(s.class_names)[s.labels] for part, s in parts.items()}  # (N,) names
mixed = np.random.default_rng(0).permutation(np.concatenate(list(by_class.values())))
borders = np.cumsum([len(s) for s in parts.values()])[:-1]
figures.split_chart({
    "closed set": dict(zip(by_class, np.split(mixed, borders), strict=True)),
    "class-disjoint": by_class,
}, show=200)

# %% [markdown]
# No species is shared anywhere, relatives are, and about as many by validation as by test: validation asks the same kind of question as the test will. Its score is still not comparable with the test's, since it searches among fewer classes, which is easier. It serves to *choose*, not to report.
#
# ### Exercise 1 · A class-disjoint split of your own
#
# Write the split: given the labels of `N` pictures, return the indices of the training pictures and of the held-out pictures, so that `share` of the *classes* (rounded, drawn with the seed) is held out whole.
#
# <details><summary>Hint</summary>
#
# `np.random.default_rng(seed).permutation(np.unique(labels))` shuffles the classes; `np.isin(labels, chosen)` marks the pictures of some of them.
#
# </details>

# %%
def split_by_class(labels, share, seed):
    """Indices (train, held out) such that no class is in both."""
    return np.arange(len(labels)), np.arange(0)  # your code here: this holds nothing out


def report(split, labels=train.labels, share=0.2):
    kept, held = split(labels, share, seed=0)
    wanted = round(share * len(np.unique(labels)))
    both = np.intersect1d(labels[kept], labels[held])
    print(f"classes held out: yours {len(np.unique(labels[held]))}, expected {wanted}")
    print(f"classes in both parts: yours {len(both)}, expected 0")
    print(f"pictures used: yours {len(np.union1d(kept, held)):,}, expected {len(labels):,}")


report(split_by_class)
exercises.check("01.1", split_by_class)

# %% tags=["solution"]
def split_by_class(labels, share, seed):
    classes = np.unique(labels)
    count = round(share * len(classes))
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
    tested = [split for split in splits if split != "train"]
    rows[key] = {
        "title": card["title"],
        "training": f"{splits['train']['images']:,} of {splits['train']['classes']:,} classes",
        "test": "; ".join(f"{split} {splits[split]['images']:,} of {splits[split]['classes']:,} classes" for split in tested),
        "images per class": round(card["images"] / card["classes"], 1),
        "Recall@K at": ", ".join(map(str, card["recall_at"])),
        "license": card["license"],
    }
pd.DataFrame(rows).T.style.set_properties(**{"text-align": "left", "vertical-align": "top"})

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
    print(f"{key} ({how}, {f'{size / 1e9:.2f} GB' if size else 'size not published'}): {card['by_hand']}\n")

# %% [markdown]
# ### Exercise 2 · What would chance score?
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
random_vectors = (rng.standard_normal((len(test), 8), dtype=np.float32) for _ in range(8))
measured = np.array([evaluate(x, test.labels, ks=(1,)).recall[1] for x in random_vectors])
spread = measured.std(ddof=1) / np.sqrt(len(measured))
print(f"yours {chance_recall_at_1(test.labels):.5f}, measured {measured.mean():.5f} ± {spread:.5f} (standard error)")
exercises.check("01.2", chance_recall_at_1)

# %% tags=["solution"]
def chance_recall_at_1(labels):
    counts = np.bincount(labels)  # n_c
    total = counts.sum()  # N
    # A query of class c (probability n_c / N) has n_c − 1 relevant images among N − 1 others.
    return float((counts * (counts - 1)).sum() / (total * (total - 1)))


print(f"yours {chance_recall_at_1(test.labels):.5f}, measured {measured.mean():.5f} ± {spread:.5f} (standard error)")
exercises.check("01.2", chance_recall_at_1)

# %% [markdown] tags=["slide"]
# ## 7 · Your own folder, and some traps
#
# A folder with one subfolder per class is a data set: `sobook.load("folder", "train", root=…)`. Picture files from the wild hold surprises. Here is one bird, saved in five ways that cameras, scanners, printers and designers use every day. **Which of them would a plain `Image.open` hand to the network in the wrong shape?**

# %%
bird = aviary.draw(relatives[0], 3, size=96)
folder = Path(tempfile.mkdtemp())
for class_name in ("a_bird", "another"):  # a data set needs two classes
    (folder / class_name).mkdir()
    bird.save(folder / class_name / "plain.png")

sideways = Image.Exif()
sideways[0x0112] = 6  # the camera was held on its side: "turn me by 90 degrees to see me upright"
upright = bird.crop((0, 12, 96, 84))  # wider than high
upright.rotate(90, expand=True).save(folder / "a_bird" / "exif.jpg", exif=sideways, quality=95)
bird.convert("CMYK").save(folder / "a_bird" / "print.jpg", quality=95)
bird.convert("L").save(folder / "a_bird" / "gray.png")
bird.quantize(32).save(folder / "a_bird" / "palette.png")
round_mask = np.hypot(*(np.indices((96, 96)) - 47.5)) < 46
cut_out = Image.merge("RGBA", (*bird.split(), Image.fromarray((round_mask * 255).astype(np.uint8))))
cut_out.save(folder / "a_bird" / "cut_out.png")

files = [folder / "a_bird" / file for file in ("plain.png", "exif.jpg", "gray.png", "palette.png", "cut_out.png", "print.jpg")]
opened = {path.name: np.asarray(Image.open(path)) for path in files}
pd.DataFrame(
    {name: {"mode": Image.open(folder / "a_bird" / name).mode, "plain open": a.shape, "read_image": np.asarray(pixels.read_image(folder / "a_bird" / name)).shape} for name, a in opened.items()}
).T

# %% [markdown]
# Two dimensions, or four channels, may at least end in an error. The worst are those that do not: a sideways photograph is simply sideways; a palette picture opened plainly is a matrix of *color numbers*, which looks like a gray picture and is none; and whoever takes the first three of four channels gets inks for colors, or what was meant to be cut away. In the figure, the upper line is what plain opening gives (shown as a network would see it), the lower what `read_image` gives.

# %% tags=["slide"]
def as_network_sees(array):
    """Gray values as they stand; the first three channels of four."""
    return np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array[..., :3]


plain = [as_network_sees(array) for array in opened.values()]
read = [np.asarray(pixels.read_image(path)) for path in files]
figures.finish(
    figures.contact_sheet(plain + read, [f"{path.stem}: plain" for path in files] + ["read_image"] * len(files), columns=6),
    "The same bird from six files: opened plainly it is fine, sideways, gray, nearly black, not cut out, in false colors; read_image gives upright RGB each time.",
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
except pixels.ImageError as error:
    print("read_image says:", str(error).replace(str(folder), "…"))

# %% [markdown] tags=["slide"]
# ## 8 · From files to batches
#
# Decoding is slow, so it happens once: `pixels.decode` keeps all pictures, resized, in one flat file. Training then cuts *random resized crops*: a random part of the picture, at least `crop_scale` of its area, stretched to the network's input, and flipped half of the time. Twelve draws from one picture: first keeping at least a fifth of the area, as Hyp-ViT and HIER do for DeiT, then at least as much as the runs of this mode keep (`config.crop_scale`), then at least four fifths.

# %% tags=["slide"]
config = session.config()
side = Encoder.create(config.encoder, weights=None).image_size
chosen = train.subset([len(train) // 3])
source = pixels.decode(chosen, round(side * 1.5), enlarge=False, progress=False)


def crops(scale, count=12):
    for epoch in range(count):
        batches = loader.TrainingBatches(source, chosen.labels, image_size=side, batch_size=1, crop_scale=scale, epoch=epoch)
        yield batches[0][0][0].permute(1, 2, 0).numpy()  # (H, W, 3)


whole = np.asarray(pixels.read_image(chosen.paths[0]))
blank = np.full_like(whole, 255)
figures.finish(
    figures.contact_sheet([whole, *[blank] * 11, *crops(0.2), *crops(config.crop_scale), *crops(0.8)], columns=12),
    f"A bird, and three rows of twelve random crops of it that keep at least 20%, {config.crop_scale:.0%} and 80% of its area.",
)

# %% [markdown]
# The single picture on top is the original. Look, here and in the batch below, for crops that have lost the head, the legs, or the very mark by which the species is known: to ask a network to give these the same embedding as the whole bird is a strong demand. It is the price of what crops teach, that place and size do not matter. How hard to crop is a choice like any other: birds with small marks at small size want more care than photographs at 224 pixels.
#
# A whole batch, as the network gets it:

# %%
small, _ = image_sets.hold_out(train, fraction=0.5, seed=1)
source_all = pixels.decode(small, round(side * 1.5), enlarge=False, progress=False)
batches = loader.TrainingBatches(source_all, small.labels, image_size=side, batch_size=20, images_per_class=2, crop_scale=config.crop_scale, seed=session.seed, epoch=1)
batch, labels = batches[0]  # (B, 3, H, W) uint8, (B,)
print(tuple(batch.shape), batch.dtype, labels.tolist())
figures.finish(
    figures.contact_sheet(list(batch.permute(0, 2, 3, 1).numpy()), columns=10),
    "A training batch of twenty crops, two each of ten species; several show parts of the bird only.",
)

# %% [markdown]
# Here `images_per_class=2` puts pairs into the batch, as methods that compare pictures with pictures need it. Proxy Anchor compares pictures with proxies, so plain random batches will do, and they are the default.
#
# **Ask for the same batch again: the same crops?** The random numbers of a batch depend on the seed, the epoch and the number of the batch, and on nothing else. So it does not matter how many processes prepare batches, or whether a training run was interrupted.

# %%
twin = loader.TrainingBatches(source_all, small.labels, image_size=side, batch_size=20, images_per_class=2, crop_scale=config.crop_scale, seed=session.seed, epoch=1)
torch.manual_seed(999)  # the global generator has no say
print("same batch again:  ", torch.equal(twin[0][0], batch))
print("next batch is other:", not torch.equal(twin[1][0], batch))

# %% [markdown]
# ## 9 · At evaluation: no chance involved
#
# Evaluation resizes the short side to 256 for an input of 224, in proportion for other sizes, and takes the center. Left the picture, right what of it reaches the network:

# %%
print(f"short side {loader.evaluation_short_side(side)}, then the central {side} × {side}")
few = test.subset(np.linspace(0, len(test) - 1, 8).astype(int))
evaluated = pixels.decode(few, loader.evaluation_short_side(side), progress=False)
(crop,) = loader.evaluation_batches(evaluated, side, batch_size=8)  # (8, 3, H, W) uint8
before_after = [
    picture
    for path, cut in zip(few.paths, crop.permute(0, 2, 3, 1).numpy(), strict=True)
    for picture in (np.asarray(pixels.read_image(path)), cut)
]
figures.finish(
    figures.contact_sheet(before_after, ["picture", "evaluated"] * len(few), columns=8),
    "Eight pictures, each beside its evaluation crop, which lacks a narrow rim and is a little blurred.",
)

# %% [markdown]
# ### Exercise 3 · Labels that count from 0 (warm-up)
#
# Label `c` is row `c` of the proxies, so labels must be 0, 1, 2 … without gaps. The test classes of CUB have the ids 101 to 200, and a subset of them has gaps. Turn any whole numbers into such labels, in the order of the old ones. What would a label of 150 do to a loss with 100 proxies? What would it do to one with 200?
#
# <details><summary>Hint</summary>
#
# `np.unique(labels, return_inverse=True)` gives the sorted values and, for every label, its place among them.
#
# </details>

# %%
def labels_from_zero(labels):
    """(N,) any whole numbers → (N,) labels 0..C−1, in the order of the old numbers."""
    return np.full(len(labels), -1)  # your code here


print(labels_from_zero(np.array([101, 150, 103, 101])), "expected [0 2 1 0]")
exercises.check("01.3", labels_from_zero)

# %% tags=["solution"]
def labels_from_zero(labels):
    return np.unique(labels, return_inverse=True)[1]


print(labels_from_zero(np.array([101, 150, 103, 101])), "expected [0 2 1 0]")
exercises.check("01.3", labels_from_zero)

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
# No: it only has to rank epochs in about the right order. It is higher because fewer classes are searched, and because the best of several epochs was taken; so it must not be reported in the place of the test score.
# </details>
#
# 2. A library reports a Recall@1 on CUB that is many points above everyone else's. Its code reads `train_test_split.txt`. What has happened?
#
# <details><summary>Answer</summary>
# That file is the classification split: every class has pictures in both parts. It is a closed-set test, the second one of section 4, and does not compare with class-disjoint numbers.
# </details>
#
# 3. Why would you expect Recall@1 on SOP to fall if you kept only two pictures of every class?
#
# <details><summary>Answer</summary>
# Every query would have a single relevant image, and it would have to be nearer than all other products. With more relevant images, any of them will do.
# </details>
#
# ## Further reading
#
# - H. O. Song, Y. Xiang, S. Jegelka, S. Savarese, *Deep Metric Learning via Lifted Structured Feature Embedding*, CVPR 2016: introduces SOP.
# - C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie, *The Caltech-UCSD Birds-200-2011 Dataset*, 2011: what attributes and parts CUB has beside its labels.
# - Z. Liu, P. Luo, S. Qiu, X. Wang, X. Tang, *DeepFashion*, CVPR 2016: In-Shop, with a gallery apart from the queries.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), 2020: why choosing on test classes has misled the field.
