"""Files: where things lie, writing them whole or not at all, and what processes share.

Nothing here knows what is written. Start with `replacing` and `lock`.
"""

import atexit
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from sobook.errors import SobookError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
# What ships with sobook: ``data/`` of a checkout, which the wheel carries as ``sobook/_data``.
_SHIPPED = _CHECKOUT / "data" if _CHECKOUT else _PACKAGE / "_data"

_HELD = (errno.EAGAIN, errno.EACCES, errno.ESTALE)  # a lock that another process holds
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)
_ELSEWHERE = "choose a folder with write permission (SOBOOK_DATA names that of data and caches)"
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.EIO: "look after the disk or the connection to it",
}


def shipped(name: str) -> Path:
    """Path of a file that ships with sobook, e.g. ``benchmarks.toml`` or the micro weights."""
    file = _SHIPPED / name
    if not file.exists():
        raise SobookError(f"sobook's own file {name!r} is missing: reinstall sobook.")
    return file


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Folder for data sets and runs: the argument, else ``$SOBOOK_DATA``, else ``data/``."""
    chosen = root or os.environ.get("SOBOOK_DATA") or (_CHECKOUT or Path.cwd()) / "data"
    return Path(os.path.expanduser(chosen))  # Path.expanduser fails where there is no home


def read_toml(file: Path) -> dict:
    """The content of a TOML file; `SobookError` where it is not valid."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML and of UTF-8 alike
        raise SobookError(f"{file} is not valid TOML: {first_line(error)}.") from None


@contextlib.contextmanager
def replacing(file: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `file` that becomes `file` once the block has ended without error.

    The block makes a file or a folder there. Its name keeps the suffix of `file`, the folder around
    it is made where it is missing, and the umask decides who may read it, whoever wrote it. Where
    it cannot be written, e.g. on a full disk, a `SobookError` follows.
    """
    file = Path(os.path.realpath(file)) if os.path.islink(file) else Path(file)
    if file.exists() and not file.is_file() and not file.is_dir():  # /dev/null stays what it is
        yield file
        return
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    partial = file.with_name(f".{file.stem[:50]}.{unique}.partial{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # fails here where nothing can be written, before the work of the block
        mode = partial.stat().st_mode
        partial.unlink()
        yield partial
        for path in partial.iterdir() if partial.is_dir() else [partial]:
            if path.is_file():
                _settle(path, mode)
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SobookError):
            raise
        raise unwritable(file, error) from None
    finally:
        remove(partial)


def _settle(path: Path, mode: int) -> None:
    """Let the umask decide who may read a file, and bring it to the disk before it is renamed.

    Some file systems say only then that they are full, and after a power cut a name may otherwise
    be there without its content.
    """
    with contextlib.suppress(OSError):  # memory cards know no modes
        path.chmod(mode)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, as far as that is possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def sweep(file: Path) -> None:
    """Delete what killed processes left of `file`: under the lock that all its writers hold."""
    for partial in file.parent.glob(f".{glob.escape(file.stem[:50])}.*.partial*"):
        remove(partial)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically.

    Bytes of a file name that are not UTF-8 become an escape, which JSON and JavaScript understand.
    """
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: str | os.PathLike, values: object) -> None:
    """Write JSON atomically."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def sha256(file: IO[bytes]) -> str:
    """Hexadecimal SHA-256 of an opened file, from its beginning."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def unwritable(file: Path, error: Exception) -> SobookError:
    """The error to raise where a file cannot be written."""
    number = getattr(error, "errno", None) or 0
    if hidden := re.search(r"\(os error (\d+)\)", str(error)):  # by safetensors, in its words
        number = int(hidden[1])
    reason = os.strerror(number) if number else first_line(error)
    return SobookError(
        f"{file} could not be written ({reason}): {_REMEDIES.get(number, 'choose another place')}; "
        "what was there before is untouched, and the same command resumes from it."
    )


@contextlib.contextmanager
def lock(file: Path, *, waiting: str = "waiting for another process.") -> Iterator[int]:
    """Hold a lock file; whoever else wants it waits, after printing `waiting` to stderr.

    The lock falls with the process that holds it, however that one ends, and with those that
    inherit the descriptor, which is yielded. On a file system without locks, as some network
    drives are, nothing is locked, and a warning says so.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if (held := _hold(file)) is None:
            holder = file.read_text(encoding="utf-8", errors="replace").strip()
            who = holder or "another process"
            print(
                f"{waiting} {who} holds {file}; if that process is gone, delete the file.",
                file=sys.stderr,
            )
        while held is None:
            time.sleep(0.2)
            held = _hold(file)
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        yield held
    finally:
        os.close(held)


@contextlib.contextmanager
def try_lock(file: Path) -> Iterator[bool]:
    """Hold a lock file where nobody else does; whether that is so."""
    held = _hold(file)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def _hold(file: Path) -> int | None:
    """The descriptor of a lock file that is held now; None where another process holds it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # of another user who shares the folder
        descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(file)):
            with contextlib.suppress(OSError):  # for whoever has to wait
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return descriptor
    except FileNotFoundError:
        pass  # deleted meanwhile
    except OSError as error:
        if error.errno not in _HELD:
            warnings.warn(
                f"{file} cannot be locked ({error.strerror}): let only one process at a time use "
                f"{file.parent}.",
                stacklevel=2,
            )
            return descriptor
    os.close(descriptor)
    return None


def launched() -> tuple[int, int]:
    """Rank of this process, and how many a launcher has started together.

    torchrun, ``accelerate launch`` and its `notebook_launcher` say that it was them. A rank or size
    alone says nothing: schedulers and containers leave them behind for every command.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "FORK_LAUNCHED" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def prepare_libraries() -> None:
    """Settings that libraries read when they are imported.

    On macOS torch and faiss each bring an OpenMP, and the second one loaded would abort. Where the
    home folder is read-only, matplotlib and numba keep their caches elsewhere: the one would print
    warnings, and the other, with which UMAP is compiled, would fail.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    if os.access(os.path.expanduser("~"), os.W_OK) or "NUMBA_CACHE_DIR" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="sobook-"))
    atexit.register(remove, folder)
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")


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
