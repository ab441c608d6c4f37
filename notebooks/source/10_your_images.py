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
# A folder of pictures goes in; a trained encoder, an index and a page to search with come out. Everything before this notebook was practice for it.
#
# **What you will learn**
#
# - what a folder must look like, and what happens to files that cannot be read;
# - to judge, before training, whether training is needed at all;
# - to train on your own classes, and to search with pictures that were not there before;
# - when *not* to answer: a nearest neighbor exists for every query, also for a wrong one;
# - to take the result away: embeddings, encoder, and a search page that needs no Python.
#
# **Before you start** [00 · Start here](00_start_here.ipynb). Your own pictures, if you have some: at least four classes, in a folder each, with five pictures or more.
#
# **Time** About a minute on a two-core laptop, its training included; on a T4 GPU in full mode: not measured.
#
# **Versions last run** and the machine: printed by the first cell. Every section asks before it shows: write your prediction down, then run.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from sobook import figures
from sobook.aviary import species as aviary
from sobook.course import exercises
from sobook.data import image_sets, pixels
from sobook.interactive import search
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.losses import SO_WEIGHT
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict
from sobook.training.loop import TrainConfig, fit

# %% [markdown]
# ## 1 · A folder of pictures
#
# One folder for each class, nothing else: no lists, no labels, no names to obey.
#
# ```
# my_pictures/
#     blue vase/      IMG_0012.jpg  IMG_0013.jpg  scan.png …
#     red teapot/     …
# ```
#
# Write the path of yours between the quotation marks below. Left as it is, the cell makes a folder that could be somebody's: forty species of birds from another aviary, of genera and colors this course has not shown yet, with an empty file and a text among them.

# %%
MY_PICTURES = ""  # for instance "~/pictures/pottery"


def somebodys_pictures(folder, species=40, each=20):
    """Draw a folder as people have them: a class is a name, two files are no pictures."""
    if (folder / "README.txt").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted drawing
    drawn = aviary.prepare(session.data_root, species=species, images_per_species=each, seed=7, progress=False)
    for source in sorted(path for path in drawn.iterdir() if path.is_dir()):
        shutil.copytree(source, folder / source.name.partition(".")[2].replace("_", " "))
    (sorted(folder.iterdir())[0] / "half_copied.jpg").write_bytes(b"")
    (folder / "README.txt").write_text("My birds, sorted by hand.\n")
    return folder


my_folder = Path(MY_PICTURES).expanduser() if MY_PICTURES else somebodys_pictures(session.data_root / "my_pictures")
if not my_folder.is_dir():
    raise ValueError(f"There is no folder {my_folder}: write its whole path between the quotation marks above.")
classes = sorted(path for path in my_folder.iterdir() if path.is_dir())
print(f"{len(classes)} folders: {', '.join(path.name for path in classes[:6])} …")

# %% [markdown]
# **Predict.** There is an empty file and a text in it. Will loading stop, skip them silently, or do something else? What would you want it to do with ten thousand of your own pictures?

# %%
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what is left out: printed below
    train, test = (image_sets.load("folder", split, my_folder) for split in ("train", "test"))
for note in dict.fromkeys(train.notes + test.notes):  # each once
    print(note.replace(str(my_folder), my_folder.name))
print(f"\ntraining: {len(train):,} pictures of {train.num_classes} classes")
print(f"test:     {len(test):,} pictures of {test.num_classes} classes")

# %% [markdown]
# Every file is either used or named, with the reason. The classes were halved by name: the first half trains, the second tests. So the test asks the question that matters in use, *how well does it find classes it was not trained on?* To choose the halves yourself, put the class folders into two folders called `train` and `test`.
#
# A look at one picture of each of the first classes:

# %%
first = [int(np.flatnonzero(test.labels == label)[0]) for label in range(min(test.num_classes, 10))]
figures.finish(
    figures.contact_sheet(
        [np.asarray(pixels.read_image(test.paths[i]).resize((96, 96))) for i in first],
        [test.class_names[test.labels[i]][:16] for i in first],
        columns=5,
    ),
    f"One picture each of {len(first)} test classes: {', '.join(test.class_names[test.labels[i]] for i in first)}.",
)

# %% [markdown]
# ## 2 · Is training needed?
#
# Frozen features cost nothing. **Predict** their Recall@1 on these classes, from what you saw in notebook 00. If it is already above what you need, stop here and go to section 4 with the frozen encoder: the simplest tool that works is the right one.
#
# The micro DeiT of quick mode has learned from *drawn birds*, and it shows on photographs. For those, set `PHOTOGRAPHS = True`: the recipe `photos` takes a DeiT-Tiny that has learned from ImageNet. (Full mode takes a DeiT-Small in any case.)

# %%
PHOTOGRAPHS = False  # True: a DeiT-Tiny that has seen photographs; weights are downloaded once, 22 MB
settings = {
    "root": str(my_folder),
    "so_weight": SO_WEIGHT,
    "batch_size": min(40, len(train) // 2),  # small folders: small batches
    "images_per_class": 0,  # plain random batches, however many classes there are
    "selection": "validation" if train.num_classes >= 4 else "last",  # with fewer, none can be spared
    "seed": session.seed,
}
if PHOTOGRAPHS:
    config = TrainConfig.recipe("photos", **settings)
else:
    config = session.config(dataset="folder", epochs=session.pick(quick=8, full=30), **settings)
frozen_encoder = Encoder.create(config.encoder, weights=config.weights).to(session.device).eval()
frozen = evaluate(embed(frozen_encoder, test, progress=False), test.labels)
low, high = frozen.interval(1)
print(f"frozen features: Recall@1 {frozen.recall[1]:.3f}, 95 % interval over classes [{low:.3f}, {high:.3f}]")

# %% [markdown]
# ## 3 · Train on your classes
#
# The same training as in all notebooks, on another data set: `dataset="folder"` and `root=`; the rest of the settings above is for small folders. In a terminal it would be `sobook train --dataset folder --root my_pictures`, or `--recipe photos` in the place of `--dataset folder`. The best epoch is chosen on a fifth of the *training* classes, two at least; with fewer than four, none can be spared, and the last epoch is kept. A finished run is kept and opened the next time.
#
# **Predict.** There are fewer classes and fewer pictures here than in notebook 00. Will training still help? What could go wrong with very few classes?

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    run = fit(config)
encoder = run.encoder().to(session.device)
trained = evaluate(embed(encoder, test, progress=False), test.labels)
figures.interval_plot(
    [(name, result.recall[1], *result.interval(1), shade) for name, result, shade in (("frozen", frozen, "frozen"), ("trained", trained, "PA+SO"))],
    f"Recall@1 on {test.num_classes} classes never trained on",
)

# %%
found = compare_classes(frozen, trained)
advice = {
    "higher": "search with the trained encoder",
    "lower": "search with the frozen encoder",
    "no difference shown": "the frozen encoder is the simpler choice, more classes the better investment",
}[verdict(found, [found])]
print(f"trained compared with frozen: Recall@1 {verdict(found, [found])}, {found}: {advice}")
if test.num_classes < 10:
    print(f"(The interval draws the {test.num_classes} test classes anew; from so few it is too narrow to rely on.)")
print(f"epoch {run.state['selected_epoch']} of {config.epochs} was kept, of {run.state['train_images']:,} training pictures in {len(run.state['class_names'])} classes")

# %% [markdown]
# With few classes there are few proxies, so little to push away from: a loss like this lives on the *number of classes* more than on pictures of each. If your folder has four classes with a thousand pictures each, consider splitting them further (by series, by maker, by place), or use the frozen features.
#
# ## 4 · An index, and a query
#
# For searching, all pictures are embedded once, training and test classes alike: that is the *index*. A query is embedded in the same way, and its nearest neighbors by cosine are the answer.

# %%
index = search.index_folder(encoder, my_folder, progress=False)
print(f"{len(index):,} pictures in the index, {index.embeddings.shape[1]} numbers each, {index.embeddings.nbytes / 1e6:.1f} MB")

# %% [markdown]
# The query should be a picture that is not in the folder. We draw new birds of five of the species: other poses, other backgrounds. (With your own folder, five of its pictures are taken, and each finds itself first.) **Predict** how many of the five have a right nearest neighbor.

# %%
queries_folder = session.data_root / "my_queries"
queries_folder.mkdir(exist_ok=True)
queries, wanted = [], []
if MY_PICTURES:
    for i in np.random.default_rng(session.seed).choice(len(index), 5, replace=False):
        queries.append(index.paths[i])
        wanted.append(index.names[i])
else:
    guide = aviary.species(40, seed=7)  # those of the folder
    for number in np.random.default_rng(session.seed).choice(len(guide), 5, replace=False):
        file = queries_folder / f"{number}.png"
        aviary.draw(guide[number], 1000, seed=7).save(file)  # picture 1000: none of the twenty
        queries.append(file)
        wanted.append(guide[number].folder.partition(".")[2].replace("_", " "))

answers = [index.search(encoder, query, k=5) for query in queries]  # ((5,), (5,)) each
figures.retrieval_wall(
    [np.asarray(pixels.read_image(query)) for query in queries],
    [[np.asarray(pixels.read_image(index.paths[i]).resize((96, 96))) for i in found] for _, found in answers],
    np.array([[index.names[i] == name for i in found] for name, (_, found) in zip(wanted, answers, strict=True)]),
    np.stack([similarities for similarities, _ in answers]),
    wanted,
)

# %% [markdown]
# The crossed ones are wrong. Look at the cosines below them: is a wrong neighbor recognizable by its cosine alone?
#
# ### Exercise 1 · Search by hand (warm-up)
#
# `Index.search` in three lines: from one query vector and a gallery, the positions of the `k` nearest by cosine, nearest first. The check's vectors do not have unit length.
#
# <details><summary>Hint</summary>
#
# Divide the rows of the gallery by their lengths (`np.linalg.norm(gallery, axis=1, keepdims=True)`); the length of the query does not change the order. `np.argsort` sorts upwards.
#
# </details>

# %%
def nearest(query, gallery, k):
    """Positions (k,) of the rows nearest to the query by cosine; query (D,), gallery (N, D)."""
    return np.arange(k)  # your code here


print("yours", nearest(search.embed_picture(encoder, queries[0]), index.embeddings, 5), "expected", answers[0][1])
exercises.check("10.1", nearest)

# %% tags=["solution"]
def nearest(query, gallery, k):
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)  # (N, D)
    return np.argsort(-(unit @ query))[:k]


print("yours", nearest(search.embed_picture(encoder, queries[0]), index.embeddings, 5), "expected", answers[0][1])
exercises.check("10.1", nearest)

# %% [markdown]
# ## 5 · When not to answer
#
# Every query has a nearest neighbor, even a picture of a shoe among birds. A useful search says "nothing like it here" when the nearest is not near. **Predict:** how do the cosines of right and of wrong nearest neighbors differ? Can one line separate them? We ask with the test pictures, whose classes were not trained on.

# %%
embedded = embed(encoder, test, progress=False)
similarities, found = nearest_neighbors(embedded, 1)
similarity, right = similarities[:, 0], test.labels[found[:, 0]] == test.labels  # (N,) each
noise = np.random.default_rng(session.seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
Image.fromarray(noise).save(queries_folder / "noise.png")
strange, _ = index.search(encoder, queries_folder / "noise.png", k=1)

figure = figures.new_figure(8.5, 3.8)
axis = figure.subplots()
bins = np.linspace(min(similarity.min(), strange[0]) - 0.02, 1, 41)
axis.hist(similarity[right], bins, density=True, color=figures.COLORS["relevant"], alpha=0.6, label=f"right ({right.sum():,})")
axis.hist(similarity[~right], bins, density=True, histtype="step", lw=2.4, color=figures.COLORS["irrelevant"], label=f"wrong ({(~right).sum():,})")
axis.axvline(strange[0], color="#222222", ls=":", lw=1.6)
axis.text(strange[0], axis.get_ylim()[1], "noise", ha="center", va="bottom")
axis.set(xlabel="cosine of the nearest neighbor", ylabel="density")
axis.legend(loc="upper left")
figures.finish(figure, f"Histogram of the cosine of the nearest neighbor: right ones have a mean of {similarity[right].mean():.2f}, wrong ones {similarity[~right].mean():.2f}; a picture of noise has {strange[0]:.2f}.")

# %% [markdown]
# The two overlap: a threshold trades coverage for correctness. Where to put it is a decision about costs, not about embeddings, but the exchange rate can be measured. And look at the dotted line: a picture of pure noise need not have a *small* cosine. At best a threshold sorts out doubtful birds; it is no detector of things that are not birds at all. And read the horizontal axis: the nearest cosines lie in a narrow band near 1, because all embeddings share a direction (the lean of notebook 04). A rule of thumb such as "0.8 is similar" means nothing for an encoder that has not been measured.
#
# ### Exercise 2 · A threshold
#
# Answers are given where the cosine is at least $t$. Find the smallest $t$, among the cosines there are, such that at least the wanted share of the *given* answers is right. (If no $t$ will do: $+\infty$, answer nothing.)
#
# <details><summary>Hint</summary>
#
# Try every value of `np.sort(similarities)` in turn: `right[similarities >= t].mean()` is the share of right ones among the answers given.
#
# </details>

# %%
def threshold_for(similarities, right, wanted):
    """Smallest t for which the answers with similarity ≥ t are right with share ≥ wanted."""
    return 0.0  # your code here


def report(threshold_for):
    for share in (0.8, 0.9, 0.95):
        t = threshold_for(similarity, right, share)
        given = similarity >= t
        correct = f"{right[given].mean():.0%}" if given.any() else "none"
        print(f"wanted {share:.0%} right: t = {t:.3f}, {given.mean():.0%} of the queries answered, {correct} of the answers right")


report(threshold_for)
exercises.check("10.2", threshold_for)

# %% tags=["solution"]
def threshold_for(similarities, right, wanted):
    for t in np.sort(similarities):
        if right[similarities >= t].mean() >= wanted:
            return t
    return np.inf


report(threshold_for)
exercises.check("10.2", threshold_for)

# %% [markdown]
# A threshold found on these queries holds for queries like these. Another camera, another light, another kind of object: measure again.
#
# ### Exercise 3 · One vector a class (open-ended)
#
# An index of a million pictures is large; one of ten thousand class centers is not. Compute for each class the mean of its embeddings, scaled to unit length. The cell then retrieves classes by their centers. Does it get better or worse than the nearest picture? Why could either be? Try two centers a class.
#
# <details><summary>Hint</summary>
#
# `np.stack([embeddings[labels == c].mean(axis=0) for c in range(C)])`, then divide each row by its length.
#
# </details>

# %%
def class_centers(embeddings, labels):
    """(N, D), (N,) labels 0..C−1 → (C, D) rows of unit length."""
    return embeddings[: labels.max() + 1]  # your code here


def by_center(class_centers):
    odd = np.arange(len(test)) % 2 == 1  # half of the pictures make centers, the other half asks
    centers = class_centers(embedded[odd], test.labels[odd])  # (C, D)
    by_class = nearest_neighbors(embedded[~odd], 1, gallery=centers)[1][:, 0] == test.labels[~odd]
    by_picture = test.labels[odd][nearest_neighbors(embedded[~odd], 1, gallery=embedded[odd])[1][:, 0]] == test.labels[~odd]
    print(f"right class: {by_class.mean():.3f} by the nearest of {len(centers)} centers, {by_picture.mean():.3f} by the nearest of {odd.sum()} pictures")


by_center(class_centers)
exercises.check("10.3", class_centers)

# %% tags=["solution"]
def class_centers(embeddings, labels):
    means = np.stack([embeddings[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


by_center(class_centers)
exercises.check("10.3", class_centers)

# %% [markdown]
# ## 6 · Drop in a picture
#
# With a kernel running, the button below takes any picture of yours and shows its neighbors. (It works in Jupyter and on Colab. In a page that only shows this notebook there is no Python behind it; use the search page of section 7 there.)

# %%
search.widget(index, encoder, k=6)

# %% [markdown]
# What it answers, for the first of our queries:

# %%
from IPython.display import HTML

HTML(search.answer(index, encoder, wanted[0], Path(queries[0]).read_bytes(), k=6))

# %% [markdown]
# ## 7 · Take it away
#
# **The embeddings**, as NumPy arrays: `embeddings`, `labels`, `paths`, `class_names`. Anything that reads `.npz` can go on from here, and so can `sobook search --index`.

# %%
out = session.data_root / "my_search"
saved = index.save(out / "index.npz")
with np.load(saved) as arrays:
    contents = {name: f"{arrays[name].shape} {arrays[name].dtype.kind}" for name in arrays.files}
print(f"{saved.name}, {saved.stat().st_size / 1e6:.1f} MB: {contents}")
again = search.Index.load(saved)
print("same answers after loading:", np.array_equal(again.search(encoder, queries[0])[1], answers[0][1]))

# %% [markdown]
# **A search page**: one HTML file with small pictures and their neighbors inside. Click a picture, or drop the file of one that is indexed. It needs no network, no server and no Python, so it can be sent to somebody who has none. (Do not send pictures that are not yours to send: they are *inside*.)

# %%
page = search.page(index, out / "search.html", title=my_folder.name.replace("_", " "))
print(f"{page.name}, {page.stat().st_size / 1e6:.1f} MB; open it in a browser: {page.parent.name}/{page.name} in the data folder")

# %% [markdown]
# **The encoder** is in the run folder, as plain safetensors: `Run.load(folder).encoder()` opens it. The whole way in a terminal, without any notebook:
#
# ```sh
# sobook train --recipe photos --root my_pictures --so-weight 100 --run-dir runs/mine
# sobook search runs/mine --folder my_pictures --index mine.npz --page mine.html
# sobook search runs/mine --index mine.npz --query new.jpg
# ```
#
# **To use it outside Python**, or to share it, `sobook.export` writes other forms: `to_onnx(run, path)` for other runtimes (it compares the file with torch before it is content), and `to_hub(run, folder)` for a folder to upload, with a model card. In a terminal: `sobook export runs/mine --onnx mine.onnx --hub my_model`.

# %% [markdown]
# ## Summary
#
# - A data set is a folder of folders. Every file in it is used or named.
# - Judge frozen features first. Training has to beat them on classes it did not see, and the interval says whether it did.
# - The number of classes matters more to a proxy loss than the number of pictures in each.
# - A nearest neighbor always exists. A threshold on the cosine trades answers for correctness, and does not recognize what is no bird at all.
# - Index, page and encoder are plain files.
#
# ## Questions
#
# 1. Your folder has a class "other", with everything that fits nowhere. Should it be trained on?
#
# <details><summary>Answer</summary>
# No. Its pictures have nothing in common, and the loss would pull them to one proxy all the same, at the cost of what makes them different. Leave it out of training; it may well be in the index.
# </details>
#
# 2. Each object was photographed twenty times in one sitting, always on the same table. Recall@1 is 0.99. What do you suspect, and how would you find out?
#
# <details><summary>Answer</summary>
# That the table, the light and the background are recognized, not the object. Photograph some objects again elsewhere, use those as queries against the old pictures, and compare. A test set is only as honest as the difference between its queries and its gallery.
# </details>
#
# 3. You add three hundred pictures of new classes to the index. Must you train again?
#
# <details><summary>Answer</summary>
# No: embed them and append; that is what a metric is for. Retraining changes the encoder, and then <em>all</em> pictures must be embedded anew: embeddings of two encoders do not compare.
# </details>
#
# ## Further reading
#
# - J. Johnson, M. Douze, H. Jégou, [Billion-scale similarity search with GPUs](https://arxiv.org/abs/1702.08734), 2017: faiss, which does the searching here; read it when an index no longer fits into memory and exactness has to be traded for speed.
# - H. O. Song, Y. Xiang, S. Jegelka, S. Savarese, *Deep Metric Learning via Lifted Structured Feature Embedding*, CVPR 2016: product search as a benchmark (SOP), the nearest thing in the literature to what this notebook does.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), ECCV 2020: before you believe that your own training helped.
