# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/00_start_here.ipynb)
#
# A search engine for birds it has never seen, two ways to train it, and a suspicious picture. This notebook is the whole course at low magnification: nothing is explained to the end, and every section names the notebook that opens the box.
#
# **What you will learn**
#
# - what *metric learning* is for: searching with pictures of classes the model has never seen;
# - how far the features of a transformer get without any training on the task;
# - how Recall@K, R-precision and MAP@R judge a search;
# - what *Proxy Anchor* (PA) and *Proxy Anchor plus soft orthogonality* (PA+SO) are, from a distance;
# - how to read a heatmap of *proxies*, and how to say which of two methods is better without fooling yourself.
#
# **Before you start** Python, and the idea that a network turns a picture into a vector. The mathematics here is a few fractions and sums.
#
# **Time** Under a minute of computing on a two-core laptop: the two training runs come with the course.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %% [markdown]
# That line says what was found: the versions, the mode and the machine. In *quick* mode the pictures are drawn by the package itself and the network is small; in *full* mode (`SOBOOK_MODE=full`, with a GPU) the same cells run on photographs of birds, CUB-200-2011, with a DeiT-Small.

# %% [markdown] tags=["slide"]
# ## 1 · The birds
#
# Twenty drawn birds. Every row is one *genus*, and every picture is another *species* of it: a genus fixes a bird's shape and base colors, a species only its field marks. **Which will be harder to tell apart, two rows or two pictures of one row?**

# %% tags=["slide"]
import numpy as np

from sobook import figures
from sobook.course.aviary import species as aviary

birds = aviary.species(100)[50:]  # the test species, sorted by genus
figures.finish(
    figures.contact_sheet(
        [np.asarray(aviary.draw(bird, 0)) for bird in birds[:20]],
        [bird.name for bird in birds[:20]],
        columns=5,
    ),
    "Twenty drawn birds, four genera in rows of five species each.",
)

# %% [markdown]
# Shape gives the genus away at a glance. The species needs a second look, at a cap, a throat, a bar on the wing. That is the difficulty of real field guides, and of real retrieval: the nearest wrong answers are relatives. [01 · Data](01_data.ipynb) takes the birds apart.

# %% [markdown] tags=["slide"]
# ## 2 · What metric learning is for
#
# A classifier has one output per class, so it can only answer with classes it was trained on. Often that is no use: a shop has new articles every week, an ornithologist has new birds. What one wants is a *map* from pictures to vectors (*embeddings*) in which pictures of the same class lie close together, **whatever the class**. A query is then answered by its nearest neighbors, and a new class needs no training, only pictures.
#
# So the test is: take classes that the model has never seen, let every picture ask for its nearest neighbors among all the others, and count how often they are right. The training species and the test species are different ones:

# %%
import pandas as pd

from sobook import geometry
from sobook.course.aviary import microscope
from sobook.course import exercises
from sobook.course.predictions import fold, predict, reveal
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.losses import SO_WEIGHT
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict

config = session.config()  # the settings that all notebooks share
image_sets.prepare(config.dataset, progress=not session.quick)  # drawn once
train = image_sets.load(config.dataset, "train")
test = image_sets.load(config.dataset, "test")


def genus(class_name):
    """051.Little_Mossdove → Mossdove; also serves for the birds of CUB."""
    return class_name.split("_")[-1]


def title(class_name):
    return class_name.partition(".")[2].replace("_", " ")


shared_species = set(train.class_names) & set(test.class_names)
genera = [{genus(n) for n in s.class_names} for s in (train, test)]
print(f"training: {len(train):,} pictures of {train.num_classes} species")
print(f"test:     {len(test):,} pictures of {test.num_classes} species")
print(f"species in both: {len(shared_species)}")
print(f"genera in both: {len(genera[0] & genera[1])}")

# %% [markdown]
# The species are all new, their genera are not. So the model may learn the look of a genus in training; which of its new species a bird is, it has to see for itself.

# %% [markdown] tags=["slide"]
# ## 3 · Without any training: frozen features
#
# A *DeiT* (a vision transformer) that was trained elsewhere already turns pictures into useful vectors. In quick mode that is the bundled `deit_micro_patch8_64`, which learned on other drawn birds, none of which occurs here; in full mode a DeiT-Small that learned on ImageNet.
#
# Embeddings $x_i$ have unit length, so closeness is the cosine $s_{ij} = x_i^\top x_j$. Every picture $i$, of species $y_i$, asks all the others. Write $r_{ik} = 1$ if its $k$-th neighbor is of species $y_i$ (is *relevant*), else 0, and $R$ for the number of relevant pictures there are. Three numbers judge the answer, each averaged over all queries:
#
# $$
# \text{Recall@}K = \max_{k\le K} r_{ik}, \qquad
# \text{R-precision} = \frac1R\sum_{k=1}^{R} r_{ik}, \qquad
# \text{MAP@R} = \frac1R\sum_{k=1}^{R} r_{ik}\,\frac{r_{i1}+\dots+r_{ik}}{k} .
# $$
#
# Recall@K asks whether *any* of the first $K$ is relevant; R-precision how many of the first $R$ are; MAP@R also how early they come. One query with $R = 4$:

# %% tags=["hide-input", "slide"]
r = np.array([1, 0, 1, 0])
precision = np.cumsum(r) / np.arange(1, 5)
figure = figures.new_figure(8, 2.2)
axis = figure.subplots()
for k, (hit, p) in enumerate(zip(r, precision, strict=True)):
    shade = figures.COLORS["relevant" if hit else "irrelevant"]
    axis.text(
        k,
        1,
        "✓" if hit else "✗",
        ha="center",
        va="center",
        color="white",
        fontsize=20,
        bbox={"boxstyle": "square,pad=0.5", "fc": shade, "ec": shade},
    )
    note = f"counts {p:.2f}" if hit else "counts 0"
    axis.text(k, 0.25, f"rank {k + 1}\n{note}", ha="center", va="center")
words = (
    f"Recall@1 = {r[0]}\nR-precision = 2/4 = {r.mean():.2f}\n"
    f"MAP@R = (1 + 2/3)/4 = {(r * precision).mean():.2f}"
)
axis.text(4, 0.7, words, va="center")
axis.set(xlim=(-0.6, 7), ylim=(-0.1, 1.5))
axis.set_axis_off()
figures.finish(
    figure,
    "A query whose first and third neighbor of four are relevant: Recall@1 1,"
    " R-precision 0.50, MAP@R 0.42.",
)

# %% [markdown] tags=["slide"]
# **Predict** Recall@1 on species that the network has never seen. (Guessing would be right about once in as many tries as there are species.)

# %%
predict("00.a", None)

# %% tags=["slide"]
frozen_encoder = Encoder.create(config.encoder, weights=config.weights)
frozen_encoder = frozen_encoder.to(session.device)
frozen_embeddings = embed(frozen_encoder, test, progress=False)  # (N, F)
frozen = evaluate(frozen_embeddings, test.labels)
low, high = frozen.interval(1)
reveal(
    "00.a",
    str(frozen),
    f"Recall@1 {frozen.recall[1]:.3f}, 95 % interval over species "
    f"[{low:.3f}, {high:.3f}]",
    f"a random neighbor: about {1 / test.num_classes:.3f}",
    truth=frozen.recall[1],
)

# %% [markdown]
# Far better than chance, far from good. The interval says how much the number would move with *other test species*: whole species are resampled, because the pictures of one species succeed and fail together.
#
# **What Recall@K hides.** Two models with the same Recall@1 can differ in whether the next nine are right too (MAP@R sees that). Classes with many pictures count more. It does not ask how *sure* an answer is, nor how wrong a wrong one is: a sister species counts as much as a heron for a wren. And it depends on what is searched. **With half of the species, or a quarter of the pictures of each: does it rise or fall?** The same embeddings, asked three times:

# %%
place = np.arange(len(test)) - np.searchsorted(test.labels, test.labels)
searched = {
    "everything": np.ones(len(test), bool),
    "half of the species": test.labels % 2 == 0,
    "a quarter of the pictures of each": place % 4 == 0,
}
for what, part in searched.items():
    found = evaluate(frozen_embeddings[part], test.labels[part], ks=(1,))
    print(f"{what:35} Recall@1 {found.recall[1]:.3f}")

# %% [markdown]
# Fewer classes make it easier, fewer pictures of each make it harder: a query has fewer relevant ones to find. Numbers from different test sets cannot be compared.
#
# ### Exercise 1 · Derive and check: Recall@K by hand
#
# Write Recall@K from the matrix of cosines: set the diagonal aside (a picture must not find itself), look at the `k` largest entries of each row, and ask whether any of them has the right label.
#
# <details><summary>Hint</summary>
#
# `np.fill_diagonal(cosines, -np.inf)` keeps a picture from finding itself; `np.argsort(-cosines, axis=1)[:, :k]` are its nearest; compare `labels[nearest]` with `labels[:, None]` and ask `.any(axis=1)`.
#
# </details>


# %%
def recall_at_k(embeddings, labels, k):
    """Fraction of queries with a picture of their class among the k nearest.

    embeddings (N, D), rows of unit length; labels (N,).
    """
    return float("nan")  # your code here


for k in (1, 4):
    yours = recall_at_k(frozen_embeddings, test.labels, k)
    print(f"K = {k}: yours {yours:.4f}, expected {frozen.recall[k]:.4f}")
exercises.check("00.1", recall_at_k)


# %% tags=["solution"]
def recall_at_k(embeddings, labels, k):
    cosines = embeddings @ embeddings.T  # (N, N)
    np.fill_diagonal(cosines, -np.inf)  # never its own neighbor
    nearest = np.argsort(-cosines, axis=1)[:, :k]  # (N, k)
    return float((labels[nearest] == labels[:, None]).any(axis=1).mean())


for k in (1, 4):
    yours = recall_at_k(frozen_embeddings, test.labels, k)
    print(f"K = {k}: yours {yours:.4f}, expected {frozen.recall[k]:.4f}")
exercises.check("00.1", recall_at_k)

# %% [markdown] tags=["slide"]
# ## 4 · Train: Proxy Anchor, and Proxy Anchor with soft orthogonality
#
# Proxy Anchor gives every training class a learned vector $p_c$, its *proxy*, and pulls the pictures of a class to their proxy and away from all others ([04](04_proxy_anchor.ipynb) derives the formula). Soft orthogonality adds one term, which asks that different proxies be at right angles. With $\hat p_c$ the proxies at unit length, $C$ of them,
#
# $$L = L_{\text{PA}} + \lambda\,L_{\text{SO}}, \qquad L_{\text{SO}} = \frac{1}{C(C-1)}\sum_{c \ne c'} \big(\hat p_c^\top \hat p_{c'}\big)^2 .$$
#
# The two runs below differ in $\lambda$ and in nothing else: same pictures, same crops, same start. Both hold out some of the *training* species to choose their best epoch; the test species are not looked at until the end.
#
# So that nobody has to wait, both runs come with the course: weights, proxies after every epoch, and all that was measured. To see for yourself, write `session.fit(config, retrain=True)`: two minutes each on two cores. A run of your own is kept on disk and opened again the next time. (The first cell below does nothing in quick mode. In full mode it times a few training steps and says how long the whole takes on your machine, before you start it.)

# %%
from sobook import training

if not session.quick:  # before hours of computing: three steps, timed now
    print(training.dry_run(config))

# %%
pa = session.fit(session.config(so_weight=0.0))

# %%
pa_so = session.fit(session.config(so_weight=SO_WEIGHT))
print(f"settings that differ: {pa.config.differences(pa_so.config)}")
for run in (pa, pa_so):
    kept, last = run.state["selected_epoch"], run.config.epochs
    print(
        f"λ = {run.config.so_weight:g}: epoch {kept} of {last} was kept, ",
        end="",
    )
    print("the best on held-out training species")

# %% [markdown] tags=["slide"]
# ## 5 · Proxies crowd together
#
# Look at the proxies themselves first. Before training they are random, and random directions in $D$ dimensions are nearly at right angles: their cosines spread around zero with a standard deviation of $1/\sqrt{D}$.
#
# Training with PA raises the cosines. **Predict.** And with SO: compared with the random proxies before training, is the typical size of a cosine (its root mean square) after PA+SO smaller, about the same (within a quarter), or larger?

# %%
predict("00.b", None, choices=("smaller", "about the same", "larger"))

# %% tags=["hide-input", "slide"]
proxies = {"PA": pa.proxies(), "PA+SO": pa_so.proxies()}  # (C, D) each
shapes = {"before": geometry.describe(pa.proxies(0))}
shapes |= {name: geometry.describe(p) for name, p in proxies.items()}
family = [genus(name) for name in pa.state["class_names"]]
ratio = shapes["PA+SO"].rms_cosine / shapes["before"].rms_cosine
reveal(
    "00.b",
    figures.proxy_heatmaps(
        {"before": pa.proxies(0), **proxies},
        groups=family,
        order=np.argsort(family, kind="stable"),  # genus by genus
    ),
    truth="smaller"
    if ratio < 0.75
    else "larger"
    if ratio > 1.25
    else "about the same",
)

# %% [markdown]
# Each cell is the cosine of two proxies; all panels share order and scale, black squares enclose the pairs of one genus. Anybody can see it: PA turns the picture red, SO turns it white again.
#
# Three numbers under the panels and in the table below say how red:
#
# - the **RMS cosine** $\sqrt{L_{\text{SO}}}$: the typical size of a cosine;
# - the **coherence** $\max_{c\ne c'}\lvert\hat p_c^\top\hat p_{c'}\rvert$: the worst pair;
# - the **effective rank**: how many directions are really used. With $\sigma_k$ the singular values of the matrix of proxies and $q_k = \sigma_k/\sum_l\sigma_l$, it is $\exp(-\sum_k q_k\log q_k)$. It cannot exceed the number of proxies. In quick mode that is 40: ten of the 50 training species are held out, and a class that is not trained on needs no proxy.
#
# Three proxies in space show what the last two mean:

# %% tags=["hide-input"]
examples = {
    "all at right angles": np.eye(3),
    "two of them close": np.array([[1, 0, 0], [0.9, 0.44, 0], [0, 0, 1]]),
    "all nearly in line": np.array([[1, 0, 0], [1, 0.2, 0], [1, 0, 0.2]]),
}
figure = figures.new_figure(10, 3.4)
said = []
for column, (name, rows) in enumerate(examples.items()):
    axis = figure.add_subplot(1, 3, column + 1, projection="3d")
    shape = geometry.describe(rows)
    for row in geometry.unit_rows(rows):
        axis.plot(*np.stack([0 * row, row]).T, color="#0072B2", lw=3)
        axis.plot(*row[:, None], "o", color="#222222", ms=6)
    numbers = f"coherence {shape.coherence:.2f}, "
    numbers += f"effective rank {shape.effective_rank:.1f}"
    said.append(f"{name}: {numbers}")
    axis.set_title(f"{name}\n{numbers}", fontsize=11)
    axis.set(xlim=(-0.2, 1), ylim=(-0.2, 1), zlim=(-0.2, 1))
    axis.set_xticks([]), axis.set_yticks([]), axis.set_zticks([])
    axis.view_init(22, 35)
figures.finish(figure, "Three proxies in space. " + "; ".join(said) + ".")

# %%
fields = ["rms_cosine", "mean_cosine", "coherence", "effective_rank"]
table = pd.DataFrame({name: s.summary() for name, s in shapes.items()})
print(f"chance, 1/√D: {shapes['PA'].chance_cosine:.3f}")
table.loc[fields].round(3)

# %% [markdown]
# In the committed run (`aviary_finetune`, seed 0) the RMS cosine under PA is .193, twice what chance gives, and the coherence .520; with SO they are .036 and .087, well *below* chance. So near-orthogonality at the start is chance, not merit; correlation is *made by training*; and the remedy works, on the proxies.
#
# When did it happen? The middle panel is the one to watch; the dotted line is the level of random directions.

# %%
figures.training_curves({"PA": pa.metrics, "PA+SO": pa_so.metrics}, dim=128)

# %% [markdown]
# Is the correlation noise, or does it mean something? **Do species of one genus get more similar proxies than species of two?**

# %%
group = np.array(family)
kin = group[:, None] == group[None]  # (C, C)
other = ~kin
np.fill_diagonal(kin, False)
pd.DataFrame(
    {
        name: {
            "within a genus": shapes[name].cosines[kin].mean(),
            "between genera": shapes[name].cosines[other].mean(),
        }
        for name in proxies
    }
).T.rename_axis("mean cosine").round(3)

# %% [markdown]
# Some of the red is common to all pairs, some is knowledge: relatives have the larger cosines. Whether taking it away helps a search is not for the heatmap to say. [05](05_soft_orthogonality.ipynb) derives the term and its limits, [06](06_proxy_geometry.ipynb) measures the geometry.

# %% [markdown] tags=["slide"]
# ## 6 · Does it help?
#
# The heatmaps could hardly differ more. Now the search, on the test species. **Predict an order**, lowest Recall@1 first.

# %%
predict("00.c", None, choices=("frozen", "PA", "PA+SO"), order=True)

# %% tags=["slide"]
embeddings = {
    "frozen": frozen_embeddings,
    "PA": embed(pa.encoder().to(session.device), test, progress=False),
    "PA+SO": embed(pa_so.encoder().to(session.device), test, progress=False),
}  # (N, D) each
results = {n: evaluate(e, test.labels) for n, e in embeddings.items()}
rows = {}
for name, result in results.items():
    low, high = result.interval(1)
    rows[name] = {
        "Recall@1": f"{result.recall[1]:.3f}",
        "95 % interval": f"[{low:.3f}, {high:.3f}]",
        "R-precision": f"{result.r_precision:.3f}",
        "MAP@R": f"{result.map_at_r:.3f}",
    }
reveal(
    "00.c",
    pd.DataFrame(rows).T,
    truth=sorted(results, key=lambda name: results[name].recall[1]),
)

# %% [markdown]
# Overlapping intervals do not settle which method is better: all three answered *the same queries*, and a species that is hard for one is hard for all. The fair comparison is of the differences, species by species. What makes a species hard for all of them cancels:

# %% tags=["slide"]
pairs = [("frozen", "PA"), ("frozen", "PA+SO"), ("PA", "PA+SO")]
changes = {(a, b): compare_classes(results[a], results[b]) for a, b in pairs}
fold(
    figures.interval_plot(
        [
            (f"{b} − {a}", c.difference, c.low, c.high, f"{b} − {a}")
            for (a, b), c in changes.items()
        ],
        "change of Recall@1",
        reference=0.0,
    )
)

# %% [markdown]
# An interval that lies wholly on one side of the dotted line shows a change; one that contains zero shows none (which is not the same as showing that there is none). So that nobody reads more into it, the sentences are made from the numbers:

# %% tags=["slide"]
sentences = []
for (before, after), found in changes.items():
    said = verdict(found, list(changes.values()))
    numbers = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    sentences.append(f"{after} against {before}: {said}, {numbers}.")
fold(*sentences)

# %% [markdown]
# In the committed run (`aviary_finetune`, seed 0) Recall@1 is .416 frozen, .644 with PA and .662 with PA+SO. Training gains a lot. Between the two trainings, the interval contains zero; and it covers only the choice of *species*, not the luck of *one training run*. [08 · Benchmark](08_benchmark.ipynb) trains over several seeds before it says anything about PA against PA+SO.
#
# ### Exercise 2 · Warm-up: the fraction of errors removed
#
# From .5 to .75 and from .9 to .95: the first gain is five times the second, but both remove half of the errors there were. Write that fraction, from Recall@1 before and after. What should come out when training made things *worse*?
#
# <details><summary>Hint</summary>
#
# Errors are what is missing to 1: `1 - before` of them at first, `1 - after` at the end.
#
# </details>


# %%
def errors_removed(before, after):
    """Fraction of the errors that are gone; Recall@1 before and after."""
    return float("nan")  # your code here


for name in ("PA", "PA+SO"):
    gone = errors_removed(results["frozen"].recall[1], results[name].recall[1])
    print(f"{name}: {gone:.0%} of the frozen encoder's errors are gone")
exercises.check("00.2", errors_removed)


# %% tags=["solution"]
def errors_removed(before, after):
    return (after - before) / (1 - before)  # negative where errors were added


for name in ("PA", "PA+SO"):
    gone = errors_removed(results["frozen"].recall[1], results[name].recall[1])
    print(f"{name}: {gone:.0%} of the frozen encoder's errors are gone")
exercises.check("00.2", errors_removed)

# %% [markdown] tags=["slide"]
# ## 7 · What the pictures say
#
# Numbers hide what has changed. How many queries did training with PA repair, and how many did it break?

# %%
right = {name: results[name].hits[:, 0] for name in ("frozen", "PA")}  # (N,)
kinds = {
    "repaired": np.flatnonzero(~right["frozen"] & right["PA"]),
    "broken": np.flatnonzero(right["frozen"] & ~right["PA"]),
    "wrong in both": np.flatnonzero(~right["frozen"] & ~right["PA"]),
    "right in both": np.flatnonzero(right["frozen"] & right["PA"]),
}
for kind, members in kinds.items():
    print(f"{kind:14} {len(members):5,} of {len(test):,} queries")

# %% [markdown]
# Three queries, drawn at random: one that training repaired, one that it broke, and one that both get wrong. Under a wrong picture stands its species (of a relative, without the genus), and circles show the marks in which it differs from the query:

# %%
rng = np.random.default_rng(session.seed)
queries = [
    int(query)
    for kind in ("repaired", "broken", "wrong in both")
    for query in rng.choice(kinds[kind], min(1, len(kinds[kind])), False)
]
found = {
    name: nearest_neighbors(embeddings[name], 6)[1][queries]
    for name in ("frozen", "PA")
}  # (Q, 6) each
notes = {
    name: microscope.name_mistakes(test, queries, rows)
    for name, rows in found.items()
}

# %% tags=["hide-input", "slide"]


def picture(index):
    """One test image as (H, W, 3) uint8."""
    return np.asarray(pixels.read_image(test.paths[index]))


figures.retrieval_comparison(
    [picture(query) for query in queries],
    {n: [[picture(i) for i in row] for row in f] for n, f in found.items()},
    {
        n: test.labels[f] == test.labels[queries][:, None]
        for n, f in found.items()
    },
    titles=[title(test.class_names[test.labels[query]]) for query in queries],
    captions={n: words for n, (words, _) in notes.items()},
    spots={n: circles for n, (_, circles) in notes.items()},
)

# %% [markdown]
# Are the crossed pictures nonsense, or do they have the right shape and the wrong marks? [02 · DeiT features](02_deit_features.ipynb) counts how many are relatives, and [07 · Embedding maps](07_embedding_maps.ipynb) draws all of this as a map.
#
# ### Exercise 3 · Find the bug: the RMS cosine
#
# A colleague computes the root mean square cosine of all pairs of different proxies: rows to unit length, all cosines, square, average, root. It runs, and gives a number that looks plausible. It has two bugs.
#
# <details><summary>Hint</summary>
#
# Print the lengths of the rows of `unit`. Then ask which entries of the matrix of cosines are *not* pairs of different proxies.
#
# </details>


# %%
def rms_cosine(proxies):
    """Root mean square cosine of two different proxies; proxies (C, D)."""
    proxies = np.asarray(proxies, dtype=np.float64)
    unit = proxies / np.linalg.norm(proxies, axis=0, keepdims=True)
    cosines = unit @ unit.T  # (C, C)
    return float(np.sqrt((cosines**2).mean()))


for name, p in proxies.items():
    print(f"{name:6} yours {rms_cosine(p):.4f}, ", end="")
    print(f"expected {shapes[name].rms_cosine:.4f}")
exercises.check("00.3", rms_cosine)


# %% tags=["solution"]
def rms_cosine(proxies):
    proxies = np.asarray(proxies, dtype=np.float64)
    unit = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)  # (C, D)
    cosines = unit @ unit.T  # (C, C)
    count = len(unit)
    off_diagonal = (cosines**2).sum() - count  # the diagonal holds C ones
    return float(np.sqrt(off_diagonal / (count * (count - 1))))


for name, p in proxies.items():
    print(f"{name:6} yours {rms_cosine(p):.4f}, ", end="")
    print(f"expected {shapes[name].rms_cosine:.4f}")
exercises.check("00.3", rms_cosine)

# %% [markdown]
# ### Exercise 4 · Criticize a claim
#
# From a draft we might have written, after this notebook: *"Soft orthogonality makes the proxies nearly orthogonal (RMS cosine .193 → .036) and thereby improves retrieval of unseen species: Recall@1 rises from .644 to .662 (`aviary_finetune`, seed 0)."* Every number is right. Which objections hold? Give the letters.
#
# - **a** It is one training run of each; another seed could turn the order round.
# - **b** The interval of the difference over species contains zero.
# - **c** Both are below the frozen encoder.
# - **d** The test species were also trained on.
# - **e** "Thereby" is a cause, and nothing here tells the proxies' change from a coincidence.

# %%
my_objections = ""  # such as "cd"
exercises.check("00.4", my_objections)

# %% tags=["solution"]
my_objections = "abe"
exercises.check("00.4", my_objections)

# %% [markdown] tags=["slide"]
# ## 8 · The map of the course
#
# | | notebook | opens the box of |
# |---|---|---|
# | 01 | [Data](01_data.ipynb) | sections 1 and 2: species, splits, crops, the real benchmarks |
# | 02 | [DeiT features](02_deit_features.ipynb) | section 3: patches, tokens, attention, frozen retrieval |
# | 03 | [Losses, a short history](03_losses.ipynb) | section 4: what each loss compares with what |
# | 04 | [Proxy Anchor](04_proxy_anchor.ipynb) | section 4: the loss, built, checked, seen on a sphere, trained |
# | 05 | [Soft orthogonality](05_soft_orthogonality.ipynb) | section 4: the term, its floor, its weight |
# | 06 | [Proxy geometry](06_proxy_geometry.ipynb) | section 5: heatmaps, angles, spectra against chance and theory |
# | 07 | [Embedding maps](07_embedding_maps.ipynb) | section 7: UMAP, and what not to read in it |
# | 08 | [Benchmark](08_benchmark.ipynb) | section 6: several seeds, intervals, one careful comparison |
# | 09 | [What moves Recall@1?](09_what_moves_recall.ipynb) | sections 5 and 6: the cause, found by intervening |
# | 10 | [Your images](10_your_images.ipynb) | section 2: a search of your own, from a folder of pictures |
#
# Each runs alone, so start wherever your question is. Behind all of them is the package `sobook`, short files meant to be read: what a cell calls is never more than one file away.
#
# ## Summary
#
# - Metric learning makes a map in which pictures of one class lie together; it is tested on classes that were not trained on.
# - Recall@K asks for one relevant picture among K, R-precision for all R, MAP@R also for their order. All depend on what is searched.
# - Frozen DeiT features are a baseline that every training has to beat; the interval of the paired difference says whether it did.
# - PA learns one proxy per class; SO penalizes the squared cosines between proxies.
#
# ## Questions
#
# 1. Why are the *species*, not the pictures, resampled for the interval?
#
# <details><summary>Answer</summary>
#
# Pictures of one species share what makes them easy or hard, so they are not independent: two thousand queries of fifty species carry much less information than two thousand independent ones. Resampling pictures would give an interval that is too narrow.
#
# </details>
#
# 2. Someone reports that proxies are "nearly orthogonal after training with SO" and shows a heatmap of random-looking small values. What else would you ask to see?
#
# <details><summary>Answer</summary>
#
# The same heatmap before training, and after training without SO, on the same scale. Random directions in D dimensions have cosines of about 1/√D already, so near-orthogonality alone proves nothing.
#
# </details>
#
# 3. Why is the best epoch chosen on held-out training species and not on the test species?
#
# <details><summary>Answer</summary>
#
# The best of several epochs on the test species is the largest of several noisy numbers, so it is too high on average, and more so for a method that swings more. What is chosen must be chosen on other classes than those it is reported on.
#
# </details>
#
# **Still open.** The proxies crowd together, and a remedy spreads them; anyone can see it. The search hardly moved, as far as one run can say. Is that luck? And if not, why does so large a change do so little? Before we can ask properly we have to know what the numbers are measured on: [01 · Data](01_data.ipynb).
#
# ## Further reading
#
# - F. Saberi-Movahed et al., [Deep Metric Learning with Soft Orthogonal Proxies](https://arxiv.org/abs/2306.13055), 2023: the idea this course rebuilds. We know its abstract, not its settings; the settings here are ours.
# - S. Kim, D. Kim, M. Cho, S. Kwak, [Proxy Anchor Loss for Deep Metric Learning](https://arxiv.org/abs/2003.13911), CVPR 2020: the loss, with the recipe most of the field starts from.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), 2020: how gains shrink once nobody chooses on the test classes; the source of MAP@R.
# - N. Bansal, X. Chen, Z. Wang, [Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?](https://arxiv.org/abs/1810.09102), NeurIPS 2018: where the name "soft orthogonality" comes from, for weights rather than proxies.
