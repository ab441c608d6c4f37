"""A folder of one's own pictures, some of them broken, goes through the whole command line."""

import json
import shutil

import numpy as np
import pytest

from sobook.cli import main


def test_a_folder_with_broken_files_from_training_to_search(
    tiny_aviary, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root, run, out = tmp_path / "pictures", tmp_path / "run", tmp_path / "test.npz"
    shutil.copytree(next(tiny_aviary.glob("aviary/v*-8x6-64px-seed0")), root)
    broken = sorted(root.glob("*/0000.png"))[-1]  # in a test class
    broken.write_bytes(broken.read_bytes()[:99])
    (broken.parent / "note.txt").write_text("a note")
    data = ["--dataset", "folder", "--root", str(root)]
    quick = ["--epochs", "1", "--batch-size", "8", "--dim", "16", "--selection", "last"]
    page, index = str(tmp_path / "p.html"), str(tmp_path / "i.npz")
    commands = (
        ["prepare", *data[1:]],
        ["train", *data, *quick, "--run-dir", str(run)],
        ["evaluate", str(run)],
        ["embed", str(run), "--out", str(out)],
        ["export", str(run), "--hub", str(tmp_path / "hub")],
        ["search", str(run), "--folder", str(root), "--index", index, "--page", page],
        ["search", str(run), "--index", index, "--query", str(broken.with_name("0001.png"))],
    )
    with pytest.warns(UserWarning, match=broken.name):
        assert [main(words) for words in commands] == [0] * len(commands)
    assert f"+1.000  {broken.parent.name}" in capsys.readouterr().out
    name = broken.relative_to(root).as_posix()
    notes = json.loads((run / "retrieval.json").read_text())["notes"]
    assert any(name in note for note in notes) and any("note.txt" in note for note in notes)
    assert name in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    with np.load(out) as arrays:
        assert len(arrays["paths"]) == 23 and str(broken) not in arrays["paths"]
        assert arrays["embeddings"].shape == (23, 16) and len(arrays["class_names"]) == 4
        assert {*arrays["notes"].tolist()} == {*notes} - {"epoch 1 of 1 was kept"}
