"""sobook: deep metric learning with soft orthogonal proxies, as a course and a small package.

The tree is the table of contents: `losses`, `geometry`, `retrieval`, `statistics`, `encoder`,
`embedding`, `data`, `training` and `figures` are the library; `course` is what serves the course.
"""

import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sobook.data import load as load, prepare as prepare
    from sobook.embedding import embed as embed
    from sobook.encoder import Encoder as Encoder
    from sobook.errors import SobookError as SobookError
    from sobook.geometry import describe as describe
    from sobook.losses import (
        ProxyAnchor as ProxyAnchor,
        SoftOrthogonalProxyAnchor as SoftOrthogonalProxyAnchor,
        soft_orthogonality as soft_orthogonality,
    )
    from sobook.retrieval import evaluate as evaluate, nearest_neighbors as nearest_neighbors
    from sobook.training import Run as Run, TrainConfig as TrainConfig, fit as fit

__version__ = "0.2.0"


def lazy(package: str, **exports: str) -> tuple[Callable, Callable, list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package (PEP 562) whose modules, and the
    names that it exports from them (module="name name"), are imported on first use."""
    home = {name: module for module, names in exports.items() for name in names.split()}
    modules = [info.name for info in pkgutil.iter_modules(sys.modules[package].__path__)]
    home |= dict.fromkeys([name for name in modules if name[0] != "_"], "")

    def load_name(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{home[name] or name}")
        return getattr(module, name) if home[name] else module

    return load_name, lambda: {*vars(sys.modules[package]), *home}, sorted(filter(home.get, home))


__getattr__, __dir__, __all__ = lazy(
    __name__,
    data="load prepare",
    embedding="embed",
    encoder="Encoder",
    errors="SobookError",
    geometry="describe",
    losses="ProxyAnchor SoftOrthogonalProxyAnchor soft_orthogonality",
    retrieval="evaluate nearest_neighbors",
    training="Run TrainConfig fit",
)
# What libraries read when they are imported: before any of them is.
if sys.platform == "darwin":  # torch and faiss each bring an OpenMP; two would abort
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
if not os.access(os.path.expanduser("~"), os.W_OK):  # where numba caches what UMAP compiles
    os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp())
