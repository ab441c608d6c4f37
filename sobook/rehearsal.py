"""Rehearse a benchmark at full size without its pictures: every command, measured.

`rehearse` draws a stand-in (official layout and counts, patterns of 32 pixels), and then runs what
a reader runs, each command in a process of its own. Retrieval numbers made here say nothing of the
benchmark: the folder is marked, and every report made from it says so (`benchmarks.stand_in`).
"""

import io
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sobook import files
from sobook.data import benchmarks
from sobook.data.benchmarks import STAND_IN
from sobook.errors import SobookError, check_choice

SIDE = 32  # pixels of a picture: the micro encoder is made for as many
_FEWEST = 10  # classes in a split: two of them are held out for validation
_BATCH = 180  # of the recipes, two images of each class
_ENCODER = ["--encoder", "deit_micro_patch8_64", "--image-size", str(SIDE)]
_KINDS = ("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle", "lamp", "mug", "sofa")
_KINDS += ("stapler", "table", "toaster")  # the super classes of SOP
# The pixels that training reads, with the settings of `training.plan`.
_DECODE = """
import sys
from sobook.data import image_sets, pixels

train = image_sets.load(sys.argv[1], "train", sys.argv[2])
pixels.decode(train, int(sys.argv[3]), enlarge=False, budget=pixels.RAW_BUDGET)
"""


class Picture(NamedTuple):
    """One picture of a stand-in."""

    number: int  # from 1; with the class it makes the picture
    class_id: int  # the benchmark's own
    split: str
    path: str  # as the benchmark's lists have it


class Stage(NamedTuple):
    """A command of the rehearsal."""

    command: list[str]
    images: int = 0  # that it handles; 0: not counted


# --- the stand-in ---------------------------------------------------------------------------------


def counts(name: str, fraction: float = 1.0) -> dict[str, dict[str, int]]:
    """Images and classes of each split, at a fraction of the official counts.

    >>> counts("sop")["test"]
    {'images': 60502, 'classes': 11316}
    """
    splits = {}
    for split, official in benchmarks.cards()[name]["splits"].items():
        classes = max(min(_FEWEST, official["classes"]), round(fraction * official["classes"]))
        images = max(2 * classes, round(fraction * official["images"]))
        splits[split] = {"images": images, "classes": classes}
    return splits


def list_pictures(name: str, splits: dict[str, dict[str, int]]) -> Iterator[Picture]:
    """All pictures of a stand-in. How many a class has is drawn, two at least."""
    rng, number = np.random.default_rng(0), 0
    # The official numbers of the first test class; of SOP and In-Shop any number will do.
    first = {"cub200": 101, "cars196": 99}.get(name, splits["train"]["classes"] + 1)
    for split, count in splits.items():
        classes = count["classes"]
        more = rng.multinomial(count["images"] - 2 * classes, np.full(classes, 1 / classes))
        for class_id, size in enumerate(2 + more, 1 if split == "train" else first):
            for _ in range(size):
                number += 1
                yield Picture(number, class_id, split, _path(name, number, class_id))


def _path(name: str, number: int, class_id: int) -> str:
    if name == "cub200":
        return f"{class_id:03d}.Stand_in_{class_id}/Stand_in_{number:06d}.jpg"
    if name == "cars196":
        return f"car_ims/{number:06d}.jpg"
    if name == "sop":
        return f"{_KINDS[class_id % 12]}_final/{class_id:012d}_{number}.JPG"
    return f"img/{('MEN', 'WOMEN')[class_id % 2]}/Stand_in/id_{class_id:08d}/{number:06d}.jpg"


def _write_lists(name: str, home: Path, pictures: list[Picture]) -> None:
    """The official lists, as `benchmarks` reads them."""
    if name == "cub200":
        classes = sorted({(p.class_id, p.path.partition("/")[0]) for p in pictures})
        _lines(home / "classes.txt", [f"{k} {folder}" for k, folder in classes])
        _lines(home / "images.txt", [f"{p.number} {p.path}" for p in pictures])
        _lines(home / "image_class_labels.txt", [f"{p.number} {p.class_id}" for p in pictures])
    elif name == "cars196":
        from scipy.io import savemat

        kind = [("relative_im_path", object), ("class", object), ("test", object)]
        rows = [(p.path, p.class_id, int(p.split == "test")) for p in pictures]
        names = np.array([f"Stand-in {k}" for k in range(1, 197)], dtype=object)
        table = {"annotations": np.array(rows, dtype=kind)[None], "class_names": names[None]}
        savemat(home / "cars_annos.mat", table)
    elif name == "sop":
        for split in ("train", "test"):
            rows = [p for p in pictures if p.split == split]
            lines = [f"{p.number} {p.class_id} {p.class_id % 12 + 1} {p.path}" for p in rows]
            _lines(home / f"Ebay_{split}.txt", ["image_id class_id super_class_id path", *lines])
    else:
        lines = [f"{p.path} id_{p.class_id:08d} {p.split}" for p in pictures]
        head = [str(len(lines)), "image_name item_id evaluation_status"]
        _lines(home / "Eval" / "list_eval_partition.txt", [*head, *lines])


def _lines(file: Path, lines: list[str]) -> None:
    files.write_text(file, "\n".join(lines) + "\n")


@lru_cache(1)  # pictures come class by class
def _pattern(class_id: int) -> np.ndarray:
    """(32, 32, 3): a smooth pattern of few colors, by the class alone."""
    colors = np.random.default_rng([1, class_id]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colors).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def picture(number: int, class_id: int) -> bytes:
    """A JPEG: the pattern of the class, with noise that the number makes."""
    noise = np.random.default_rng([2, number]).normal(0, 40, (SIDE, SIDE, 3))
    noisy = np.clip(_pattern(class_id) + noise, 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noisy).save(data, "JPEG", quality=75)
    return data.getvalue()


def draw(name: str, root: Path, fraction: float) -> Path:
    """Write the stand-in of a benchmark into ``root``; a killed drawing resumes.

    Returns:
        The benchmark's own folder, which appears when it is complete.

    Raises:
        SobookError: the folder holds the benchmark itself, or a stand-in of another size.
    """
    home = root / benchmarks.cards()[name]["folder"]
    splits = counts(name, fraction)
    about = {"note": benchmarks.stand_in_note(name, splits), "splits": splits}
    if home.exists():
        _check_same(home, about)
        return home
    stage = home.with_name(f".{home.name}.drawing")
    if stage.exists() and _about(stage) != about:  # of another size
        shutil.rmtree(stage)
    files.write_json(stage / STAND_IN, about)
    pictures = list(list_pictures(name, splits))
    base = {"cub200": stage / "images", "inshop": stage / "Img"}.get(name, stage)
    for folder in {os.path.dirname(p.path) for p in pictures}:
        (base / folder).mkdir(parents=True, exist_ok=True)
    part = stage / ".part"
    for one in pictures:
        if not os.path.exists(target := base / one.path):
            part.write_bytes(picture(one.number, one.class_id))
            os.replace(part, target)  # so that none is ever half there
    _write_lists(name, stage, pictures)
    os.replace(stage, home)
    return home


def _about(folder: Path) -> dict[str, Any] | None:
    """What the marker says; None also where it was cut off."""
    try:
        return benchmarks.stand_in(folder)
    except SobookError:
        return None


def _check_same(home: Path, about: dict[str, Any]) -> None:
    there = _about(home)
    if there is None:
        raise SobookError(f"{home} is no stand-in, but the benchmark itself: name another --root.")
    if there != about:
        raise SobookError(
            f"{home} is of another size ({there.get('note')}): delete it, or name another --root."
        )


# --- the rehearsal --------------------------------------------------------------------------------


def rehearse(
    name: str, root: Path, *, fraction: float = 1.0, say: Callable[[str], object] = print
) -> Path:
    """Draw the stand-in, run every command on it, and write the table; stopped, it resumes.

    Args:
        name: cub200, cars196, sop or inshop.
        root: a folder, in which all that comes of it, caches and runs included, is under `name`.
        fraction: of the official counts, to try it out.
        say: is told of each stage as it starts.

    Returns:
        ``rehearsal.md``; ``rehearsal.json`` beside it holds the same, ``rehearsal.log`` what the
        commands printed.

    Raises:
        SobookError: a command failed.
    """
    check_choice("benchmark", name, benchmarks.cards())
    if not 0 < fraction <= 1:
        raise SobookError(f"fraction is {fraction}: it must be above 0 and at most 1.")
    root = root.expanduser().absolute() / name
    splits = counts(name, fraction)
    with files.lock(root / ".lock"):
        record = _read_record(root, name, fraction)
        for stage, (command, images) in _stages(name, root, splits).items():
            done = record["stages"].setdefault(stage, {"attempts": 0, "disk_before": _disk(root)})
            if "seconds" in done:
                continue
            done |= {"command": shlex.join(command), "images": images}
            done["attempts"] += 1
            files.write_json(root / "rehearsal.json", record)
            say(stage)
            began = time.perf_counter()
            if command:
                done |= _run(command, root)
            else:
                draw(name, root, fraction)
                done |= _usage(resource.getrusage(resource.RUSAGE_SELF))
            done["seconds"] = round(max(time.perf_counter() - began, 0.01), 2)
            done["disk_bytes"] = _disk(root) - done.pop("disk_before")
            done |= _steps(root / "runs" / stage.removeprefix("train "))
            files.write_json(root / "rehearsal.json", record)
        file = root / "rehearsal.md"
        files.write_text(file, table(record))
        return file


def _stages(name: str, root: Path, splits: dict[str, dict[str, int]]) -> dict[str, Stage]:
    """What is measured, in order; the first one, drawing, is no command."""
    size = {split: count["images"] for split, count in splits.items()}
    train, test = size["train"], sum(size.values()) - size["train"]
    classes = splits["train"]["classes"]
    kept = classes - max(round(0.2 * classes), 2)  # without the validation classes
    sobook = [sys.executable, "-m", "sobook"]
    data = ["--dataset", name, "--root", str(root)]
    batch = ["--batch-size", str(min(_BATCH, 2 * kept)), "--images-per-class", "2"]
    training = [*sobook, "train", *data, *_ENCODER, *batch, "--epochs", "1", "--workers", "1"]
    training += ["--warmup-epochs", "0"]
    pa, so = str(root / "runs" / "PA"), str(root / "runs" / "PA+SO")
    side = str(round(1.5 * SIDE))  # as `training.plan.training_side`
    return {
        "draw": Stage([], train + test),
        "prepare": Stage([*sobook, "prepare", name, "--root", str(root)], train + test),
        "dry run": Stage([*training, "--run-dir", pa, "--dry-run"]),
        "pixel cache": Stage([sys.executable, "-c", _DECODE, name, str(root), side], train),
        "evaluate, frozen": Stage([*sobook, "evaluate", *data, *_ENCODER], test),
        "train PA": Stage([*training, "--run-dir", pa], train),
        "train PA+SO": Stage([*training, "--run-dir", so, "--so-weight", "100"], train),
        "evaluate": Stage([*sobook, "evaluate", pa], test),
        "compare": Stage([*sobook, "compare", pa, so]),
        "explore": Stage([*sobook, "explore", pa, so, "--out", str(root / "explorer.html")]),
        "export": Stage([*sobook, "export", so, "--hub", str(root / "hub")]),
    }


def _read_record(root: Path, name: str, fraction: float) -> dict[str, Any]:
    """What an earlier rehearsal has measured."""
    note = benchmarks.stand_in_note(name, counts(name, fraction))
    record = {"benchmark": name, "fraction": fraction, "note": note, "stages": {}}
    record["cores"] = files.available_cores()
    file = root / "rehearsal.json"
    if not file.exists():
        return record
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["note"] != note:
        raise SobookError(f"{root} holds another rehearsal ({found['note']}): delete it first.")
    return found


def _run(command: list[str], root: Path) -> dict[str, Any]:
    """Run a command to its end; what it took. What it prints goes into the log."""
    files.remove(root / "hub")  # of an export that was cut off before it was written down
    log = root / "rehearsal.log"
    environment = {**os.environ, "SOBOOK_DATA": str(root)}
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            # Not process.wait(): the peak of this one child is asked for.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # stopped: the command is stopped as well, and resumes with us
            process.terminate()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        raise SobookError(f"{shlex.join(command)} failed: {last} All it printed is in {log}.")
    return _usage(usage)


def _usage(usage: resource.struct_rusage) -> dict[str, Any]:
    """Seconds of all cores together, and the most memory in use at once."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    seconds = round(usage.ru_utime + usage.ru_stime, 2)
    return {"cpu_seconds": seconds, "peak_bytes": usage.ru_maxrss * unit}


def _steps(run: Path) -> dict[str, Any]:
    """Seconds and speed of the training steps alone, where this was a run."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    epochs = [line for line in map(json.loads, lines) if line["kind"] == "epoch"]
    if not epochs:
        return {}
    last = epochs[-1]
    return {"step_seconds": last["seconds"], "images_per_second": last["images_per_second"]}


def _disk(root: Path) -> int:
    """Bytes on the disk, in whole blocks: a small picture takes one."""
    found = (os.lstat(Path(where) / file) for where, _, names in os.walk(root) for file in names)
    return sum(512 * status.st_blocks for status in found)


def table(record: dict[str, Any]) -> str:
    """The stages as Markdown."""
    lines = [
        f"{record['note']}; retrieval numbers made from it say nothing of {record['benchmark']}.",
        f"Cores: {record['cores']}. A stage that was interrupted has the seconds of its "
        "last attempt.",
        "",
        "| stage | seconds | of all cores | images/s | peak memory, MB | disk, MB | attempts |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, done in record["stages"].items():
        speed = done["images"] / done["seconds"] if done["images"] else None
        numbers = [done["seconds"], done["cpu_seconds"], speed]
        numbers += [done["peak_bytes"] / 1e6, done["disk_bytes"] / 1e6]
        row = ["" if number is None else f"{number:,.1f}" for number in numbers]
        lines.append(f"| {name} | {' | '.join(row)} | {done['attempts']} |")
        if "step_seconds" in done:
            row = f"{done['step_seconds']:,.1f} | | {done['images_per_second']:,.1f}"
            lines.append(f"| … of which training steps | {row} | | | |")
    stages = record["stages"].values()
    seconds, disk = (sum(done[key] for done in stages) for key in ("seconds", "disk_bytes"))
    lines.append(f"| all | {seconds:,.1f} | | | | {disk / 1e6:,.1f} | |")
    return "\n".join(lines) + "\n"
