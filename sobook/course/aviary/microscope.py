"""The aviary under the microscope: how far an embedding moves when one thing in a picture changes.

In photographs, marks of a species and nuisances (pose, light, ground …) cannot be told apart. Here
a bird is drawn again with one mark of another value and everything else fixed to the last grain of
noise, or with all marks fixed and one nuisance drawn anew (what a bird sits on moves with it).
Start with `redraw`; `slides` and `by_bird` do it for many birds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from sobook.course.aviary.art import paint
from sobook.course.aviary.scene import PARTS as NUISANCES, Chance, pick
from sobook.course.aviary.species import CHOICES, Species, chance_of, species, visible_choices
from sobook.data.image_sets import ImageSet
from sobook.data.loader import evaluation_crop
from sobook.errors import SobookError, check_choice
from sobook.statistics import t_interval

MARKS = tuple(CHOICES)
AS_IT_WAS, RELATIVE = "nothing", "all marks"
KINDS = {RELATIVE: "marks", **dict.fromkeys(MARKS, "mark"), **dict.fromkeys(NUISANCES, "nuisance")}


class _Replay(Chance):
    """Chance that repeats the given draws of a part, and draws those of other parts."""

    def __init__(self, seed: str, given: Mapping[str, list]) -> None:
        super().__init__(seed)
        self.given, self.taken = given, defaultdict[str, list](list)

    def _draw(self, fresh: Callable[..., Any], *args: int) -> Any:
        place, known = len(self.taken[self.part]), self.given.get(self.part)
        value = fresh(*args) if known is None else known[place]
        self.taken[self.part].append(value)
        return value

    def random(self) -> float:
        return self._draw(super().random)

    def randbytes(self, n: int) -> bytes:
        return self._draw(super().randbytes, n)


def redraw(bird: Species, instance: int, change: str = AS_IT_WAS, *, size: int = 96) -> Image.Image:
    """Draw image number `instance` of a species again, with one thing changed.

    Args:
        bird: the species.
        instance, size: as for `sobook.course.aviary.species.draw`.
        change: a mark (one of `MARKS`), which gets another value that can be seen on this bird; a
            nuisance (one of `NUISANCES`), which is drawn anew; or ``"nothing"``. To choose the
            value yourself, replace the mark and `draw`.

    Returns:
        RGB, `size` × `size`: the same picture where the bird has no other value for the mark (an
        owl's bill), or where the new nuisance does not show (no twig before, no twig after).

    Raises:
        SobookError: no such change.
    """
    check_choice("change", change, (AS_IT_WAS, *MARKS, *NUISANCES))
    chance = chance_of(bird, instance)
    rng, marks = _Replay(chance, {}), bird.marks
    if change in NUISANCES:
        paint(bird.look, marks, rng, size)
        kept = {part: taken for part, taken in rng.taken.items() if part != change}
        rng = _Replay(f"{chance} {change} anew", kept)
    elif change in MARKS:
        values, usual = visible_choices(bird.look)[change], getattr(marks, change)
        if others := [value for value in values if value != usual]:
            marks = replace(marks, **{change: pick(Random(f"{chance} {change}"), others)})
    return paint(bird.look, marks, rng, size)


def where_marks_differ(
    bird: Species, other: Species, instance: int
) -> dict[str, tuple[float, float, float]]:
    """Locate, in a picture of one species, the marks by which another species differs from it.

    Each such mark is painted with the other species' value, all else fixed: the pixels that change
    are the mark's.

    Args:
        bird, instance: the picture, as for `sobook.course.aviary.species.draw`.
        other: a species of the same genus.

    Returns:
        mark → a circle around it, (x, y, radius) in fractions of the side, x to the right and y
        downwards. Marks that cannot be seen in this picture are left out.

    Raises:
        SobookError: the species are of different genera: then everything differs.
    """
    if bird.genus != other.genus:
        raise SobookError(f"{bird.name} and {other.name} are of different genera.")
    before = np.asarray(redraw(bird, instance)).astype(int)
    circles = {}
    for mark in MARKS:
        value = getattr(other.marks, mark)
        if value == getattr(bird.marks, mark):
            continue
        painted = replace(bird, marks=replace(bird.marks, **{mark: value}))
        after = np.asarray(redraw(painted, instance))
        changed = np.argwhere(np.abs(after - before).max(axis=2) > 24)  # not its blurred rim
        if len(changed):
            (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
            circle = left + right + 1, top + bottom + 1, max(bottom - top, right - left) + 4
            circles[mark] = tuple(float(v) / 2 / len(before) for v in circle)
    return circles


def name_mistakes(
    images: ImageSet, queries: Sequence[int], retrieved: np.ndarray
) -> tuple[list[list[str]], list[list[list[tuple[float, float, float]]]]]:
    """Captions and circles for a retrieval wall: how images of the wrong species differ.

    Args:
        images: the set that was searched; of an aviary, that of 100 species and seed 0.
        queries: Q of its images.
        retrieved: (Q, k) images that they retrieved.

    Returns:
        (Q, k) captions: the species of a wrong image, without the genus where it is the query's;
        "" for a relevant one. (Q, k) lists of circles around the marks by which such a relative
        differs, see `where_marks_differ`; none where the images were not drawn.
    """
    birds = species(100) if images.name == "aviary" else ()

    def describe(query: int, image: int) -> tuple[str, list[tuple[float, float, float]]]:
        wanted, name = (images.class_names[images.labels[i]] for i in (query, image))
        if wanted == name:
            return "", []
        if birds:
            other, bird = (birds[int(of.partition(".")[0]) - 1] for of in (wanted, name))
            if bird.genus == other.genus:
                circles = where_marks_differ(bird, other, int(images.paths[image].stem))
                return bird.name.rpartition(" ")[0], list(circles.values())
        return name.partition(".")[2].replace("_", " "), []

    rows = zip(queries, retrieved, strict=True)
    wall = [[describe(query, image) for image in row] for query, row in rows]
    captions = [[caption for caption, _ in row] for row in wall]
    return captions, [[circles for _, circles in row] for row in wall]


def slides(
    birds: Sequence[Species],
    *,
    changes: Sequence[str] = tuple(KINDS),
    instances: int = 3,
    size: int = 96,
) -> dict[str, np.ndarray]:
    """Redraw some birds with each of the changes: pictures for `by_bird`.

    Args:
        birds: S species, e.g. ``species(100)[50:]``, those of the test split.
        changes: what to change, as for `redraw`, and ``"all marks"``: the marks of a relative, the
            next of `birds` in the same genus, all at once.
        instances: I, pictures of each species.
        size: as for `redraw`.

    Returns:
        change → (S, I, size, size, 3) uint8; ``"nothing"`` first, which is the pictures unchanged.

    Raises:
        SobookError: no such change, or fewer than 2 species or 2 pictures of each.
    """
    if min(len(birds), instances) < 2:
        raise SobookError(f"{len(birds)} species, {instances} picture(s) each: give 2 or more.")

    def drawn(bird: Species, change: str) -> np.ndarray:
        if change == RELATIVE:
            genus = [relative for relative in birds if relative.genus == bird.genus]
            relative = genus[(genus.index(bird) + 1) % len(genus)]
            bird, change = replace(bird, marks=relative.marks), AS_IT_WAS
        pictures = [redraw(bird, i, change, size=size) for i in range(instances)]
        return np.stack([np.asarray(picture) for picture in pictures])

    return {
        change: np.stack([drawn(bird, change) for bird in birds])
        for change in dict.fromkeys((AS_IT_WAS, *changes))
    }


def by_bird(
    encoder: Callable[[Tensor], Tensor], pictures: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Measure how far each bird's embedding moves when one thing changes.

    The unit is the mean Euclidean distance between two pictures of a species in the same
    embeddings: at 1, the change moves a bird as far as another picture, in which all nuisances
    differ. Pictures in which the change does not show are left out.

    Args:
        encoder: an `Encoder`, or any function from images (B, 3, H, W) uint8 to embeddings (B, D).
            For an `Encoder` pictures are cropped as in evaluation; others get all of each picture.
        pictures: made by `slides`, of S species.

    Returns:
        S rows, one column per change; NaN where the change shows in no picture of a bird.
    """
    before = pictures[AS_IT_WAS]
    embedded = _embed(encoder, before)  # (S, I, D)
    first, second = np.triu_indices(before.shape[1], k=1)
    unit = np.linalg.norm(embedded[:, first] - embedded[:, second], axis=-1).mean()
    moved = {}
    for change in [name for name in pictures if name != AS_IT_WAS]:
        shows = (pictures[change] != before).any(axis=(2, 3, 4))  # (S, I)
        distance = np.linalg.norm(_embed(encoder, pictures[change]) - embedded, axis=-1)
        moved[change] = pd.DataFrame(distance / unit).where(shows).mean(axis=1)
    return pd.DataFrame(moved)


def summarize(moved: pd.DataFrame) -> pd.DataFrame:
    """Summarize a table of `by_bird`, or the mean of several such tables, in one row per change.

    Returns:
        Columns ``change``; ``kind`` ("mark", "nuisance", or "marks" for all of them); ``moved``,
        the mean over birds; ``low`` and ``high``, its 95 % t interval over birds, which takes the
        unit as exact; ``n``, the birds on which the change shows.
    """
    rows = []
    for change in moved:
        values = moved[change].dropna()
        rows.append((change, KINDS[change], values.mean(), *t_interval(values), len(values)))
    return pd.DataFrame(rows, columns=["change", "kind", "moved", "low", "high", "n"])


@torch.inference_mode()
def _embed(encoder: Any, pictures: np.ndarray) -> np.ndarray:
    """(S, I, D) float64 embeddings of (S, I, H, W, 3) pictures, in evaluation mode."""
    flat = pictures.reshape(-1, *pictures.shape[2:])
    images = torch.from_numpy(flat).permute(0, 3, 1, 2)
    if side := getattr(encoder, "image_size", None):
        images = torch.stack([evaluation_crop(Image.fromarray(picture), side) for picture in flat])
    if training := getattr(encoder, "training", False):
        encoder.eval()
    parts = [encoder(batch).cpu().double() for batch in images.split(64)]
    if training:
        encoder.train()
    return torch.cat(parts).numpy().reshape(*pictures.shape[:2], -1)
