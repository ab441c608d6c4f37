"""Figures made of images: contact sheets, retrievals, attention, and how a split divides them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from sobook.errors import check_choice
from sobook.figures import style
from sobook.figures.style import Figure, as_array, finish, method_color, panels, use_style

_PARTS: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2"},
    "validation": {"color": "#56B4E9", "hatch": ".."},
    "test": {"color": "#E69F00", "hatch": "//"},
}


@use_style()
def contact_sheet(images, titles: Sequence[str] | None = None, columns: int = 10) -> Figure:
    """Images in rows.

    Args:
        images: N images, (H, W, 3) uint8.
        titles: N captions.
        columns: images per row, at most.
    """
    columns = min(columns, len(images))
    rows, pitch = -(-len(images) // columns), 1.04 if titles is None else 1.36
    figure, axis = _tiles(columns * 1.04, rows * pitch, top=0.0)
    titles = titles or [""] * len(images)
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        _tile(axis, image, index % columns * 1.04, index // columns * pitch, caption=title)
    return finish(figure, f"A contact sheet of {len(images)} images.")


def retrieval_wall(
    query_images, gallery_images, relevant, similarities=None, titles=(), **notes
) -> Figure:
    """`retrieval_comparison` for a single model: its arguments, without the model's name."""
    notes = {key: {"": rows} for key, rows in notes.items()}
    numbers = None if similarities is None else {"": similarities}
    model = {"": gallery_images}, {"": relevant}, numbers
    return retrieval_comparison(query_images, *model, titles, **notes)


@use_style()
def retrieval_comparison(
    query_images,
    gallery_images: Mapping[str, Sequence],
    relevant: Mapping[str, object],
    similarities: Mapping[str, Any] | None = None,
    titles: Sequence[str] = (),
    *,
    captions: Mapping[str, Sequence] | None = None,
    spots: Mapping[str, Sequence] | None = None,
) -> Figure:
    """The same queries under several models; relevant images are ticked, others crossed.

    Args:
        query_images: Q images, (H, W, 3) uint8.
        gallery_images: name → Q rows of k images, nearest first.
        relevant: name → (Q, k) bool: is the image of the query's class?
        similarities: name → (Q, k), written under the images.
        titles: names of the Q queries.
        captions: name → (Q, k) words, written there too, such as an image's species.
        spots: name → (Q, k) lists of circles (x, y, radius) in fractions of an image's side.
    """
    hits = {name: as_array(r).astype(bool) for name, r in relevant.items()}
    rows, k = next(iter(hits.values())).shape
    start = 1.2 if len(hits) == 1 else 2.05
    pitch = 1.2 if captions is None else 1.4
    block = len(hits) * pitch + (0.25 if len(hits) > 1 else 0.16)
    figure, axis = _tiles(start + k * 1.06, rows * block)
    for row, query, title in zip(range(rows), query_images, titles, strict=True):
        _tile(axis, query, 0, row * block + (len(hits) - 1) * pitch / 2, caption=title)
        for line, (name, hit) in enumerate(hits.items()):
            y = row * block + line * pitch
            label = axis.text(start - 0.1, y + 0.5, name, ha="right", va="center", weight="bold")
            label.set_color(method_color(name))
            for rank, image in enumerate(gallery_images[name][row]):
                words = [f"{similarities[name][row][rank]:.2f}"] if similarities else []
                words += [captions[name][row][rank]] if captions else []
                x = start + rank * 1.06
                _tile(axis, image, x, y, relevant=hit[row, rank], caption=" ".join(words))
                for across, down, radius in spots[name][row][rank] if spots else ():
                    for shade, width in (("white", 3.6), (style.INK, 1.8)):
                        look = {"fill": False, "ec": shade, "lw": width}
                        axis.add_patch(Circle((x + across, y + down), radius, **look))
    _heading(axis, 0, "query")
    _heading(axis, start, "nearest images, nearest first")
    numbers = [f"{name} {hit.sum()} of {hit.size} relevant".strip() for name, hit in hits.items()]
    return finish(figure, f"{rows} queries with their {k} nearest images: {'; '.join(numbers)}.")


def pick_queries(
    which: str, relevant: Mapping[str, object], number: int = 4, *, gallery_labels=None, labels=None
) -> np.ndarray:
    """Queries worth looking at, for `retrieval_comparison`.

    Args:
        which: "fixed" (the nearest image is irrelevant under the first model, relevant under the
            last), "broken" (the reverse), "hardest" (fewest relevant images under both) or
            "confused" (queries of the pair of classes that the last model mixes up most).
        relevant: two names → (N, k) bool, nearest first.
        number: how many, at most, spread evenly over those that qualify.
        gallery_labels, labels: for "confused", the classes of the last model's nearest images,
            (N, k), and of the queries, (N,).

    Returns:
        (≤ number,) indices of queries.
    """
    check_choice("kind of query", which, ("fixed", "broken", "hardest", "confused"))
    first, last = (as_array(r).astype(bool) for r in relevant.values())
    if which == "hardest":
        return np.argsort(first.sum(axis=1) + last.sum(axis=1), kind="stable")[:number]
    if which == "confused":
        chosen = _most_confused(as_array(gallery_labels), as_array(labels))
    else:
        before, after = (first, last) if which == "fixed" else (last, first)
        chosen = np.flatnonzero(~before[:, 0] & after[:, 0])
    return style.evenly(chosen, number)


def _most_confused(gallery_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Queries that take part in the pair of classes mixed up most often, either way."""
    queries = np.broadcast_to(labels[:, None], gallery_labels.shape)
    pairs = np.sort(np.stack([queries, gallery_labels], axis=-1), axis=-1)  # (N, k, 2)
    mistakes = pairs[pairs[..., 0] != pairs[..., 1]]
    pair, counts = np.unique(mistakes, axis=0, return_counts=True)
    return np.flatnonzero((pairs == pair[counts.argmax()]).all(axis=-1).any(axis=1))


@use_style()
def attention_maps(images, attention, names: Sequence[str], *, masks=None) -> Figure:
    """Attention of the class token on one scale: image, mean of the heads over it, every head.

    Args:
        images: B images, (H, W, 3) uint8, as the encoder saw them.
        attention: (B, heads, patches), prefix tokens left out.
        names: B titles.
        masks: B images (H, W), above 0 on the object: its outline is drawn into every map, and
            below each head its attention on the object, as a multiple of uniform attention.
    """
    attention = as_array(attention)
    number, heads, patches = attention.shape
    side = math.isqrt(patches)
    maps = attention / attention.mean(axis=2, keepdims=True)
    maps = maps.reshape(number, heads, side, side)  # fails with prefix tokens
    limit = max(2.0, float(np.ceil(np.quantile(maps, 0.995))))
    figure, axis = _tiles((heads + 2) * 1.05, len(images) * 1.36, extra=1.0)
    scale = {"cmap": "magma", "vmin": 0, "vmax": limit}
    for row, (image, grid, name) in enumerate(zip(images, maps, names, strict=True)):
        y, mean = row * 1.36, grid.mean(axis=0)
        _tile(axis, image, 0, y, caption=name)
        _tile(axis, np.asarray(image).mean(axis=2), 1.05, y, cmap="gray", vmin=0, vmax=255)
        _tile(axis, mean, 1.05, y, alpha=np.clip(mean / limit + 0.25, 0, 0.8), **scale)
        captions = [""] * heads if masks is None else _on_object(axis, grid, masks[row], y)
        for head, caption in enumerate(captions):
            mesh = _tile(axis, grid[head], (head + 2) * 1.05, y, caption=caption, **scale)
    titles = ["image", "mean head", *(f"head {h + 1}" for h in range(heads))]
    for column, title in enumerate(titles):
        _heading(axis, column * 1.05, title)
    bar = figure.colorbar(mesh, ax=axis, shrink=0.8, pad=0.02, extend="max")
    bar.set_label("attention (1 = uniform)")
    alt = f"Attention of the class token in {number} images, {heads} heads, up to"
    return finish(figure, f"{alt} {limit:g} times uniform.")


def _on_object(axis: Axes, grid: np.ndarray, mask, y: float) -> list[str]:
    """Outline an object in all maps of a row; captions: attention (mean 1) of each head on it."""
    mask = as_array(mask) > 0
    down, across = ((np.arange(n) + 0.5) / n for n in mask.shape)
    for column in range(1, len(grid) + 2):
        for shade, width in ((style.INK, 2.0), ("white", 1.0)):
            place = column * 1.05 + across, y + down
            axis.contour(*place, mask, levels=[0.5], colors=shade, linewidths=width)
    image = Image.fromarray(mask.astype(np.float32))
    covered = np.asarray(image.resize(grid.shape[1:], Image.Resampling.BOX))  # fraction per patch
    return [f"on it: {(head * covered).sum() / covered.sum():.1f} ×" for head in grid]


@use_style()
def split_chart(splits: Mapping[str, Mapping[str, Any]], *, show: int) -> Figure:
    """Pictures in train, validation and test: one stacked column per class.

    Args:
        splits: title of a panel → {"train": classes, "validation": …, "test": …}, where classes
            holds the class of every image of that part: (N,) names or numbers.
        show: the most classes shown, evenly chosen.
    """
    size = 10, 2.1 * len(splits) + 0.7
    figure, axes = panels(*size, len(splits), 1, sharex=True, sharey=True)
    classes = np.unique(np.concatenate([as_array(c) for s in splits.values() for c in s.values()]))
    classes, alt = style.evenly(classes, show), []
    for axis, (title, parts) in zip(axes, splits.items(), strict=True):
        counts = {part: (classes == as_array(c)[:, None]).sum(axis=0) for part, c in parts.items()}
        below = np.zeros(len(classes))
        for part, count in counts.items():
            look = {"ec": "white", "lw": 0, **_PARTS[part]}
            axis.bar(np.arange(len(classes)), count, 0.9, below, label=part, **look)
            below += count
        several = sum(count > 0 for count in counts.values()) > 1
        title = f"{title}: {several.sum()} of {len(classes)} classes in more than one part"
        axis.set(title=title, ylabel="pictures")
        alt.append(title)
    axes[-1].set(xlabel="class", xlim=(-0.6, len(classes) - 0.4))
    used = {bars.get_label(): bars for axis in axes for bars in axis.containers}
    figure.legend(handles=used.values(), loc="outside right upper")
    return finish(figure, f"Pictures of each class by part. {'; '.join(alt)}.")


def _tiles(
    width: float, height: float, *, top: float = 0.3, extra: float = 0.0
) -> tuple[Figure, Axes]:
    """One axes in sides of an image; room for headings and, in inches, for a color bar."""
    scale = min(1.25, 12 / width)  # inches
    figure, (axis,) = panels(width * scale + extra, (height + top) * scale)
    axis.set_axis_off()
    axis.set(xlim=(-0.05, width), ylim=(height, -top), aspect="equal")
    return figure, axis


def _tile(axis: Axes, image, x: float, y: float, *, relevant=None, caption="", **options):
    """An image inside the unit square at (x, y), framed and marked where `relevant` is given."""
    image = as_array(image)
    height, width = image.shape[:2] / np.max(image.shape[:2])
    left, top = x + (1 - width) / 2, y + (1 - height) / 2
    shown = axis.imshow(image, extent=(left, left + width, top + height, top), **options)
    if relevant is not None:
        shade = style.COLORS["relevant" if relevant else "irrelevant"]
        axis.add_patch(Rectangle((x, y), 1, 1, fill=False, ec=shade, lw=4, joinstyle="round"))
        mark = axis.text(x + 0.87, y + 0.13, "✓" if relevant else "✗", ha="center", va="center")
        mark.set(color="white", weight="bold", fontsize=13)
        mark.set_bbox({"boxstyle": "circle,pad=0.15", "fc": shade, "ec": "white"})
    if caption:
        text, size = _fitting(caption, axis)
        axis.text(x + 0.5, y + 1.03, text, ha="center", va="top", fontsize=size, linespacing=1.0)
    return shown


def _fitting(caption: str, axis: Axes) -> tuple[str, int]:
    """A caption in two lines no wider than an image, and the size of its letters in points."""
    left, right = axis.get_xlim()
    side = 72 * axis.figure.bbox.width / axis.figure.dpi / (right - left)  # of an image, in points
    for size in (10, 9, 8, 7):  # two lines take 0.3 of an image's side
        letters = max(4, int(side / (0.64 * size)))  # 0.64: mean width of the font
        lines = textwrap.wrap(caption, letters, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= 2 and all(len(line) <= letters for line in lines):
            return "\n".join(lines), size
    return "\n".join(textwrap.wrap(caption, letters, max_lines=2, placeholder="…")), size


def _heading(axis: Axes, x: float, title: str) -> None:
    axis.text(x, -0.08, title, ha="left", va="bottom", fontsize=12)
