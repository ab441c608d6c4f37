"""Names of a package that are imported when first used, so that `import sobook` is quick.

PEP 562 lets a package answer for attributes it does not have yet. The answers here are the names a
package lists, and its own modules.
"""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping

from sobook.errors import first_line

# What a torch or torchvision that cannot be used raises while it is imported.
IMPORT_FAILURES = (ImportError, RuntimeError, AttributeError, OSError)


def attach(
    package: str, exports: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Make the module functions and the list of names that a lazy package needs.

    Args:
        package: its name, ``__name__``.
        exports: for each module (within the package, or by its full name from elsewhere in
            sobook), the names it defines.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__``.
    """
    home = {name: module for module, names in exports.items() for name in names}

    def load(name: str) -> object:
        if name in home:
            return getattr(import_checked(home[name]), name)
        full_name = f"{package}.{name}"
        if not name.startswith("_") and importlib.util.find_spec(full_name):
            return import_checked(full_name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        module = sys.modules[package]
        submodules = [info.name for info in pkgutil.iter_modules(module.__path__)]
        return sorted({*vars(module), *home, *(m for m in submodules if not m.startswith("_"))})

    return load, list_names, sorted(home)


def import_checked(module: str):
    """Import a module; where that fails since torch and torchvision do not fit, say so."""
    try:
        return importlib.import_module(module)
    except IMPORT_FAILURES:
        check_torch()
        raise


def check_torch() -> None:
    """Turn a torch and torchvision that do not belong together into one sentence.

    Raises:
        ImportError: torch or torchvision is missing, broken, or made for another version.
    """
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except IMPORT_FAILURES as error:
        from importlib import metadata  # here, since it takes longer than all else in this file

        versions = []
        for package in ("torch", "torchvision"):
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                versions.append(f"{package} (missing)")
        raise ImportError(
            f"{' and '.join(versions)} do not work together ({first_line(error)}): reinstall them "
            "as a pair with `pip install --force-reinstall torch torchvision`, then restart Python."
        ) from None
