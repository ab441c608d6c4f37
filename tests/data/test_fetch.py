"""Fetching against a local server with faults, and unpacking hostile archives."""

import hashlib
import http.server
import io
import random
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from sobook.data import benchmarks, fetch, image_sets
from sobook.errors import DatasetError, DownloadError

BODY = random.Random(0).randbytes(300_000)
KNOWN = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}

# What the server answers to the first request, the second, ...; the last answer is for all others.
ANSWERS: dict[str, list[dict]] = {
    "good": [{}],
    "drops-midway": [{"upto": 100_000}],
    "ignores-range": [{"upto": 100_000}, {"ranges": False}],
    "busy": [{"code": 429}, {"code": 503}, {}],
    "stalls-once": [{"upto": 1000, "stall": True}, {}],
    "unsized": [{"sized": False}],
    "missing": [{"code": 404}],
    "overloaded": [{"code": 503}],
    "page": [{"body": b"<html></html>", "kind": "text/html; charset=utf-8"}],
    "loop": [{"code": 302}],
    "shorter": [{"body": BODY[:200_000]}],
    "wrong-bytes": [{"body": bytes(len(BODY))}],
}


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; the path names the fault. Requests are logged in `server.log`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        fault = self.path.partition("?")[0].strip("/")
        start = int(self.headers["Range"][6:-1])
        self.server.log.append((fault, start))
        count = sum(logged == fault for logged, _ in self.server.log)
        self.close_connection = True
        self.serve(start, **{"body": self.server.body, **ANSWERS[fault][:count][-1]})

    def serve(self, start, body, code=None, upto=None, ranges=True, kind="image/x", **more):
        start = start if ranges else 0
        if start >= len(body):
            code = 416
        rest = b"" if code else body[start:]
        self.send_response(code or (206 if start else 200))
        self.send_header("Content-Type", kind)
        self.send_header("Location", "/loop?token=secret")
        if more.get("sized", True):
            self.send_header("Content-Length", str(len(rest)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(rest[:upto])
        if "stall" in more:
            self.server.over.wait(5)


@pytest.fixture
def server():
    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # clients that hang up are part of the tests

    server = Server(("127.0.0.1", 0), Faulty)
    server.log, server.over, server.body = [], threading.Event(), BODY
    server.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "_PAUSES", (0.01, 0.01, 0.01, 0))


@pytest.fixture
def part(tmp_path) -> Path:
    """Where a part of the file would lie."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "file.bin.part"


@pytest.fixture
def download(server, part, monkeypatch):
    """Fetch with a fault, check the file, and return the bytes that requests began at."""

    def download(fault, **known):
        if "stall" in fault:  # only there, or a busy machine would seem to stall
            monkeypatch.setattr(fetch, "_TIMEOUT", 0.4)
        dest = part.with_suffix("")
        url = f"{server.url}{fault}?token=secret"
        fetch.fetch({"url": url, **KNOWN, **known}, dest, progress=False)
        assert dest.read_bytes() == BODY
        assert sorted(dest.parent.iterdir()) == [dest]  # no part is left
        return [start for _, start in server.log]

    return download


def test_plain_download_then_nothing_to_do(download):
    assert download("good") == [0]
    assert download("good") == [0]


def test_resumes_what_broke_off(download, part):
    assert download("drops-midway") == [0, 100_000, 200_000]
    part.with_suffix("").unlink()
    part.write_bytes(BODY[:123_456])
    assert download("good")[-1] == 123_456


def test_a_part_of_another_file_is_thrown_away(download, part):
    part.write_bytes(BODY + b"more")
    assert download("good") == [300_004, 0]


@pytest.mark.parametrize("fault", ["ignores-range", "stalls-once", "busy"])
def test_passing_faults_are_retried(download, fault):
    assert len(download(fault)) == len(ANSWERS[fault])


def test_server_that_names_no_length(download):
    assert download("unsized", size=len(BODY)) == [0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "127.0.0.1 .HTTP 404"),
        ("overloaded", "HTTP 503"),
        ("page", "not the published file"),
        ("loop", "HTTP 302"),
        ("shorter", "not the published file"),
        ("wrong-bytes", "not the published file"),
    ],
)
def test_failure_says_why_and_keeps_secrets(download, fault, words, part):
    with pytest.raises(DownloadError, match=words) as caught:
        download(fault)
    assert "secret" not in str(caught.value)
    part.with_suffix("").unlink(missing_ok=True)
    download("good")


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
def test_unreachable_hosts_are_named_without_passwords(host, part):
    with pytest.raises(DownloadError, match="could not be fetched from") as caught:
        fetch.fetch({"url": f"http://me:secret@{host}/x.tgz?key=secret"}, part, progress=False)
    assert "secret" not in str(caught.value)


def test_foreign_file_in_its_place_is_left_alone(download, part):
    part.with_suffix("").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="not the published file"):
        download("good")
    assert part.with_suffix("").read_bytes() == b"mine"


# --- from archive to folder ----------------------------------------------------------------------


def make_zip(path, entries, mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(info, content)


def make_tar(path, entries, kind=tarfile.REGTYPE, target=""):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content)
            archive.addfile(info, io.BytesIO(content))


def card(archive: Path, **more):
    entry = {"file": archive.name, "unpacks_to": "Top", **more}
    return {"folder": "Top", "by_hand": "Put it into {downloads}.", "archives": [entry]}


@pytest.fixture
def archive(tmp_path) -> Path:
    """Where an archive is put by hand."""
    (tmp_path / "root" / "downloads").mkdir(parents=True)
    return tmp_path / "root" / "downloads" / "x.archive"


@pytest.fixture
def install(archive):
    def install(check=lambda _: None, **more):
        root = archive.parent.parent
        return fetch.install("top", card(archive, **more), root, check, progress=False)

    return install


GOOD = [("Top/a.txt", b"a" * 1000), ("Top/deep/b.txt", b"b"), ("Top/c.txt", b"")]


def left_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpacks_what_was_put_there_by_hand(archive, install, make):
    with pytest.raises(DownloadError, match="x.archive is missing.*Put it into"):
        install()
    make(archive, GOOD)
    home = install()
    assert {(str(p.relative_to(home.parent)), p.read_bytes()) for p in home.rglob("*.*")} == {*GOOD}
    assert install() == home and left_in(home.parent) == {"downloads", "Top"}


EVIL = {
    "parent in tar": lambda p: make_tar(p, [*GOOD, ("Top/../../evil", b"x")]),
    "symlink": lambda p: make_tar(p, [("link", b"")], tarfile.SYMTYPE, "../.."),
    "hard link": lambda p: make_tar(p, [("link", b"")], tarfile.LNKTYPE, "../secret"),
    "device": lambda p: make_tar(p, [("null", b"")], tarfile.CHRTYPE),
    "not an archive": lambda p: p.write_bytes(b"<html>"),
    "cut off": lambda p: damage(make_tar, p, lambda data: data[:150_000]),
    "cut off zip": lambda p: damage(make_zip, p, lambda data: data[:150_000]),
    "flipped bits": lambda p: damage(make_zip, p, lambda data: data.replace(BODY[:50], bytes(50))),
}


def damage(make, path, change):
    make(path, [("Top/noise", BODY)])
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_or_damaged_archives_are_refused(archive, install, evil):
    EVIL[evil](archive)
    with pytest.raises(DatasetError, match="damaged"):
        install()
    assert left_in(archive.parent.parent) == {"downloads"}
    assert left_in(archive.parent.parent.parent) == {"root"}


def test_nothing_of_a_zip_lands_outside(archive, install):
    link = stat.S_IFLNK | 0o777
    make_zip(archive, [*GOOD, ("../evil", b"x"), ("/evil", b"x"), ("Top/link", b"../..")], link)
    home = install()
    assert left_in(archive.parent.parent.parent) == {"root"}
    assert not (home / "link").is_symlink()


def test_nothing_of_a_wrong_archive_is_left(archive, install):
    def refuse(home):
        raise DatasetError("too few")

    make_tar(archive, GOOD)
    with pytest.raises(DatasetError, match="too few"):
        install(refuse)
    assert left_in(archive.parent.parent) == {"downloads"}


def test_prepare_finishes_what_a_killed_one_left(server, tmp_path, monkeypatch):
    """A part, and a folder half unpacked."""
    name, entries = "Stanford_Online_Products", []
    for number, split in enumerate(("train", "test")):
        lines = ["image_id class_id super_class_id path"]
        for i in range(20):
            path = f"chair_final/{number}{i // 2}_{i % 2}.JPG"
            lines.append(f"{i + 1 + 20 * number} {i // 2 + 1 + 10 * number} 1 {path}")
            entries.append((f"{name}/{path}", bytes(100)))
        entries.append((f"{name}/Ebay_{split}.txt", "\r\n".join(lines).encode()))
    make_tar(tmp_path / "x.tgz", entries)
    server.body = (tmp_path / "x.tgz").read_bytes()
    about = card(tmp_path / "x.tgz", unpacks_to=name, url=server.url + "good")
    counts = {"images": 20, "classes": 10}
    about |= {"folder": name, "splits": {"train": counts, "test": counts}}
    monkeypatch.setattr(benchmarks, "cards", lambda: {"sop": about})
    root = tmp_path / "root"
    (root / "downloads").mkdir(parents=True)
    (root / "downloads" / "x.tgz.part").write_bytes(server.body[: len(server.body) // 2])
    half = root / ".sop.unpacking" / name
    half.mkdir(parents=True)
    (half / "Ebay_train.txt").write_bytes(b"half a li")
    home = image_sets.prepare("sop", root, progress=False)
    assert left_in(root) == {home.name, "downloads"}
    assert {str(p.relative_to(root)): p.read_bytes() for p in home.rglob("*.*")} == dict(entries)
