"""Names of a package that are imported when first used (PEP 562): `import sobook` is quick."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable

from sobook.errors import first_line

# What a torch or torchvision that cannot be used raises while it is imported.
_FAILURES = (ImportError, RuntimeError, AttributeError, OSError)


def attach(
    package: str, exports: dict[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package with these names (module: names).

    Its own modules are imported when first used as well.
    """
    home = {name: module for module, names in exports.items() for name in names.split()}

    def load(name: str) -> object:
        module = home.get(name, f"{package}.{name}")
        if name not in home and (name.startswith("_") or not importlib.util.find_spec(module)):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            found = importlib.import_module(module)
        except _FAILURES:
            _check_torch()
            raise
        return getattr(found, name) if name in home else found

    def list_names() -> list[str]:
        variables = vars(sys.modules[package])
        modules = [info.name for info in pkgutil.iter_modules(variables["__path__"])]
        return [*variables, *home, *modules]

    return load, list_names, sorted(home)


def _check_torch() -> None:
    """Turn a torch and torchvision that do not belong together into one sentence."""
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except _FAILURES as error:
        from importlib import metadata  # here, since it takes longer than all else in this file

        found = {item.name: item.version for item in metadata.distributions()}
        versions = [f"{name} {found.get(name, '(missing)')}" for name in ("torch", "torchvision")]
        raise ImportError(
            f"{' and '.join(versions)} do not work together ({first_line(error)}): reinstall them "
            "as a pair with `pip install --force-reinstall torch torchvision`, then restart Python."
        ) from None
