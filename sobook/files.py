"""Where things lie: files shipped with the package, the data folder, and near matches for typos."""

import difflib
import multiprocessing
import os
import threading
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def path(name: str) -> Path:
    """Path of a file that ships with sobook, e.g. ``benchmarks.toml`` or the micro weights.

    Installed, such files lie in ``sobook/_data``; in a checkout they lie in ``data/``.

    Raises:
        FileNotFoundError: neither place holds the file.
    """
    for candidate in (_PACKAGE / "_data" / name, _CHECKOUT / "data" / name):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"sobook's own file {name!r} is missing: reinstall sobook.")


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Folder for data sets and runs: the argument, else ``$SOBOOK_DATA``, else ``data/``."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("SOBOOK_DATA"):
        return Path(os.environ["SOBOOK_DATA"]).expanduser()
    in_checkout = (_CHECKOUT / "pyproject.toml").exists()
    return (_CHECKOUT if in_checkout else Path.cwd()) / "data"


def end_with_parent() -> None:
    """Let this worker process end when the process that started it does, even if that is killed.

    Workers left behind would hold its locks, and wait for work for ever.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def suggest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for a near miss, an empty string otherwise.

    >>> suggest("cub2000", ["cub200", "sop"])
    " Did you mean 'cub200'?"
    >>> suggest("zebra", ["cub200", "sop"])
    ''
    """
    near = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
