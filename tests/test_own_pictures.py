"""Your own pictures: a folder as people have them goes through the whole command line."""

import json

import numpy as np
import pytest
from PIL import Image

from sobook.cli import main

CLASSES = 12


def mixed_folder(root, rng) -> dict[str, str]:
    """300 files in 12 classes, 40 of them broken or odd; returns those to be left out, with why."""
    left_out = {}
    for number in range(300):
        folder = root / f"class_{number % CLASSES:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        shade = rng.integers(0, 200, 3)
        array = (rng.integers(0, 55, (72, 60 + number % 30, 3)) + shade).astype(np.uint8)
        image, kind = Image.fromarray(array), ("jpg", "png", "webp", "bmp")[number % 4]
        name = folder / f"{number:03d}.{kind}"
        if number >= 260:
            name, reason = odd(folder, number, image)
            if reason:
                left_out[name.name] = reason
        else:
            image.save(name)
    return left_out


def odd(folder, number: int, image: Image.Image):
    """One of ten odd or broken files: five can be read all the same, five cannot."""
    name, reason = folder / f"{number:03d}.jpg", None
    match number % 10:
        case 0:
            image.convert("CMYK").save(name)
        case 1:
            name = name.with_suffix(".png")
            image.convert("P").save(name)
        case 2:
            name = name.with_suffix(".png")
            Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(name)
        case 3:
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(name, exif=exif)
        case 4:
            name = name.with_suffix(".gif")
            image.save(name, save_all=True, append_images=[image.rotate(90)])
        case 5:
            name.write_bytes(b"")
            reason = "empty file"
        case 6:
            name.write_text("not a picture")
            reason = "not a picture"
        case 7:
            image.save(name, quality=95)
            name.write_bytes(name.read_bytes()[:-400])
            reason = "truncated"
        case 8:
            name = name.with_suffix(".txt")
            name.write_text("a note")
            reason = "not a picture file"
        case 9:
            name = name.with_suffix(".png")
            image.save(name)
            data = bytearray(name.read_bytes())
            data[60:80] = bytes(20)  # inside the compressed pixels
            name.write_bytes(data)
            reason = "broken"
    return name, reason


@pytest.fixture
def pictures(tmp_path, rng, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "pictures"
    return root, mixed_folder(root, rng)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_300_mixed_pictures_of_which_20_cannot_be_read(pictures, tmp_path, capsys):
    root, left_out = pictures
    assert len(left_out) == 20
    assert main(["prepare", "folder", "--root", str(root)]) == 0
    listed = capsys.readouterr().out
    assert listed.count("note: left out") == 20
    assert all(f"/{name}: " in listed for name in left_out)

    run, out = tmp_path / "run", tmp_path / "test.npz"
    quick = ["--epochs", "1", "--batch-size", "16", "--dim", "16", "--selection", "last"]
    folder = ["--dataset", "folder", "--root", str(root)]
    assert main(["train", *folder, *quick, "--run-dir", str(run)]) == 0
    assert main(["embed", str(run), "--out", str(out)]) == 0
    with np.load(out) as found:
        used = {path.rsplit("/", 1)[-1] for path in found["paths"]}
    notes = json.loads((run / "retrieval.json").read_text())["notes"]
    assert not used & set(left_out)
    reported = {note.split(": ")[0].rsplit("/", 1)[-1]: note.split(": ", 1)[1] for note in notes}
    for name, reason in reported.items():
        assert left_out[name] == "broken" or left_out[name] in reason


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_file_is_used_or_named(pictures):
    from sobook.data import image_sets

    root, left_out = pictures
    sets = [image_sets.load("folder", split, root) for split in ("train", "test")]
    used = {path.name for one in sets for path in one.paths}
    named = {note.split(": ")[0].rsplit("/", 1)[-1] for one in sets for note in one.notes}
    assert len(used) == 280 and not used & named
    assert named == set(left_out)
