"""Session: what notebooks do first, and the runs that come with the course."""

import shutil
import subprocess
import sys
import types
from pathlib import Path

import matplotlib
import pytest
import torch

from sobook import files, geometry
from sobook.course import setup
from sobook.course.session import Session
from sobook.errors import RunError, SobookError
from sobook.losses import SO_WEIGHT
from sobook.training import Run, fit


@pytest.fixture(autouse=True)
def _undone(monkeypatch):
    """`setup` changes settings of the whole process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so threads stay as they are
    with matplotlib.rc_context():
        yield


def test_colab_is_offered_drive_for_runs_unless_a_place_is_chosen(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    setup()
    assert "drive.mount" in capsys.readouterr().out
    monkeypatch.setenv("SOBOOK_MIRROR", "/content/drive/MyDrive/sobook")
    setup()
    assert "drive.mount" not in capsys.readouterr().out


def test_mode_and_seed_are_checked(monkeypatch):
    with pytest.raises(SobookError, match="seed"):
        setup(seed=-1)
    monkeypatch.setenv("SOBOOK_MODE", "fulll")
    with pytest.raises(SobookError, match="SOBOOK_MODE"):
        setup()


@pytest.mark.parametrize("native, precision", [(True, "bfloat16"), (False, "float16")])
def test_full_mode_takes_the_precision_that_the_gpu_computes_in(monkeypatch, native, precision):
    """A T4 only emulates bfloat16. What a GPU would answer is made up: it needs none."""

    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    session = Session("full", "cuda", Path("data"), seed=0)
    assert session.config().precision == precision and "Tesla T4" in str(session)


def test_first_pictures_wait_for_nothing_that_trains():
    """timm and torchvision take seconds to import; the birds of notebook 00 need neither."""
    code = (
        "import sys; from sobook.course import setup; setup()\n"
        "from sobook import figures; from sobook.course.aviary import species\n"
        "figures.contact_sheet([species.draw(species.species(2)[0], 0)], ['a']).encoded()\n"
        "print(sorted({'timm', 'torchvision', 'sklearn', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def quick(tmp_path, monkeypatch) -> Session:
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    return Session("quick", "cpu", tmp_path, seed=0)


@pytest.mark.parametrize("so_weight", [0.0, SO_WEIGHT])
def test_the_two_runs_of_the_course_are_shipped(tmp_path, monkeypatch, capsys, so_weight):
    session = quick(tmp_path, monkeypatch)
    config = session.config(so_weight=so_weight)
    run = session.fit(config)
    assert "retrain=True" in capsys.readouterr().out
    assert run.finished and run.config == config and len(run.epochs) == 9
    assert run.proxies().shape == run.proxies(0).shape == (40, 128)
    assert run.encoder().dim == 128 and 0.6 < run.retrieval["recall"]["1"] < 0.7
    assert not (tmp_path / "runs").exists()


def test_a_changed_file_of_a_shipped_run_is_refused(tmp_path, monkeypatch):
    session = quick(tmp_path, monkeypatch)
    shutil.copytree(files.shipped("quick_runs"), tmp_path / "quick_runs")
    monkeypatch.setattr(files, "shipped", lambda name: tmp_path / name)
    session.fit(session.config(so_weight=0.0))
    (tmp_path / "quick_runs/pa/retrieval.json").write_text("{}")
    with pytest.raises(RunError, match="retrieval.json"):
        session.fit(session.config(so_weight=0.0))


def test_a_run_of_ones_own_is_opened_again(tmp_path, monkeypatch):
    session = quick(tmp_path, monkeypatch)
    options = {"species": 8, "images_per_species": 4, "size": 64}
    config = session.config(options=options, epochs=1, batch_size=8)
    mine = session.fit(config, retrain=True)
    assert mine.path.is_relative_to(tmp_path) and session.fit(config).path == mine.path


def test_the_first_epoch_of_a_shipped_run_comes_out_again(tmp_path, monkeypatch):
    session = quick(tmp_path, monkeypatch)
    config = session.config(so_weight=0.0)

    def stop(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, progress=False, after_epoch=stop)
    mine, shipped = Run.load(config.folder()), Run.load(files.shipped("quick_runs/pa"))
    for epoch in (0, 1):
        assert abs(mine.proxies(epoch) - shipped.proxies(epoch)).max() < 0.01
        assert abs(mine.epochs[epoch]["recall_at_1"] - shipped.epochs[epoch]["recall_at_1"]) < 0.02
    losses = [run.epochs[1]["proxy_anchor"] for run in (mine, shipped)]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)


@pytest.mark.slow
def test_a_shipped_run_comes_out_again(tmp_path, monkeypatch):
    """The real training of notebook 00, as a reader repeats it: a minute and a half."""
    session = quick(tmp_path, monkeypatch)
    config = session.config(so_weight=0.0)
    runs = session.fit(config), session.fit(config, retrain=True)
    # Elsewhere sums are added up in another order, and training amplifies it as another seed.
    recalls = [run.retrieval["recall"]["1"] for run in runs]
    geometries = [geometry.describe(run.proxies()).rms_cosine for run in runs]
    assert recalls[0] == pytest.approx(recalls[1], abs=0.06)
    assert geometries[0] == pytest.approx(geometries[1], abs=0.03)
