"""Fetching a file so that it arrives whole, and unpacking it: all of it, or nothing.

A file appears under its own name only when it is complete and verified; until then it is
``NAME.part``, which the next call resumes. What comes out of an archive is collected beside its
place, checked, and renamed last. Start with `install`; nothing here knows what a data set is.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import requests
import urllib3
from tqdm.auto import tqdm

from sobook import files
from sobook.errors import DatasetError, DownloadError, SobookError, first_line

_PIECE = 1 << 14  # bytes that a broken connection may cost
_ENTRY = 512  # bytes that an entry of an archive is taken to cost beside its content
_ROOM = 2.2  # free space needed, in sizes of the archive: photographs hardly compress
_TRIES = 5  # in a row without a new byte
_PAUSE = 2.0  # seconds after the first failure, doubled after each further one
_TIMEOUT = (15.0, 30.0)  # seconds to wait for an answer, and for the next byte
_PASSING = (408, 416, 425, 429, 500, 502, 503, 504)  # answers worth another try
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
_CLASHES = (FileExistsError, NotADirectoryError, IsADirectoryError)  # one name, file and folder


def fetch(
    url: str,
    dest: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a file, verify it, and resume what an earlier call left of it.

    Args:
        url: its address.
        dest: the file to make; when it exists already it is only verified.
        size: its bytes, if published.
        sha256: its checksum, if published.
        progress: show a bar.

    Raises:
        DownloadError: with what the server answered, or for want of room on the disk, which must
            hold the file and what comes out of it.
    """
    dest = Path(dest)
    if dest.exists():
        if wrong := _mismatch(dest, size, sha256):
            raise DownloadError(f"{dest} is not the published file ({wrong}): delete it.")
        return dest
    part = dest.with_name(f"{dest.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    failures, most = 0, part.stat().st_size
    begun = most
    while not most or most != size:
        try:
            _continue(part, url, size, progress)
            break
        except requests.RequestException as error:
            failures = 1 if part.stat().st_size > most else failures + 1
            most = max(most, part.stat().st_size)
            tries = 1 if most == begun and _is_unreachable(error) else _TRIES
            if failures == tries or not _is_passing(error):
                reason = _reason(error, failures)
                raise DownloadError(f"{url} could not be fetched: {reason}.") from None
            time.sleep(_PAUSE * 2 ** (failures - 1))
    if wrong := _mismatch(part, size, sha256):
        part.unlink()
        raise DownloadError(f"{url} sent another file than the published one ({wrong}): try again.")
    return part.replace(dest)


def _continue(part: Path, url: str, size: int | None, progress: bool) -> None:
    """One request: the part is continued where the server does so, else it starts again."""
    have = part.stat().st_size
    headers = {"Accept-Encoding": "identity", "User-Agent": "sobook (course material)"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:  # the part is of another file
            part.write_bytes(b"")
        response.raise_for_status()
        if "html" in response.headers.get("Content-Type", "").lower():
            raise DownloadError(f"{url} served a web page instead of the file.")
        start = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        if size is not None and total != size:
            raise DownloadError(f"{url} has {total:,} bytes, not the {size:,} published.")
        _check_disk(part.parent, (total or 0) * _ROOM - start, part.stem)
        bar = _bar(part.stem, progress, total=total, initial=start, unit="B")
        with bar, part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(_PIECE):
                bar.update(file.write(chunk))


def _is_unreachable(error: requests.RequestException) -> bool:
    """No connection was made at all: a machine without network, a wrong proxy, a wrong name."""
    return bool(error.args) and isinstance(error.args[0], urllib3.exceptions.MaxRetryError)


def _is_passing(error: requests.RequestException) -> bool:
    if error.response is None:
        return not isinstance(error, ValueError)  # of a wrong address, also of the proxy
    return error.response.status_code in _PASSING


def _reason(error: requests.RequestException, failures: int) -> str:
    if error.response is None:
        often = f" {failures} times in a row" if failures > 1 else ""
        return f"{type(error).__name__}{often} (is this machine online? is its proxy right?)"
    return f"it answered {error.response.status_code} {error.response.reason}"


def _mismatch(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What tells a file from the published one, or None."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found:,} bytes, not {size:,}"
    if sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        checksum = digest.hexdigest()
        if checksum != sha256:
            return f"sha256 {checksum}, not {sha256}"
    return None


def _check_disk(folder: Path, need: float, what: str) -> None:
    """Refuse to start what cannot be finished: `need` is in bytes."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DownloadError(
            f"{what} needs {need / 1e9:.1f} GB in {folder}, but only {free / 1e9:.1f} GB are free: "
            "make room, or choose another place (--root or SOBOOK_DATA)."
        )


def _bar(name: str, progress: bool, **options) -> tqdm:
    hidden = None if progress else True  # None: hidden where the output is no terminal
    return tqdm(desc=name, unit_scale=True, disable=hidden, leave=False, **options)


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

    Raises:
        DownloadError: an archive cannot be fetched; the message says how to get it by hand.
        DatasetError: a damaged, hostile or wrong archive; nothing of it is left.
        SobookError: the disk is full, or cannot be written.
    """
    home, stage = root / card["folder"], root / f".{name}.unpacking"
    with files.lock(root / f".{name}.lock"):
        shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
        if home.exists():
            check(home)
            return home
        try:
            archives = [_obtain(name, each, card, root, progress) for each in card["archives"]]
            for path, archive in zip(archives, card["archives"], strict=True):
                folder = stage / archive.get("place", "")
                folder.mkdir(parents=True)
                if "limit" in archive:
                    unpack(path, folder, limit=archive["limit"], progress=progress)
                else:  # a plain file
                    shutil.copy(path, folder)
            inner = stage / card["archives"][0]["unpacks_to"]
            if not inner.is_dir():
                raise DatasetError(f"{archives[0]} holds no folder {inner.name}: a wrong archive?")
            check(inner)
            os.replace(inner, home)
        except OSError as error:
            if isinstance(error, SobookError):
                raise
            raise DatasetError(f"{home} could not be written ({error.strerror}).") from None
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    if progress:
        print(f"{home} is ready; the archives stay in {root / 'downloads'} until you delete them.")
    return home


def _obtain(name: str, archive: Mapping, card: Mapping, root: Path, progress: bool) -> Path:
    """The archive as found in ``root/downloads``, else fetched; else say how to get it by hand."""
    path = root / "downloads" / archive["file"]
    steps = card["by_hand"].format(downloads=path.parent, home=root / card["folder"])
    if not path.exists() and "url" not in archive:
        raise DownloadError(f"{name} has to be fetched by hand ({path} is missing). {steps}")
    published = {key: archive.get(key) for key in ("size", "sha256")}
    try:
        return fetch(archive.get("url", ""), path, **published, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error} To get it by hand: {steps}") from None


def unpack(archive: Path, folder: Path, *, limit: int, progress: bool = True) -> None:
    """Unpack a zip or tar file into `folder`: plain files only, and at most `limit` bytes of them.

    Raises:
        DatasetError: for a damaged or hostile archive.
    """
    _check_disk(folder, archive.stat().st_size, archive.name)
    folder, left = folder.resolve(), limit
    members = _members(archive)
    try:
        for name, size, content in _bar(archive.name, progress, iterable=members, unit=" files"):
            left -= size + _ENTRY
            if left < 0:
                raise _unsafe(archive, f"it unpacks to over {limit / 1e9:.1f} GB")
            target = Path(os.path.abspath(folder / name))
            if not target.is_relative_to(folder):
                raise _unsafe(archive, f"{name!r} would land outside its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
    except (*_DAMAGED, RuntimeError, *_CLASHES) as error:
        raise DatasetError(
            f"{archive} is damaged or not the file to use ({first_line(error)}): delete it, fetch "
            "it again."
        ) from None


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every file; links and devices are refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _unsafe(archive, f"{info.filename!r} is a link or a device")
                if not info.is_dir():
                    yield info.filename, info.file_size, zipped.open(info)
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            if not (member.isfile() or member.isdir()):
                raise _unsafe(archive, f"{member.name!r} is a link or a device")
            if content := tarred.extractfile(member):  # None for folders
                yield member.name, member.size, content


def _unsafe(archive: Path, why: str) -> DatasetError:
    return DatasetError(f"{archive} is not safe to unpack: {why}.")
