"""The import contract: what may import what, and what users import. `make lint` runs this file."""

import ast
import graphlib
import importlib
import operator
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import sobook

ROOT = Path(__file__).resolve().parent.parent
FOUNDATION = ("errors", "files", "lazy")
TAUGHT = ("losses", "geometry", "retrieval", "statistics", "encoder", "embedding")
TAUGHT += ("data", "training", "figures")  # "above the line"; all else serves them
# What these import of sobook beside the foundation, so that each can be read alone.
STANDS_ALONE = {"losses": (), "statistics": (), "retrieval": ("statistics",), "encoder": ()}
# The drawn birds are one data set of many: found by name, imported when asked for.
BY_NAME = {
    ("sobook.data.image_sets", "sobook.aviary.species"),
    ("sobook.encoder", "sobook.aviary.micro"),
}

FILES = sorted((ROOT / "sobook").rglob("*.py"))
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in FILES
}


class Import(NamedTuple):
    module: str  # of sobook
    name: str | None  # taken from it; None where the module itself is imported
    bound: str  # the name it has here


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> list[Import]:
    """Each import of a part of sobook, also those inside functions."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, alias.asname or "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full, sobook.…"
            for alias in node.names:
                full, bound = f"{node.module}.{alias.name}", alias.asname or alias.name
                is_module = full in MODULES
                found.append(
                    Import(full, None, bound)
                    if is_module
                    else Import(node.module, alias.name, bound)
                )
    return [item for item in found if item.module.split(".")[0] == "sobook"]


def part(module: str) -> str:
    """The part of the house that a module is in: ``sobook.data.pixels`` is in ``data``."""
    return (module.split(".") + [""])[1]


def code_modules() -> list[str]:
    return [module for module in MODULES if MODULES[module].name != "__init__.py"]


@pytest.mark.parametrize("module", code_modules())
def test_imports_run_downward(module):
    used = {part(item.module) for item in imports(module)} - {"", part(module), *FOUNDATION}
    if part(module) in FOUNDATION:
        assert not used
    if part(module) in STANDS_ALONE:
        assert used <= set(STANDS_ALONE[part(module)])
    if part(module) in TAUGHT:
        assert used <= set(TAUGHT)
    if part(module) not in ("cli", "__main__"):
        assert "cli" not in used


def test_there_are_no_cycles():
    graph = {module: {item.module for item in imports(module)} for module in code_modules()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", MODULES)
def test_underscore_names_stay_at_home(module):
    found = imports(module)
    names = [item.name or item.module.split(".")[-1] for item in found]
    modules = {item.bound for item in found if item.name is None}
    names += [
        node.attr
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    ]
    assert not [name for name in names if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize("module", code_modules())
def test_what_is_imported_by_name_is_listed(module):
    named = {
        node.args[0].value
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("import_module")
        and isinstance(node.args[0], ast.Constant)
    }
    assert all((module, name) in BY_NAME for name in named if name.startswith("sobook"))


@pytest.mark.parametrize(
    "code", ["import sobook", "import sobook.cli", "sobook.cli.main(['train', '--help'])"]
)
def test_heavy_packages_are_imported_only_where_used(code):
    heavy = ("torch", "torchvision", "timm", "matplotlib", "pandas", "sklearn", "umap", "faiss")
    script = f"""import atexit, sys, sobook.cli
atexit.register(lambda: print(*(m for m in {heavy} if m in sys.modules), file=sys.stderr))
{code}"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.split() == []


PUBLIC = """
    ProxyAnchor SoftOrthogonalProxyAnchor soft_orthogonality describe evaluate nearest_neighbors
    prepare load Encoder embed data.read_image data.ImageSet TrainConfig fit Run SobookError
    course.setup course.exercises.check training.evaluate_run figures.proxy_heatmaps
    statistics.compare_classes studies.study.load interactive.explorer.build export.to_onnx
"""


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_reached_from_the_package(name):
    assert callable(operator.attrgetter(name)(sobook))
    assert name.split(".")[0] in dir(sobook)


@pytest.mark.parametrize("package", [name for name in MODULES if name not in code_modules()])
def test_what_packages_export_is_what_type_checkers_see(package):
    checked = [node for node in tree(package).body if isinstance(node, ast.If)]
    seen = {alias.name for node in checked for line in node.body for alias in line.names}
    assert "*" in seen or set(importlib.import_module(package).__all__) == seen


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sobook.data' has no attribute 'lode'"):
        sobook.data.lode  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'lode' from 'sobook.data'"):
        from sobook.data import lode  # noqa: F401
