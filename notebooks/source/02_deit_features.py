# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · DeiT features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/02_deit_features.ipynb)
#
# Before anything is trained on the task, a transformer turns a picture into a vector. This notebook follows a bird through it, then asks how far that vector gets in retrieval, and what it confuses.
#
# **What you will learn**
#
# - how a picture becomes a sequence of tokens, and what class and distillation token are;
# - what position embeddings and attention look like, and how far to trust such pictures;
# - how well frozen features retrieve, against random weights and against chance;
# - where the errors go: to relatives, or anywhere;
# - which token is "the feature", and why published numbers of DeiT depend on it.
#
# **Before you start** [00 · Start here](00_start_here.ipynb). You should have met attention once: softmax of query times key, times value.
#
# **Time** Less than a minute on a two-core laptop; on a T4 GPU in full mode: not measured.
#
# **Versions last run** and the machine: printed by the first cell. Every section asks before it shows: write your prediction down, then run.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import gaussian_kde

from sobook import figures
from sobook.aviary import species as aviary
from sobook.course import exercises
from sobook.data import image_sets, loader, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict

config = session.config()  # quick: the micro DeiT and drawn birds; full: DeiT-Small and CUB
image_sets.prepare(config.dataset, progress=not session.quick)
test = image_sets.load(config.dataset, "test")
encoder = Encoder.create(config.encoder, weights=config.weights).to(session.device).eval()
model = encoder.backbone  # timm's own VisionTransformerDistilled
parameters = sum(weight.numel() for weight in model.parameters())
print(f"{encoder.name}: {len(model.blocks)} blocks, {model.blocks[0].attn.num_heads} heads, F = {encoder.num_features}, {parameters / 1e6:.1f} M parameters")

# %% [markdown]
# The micro DeiT is the same architecture as the real one, made small: it runs on a laptop, and all below holds for its larger siblings. Its weights were learned on drawn birds of other species, none of which occurs in this data set.

# %% [markdown] tags=["slide"]
# ## 1 · A picture becomes a sequence
#
# A transformer reads sequences, so the picture is cut into square patches of $p \times p$ pixels. **How many patches does a 64 × 64 picture give with $p = 8$? And a 224 × 224 picture with $p = 16$?**

# %% tags=["slide"]
few = test.subset(np.linspace(0, len(test) - 1, 6).astype(int))
short_side = loader.evaluation_short_side(encoder.image_size)
decoded = pixels.decode(few, short_side, progress=False)
(batch,) = loader.evaluation_batches(decoded, encoder.image_size, batch_size=len(few))  # (6, 3, H, W) uint8
patch = model.patch_embed.patch_size[0]
grid = encoder.image_size // patch
print(f"{encoder.image_size} / {patch} = {grid} patches a side, {grid**2} in all")


@figures.use_style()
def patch_grid(picture, patch):
    """The picture, and the same picture cut into its patches."""
    size, gap = len(picture), max(patch // 6, 1)
    side = size // patch
    apart = np.full((side * (patch + gap), side * (patch + gap), 3), 255, np.uint8)
    for row in range(side):
        for column in range(side):
            y, x = row * (patch + gap), column * (patch + gap)
            apart[y : y + patch, x : x + patch] = picture[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    figure = figures.new_figure(9, 4.4)
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    right.imshow(apart)
    left.set_title(f"{size} × {size} pixels")
    right.set_title(f"{side**2} patches of {patch} × {patch}")
    for axis in (left, right):
        axis.set_axis_off()
    return figures.finish(figure, f"A bird of {size} by {size} pixels, and cut into {side} by {side} patches.")


picture = batch[0].permute(1, 2, 0).numpy()  # (H, W, 3)
patch_grid(picture, patch)

# %% [markdown]
# Look at a single patch on the right: on its own, hardly any tells a species. What the transformer must do is let patches exchange what they hold.
#
# First, each patch becomes a vector of $F$ numbers by one and the same linear map, $t_j = W\,\mathrm{vec}(\text{patch}_j) + b$. timm writes that as a convolution whose stride is its kernel size, which is the same thing. Exercise 1 asks you to show it.
#
# ### Exercise 1 · Patches by hand
#
# Cut a batch of images (B, 3, H, W) into patches (B, number of patches, 3·p·p), patches row by row, and within a patch channel by channel, row by row. `reshape` and `permute` are enough. If you are right, a linear map of your patches equals timm's layer.
#
# <details><summary>Hint</summary>
#
# Six axes: `batch.reshape(B, 3, H // p, p, W // p, p)`. Then bring rows and columns of patches forward with `permute`, and flatten the rest.
#
# </details>

# %%
def patchify(batch, p):
    """(B, 3, H, W) → (B, (H / p)·(W / p), 3·p·p)."""
    B, channels, H, W = batch.shape
    return torch.zeros(B, (H // p) * (W // p), channels * p * p)  # your code here


def compare(patchify):
    with torch.inference_mode():
        normalized = encoder.normalize(batch.to(session.device))
        weight = model.patch_embed.proj.weight.flatten(1)  # (F, 3·p·p)
        yours = patchify(normalized, patch).to(session.device) @ weight.T + model.patch_embed.proj.bias
        expected = model.patch_embed(normalized)  # (B, patches, F)
    largest = (yours - expected).abs().max().item()
    print(f"shape: yours {tuple(yours.shape)}, expected {tuple(expected.shape)}")
    print(f"largest difference: yours {largest:.1e}, expected below 1e-04")


compare(patchify)
exercises.check("02.1", patchify)

# %% tags=["solution"]
def patchify(batch, p):
    B, channels, H, W = batch.shape
    blocks = batch.reshape(B, channels, H // p, p, W // p, p)  # (B, 3, rows, p, columns, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), channels * p * p)


compare(patchify)
exercises.check("02.1", patchify)

# %% [markdown] tags=["slide"]
# ## 2 · Two more tokens
#
# In front of the patches stand tokens that belong to no place: the *class token*, from which a classifier reads its answer, and in a distilled DeiT the *distillation token*. Both start as learned vectors, the same for every picture, and gather what they need through the blocks. In DeiT's training the class token learns from the labels, the distillation token from the answers of another network, the teacher. **Do you expect the two to end up alike?**

# %% tags=["slide"]
with torch.inference_mode():
    tokens = model.forward_features(encoder.normalize(batch.to(session.device)))  # (B, T, F)
prefix = model.num_prefix_tokens
print(f"tokens: {tuple(tokens.shape)} = (B, {prefix} + {grid**2}, F)")

cls, dist, patches = tokens[:, 0], tokens[:, 1], tokens[:, prefix:]
alike = F.cosine_similarity(cls, dist)  # (B,)
started = F.cosine_similarity(model.cls_token[0], model.dist_token[0]).item()
local = F.cosine_similarity(cls[:, None], patches, dim=-1)  # (B, patches)
print(f"cosine of class and distillation token: {started:.2f} before the first block, {alike.mean():.2f} after the last (mean of {len(alike)} pictures)")
print(f"cosine of class token and patches after the last block: {local.mean():.2f} on average")

# %% [markdown]
# In the micro DeiT both tokens learned from labels, each with a classifier of its own, so it is no surprise when they agree. In the larger DeiT, where a teacher stands behind one of them, compare for yourself (full mode). Section 7 returns to the question of which one to use.

# %% [markdown]
# ### Exercise 2 · How many tokens? (warm-up)
#
# Count the tokens of a square picture, the prefix tokens included. Then read the table: every token looks at every other, so the work of attention grows with the *square* of their number. What does it cost to go from 224 to 448 pixels?
#
# <details><summary>Hint</summary>
#
# `side // patch` patches fit into a row, and there are as many rows.
#
# </details>

# %%
def number_of_tokens(side, patch, prefix):
    """T, the length of the sequence, of a picture of side × side pixels."""
    return 0  # your code here


for side, patch_size in ((64, 8), (224, 16), (448, 16)):
    count = number_of_tokens(side, patch_size, 2)
    print(f"{side} pixels, patches of {patch_size}: {count:>4} tokens, {count**2:>9,} pairs of tokens in each head")
exercises.check("02.2", number_of_tokens)

# %% tags=["solution"]
def number_of_tokens(side, patch, prefix):
    return (side // patch) ** 2 + prefix


for side, patch_size in ((64, 8), (224, 16), (448, 16)):
    count = number_of_tokens(side, patch_size, 2)
    print(f"{side} pixels, patches of {patch_size}: {count:>4} tokens, {count**2:>9,} pairs of tokens in each head")
exercises.check("02.2", number_of_tokens)

# %% [markdown] tags=["slide"]
# ## 3 · Where am I? Position embeddings
#
# Attention does not know order: shuffle the tokens, and it gives the same answers, shuffled. So a learned vector is added to each token that says where it came from. Nobody tells the network that the picture is two-dimensional. **Does it find out?** For each of the places below, the small map shows the cosine of its position embedding with those of all places.

# %% tags=["slide"]
@figures.use_style()
def position_maps(positions, grid, step):
    """positions (patches, F) → a grid of grids of cosines."""
    unit = F.normalize(positions - positions.mean(0), dim=1).cpu().numpy()
    cosines = (unit @ unit.T).reshape(grid, grid, grid, grid)
    places = range(0, grid, step)
    figure = figures.new_figure(7.4, 6.6)
    axes = figure.subplots(len(places), len(places), squeeze=False)
    for axis_row, row in zip(axes, places, strict=True):
        for axis, column in zip(axis_row, places, strict=True):
            mesh = axis.imshow(cosines[row, column], cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
    figure.colorbar(mesh, ax=axes, shrink=0.7, label="cosine of (centered) position embeddings")
    figure.supxlabel("column of the patch")
    figure.supylabel("row of the patch")
    near = np.mean([cosines[r, c, r, c + 1] for r in range(grid) for c in range(grid - 1)])
    far = np.mean([cosines[r, 0, r, grid - 1] for r in range(grid)])
    return figures.finish(figure, f"Similarity of position embeddings for {len(places)} by {len(places)} places; neighbors in a row have a mean cosine of {near:.2f}, the two ends of a row {far:.2f}.")


positions = model.pos_embed.detach()[0, prefix:]  # (patches, F)
position_maps(positions, grid, step=max(grid // 8, 1))

# %%
where = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).float()  # (patches, 2)
apart = torch.cdist(where, where)  # distance in patches
cosines = F.normalize(positions - positions.mean(0), dim=1).cpu()
cosines = cosines @ cosines.T
rows = {f"{low}–{low + 1} patches apart": cosines[(apart > low) & (apart <= low + 1)].mean().item() for low in range(grid - 1)}
pd.Series(rows, name="mean cosine").to_frame().T.style.format("{:+.2f}")

# %% [markdown]
# If the cosine falls with distance, the network has learned from pictures alone that neighboring places belong together. How clear the pattern is depends on how long it was trained: large models show crisp rows and columns, this little one a blurred version at best. Judge by the table.

# %% [markdown] tags=["slide"]
# ## 4 · What the class token looks at
#
# In the last block, each head of the class token hands out one unit of attention over all $T$ tokens. With $q$ the query of the class token and $k_j$ the key of token $j$, in $d$ dimensions,
#
# $$a_j = \frac{\exp(q^\top k_j / \sqrt{d})}{\sum_{t=1}^{T} \exp(q^\top k_t / \sqrt{d})} .$$
#
# **Where will it look: at the bird, its outline, the marks, the background?** The maps leave the two prefix tokens out; 1 is the attention that every patch would get if it were spread evenly.

# %% tags=["slide"]
with torch.inference_mode():
    attention = encoder.attention(batch.to(session.device)).cpu()  # (B, heads, T)
on_patches = attention[:, :, prefix:]  # (B, heads, patches)
names = [few.class_names[label].partition(".")[2].replace("_", " ") for label in few.labels]
figures.attention_maps(list(batch.permute(0, 2, 3, 1).numpy())[:4], on_patches[:4], names[:4])

# %%
print(f"attention that goes to the prefix tokens: {attention[:, :, :prefix].sum(-1).mean():.0%}; evenly spread it would be {prefix / attention.shape[2]:.0%}")
share = on_patches / on_patches.sum(-1, keepdim=True)  # (B, heads, patches), sums to 1
entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)  # (B, heads)
effective = entropy.exp().mean(0)  # (heads,): over how many patches a head spreads
print("patches over which a head spreads its attention:", ", ".join(f"{value:.0f}" for value in effective), f"of {grid**2}")

# %% [markdown]
# Look along a row: heads differ, some spread widely, some pick a few patches. Take such pictures as a hint and not as an explanation. They show one block of several, the tokens it reads have already mixed with each other, and a patch can matter through its value however little attention it draws.
#
# A check that costs nothing: does the attention sit on the *bird* at all? The birds are drawn, so we can measure. Between two pictures of a species the background changes and the bird moves, but on average birds stand in the middle.

# %%
rim = np.ones((grid, grid), bool)
margin = max(grid // 8, 1)
rim[margin:-margin, margin:-margin] = False  # the outermost patches, mostly background
sample = test.subset(np.arange(0, len(test), max(len(test) // 200, 1)))
parts = loader.evaluation_batches(pixels.decode(sample, short_side, progress=False), encoder.image_size, 64)
with torch.inference_mode():
    looks = torch.cat([encoder.attention(part.to(session.device)).cpu() for part in parts])[:, :, prefix:]
looks = (looks / looks.sum(-1, keepdim=True)).mean((0, 1)).numpy()  # (patches,)
print(f"{len(looks[rim.ravel()])} of {grid**2} patches lie at the rim, {rim.mean():.0%}; they get {looks[rim.ravel()].sum():.0%} of the attention (mean of {len(sample)} pictures)")

# %% [markdown]
# If the rim gets less than its share, attention favors the middle, where the birds are. That is all the number says: not that it finds the marks.

# %% [markdown] tags=["slide"]
# ## 5 · Frozen retrieval
#
# Now the vector itself. Which token shall it be: class, distillation, or the mean of the two? And is it the *training* of the network that makes the vector useful, or merely its architecture? **Order these four before you run: class token, distillation token, mean, and the same network with random weights.**

# %% tags=["slide"]
@torch.inference_mode()
def summaries(encoder):
    """The class and the distillation token of every test picture after the last block: (N, 2, F)."""
    source = pixels.decode(test, loader.evaluation_short_side(encoder.image_size), progress=False)
    batches = loader.evaluation_batches(source, encoder.image_size, batch_size=64)
    return torch.cat([encoder.backbone.forward_features(encoder.normalize(batch.to(session.device)))[:, :2].cpu() for batch in batches])


torch.manual_seed(session.seed)  # for the random weights
untrained = Encoder.create(config.encoder, weights=None).to(session.device).eval()
tokens = summaries(encoder)  # one pass gives both tokens
features = {
    "class token": tokens[:, 0],
    "distillation token": tokens[:, 1],
    "mean": tokens.mean(1),
    "untrained": summaries(untrained).mean(1),
}
embeddings = {which: F.normalize(x, dim=1).numpy() for which, x in features.items()}  # (N, F), rows of unit length
results = {which: evaluate(x, test.labels) for which, x in embeddings.items()}
figure = figures.recall_curves(
    {which: result.recall for which, result in results.items()},
    {which: {k: result.interval(k) for k in result.ks} for which, result in results.items()},
)
figure.axes[0].legend(loc="center right")  # between the lines
figure

# %%
table = {which: {**{f"R@{k}": r for k, r in result.recall.items()}, "MAP@R": result.map_at_r} for which, result in results.items()}
table["chance"] = {"R@1": (np.bincount(test.labels) * (np.bincount(test.labels) - 1)).sum() / (len(test) * (len(test) - 1))}
pd.DataFrame(table).T.style.format("{:.3f}", na_rep="")

# %%
compared = {which: compare_classes(results[which], results["mean"]) for which in ("class token", "distillation token")}
for which, found in compared.items():
    print(f"mean compared with {which}: Recall@1 {verdict(found, list(compared.values()))}, {found}")

# %% [markdown]
# Random weights are not the same as chance: even an untrained network keeps some of what is in the pixels, such as color and rough layout. The distance from there to the other three curves is what training on *other* birds brought. MAP@R looks at all relevant images, not only the first, and is much stricter: the first neighbor is often right where the whole neighborhood is not.

# %% [markdown] tags=["slide"]
# ## 6 · What it confuses
#
# The feature from here on is timm's default, the mean of both tokens.

# %% tags=["slide"]
x = embeddings["mean"]
similarities, found = nearest_neighbors(x, 6)  # (N, 6) each
rng = np.random.default_rng(session.seed)
queries = rng.choice(len(test), 4, replace=False)


def read(index):
    return np.asarray(pixels.read_image(test.paths[index]))


figures.retrieval_wall(
    [read(query) for query in queries],
    [[read(i) for i in found[query]] for query in queries],
    test.labels[found[queries]] == test.labels[queries][:, None],
    similarities[queries],
    [test.class_names[test.labels[query]].partition(".")[2].replace("_", " ") for query in queries],
)

# %% [markdown] tags=["slide"]
# These queries are drawn at random, not chosen. Look at the crossed pictures: **are they relatives of the query or strangers?** Over all queries we can count.

# %% tags=["slide"]
genera = np.array([name.split("_")[-1] for name in test.class_names])[test.labels]  # (N,) genus of each picture
nearest = found[:, 0]
wrong = test.labels[nearest] != test.labels
related = genera[nearest] == genera
share = related[wrong].mean()
strangers = test.labels[:, None] != test.labels[None]
expected = ((genera[:, None] == genera[None]) & strangers)[wrong].sum() / strangers[wrong].sum()
print(f"{wrong.sum():,} of {len(test):,} nearest neighbors are of another species, {wrong.mean():.0%}")
print(f"of these, {share:.0%} are of the right genus; an irrelevant image drawn at random would be in {expected:.0%}")

# %% [markdown]
# So the errors are far from random. The frozen feature has the genus and loses the species, as one would expect of a network that learned shapes and colors on other birds. Which marks does it overlook? For the birds that we drew, we can compare the marks of query and wrong relative. In every row, how often the mark differs among such confusions, beside how often it differs between relatives in general; a ratio above 1 says that the feature is blind to it.

# %%
if session.quick:
    marks = aviary.attributes(2 * test.num_classes).set_index("index")  # the test species are the second half
    field_marks = list(marks.columns[3:])  # after name, genus and form
    by_class = marks.iloc[test.num_classes :][field_marks].astype(str).to_numpy()  # (C, number of marks)
    confusions = np.flatnonzero(wrong & related)
    a, b = test.labels[confusions], test.labels[nearest[confusions]]
    group = np.array([name.split("_")[-1] for name in test.class_names])
    first, second = np.nonzero((group[:, None] == group[None]) & ~np.eye(len(group), dtype=bool))
    # Every query could have gone to any relative: weigh pairs by how often their first species errs.
    weight = np.bincount(a, minlength=test.num_classes)[first].astype(float)
    usual = ((by_class[first] != by_class[second]) * weight[:, None]).sum(0) / weight.sum()
    table = pd.DataFrame({"among confusions": (by_class[a] != by_class[b]).mean(0), "between relatives": usual}, field_marks)
    table["ratio"] = table["among confusions"] / table["between relatives"]
    shown = table.sort_values("ratio", ascending=False).style.format("{:.2f}").background_gradient(cmap="RdBu_r", subset=["ratio"], vmin=0, vmax=2)
else:
    shown = "Photographs come without our marks: this cell belongs to the drawn birds."
shown

# %% [markdown] tags=["slide"]
# Now the same story in cosines. Take all pairs of pictures and sort them into three kinds. **If the feature were perfect for retrieval, how would the three curves lie?**

# %% tags=["slide"]
@figures.use_style()
def cosine_curves(kinds, palette):
    """Densities of cosines, one curve a kind of pair."""
    figure = figures.new_figure(9, 4.6)
    axis = figure.subplots()
    at = np.linspace(-0.6, 1, 300)
    for (kind, values), dash in zip(kinds.items(), ("-", "--", ":"), strict=True):
        sample = values if len(values) < 20_000 else np.random.default_rng(0).choice(values, 20_000)
        height = gaussian_kde(sample)(at)
        axis.plot(at, height, ls=dash, color=palette[kind], label=f"{kind}: mean {values.mean():.2f}")
        axis.fill_between(at, height, color=palette[kind], alpha=0.12)
    axis.set(xlabel="cosine of two pictures", ylabel="density", ylim=(0, None), xlim=(at[0], 1))
    axis.legend()
    said = "; ".join(f"{kind} {values.mean():.2f}" for kind, values in kinds.items())
    return figures.finish(figure, f"Distribution of the cosines of two pictures; means: {said}.")


pairs = np.triu_indices(len(test), 1)
cosines = (x @ x.T)[pairs]
same = (test.labels[:, None] == test.labels[None])[pairs]
kin = (genera[:, None] == genera[None])[pairs] & ~same
kinds = {"same species": cosines[same], "other species, same genus": cosines[kin], "other genus": cosines[~same & ~kin]}
cosine_curves(kinds, dict(zip(kinds, (figures.COLORS["relevant"], figures.COLORS["irrelevant"], figures.COLORS["chance"]), strict=True)))

# %%
def ranked_right(right, other):
    """Probability that a pair of the first kind has the larger cosine (area under the ROC curve)."""
    order = np.argsort(np.concatenate([right, other]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    return (ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(other))


for kind in ("other genus", "other species, same genus"):
    print(f"a same-species pair is closer than a pair of {kind}: {ranked_right(kinds['same species'], kinds[kind]):.0%} of the time")
print("Knowing nothing would give 50%.")

# %% [markdown]
# The third curve stands well apart, the first two overlap. Metric learning has to pull these two apart, on species it has never seen, without the marks being told to it.
#
# ### Exercise 3 · Recall of the genus
#
# How often is the nearest neighbor at least of the right *genus*? You can get it without another search, from two numbers of this section: the share of queries whose nearest neighbor has the wrong species, and the share of those whose neighbor is of the right genus. Derive it, then compare with an evaluation that uses genera as labels.
#
# <details><summary>Hint</summary>
#
# A neighbor is of the right genus in two cases that exclude each other: the species is right, or the species is wrong *and* the genus is right.
#
# </details>

# %%
def genus_recall(wrong_share, related_share):
    """Recall@1 of the genus, from the share of errors and the share of errors within the genus."""
    return float("nan")  # your code here


expected = evaluate(x, np.unique(genera, return_inverse=True)[1], ks=(1,)).recall[1]
print(f"yours {genus_recall(wrong.mean(), share):.4f}, expected {expected:.4f}")
exercises.check("02.3", genus_recall)

# %% tags=["solution"]
def genus_recall(wrong_share, related_share):
    # Right species implies right genus; a wrong species is of the right genus with related_share.
    return (1 - wrong_share) + wrong_share * related_share


print(f"yours {genus_recall(wrong.mean(), share):.4f}, expected {expected:.4f}")
exercises.check("02.3", genus_recall)

# %% [markdown] tags=["slide"]
# ## 7 · Which token is "the feature"?
#
# A distilled DeiT has two candidates, and code bases chose differently, sometimes without saying so:
#
# | code | in training | at evaluation |
# |---|---|---|
# | timm 0.4.12, heads removed (used by Hyp-ViT and HIER) | returns a pair; these codes take the first: **class token** | **mean** of both |
# | timm since the refactoring of 2022 | **mean** of both | **mean** of both |
# | sobook, `token=None` | as timm today: **mean** | **mean** |
# | sobook, `token="cls"`, `"dist"`, `"mean"` | what you say | what you say |
#
# In the first row, the network is trained on one vector and judged by another, an effect of a library's default. Published DeiT numbers that rest on it compare with others only roughly. How different would the two vectors be here, and would it matter before any training?

# %%
print(f"token=None is the mean: {np.allclose(embed(encoder, test, progress=False), embeddings['mean'], atol=1e-5)}")
agree = (embeddings["class token"] * embeddings["mean"]).sum(1)  # (N,) cosine
print(f"cosine of class token and mean, over {len(test):,} pictures: {agree.mean():.3f} on average, {agree.min():.3f} at least")
print(f"nearest mean to each class token is the picture's own: {(nearest_neighbors(embeddings['class token'], 1, gallery=embeddings['mean'])[1][:, 0] == np.arange(len(test))).mean():.1%}")

# %% [markdown]
# The lesson is not that one token is right. It is that "DeiT-Small features" is not yet a definition: name the token, in training and at evaluation, whenever you report a number.

# %% [markdown]
# ## Summary
#
# - A picture becomes patches, patches become tokens by one linear map, and positions are learned vectors added to them.
# - A distilled DeiT has two summarizing tokens. Which of them, or their mean, is the feature is a setting to be stated.
# - Attention maps show where one block reads from. They are hints, and measurable ones.
# - Frozen features beat random weights and chance by far without any training on the task; their errors stay largely within the genus.
# - Cosines between relatives overlap with cosines within a species: that overlap is what the next notebooks work on.
#
# ## Questions
#
# 1. The position embeddings were learned for an 8 × 8 grid. What has to happen to them before the same network can read larger pictures?
#
# <details><summary>Answer</summary>
# More patches need more positions. The learned grid is resampled to the new one, like a small picture that is enlarged; the prefix tokens' positions stay as they are. <code>Encoder.create(image_size=…)</code> does so when it loads weights.
# </details>
#
# 2. Why is a network with random weights better than chance at retrieving birds?
#
# <details><summary>Answer</summary>
# A random map that depends smoothly on its input keeps some of the input's similarities: pictures with similar colors in similar places get similar vectors. Species with unusual colors can profit.
# </details>
#
# 3. Someone concludes from an attention map that the model "recognizes the species by its cap". What would you do to test that?
#
# <details><summary>Answer</summary>
# Change the cap and nothing else, and see whether the neighbors change. With drawn birds that is possible: draw the same bird, pose and background with another cap, embed both, and compare with changes of other marks of the same area.
# </details>
#
# ## Further reading
#
# - H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jégou, *Training data-efficient image transformers & distillation through attention*, ICML 2021: DeiT and the distillation token.
# - A. Ermolov et al., [Hyperbolic Vision Transformers](https://arxiv.org/abs/2203.10833), CVPR 2022: transformers as encoders for metric learning, with frozen features ("zero-shot") as a row of its table.
# - A. El-Nouby et al., [Training Vision Transformers for Image Retrieval](https://arxiv.org/abs/2102.05644), 2021: DeiT features trained for retrieval, and a regularizer that spreads them out.
# - R. Wightman, [timm](https://github.com/huggingface/pytorch-image-models), file `timm/models/deit.py`: the model of this notebook in short.
