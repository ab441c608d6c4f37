"""The explorer: one page that links heatmap, map, angles and pictures of one or two runs.

`from_runs` makes it from run folders, `build` from plain arrays. The page needs no kernel, no
network and no library: data, pictures (one WebP sprite) and script are inside it.

Notation: A classes shown, of which the first C have proxies; N images; D dimensions; E epochs.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from sobook import geometry
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.errors import SobookError
from sobook.figures.embeddings import align, place, project, quality
from sobook.figures.proxies import class_order, random_angle_density
from sobook.figures.style import method_color
from sobook.interactive.page import Page, data_url, render, thumbnail
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
        epochs: E arrays (C_all, D): the proxies of every class, over time.
        embeddings: (N, D) of the images shown, by the epoch that was kept.
        kept: which of the epochs that was.
        epoch_numbers: (E,) what the epochs are called; 0..E−1 by default.
        recall: (E,) Recall@1 on held-out classes, where it is known.
    """

    epochs: Sequence
    embeddings: np.ndarray
    kept: int = -1
    epoch_numbers: Sequence[int] | None = None
    recall: Sequence[float | None] | None = None


def build(
    models: Mapping[str, Model],
    pictures: Sequence[np.ndarray],
    labels,
    class_names: Sequence[str],
    *,
    proxy_classes: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    title: str = "Proxy explorer",
    note: str = "",
    seed: int = 0,
    methods: Sequence[str] = ("umap", "pca"),
) -> Page:
    """Make the page from arrays.

    Args:
        models: name → `Model`, one or two, on the same images.
        pictures: N images (H, W, 3) uint8.
        labels: (N,) classes 0..A−1; those from C on are test classes without proxies.
        class_names: A names.
        proxy_classes: (C,) which proxies belong to the classes 0..C−1; by default all of them.
        groups: A names of groups (a genus), which give the colors.
        title, note: written above and below.
        seed: of UMAP.
        methods: kinds of map, of "umap" and "pca".

    Raises:
        SobookError: one or two models are needed, and all must be about the same images.
    """
    labels = np.asarray(labels).astype(int)
    _check(models, pictures, labels, class_names)
    names, first = list(class_names), next(iter(models.values()))
    groups = [""] * len(names) if groups is None else groups
    shown = np.arange(len(first.epochs[0])) if proxy_classes is None else np.asarray(proxy_classes)
    proxies = {
        name: np.stack([geometry.unit_rows(p)[shown] for p in model.epochs])
        for name, model in models.items()
    }  # (E, C, D) each
    runs = [
        _describe_run(name, model, proxies[name], labels, len(names), seed, methods)
        for name, model in models.items()
    ]
    for method in methods:
        _lay_out([run["maps"] for run in runs], [run["stars"] for run in runs], method)
    sprite, columns = _sprite(pictures)
    data = {
        "note": note,
        "classes": [
            {"name": str(name), "group": str(group), "proxy": c < len(shown)}
            for c, (name, group) in enumerate(zip(names, groups, strict=True))
        ],
        "order": class_order(proxies[next(iter(models))][first.kept]).tolist(),
        "labels": _packed(labels, np.uint16),
        "depth": runs[0]["near"].shape[1],
        "sprite": sprite,
        "tile": TILE,
        "columns": columns,
        **_scales(list(proxies.values())),
        "runs": [_packed_run(run) for run in runs],
    }
    return Page(render("explorer", title, data), title=title, height=900)


def from_runs(
    runs: Sequence[Run], *, classes: int = 100, per_class: int = 20, seed: int = 0, **options
) -> Page:
    """Make the page from finished runs on the same data.

    Args:
        runs: one or two; named PA and PA+SO by their weight of SO.
        classes: most classes shown, evenly from those with proxies and the test classes.
        per_class: most images of each.
        seed: of UMAP.
        options: as for `build`.

    Raises:
        SobookError: not one or two runs, or runs on different classes.
    """
    runs = list(runs)
    if len(runs) not in (1, 2):
        raise SobookError(f"the explorer shows one run or two, not {len(runs)}.")
    trained = runs[0].state["class_names"]
    if any(run.state["class_names"] != trained for run in runs):
        raise SobookError("the two runs were trained on different classes: compare like with like.")
    train, test = _shown_sets(runs[0], classes, per_class)
    class_names = [*train.class_names, *test.class_names]
    note = (
        f"{runs[0].config.dataset}: {train.num_classes} of {len(trained)} classes with proxies and "
        f"{test.num_classes} test classes, up to {per_class} images each. Images are embedded by "
        "the encoder of the epoch that was kept; only proxies move with the slider. Confusions and "
        "nearest images are among the images shown, training and test apart."
    )
    return build(
        {name: _model(run, (train, test)) for name, run in zip(_names(runs), runs, strict=True)},
        [*_decoded(train), *_decoded(test)],
        np.concatenate([train.labels, test.labels + train.num_classes]),
        [name.partition(".")[2].replace("_", " ") or name for name in class_names],
        proxy_classes=[trained.index(name) for name in train.class_names],
        groups=[_group(name) for name in class_names],
        note=" ".join([note, *(f"Note: {one}." for one in runs[0].retrieval["notes"])]),
        seed=seed,
        **options,
    )


def _decoded(part) -> list[np.ndarray]:
    images = pixels.decode(part, TILE, progress=False)
    return [images[i] for i in range(len(images))]


def _check(models, pictures, labels, class_names) -> None:
    if len(models) not in (1, 2):
        raise SobookError(f"the explorer shows one model or two, not {len(models)}.")
    for name, model in models.items():
        if not len(pictures) == len(labels) == len(model.embeddings):
            raise SobookError(
                f"{name}: {len(pictures)} pictures, {len(labels)} labels and "
                f"{len(model.embeddings)} embeddings must be equally many."
            )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise SobookError(f"labels reach {labels.max()}, but there are {len(class_names)} names.")


def _describe_run(
    name: str, model: Model, proxies: np.ndarray, labels, num_classes: int, seed: int, methods
) -> dict[str, Any]:
    """What the page knows of one run; `proxies` (E, C, D) are those shown."""
    evenly = np.linspace(0, len(proxies) - 1, min(_MOST_EPOCHS, len(proxies))).round().astype(int)
    kept = model.kept % len(proxies)
    steps = sorted({*evenly.tolist(), kept})
    proxies, kept = proxies[steps], steps.index(kept)
    numbers = range(len(model.epochs)) if model.epoch_numbers is None else model.epoch_numbers
    near, confusion = _retrieved(model.embeddings, labels, num_classes, proxies.shape[1])
    maps, stars, trust = {}, {}, {}
    for method in methods:
        maps[method], stars[method] = _map(model.embeddings, proxies, kept, method, seed)
        trust[method] = str(quality(model.embeddings, maps[method], seed=seed))
    return {
        "name": name,
        "color": method_color(name),
        "kept": kept,
        "trust": trust,
        "epochs": [int(numbers[step]) for step in steps],
        "cosines": np.stack([geometry.off_diagonal(p @ p.T) for p in proxies]),
        "maps": maps,
        "stars": stars,
        "confusion": confusion,
        "near": near,
        "numbers": [_numbers(model, step) for step in steps],
    }


def _numbers(model: Model, step: int) -> dict[str, float | None]:
    """Of all proxies, also of those that are not shown."""
    shape = geometry.describe(model.epochs[step]).summary()
    keys = ("rms_cosine", "coherence", "common_mode_share", "effective_rank")
    recall = None if model.recall is None else model.recall[step]
    return {"recall": recall, **{key: shape[key] for key in keys}}


def _map(
    embeddings, proxies: np.ndarray, kept: int, method: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, 2) of the images and (E, C, 2) of the proxies.

    One fit on images and kept proxies together; the proxies of other epochs are put onto it.
    """
    images = geometry.unit_rows(embeddings)
    union = np.concatenate([images, proxies[kept]])
    plane = project(union, method=method, seed=seed)
    if method == "pca":  # linear, so that any other point has its exact place
        middle = union.mean(axis=0)
        axes = np.linalg.lstsq(union - middle, plane, rcond=None)[0]
        return plane[: len(images)], (proxies - middle) @ axes
    stars = np.stack([place(p, images, plane[: len(images)]) for p in proxies])
    stars[kept] = plane[len(images) :]
    return plane[: len(images)], stars


def _lay_out(maps: list[dict], stars: list[dict], method: str) -> None:
    """Put every run's map into the unit square, a second run's first laid onto the first one's."""
    target = maps[0][method]
    for planes, places in zip(maps, stars, strict=True):
        plane, star = planes[method], places[method]
        if plane is not target:
            plane, star = align(plane, target), align(plane, target, star.reshape(-1, 2))
        low, high = np.quantile(plane, [0.005, 0.995], axis=0)
        middle, side = (low + high) / 2, 1.1 * (high - low).max()
        planes[method] = np.clip((plane - middle) / side + 0.5, 0, 1)
        places[method] = np.clip((star - middle) / side + 0.5, 0, 1)


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
        nearest = nearest_neighbors(embeddings[part], max(depth, int(relevant.max())))[1]
        nearest = part[nearest]
        near[part] = nearest[:, :depth]
        within = np.arange(nearest.shape[1]) < np.maximum(relevant, 1)[:, None]
        rows = np.repeat(labels[part], within.sum(axis=1))
        np.add.at(confusion, (rows, labels[nearest[within]]), 1)
    return near, confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _scales(proxies: list[np.ndarray]) -> dict[str, Any]:
    """Scales that all epochs and runs share: colors, angles, heights."""
    cosines = np.stack([geometry.off_diagonal(p @ p.T) for run in proxies for p in run])
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    count, dim = proxies[0].shape[1:]
    spread = 3.5 * math.degrees(math.asin(1 / math.sqrt(dim)))
    low, high = min(angles.min(), 90 - spread), max(angles.max(), 90 + spread)
    bins = np.arange(0, 181, 2)
    highest = max(np.histogram(a, bins, density=True)[0].max() for a in angles)
    chance = random_angle_density(np.linspace(0, 180, 361), dim)
    welch = geometry.welch_bound(count, dim)
    table = mpl.colormaps["RdBu_r"](np.linspace(0, 1, 256))  # as in figures.proxy_heatmaps
    return {
        "limit": max(0.1, math.ceil(10 * float(np.quantile(np.abs(cosines), 0.999))) / 10),
        "colors": _packed(np.round(table * 255), np.uint8),
        "gradient": [to_hex(color) for color in table[[*range(0, 255, 32), 255]]],
        "angles": [float(max(0, low // 2 * 2 - 2)), float(min(180, high // 2 * 2 + 4))],
        "tallest": 1.05 * float(max(highest, chance[180])),
        "chance": chance.round(7).tolist(),  # density at every half degree
        "welch": math.degrees(math.acos(welch)) if welch else 0,
    }


def _packed_run(run: dict[str, Any]) -> dict[str, Any]:
    """The run with its arrays as the page's script unpacks them."""
    packed: dict[str, Any] = {
        "cosines": _packed(np.round(run["cosines"] * 32767), np.int16),
        "confusion": _packed(np.round(run["confusion"] * 10_000), np.uint16),
        "near": _packed(run["near"], np.uint16),
    }
    for part in ("maps", "stars"):
        packed[part] = {kind: _packed(places, np.float32) for kind, places in run[part].items()}
    return run | packed


def _packed(values: np.ndarray, kind) -> str:
    little_endian = np.asarray(values).astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(little_endian.tobytes()).decode()


def _sprite(pictures: Sequence[np.ndarray]) -> tuple[str, int]:
    """All thumbnails in one WebP as a data address, and how many stand in a row."""
    columns = max(1, math.isqrt(len(pictures)))
    rows = -(-len(pictures) // columns)
    if max(columns, rows) * TILE > _MOST_SIDE:
        raise SobookError(
            f"{len(pictures)} pictures are too many for one page: show fewer classes."
        )
    sheet = Image.new("RGB", (columns * TILE, rows * TILE))
    for index, picture in enumerate(pictures):
        corner = index % columns * TILE, index // columns * TILE
        sheet.paste(thumbnail(Image.fromarray(np.asarray(picture)), TILE), corner)
    return data_url(sheet, "webp", quality=72, method=4), columns


def _shown_sets(run: Run, classes: int, per_class: int):
    """Training images whose classes have proxies, and test images: some classes, some of each."""
    config = run.config
    options: dict[str, Any] = {"allow_partial": config.allow_partial, **config.options}
    test_split = "gallery" if config.dataset == "inshop" else "test"
    train = image_sets.load(config.dataset, "train", config.root, **options)
    test = image_sets.load(config.dataset, test_split, config.root, **options)
    names = np.array(train.class_names)
    train = train.subset(np.isin(names[train.labels], run.state["class_names"]))
    some = min(train.num_classes, max(classes - test.num_classes, (classes + 1) // 2))
    return _evenly(train, some, per_class), _evenly(test, classes - some, per_class)


def _evenly(part, classes: int, per_class: int):
    """The first images of so many classes, evenly chosen."""
    most = max(min(classes, part.num_classes), 1)
    chosen = np.unique(np.linspace(0, part.num_classes - 1, most).round().astype(int))
    images = [np.flatnonzero(part.labels == c)[:per_class] for c in chosen]
    return part.subset(np.concatenate(images))


def _model(run: Run, parts) -> Model:
    encoder = run.encoder()
    numbers = [line["epoch"] for line in run.epochs]
    return Model(
        epochs=[run.proxies(epoch).numpy() for epoch in numbers],
        embeddings=np.concatenate([embed(encoder, part, progress=False) for part in parts]),
        kept=numbers.index(run.state["selected_epoch"]),
        epoch_numbers=numbers,
        recall=[line.get("recall_at_1") for line in run.epochs],
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """PA and PA+SO where that tells them apart, else the names of their folders."""
    names = ["PA+SO" if run.config.so_weight else "PA" for run in runs]
    return names if len(set(names)) == len(names) else [run.path.name for run in runs]


def _group(name: str) -> str:
    """The last word of a name: the genus of a drawn bird, or the kind of a real one."""
    return name.replace("_", " ").split(" ")[-1].split(".")[-1]
