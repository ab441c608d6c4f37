"""Rehearse a benchmark at full size without its pictures: every command, measured.

    python -m tests.benchmarks.rehearse NAME --root FOLDER

Draws a stand-in (official layout and counts, patterns of 32 pixels), then runs what a reader runs,
each command in a process of its own; stopped, the same call resumes. All of it lands in
FOLDER/NAME; ``data/results/rehearsal_NAME.json`` has seconds, memory and disk of each stage.
``NOTES.txt`` in the stand-in puts into every report that these are not the benchmark's numbers.
"""

import argparse
import io
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from sobook import files
from sobook.data import benchmarks
from sobook.data.pictures import own_notes
from tests.benchmarks import timing
from tests.benchmarks.timing import RESULTS

NAMES = tuple(benchmarks.cards())
SIDE = 32  # pixels of a picture: the micro encoder is made for as many
FEWEST = 10  # classes in a split: two of them are held out for validation
ENCODER = ["--encoder", "deit_micro_patch8_64", "--image-size", str(SIDE)]
# The pixels that training reads: the side is 1.5 times that of the crops.
DECODE = f"""import sys
from sobook.data import image_sets, pixels
train = image_sets.load(sys.argv[1], "train", sys.argv[2], allow_partial=True)
pixels.decode(train, round(1.5 * {SIDE}), enlarge=False, budget=pixels.RAW_BUDGET)
"""

# A picture: its number, the benchmark's class id, the split, its path in the benchmark's folder.
Picture = namedtuple("Picture", ["number", "class_id", "split", "path"])


def counts(name: str, fraction: float = 1.0) -> dict[str, dict[str, int]]:
    """Images and classes of each split, at a fraction of the official counts."""
    splits = {}
    for split, official in benchmarks.cards()[name]["splits"].items():
        classes = max(min(FEWEST, official["classes"]), round(fraction * official["classes"]))
        images = max(2 * classes, round(fraction * official["images"]))
        splits[split] = {"images": images, "classes": classes}
    return splits


def list_pictures(name: str, splits: dict[str, dict[str, int]]) -> Iterator[Picture]:
    """All pictures of a stand-in. How many a class has is drawn, two at least."""
    rng, number = np.random.default_rng(0), 0
    # The official numbers of the first test class; for SOP and In-Shop any number will do.
    first = {"cub200": 101, "cars196": 99}.get(name, splits["train"]["classes"] + 1)
    for split, count in splits.items():
        classes = count["classes"]
        more = rng.multinomial(count["images"] - 2 * classes, np.full(classes, 1 / classes))
        for class_id, size in enumerate(2 + more, 1 if split == "train" else first):
            for _ in range(size):
                number += 1
                yield Picture(number, class_id, split, _path(name, number, class_id))


def _path(name: str, number: int, class_id: int) -> str:
    return {
        "cub200": f"images/{class_id:03d}.Stand_in_{class_id}/Stand_in_{number:06d}.jpg",
        "cars196": f"car_ims/{number:06d}.jpg",
        "sop": f"kind{class_id % 12}_final/{class_id:012d}_{number}.JPG",
        "inshop": f"Img/img/WOMEN/Stand_in/id_{class_id:08d}/{number:06d}.jpg",
    }[name]


def _write_lists(name: str, home: Path, pictures: list[Picture]) -> None:
    """The official lists, as `benchmarks` reads them."""
    lists: dict[str, list[str]] = {}
    if name == "cub200":
        classes = sorted({(p.class_id, p.path.split("/")[1]) for p in pictures})
        lists["classes.txt"] = [f"{k} {folder}" for k, folder in classes]
        lists["images.txt"] = [f"{p.number} {p.path.removeprefix('images/')}" for p in pictures]
        lists["image_class_labels.txt"] = [f"{p.number} {p.class_id}" for p in pictures]
    elif name == "cars196":
        kind = [("relative_im_path", object), ("class", object), ("test", object)]
        rows = [(p.path, p.class_id, int(p.split == "test")) for p in pictures]
        names = np.array([f"Stand-in {k}" for k in range(1, 197)], dtype=object)
        table = {"annotations": np.array(rows, dtype=kind)[None], "class_names": names[None]}
        savemat(home / "cars_annos.mat", table)
    elif name == "sop":
        for split in ("train", "test"):
            lists[f"Ebay_{split}.txt"] = ["image_id class_id super_class_id path"]
        for p in pictures:
            line = f"{p.number} {p.class_id} {p.class_id % 12 + 1} {p.path}"
            lists[f"Ebay_{p.split}.txt"].append(line)
    else:
        lines = [f"{p.path[4:]} id_{p.class_id:08d} {p.split}" for p in pictures]
        head = [str(len(lines)), "image_name item_id evaluation_status"]
        lists["Eval/list_eval_partition.txt"] = head + lines
    for file, lines in lists.items():
        files.write_text(home / file, "\n".join(lines) + "\n")


def picture(number: int, class_id: int) -> bytes:
    """A JPEG: a smooth pattern that the class makes, with noise that the number makes."""
    colors = np.random.default_rng([1, class_id]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pattern = Image.fromarray(colors).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noise = np.random.default_rng([2, number]).normal(0, 40, (SIDE, SIDE, 3))
    noisy = np.clip(np.asarray(pattern) + noise, 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noisy).save(data, "JPEG", quality=75)
    return data.getvalue()


def note(name: str, fraction: float) -> str:
    total = sum(count["images"] for count in counts(name, fraction).values())
    return f"stand-in: {total:,} drawn patterns in the layout of {name}, not its pictures"


def draw(name: str, root: Path, fraction: float = 1.0) -> Path:
    """Write the stand-in of a benchmark into ``root``; a killed drawing resumes."""
    home = root / benchmarks.cards()[name]["folder"]
    if home.exists() and own_notes(home) != [note(name, fraction)]:
        raise SystemExit(f"{home} is something else: name another --root.")
    files.write_text(home / "NOTES.txt", note(name, fraction) + "\n")
    pictures = list(list_pictures(name, counts(name, fraction)))
    for folder in {os.path.dirname(p.path) for p in pictures}:
        (home / folder).mkdir(parents=True, exist_ok=True)
    part = home / ".part"
    for p in pictures:
        if not os.path.exists(target := home / p.path):
            part.write_bytes(picture(p.number, p.class_id))
            os.replace(part, target)  # so that none is ever half there
    _write_lists(name, home, pictures)
    return home


def rehearse(name: str, root: Path, fraction: float = 1.0) -> dict[str, Any]:
    """Draw the stand-in and run every command on it; returns the record of all stages."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "rehearsal.json"
    record = {"benchmark": name, "fraction": fraction, "note": note(name, fraction)}
    record |= {"stages": {}, "cores": files.available_cores()}
    if file.exists():
        record = json.loads(file.read_text(encoding="utf-8"))
    for stage, (command, images) in stages(name, root, fraction).items():
        done = record["stages"].setdefault(stage, {"attempts": 0, "disk_before": _disk(root)})
        if "seconds" in done:
            continue
        done |= {"attempts": done["attempts"] + 1, "images": images}
        files.write_json(file, record)
        print(stage, flush=True)
        began = time.perf_counter()
        if command:
            usage = _run(command, root)
        else:
            draw(name, root, fraction)
            usage = resource.getrusage(resource.RUSAGE_SELF)
        done["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 2)
        done["peak_bytes"] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        done["seconds"] = round(time.perf_counter() - began, 2)
        done["disk_bytes"] = _disk(root) - done.pop("disk_before")
        done |= _steps(root / "runs" / stage.removeprefix("train ") / "metrics.jsonl")
        files.write_json(file, record)
    return record


def stages(name: str, root: Path, fraction: float) -> dict[str, tuple[list[str], int]]:
    """Commands in order, with the images each handles; the first stage, drawing, has none."""
    splits = counts(name, fraction)
    train, classes = splits["train"]["images"], splits["train"]["classes"]
    test = sum(count["images"] for count in splits.values()) - train
    kept = classes - max(round(0.2 * classes), 2)  # without the validation classes
    sobook = [sys.executable, "-m", "sobook"]
    data = ["--dataset", name, "--root", str(root)]
    if fraction < 1:
        data.append("--allow-partial")
    batch = ["--batch-size", str(min(180, 2 * kept)), "--images-per-class", "2"]
    epochs = ["--epochs", "1", "--warmup-epochs", "0", "--workers", "1"]
    training = [*sobook, "train", *data, *ENCODER, *batch, *epochs]
    pa, so = str(root / "runs" / "PA"), str(root / "runs" / "PA+SO")
    prepare = [*sobook, "prepare", name, "--root", str(root)]
    return {
        "draw": ([], train + test),
        **({"prepare": (prepare, train + test)} if fraction == 1 else {}),
        "dry run": ([*training, "--run-dir", pa, "--dry-run"], 0),
        "pixel cache": ([sys.executable, "-c", DECODE, name, str(root)], train),
        "evaluate, frozen": ([*sobook, "evaluate", *data, *ENCODER], test),
        "train PA": ([*training, "--run-dir", pa], train),
        "train PA+SO": ([*training, "--run-dir", so, "--so-weight", "100"], train),
        "evaluate": ([*sobook, "evaluate", pa], test),
        "compare": ([*sobook, "compare", pa, so], 0),
        "explore": ([*sobook, "explore", pa, so, "--out", str(root / "explorer.html")], 0),
        "export": ([*sobook, "export", so, "--hub", str(root / "hub")], 0),
    }


def _run(command: list[str], root: Path) -> resource.struct_rusage:
    """Run a command to its end, its output into the log; the resources it took."""
    shutil.rmtree(root / "hub", ignore_errors=True)  # of an export that was cut off
    log, environment = root / "rehearsal.log", {**os.environ, "SOBOOK_DATA": str(root)}
    with open(log, "a", encoding="utf-8") as out:
        print(f"\n$ {shlex.join(command)}", file=out, flush=True)
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)  # wait() would not tell the peak of this one
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        raise SystemExit(f"{shlex.join(command)} failed: {last} All it printed is in {log}.")
    return usage


def _steps(metrics: Path) -> dict[str, Any]:
    """Seconds and speed of the training steps alone, where this was a run."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    epochs = [line for line in map(json.loads, lines) if line.get("images_per_second")]
    names = {"seconds": "step_seconds", "images_per_second": "images_per_second"}
    return {names[key]: epochs[-1][key] for key in names} if epochs else {}


def _disk(root: Path) -> int:
    """Bytes on the disk, in whole blocks: a small picture takes one."""
    paths = (Path(where) / file for where, _, names in os.walk(root) for file in names)
    return sum(512 * os.lstat(path).st_blocks for path in paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--root", type=Path, required=True, help="folder for all that comes of it")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the counts, to try it out")
    given = parser.parse_args()
    root = given.root.expanduser().absolute() / given.name
    record = rehearse(given.name, root, given.fraction)
    file = (RESULTS if given.fraction == 1 else root) / f"rehearsal_{given.name}.json"
    timing.write(file, record)
    print(file)


if __name__ == "__main__":
    main()
