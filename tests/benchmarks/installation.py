"""What `make install` takes, with uv and with pip: seconds and gigabytes, from empty caches.

    python -m tests.benchmarks.installation

Each way starts from a fresh clone. The network is part of it, so the seconds are those of one day.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = ".venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks,dev]'"
WAYS = {"uv": [], "pip": [f"INSTALL={PIP}"]}


def install(arguments: list[str], folder: Path) -> dict[str, float]:
    clone = folder / "sobook"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    caches = {"UV_CACHE_DIR": str(folder / "uv"), "PIP_NO_CACHE_DIR": "1"}
    start = time.perf_counter()
    command = ["make", f"PYTHON={sys.executable}", *arguments, "install"]
    subprocess.run(command, cwd=clone, env={**os.environ, **caches}, check=True)
    seconds = time.perf_counter() - start
    files = (os.lstat(path) for path in (clone / ".venv").rglob("*"))
    return {"seconds": round(seconds), "gb": round(sum(f.st_blocks for f in files) * 512 / 1e9, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    given = parser.parse_args()
    found = {}
    for name, arguments in WAYS.items():
        with tempfile.TemporaryDirectory() as temporary:
            found[name] = install(arguments, Path(temporary))
        print(name, found[name], flush=True)
    (given.out / "installation.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
