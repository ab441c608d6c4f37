"""From the archives of a benchmark to its folder as published: all of it, or nothing.

What comes out of an archive is collected beside its place, checked, and renamed into it last. So
a run that is killed leaves no half folder behind that a later one would trust.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from filelock import FileLock
from tqdm.auto import tqdm

from sobook.data import fetch

_CHUNK = 1 << 20
_ENTRY = 512  # bytes that an entry is taken to cost beside its content
_ROOM = 2.2  # archive and content: photographs hardly compress
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError,
    NotImplementedError,
)  # fmt: skip


class ArchiveError(ValueError):
    """An archive that is damaged, hostile, or has to be fetched by hand; nothing is left of it."""


def install(
    name: str, card: Mapping, root: Path, check: Callable[[Path], object], progress: bool = True
) -> Path:
    """Fetch, unpack and `check` a benchmark, then rename it into ``root/<its folder>``.

    Args:
        name: of the benchmark.
        card: its entry in the manifest.
        root: the folder that will hold the benchmark's own.
        check: called with a complete folder; raises where it is not what it should be.
        progress: show bars.
    """
    home, stage = root / card["folder"], root / f".{name}.unpacking"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
        if home.exists():
            check(home)
            return home
        archives = [_obtain(name, archive, card, root, progress) for archive in card["archives"]]
        try:
            for path, archive in zip(archives, card["archives"], strict=True):
                _place(path, archive, stage, progress)
            inner = stage / card["archives"][0]["unpacks_to"]
            if not inner.is_dir():
                raise ArchiveError(f"{archives[0]} holds no folder {inner.name}: a wrong archive?")
            check(inner)
            os.replace(inner, home)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    if progress:
        print(f"{home} is ready; the archives stay in {root / 'downloads'} until you delete them.")
    return home


def _obtain(name: str, archive: Mapping, card: Mapping, root: Path, progress: bool) -> Path:
    """The archive as found in ``root/downloads``, else fetched; else say how to get it by hand."""
    path = root / "downloads" / archive["file"]
    known = {key: archive.get(key) for key in ("size", "md5", "sha256")}
    steps = card["by_hand"].format(downloads=path.parent, home=root / card["folder"])
    if not path.exists() and not archive["urls"]:
        raise ArchiveError(f"{name} has to be fetched by hand ({path} is missing). {steps}")
    try:
        return fetch.fetch(archive["urls"], path, **known, room=_ROOM, progress=progress)
    except fetch.Unavailable as error:
        raise fetch.Unavailable(f"{error} To get it by hand: {steps}") from None


def _place(path: Path, archive: Mapping, stage: Path, progress: bool) -> None:
    folder = stage / archive.get("place", "")
    if "limit" in archive:
        unpack(path, folder, limit=archive["limit"], progress=progress)
    else:  # a plain file
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)


def unpack(archive: str | Path, folder: str | Path, *, limit: int, progress: bool = True) -> Path:
    """Unpack a zip or tar file into `folder`, which must not exist yet; whole or not at all.

    Only plain files and folders are made, with this user's usual permissions, inside `folder`, and
    at most `limit` bytes of them.

    Raises:
        ArchiveError: for a damaged or hostile archive; nothing of it is left then.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True)
    try:
        fetch.check_disk(folder, archive.stat().st_size, archive.name)
        _unpack_all(archive, folder, limit, progress)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _DAMAGED):
            raise ArchiveError(
                f"{archive} is damaged ({error}): delete it, fetch it again."
            ) from None
        raise
    return folder


def _unpack_all(archive: Path, folder: Path, limit: int, progress: bool) -> None:
    left = limit
    bar = tqdm(
        _members(archive, folder), desc=f"unpacking {archive.name}", unit=" files",
        disable=None if progress else True, leave=False,
    )  # fmt: skip
    for name, source in bar:
        try:
            left -= _ENTRY + _write(folder.joinpath(*_safe_parts(name, archive)), source, left)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise ArchiveError(f"{archive} is not safe: {name!r} is in it twice.") from None
        if left < 0:
            raise ArchiveError(f"{archive} is not safe: it unpacks to over {limit / 1e9:.1f} GB.")


def _write(target: Path, source: BinaryIO | None, limit: int) -> int:
    """Write a file (or make a folder) and return its bytes; stops just beyond the limit."""
    if source is None:
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source, target.open("xb") as file:
        while written <= limit and (chunk := source.read(_CHUNK)):
            written += file.write(chunk)
    return written


def _members(archive: Path, folder: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    """Name and open file (None for a folder) of each entry, in the archive's order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _link(archive, info.filename)
                if info.flag_bits & 1:
                    raise ArchiveError(f"{archive} asks for a password: it is not the file to use.")
                yield info.filename, None if info.is_dir() else opened.open(info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            for member in opened:
                if not (member.isfile() or member.isdir()):
                    raise _link(archive, member.name)
                _python_agrees(member, folder, archive)
                yield member.name, None if member.isdir() else opened.extractfile(member)
    else:
        raise ArchiveError(f"{archive} is neither a zip nor a tar file: delete it, fetch it again.")


def _link(archive: Path, name: str) -> ArchiveError:
    return ArchiveError(f"{archive} is not safe: {name!r} is a link or a device.")


def _python_agrees(member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    """The standard library's own judgment beside ours, where this Python has it."""
    if hasattr(tarfile, "data_filter"):
        try:
            tarfile.data_filter(member, str(folder))
        except tarfile.FilterError as error:
            raise ArchiveError(f"{archive} is not safe: {error}.") from None


def _safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """The parts of a relative path that stays inside, on any operating system."""
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    outside = windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts
    if outside or "\0" in name:
        raise ArchiveError(f"{archive} is not safe: {name!r} would land outside its folder.")
    return posix.parts
