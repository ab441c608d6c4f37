"""Files: where things lie, writing them whole or not at all, and what processes share.

Nothing here knows what is written. Start with `replacing` and `lock`.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from sobook.errors import SobookError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
_SHIPPED = _CHECKOUT / "data" if _CHECKOUT else _PACKAGE / "_data"  # as the wheel carries it


def shipped(name: str) -> Path:
    """Path of a file that ships with sobook, e.g. ``benchmarks.toml`` or the micro weights."""
    return _SHIPPED / name


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Folder for data sets and runs: the argument, else ``$SOBOOK_DATA``, else ``data/``."""
    chosen = root or os.environ.get("SOBOOK_DATA") or (_CHECKOUT or Path.cwd()) / "data"
    return Path(os.path.expanduser(chosen))  # Path.expanduser fails where there is no home


def read_toml(file: Path) -> dict:
    """Content of a TOML file; `SobookError` where it is not valid."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # from TOML and UTF-8 alike
        raise SobookError(f"{file} is not valid TOML: {first_line(error)}.") from None


@contextlib.contextmanager
def replacing(file: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `file` that replaces it once the block has ended without error.

    The block makes a file or a folder there. The path keeps the suffix of `file`, and the umask
    decides who may read it, whichever library writes it.

    Raises:
        SobookError: it cannot be written, e.g. because the disk is full; `file` is as before.
    """
    file = Path(os.path.realpath(file))  # a link stays a link
    partial = file.with_name(f".{file.stem[:50]}.{os.urandom(4).hex()}.partial{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # fails before the work of the block where nothing can be written
        mode = partial.stat().st_mode
        partial.unlink()
        yield partial
        for path in filter(Path.is_file, [partial, *partial.glob("*")]):
            with path.open("rb") as written:
                os.fchmod(written.fileno(), mode)
                os.fsync(written.fileno())
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SobookError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SobookError(f"{file} could not be written ({reason}).") from None
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Delete a file or a folder, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically; bytes of file names that are not UTF-8 become escapes."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: str | os.PathLike, values: object) -> None:
    """Write JSON atomically."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def lock(file: Path) -> contextlib.AbstractContextManager:
    """Hold a lock file for a block; another process that wants it says so on stderr and waits."""
    import filelock  # here, since it imports asyncio

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(file).acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another process, which holds {file}.", file=sys.stderr)
        return filelock.FileLock(file).acquire()


def available_cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def end_with_parent() -> None:
    """Let this worker end with its parent, even a killed one, whose locks it would hold."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
