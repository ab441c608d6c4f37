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
# Two trainings, some figures and one honest comparison: this notebook is the whole course at low magnification. Nothing is explained to the end here; every section names the notebook that opens the box.
#
# **What you will learn**
#
# - what *metric learning* is for: searching with pictures of classes the model has never seen;
# - how far the features of a transformer get without any training on the task;
# - what training with *Proxy Anchor* (PA) and with *Proxy Anchor plus soft orthogonality* (PA+SO) adds to that;
# - how *proxies* look after training, as a heatmap of cosines, and what SO changes there;
# - how to say which of two methods is better without fooling yourself.
#
# **Before you start** Python, and the idea that a network turns a picture into a vector. The mathematics here is one fraction and two sums.
#
# **Time** Less than a minute on a two-core laptop once the two training runs exist, plus three to four minutes if they do not; on a T4 GPU in full mode: not measured.
#
# **Versions last run** and the machine: printed by the first cell. Every section asks before it shows: write your prediction down, then run.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %% [markdown]
# That line says what was found: the versions, the mode and the machine. In *quick* mode the pictures are drawn by the package itself and the network is small; in *full* mode (`SOBOOK_MODE=full`, with a GPU) the same cells run on photographs of birds, CUB-200-2011, with a DeiT-Small.

# %%
import numpy as np
import pandas as pd

from sobook import figures, geometry
from sobook.course import exercises
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.losses import SO_WEIGHT
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict

config = session.config()  # the settings that all notebooks share
image_sets.prepare(config.dataset, progress=not session.quick)  # drawn once, then read from disk
test = image_sets.load(config.dataset, "test")
print(test.describe())

# %% [markdown] tags=["slide"]
# ## 1 · The birds
#
# Every row below is one *genus*, and every picture is another *species* of it. Before you run the cell: a genus fixes a bird's shape and base colors, a species only its field marks. **Which will be harder to tell apart, two rows or two pictures of one row?**

# %% tags=["slide"]
def picture(image_set, index):
    """One image as (H, W, 3) uint8."""
    return np.asarray(pixels.read_image(image_set.paths[index]))


def genus(class_name):
    """051.Little_Mossdove → Mossdove; the last word also serves for the birds of CUB."""
    return class_name.split("_")[-1]


def title(class_name):
    return class_name.partition(".")[2].replace("_", " ")


genera = np.array([genus(name) for name in test.class_names])  # (C,)
largest = pd.Series(genera).value_counts(sort=False).loc[lambda counts: counts >= 5].index[:4]
shown = np.concatenate([np.flatnonzero(genera == name)[:5] for name in largest])  # 20 classes
first = [int(np.flatnonzero(test.labels == label)[0]) for label in shown]
figures.finish(
    figures.contact_sheet(
        [picture(test, i) for i in first], [title(test.class_names[label]) for label in shown], columns=5
    ),
    f"Twenty birds, a row each of five species of {', '.join(largest)}.",
)

# %% [markdown]
# Shape gives the genus away at a glance. The species needs a second look, at a cap, a throat, a bar on the wing. That is the difficulty of real field guides, and of real retrieval: the nearest wrong answers are relatives. [01 · Data](01_data.ipynb) takes the birds apart.

# %% [markdown] tags=["slide"]
# ## 2 · What metric learning is for
#
# A classifier has one output a class, so it can only answer with classes it was trained on. Often that is no use: a shop has new articles every week, an ornithologist has new birds. What one wants is a *map* from pictures to vectors (*embeddings*) in which pictures of the same class lie close together, **whatever the class**. A query is then answered by its nearest neighbors, and a new class needs no training, only pictures.
#
# So the test is: take classes that the model has never seen, let every picture ask for its nearest neighbors among all the others, and count how often they are right. The training species and the test species are different ones:

# %%
train = image_sets.load(config.dataset, "train")
shared_species = set(train.class_names) & set(test.class_names)
shared_genera = {genus(name) for name in train.class_names} & set(genera)
print(f"training: {len(train):,} pictures of {train.num_classes} species")
print(f"test:     {len(test):,} pictures of {test.num_classes} species")
print(f"species in both: {len(shared_species)}; genera in both: {len(shared_genera)}")

# %% [markdown]
# The species are all new, their genera need not be: among the birds of CUB, too, most test species have relatives in training. So the model may have learned the look of a genus; which of its new species this one is, it has to see for itself.

# %% [markdown] tags=["slide"]
# ## 3 · Without any training: frozen features
#
# A *DeiT* (a vision transformer) that was trained elsewhere already turns pictures into useful vectors. In quick mode that is the bundled `deit_micro_patch8_64`, which learned on other drawn birds, none of which occurs here; in full mode a DeiT-Small that learned on ImageNet.
#
# Embeddings $x_i$ have unit length, so closeness is the cosine $s_{ij} = x_i^\top x_j$. With $y_i$ the species of picture $i$, and every picture asking all the others,
#
# $$\text{Recall@}K = \frac{1}{N}\sum_{i=1}^{N} \big[\text{at least one of the } K \text{ nearest neighbors of } i \text{ has class } y_i\big].$$
#
# **What do you expect for Recall@1 on species that the network has never seen?** Guessing at random would be right about once in as many tries as there are species.

# %% tags=["slide"]
frozen_encoder = Encoder.create(config.encoder, weights=config.weights).to(session.device)
frozen_embeddings = embed(frozen_encoder, test, progress=False)  # (N, F), rows of unit length
frozen = evaluate(frozen_embeddings, test.labels)
low, high = frozen.interval(1)

print(f"embeddings: {frozen_embeddings.shape}")
print(frozen)
print(f"Recall@1 {frozen.recall[1]:.3f}, 95 % interval over species [{low:.3f}, {high:.3f}]")
print(f"a random neighbor: about {1 / test.num_classes:.3f}")

# %% [markdown]
# Far better than chance, far from good. The interval says how much the number would move with *other test species*: whole species are resampled, because the pictures of one species succeed and fail together.
#
# **What Recall@K hides.** It asks for *one* right picture among the $K$, so two models with the same Recall@1 can differ in whether the next nine are right too (MAP@R sees that). It weighs every query alike, so classes with many pictures count more. It does not ask how *sure* an answer is, nor how wrong a wrong one is: a sister species counts as much as a heron for a wren. And it falls when the test set grows, for the same model. Numbers from different test sets do not compare.
#
# ### Exercise 1 · Recall@K by hand
#
# Write Recall@K from the matrix of cosines: set the diagonal aside (a picture must not find itself), look at the `k` largest entries of each row, and ask whether any of them has the right label. `np.argpartition` or `np.argsort` will do.
#
# <details><summary>Hint</summary>
#
# `np.fill_diagonal(cosines, -np.inf)` keeps a picture from finding itself; `np.argsort(-cosines, axis=1)[:, :k]` are its nearest; compare `labels[nearest]` with `labels[:, None]` and ask `.any(axis=1)`.
#
# </details>

# %%
def recall_at_k(embeddings, labels, k):
    """Share of queries with a picture of their class among their k nearest; (N, D) and (N,)."""
    return float("nan")  # your code here


for k in (1, 4):
    print(f"K = {k}: yours {recall_at_k(frozen_embeddings, test.labels, k):.4f}, expected {frozen.recall[k]:.4f}")
exercises.check("00.1", recall_at_k)

# %% tags=["solution"]
def recall_at_k(embeddings, labels, k):
    cosines = embeddings @ embeddings.T  # (N, N)
    np.fill_diagonal(cosines, -np.inf)  # never its own neighbor
    nearest = np.argsort(-cosines, axis=1)[:, :k]  # (N, k)
    return float((labels[nearest] == labels[:, None]).any(axis=1).mean())


for k in (1, 4):
    print(f"K = {k}: yours {recall_at_k(frozen_embeddings, test.labels, k):.4f}, expected {frozen.recall[k]:.4f}")
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
# So that nobody has to wait, both runs come with the course: weights, proxies after every epoch, and all that was measured. To see for yourself, write `session.fit(config, retrain=True)`: two minutes each on two cores. A run of your own is kept on disk and opened again the next time.

# %%
if not session.quick:  # before hours of computing: a few steps, timed here and now
    estimate = session.estimate(config, len(train))
    print(f"each of the two runs, with {estimate}")
    if estimate.chunk_size != config.chunk_size:
        print(
            "Memory is short: pass chunk_size="
            f"{estimate.chunk_size} to every session.config(...)."
        )

# %%
pa = session.fit(session.config(so_weight=0.0))

# %%
pa_so = session.fit(session.config(so_weight=SO_WEIGHT))
print(f"settings that differ: {pa.config.differences(pa_so.config)}")
for run in (pa, pa_so):
    print(f"λ = {run.config.so_weight:g}: kept the state after epoch {run.state['selected_epoch']} of {run.config.epochs}, the best on held-out training species")

# %% [markdown] tags=["slide"]
# ## 5 · Who retrieves best?
#
# **Write down an order before you run the cell: frozen, PA, PA+SO. And how far apart?**

# %% tags=["slide"]
names = ["frozen", "PA", "PA+SO"]
embeddings = {
    "frozen": frozen_embeddings,
    "PA": embed(pa.encoder().to(session.device), test, progress=False),  # (N, D)
    "PA+SO": embed(pa_so.encoder().to(session.device), test, progress=False),
}
results = {name: evaluate(embeddings[name], test.labels) for name in names}
figures.interval_plot(
    [(name, results[name].recall[1], *results[name].interval(1), name) for name in names],
    "Recall@1 on unseen species",
)

# %% [markdown] tags=["slide"]
# Look at the intervals, not only at the dots. Overlapping intervals do not settle the matter, though: the three methods answered *the same queries*, and a species that is hard for one is hard for all. The fair comparison is of the differences, species by species; what makes a species hard for all of them cancels, and the interval is narrower:

# %% tags=["slide"]
pairs = [("frozen", "PA"), ("frozen", "PA+SO"), ("PA", "PA+SO")]
changes = {(a, b): compare_classes(results[a], results[b]) for a, b in pairs}
figures.interval_plot(
    [(f"{b} − {a}", c.difference, c.low, c.high, f"{b} − {a}") for (a, b), c in changes.items()],
    "change of Recall@1",
    reference=0.0,
)

# %% [markdown]
# An interval that lies wholly on one side of the dotted line shows a change; one that contains zero does not. The sentences follow from the numbers:

# %%
def describe_change(before, after):
    found = changes[before, after]
    numbers = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"Recall@1 of {after} against {before}: {verdict(found, list(changes.values()))}, {numbers}."


for before, after in pairs:
    print(describe_change(before, after))

# %% [markdown]
# One reservation belongs to the last of these sentences. The interval covers the choice of *species*, not the luck of *one training run*: another seed gives other weights. [08 · Benchmark](08_benchmark.ipynb) trains over several seeds before it says anything about PA against PA+SO.

# %% [markdown]
# ### Exercise 2 · The share of errors removed (warm-up)
#
# From .5 to .75 and from .9 to .95: the first gain is five times the second, but both remove half of the errors there were. Write that share, from Recall@1 before and after. What should come out when training made things *worse*?
#
# <details><summary>Hint</summary>
#
# Errors are what is missing to 1: `1 - before` of them at first, `1 - after` at the end.
#
# </details>

# %%
def errors_removed(before, after):
    """Share of the errors that are gone; Recall@1 before and after, each in 0..1."""
    return float("nan")  # your code here


for name in ("PA", "PA+SO"):
    print(f"{name}: {errors_removed(results['frozen'].recall[1], results[name].recall[1]):.0%} of the frozen encoder's errors are gone")
exercises.check("00.2", errors_removed)

# %% tags=["solution"]
def errors_removed(before, after):
    return (after - before) / (1 - before)  # negative where errors were added


for name in ("PA", "PA+SO"):
    print(f"{name}: {errors_removed(results['frozen'].recall[1], results[name].recall[1]):.0%} of the frozen encoder's errors are gone")
exercises.check("00.2", errors_removed)

# %% [markdown] tags=["slide"]
# ## 6 · What the pictures say
#
# Numbers hide what has changed. Below are four queries, drawn at random: two that training repaired, one that it broke, and one that both get wrong. In both lines the nearest neighbors come first.

# %%
right = {name: results[name].hits[:, 0] for name in ("frozen", "PA")}  # (N,) is the nearest right?
kinds = {
    "repaired": np.flatnonzero(~right["frozen"] & right["PA"]),
    "broken": np.flatnonzero(right["frozen"] & ~right["PA"]),
    "wrong in both": np.flatnonzero(~right["frozen"] & ~right["PA"]),
    "right in both": np.flatnonzero(right["frozen"] & right["PA"]),
}
for kind, members in kinds.items():
    print(f"{kind:14} {len(members):5,} of {len(test):,} queries")

rng = np.random.default_rng(session.seed)
queries = [
    int(query)
    for kind, count in (("repaired", 2), ("broken", 1), ("wrong in both", 1))
    for query in rng.choice(kinds[kind], min(count, len(kinds[kind])), replace=False)
]

# %% tags=["slide"]
found = {name: nearest_neighbors(embeddings[name], 6)[1][queries] for name in ("frozen", "PA")}  # (Q, 6)
figures.retrieval_comparison(
    [picture(test, query) for query in queries],
    {name: [[picture(test, i) for i in row] for row in rows] for name, rows in found.items()},
    {name: test.labels[rows] == test.labels[queries][:, None] for name, rows in found.items()},
    titles=[title(test.class_names[test.labels[query]]) for query in queries],
)

# %% [markdown]
# Look at the crossed pictures first. Are they nonsense, or do they have the right shape and the wrong marks? [02 · DeiT features](02_deit_features.ipynb) counts how many are relatives, and [07 · Embedding maps](07_embedding_maps.ipynb) draws all of this as a map.

# %% [markdown] tags=["slide"]
# ## 7 · Proxies drift
#
# Now to the vectors themselves. Before training, proxies are random, and random directions in many dimensions are nearly at right angles: their cosines spread around zero with a standard deviation of $1/\sqrt{D}$. **What will training with PA do to the cosines between proxies? And with SO?** The heatmap shows the cosine of every pair, in both panels with the same order of classes and the same scale; the strip at the left marks the genera.

# %% tags=["slide"]
last = config.epochs
proxies = {"PA": pa.proxies(last), "PA+SO": pa_so.proxies(last)}  # (C, D) each, after the last epoch
groups = [genus(name) for name in pa.state["class_names"]]
figures.proxy_heatmaps(proxies, groups=groups)

# %% [markdown]
# Look for blocks along the diagonal of the left panel: sets of proxies that point the same way. Then look for the same blocks on the right. The next figure shows how it came to that. Its middle panel is the one to watch: the root mean square (RMS) cosine between proxies after every epoch, and the level of random directions as a dotted line.

# %%
figures.training_curves({"PA": pa.metrics, "PA+SO": pa_so.metrics}, dim=proxies["PA"].shape[1])

# %%
shapes = {name: geometry.describe(p) for name, p in proxies.items()}
start = geometry.describe(pa.proxies(0))
table = pd.DataFrame({"before training": start.summary(), **{n: s.summary() for n, s in shapes.items()}})
table.loc[["num_classes", "dim", "chance_cosine", "rms_cosine", "mean_cosine", "coherence", "mean_angle", "effective_rank"]].round(3)

# %%
ratio = {name: shape.rms_cosine / start.rms_cosine for name, shape in shapes.items()}
for name, factor in ratio.items():
    change = f"{factor:.1f} times" if factor >= 1 else f"{factor:.2f} of"
    print(f"After {name} the RMS cosine of the proxies is {change} what it was before training.")

# %% [markdown] tags=["slide"]
# Is the correlation noise, or does it mean something? **Do species of one genus get more similar proxies than species of two?**

# %% tags=["slide"]
groups = np.array(groups)
kin = groups[:, None] == groups[None]  # (C, C)
np.fill_diagonal(kin, False)
other = groups[:, None] != groups[None]
for name, shape in shapes.items():
    print(f"{name:6} mean cosine of two proxies: {shape.cosines[kin].mean():+.3f} within a genus, {shape.cosines[other].mean():+.3f} between genera")

# %% [markdown]
# Two things to take along. Near-orthogonality at the start is *chance*, not merit; correlation is *made by training*, and that is what SO works against. And where relatives have the larger cosines, correlation is information as much as redundancy: whether removing it helps retrieval is a question for section 5, not for the heatmap. [05](05_soft_orthogonality.ipynb) derives the term and its limits, [06](06_proxy_geometry.ipynb) measures the geometry.
#
# ### Exercise 3 · The RMS cosine by hand
#
# Compute the root mean square cosine of all pairs of different proxies: scale the rows to unit length, take all cosines, leave out the diagonal, square, average, take the root.
#
# <details><summary>Hint</summary>
#
# The diagonal of the matrix of cosines holds C ones: the squares of the others sum to `(cosines**2).sum() - C`, and there are C(C−1) of them.
#
# </details>

# %%
def rms_cosine(proxies):
    """Root mean square cosine of two different proxies; proxies (C, D)."""
    proxies = np.asarray(proxies, dtype=np.float64)
    return float("nan")  # your code here


for name, p in proxies.items():
    print(f"{name:6} yours {rms_cosine(p):.6f}, expected {shapes[name].rms_cosine:.6f}")
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
    print(f"{name:6} yours {rms_cosine(p):.6f}, expected {shapes[name].rms_cosine:.6f}")
exercises.check("00.3", rms_cosine)

# %% [markdown] tags=["slide"]
# ## 8 · What came out
#
# The conclusion is a cell as well, so that it cannot say more than the numbers do.

# %% tags=["slide"]
print(f"On {test.num_classes} species never seen in training ({len(test):,} queries, one seed):")
for before, after in pairs:
    print(f"- {describe_change(before, after)}")
towards = "closer to" if shapes["PA+SO"].rms_cosine < shapes["PA"].rms_cosine else "no closer to"
print(
    f"- The proxies of PA+SO are {towards} right angles than those of PA: RMS cosine "
    f"{shapes['PA+SO'].rms_cosine:.3f} against {shapes['PA'].rms_cosine:.3f}, where random directions "
    f"have {start.chance_cosine:.3f}."
)
retrieval_with_so = verdict(changes["PA", "PA+SO"], list(changes.values()))
print(f"- Whatever SO does to the proxies, Recall@1 with it, compared with PA alone: {retrieval_with_so}.")

# %% [markdown]
# ## The map of the course
#
# | | notebook | opens the box of |
# |---|---|---|
# | 01 | [Data](01_data.ipynb) | section 1 and 2: species, splits, crops, the real benchmarks |
# | 02 | [DeiT features](02_deit_features.ipynb) | section 3: patches, tokens, attention, frozen retrieval |
# | 04 | [Proxy Anchor](04_proxy_anchor.ipynb) | section 4: the loss, built, checked, seen on a sphere, trained |
# | 05 | [Soft orthogonality](05_soft_orthogonality.ipynb) | section 4: the term, its floor, its weight |
# | 06 | [Proxy geometry](06_proxy_geometry.ipynb) | section 7: heatmaps, angles, spectra against chance and theory |
# | 07 | [Embedding maps](07_embedding_maps.ipynb) | section 6: UMAP, and what not to read in it |
# | 08 | [Benchmark](08_benchmark.ipynb) | section 5: several seeds, intervals, a sober comparison |
# | 10 | [Your images](10_your_images.ipynb) | section 2: a search of your own, from a folder of pictures |
#
# Each runs alone, so start wherever your question is. Behind all of them is the package `sobook`, short files meant to be read: what a cell calls is never more than one file away.
#
# ## Summary
#
# - Metric learning makes a map in which pictures of one class lie together; it is tested on classes that were not trained on.
# - Recall@K is the share of queries with a right picture among their K nearest neighbors, the query itself left out.
# - Frozen DeiT features are a baseline that every training has to beat, and the intervals say whether it did.
# - PA learns one proxy per class; SO penalizes the squared cosines between proxies. The heatmap shows the effect on the proxies, and only the paired interval shows an effect on retrieval.
#
# ## Questions
#
# 1. Why are the *species*, not the pictures, resampled for the interval?
#
# <details><summary>Answer</summary>
# Pictures of one species share what makes them easy or hard, so they are not independent: two thousand queries of fifty species carry much less information than two thousand independent ones. Resampling pictures would give an interval that is too narrow.
# </details>
#
# 2. Someone reports that proxies are "nearly orthogonal after training with SO" and shows a heatmap of random-looking small values. What else would you ask to see?
#
# <details><summary>Answer</summary>
# The same heatmap before training, and after training without SO, on the same scale. Random directions in D dimensions have cosines of about 1/√D already, so near-orthogonality alone proves nothing.
# </details>
#
# 3. Why is the best epoch chosen on held-out training species and not on the test species?
#
# <details><summary>Answer</summary>
# The best of several epochs on the test species is the largest of several noisy numbers, so it is too high on average, and more so for a method that swings more. What is chosen must be chosen on other classes than those it is reported on.
# </details>
#
# ## Further reading
#
# - F. Saberi-Movahed et al., [Deep Metric Learning with Soft Orthogonal Proxies](https://arxiv.org/abs/2306.13055), 2023: the idea this course rebuilds. We know its abstract, not its settings; the settings here are ours.
# - S. Kim, D. Kim, M. Cho, S. Kwak, *Proxy Anchor Loss for Deep Metric Learning*, CVPR 2020: the loss, with the recipe most of the field starts from.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), 2020: how gains shrink once nobody chooses on the test classes.
# - N. Bansal, X. Chen, Z. Wang, [Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?](https://arxiv.org/abs/1810.09102), NeurIPS 2018: where the name "soft orthogonality" comes from, for weights rather than proxies.
