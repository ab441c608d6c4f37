"""Commands in processes that are killed, or whose disk fails at the n-th write.

`python -m tests.faults FOLDER COMMANDS ERRORS MOST`, with the library made of ``faults.c``
preloaded, prints a JSON line for each trial. ERRORS are names as in `errno`, or KILL.
"""

import ctypes
import errno
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

AVIARY = ["species", "8", "images_per_species", "6", "size", "64"]
TRAIN = ["--batch-size", "8", "--dim", "16", "--selection", "last", "--epochs", "3"]
STUDY = """trainer = "head"
[fixed]
root = "{root}"
options = {species = 8, images_per_species = 6, size = 64}
epochs = 1
batch_size = 8
validation_fraction = 0.5
[grid]
seed = [0, 1]
"""
NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
_TIMES = ("seconds", "images_per_second", "seconds_of_all_runs", "date", "dates", "notebook")


def commands(given: Path, work: Path) -> dict[str, list[str]]:
    """Every command that writes: its arguments, with what it reads in `given`."""
    run, options = str(given / "run"), ["--options", *AVIARY]
    data = ["--root", str(given), *options]
    return {
        "prepare": ["prepare", "aviary", *options],
        "train": ["train", *data, *TRAIN, "--run-dir", str(work / "run")],
        "embed": ["embed", run, "--out", str(work / "out.npz")],
        "search": f"search {run} --folder {given / 'pictures'} --index {work / 'i.npz'}".split()
        + ["--page", str(work / "page.html")],
        "explore": ["explore", run, "--out", str(work / "explorer.html"), "--images", "2"],
        "export": ["export", run, "--hub", str(work / "hub")],
        "grade": f"grade {given / '01_a.ipynb'} --out {work / 'g.csv'} --no-execute".split(),
        "study": ["study", str(given / "own.toml"), "--out", str(work / "out"), "--jobs", "1"],
    }


def prepare(given: Path, names: list[str]) -> None:
    """What the commands read; `grade` needs no run, and nothing heavy."""
    from sobook import cli, files

    given.mkdir(parents=True)
    files.write_text(given / "own.toml", STUDY.replace("{root}", str(given)))
    files.write_json(given / "01_a.ipynb", NOTEBOOK)
    if names == ["grade"]:
        return
    os.environ["SOBOOK_DATA"] = str(given)
    data = ["--root", str(given), "--options", *AVIARY]
    assert cli.main(["train", *data, *TRAIN, "--run-dir", str(given / "run")]) == 0
    shutil.copytree(next(given.glob("aviary/v*")), given / "pictures")


def content(folder: Path) -> dict[str, object]:
    """The bytes of all files but locks; of records, what does not say how long something took."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock":
            found[str(path.relative_to(folder))] = _content(path)
    return found


def _content(path: Path) -> object:
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        return [{k: v for k, v in json.loads(x).items() if k not in _TIMES} for x in lines]
    return b"" if path.suffix == ".md" else path.read_bytes()


def attempt(
    arguments: list[str], work: Path, log: Path, *, at: int = 0, error: int = 0, kill: float = 0
) -> tuple[int, int]:
    """Run a command in a process of its own; returns its status and how often it wrote.

    Args:
        at: number of the first write that fails; 0: none.
        error: of those writes.
        kill: seconds until the process is killed; 0: never.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        if kill:
            time.sleep(kill)
            os.kill(child, signal.SIGKILL)
        with os.fdopen(read) as pipe:
            count = pipe.read()
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), int(count or -1)
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ["SOBOOK_DATA"] = str(work / "data")
    status = 70
    try:
        from sobook import cli

        library.faults_arm(str(work).encode(), ctypes.c_long(at), error)
        status = cli.main(arguments)
    except BaseException:  # reported, with its traceback, as a failure
        import traceback

        traceback.print_exc()
    finally:
        os.write(write, str(library.faults_count()).encode())
        os._exit(status)


def main(folder: Path, names: list[str], errors: list[str], most: int) -> None:
    """All trials: at most `most` for each command and error, evenly spread over its writes."""
    importlib.import_module("sobook.course.grade" if names == ["grade"] else "sobook.training")
    given, work, log = folder / "given", folder / "work", folder / "log"
    if not given.exists():
        prepare(given, names)
    for name in names:
        arguments = commands(given, work)[name]
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        began = time.monotonic()
        status, writes = attempt(arguments, work, log)
        seconds = time.monotonic() - began
        assert status == 0, log.read_text()
        expected, rng = content(work), random.Random(0)
        for error in errors:
            step = max(1, -(-writes // most))
            places = range(1, writes + 1, step) if error != "KILL" else range(1, most + 1)
            for at in places:
                shutil.rmtree(work)
                work.mkdir()
                if error == "KILL":
                    status, _ = attempt(arguments, work, log, kill=rng.uniform(0.01, seconds))
                else:
                    status, _ = attempt(arguments, work, log, at=at, error=getattr(errno, error))
                report = {"command": name, "error": error, "at": at, "of": writes}
                report |= {"status": status, "said": log.read_text(errors="replace").strip()}
                report["left"] = [path.name for path in work.rglob("*.partial*")]
                report["again"], _ = attempt(arguments, work, log)
                now = content(work)
                names_of_both = sorted({*now, *expected})
                # A read-only disk keeps even what was half written.
                report["different"] = [
                    name
                    for name in names_of_both
                    if now.get(name) != expected.get(name)
                    and not (error == "EROFS" and ".partial" in name)
                ]
                print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","), int(sys.argv[4]))
