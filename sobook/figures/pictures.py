"""Figures made of pictures, and of how pictures are divided: reached through `sobook.figures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sobook.errors import SobookError
from sobook.figures import style
from sobook.figures.style import Figure, as_array, as_matrix, color, finish, new_figure, use_style

_PARTS = {"train": "#0072B2", "validation": "#56B4E9", "test": "#E69F00"}
_HATCHES = {"train": "", "validation": "..", "test": "//"}


@use_style()
def split_chart(splits: Mapping[str, Mapping[str, object]], *, show: int | None = None) -> Figure:
    """How pictures are divided among train, validation and test: a column a class, stacked.

    A class-disjoint split gives every column one color; a classifier's split gives all columns
    every color.

    Args:
        splits: title of a panel → {"train": classes, "validation": …, "test": …}, where classes
            holds the class of every picture of that part: (N,) names or numbers. Columns are in
            their order.
        show: only so many classes, evenly chosen, where there are too many for columns.
    """
    figure = new_figure(10, 2.1 * len(splits) + 0.7)
    axes = figure.subplots(len(splits), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    classes = np.unique(np.concatenate([as_array(c) for s in splits.values() for c in s.values()]))
    if show is not None and show < len(classes):
        classes = classes[np.linspace(0, len(classes) - 1, show).round().astype(int)]
    said = []
    for axis, (title, parts) in zip(axes, splits.items(), strict=True):
        below, sets = np.zeros(len(classes)), {}
        for part, labels in parts.items():
            labels = as_array(labels)[np.isin(labels, classes)]
            counts = np.bincount(np.searchsorted(classes, labels), minlength=len(classes))
            axis.bar(np.arange(len(classes)), counts, 0.9, below, color=_PARTS[part], label=part,
                     hatch=_HATCHES[part], edgecolor="white", linewidth=0)  # fmt: skip
            below, sets[part] = below + counts, set(classes[counts > 0].tolist())
        mixed = sum(sum(c in s for s in sets.values()) > 1 for c in classes.tolist())
        axis.set_title(f"{title}: {mixed} of {len(classes)} classes in more than one part")
        axis.set_ylabel("pictures")
        said.append(f"{title}: {mixed} of {len(classes)} classes lie in more than one part")
    axes[-1].set_xlabel("class")
    axes[-1].set_xlim(-0.6, len(classes) - 0.4)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    return finish(figure, f"Pictures of each class by part. {'; '.join(said)}.")


def retrieval_wall(query_images, retrieved_images, right, similarities=None, titles=None) -> Figure:
    """Each query and its nearest images, right ones framed and ticked, wrong ones crossed.

    Args:
        query_images: Q images, (H, W, 3) uint8.
        retrieved_images: Q rows of k images.
        right: (Q, k) bool.
        similarities: (Q, k), written under the images.
        titles: Q names of the queries.
    """
    similarities = None if similarities is None else {"": similarities}
    return _retrievals(query_images, {"": retrieved_images}, {"": right}, similarities, titles)


def retrieval_comparison(
    query_images,
    retrieved_images: Mapping[str, Sequence],
    right: Mapping[str, object],
    similarities: Mapping[str, object] | None = None,
    titles=None,
) -> Figure:
    """The same queries under several models, one above the other.

    Args:
        query_images: Q images, (H, W, 3) uint8.
        retrieved_images: name → Q rows of k images.
        right: name → (Q, k) bool.
        similarities: name → (Q, k).
        titles: Q names of the queries.
    """
    return _retrievals(query_images, retrieved_images, right, similarities, titles)


def pick_queries(
    which: str, right: Mapping[str, object], number: int = 4, *, found=None, labels=None
) -> np.ndarray:
    """Queries worth looking at, for `retrieval_comparison`.

    Args:
        which: "fixed" (the first model's nearest image is wrong, the second's right), "broken"
            (the other way round), "hardest" (fewest right ones under both) or "confused" (queries
            of the pair of classes that the last model mixes up most).
        right: two names → (N, k) bool, nearest first.
        number: how many, at most; of equals, spread evenly.
        found: (N, k) classes of the last model's retrieved images, for "confused".
        labels: (N,) classes of the queries, for "confused".

    Returns:
        (≤ number,) indices of queries.
    """
    kinds = ("fixed", "broken", "hardest", "confused")
    if which not in kinds:
        raise SobookError(f"which must be one of {', '.join(kinds)}, not {which!r}")
    answers = [as_matrix(r, "right").astype(bool) for r in right.values()]
    first, last = answers[0], answers[-1]
    if which == "fixed":
        chosen = np.flatnonzero(~first[:, 0] & last[:, 0])
    elif which == "broken":
        chosen = np.flatnonzero(first[:, 0] & ~last[:, 0])
    elif which == "hardest":
        return np.argsort(first.sum(axis=1) + last.sum(axis=1), kind="stable")[:number]
    else:
        if found is None or labels is None:
            raise SobookError('"confused" needs found and labels: the classes of both sides')
        found, labels = as_matrix(found, "found"), as_array(labels)
        pairs = np.sort(np.stack([np.broadcast_to(labels[:, None], found.shape), found], -1), -1)
        wrong = pairs[pairs[..., 0] != pairs[..., 1]]
        if not len(wrong):
            return np.zeros(0, int)
        pair, counts = np.unique(wrong, axis=0, return_counts=True)
        worst = pair[counts.argmax()]
        chosen = np.flatnonzero((pairs == worst).all(axis=-1).any(axis=1))
    spread = np.linspace(0, len(chosen) - 1, min(number, len(chosen))).round().astype(int)
    return chosen[spread]


@use_style()
def contact_sheet(images, titles: Sequence[str] | None = None, columns: int = 10) -> Figure:
    """Images in rows, as a photographer would lay them out.

    Args:
        images: N images, (H, W, 3) uint8.
        titles: N captions.
    """
    if len(images) == 0:
        raise SobookError("contact_sheet got no images")
    columns = min(columns, len(images))
    rows, pitch = -(-len(images) // columns), 1.04 if titles is None else 1.36
    figure, axis = style.tiles(columns * 1.04, rows * pitch, top=0.0)
    for index, image in enumerate(images):
        caption = None if titles is None else titles[index]
        style.tile(axis, image, index % columns * 1.04, index // columns * pitch, caption=caption)
    return finish(figure, f"A contact sheet of {len(images)} images.")


@use_style()
def attention_maps(images, attention, names: Sequence[str] | None = None) -> Figure:
    """Where the class token looks: image, mean of the heads laid over it, and every head.

    All maps share one scale, in multiples of uniform attention: 1 is what every patch would get if
    the token looked everywhere alike.

    Args:
        images: B images, (H, W, 3) uint8, as the encoder saw them.
        attention: (B, heads, patches), prefix tokens left out.
        names: B titles.
    """
    attention = as_array(attention)
    if attention.ndim != 3:
        raise SobookError(f"attention must be (B, heads, patches), not {attention.shape}")
    side = math.isqrt(attention.shape[2])
    if side * side != attention.shape[2]:
        raise SobookError(f"{attention.shape[2]} patches are no square grid; leave out the class "
                         "and distillation tokens")  # fmt: skip
    maps = attention / attention.mean(axis=2, keepdims=True)
    maps = maps.reshape(*attention.shape[:2], side, side)
    limit, heads = max(2.0, float(np.ceil(np.quantile(maps, 0.995)))), attention.shape[1]
    pitch = 1.06 if names is None else 1.36
    figure, axis = style.tiles((heads + 2) * 1.05, len(images) * pitch, extra=1.0)
    scale = {"cmap": "magma", "vmin": 0, "vmax": limit}
    for row, (image, grid) in enumerate(zip(images, maps, strict=True)):
        y = row * pitch
        style.tile(axis, image, 0, y, caption=None if names is None else names[row])
        style.tile(axis, np.asarray(image).mean(axis=2), 1.05, y, cmap="gray", vmin=0, vmax=255)
        mean = grid.mean(axis=0)
        style.tile(axis, mean, 1.05, y, alpha=np.clip(mean / limit + 0.25, 0, 0.8), **scale)
        for head in range(heads):
            mesh = style.tile(axis, grid[head], (head + 2) * 1.05, y, **scale)
    titles = ["image", "mean head", *(f"head {h + 1}" for h in range(heads))]
    style.headings(axis, {i * 1.05: title for i, title in enumerate(titles)})
    figure.colorbar(mesh, ax=axis, shrink=0.8, pad=0.02, extend="max",
                    label="attention (1 = uniform)")  # fmt: skip
    return finish(figure, f"Attention of the class token in {len(images)} images, {heads} heads; "
                          f"the scale runs from 0 to {limit:g} times uniform.")  # fmt: skip


@use_style()
def _retrievals(query_images, retrieved, right, similarities, titles) -> Figure:
    """Queries at the left, one line of retrieved images a method at the right."""
    right = {name: as_matrix(r, "right").astype(bool) for name, r in right.items()}
    rows, k = next(iter(right.values())).shape
    if len(query_images) != rows:
        raise SobookError(f"{len(query_images)} query images but {rows} rows in right")
    start = 1.2 if len(right) == 1 else 2.05
    block = len(right) * 1.2 + (0.25 if len(right) > 1 else 0.16 * (titles is not None))
    figure, axis = style.tiles(start + k * 1.06, rows * block)
    for row, query in enumerate(query_images):
        middle = row * block + (len(right) - 1) * 0.6
        style.tile(axis, query, 0, middle, caption=None if titles is None else titles[row])
        for line, name in enumerate(right):
            y = row * block + line * 1.2
            axis.text(start - 0.1, y + 0.5, name, color=color(name), weight="bold", ha="right",
                      va="center")  # fmt: skip
            for rank, image in enumerate(retrieved[name][row]):
                said = None if similarities is None else f"{similarities[name][row][rank]:.2f}"
                style.tile(axis, image, start + rank * 1.06, y, right=right[name][row, rank],
                      caption=said)  # fmt: skip
    style.headings(axis, {0: "query", start: "nearest images, nearest first"})
    numbers = "; ".join(f"{name} {r.sum()} of {r.size} right".strip() for name, r in right.items())
    return finish(figure, f"{rows} queries with their {k} nearest images: {numbers}.")
