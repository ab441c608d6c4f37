"""Every command that writes, killed at random moments, and with a disk that fails at each write.

Whatever happens, the same command then ends with the bytes of one that nothing happened to.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WRITING = ["prepare", "train", "embed", "search", "explore", "export", "grade", "study"]


def trials(folder: Path, names: str, errors: str, most: int) -> list[dict]:
    """The reports of `tests.faults`, in a process that has the library preloaded."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    library = folder / "faults.so"
    build = [compiler, "-shared", "-fPIC", "-o", library, ROOT / "tests/faults.c", "-ldl"]
    subprocess.run(build, check=True)
    command = [sys.executable, "-m", "tests.faults", str(folder), names, errors, str(most)]
    settings = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(report: dict) -> None:
    """Nothing lost, one sentence on the file that could not be written, nothing left behind."""
    assert report["again"] == 0 and report["different"] == [], report
    if report["error"] == "KILL":
        return
    assert report["status"] in (0, 1) and "Traceback" not in report["said"], report
    assert all(line.startswith("sobook: ") for line in report["said"].splitlines()), report
    if report["status"]:
        assert "could not be written" in report["said"].splitlines()[-1], report
    if report["error"] != "EROFS":  # where nothing can be deleted either
        assert report["left"] == [], report


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills(tmp_path):
    reports = trials(tmp_path, "prepare,train,embed,study", "KILL", 10)
    for report in reports:
        check(report)
    killed = [report["command"] for report in reports if report["status"] == -9]
    assert len(killed) >= 30
    assert min(killed.count(name) for name in ("prepare", "train", "embed", "study")) >= 6


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", WRITING)
def test_a_full_and_a_read_only_disk_at_every_write(tmp_path, name):
    every = 10_000 if os.environ.get("SOBOOK_EVERY_WRITE") else 12
    for report in trials(tmp_path, name, "ENOSPC,EROFS,EDQUOT,EIO", every):
        check(report)


def test_the_quick_twin(tmp_path):
    """Two full disks and kills of `grade`, which loads nothing heavy."""
    for report in trials(tmp_path, "grade", "ENOSPC,KILL", 2):
        check(report)
