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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from sobook import files
from sobook.errors import DatasetError, DownloadError, first_line

_PIECE = 1 << 14  # bytes that a broken connection may cost
_ENTRY = 512  # bytes that an entry of an archive is taken to cost beside its content
_ROOM = 2.2  # free space needed, in sizes of the archive: photographs hardly compress
_TRIES = 5  # in a row without a new byte, at each address
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 120.0  # seconds; doubled after each failure
_CONNECT, _STALL = 15.0, 30.0  # seconds to wait for an answer, and for the next byte
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # worth another try at the same address
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
_HTML = (b"<!doctype", b"<html")
_WEB_PAGE = (
    "served a web page instead of the file: it wants a login or a confirmation, so download it in "
    "a browser"
)


class _NextMirror(Exception):
    """This address will not do, however often it is asked."""


class _Retry(Retry):
    """Waits as long as a server asks, but never longer than `backoff_max`."""

    def increment(self, method=None, url=None, response=None, *args, **kwargs):
        if response is not None and (self.get_retry_after(response) or 0) > self.backoff_max:
            raise MaxRetryError(None, url or "")
        return super().increment(method, url, response, *args, **kwargs)


def fetch(
    urls: Sequence[str],
    dest: str | Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Download `dest` from the first of `urls` that delivers it whole; resumes what is there.

    Args:
        urls: addresses of the same file, in the order to try.
        dest: the file to make; when it exists already it is only verified.
        size: its bytes, if published.
        md5: its checksum, if published; likewise `sha256`.
        progress: show a bar.

    Raises:
        DownloadError: with what each address answered, or for want of room on the disk, which
            must hold the file and what comes out of it.
    """
    dest = Path(dest)
    download = _Download(dest, size, {"md5": md5, "sha256": sha256}, progress)
    if dest.exists():
        if wrong := download.mismatch(dest):
            raise DownloadError(
                f"{dest} is not the published file ({wrong}): delete it, try again."
            )
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    download.check_disk(size)
    answers = []
    for url in urls:
        try:
            download.fill_part(url)
            download.part.replace(dest)
            return dest
        except _NextMirror as reason:
            answers.append(f"{url} {reason}")
    raise DownloadError(f"{dest.name} could not be fetched: {'; '.join(answers)}.")


@dataclass(frozen=True)
class _Download:
    """A file to fetch: what is known of it, and how to ask for it."""

    dest: Path
    size: int | None
    sums: Mapping[str, str | None]
    progress: bool

    @property
    def part(self) -> Path:
        return self.dest.with_name(self.dest.name + ".part")

    @property
    def have(self) -> int:
        """Bytes of the part."""
        return self.part.stat().st_size if self.part.exists() else 0

    def mismatch(self, path: Path) -> str | None:
        """What tells a file from the published one, or None."""
        if self.size not in (None, path.stat().st_size):
            return f"it has {path.stat().st_size:,} bytes, not {self.size:,}"
        for kind, published in self.sums.items():
            if published and (found := _checksum(path, kind)) != published.lower():
                return f"its {kind} is {found}, not {published.lower()}"
        return None

    def check_disk(self, size: int | None) -> None:
        if size is not None:
            _check_disk(self.dest.parent, size * _ROOM - self.have, self.dest.name)

    def fill_part(self, url: str) -> None:
        """Fill and verify the part from one address; failures count while nothing new arrives."""
        failures, most = 0, self.have
        version: dict[str, str] = {}  # If-Range: a part is continued only with the file it is of
        with self._session() as session:
            while True:
                before = self.have
                try:
                    if before == 0 or before != self.size:
                        self._request(session, url, version)
                    if not (wrong := self.mismatch(self.part)):
                        return
                    self.part.unlink()
                    reason = f"sent another file than the published one ({wrong})"
                    if before == 0:  # otherwise what was there before may be to blame
                        raise _NextMirror(reason)
                except requests.RequestException as error:
                    reason = _in_words(error)
                failures = 1 if self.have > most else failures + 1
                most = max(most, self.have)
                if failures >= _TRIES:
                    raise _NextMirror(reason)
                time.sleep(min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.max_redirects = 10
        retries = _Retry(
            total=_TRIES - 1,
            status_forcelist=_PASSING,
            backoff_factor=_FIRST_PAUSE,
            backoff_max=_LONGEST_PAUSE,
            raise_on_status=False,  # the last answer is judged like any other
        )
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        return session

    def _request(self, session: requests.Session, url: str, version: dict[str, str]) -> None:
        """One request: the part is continued where the server does so, else it starts again."""
        have = self.have
        headers = {"Accept-Encoding": "identity", "User-Agent": "sobook (course material)"}
        if have:
            headers |= {"Range": f"bytes={have}-", **version}
        try:
            response = session.get(url, headers=headers, stream=True, timeout=(_CONNECT, _STALL))
        except requests.RequestException as error:  # after all retries
            raise _NextMirror(_in_words(error)) from None
        with response:
            start, total = self._accept(response, have)
            if start == 0:
                etag = response.headers.get("ETag", "W/")  # a weak one does not vouch for bytes
                version.clear()
                version |= {} if etag.startswith("W/") else {"If-Range": etag}
            bar = _bar(self.dest.name, self.progress, total=total, initial=start, unit="B")
            with bar, self.part.open("ab" if start else "wb") as file:
                for chunk in response.iter_content(_PIECE):
                    if file.tell() == 0 and chunk.lstrip()[:9].lower().startswith(_HTML):
                        raise _NextMirror(_WEB_PAGE)
                    bar.update(file.write(chunk))

    def _accept(self, response: requests.Response, have: int) -> tuple[int, int | None]:
        """Accept or refuse an answer; return where its bytes start and how long the file is."""
        code, headers = response.status_code, response.headers
        continued = headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if code == 416 or (code == 206 and not continued):
            self.part.unlink(missing_ok=True)
            raise requests.RequestException("the part fetched before is of another file")
        if code not in (200, 206):
            login = ": it wants a login or an agreement" if code in (401, 402, 403, 451) else ""
            raise _NextMirror(f"answered {code} {response.reason}{login}")
        if "html" in headers.get("Content-Type", "").lower():
            raise _NextMirror(_WEB_PAGE)
        start, length = have if code == 206 else 0, headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        if None not in (total, self.size) and total != self.size:
            raise _NextMirror(f"has {total:,} bytes, not the {self.size:,} published")
        self.check_disk(total)
        return start, total


def _in_words(error: requests.RequestException) -> str:
    if "ConnectTimeout" in str(error):
        return f"did not answer within {_CONNECT:g} s"
    if "timed out" in str(error):
        return f"sent nothing for {_STALL:g} s"
    if isinstance(error, requests.ConnectionError):
        return f"could not be reached ({type(error).__name__}: is this machine online?)"
    return f"failed ({first_line(error)})"


def _bar(name: str, progress: bool, **options) -> tqdm:
    hidden = None if progress else True  # None: hidden where the output is no terminal
    return tqdm(desc=name, unit_scale=True, disable=hidden, leave=False, **options)


def _checksum(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_disk(folder: Path, need: float, what: str) -> None:
    """Refuse to start what cannot be finished: `need` is in bytes."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DownloadError(
            f"{what} needs {need / 1e9:.1f} GB in {folder}, but only {free / 1e9:.1f} GB are free: "
            "make room, or choose another place (--root or SOBOOK_DATA)."
        )


# --- archives -------------------------------------------------------------------------------------


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
    """
    home, stage = root / card["folder"], root / f".{name}.unpacking"
    root.mkdir(parents=True, exist_ok=True)
    with files.lock(root / f".{name}.lock"):
        shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
        if home.exists():
            check(home)
            return home
        archives = [_obtain(name, archive, card, root, progress) for archive in card["archives"]]
        try:
            for path, archive in zip(archives, card["archives"], strict=True):
                folder = stage / archive.get("place", "")
                if "limit" in archive:
                    unpack(path, folder, limit=archive["limit"], progress=progress)
                else:  # a plain file
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, folder / path.name)
            inner = stage / card["archives"][0]["unpacks_to"]
            if not inner.is_dir():
                raise DatasetError(f"{archives[0]} holds no folder {inner.name}: a wrong archive?")
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
    steps = card["by_hand"].format(downloads=path.parent, home=root / card["folder"])
    if not path.exists() and not archive["urls"]:
        raise DownloadError(f"{name} has to be fetched by hand ({path} is missing). {steps}")
    published = {key: archive.get(key) for key in ("size", "md5", "sha256")}
    try:
        return fetch(archive["urls"], path, **published, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error} To get it by hand: {steps}") from None


def unpack(archive: str | Path, folder: str | Path, *, limit: int, progress: bool = True) -> Path:
    """Unpack a zip or tar file into `folder`, which must not exist yet; whole or not at all.

    Only plain files and folders are made, inside `folder`, and at most `limit` bytes of them.

    Raises:
        DatasetError: for a damaged or hostile archive; nothing of it is left then.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True)
    try:
        _check_disk(folder, archive.stat().st_size, archive.name)
        _extract(archive, folder, limit, progress)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (tarfile.FilterError, FileExistsError, NotADirectoryError)):
            raise _unsafe(archive, first_line(error)) from None
        if isinstance(error, (*_DAMAGED, RuntimeError)):  # RuntimeError: it asks for a password
            raise DatasetError(
                f"{archive} is damaged or not the file to use ({first_line(error)}): delete it, "
                "fetch it again."
            ) from None
        raise
    return folder


def _extract(archive: Path, folder: Path, limit: int, progress: bool) -> None:
    sizes = _unzip(archive, folder) if zipfile.is_zipfile(archive) else _untar(archive, folder)
    left = limit
    for size in _bar(f"unpacking {archive.name}", progress, iterable=sizes, unit=" files"):
        left -= size + _ENTRY
        if left < 0:
            raise _unsafe(archive, f"it unpacks to over {limit / 1e9:.1f} GB")


def _unzip(archive: Path, folder: Path) -> Iterator[int]:
    """Unpack a zip file; yields the bytes of each entry before it is written."""
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, f"{entry.filename!r} is a link or a device")
            yield entry.file_size
            # zipfile keeps everything inside the folder, by changing names if need be
            if Path(opened.extract(entry, folder)) != folder / entry.filename:
                raise _unsafe(archive, f"{entry.filename!r} would land outside its folder")


def _untar(archive: Path, folder: Path) -> Iterator[int]:
    """Unpack a tar file; yields the bytes of each entry before it is written."""
    with tarfile.open(archive) as opened:
        for entry in opened:
            if not (entry.isfile() or entry.isdir()):
                raise _unsafe(archive, f"{entry.name!r} is a link or a device")
            if tarfile.data_filter(entry, str(folder)).name != entry.name:
                raise _unsafe(archive, f"{entry.name!r} would land outside its folder")
            yield entry.size
            opened.extract(entry, folder, filter="data")


def _unsafe(archive: Path, why: str) -> DatasetError:
    return DatasetError(f"{archive} is not safe to unpack: {why}.")
