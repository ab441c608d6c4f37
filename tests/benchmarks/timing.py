"""What the benchmarks share: calls timed in turn, their spread, and the JSON that the site reads.

Whatever is compared takes turns in one process, so that a busy machine slows all alike. Nothing
here imports torch: a peer's imports are part of its time.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "data/results"


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(
    calls: dict[Any, Callable], rounds: int, *, least_seconds: float = 0, most: int | None = None
) -> dict[Any, list[float]]:
    """Seconds of each call in turn, after one to warm up.

    Args:
        calls: what is timed, by name.
        rounds: how many of each, at least.
        least_seconds: go on until so many have passed.
        most: how many of each, at most.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < least_seconds and done != most:
        done += 1
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Of the same rounds, so that what slowed a round cancels."""
    return [a / b for a, b in zip(first, second, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(float(value), digits) for name, value in found.items()}


def machine(about: str) -> str:
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {about}"


def parser(module_docstring: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=module_docstring.splitlines()[0])
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for what is written")
    return made


def write(file: Path, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
