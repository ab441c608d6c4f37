"""What notebooks do first, and what they say before a long run."""

import sys
import types
from pathlib import Path

import matplotlib
import pytest

from sobook.course import setup
from sobook.course.session import Session
from sobook.errors import SobookError


@pytest.fixture(autouse=True)
def _undone(monkeypatch):
    """`setup` changes settings of the whole process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so threads stay as they are
    with matplotlib.rc_context():
        yield


def test_an_estimate_is_measured(tmp_path):
    session = Session(mode="full", device="cpu", data_root=tmp_path, seed=0)
    small = {"dim": 8, "batch_size": 4, "epochs": 3, "precision": "float32"}
    config = session.config(encoder="deit_micro_patch8_64", **small)
    found = session.estimate(config, images=400, steps=1)
    assert found.batch_size == 4 and found.minutes > 0 and found.peak_bytes is None
    assert "batches of 4: about" in str(found)


def test_colab_is_offered_drive_unless_a_place_is_chosen(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    setup()
    assert "drive.mount" not in capsys.readouterr().out  # SOBOOK_DATA of these tests
    monkeypatch.delenv("SOBOOK_DATA")
    setup()
    assert "drive.mount" in capsys.readouterr().out


def test_a_mode_is_quick_or_full(monkeypatch):
    monkeypatch.setenv("SOBOOK_MODE", "fulll")
    with pytest.raises(SobookError, match="unknown SOBOOK_MODE 'fulll'.*'full'"):
        setup()


def test_settings_are_checked_with_the_near_match():
    session = Session("quick", "cpu", Path("data"), seed=0)
    with pytest.raises(SobookError, match="unknown setting 'epoch'.*Did you mean 'epochs'"):
        session.config(epoch=3)
    with pytest.raises(SobookError, match="seed is -1"):
        setup(seed=-1)
