"""What notebooks do first, and what they say before a long run."""

import sys
import types

import pytest
import torch

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


def test_a_batch_that_does_not_fit_is_halved(session, monkeypatch):
    tried = []

    def trial(config, device, steps):
        tried.append(config.batch_size)
        if config.batch_size > 50:
            raise torch.cuda.OutOfMemoryError("too large")
        return 0.5, 9e9

    monkeypatch.setattr(session_module, "_trial", trial)
    found = session.estimate(tiny(session).replace(batch_size=180), images=4500)
    assert tried == [180, 90, 45]
    assert found.batch_size == 45 and found.minutes == pytest.approx(3 * 100 * 0.5 / 60)


def test_what_does_not_fit_at_all_is_an_error(session, monkeypatch):
    def trial(*_):
        raise torch.cuda.OutOfMemoryError("too large")

    monkeypatch.setattr(session_module, "_trial", trial)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        session.estimate(tiny(session), images=100)


def test_colab_is_offered_drive_unless_a_place_is_chosen(monkeypatch):
    monkeypatch.delenv("SOBOOK_DATA", raising=False)
    assert session_module._drive_advice() is None
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert "drive.mount" in session_module._drive_advice()
    monkeypatch.setenv("SOBOOK_DATA", "/content/drive/MyDrive/sobook")
    assert session_module._drive_advice() is None
