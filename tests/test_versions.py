"""Lowest versions of other packages, and what Colab has of them."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib")  # Python 3.11


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in project["dependencies"] + [x for e in extras for x in e]]


def test_every_requirement_has_a_lowest_version_that_colab_satisfies():
    lines = (ROOT / ".ci/colab-constraints.txt").read_text(encoding="utf-8").splitlines()
    colabs = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"torch", "torchvision", "timm", "numpy", "pandas", "pillow"} <= set(colabs)
    for requirement in requirements():
        assert ">=" in [bound.operator for bound in requirement.specifier], requirement
        if version := colabs.get(re.sub(r"[-_.]+", "-", requirement.name).lower()):
            assert requirement.specifier.contains(Version(version)), (requirement, version)
