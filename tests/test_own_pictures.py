"""Your own pictures: a folder as people have them goes through the whole command line."""

import io
import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

from sobook.cli import main
from sobook.data import image_sets

CLASSES = 12


def mixed_folder(root, rng) -> dict[str, str]:
    """300 files in 12 classes, 40 of them broken or odd; returns those to be left out, with why."""
    left_out = {}
    for number in range(300):
        folder = root / f"class_{number % CLASSES:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        shade = rng.integers(0, 200, 3)
        array = (rng.integers(0, 55, (72, 60 + number % 30, 3)) + shade).astype(np.uint8)
        image = Image.fromarray(array)
        if number < 260:
            image.save(folder / f"{number:03d}.{('jpg', 'png', 'webp', 'bmp')[number % 4]}")
            continue
        suffix, content, reason = odd_files(image)[number % 10]
        (folder / f"{number:03d}{suffix}").write_bytes(content)
        if reason:
            left_out[f"{number:03d}{suffix}"] = reason
    return left_out


def odd_files(image: Image.Image) -> list[tuple[str, bytes, str | None]]:
    """Suffix and content of five files that can be read all the same, five that cannot, and why."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    png = encoded(image, "PNG")
    return [
        (".jpg", encoded(image.convert("CMYK"), "JPEG"), None),
        (".png", encoded(image.convert("P"), "PNG"), None),
        (".png", encoded(sixteen, "PNG"), None),
        (".jpg", encoded(image, "JPEG", exif=exif), None),
        (".gif", encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]), None),
        (".jpg", b"", "empty file"),
        (".jpg", b"not a picture", "not a picture"),
        (".jpg", encoded(image, "JPEG", quality=95)[:-400], "truncated"),
        (".txt", b"a note", "not a picture file"),
        (".png", png[:60] + bytes(20) + png[80:], "broken"),  # inside the compressed pixels
    ]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_300_mixed_pictures_of_which_20_cannot_be_read(tmp_path, rng, monkeypatch, capsys):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "pictures"
    left_out = mixed_folder(root, rng)
    assert len(left_out) == 20
    assert main(["prepare", "folder", "--root", str(root)]) == 0
    listed = named(capsys.readouterr().out)
    assert {path.rsplit("/")[-1] for path in listed} == set(left_out)
    for path, reason in listed.items():
        assert left_out[path.rsplit("/")[-1]] in reason

    run, out = tmp_path / "run", tmp_path / "test.npz"
    quick = ["--epochs", "1", "--batch-size", "16", "--dim", "16", "--selection", "last"]
    folder = ["--dataset", "folder", "--root", str(root)]
    assert main(["train", *folder, *quick, "--run-dir", str(run)]) == 0
    assert main(["embed", str(run), "--out", str(out)]) == 0
    with np.load(out) as found:
        used = {path.rsplit("/", 1)[-1] for path in found["paths"]}
    assert not used & set(left_out)
    assert named("\n".join(json.loads((run / "retrieval.json").read_text())["notes"])) == listed
    assert main(["evaluate", str(run)]) == 0
    assert named(capsys.readouterr().out) == listed

    train, test = (image_sets.load("folder", split, root) for split in ("train", "test"))
    assert len({*train.paths, *test.paths}) == 280
    assert train.notes == test.notes


def named(text: str) -> dict[str, str]:
    """The files that notes name, each with the reason, and the counts are right."""
    files = {}
    for count, reason, names in re.findall(r"(\d+) left out \((.*?)\): (.*)", text):
        assert len(names.split(", ")) == int(count)
        files |= dict.fromkeys(names.split(", "), reason)
    return files


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the name")
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_names_of_any_bytes_go_through_every_command(tmp_path, rng, monkeypatch, capsys, every):
    """Classes and pictures named in Latin-1, with a line break, with HTML, from right to left."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "pictures"
    names = [
        b"M\xfcll",
        b"line\nbreak",
        b"<b>'\"&",
        "\u202eabc".encode(),
        b"-rf",
        b" x ",
        b"e",
        b"f",
    ]
    for name in names:
        folder = os.fsdecode(os.fsencode(root) + b"/" + name)
        os.makedirs(folder)
        for picture in (*names[:2], b"3", b"4"):
            array = rng.integers(0, 255, (70, 70, 3), dtype=np.uint8)
            file = os.fsdecode(os.fsencode(folder) + b"/" + picture + b".png")
            Image.fromarray(array).save(file)
    run, own = str(tmp_path / "run"), ["--dataset", "folder", "--root", str(root)]
    quick = ["--epochs", "1", "--batch-size", "8", "--dim", "16"]
    assert main(["train", *own, *quick, "--run-dir", run]) == 0
    assert main(["embed", run, "--out", str(tmp_path / "test.npz")]) == 0
    if every:
        assert main(["evaluate", run]) == 0
        assert main(["explore", run, "--out", str(tmp_path / "explorer.html")]) == 0
        assert main(["export", run, "--hub", str(tmp_path / "hub")]) == 0
    index, page = str(tmp_path / "index.npz"), tmp_path / "page.html"
    query = os.fsdecode(os.fsencode(root) + b"/M\xfcll/M\xfcll.png")
    indexing = ["--folder", str(root), "--index", index, "--page", str(page)]
    assert main(["search", run, *indexing, "--query", query]) == 0
    capsys.readouterr()
    assert main(["search", run, "--index", index, "--query", query, "--k", "1"]) == 0
    assert r"M\udcfcll/M\udcfcll.png" in capsys.readouterr().out
    assert r"M\udcfcll" in page.read_text(encoding="utf-8")
    for file in (*tmp_path.glob("*.html"), *tmp_path.glob("hub/*.*n")):
        file.read_text(encoding="utf-8")
    trained = json.loads((tmp_path / "run" / "state.json").read_text())["class_names"]
    assert set(trained) < {os.fsdecode(name) for name in names}
