"""What all tests share: their settings, and data small enough to draw on the spot."""

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
_DATA = pytest.StashKey[str]()

hypothesis.settings.register_profile(
    "sobook", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)


def pytest_configure(config: pytest.Config) -> None:
    """Settings for tests and doctests alike; the notebooks are run by a pytest of their own."""
    config.stash[_DATA] = tempfile.mkdtemp(prefix="sobook-tests-")
    os.environ["SOBOOK_DATA"] = config.stash[_DATA]  # no test may touch the reader's data
    os.environ["SOBOOK_MODE"] = "quick"
    os.environ["MPLBACKEND"] = "Agg"
    hypothesis.settings.load_profile("sobook")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_DATA], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _shared(part: str) -> Path:
    """A part of the folder of photographs and weights that may lie beside the repository."""
    folder = Path(os.environ.get("SOBOOK_SHARED") or ROOT.parent / "shared") / part
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/{part} (or SOBOOK_SHARED), which is not on this machine")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real photographs; the test is skipped where there is none."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder with real DeiT weights; the test is skipped where there is none."""
    return _shared("weights")


@pytest.fixture(scope="session")
def tiny_options() -> dict[str, int]:
    """The options of `tiny_aviary`: 8 species (4 to train on, 4 to test), 6 images each."""
    return {"species": 8, "images_per_species": 6, "size": 64, "seed": 0}


@pytest.fixture(scope="session")
def tiny_aviary(tmp_path_factory: pytest.TempPathFactory, tiny_options: dict[str, int]) -> Path:
    """Root with a tiny Aviary, drawn once: ``load("aviary", "train", root, **tiny_options)``."""
    from sobook.data import image_sets

    root = tmp_path_factory.mktemp("tiny_aviary")
    image_sets.load("aviary", "train", root, **tiny_options)
    return root


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium (or Chrome) of this machine; nothing is downloaded."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs {', '.join(names[:-1])} or {names[-1]} on PATH")
    flags = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    flags += ["disable-background-networking", "disable-component-update"]
    with driver.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=found, args=[f"--{f}" for f in flags])
        yield chromium
        chromium.close()
