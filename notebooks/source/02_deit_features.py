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
# Notebook 01 settled what is measured: new species, whose relatives were seen in training. Before anything is trained on the task, a transformer turns a picture into a vector. This notebook follows a bird through it, then asks how far that vector gets in retrieval, and what it confuses.
#
# **What you will learn**
#
# - how a picture becomes a sequence of tokens, and what class and distillation token are;
# - what position embeddings and attention look like, and how far to trust such pictures;
# - how well frozen features retrieve, against random weights and against chance;
# - where the errors go: to relatives, or anywhere;
# - which token is "the feature", and what changes in the code for DINOv2 or CLIP.
#
# **Before you start** [00 · Start here](00_start_here.ipynb). You should have met attention once: softmax of query times key, times value.
#
# **Time** Under a minute of computing on a two-core laptop.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import gaussian_kde

from sobook import figures, files
from sobook.course.aviary import microscope
from sobook.course.aviary import species as aviary
from sobook.course import exercises
from sobook.course.predictions import predict, reveal
from sobook.data import image_sets, loader, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.statistics import compare_classes, verdict

config = session.config()  # quick: micro DeiT, drawn birds; full: DeiT-S, CUB
image_sets.prepare(config.dataset, progress=not session.quick)
test = image_sets.load(config.dataset, "test")
encoder = Encoder.create(config.encoder, weights=config.weights)
encoder = encoder.to(session.device).eval()
model = encoder.backbone  # timm's own VisionTransformerDistilled
parameters = sum(weight.numel() for weight in model.parameters())
heads = model.blocks[0].attn.num_heads
print(f"{encoder.name}: {len(model.blocks)} blocks, {heads} heads, ", end="")
print(f"F = {encoder.num_features}, {parameters / 1e6:.1f} M parameters")

# %% [markdown]
# The micro DeiT is the same architecture as the real one, made small: it runs on a laptop, and all below holds for its larger siblings. Its weights were learned on drawn birds of other species, none of which occurs in this data set.

# %% [markdown] tags=["slide"]
# ## 1 · A picture becomes a sequence
#
# A transformer reads sequences, so the picture is cut into square patches of $p \times p$ pixels. **How many patches does a 64 × 64 picture give with $p = 8$? And a 224 × 224 picture with $p = 16$?**

# %%
few = test.subset(np.linspace(0, len(test) - 1, 6).astype(int))
short_side = loader.evaluation_short_side(encoder.image_size)
decoded = pixels.decode(few, short_side, progress=False)
(batch,) = loader.evaluation_batches(decoded, encoder.image_size, 6)
# batch: (6, 3, H, W) uint8
patch = model.patch_embed.patch_size[0]
grid = encoder.image_size // patch
print(
    f"{encoder.image_size} / {patch} = {grid} patches a side, {grid**2} in all"
)


# %% tags=["hide-input", "slide"]
@figures.use_style()
def patch_grid(picture, patch):
    """The picture, and the same picture cut into its patches."""
    size, gap = len(picture), max(patch // 6, 1)
    side, pitch = size // patch, patch + gap
    apart = np.full((side * pitch, side * pitch, 3), 255, np.uint8)
    for row in range(side):
        for column in range(side):
            y, x = row * patch, column * patch
            piece = picture[y : y + patch, x : x + patch]
            y, x = row * pitch, column * pitch
            apart[y : y + patch, x : x + patch] = piece
    figure = figures.new_figure(9, 4.4)
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    right.imshow(apart)
    left.set_title(f"{size} × {size} pixels")
    right.set_title(f"{side**2} patches of {patch} × {patch}")
    for axis in (left, right):
        axis.set_axis_off()
    alt = f"A bird of {size} by {size} pixels, and cut into {side} by {side}"
    return figures.finish(figure, f"{alt} patches.")


picture = batch[0].permute(1, 2, 0).numpy()  # (H, W, 3)
patch_grid(picture, patch)

# %% [markdown]
# Look at a single patch on the right: on its own, hardly any tells a species. What the transformer must do is let patches exchange what they hold.
#
# First, each patch becomes a vector of $F$ numbers by one and the same linear map, $t_j = W\,\mathrm{vec}(\text{patch}_j) + b$. timm writes that as a convolution whose stride is its kernel size, which is the same thing, as exercise 1 shows.
#
# ### Exercise 1 · Find the bug: patches by hand
#
# The function below cuts a batch of images (B, 3, H, W) into patches (B, number of patches, 3·p·p). The shape is right, a network can be trained on it, and it will even learn something. But these are not patches. Mend it: patches row by row, and within a patch channel by channel, row by row. Then a linear map of your patches equals timm's layer.
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
    return batch.reshape(B, (H // p) * (W // p), channels * p * p)


def compare(patchify):
    with torch.inference_mode():
        normalized = encoder.normalize(batch.to(session.device))
        layer = model.patch_embed.proj
        patches = patchify(normalized, patch).to(session.device)
        yours = patches @ layer.weight.flatten(1).T + layer.bias
        expected = model.patch_embed(normalized)  # (B, patches, F)
    largest = (yours - expected).abs().max().item()
    print(f"largest difference: yours {largest:.1e}, expected below 1e-04")


compare(patchify)
exercises.check("02.1", patchify)


# %% tags=["solution"]
def patchify(batch, p):
    B, channels, H, W = batch.shape
    # (B, 3, rows of patches, p, columns of patches, p)
    blocks = batch.reshape(B, channels, H // p, p, W // p, p)
    blocks = blocks.permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(B, (H // p) * (W // p), channels * p * p)


compare(patchify)
exercises.check("02.1", patchify)

# %% [markdown] tags=["slide"]
# ## 2 · Two more tokens
#
# In front of the patches stand tokens that belong to no place: the *class token*, from which a classifier reads its answer, and in a distilled DeiT the *distillation token*. Both start as learned vectors, the same for every picture, and gather what they need through the blocks. In DeiT's training the class token learns from the labels, the distillation token from the answers of another network, the teacher.
#
# **Predict** the cosine of the two after the last block (at the start it is 0.55).

# %%
predict("02.a", None)

# %% tags=["slide"]
with torch.inference_mode():
    normalized = encoder.normalize(batch.to(session.device))
    tokens = model.forward_features(normalized)  # (B, T, F)
prefix = model.num_prefix_tokens
print(f"tokens: {tuple(tokens.shape)} = (B, {prefix} + {grid**2}, F)")

cls, dist, patches = tokens[:, 0], tokens[:, 1], tokens[:, prefix:]
alike = F.cosine_similarity(cls, dist)  # (B,)
started = F.cosine_similarity(model.cls_token[0], model.dist_token[0]).item()
local = F.cosine_similarity(cls[:, None], patches, dim=-1)  # (B, patches)
reveal(
    "02.a",
    f"cosine of class and distillation token: {started:.2f} before the first "
    f"block, {alike.mean():.2f} after the last (mean of {len(alike)} pictures)",
    "cosine of class token and patches after the last block: "
    f"{local.mean():.2f} on average",
    truth=alike.mean().item(),
)

# %% [markdown]
# In the micro DeiT both tokens learned from labels, each with a classifier of its own, so it is no surprise when they agree. In the larger DeiT, where a teacher stands behind one of them, compare for yourself (full mode). Section 7 returns to the question of which one to use.

# %% [markdown]
# ### Exercise 2 · Warm-up: how many tokens?
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
    print(
        f"{side} pixels, patches of {patch_size}: {count:>4} tokens, ", end=""
    )
    print(f"{count**2:>9,} pairs of tokens in each head")
exercises.check("02.2", number_of_tokens)


# %% tags=["solution"]
def number_of_tokens(side, patch, prefix):
    return (side // patch) ** 2 + prefix


for side, patch_size in ((64, 8), (224, 16), (448, 16)):
    count = number_of_tokens(side, patch_size, 2)
    print(
        f"{side} pixels, patches of {patch_size}: {count:>4} tokens, ", end=""
    )
    print(f"{count**2:>9,} pairs of tokens in each head")
exercises.check("02.2", number_of_tokens)

# %% [markdown] tags=["slide"]
# ## 3 · Where am I? Position embeddings
#
# Attention does not know order: shuffle the tokens, and it gives the same answers, shuffled. So a learned vector is added to each token that says where it came from. Nobody tells the network that the picture is two-dimensional. **Does it find out?** For each of the places below, the small map shows the cosine of its position embedding with those of all places.


# %% tags=["hide-input", "slide"]
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
            mesh = axis.imshow(
                cosines[row, column], cmap="RdBu_r", vmin=-1, vmax=1
            )
            axis.set(xticks=[], yticks=[])
    label = "cosine of (centered) position embeddings"
    figure.colorbar(mesh, ax=axes, shrink=0.7, label=label)
    figure.supxlabel("column of the patch")
    figure.supylabel("row of the patch")
    steps = [(r, c) for r in range(grid) for c in range(grid - 1)]
    near = np.mean([cosines[r, c, r, c + 1] for r, c in steps])
    far = np.mean([cosines[r, 0, r, grid - 1] for r in range(grid)])
    alt = (
        f"Similarity of position embeddings for {len(places)} by {len(places)}"
    )
    alt += f" places; neighbors in a row have a mean cosine of {near:.2f}, the"
    return figures.finish(figure, f"{alt} two ends of a row {far:.2f}.")


positions = model.pos_embed.detach()[0, prefix:]  # (patches, F)
position_maps(positions, grid, step=max(grid // 8, 1))

# %%
steps = torch.arange(grid)
where = torch.cartesian_prod(steps, steps).float()  # (patches, 2)
apart = torch.cdist(where, where)  # distance in patches
unit = F.normalize(positions - positions.mean(0), dim=1).cpu()
cosines = unit @ unit.T
rows = {}
for low in range(grid - 1):
    ring = (apart > low) & (apart <= low + 1)
    rows[f"{low}–{low + 1} patches apart"] = cosines[ring].mean().item()
table = pd.Series(rows, name="mean cosine").to_frame()
table.style.format("{:+.2f}")

# %% [markdown]
# If the cosine falls with distance, the network has learned from pictures alone that neighboring places belong together. How clear the pattern is depends on how long it was trained: large models show crisp rows and columns, this little one a blurred version at best. Judge by the table.

# %% [markdown] tags=["slide"]
# ## 4 · What the class token looks at
#
# In the last block, each head of the class token hands out one unit of attention over all $T$ tokens. With $q$ the query of the class token and $k_j$ the key of token $j$, in $d$ dimensions,
#
# $$a_j = \frac{\exp(q^\top k_j / \sqrt{d})}{\sum_{t=1}^{T} \exp(q^\top k_t / \sqrt{d})} .$$
#
# **Predict.** Averaged over heads and pictures, how much more attention than an even spread would give it does the *bird* get? (1: the same; 2: twice as much.)

# %%
predict("02.b", None)

# %% [markdown]
# The birds are drawn, so we know where they are: `aviary.silhouette` gives the bird's outline in any picture. The maps leave the two prefix tokens out; 1 is the attention that every patch would get if it were spread evenly.

# %% tags=["slide"]
known = aviary.species(100) if session.quick else ()


def outline(path, class_name):
    """Where the bird is, cut as at evaluation: (H, W) uint8."""
    one = known[int(class_name.partition(".")[0]) - 1]
    mask = aviary.silhouette(one, int(path.stem))
    whole = Image.merge("RGB", [mask] * 3)
    return loader.evaluation_crop(whole, encoder.image_size)[0].numpy()


with torch.inference_mode():
    attention = encoder.attention(batch.to(session.device)).cpu()
on_patches = attention[:, :, prefix:]  # (B, heads, patches)
names = [
    few.class_names[c].partition(".")[2].replace("_", " ") for c in few.labels
]
masks = None
if session.quick:
    pairs = zip(few.paths, few.labels, strict=True)
    masks = [outline(path, few.class_names[c]) for path, c in pairs][:4]
shown = list(batch.permute(0, 2, 3, 1).numpy())[:4]
maps = figures.attention_maps(shown, on_patches[:4], names[:4], masks=masks)

# %%
sample = test.subset(np.arange(0, len(test), max(len(test) // 200, 1)))
source = pixels.decode(sample, short_side, progress=False)
parts = loader.evaluation_batches(source, encoder.image_size, 64)
with torch.inference_mode():
    looks = [encoder.attention(p.to(session.device)).cpu() for p in parts]
looks = torch.cat(looks)[:, :, prefix:].numpy()  # (N, heads, patches)
looks = looks / looks.sum(-1, keepdims=True)
effective = np.exp(-(looks * np.log(looks + 1e-12)).sum(-1)).mean(0)

covered = np.full((len(sample), 1, grid**2), np.nan)  # fraction of each patch
if session.quick:
    for i, (path, c) in enumerate(
        zip(sample.paths, sample.labels, strict=True)
    ):
        mask = outline(path, sample.class_names[c]) > 127
        blocks = mask.reshape(grid, patch, grid, patch)
        covered[i, 0] = blocks.mean(axis=(1, 3)).ravel()
on_bird = (looks * covered).sum(-1).mean(0)  # (heads,)
area = covered.mean()
over_even = on_bird / area
table = pd.DataFrame(
    {
        "attention on the bird": on_bird,
        "over an even spread": over_even,
        "patches it spreads over": effective,
    },
    index=[f"head {h + 1}" for h in range(len(on_bird))],
)
reveal(
    "02.b",
    maps,
    f"{len(sample)} pictures; the bird covers {area:.0%} of them.",
    table.round(2),
    truth=over_even.mean() if session.quick else None,
)

# %% [markdown]
# Look along a row of the maps: heads differ, some spread widely, some pick a few patches. In the committed run the mean over heads is 1.67 times an even spread, and heads 1 and 2, which pick few patches, reach about twice. The class token does look at the bird; yet more than half of its attention goes elsewhere.
#
# Take such pictures as a hint and not as an explanation. They show one block of several, the tokens it reads have already mixed with each other, and a patch can matter through its value however little attention it draws. Exercise 4 asks what would test it.

# %% [markdown] tags=["slide"]
# ## 5 · Frozen retrieval
#
# Now the vector itself. Which token shall it be: class, distillation, or the mean of the two? And is it the *training* of the network that makes the vector useful, or merely its architecture?
#
# **Predict** Recall@1 of the same network with *random weights* (chance is about .02).

# %%
predict("02.c", None)


# %%
@torch.inference_mode()
def summaries(encoder):
    """Class and distillation token of every test picture: (N, 2, F)."""
    source = pixels.decode(test, short_side, progress=False)
    collected = []
    for batch in loader.evaluation_batches(source, encoder.image_size, 64):
        normalized = encoder.normalize(batch.to(session.device))
        collected.append(encoder.backbone.forward_features(normalized)[:, :2])
    return torch.cat(collected).cpu()


torch.manual_seed(session.seed)  # for the random weights
untrained = Encoder.create(config.encoder, weights=None)
untrained = untrained.to(session.device).eval()
tokens = summaries(encoder)  # one pass gives both tokens
features = {
    "class token": tokens[:, 0],
    "distillation token": tokens[:, 1],
    "mean": tokens.mean(1),
    "untrained": summaries(untrained).mean(1),
}
embeddings = {w: F.normalize(x, dim=1).numpy() for w, x in features.items()}
results = {which: evaluate(x, test.labels) for which, x in embeddings.items()}

# %% tags=["slide"]
rows = {
    which: {
        **{f"R@{k}": recall for k, recall in result.recall.items()},
        "R-precision": result.r_precision,
        "MAP@R": result.map_at_r,
    }
    for which, result in results.items()
}
counts = np.bincount(test.labels)
chance = (counts * (counts - 1)).sum() / (len(test) * (len(test) - 1))
rows["chance"] = {"R@1": chance}
reveal(
    "02.c",
    figures.recall_curves(
        {which: result.recall for which, result in results.items()},
        {w: {k: r.interval(k) for k in r.ks} for w, r in results.items()},
    ),
    pd.DataFrame(rows).T.style.format("{:.3f}", na_rep=""),
    truth=results["untrained"].recall[1],
)

# %% [markdown]
# And the three tokens of the trained network? The sentences come from the paired differences, corrected for looking twice:

# %%
compared = {
    which: compare_classes(results[which], results["mean"])
    for which in ("class token", "distillation token")
}
for which, found in compared.items():
    said = verdict(found, list(compared.values()))
    print(f"mean compared with {which}: Recall@1 {said}, {found}")

# %% [markdown]
# By these lines the distillation token alone is a little better here than the mean. The course uses the mean all the same: it is what timm gives by default and what published numbers rest on (section 7), and one point on one data set is no reason to depart from it.
#
# Random weights are not the same as chance: even an untrained network keeps some of what is in the pixels, such as color and rough layout. The distance from there to the other three curves is what training on *other* birds brought. MAP@R looks at the first $R$ neighbors and their order ([00](00_start_here.ipynb) has the formula), and is much stricter: the first neighbor is often right where the whole neighborhood is not.

# %% [markdown] tags=["slide"]
# ## 6 · What it confuses
#
# The feature from here on is the mean of both tokens.

# %% tags=["slide"]
x = embeddings["mean"]
similarities, found = nearest_neighbors(x, 6)  # (N, 6) each
rng = np.random.default_rng(session.seed)
queries = rng.choice(len(test), 4, replace=False)


def read(index):
    return np.asarray(pixels.read_image(test.paths[index]))


captions, spots = microscope.name_mistakes(test, queries, found[queries])
figures.retrieval_wall(
    [read(query) for query in queries],
    [[read(i) for i in found[query]] for query in queries],
    test.labels[found[queries]] == test.labels[queries][:, None],
    titles=[
        test.class_names[test.labels[q]].partition(".")[2].replace("_", " ")
        for q in queries
    ],
    captions=captions,
    spots=spots,
)

# %% [markdown]
# These queries are drawn at random, not chosen. Under a wrong picture stands its species, of a relative without the genus, with the marks in which it differs; circles show where these are. (Marks of the head lie close together, so their circles overlap: the words say which are meant.)
#
# **Predict.** Of all wrong first neighbors, which fraction is at least of the right genus? (An irrelevant picture drawn at random is in 8 %.)

# %%
predict("02.d", None)  # between 0 and 1

# %%
group = np.array([name.split("_")[-1] for name in test.class_names])  # (C,)
genera = group[test.labels]  # (N,)
nearest = found[:, 0]
wrong = test.labels[nearest] != test.labels
related = genera[nearest] == genera
fraction = related[wrong].mean()
strangers = test.labels[:, None] != test.labels[None]
kin = (genera[:, None] == genera[None]) & strangers
expected = kin[wrong].sum() / strangers[wrong].sum()
reveal(
    "02.d",
    f"{wrong.sum():,} of {len(test):,} nearest neighbors are of another "
    f"species, {wrong.mean():.0%}",
    f"of these, {fraction:.0%} are of the right genus; an irrelevant image "
    f"drawn at random would be in {expected:.0%}",
    truth=fraction,
)

# %% [markdown]
# So the errors are far from random. The frozen feature has the genus and loses the species, as one would expect of a network that learned shapes and colors on other birds. Which marks does it overlook? For the birds that we drew, we can compare the marks of query and wrong relative. Every row of the table shows how often a mark differs among such confusions, beside how often it differs between relatives in general. A ratio above 1 hints that the feature overlooks the mark, one below 1 that it sees it. These are thirteen ratios without intervals, so take the ends of the list as a hint and its middle as nothing. (No ratio: a mark that never differs between these relatives.)

# %%
shown = "Photographs come without our marks: this cell is for drawn birds."
if session.quick:
    marks = aviary.attributes(2 * test.num_classes).set_index("index")
    field_marks = list(marks.columns[3:])  # after name, genus and form
    # The test species are the second half.
    by_class = marks.iloc[test.num_classes :][field_marks].astype(str)
    by_class = by_class.to_numpy()  # (C, number of marks)
    mistakes = np.flatnonzero(wrong & related)
    a, b = test.labels[mistakes], test.labels[nearest[mistakes]]
    same = group[:, None] == group[None]
    first, second = np.nonzero(same & ~np.eye(len(group), dtype=bool))
    # Every query could have gone to any relative: weigh pairs by how often
    # their first species errs.
    weight = np.bincount(a, minlength=test.num_classes)[first].astype(float)
    differs = by_class[first] != by_class[second]
    usual = (differs * weight[:, None]).sum(0) / weight.sum()
    among = (by_class[a] != by_class[b]).mean(0)
    table = pd.DataFrame(
        {"among confusions": among, "between relatives": usual}, field_marks
    )
    table["ratio"] = table["among confusions"] / table["between relatives"]
    shown = table.sort_values("ratio", ascending=False).style.format("{:.2f}")
    shown = shown.background_gradient(
        "RdBu_r", subset=["ratio"], vmin=0, vmax=2
    )
shown

# %% [markdown]
# Now the same story in cosines. Take all pairs of pictures and sort them into three kinds. **If the feature were perfect for retrieval, how would the three curves lie?**


# %% tags=["hide-input"]
@figures.use_style()
def cosine_curves(kinds, shades):
    """Densities of cosines, one curve per kind of pair."""
    figure = figures.new_figure(9, 4.6)
    axis = figure.subplots()
    at = np.linspace(-0.6, 1, 300)
    rng = np.random.default_rng(0)
    looks = zip(kinds.items(), ("-", "--", ":"), shades, strict=True)
    for (kind, values), dash, shade in looks:
        few = values if len(values) < 20_000 else rng.choice(values, 20_000)
        height = gaussian_kde(few)(at)
        label = f"{kind}: mean {values.mean():.2f}"
        axis.plot(at, height, ls=dash, color=shade, label=label)
        axis.fill_between(at, height, color=shade, alpha=0.12)
    axis.set(xlabel="cosine of two pictures", ylabel="density")
    axis.set(ylim=(0, None), xlim=(at[0], 1))
    axis.legend()
    said = "; ".join(f"{kind} {v.mean():.2f}" for kind, v in kinds.items())
    alt = f"Distribution of the cosines of two pictures; means: {said}."
    return figures.finish(figure, alt)


pairs = np.triu_indices(len(test), 1)
cosines = (x @ x.T)[pairs]
same = (test.labels[:, None] == test.labels[None])[pairs]
kin = (genera[:, None] == genera[None])[pairs] & ~same
kinds = {
    "same species": cosines[same],
    "other species, same genus": cosines[kin],
    "other genus": cosines[~same & ~kin],
}
shades = [figures.COLORS[c] for c in ("relevant", "irrelevant", "chance")]
cosine_curves(kinds, shades)


# %%
def ranked_right(right, other):
    """Probability that a pair of the first kind has the larger cosine.

    The area under the ROC curve.
    """
    order = np.argsort(np.concatenate([right, other]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    n = len(right)
    return (ranks[:n].sum() - n * (n + 1) / 2) / (n * len(other))


for kind in ("other genus", "other species, same genus"):
    chance = ranked_right(kinds["same species"], kinds[kind])
    print(f"a same-species pair is closer than a pair of {kind}: {chance:.0%}")
print("Knowing nothing would give 50%.")

# %% [markdown]
# The third curve stands well apart, the first two overlap. Metric learning has to pull these two apart, on species it has never seen, without the marks being told to it.
#
# ### Exercise 3 · Derive and check: recall of the genus
#
# How often is the nearest neighbor at least of the right *genus*? You can get it without another search, from two numbers of this section: the fraction of queries whose nearest neighbor has the wrong species, and the fraction of those whose neighbor is of the right genus. Derive it, then compare with an evaluation that uses genera as labels.
#
# <details><summary>Hint</summary>
#
# A neighbor is of the right genus in two cases that exclude each other: the species is right, or the species is wrong *and* the genus is right.
#
# </details>


# %%
def genus_recall(wrong_share, related_share):
    """Recall@1 of the genus.

    wrong_share: fraction of errors; related_share: of these, within the genus.
    """
    return float("nan")  # your code here


by_genus = np.unique(genera, return_inverse=True)[1]
expected = evaluate(x, by_genus, ks=(1,)).recall[1]
yours = genus_recall(wrong.mean(), fraction)
print(f"yours {yours:.4f}, expected {expected:.4f}")
exercises.check("02.3", genus_recall)


# %% tags=["solution"]
def genus_recall(wrong_share, related_share):
    # The right species is of the right genus; a wrong one with related_share.
    return (1 - wrong_share) + wrong_share * related_share


yours = genus_recall(wrong.mean(), fraction)
print(f"yours {yours:.4f}, expected {expected:.4f}")
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
default = embed(encoder, test, progress=False)
print(f"token=None is the mean: {np.allclose(default, x, atol=1e-5)}")
agree = (embeddings["class token"] * x).sum(1)  # (N,) cosines
print(
    f"cosine of class token and mean: {agree.mean():.3f} on average, ", end=""
)
print(f"{agree.min():.3f} at least")
closest = nearest_neighbors(embeddings["class token"], 1, gallery=x)[1][:, 0]
own = (closest == np.arange(len(test))).mean()
print(f"nearest mean to a class token is the same picture's: {own:.1%}")

# %% [markdown]
# The lesson is not that one token is right. It is that "DeiT-Small features" is not yet a definition: name the token, in training and at evaluation, whenever you report a number.

# %% [markdown] tags=["slide"]
# ## 8 · Other encoders: DINOv2, CLIP and their like
#
# DeiT learned from labels (and a teacher). *DINOv2* learned from pictures alone, two crops of one picture against each other; *CLIP* and *SigLIP* from pictures and their captions. For retrieval all are used alike: picture in, vector out. What changes in the code is a name, and with it the side of the input and the mean and standard deviation of its colors, which must not be mixed up:

# %% tags=["slide"]
NAMES = {
    "DeiT-S distilled": "deit_small_distilled_patch16_224.fb_in1k",
    "DINOv2 ViT-S": "vit_small_patch14_dinov2.lvd142m",
    "CLIP ViT-B": "vit_base_patch32_clip_224.openai",
    "SigLIP ViT-B": "vit_base_patch16_siglip_224.webli",
}
rows = {}
for title, name in NAMES.items():
    card = timm.get_pretrained_cfg(name)
    rows[title] = {
        "timm name": name,
        "side": card.input_size[-1],
        "mean": ", ".join(f"{v:.2f}" for v in card.mean),
        "std": ", ".join(f"{v:.2f}" for v in card.std),
        "license": card.license,
    }
pd.DataFrame(rows).T

# %% [markdown]
# `Encoder` reads these numbers from timm, so no notebook has to know them: CLIP fed with ImageNet's mean and standard deviation is a mistake that raises no error. Position embeddings are resampled where another side is asked for. The same two lines as in section 5, without the download of weights, so random ones:

# %%
torch.manual_seed(session.seed)
dino = Encoder.create(NAMES["DINOv2 ViT-S"], weights=None, image_size=70)
vectors = embed(dino, few, cache=False, progress=False)  # (6, F)
print(f"{dino.name}: F = {dino.num_features}, {dino.image_size} pixels")
print(f"six pictures become {vectors.shape}, rows of unit length")

# %% [markdown]
# With a network, `weights="pretrained"` fetches them once (DINOv2 is made for 518 pixels in patches of 14, which are 1,369 tokens; DeiT-S at 224 reads 196). Here and in `data/results` there are no such weights, so nothing is said about how well they do on our birds. What *was* measured, frozen, with 95 % intervals over classes:

# %%
table = pd.read_csv(files.shipped("results/frozen_encoders.csv"))
columns = ["recall_at_1", "low", "high", "recall_at_8"]
table.set_index(["dataset", "encoder"])[columns].round(3)

# %% [markdown]
# The committed table `frozen_encoders` has two lessons. On photographs (CUB-58/42, a part of CUB) the same DeiT-Tiny has .606 at 128 pixels and .842 at 224: in this pair the side of the input is worth more than most losses. And a number belongs to its data set: the same micro DeiT has .416 on the aviary and .23 where the test genera are new as well.
#
# ### Exercise 4 · Design: does it look at the cap?
#
# Somebody concludes from the maps of section 4 that "the model recognizes the species by its cap". Which of these would *test* that? Give the letters.
#
# - **a** Look at the attention maps of an earlier block as well.
# - **b** Draw the same bird, pose and background with another cap, embed both, and compare how far the embedding moves with how far it moves for other marks.
# - **c** Measure the attention that falls on the cap, in 200 pictures instead of four.
# - **d** Paint the cap over with the color of the back in all pictures, and see how Recall@1 changes between species that differ in the cap and between others.
# - **e** Show maps of more species that have a cap.

# %%
tests = ""  # such as "ae"
exercises.check("02.4", tests)

# %% tags=["solution"]
tests = "bd"
exercises.check("02.4", tests)

# %% [markdown]
# Notebook 09 does **b**, for every mark.
#
# ## Summary
#
# - A picture becomes patches, patches become tokens by one linear map, and positions are learned vectors added to them.
# - A distilled DeiT has two summarizing tokens. Which of them, or their mean, is the feature is a setting to be stated.
# - Attention maps show where one block reads from. They are hints, and where the object is known, measurable ones.
# - Frozen features beat random weights and chance by far without any training on the task; their errors stay largely within the genus.
# - Cosines between relatives overlap with cosines within a species: that overlap is what the next notebooks work on.
#
# ## Questions
#
# 1. The position embeddings were learned for an 8 × 8 grid. What has to happen to them before the same network can read larger pictures?
#
# <details><summary>Answer</summary>
#
# More patches need more positions. The learned grid is resampled to the new one, like a small picture that is enlarged; the prefix tokens' positions stay as they are. <code>Encoder.create(image_size=…)</code> does so when it loads weights.
#
# </details>
#
# 2. Why is a network with random weights better than chance at retrieving birds?
#
# <details><summary>Answer</summary>
#
# A random map that depends smoothly on its input keeps some of the input's similarities: pictures with similar colors in similar places get similar vectors. Species with unusual colors can profit.
#
# </details>
#
# 3. A colleague swaps DeiT for CLIP by changing one name in a training script that normalizes with ImageNet's mean and standard deviation. What will happen?
#
# <details><summary>Answer</summary>
#
# Nothing that one would notice: the shapes fit, the loss falls. The features are a little worse than they could be, because the network sees colors shifted from what it learned on. The normalization belongs to the weights, not to the script.
#
# </details>
#
# **Still open.** The frozen feature has the genus and loses the species: cosines between relatives overlap with cosines within a species. To pull them apart, something must tell the network which pictures belong together, for species it will be asked about later and cannot know now. What should such a loss compare with what? [03 · Losses, a short history](03_losses.ipynb).
#
# ## Further reading
#
# - H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jégou, *Training data-efficient image transformers & distillation through attention*, ICML 2021: DeiT and the distillation token.
# - A. Ermolov et al., [Hyperbolic Vision Transformers](https://arxiv.org/abs/2203.10833), CVPR 2022: transformers as encoders for metric learning, with frozen features ("zero-shot") as a row of its table.
# - A. El-Nouby et al., [Training Vision Transformers for Image Retrieval](https://arxiv.org/abs/2102.05644), 2021: DeiT features trained for retrieval, and a regularizer that spreads them out.
# - M. Oquab et al., [DINOv2: Learning Robust Visual Features without Supervision](https://arxiv.org/abs/2304.07193), 2023; A. Radford et al., [Learning Transferable Visual Models From Natural Language Supervision](https://arxiv.org/abs/2103.00020), ICML 2021: the encoders of section 8.
# - R. Wightman, [timm](https://github.com/huggingface/pytorch-image-models), file `timm/models/deit.py`: the model of this notebook in short.
