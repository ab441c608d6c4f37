"""The explorer: one page that links heatmap, map, angles and pictures of one or two runs.

`from_runs` makes it from run folders, `build` from plain arrays. The page needs no kernel, no
network and no library: data, pictures (one WebP sprite) and script are inside it.

Notation: A classes shown, of which the first C have proxies; N images; D dimensions; E epochs.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from PIL import Image

from sobook import figures, geometry
from sobook.data import image_sets, pixels
from sobook.encoder import embed
from sobook.errors import SobookError
from sobook.figures import maps, style
from sobook.interactive.playground import _WEB, Page
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
    labels, models = np.asarray(labels).astype(int), dict(models)
    _check(models, pictures, labels, class_names)
    count = len(next(iter(models.values())).epochs[0])
    chosen = np.arange(count) if proxy_classes is None else np.asarray(proxy_classes, dtype=int)
    first = next(iter(models.values()))
    reduced = {
        name: [geometry.unit_rows(p)[chosen] for p in m.epochs] for name, m in models.items()
    }
    order = figures.class_order(reduced[next(iter(models))][first.kept])
    runs = [_run(name, m, reduced[name], labels, len(class_names), seed, methods)
            for name, m in models.items()]  # fmt: skip
    _place_maps(runs, methods)
    sprite, columns = _sprite(pictures)
    groups = [""] * len(class_names) if groups is None else [str(group) for group in groups]
    data = {
        "title": title, "note": note, "dim": int(first.embeddings.shape[1]),
        "classes": [{"name": str(name), "group": group, "proxy": c < len(chosen)}
                    for c, (name, group) in enumerate(zip(class_names, groups, strict=True))],
        "order": order.tolist(), "labels": _packed(labels, np.uint16), "depth": runs[0]["depth"],
        "sprite": sprite, "tile": TILE, "columns": columns, "colors": _colors(),
        **_scales(reduced, len(chosen)),
        "runs": [_written(run) for run in runs],
    }  # fmt: skip
    return Page(_page(data), height=900, title=title)


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
    names = runs[0].state["class_names"]
    if any(run.state["class_names"] != names for run in runs):
        raise SobookError("the two runs were trained on different classes: compare like with like.")
    train, test = _shown_sets(runs[0], classes, per_class)
    shown = [names.index(name) for name in train.class_names]
    pictures = [_thumbnail(image) for part in (train, test)
                for image in pixels.decode(part, TILE, progress=False)]  # fmt: skip
    labels = np.concatenate([train.labels, test.labels + train.num_classes])
    class_names = [*train.class_names, *test.class_names]
    models = {
        name: _model(run, (train, test)) for name, run in zip(_names(runs), runs, strict=True)
    }
    note = (
        f"{runs[0].config.dataset}: {len(shown)} of {len(names)} classes with proxies and "
        f"{test.num_classes} test classes, up to {per_class} images each. Images are embedded by "
        "the encoder of the epoch that was kept; only proxies move with the slider. Confusions and "
        "nearest images are among the images shown, training and test apart."
    )
    note = " ".join([note, *(f"Note: {one}." for one in runs[0].retrieval["notes"])])
    return build(models, pictures, labels, [_spoken(name) for name in class_names],
                 proxy_classes=shown, groups=[_group(name) for name in class_names], note=note,
                 seed=seed, **options)  # fmt: skip


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


def _run(name, model, epochs, labels, classes, seed, methods) -> dict:
    """What the page knows of one run, as arrays."""
    thin = np.unique(np.linspace(0, len(epochs) - 1, min(_MOST_EPOCHS, len(epochs))).round())
    kept = model.kept % len(epochs)
    steps = sorted({*thin.astype(int).tolist(), kept})
    pairs = np.stack([geometry.off_diagonal(epochs[e] @ epochs[e].T) for e in steps])
    called = range(len(epochs)) if model.epoch_numbers is None else model.epoch_numbers
    near, confusion = _retrieved(model.embeddings, labels, classes, len(epochs[0]))
    planes, stars, trust = {}, {}, {}
    for method in methods:
        both = np.concatenate([geometry.unit_rows(model.embeddings), epochs[kept]])
        plane, stars[method] = _map(
            both, [epochs[e] for e in steps], steps.index(kept), method, seed
        )
        planes[method] = plane[: len(labels)]
        trust[method] = str(maps.quality(model.embeddings, planes[method], seed=seed))
    return {
        "name": name, "color": style.color(name), "kept": steps.index(kept), "trust": trust,
        "epochs": [int(called[e]) for e in steps], "cosines": np.round(pairs * 32767),
        "maps": planes, "stars": stars, "confusion": np.round(confusion * 10_000), "near": near,
        "depth": near.shape[1],
        "numbers": [_numbers(model, e, int(called[e])) for e in steps],
    }  # fmt: skip


def _numbers(model: Model, epoch: int, called: int) -> dict:
    """Of all proxies, also of those that are not shown."""
    shape = geometry.describe(model.epochs[epoch]).summary()
    keys = ("rms_cosine", "coherence", "common_mode_share", "effective_rank")
    recall = None if model.recall is None else model.recall[epoch]
    return {"epoch": called, "recall": recall, **{key: shape[key] for key in keys}}


def _map(both, epochs, kept: int, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One fit on images and kept proxies together; the proxies of other epochs are put onto it."""
    plane, count = maps.project(both, method=method, seed=seed), len(epochs[0])
    if method == "pca":  # linear, so that any other point has its exact place
        middle = both.mean(axis=0)
        axes = np.linalg.lstsq(both - middle, plane, rcond=None)[0]
        return plane, np.stack([(proxies - middle) @ axes for proxies in epochs])
    stars = np.stack([maps.place(p, both[:-count], plane[:-count]) for p in epochs])
    stars[kept] = plane[-count:]
    return plane, stars


def _place_maps(runs: list[dict], methods) -> None:
    """Every map into the unit square; a second run's map is first laid onto the first one's."""
    for method in methods:
        target = runs[0]["maps"][method]
        for run in runs:
            plane, stars = run["maps"][method], run["stars"][method]
            every = np.concatenate([plane, stars.reshape(-1, 2)])
            if run is not runs[0]:
                every = _like(plane, target, every)
            run["maps"][method], run["stars"][method] = every[: len(plane)], every[len(plane) :]
        for run in runs:
            plane = run["maps"][method]
            low, high = np.quantile(plane, 0.005, axis=0), np.quantile(plane, 0.995, axis=0)
            middle, side = (low + high) / 2, 1.1 * (high - low).max()
            for part in ("maps", "stars"):
                run[part][method] = np.clip((run[part][method] - middle) / side + 0.5, 0, 1)


def _like(plane, target, every):
    """All points moved as `maps.align` moves the plane."""
    moved = maps.align(plane, target)
    affine = np.linalg.lstsq(np.c_[plane, np.ones(len(plane))], moved, rcond=None)[0]
    return np.c_[every, np.ones(len(every))] @ affine


def _retrieved(embeddings, labels, classes: int, proxied: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, depth) nearest images and (A, A) confusions; training and test images apart.

    A confusion is the share of the R nearest images of a class' images that are of another class,
    R being the number of right answers an image has.
    """
    confusion = np.zeros((classes, classes))
    parts = [np.flatnonzero(labels < proxied), np.flatnonzero(labels >= proxied)]
    depth = min(_DEPTH, *(len(part) - 1 for part in parts if len(part)))
    near = np.zeros((len(labels), depth), int)
    for part in parts:
        if not len(part):
            continue
        right = np.bincount(labels[part], minlength=classes)[labels[part]] - 1
        found = part[nearest_neighbors(embeddings[part], max(depth, int(right.max())))[1]]
        near[part] = found[:, :depth]
        within = np.arange(found.shape[1]) < np.maximum(right, 1)[:, None]
        rows = np.repeat(labels[part], within.sum(axis=1))
        np.add.at(confusion, (rows, labels[found[within]]), 1)
    return near, confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _scales(reduced, count: int) -> dict:
    """Scales that all epochs and runs share: colors, angles, heights."""
    cosines = [geometry.off_diagonal(p @ p.T) for epochs in reduced.values() for p in epochs]
    dim = next(iter(reduced.values()))[0].shape[1]
    angles = [np.degrees(np.arccos(np.clip(values, -1, 1))) for values in cosines]
    low, high = min(a.min() for a in angles), max(a.max() for a in angles)
    chance = 3.5 * math.degrees(math.asin(1 / math.sqrt(dim)))
    bounds = [
        max(0, min(low, 90 - chance) // 2 * 2 - 2),
        min(180, max(high, 90 + chance) // 2 * 2 + 4),
    ]
    bins = np.arange(0, 181, 2)
    tallest = max(np.histogram(a, bins)[0].max() / (2 * len(a)) for a in angles)
    curve = figures._random_angle_density(np.array([90.0]), dim)[0]
    every = np.abs(np.concatenate(cosines))
    welch = geometry.welch_bound(count, dim)
    return {
        "limit": max(0.1, math.ceil(10 * float(np.quantile(every, 0.999))) / 10),
        "angles": [float(b) for b in bounds],
        "tallest": float(max(tallest, curve)) * 1.05,
        "welch": math.degrees(math.acos(welch)) if welch else 0,
    }


def _written(run: dict) -> dict:
    arrays = {"cosines": np.int16, "confusion": np.uint16, "near": np.uint16}
    packed = {key: _packed(run[key], kind) for key, kind in arrays.items()}
    for part in ("maps", "stars"):
        packed[part] = {name: _packed(values, np.float32) for name, values in run[part].items()}
    return {key: value for key, value in run.items() if key != "depth"} | packed


def _packed(values, kind) -> str:
    return base64.b64encode(
        np.asarray(values).astype(np.dtype(kind).newbyteorder("<")).tobytes()
    ).decode()


def _colors() -> str:
    table = mpl.colormaps["RdBu_r"](np.linspace(0, 1, 256))[:, :3]  # as in figures.proxy_heatmaps
    return _packed(np.round(table * 255), np.uint8)


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
        place = index % columns * TILE, index // columns * TILE
        sheet.paste(Image.fromarray(_thumbnail(picture)), place)
    file = io.BytesIO()
    sheet.save(file, "webp", quality=72, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(), columns


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    """The middle square of an image, `TILE` pixels wide."""
    picture = np.asarray(picture)
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
    return np.asarray(square.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))


def _page(data: dict) -> str:
    page = (_WEB / "explorer.html").read_text(encoding="utf-8")
    # "<" must not end the script: in JSON it can be written as an escape.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = page.replace("/*STYLE*/", (_WEB / "explorer.css").read_text(encoding="utf-8"))
    page = page.replace("/*SCRIPT*/", (_WEB / "explorer.js").read_text(encoding="utf-8"))
    return page.replace("/*DATA*/", text)


def _shown_sets(run: Run, classes: int, per_class: int):
    """Training images whose classes have proxies, and test images: some classes, some of each."""
    config, known = run.config, set(run.state["class_names"])
    options = {"allow_partial": config.allow_partial, **config.options}
    test_split = "gallery" if config.dataset == "inshop" else "test"
    train = image_sets.load(config.dataset, "train", config.root, **options)
    test = image_sets.load(config.dataset, test_split, config.root, **options)
    names = np.array(train.class_names)
    train = train.subset(np.isin(names[train.labels], list(known)))
    some = min(train.num_classes, max(classes - test.num_classes, (classes + 1) // 2))
    return (
        _some(train, some, per_class),
        _some(test, min(test.num_classes, classes - some), per_class),
    )


def _some(part, classes: int, per_class: int):
    spread = np.unique(np.linspace(0, part.num_classes - 1, max(classes, 1)).round().astype(int))
    return part.subset(
        np.concatenate([np.flatnonzero(part.labels == c)[:per_class] for c in spread])
    )


def _model(run: Run, parts) -> Model:
    encoder = run.encoder()
    embeddings = np.concatenate([embed(encoder, part, progress=False) for part in parts])
    called = [line["epoch"] for line in run.epochs]
    return Model(
        epochs=[run.proxies(epoch).numpy() for epoch in called],
        embeddings=embeddings,
        kept=called.index(run.state["selected_epoch"]),
        epoch_numbers=called,
        recall=[line.get("recall_at_1") for line in run.epochs],
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """PA and PA+SO where that tells them apart, else the names of their folders."""
    names = ["PA+SO" if run.config.so_weight else "PA" for run in runs]
    return names if len(set(names)) == len(names) else [run.path.name for run in runs]


def _spoken(name: str) -> str:
    return name.partition(".")[2].replace("_", " ") or name


def _group(name: str) -> str:
    """The last word of a name: the genus of a drawn bird, or the kind of a real one."""
    return name.replace("_", " ").split(" ")[-1].split(".")[-1]
