"""What `make install` takes, with uv and with pip: seconds and gigabytes, from empty caches.

    python -m tests.benchmarks.installation

Each way starts from a fresh clone. The network is part of it, so the seconds are those of one day.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.benchmarks import timing

ROOT = Path(__file__).resolve().parents[2]
PIP = ".venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks,dev]'"
WAYS = {"uv": [], "pip": [f"INSTALL={PIP}"]}


def install(arguments: list[str], folder: Path) -> dict[str, float]:
    clone = folder / "sobook"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    caches = {"UV_CACHE_DIR": str(folder / "uv"), "PIP_NO_CACHE_DIR": "1"}
    command = ["make", f"PYTHON={sys.executable}", *arguments, "install"]
    environment = {**os.environ, **caches}
    run = partial(subprocess.run, command, cwd=clone, env=environment, check=True)
    seconds = timing.seconds(run)
    files = (os.lstat(path) for path in (clone / ".venv").rglob("*"))
    return {"seconds": round(seconds), "gb": round(sum(f.st_blocks for f in files) * 512 / 1e9, 1)}


def main() -> None:
    given = timing.parser(__doc__).parse_args()
    found = {}
    for name, arguments in WAYS.items():
        with tempfile.TemporaryDirectory() as temporary:
            found[name] = install(arguments, Path(temporary))
        print(name, found[name], flush=True)
    timing.write(given.out / "installation.json", found)


if __name__ == "__main__":
    main()
