"""Damaged pictures, lists and .mat files: one sentence each, soon, and in little memory."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.data import fuzzing


@pytest.mark.parametrize(
    ("count", "seed"), [(60, 0), pytest.param(1200, 1, marks=pytest.mark.slow)]
)
def test_damaged_files_are_read_or_refused_in_one_sentence(count, seed):
    """The process must also survive: SciPy crashes on some .mat files."""
    command = [sys.executable, "-m", "tests.data.fuzzing", str(count), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    print(report["outcomes"], f"slowest {report['slowest']:.1f} s, {report['memory'] / 1e6:.0f} MB")
    assert report["wrong"] == []
    assert report["slowest"] < fuzzing.SLOWEST and report["memory"] < fuzzing.MEMORY
    assert report["outcomes"]["read"] > count / 4 and report["outcomes"]["ImageError"] > count / 4
