"""Files: where things lie, writing them whole or not at all, and locks between processes."""

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sobook.errors import SobookError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
# What ships with sobook: ``data/`` of a checkout, which the wheel carries as ``sobook/_data``.
_SHIPPED = _CHECKOUT / "data" if _CHECKOUT else _PACKAGE / "_data"


def shipped(name: str) -> Path:
    """Path of a file that ships with sobook, e.g. ``benchmarks.toml`` or the micro weights."""
    file = _SHIPPED / name
    if not file.exists():
        raise SobookError(f"sobook's own file {name!r} is missing: reinstall sobook.")
    return file


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Folder for data sets and runs: the argument, else ``$SOBOOK_DATA``, else ``data/``."""
    chosen = root or os.environ.get("SOBOOK_DATA") or (_CHECKOUT or Path.cwd()) / "data"
    return Path(chosen).expanduser()


def read_toml(file: Path) -> dict:
    """The content of a TOML file; `SobookError` where it is not valid."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML and of UTF-8 alike
        raise SobookError(f"{file} is not valid TOML: {first_line(error)}.") from None


@contextlib.contextmanager
def replacing(file: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `file` that becomes `file` once the block has ended without error.

    The temporary name keeps the suffix of `file`, and its folder is made where it is missing.
    Where it cannot be written, e.g. on a full disk, a `SobookError` follows.
    """
    file = Path(file)
    partial = file.with_name(f".{file.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, file)
    except OSError as error:
        raise unwritable(file, error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: str | os.PathLike, values: object) -> None:
    """Write JSON atomically."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def unwritable(file: Path, error: Exception) -> SobookError:
    """The error to raise where a file cannot be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return SobookError(
        f"{file} could not be written ({reason}): make room or give the folder write permission; "
        "what was there before is untouched, and the same command resumes from it."
    )


@contextlib.contextmanager
def lock(file: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold a lock file; whoever else wants it waits, after printing `waiting` to stderr.

    The lock falls with the process that holds it, however that one ends.
    """
    held = FileLock(file)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(waiting, file=sys.stderr)
        held.acquire()
    except NotImplementedError:
        pass  # a file system without locks
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        yield
    finally:
        held.release()


def available_cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """Let this worker end with the process that started it, even if that is killed.

    Workers left behind would hold its locks, and wait for work for ever.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
