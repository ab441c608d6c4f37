"""What notebooks do first, and what they say before a long run."""

import sys
import types

import pytest

from sobook.course import session as session_module


@pytest.fixture
def session(tmp_path):
    return session_module.Session(mode="full", device="cpu", data_root=tmp_path, seed=0)


def tiny(session):
    return session.config(
        encoder="deit_micro_patch8_64", dim=8, batch_size=4, epochs=3, precision="float32"
    )


def test_an_estimate_is_measured(session):
    found = session.estimate(tiny(session), images=400, steps=1)
    assert found.batch_size == 4 and found.minutes > 0 and found.peak_bytes is None
    assert "batches of 4: about" in str(found)


def test_colab_is_offered_drive_unless_a_place_is_chosen(monkeypatch):
    monkeypatch.delenv("SOBOOK_DATA", raising=False)
    assert session_module._drive_advice() is None
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert "drive.mount" in session_module._drive_advice()
    monkeypatch.setenv("SOBOOK_DATA", "/content/drive/MyDrive/sobook")
    assert session_module._drive_advice() is None
