"""The single-study scripts of data/studies, which is no package."""

import importlib.util
from pathlib import Path

DATA = Path(__file__).resolve().parents[3] / "data"


def script(name: str):
    """A module of data/studies."""
    spec = importlib.util.spec_from_file_location(name, DATA / f"studies/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
