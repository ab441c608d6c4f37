"""The explorer: one page that links heatmap, map, angles and pictures of one or more runs.

`from_runs` makes it from run folders, `build` from plain arrays. The page needs no kernel, no
network and no library: data, pictures (one WebP sprite) and script are inside it.

Notation: A classes shown, of which the first C have proxies; N images; D dimensions; E epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sobook import geometry
from sobook.course.pages.page import Page, render, sprite
from sobook.data import image_sets, pixels
from sobook.data.image_sets import ImageSet
from sobook.embedding import embed
from sobook.errors import SobookError
from sobook.figures.embeddings import align, place, project, quality
from sobook.figures.proxies import class_order, random_angle_density
from sobook.figures.style import evenly, method_color
from sobook.retrieval import nearest_neighbors
from sobook.training.run import Run

TILE = 64  # pixels, the side of a thumbnail
_DEPTH = 8  # nearest images kept for each image
_MOST_EPOCHS = 31
_MOST_SIDE = 16_000  # pixels; a WebP ends at 16,383


@dataclass(frozen=True)
class Model:
    """One run, as the explorer needs it.

    Attributes:
        epochs: epoch → (C_all, D) proxies of every class.
        embeddings: (N, D) of the images shown, by the epoch that was kept.
        kept: that epoch.
        recall: epoch → Recall@1 on held-out classes, where it is known.
    """

    epochs: Mapping[int, np.ndarray]
    embeddings: np.ndarray
    kept: int
    recall: Mapping[int, float | None]


def build(
    models: Mapping[str, Model],
    pictures: Sequence[np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    proxy_classes: Sequence[int] | None = None,
    note: str = "",
    methods: Sequence[str] = ("umap", "pca"),
) -> Page:
    """Make the page from arrays.

    Args:
        models: name → `Model`, all on the same images.
        pictures: N images (H, W, 3) uint8.
        labels: (N,) classes 0..A−1; those from C on are test classes without proxies.
        class_names: A names, perhaps with a number; the last word is a group, as a bird's genus.
        proxy_classes: (C,) which proxies belong to the classes 0..C−1; by default all of them.
        note: written below.
        methods: kinds of map, of "umap" and "pca".

    Raises:
        SobookError: too few classes or images, or too many for one page.
    """
    first = next(iter(models.values()))
    kept = first.epochs[first.kept]
    shown = np.arange(len(kept)) if proxy_classes is None else np.asarray(proxy_classes)
    _check_size(labels, len(shown))
    runs: list[dict[str, Any]] = []
    for name, model in models.items():
        runs.append(_describe_run(name, model, shown, labels, len(class_names)))
        _add_maps(runs[-1], model, shown, methods, onto=runs[0])
    sheet, columns = sprite(pictures, TILE)
    names = [name.partition(".")[2].replace("_", " ") or name for name in class_names]
    data = {
        "note": note,
        "classes": [
            {"name": name, "group": name.split(" ")[-1], "proxy": c < len(shown)}
            for c, name in enumerate(names)
        ],
        "order": class_order(kept[shown]).tolist(),
        "labels": labels.tolist(),
        "sprite": sheet,
        "tile": TILE,
        "columns": columns,
        **_scales(np.concatenate([run["cosines"] for run in runs]), *kept[shown].shape),
        "runs": [run | {"cosines": run["cosines"].tolist()} for run in runs],
    }
    source = render("explorer", "Proxy explorer", data, scripts=("numerics.js",))
    return Page(source, title="Proxy explorer", height=900)


def from_runs(runs: Sequence[Run], *, classes: int = 100, per_class: int = 20) -> Page:
    """Make the page from finished runs on the same data.

    Args:
        runs: named PA and PA+SO by their weight of SO where that tells them apart.
        classes: most classes shown, evenly from those with proxies and the test classes.
        per_class: most images of each.

    Raises:
        SobookError: no runs, runs on different classes, or as `build`.
    """
    trained = [run.state["class_names"] for run in runs]
    if not runs or any(names != trained[0] for names in trained):
        raise SobookError("the explorer takes one run or more, all trained on the same classes.")
    train, test = _shown_sets(runs[0], classes, per_class)
    labels = np.concatenate([train.labels, test.labels + train.num_classes])
    _check_size(labels, train.num_classes)  # before anything is embedded
    note = (
        f"{runs[0].config.dataset}: {train.num_classes} of {len(trained[0])} classes with proxies "
        f"and {test.num_classes} test classes, up to {per_class} images each. Images are embedded "
        "by the encoder of the epoch that was kept; only proxies move with the slider. Confusions "
        "and nearest images are among the images shown, training and test apart."
    )
    notes = dict.fromkeys([*train.notes, *test.notes])
    names = ["PA+SO" if run.config.so_weight else "PA" for run in runs]
    if len(set(names)) < len(names):
        names = [run.path.name for run in runs]
    return build(
        {name: _model(run, (train, test)) for name, run in zip(names, runs, strict=True)},
        [image for part in (train, test) for image in pixels.decode(part, TILE, progress=False)],
        labels,
        [*train.class_names, *test.class_names],
        proxy_classes=[trained[0].index(name) for name in train.class_names],
        note=" ".join([note, *(f"Note: {text}." for text in notes)]),
    )


def _check_size(labels: np.ndarray, with_proxy: int) -> None:
    """Refuse too few or too many images (N,), by their labels; classes 0..C−1 have proxies."""
    trained, most = int((labels < with_proxy).sum()), (_MOST_SIDE // TILE) ** 2
    if with_proxy < 2 or trained < 2 or len(labels) - trained == 1 or len(labels) > most:
        raise SobookError(
            f"the explorer shows at most {most:,} pictures, and at least two classes with proxies "
            f"and two images of each kind; these are {with_proxy} class(es) with {trained:,} "
            f"images, and {len(labels) - trained:,} of test classes."
        )


def _shown_sets(run: Run, classes: int, per_class: int) -> tuple[ImageSet, ImageSet]:
    """Training images whose classes have proxies, and test images: some classes, some of each."""
    config = run.config
    options: dict[str, Any] = {"allow_partial": config.allow_partial, **config.options}
    test_split = "gallery" if config.dataset == "inshop" else "test"
    train = image_sets.load(config.dataset, "train", config.root, **options)
    test = image_sets.load(config.dataset, test_split, config.root, **options)
    names = np.array(train.class_names)
    train = train.subset(np.isin(names[train.labels], run.state["class_names"]))
    number = min(train.num_classes, max(classes - test.num_classes, (classes + 1) // 2))

    def first_images(part: ImageSet, classes: int) -> ImageSet:
        chosen = evenly(np.arange(part.num_classes), max(classes, 1))
        images = [np.flatnonzero(part.labels == c)[: max(per_class, 1)] for c in chosen]
        return part.subset(np.concatenate(images))

    return first_images(train, number), first_images(test, classes - number)


def _model(run: Run, parts: Sequence[ImageSet]) -> Model:
    encoder, kept = run.encoder(), run.state["selected_epoch"]
    recall = {line["epoch"]: line.get("recall_at_1") for line in run.epochs}
    shown = {kept, *evenly(np.array(sorted(recall)), _MOST_EPOCHS).tolist()}
    return Model(
        epochs={epoch: run.proxies(epoch).numpy() for epoch in sorted(shown)},
        embeddings=np.concatenate([embed(encoder, part, progress=False) for part in parts]),
        kept=kept,
        recall=recall,
    )


def _describe_run(
    name: str, model: Model, shown: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, Any]:
    """What the page knows of one run; the proxies `shown`, (C,), belong to its first classes."""
    near, confusion = _retrieved(model.embeddings, labels, num_classes, len(shown))
    shapes = [geometry.describe(proxies[shown]) for proxies in model.epochs.values()]
    return {
        "name": name,
        "color": method_color(name),
        "epochs": [*model.epochs],
        "kept": [*model.epochs].index(model.kept),
        "cosines": np.round([geometry.off_diagonal(shape.cosines) for shape in shapes], 5),
        "confusion": confusion.round(4).tolist(),
        "near": near.tolist(),
        "numbers": [  # of all proxies, including those not shown
            geometry.describe(proxies).summary() | {"recall": model.recall.get(epoch)}
            for epoch, proxies in model.epochs.items()
        ],
        "maps": {},
        "stars": {},
        "trust": {},
    }


def _add_maps(
    run: dict[str, Any], model: Model, shown: np.ndarray, methods: Sequence[str], onto: dict
) -> None:
    """Places (N, 2) of the images and (E, C, 2) of the proxies, in the unit square.

    One fit on images and kept proxies together; the proxies of other epochs are put onto it. The
    map is turned to lie on that of the run `onto`.
    """
    images = geometry.unit_rows(model.embeddings)
    proxies = np.stack([geometry.unit_rows(model.epochs[e][shown]) for e in run["epochs"]])
    union = np.concatenate([images, proxies[run["kept"]]])
    for method in methods:
        plane = project(union, method=method)
        places = plane[: len(images)]
        if method == "pca":  # linear, so that any other point has its exact place
            middle = union.mean(axis=0)
            stars = (proxies - middle) @ np.linalg.lstsq(union - middle, plane, rcond=None)[0]
        else:
            stars = np.stack([place(p, images, places) for p in proxies])
            stars[run["kept"]] = plane[len(images) :]
        run["trust"][method] = str(quality(images, places))
        if onto is not run:
            target = onto["maps"][method]
            places, stars = align(places, target), align(places, target, stars)
        low, high = np.quantile(places, [0.005, 0.995], axis=0)
        middle, side = (low + high) / 2, 1.1 * (high - low).max()
        for kind, points in (("maps", places), ("stars", stars)):
            run[kind][method] = np.clip((points - middle) / side + 0.5, 0, 1).round(5).tolist()


def _retrieved(
    embeddings, labels: np.ndarray, num_classes: int, with_proxy: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N, depth) nearest images and (A, A) confusions; training and test images apart.

    A confusion is the fraction of the R nearest images of a class' images that are of another
    class, R being the number of relevant images that an image has.
    """
    confusion = np.zeros((num_classes, num_classes))
    parts = [np.flatnonzero(labels < with_proxy), np.flatnonzero(labels >= with_proxy)]
    parts = [part for part in parts if len(part)]
    depth = min(_DEPTH, *(len(part) - 1 for part in parts))
    near = np.zeros((len(labels), depth), int)
    for part in parts:
        relevant = np.bincount(labels[part], minlength=num_classes)[labels[part]] - 1
        nearest = part[nearest_neighbors(embeddings[part], max(depth, int(relevant.max())))[1]]
        near[part] = nearest[:, :depth]
        within = np.arange(nearest.shape[1]) < np.maximum(relevant, 1)[:, None]
        rows = np.repeat(labels[part], within.sum(axis=1))
        np.add.at(confusion, (rows, labels[nearest[within]]), 1)
    return near, confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _scales(cosines: np.ndarray, classes: int, dim: int) -> dict[str, Any]:
    """Scales that all epochs and runs share: colors, angles in degrees, heights."""
    angles, bins = np.degrees(np.arccos(np.clip(cosines, -1, 1))), np.arange(0, 181, 2)
    heights = np.array([np.histogram(a, bins, density=True)[0] for a in angles]).max(axis=0)
    chance = random_angle_density(np.linspace(0, 180, 361), dim)  # at every half degree
    used = np.flatnonzero((heights > 0) | (chance[2::4] > 5e-4))
    welch = geometry.welch_bound(classes, dim)
    return {
        "limit": max(0.1, math.ceil(10 * float(np.quantile(np.abs(cosines), 0.999))) / 10),
        "angles": [int(bins[used[0]]), int(bins[used[-1] + 1])],
        "tallest": 1.05 * float(max(heights.max(), chance.max())),
        "chance": chance.round(7).tolist(),
        "welch": math.degrees(math.acos(welch)) if welch else 0,
    }
