"""The import contract: what may import what, and what users import. `make lint` runs this file."""

import ast
import graphlib
import importlib
import operator
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import sobook

ROOT = Path(__file__).resolve().parent.parent
# Rooms of the house: modules, lines they may have, lines that the design wants. The first number
# is a ratchet: it only falls, until it meets the second. A change that needs more says why.
BUDGET = {
    "foundation": (("sobook", "sobook.errors", "sobook.files", "sobook.__main__"), 302, 240),
    "losses": (("sobook.losses",), 210, 210),
    "geometry": (("sobook.geometry",), 289, 290),
    "retrieval": (("sobook.retrieval",), 241, 240),
    "statistics": (("sobook.statistics",), 286, 220),
    "tilt": (("sobook.tilt",), 158, 160),  # of evidence: how far proxies and images tilt apart
    "encoder": (("sobook.encoder",), 270, 270),
    "embedding": (("sobook.embedding",), 71, 70),
    "search": (("sobook.search",), 268, 220),
    "baselines": (("sobook.baselines",), 108, 100),
    "export and cli": (("sobook.export", "sobook.cli"), 657, 430),
    "data": (("sobook.data",), 1347, 1050),
    "training": (("sobook.training",), 1695, 1150),
    "figures": (("sobook.figures",), 1289, 1200),
    "course": (("sobook.course",), 1409, 1220),
    "aviary": (("sobook.course.aviary",), 1270, 1270),
    "studies": (("sobook.course.studies",), 890, 650),
    "pages": (("sobook.course.pages",), 750, 660),
}
WEB_BUDGET, WEB_GOAL = 3466, 3100
TESTS_BUDGET, TESTS_GOAL = 11911, 9500
FOUNDATION = ("errors", "files")
# What these import of sobook beside the foundation, so that each can be read alone.
STANDS_ALONE = {"losses": (), "statistics": (), "retrieval": ("statistics",), "encoder": ()}
STANDS_ALONE |= {"baselines": (), "tilt": (), "geometry": (), "embedding": ("data", "encoder")}
# The drawn birds are one data set of many: found by name, imported when asked for.
BY_NAME = {
    ("sobook.data.image_sets", "sobook.course.aviary.species"),
    ("sobook.encoder", "sobook.course.aviary.micro_deit"),
}

MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "sobook").rglob("*.py"))
}
CODE = [module for module in MODULES if MODULES[module].name != "__init__.py"]
LAZY = ("sobook", "sobook.course", "sobook.figures", "sobook.training")


@cache
def source(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


@cache
def imports(module: str) -> dict[str, str]:
    """What a module imports of sobook, also inside functions: its name here and in full."""
    found = {}
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full, sobook.…"
            found |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    return {name: full for name, full in found.items() if full.split(".")[0] == "sobook"}


def modules_used(module: str) -> set[str]:
    return {
        full if full in MODULES else full.rpartition(".")[0] for full in imports(module).values()
    }


def part(module: str) -> str:
    """The part of the house that a module is in: ``sobook.data.pixels`` is in ``data``."""
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("module", CODE)
def test_imports_run_downward(module):
    used = {part(other) for other in modules_used(module)} - {"", part(module), *FOUNDATION}
    if part(module) in FOUNDATION:
        assert not used
    if part(module) in STANDS_ALONE:
        assert used <= set(STANDS_ALONE[part(module)])
    if part(module) not in ("course", "cli"):
        assert "course" not in used
    assert "cli" not in used or module == "sobook.__main__"
    by_name = re.findall(r'import_module\("(sobook[\w.]*)"', source(module))
    assert all((module, name) in BY_NAME for name in by_name)


def room(module: str) -> str | None:
    """The room of a module: its own, else that of the package around it."""
    homes = {name: home for home, (names, *_) in BUDGET.items() for name in names}
    parts = module.split(".")
    around = [".".join(parts[:end]) for end in range(len(parts), 1, -1)] or [module]
    return next((homes[name] for name in around if name in homes), None)


@pytest.mark.parametrize("home", BUDGET)
def test_a_room_stays_within_its_budget(home):
    lines = {m: source(m).count("\n") for m in MODULES if room(m) == home}
    assert 0 < sum(lines.values()) <= BUDGET[home][1], lines


def test_pages_and_tests_stay_within_their_budgets():
    def lines(folder: str, *suffixes: str) -> int:
        files = [file for file in (ROOT / folder).rglob("*") if file.suffix in suffixes]
        return sum(file.read_text(encoding="utf-8").count("\n") for file in files)

    assert 0 < lines("sobook", ".js", ".css", ".html") <= WEB_BUDGET
    assert 0 < lines("tests", ".py", ".c") <= TESTS_BUDGET
    assert all(room(module) for module in MODULES), "a module without a room in BUDGET"


def test_there_are_no_cycles():
    graph = {module: modules_used(module) for module in CODE}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", MODULES)
def test_underscore_names_stay_at_home(module):
    for name, full in imports(module).items():
        assert not re.search(r"\._[^_]", full)
        assert not re.search(rf"(?<![\w.]){name}\._[^_]", source(module))


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
    statistics.compare_classes export.to_onnx
"""


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_reached_from_the_package(name):
    assert callable(operator.attrgetter(name)(sobook))
    assert name.split(".")[0] in dir(sobook)


@pytest.mark.parametrize("package", LAZY)
def test_what_packages_export_is_what_type_checkers_see(package):
    assert "*" in imports(package) or set(importlib.import_module(package).__all__) == {
        name for name in imports(package) if name not in ("files", "lazy")
    }


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sobook' has no attribute 'lode'"):
        sobook.lode  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'lode' from 'sobook'"):
        from sobook import lode  # noqa: F401
