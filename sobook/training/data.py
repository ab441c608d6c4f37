"""The image sets of a run, checked against its settings before anything is computed: `Data.check`.

Fine-tuning and heads hold out the same classes, refuse the same data and report the same Ks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sobook import retrieval
from sobook.data import image_sets, loader
from sobook.data.image_sets import ImageSet
from sobook.errors import SobookError
from sobook.training.config import BaseConfig

FEWEST_TO_SELECT = 5  # validation classes; of fewer, Recall@1 says too little to select an epoch

KS = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}  # that the literature reports there


@dataclass(frozen=True)
class Data:
    """The image sets of a run, checked against its settings; made by `Data.check`.

    Attributes:
        train, validation: the training images, without and of the classes held out.
        test: the test images; for In-Shop query and gallery.
        ks: the Ks of Recall@K that will be reported on the test images.
        batch_size: B, that of the settings or, where there are fewer, all training images.
        batches: per epoch.
        notes: on all of them, and on what the settings come to with them.
    """

    train: ImageSet
    validation: ImageSet | None
    test: list[ImageSet]
    ks: tuple[int, ...]
    batch_size: int
    batches: int
    notes: list[str]

    @classmethod
    def check(cls, config: BaseConfig, sets: dict[str, ImageSet], *, hold_out: bool) -> "Data":
        """Check all parts of a data set against batches, Ks and, if asked for, a hold-out.

        Raises:
            SobookError: too few classes or images for these settings.
        """
        train, validation, batch_size = sets["train"], None, config.batch_size
        test_classes = sets[image_sets.test_splits(config.dataset)[0]].num_classes
        if min(train.num_classes, test_classes) < 2:
            raise SobookError(
                f"{train.name} has {train.num_classes} training and {test_classes} test classes, "
                "but both need at least 2: add classes, or search the pictures with the encoder as "
                "it comes (`sobook search --folder`)."
            )
        if hold_out:
            train, validation = image_sets.hold_out(
                train, config.validation_fraction, config.seed, at_least=2
            )
            _retrievable([validation], (1,))
        test, ks = evaluation_sets(config.dataset, sets)
        notes = notes_on(sets)
        if not config.images_per_class and len(train) < batch_size:
            batch_size = len(train)
            notes.append(f"batches of {batch_size}: there are no more training images")
        if validation is not None and validation.num_classes < FEWEST_TO_SELECT:
            few = f"{validation.num_classes} validation classes are too few to select an epoch"
            notes.append(f"{few}: the last one is kept")
        if left_out := set(KS.get(config.dataset, retrieval.KS)) - set(ks):
            fewer = ", ".join(map(str, sorted(left_out)))
            notes.append(f"no Recall@K for K = {fewer}: a query can find fewer images")
        rng = np.random.default_rng(0)
        plan = loader.batch_plan(rng, train.labels, batch_size, config.images_per_class)
        return cls(train, validation, test, ks, batch_size, len(plan), notes)

    @property
    def can_select(self) -> bool:
        """Are there enough validation classes, or are others asked, to select an epoch?"""
        return self.validation is None or self.validation.num_classes >= FEWEST_TO_SELECT

    def facts(self) -> dict[str, Any]:
        """What state.json says about the data."""
        return {
            "class_names": list(self.train.class_names),
            "validation_classes": list(self.validation.class_names) if self.validation else [],
            "test_classes": list(self.test[0].class_names),
            "train_images": len(self.train),
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [
            f"{part.split}: {len(part):,} images of {part.num_classes:,} classes, "
            f"{part.class_names[0]} … {part.class_names[-1]}"
            for part in (self.train, self.validation, *self.test)
            if part is not None
        ]
        lines.append(f"batches per epoch: {self.batches:,}, of {self.batch_size} images each")
        lines.append(f"Recall@K for K = {', '.join(map(str, self.ks))}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def notes_on(sets: dict[str, ImageSet]) -> list[str]:
    """Notes on all parts of a data set, each once; every report must repeat them."""
    return list(dict.fromkeys(note for part in sets.values() for note in part.notes))


def evaluation_sets(
    dataset: str, sets: dict[str, ImageSet]
) -> tuple[list[ImageSet], tuple[int, ...]]:
    """The test images, for In-Shop query and gallery, and those Ks of the literature that fit.

    Raises:
        SobookError: fewer than two classes, or no two images of one.
    """
    test = [sets[name] for name in image_sets.test_splits(dataset)]
    return test, _retrievable(test, KS.get(dataset, retrieval.KS))


def _retrievable(sets: Sequence[ImageSet], ks: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the Ks that fit, of images that search each other, or of query and gallery."""
    available = len(sets[-1]) - (len(sets) == 1)
    try:
        labels = [part.labels for part in sets]
        return retrieval.check_labels(*labels, ks=retrieval.feasible_ks(ks, available))[0]
    except SobookError as error:
        raise SobookError(f"{sets[0].name} {sets[0].split}: {error}") from None
