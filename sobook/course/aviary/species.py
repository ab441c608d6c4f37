"""The aviary: a retrieval benchmark of drawn birds that needs no download.

A genus of ten species fixes the silhouette and the base colors; its species differ in field marks
only (cap, wing bars, throat …). They are listed as in a field guide of two volumes, each with half
the species of every genus: train on the first, test on the second, and no test species was seen
before, but its relatives were. `split_genera` separates the relatives as well. `art` draws a bird;
what birds are made of is in ``birds.toml``.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from PIL import Image, ImageColor
from tqdm.auto import tqdm

from sobook import files
from sobook.course.aviary.art import PAINTS, Look, Marks, cut_out, paint
from sobook.course.aviary.scene import TABLES, Chance, Color, mix, pick
from sobook.errors import SobookError

VERSION = 3  # version of the drawings; part of the folder's name, so old and new ones never mix
SPECIES_PER_GENUS = 10
MOST_SPECIES = 5200

_COLUMNS = TABLES["columns"].split()
_SIZES = _COLUMNS[2:11]  # sizes of a silhouette, as in `Look`
FORMS = {
    row.split()[0]: dict(zip(_COLUMNS, row.split(), strict=True))
    for row in TABLES["forms"].strip().splitlines()
}
BACKS, UNDERS = (
    [ImageColor.getrgb(f"#{code}") for code in TABLES[name].split()] for name in ("backs", "unders")
)
CHOICES: dict[str, tuple] = {mark: tuple(values) for mark, values in TABLES["marks"].items()}


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


def _distance(a: Color, b: Color) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _genus_look(name: str, rng: random.Random) -> Look:
    form = FORMS[name]

    def varied(column: str) -> float:
        return round(float(form[column]) * (0.90 + 0.20 * rng.random()), 1)

    def tinted(color: Color, by: int = 16) -> Color:
        shifted = (c + int((2 * rng.random() - 1) * by) for c in color)
        return tuple(min(255, max(0, c)) for c in shifted)

    # The order of the draws decides every bird: change it, and raise VERSION.
    sizes = {column: varied(column) for column in _SIZES}
    back, under = tinted(pick(rng, BACKS)), tinted(pick(rng, UNDERS), 10)
    crown = pick(rng, (back, back, mix(back, under, 0.5), tinted(pick(rng, BACKS))))
    wings = pick(rng, (mix(back, (20, 20, 30), 0.3), tinted(pick(rng, BACKS))))
    return Look(
        form=name,
        posture=round(float(form["posture"]) + 8 * rng.random() - 4, 1),
        bill=form["bill"],
        bill_length=varied("bill_length"),
        crest=pick(rng, form["crests"].split("/")),
        hood=rng.random() < 0.5 or form["bill"] == "owl",
        stance=form["stance"],
        back=back,
        under=under,
        crown=crown,
        wings=wings,
        **sizes,
    )


def visible_choices(look: Look) -> dict[str, tuple]:
    """Values of each mark that can be seen on this look."""
    out = dict(CHOICES)
    hosts = dict.fromkeys(("throat", "breast_band", "belly"), look.under)
    for name, host in {**hosts, "cap": look.crown, "wing_tip": look.wings}.items():
        out[name] = tuple(
            v for v in CHOICES[name] if v not in PAINTS or _distance(PAINTS[v], host) > 130
        )
    if look.stance in ("swim", "hover"):
        out["leg_color"] = ("dark",)
    if look.bill == "owl":
        out["bill_length"] = (1,)
    if _distance(look.wings, PAINTS["white"]) < 150:
        out["wing_bars"] = (0,)
    return out


def _genus_marks(look: Look, rng: random.Random) -> list[Marks]:
    """Ten sets of marks around one prototype, any two of them two to four marks apart."""
    choices = visible_choices(look)
    usual = {name: values[0] for name, values in choices.items()} | {"bill_length": 1}
    for name, values in choices.items():
        if rng.random() < (0.3 if name in TABLES["bold"] else 0.5) and name != "bill_length":
            usual[name] = pick(rng, values)
    family: list[Marks] = []
    prototype = Marks(**usual)
    varying = [name for name, values in choices.items() if len(values) > 1]
    while len(family) < SPECIES_PER_GENUS:
        marks = prototype
        for _ in range(1 + int(3 * rng.random())):
            name = pick(rng, varying)
            marks = replace(marks, **{name: pick(rng, choices[name])})
        apart = [{*asdict(marks).items()} - {*asdict(other).items()} for other in family]
        if all(2 <= len(d) <= 4 and any(name in TABLES["bold"] for name, _ in d) for d in apart):
            family.append(marks)
    return family


def _epithets(marks: Marks, family: list[Marks], rng: random.Random) -> Iterator[str]:
    """Fitting epithets: first those that name a mark few relatives have, then whimsical ones."""
    described = []
    for name, value in asdict(marks).items():
        word = TABLES["words"].get(name, {})
        if isinstance(word, dict):
            word = word.get(str(value))
        else:
            word = value not in ("none", "plain", "dark") and word.format(value.capitalize())
        if word:
            sharing = sum(getattr(other, name) == value for other in family)
            described.append((sharing, rng.random(), word))
    yield from (word for sharing, _, word in sorted(described) if sharing <= 2)
    while True:
        yield pick(rng, TABLES["epithets"].split())


@lru_cache(maxsize=8)
def _genera(number: int, seed: int) -> tuple[tuple[Species, ...], ...]:
    dealer, deck, genera = random.Random(f"aviary forms {seed}"), [], {}
    for g in range(number):
        rng = random.Random(f"aviary genus {seed} {g}")
        deck = deck or sorted(FORMS, key=lambda form: dealer.random())  # every form comes once
        form = deck.pop()
        look, roots, genus = _genus_look(form, rng), FORMS[form]["roots"].split("/"), ""
        while not genus or genus in genera:
            genus = (pick(rng, TABLES["places"].split()) + pick(rng, roots)).capitalize()
        family, taken = _genus_marks(look, rng), {}
        for marks in family:
            epithet = next(e for e in _epithets(marks, family, rng) if e not in taken)
            taken[epithet] = Species(-1, f"{epithet} {genus}", genus, look, marks)  # numbered later
        genera[genus] = tuple(taken.values())
    return tuple(genera.values())


def species(number: int = 100, *, seed: int = 0) -> tuple[Species, ...]:
    """Return `number` species of the aviary of this seed: two volumes, each sorted by genus.

    Both volumes hold half the species of every genus. Species of different seeds differ.
    """
    _check("species", number, 2, MOST_SPECIES)
    genera = _genera(-(-number // SPECIES_PER_GENUS), seed)
    volumes: tuple[list[Species], list[Species]] = ([], [])
    for g, genus in enumerate(genera):
        size = number // len(genera) + (g < number % len(genera))
        for place, one in enumerate(genus[:size]):
            volumes[place >= size // 2].append(one)
    return tuple(replace(one, index=i) for i, one in enumerate(volumes[0] + volumes[1]))


def split_genera(genera: Sequence[str]) -> tuple[str, ...]:
    """Choose the genera to train on, such that none of them is tested.

    Both sides get as nearly equal numbers of species as whole genera allow; where one must get
    more, training does.

    Args:
        genera: the genus of each species, in the order of `species`. That order is random, by the
            aviary's seed, so nothing more is drawn.

    Raises:
        SobookError: there is only one genus.
    """
    sizes = Counter(genera)
    if len(sizes) < 2:
        raise SobookError(
            f"{len(genera)} species are of one genus, which cannot be split by genus: ask for more "
            f"than {SPECIES_PER_GENUS} species."
        )
    reachable: dict[int, tuple[str, ...]] = {0: ()}  # number of species: genera that have so many
    for genus, size in sizes.items():
        more = {total + size: (*chosen, genus) for total, chosen in reachable.items()}
        reachable = more | reachable
    return reachable[min(reachable, key=lambda total: (abs(2 * total - len(genera)), -total))]


def attributes(number: int = 100, *, seed: int = 0) -> pd.DataFrame:
    """Return a table with one row per species: index, name, genus, form and its field marks."""
    rows = [
        {"index": s.index, "name": s.name, "genus": s.genus, "form": s.look.form, **asdict(s.marks)}
        for s in species(number, seed=seed)
    ]
    return pd.DataFrame(rows)


def draw(bird: Species, instance: int, *, size: int = 96, seed: int = 0) -> Image.Image:
    """Draw image number `instance` of a species: RGB, `size` × `size` pixels.

    The image depends on nothing but these arguments, so any order of drawing is fine.
    """
    return paint(bird.look, bird.marks, Chance(chance_of(bird, instance, seed)), size)


def silhouette(bird: Species, instance: int) -> Image.Image:
    """Draw where the bird is in the picture that `draw` returns for these arguments.

    Returns:
        8-bit gray, 96 × 96: 255 on the bird, also where a twig or water hides it, 0 beside it,
        between the two at its rim.
    """
    return cut_out(bird.look, bird.marks, Chance(chance_of(bird, instance)), 96)


def chance_of(bird: Species, instance: int, seed: int = 0) -> str:
    """Seed of the chance in an image. It leaves out the marks: see `microscope`."""
    return f"aviary image {seed} {bird.name} {instance}"


# --- the dataset on disk ------------------------------------------------------------------------


def prepare(
    root: str | Path,
    *,
    species: int = 100,
    images_per_species: int = 40,
    size: int = 96,
    seed: int = 0,
    split_by_genus: int = 0,
    progress: bool = True,
) -> Path:
    """Draw the dataset below `root` unless it is there already; return its folder.

    The folder holds one folder of PNG files per species, `attributes.csv` and `aviary.json`. It
    appears only when complete; simultaneous calls wait for each other. Either split is of the same
    pictures: `split_by_genus` is only checked.
    """
    _check("species", species, 2, MOST_SPECIES)
    _check("images_per_species", images_per_species, 1, 10_000)
    _check("size", size, 32, 512)
    _check("seed", seed, 0, 2**32 - 1)
    _check("split_by_genus", split_by_genus, 0, 1)
    if split_by_genus:
        split_genera(list(attributes(species, seed=seed)["genus"]))  # raises if it cannot be done
    key = f"v{VERSION}-{species}x{images_per_species}-{size}px-seed{seed}"
    folder = Path(root) / "aviary" / key
    if (folder / "aviary.json").is_file():
        return folder
    with files.lock(folder.parent / f".{key}.lock"):
        if (folder / "aviary.json").is_file():  # another process was faster
            return folder
        with files.replacing(folder) as draft:
            draft.mkdir()
            _draw_all(draft, species, images_per_species, size, seed, progress)
            attributes(species, seed=seed).to_csv(draft / "attributes.csv", index=False)
            recipe = {"species": species, "images_per_species": images_per_species, "size": size}
            files.write_json(draft / "aviary.json", {**recipe, "seed": seed, "version": VERSION})
    return folder


def _draw_all(folder: Path, number: int, each: int, size: int, seed: int, progress: bool) -> None:
    every, draw_one = species(number, seed=seed), partial(_draw_species, folder, each, size, seed)
    quiet = None if progress else True  # None: unless a terminal is there to see it
    watch = partial(tqdm, total=number, desc="drawing the aviary", unit=" species", disable=quiet)
    if number * each < 400:  # starting processes would cost more than it saves
        list(watch(map(draw_one, every)))
        return
    # A spawned worker would import the user's script, torch and all. Forking is safe here, as with
    # torch's own loaders: the children only draw, so no lock of another thread matters to them.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    workers = min(files.available_cores(), number)
    with ProcessPoolExecutor(workers, context, initializer=files.end_with_parent) as pool:
        list(watch(pool.map(draw_one, every)))


def _draw_species(folder: Path, each: int, size: int, seed: int, one: Species) -> None:
    """Draw all images of one species: the unit of work of a process."""
    (folder / one.folder).mkdir()
    for instance in range(each):
        image = draw(one, instance, size=size, seed=seed)
        image.save(folder / one.folder / f"{instance:04d}.png", compress_level=1)


def _check(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise SobookError(f"{name} is {value!r}: give a whole number from {low} to {high}.")
