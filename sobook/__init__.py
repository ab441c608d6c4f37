"""sobook: deep metric learning with soft orthogonal proxies, as a course and a small package.

The rooms, ground floor first (each imports only from those before it): `losses`, `geometry`,
`retrieval`, `maps`, `datasets`, `images`, `encoder`, `training`, `export`, `study`, `search`,
`figures`, `playground`, `explorer`, `exercises`, `grading`, `cli`.
"""

from importlib import metadata

__version__ = "0.1.0"


def _check_torch() -> None:
    """Turn a torch and torchvision that do not belong together into one sentence."""
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        versions = []
        for package in ("torch", "torchvision"):
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                versions.append(f"{package} (missing)")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ImportError(
            f"{' and '.join(versions)} do not work together ({reason}): reinstall them as a pair "
            "with `pip install --force-reinstall torch torchvision`, then restart Python."
        ) from None


_check_torch()
