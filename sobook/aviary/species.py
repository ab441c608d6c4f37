"""The aviary: a retrieval benchmark of drawn birds that needs no download.

Species live in genera of ten. A genus fixes the silhouette and the base colors; its species
differ in field marks only (cap, wing bars, throat, belly …), so that they are truly confusable.
They are listed as in a field guide of two volumes: each sorted by genus, with half the species of
every genus. The first volume is for training, the second for testing, so no test species was seen
before, but its relatives were, as in CUB. How a bird is drawn is told in `art`.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from sobook import files
from sobook.aviary.art import PAINTS, Look, Marks, paint
from sobook.aviary.scene import Color, mix, pick
from sobook.errors import SobookError

VERSION = 3  # of the drawings; part of the folder's name, so old and new ones never mix
SPECIES_PER_GENUS = 10
MOST_SPECIES = 5000

# --- what a genus can look like -----------------------------------------------------------------


class Form(NamedTuple):
    """A silhouette; lengths in hundredths of a usual body's length."""

    posture: float  # degrees by which the body points upwards
    length: float
    depth: float
    head: float
    neck: float
    tail: float
    tail_width: float
    tail_lift: float
    wing: float
    legs: float
    bill: str
    bill_length: float
    crests: tuple[str, ...]  # to choose from
    stance: str


FORMS = {
    "wren": Form(20, 80, 64, 28, 4, 42, 10, 58, 52, 28, "thin", 22, ("none",), "perch"),
    "finch": Form(34, 92, 62, 28, 5, 54, 10, 4, 70, 22, "cone", 22, ("none",), "perch"),
    "tit": Form(30, 80, 68, 32, 2, 50, 9, 6, 60, 24, "thin", 13, ("none", "peak"), "perch"),
    "warbler": Form(28, 96, 54, 25, 6, 56, 9, 2, 70, 26, "thin", 20, ("none",), "perch"),
    "thrush": Form(38, 108, 62, 27, 8, 62, 11, 0, 80, 38, "thin", 25, ("none",), "ground"),
    "cardinal": Form(42, 98, 60, 28, 5, 72, 11, -4, 74, 22, "cone", 23, ("peak",), "perch"),
    "swallow": Form(32, 100, 46, 25, 3, 74, 10, -6, 116, 10, "thin", 11, ("none",), "perch"),
    "pigeon": Form(24, 118, 68, 23, 16, 56, 15, 0, 88, 22, "thin", 17, ("none", "fan"), "ground"),
    "parrot": Form(60, 106, 60, 31, 5, 92, 10, -8, 84, 14, "hook", 24, ("none", "fan"), "perch"),
    "owl": Form(76, 108, 80, 42, 2, 34, 14, -10, 82, 12, "owl", 0, ("none", "ears"), "perch"),
    "kingfisher": Form(46, 84, 60, 33, 3, 28, 10, 0, 60, 12, "dagger", 50, ("shag",), "perch"),
    "toucan": Form(44, 102, 60, 31, 6, 64, 12, -4, 76, 16, "banana", 60, ("none",), "perch"),
    "hummingbird": Form(48, 74, 40, 23, 3, 44, 9, 0, 78, 0, "needle", 50, ("none",), "hover"),
    "duck": Form(4, 130, 64, 29, 28, 26, 12, 26, 84, 0, "spatula", 32, ("none", "plume"), "swim"),
    "gull": Form(14, 124, 58, 27, 14, 34, 12, 2, 112, 32, "dagger", 28, ("none",), "ground"),
    "heron": Form(
        34, 100, 52, 19, 92, 30, 12, -10, 82, 88, "dagger", 48, ("none", "plume"), "ground"
    ),
    "sandpiper": Form(18, 94, 52, 21, 18, 26, 9, 0, 78, 54, "needle", 44, ("none",), "ground"),
    "pheasant": Form(
        16, 114, 64, 21, 26, 120, 9, 14, 76, 36, "cone", 16, ("none", "plume"), "ground"
    ),
    "quail": Form(24, 98, 76, 23, 10, 22, 12, -6, 64, 24, "cone", 13, ("topknot",), "ground"),
    "hoopoe": Form(30, 98, 52, 24, 8, 58, 10, 0, 76, 22, "needle", 44, ("fan",), "perch"),
    "puffin": Form(66, 98, 66, 30, 3, 22, 12, 0, 66, 18, "banana", 28, ("none",), "ground"),
    "jay": Form(36, 106, 58, 28, 6, 82, 11, 2, 76, 28, "dagger", 26, ("peak", "shag"), "perch"),
}
_VARIED = ("length", "depth", "head", "neck", "tail", "tail_width", "tail_lift", "wing", "legs")
ROOTS = {
    "wren": ("wren", "troglet", "nettlewren"),
    "finch": ("finch", "siskin", "grosbeak"),
    "tit": ("tit", "chickadee", "titling"),
    "warbler": ("warbler", "willowet", "chat"),
    "thrush": ("thrush", "ouzel", "robin"),
    "cardinal": ("cardinal", "waxwing", "tanagrel"),
    "swallow": ("swallow", "martin", "swift"),
    "pigeon": ("dove", "pigeon", "turtlet"),
    "parrot": ("parrot", "lorikeet", "conure"),
    "owl": ("owl", "owlet", "hooter"),
    "kingfisher": ("fisher", "kingfisher", "halcyon"),
    "toucan": ("toucan", "aracari", "hornbill"),
    "hummingbird": ("hummer", "sylph", "hermit"),
    "duck": ("duck", "teal", "pochard"),
    "gull": ("gull", "tern", "kittiwake"),
    "heron": ("heron", "egret", "crane"),
    "sandpiper": ("piper", "godwit", "curlew"),
    "pheasant": ("pheasant", "peafowl", "tragopan"),
    "quail": ("quail", "partridge", "bobwhite"),
    "hoopoe": ("hoopoe", "crestlet", "upupa"),
    "puffin": ("puffin", "auklet", "razorbill"),
    "jay": ("jay", "magpie", "treepie"),
}
PLACES = """
    moss moor reed sun rain dawn dusk river stone thorn bramble thistle clover willow birch
    hazel heath fen cloud star frost ember honey plum fern lake cliff dune sea storm meadow
    orchard maple ivy pepper saffron velvet harbour lantern apple cedar poppy juniper marble
    copper shadow winter island mountain ginger
"""
EPITHETS = """
    Lesser Greater Dusky Little Common Elegant Hidden Wandering Solemn Merry Shy Bold Quiet
    Lonely Royal Humble Drowsy Curious Gentle Nimble Northern Southern Eastern Western
"""

BACKS: tuple[Color, ...] = (
    (138, 104, 72),
    (160, 116, 66),
    (112, 116, 74),
    (92, 104, 116),
    (132, 136, 142),
    (88, 72, 62),
    (170, 92, 56),
    (70, 122, 110),
    (62, 112, 164),
    (78, 134, 82),
    (194, 156, 92),
    (120, 86, 118),
    (198, 92, 70),
    (208, 168, 58),
    (60, 66, 82),
    (164, 150, 132),
    (52, 132, 150),
    (214, 128, 128),
    (150, 166, 92),
    (104, 120, 176),
)
UNDERS: tuple[Color, ...] = (
    (240, 232, 212),
    (232, 214, 176),
    (224, 224, 222),
    (238, 214, 134),
    (236, 186, 142),
    (206, 214, 184),
    (222, 196, 190),
    (204, 220, 232),
)

# --- what a species can look like ---------------------------------------------------------------

CHOICES: dict[str, tuple] = {
    "cap": ("none", "black", "white", "crimson", "yellow", "rufous", "azure"),
    "face": ("none", "stripe", "brow", "mask"),
    "eye_ring": ("none", "white", "yellow", "crimson"),
    "throat": ("none", "black", "white", "crimson", "yellow", "rufous", "azure"),
    "breast_band": ("none", "black", "white", "rufous", "crimson"),
    "belly": ("plain", "white", "yellow", "rufous", "orange", "grey"),
    "belly_pattern": ("plain", "spots", "streaks", "bars"),
    "wing_bars": (0, 1, 2),
    "wing_tip": ("none", "black", "white", "crimson", "azure", "yellow"),
    "tail_fork": (0, 1, 2),
    "bill_length": (0, 1, 2),
    "bill_color": ("dark", "yellow", "orange", "crimson"),
    "leg_color": ("dark", "yellow", "crimson", "grey"),  # "gray" would rename birds: other pixels
}
BOLD = ("cap", "throat", "breast_band", "belly", "belly_pattern", "wing_bars", "wing_tip", "face")
UNSEEN = {"swim": {"leg_color"}, "hover": {"leg_color"}}  # nothing to see of it in this stance
WORDS = {  # what a mark is called in a name
    "cap": "{}-capped",
    "throat": "{}-throated",
    "breast_band": "{}-banded",
    "belly": "{}-bellied",
    "wing_tip": "{}-winged",
    "leg_color": "{}-legged",
    "bill_color": "{}-billed",
}
PLAIN_WORDS = {
    ("belly_pattern", "spots"): "Spotted",
    ("belly_pattern", "streaks"): "Streaked",
    ("belly_pattern", "bars"): "Barred",
    ("face", "mask"): "Masked",
    ("face", "brow"): "Browed",
    ("wing_bars", 2): "Two-barred",
    ("tail_fork", 2): "Fork-tailed",
    ("bill_length", 2): "Long-billed",
    ("bill_length", 0): "Short-billed",
    ("eye_ring", "white"): "Spectacled",
    ("eye_ring", "yellow"): "Golden-eyed",
}


@dataclass(frozen=True)
class Species:
    """One class of the dataset: `look` is its genus', `marks` are its own."""

    index: int
    name: str
    genus: str
    look: Look
    marks: Marks

    @property
    def folder(self) -> str:
        return f"{self.index + 1:03d}.{self.name.replace(' ', '_').replace('-', '_')}"

    @property
    def attributes(self) -> dict[str, str | int]:
        return asdict(self.marks)


def _distance(a: Color, b: Color) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _genus_look(name: str, rng: random.Random) -> Look:
    form = FORMS[name]

    def varied(value: float) -> float:
        return round(value * (0.90 + 0.20 * rng.random()), 1)

    def tinted(color: Color, by: int = 16) -> Color:
        shifted = (c + int((2 * rng.random() - 1) * by) for c in color)
        red, green, blue = (min(255, max(0, c)) for c in shifted)
        return red, green, blue

    # The order of the draws decides every bird: change it, and raise VERSION.
    sizes = {size: varied(getattr(form, size)) for size in _VARIED}
    back, under = tinted(pick(rng, BACKS)), tinted(pick(rng, UNDERS), 10)
    crown = pick(rng, (back, back, mix(back, under, 0.5), tinted(pick(rng, BACKS))))
    wings = pick(rng, (mix(back, (20, 20, 30), 0.3), tinted(pick(rng, BACKS))))
    return Look(
        form=name,
        posture=round(form.posture + 8 * rng.random() - 4, 1),
        bill=form.bill,
        bill_length=varied(form.bill_length),
        crest=pick(rng, form.crests),
        hood=rng.random() < 0.5 or form.bill == "owl",
        stance=form.stance,
        back=back,
        under=under,
        crown=crown,
        wings=wings,
        **sizes,
    )


def _choices(look: Look) -> dict[str, tuple]:
    """The values of each mark that can be seen on this look."""
    hosts = {
        "cap": look.crown,
        "throat": look.under,
        "breast_band": look.under,
        "belly": look.under,
        "wing_tip": look.wings,
    }
    out = dict(CHOICES)
    for name, host in hosts.items():
        out[name] = tuple(
            v for v in CHOICES[name] if v not in PAINTS or _distance(PAINTS[v], host) > 130
        )
    for name in UNSEEN.get(look.stance, ()):
        out[name] = CHOICES[name][:1]
    if look.bill == "owl":
        out["bill_length"] = (1,)
    if _distance(look.wings, PAINTS["white"]) < 150:
        out["wing_bars"] = (0,)
    return out


def _differences(a: Marks, b: Marks) -> list[str]:
    return [f.name for f in fields(Marks) if getattr(a, f.name) != getattr(b, f.name)]


def _genus_marks(look: Look, rng: random.Random) -> list[Marks]:
    """Ten sets of marks around one prototype, any two of them two to four marks apart."""
    choices = _choices(look)
    usual = {name: values[0] for name, values in choices.items()} | {"bill_length": 1}
    for name, values in choices.items():
        if rng.random() < (0.3 if name in BOLD else 0.5) and name != "bill_length":
            usual[name] = pick(rng, values)
    found: list[Marks] = []
    prototype = Marks(**usual)
    varying = [name for name, values in choices.items() if len(values) > 1]
    while len(found) < SPECIES_PER_GENUS:
        marks = prototype
        for _ in range(1 + int(3 * rng.random())):
            name = pick(rng, varying)
            marks = replace(marks, **{name: pick(rng, choices[name])})
        apart = [_differences(marks, other) for other in found]
        if all(2 <= len(d) <= 4 and any(name in BOLD for name in d) for d in apart):
            found.append(marks)
    return found


def _epithets(marks: Marks, family: list[Marks], rng: random.Random) -> Iterator[str]:
    """Fitting epithets: first those that name a mark few relatives have, then whimsical ones."""
    described = []
    for name, value in asdict(marks).items():
        word = PLAIN_WORDS.get((name, value))
        if word is None and name in WORDS and value not in ("none", "plain", "dark"):
            word = WORDS[name].format(value.capitalize())
        if word:
            sharing = sum(getattr(other, name) == value for other in family)
            described.append((sharing, rng.random(), word))
    yield from (word for sharing, _, word in sorted(described) if sharing <= 2)
    while True:
        yield pick(rng, EPITHETS.split())


@lru_cache(maxsize=8)
def _genera(number: int, seed: int) -> tuple[tuple[Species, ...], ...]:
    names: set[str] = set()
    deck: list[str] = []
    dealer = random.Random(f"aviary forms {seed}")
    out = []
    for g in range(number):
        rng = random.Random(f"aviary genus {seed} {g}")
        if not deck:  # every form once before any comes again
            deck = sorted(FORMS, key=lambda form: dealer.random())
        form = deck.pop()
        look = _genus_look(form, rng)
        genus = ""
        while not genus or genus in names:
            genus = (pick(rng, PLACES.split()) + pick(rng, ROOTS[form])).capitalize()
        names.add(genus)
        out.append(tuple(_family(genus, look, rng)))
    return tuple(out)


def _family(genus: str, look: Look, rng: random.Random) -> Iterator[Species]:
    family, taken = _genus_marks(look, rng), set()
    for marks in family:
        epithet = next(e for e in _epithets(marks, family, rng) if e not in taken)
        taken.add(epithet)
        yield Species(-1, f"{epithet} {genus}", genus, look, marks)  # numbered once listed


def species(number: int = 100, *, seed: int = 0) -> tuple[Species, ...]:
    """Return `number` species of the aviary of this seed: two volumes, each sorted by genus.

    Both volumes hold half the species of every genus. Species of different seeds differ.
    """
    if number < 2:
        raise SobookError(f"species is {number}, but a retrieval task needs at least 2.")
    if number > MOST_SPECIES:
        raise SobookError(f"species is {number}, but there are names for {MOST_SPECIES} at most.")
    genera = _genera(-(-number // SPECIES_PER_GENUS), seed)
    volumes: tuple[list[Species], list[Species]] = ([], [])
    for g, genus in enumerate(genera):
        size = number // len(genera) + (g < number % len(genera))
        for place, one in enumerate(genus[:size]):
            volumes[place >= size // 2].append(one)
    return tuple(replace(one, index=i) for i, one in enumerate(volumes[0] + volumes[1]))


def attributes(number: int = 100, *, seed: int = 0) -> pd.DataFrame:
    """Return a table with one row per species: index, name, genus, form and its field marks."""
    rows = [
        {"index": s.index, "name": s.name, "genus": s.genus, "form": s.look.form, **s.attributes}
        for s in species(number, seed=seed)
    ]
    return pd.DataFrame(rows)


def draw(one: Species, instance: int, *, size: int = 96, seed: int = 0) -> Image.Image:
    """Draw image number `instance` of a species: RGB, `size` × `size` pixels.

    The image depends on nothing but these arguments, so any order of drawing is fine.
    """
    rng = random.Random(f"aviary image {seed} {one.name} {instance}")
    return paint(one.look, one.marks, rng, size)


# --- the dataset on disk ------------------------------------------------------------------------


def prepare(
    root: str | Path,
    *,
    species: int = 100,
    images_per_species: int = 40,
    size: int = 96,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Draw the dataset below `root` unless it is there already; return its folder.

    The folder holds one folder of PNG files per species, `attributes.csv` and `aviary.json`. It
    appears only when complete; simultaneous calls wait for each other, and what a killed one had
    drawn is cleared away by the next.
    """
    options = {
        "species": species,
        "images_per_species": images_per_species,
        "size": size,
        "seed": seed,
    }
    _check(**options)
    key = f"v{VERSION}-{species}x{images_per_species}-{size}px-seed{seed}"
    folder = Path(root) / "aviary" / key
    if (folder / "aviary.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.parent / f".{key}.lock"):
        if not (folder / "aviary.json").is_file():  # else another process was faster
            _draw_into(folder, options, progress)
    return folder


def _draw_into(folder: Path, options: dict, progress: bool) -> None:
    _clear_drafts(folder)  # of a run that was killed
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _draw_all(draft, options, progress)
        table = attributes(options["species"], seed=options["seed"])
        table.to_csv(draft / "attributes.csv", index=False)
        files.write_json(draft / "aviary.json", {**options, "version": VERSION})
        draft.chmod(0o755)
        os.replace(draft, folder)
    finally:
        _clear_drafts(folder)  # again: workers of a killed run may have outlived it by a moment


def _clear_drafts(folder: Path) -> None:
    for draft in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _check(species: int, images_per_species: int, size: int, seed: int) -> None:
    ranges = {
        "species": (species, 2, MOST_SPECIES),
        "images_per_species": (images_per_species, 1, None),
        "size": (size, 32, 512),
        "seed": (seed, None, None),
    }
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise SobookError(f"{name} is {value!r}, but it must be a whole number.")
        if low is not None and value < low:
            raise SobookError(f"{name} is {value}, but must be at least {low}.")
        if high is not None and value > high:
            raise SobookError(f"{name} is {value}, but must be at most {high}.")


def _draw_all(folder: Path, options: dict, progress: bool) -> None:
    number, workers = options["species"], min(files.available_cores(), options["species"])
    total = number * options["images_per_species"]
    bar = tqdm(
        total=total, desc="drawing the aviary", unit="image", disable=None if progress else True
    )
    with bar:
        if workers == 1 or total < 400:  # starting processes would cost more than it saves
            for done in map(_draw_species, repeat(folder), repeat(options), range(number)):
                bar.update(done)
            return
        # A spawned worker would import torch first. Forking is safe here, as with torch's own
        # loaders: the children only draw, so no lock of another thread matters to them.
        context = get_context("fork" if sys.platform == "linux" else "spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=files.end_with_parent)
        with pool, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
            for done in pool.map(_draw_species, repeat(folder), repeat(options), range(number)):
                bar.update(done)


def _draw_species(folder: Path, options: dict, index: int) -> int:
    """Draw all images of one species: the unit of work of a process."""
    one = species(options["species"], seed=options["seed"])[index]
    (folder / one.folder).mkdir()
    for instance in range(options["images_per_species"]):
        image = draw(one, instance, size=options["size"], seed=options["seed"])
        image.save(folder / one.folder / f"{instance:04d}.png", compress_level=1)
    return options["images_per_species"]
