"""The explorer: one page that links heatmap, map, angles and pictures of one or more runs.

`from_runs` makes it from run folders, `build` from plain arrays.

Notation: A classes shown, of which the first C have proxies; N images; D dimensions; E epochs.
"""

from __future__ import annotations

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
from sobook.figures.proxies import class_order
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
        epochs: E numbers of epochs.
        kept: the epoch that was kept.
        proxies: (E, C, D) of the classes shown.
        numbers: E summaries of the geometry of all proxies, each with "recall", which may be None.
        embeddings: (N, D) of the images shown, by the epoch that was kept.
    """

    epochs: Sequence[int]
    kept: int
    proxies: np.ndarray
    numbers: Sequence[Mapping[str, float | None]]
    embeddings: np.ndarray


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
    for run in runs[1:]:
        run.check_same_data(runs[0])
    train, test = parts = _shown_sets(runs[0], classes, per_class)
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
        {name: _model(run, parts) for name, run in zip(names, runs, strict=True)},
        [image for part in parts for image in pixels.decode(part, TILE, progress=False)],
        np.concatenate([train.labels, test.labels + train.num_classes]),
        [*train.class_names, *test.class_names],
        note=" ".join([note, *(f"Note: {text}." for text in notes)]),
    )


def build(
    models: Mapping[str, Model],
    pictures: Sequence[np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    note: str = "",
    methods: Sequence[str] = ("umap", "pca"),
) -> Page:
    """Make the page from arrays.

    Args:
        models: name → `Model`, all on the same images and classes.
        pictures: N images (H, W, 3) uint8.
        labels: (N,) classes 0..A−1; those from C on are test classes without proxies.
        class_names: A names, perhaps with a number; the last word is a group, as a bird's genus.
        note: written below.
        methods: kinds of map, of "umap" and "pca".

    Raises:
        SobookError: too few classes or images, or too many for one page.
    """
    first = next(iter(models.values()))
    C, dim = first.proxies.shape[1:]
    trained, most = int((labels < C).sum()), (_MOST_SIDE // TILE) ** 2
    if C < 2 or trained < 2 or len(labels) - trained == 1 or len(labels) > most:
        raise SobookError(
            f"the explorer shows at most {most:,} pictures, and at least two classes with proxies "
            f"and two images of each kind; these are {C} class(es) with {trained:,} images, and "
            f"{len(labels) - trained:,} of test classes."
        )
    # From here on, classes with proxies are numbered as they stand in the heatmap.
    order = np.arange(len(class_names))
    order[:C] = class_order(first.proxies[first.epochs.index(first.kept)])
    labels = np.argsort(order)[labels]
    names = [name.partition(".")[2].replace("_", " ") or name for name in class_names]
    names = [names[c] for c in order.tolist()]
    runs: list[dict[str, Any]] = []
    for name, model in models.items():
        proxies = np.stack([geometry.unit_rows(p) for p in model.proxies])
        runs.append(_pack(name, model, proxies[:, order[:C]], labels, len(names)))
        _add_maps(runs[-1], model.embeddings, proxies, methods, onto=runs[0])
        for method, stars in runs[-1]["stars"].items():
            runs[-1]["stars"][method] = [[places[c] for c in order[:C]] for places in stars]
    sheet, columns = sprite(pictures, TILE)
    cosines = np.abs(np.concatenate([run["cosines"] for run in runs]))
    data = {
        "note": note,
        "dim": dim,
        "classes": [
            {"name": name, "group": name.split(" ")[-1], "proxy": c < C}
            for c, name in enumerate(names)
        ],
        "labels": labels.tolist(),
        "sprite": sheet,
        "tile": TILE,
        "columns": columns,
        "limit": max(0.1, np.ceil(10 * np.quantile(cosines, 0.999)) / 10),
        "runs": runs,
    }
    source = render("explorer", "Proxy explorer", data, scripts=("numerics.js",))
    return Page(source, title="Proxy explorer", height=900)


def _shown_sets(run: Run, classes: int, per_class: int) -> tuple[ImageSet, ImageSet]:
    """Training images whose classes have proxies, and test images: some classes, some of each."""
    train, test = run.sets["train"], run.sets[image_sets.test_splits(run.config.dataset)[-1]]
    names = np.array(train.class_names)
    train = train.subset(np.isin(names[train.labels], run.state["class_names"]))
    number = min(train.num_classes, max(classes - test.num_classes, (classes + 1) // 2))

    def first_images(part: ImageSet, classes: int) -> ImageSet:
        chosen = evenly(np.arange(part.num_classes), max(classes, 1))
        images = [np.flatnonzero(part.labels == c)[: max(per_class, 1)] for c in chosen]
        return part.subset(np.concatenate(images))

    return first_images(train, number), first_images(test, classes - number)


def _model(run: Run, parts: Sequence[ImageSet]) -> Model:
    """A run, with the proxies of the classes in the first part."""
    encoder, state = run.encoder(), run.state
    rows = [state["class_names"].index(name) for name in parts[0].class_names]
    recall = {line["epoch"]: line.get("recall_at_1") for line in run.epochs}
    epochs = sorted({state["selected_epoch"], *evenly(np.sort([*recall]), _MOST_EPOCHS).tolist()})
    proxies, numbers = [], []
    for epoch in epochs:
        trained = run.proxies(epoch).numpy()
        proxies.append(trained[rows])
        numbers.append(geometry.describe(trained).summary() | {"recall": recall.get(epoch)})
    embeddings = [embed(encoder, part, progress=False) for part in parts]
    kept = state["selected_epoch"]
    return Model(epochs, kept, np.stack(proxies), numbers, np.concatenate(embeddings))


def _pack(
    name: str, model: Model, proxies: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, Any]:
    """What the page knows of a run besides its maps.

    Images are retrieved among training or test images. A confusion, (A, A), is the fraction of the
    R nearest images of a class' images that are of another class, R being the number of relevant
    images that an image has.
    """
    confusion = np.zeros((num_classes, num_classes))
    near: list[list[int]] = [[]] * len(labels)
    with_proxy = labels < proxies.shape[1]
    for part in filter(len, map(np.flatnonzero, (with_proxy, ~with_proxy))):
        relevant = np.bincount(labels[part])[labels[part]] - 1
        depth = min(max(_DEPTH, int(relevant.max())), len(part) - 1)
        nearest = part[nearest_neighbors(model.embeddings[part], depth)[1]]
        for image, count, row in zip(part, relevant, nearest, strict=True):
            near[image] = row[:_DEPTH].tolist()
            np.add.at(confusion[labels[image]], labels[row[: max(count, 1)]], 1)
    confusion /= np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return {
        "name": name,
        "color": method_color(name),
        "epochs": model.epochs,
        "kept": model.epochs.index(model.kept),
        "cosines": [geometry.off_diagonal(p @ p.T).round(5).tolist() for p in proxies],
        "confusion": confusion.round(4).tolist(),
        "near": near,
        "numbers": model.numbers,
    }


def _add_maps(
    run: dict[str, Any],
    embeddings: np.ndarray,
    proxies: np.ndarray,
    methods: Sequence[str],
    onto: dict,
) -> None:
    """Places (N, 2) of the images and (E, C, 2) of the proxies, in the unit square.

    One fit on images and kept proxies together; the proxies of other epochs are put onto it. The
    map is turned to lie on that of the run `onto`.
    """
    images, run["maps"], run["stars"], run["trust"] = geometry.unit_rows(embeddings), {}, {}, {}
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
            turn = align(places, onto["maps"][method])
            places, stars = places @ turn, stars @ turn
        low, high = np.quantile(places, [0.005, 0.995], axis=0)
        middle, side = (low + high) / 2, 1.1 * (high - low).max()
        for kind, points in (("maps", places), ("stars", stars)):
            run[kind][method] = np.clip((points - middle) / side + 0.5, 0, 1).round(5).tolist()
