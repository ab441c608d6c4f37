"""Search in a folder of pictures, and what an index knows of its own answers."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sobook import search
from sobook.cli import main
from sobook.data import read_image
from sobook.encoder import Encoder
from sobook.errors import DatasetError, SobookError


@pytest.fixture(scope="module")
def encoder():
    return Encoder.create("deit_micro_patch8_64").eval()


@pytest.fixture
def pictures(tmp_path, rng, monkeypatch):
    """Four classes of six pictures, one picture without a class, one broken file."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "pictures"
    names = ("class 0", "class 1", "class 2", "train")  # which is a class, where there is no test
    for name, shade in zip(names, rng.integers(0, 200, (4, 3)), strict=True):
        (root / name).mkdir(parents=True)
        for copy in range(6):
            array = rng.integers(0, 55, (70, 80 + copy, 3)) + shade
            Image.fromarray(array.astype(np.uint8)).save(root / name / f"{copy}.png")
    Image.new("RGB", (50, 60), "red").save(root / "loose.jpg")
    (root / "class 0" / "broken.jpg").write_bytes(b"nothing")
    return root


def test_a_folder_becomes_an_index(pictures, encoder):
    index = search.index_folder(encoder, pictures, progress=False)
    assert len(index) == 25
    assert sorted(set(index.names)) == ["", "class 0", "class 1", "class 2", "train"]
    assert len(index.left_out) == 1 and "broken.jpg" in index.left_out[0]
    np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1, rtol=1e-5)
    content = io.BytesIO(index.paths[0].read_bytes())
    alone = search.embed_images(encoder, [read_image(content), read_image(index.paths[24])])
    np.testing.assert_allclose(alone, index.embeddings[[0, 24]], atol=1e-5)
    cosines, nearest = index.search(index.embeddings[[7]], k=6)
    slow = np.argsort(-(index.embeddings @ index.embeddings[7]), kind="stable")[:6]
    assert nearest[0].tolist() == slow.tolist() and (np.diff(cosines) <= 0).all()
    assert index.search(index.embeddings[:2], k=99)[1].shape == (2, 25)


def test_copies_are_indexed_once(pictures, encoder):
    """Else a picture's copies would be its nearest neighbors, and every vote would look right."""
    alone = search.index_folder(encoder, pictures, progress=False)
    for file in list(pictures.glob("*/*.png")):
        for copy in ("a", "b"):
            (file.parent / f"{file.stem}{copy}.png").write_bytes(file.read_bytes())
    index = search.index_folder(encoder, pictures, progress=False)
    assert index.paths == alone.paths and "exact copies of other pictures: 48" in index.left_out[1]
    np.testing.assert_array_equal(index.calibration.chance, alone.calibration.chance)


def test_an_index_belongs_to_the_encoder_that_made_it(pictures, encoder, tmp_path):
    file = search.index_folder(encoder, pictures, progress=False).save(tmp_path / "i.npz")
    assert len(search.Index.load(file, encoder)) == 25
    other = Encoder.create(weights=None, **encoder.settings())
    with pytest.raises(SobookError, match="another encoder"):
        search.Index.load(file, other)


def clusters(rng, sizes=(12,) * 6, dim=16, noise=0.15):
    """(N, D) rows of unit length around one center per class, (N,) names, and the centers."""
    centers = rng.standard_normal((len(sizes), dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = centers[labels] + noise * rng.standard_normal((len(labels), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"class {label}" for label in labels], centers


@pytest.fixture
def judging(rng):
    """An index of six clusters with a calibration, its centers, and a stranger."""
    rows, names, centers = clusters(rng)
    stranger = -centers.sum(0, keepdims=True)
    strangers = (stranger / np.linalg.norm(stranger)).astype(np.float32)
    calibration = search.calibrate(rows, names, strangers)
    paths = tuple(Path(f"{i}.png") for i in range(len(rows)))
    index = search.Index(rows, paths, tuple(names), ("a note",), calibration)
    return index, centers.astype(np.float32), strangers


def test_known_classes_are_named_and_others_refused(judging):
    index, centers, strangers = judging
    known = index.judge(index.embeddings + 0.01)
    assert (known["name"] == np.array(index.names)).mean() > 0.95
    assert known["nothing"].mean() < 0.2 and known["chance"].between(0, 1).all()
    other_rows, _, _ = clusters(np.random.default_rng(5))  # clusters around other centers
    assert index.judge(other_rows)["nothing"].all()
    judged = index.judge(np.concatenate([centers[2:3], strangers]))
    assert re.fullmatch(r"class 2, right with a chance of \d+%", search.sentence(judged.iloc[0]))
    assert "nearness" in search.sentence(judged.iloc[1])
    # However near it is, what is nearer to a stranger is refused.
    calibration = dataclasses.replace(index.calibration, strangers=centers[:1])
    judged = dataclasses.replace(index, calibration=calibration).judge(centers[:1]).iloc[0]
    assert judged["stranger"] and judged["nothing"]
    assert "picture of nothing" in search.sentence(judged)


@pytest.mark.parametrize("sizes", [(12,) * 6, (70, 3)])  # 3 is fewer than are asked for
def test_the_calibration_is_that_of_pictures_asked_one_by_one(rng, sizes):
    rows, names, _ = clusters(rng, sizes, noise=0.5)
    calibration = search.calibrate(rows, names, rows[:1])
    nearness, shares, right, without = [], [], [], []
    for i in range(len(rows)):
        cosines = rows @ rows[i]
        order = [j for j in np.argsort(-cosines) if j != i]
        nearness.append(cosines[order[:10]].mean())
        votes = {}
        for rank, j in enumerate(order[:10], 1):
            votes[names[j]] = votes.get(names[j], 0) + rank**-0.5
        right.append(max(votes, key=votes.get) == names[i])
        shares.append(max(votes.values()) / sum(votes.values()))
        without.append(np.mean([cosines[j] for j in order if names[j] != names[i]][:10]))
    assert calibration.threshold == pytest.approx(np.quantile(nearness, 0.1), abs=1e-6)
    refused = np.mean(np.array(nearness) < calibration.threshold)
    answered = np.mean(np.array(without) >= calibration.threshold)
    np.testing.assert_allclose(calibration.rates, [refused, answered], atol=0.02)
    slope, intercept = calibration.chance
    chance = 1 / (1 + np.exp(-(slope * np.array(shares) + intercept)))
    assert slope > 0 and chance.mean() == pytest.approx(np.mean(right), abs=0.02)


def test_pictures_without_classes_get_a_threshold_but_no_chance(judging):
    index, centers, strangers = judging
    calibration = search.calibrate(index.embeddings, [""] * len(index), strangers)
    loose = search.Index(index.embeddings, index.paths, ("",) * len(index), (), calibration)
    assert "something like this" in search.sentence(loose.judge(centers).iloc[1])
    assert "answered" not in str(calibration)


def test_an_index_survives_saving_without_objects(judging, tmp_path):
    index = judging[0]
    again = search.Index.load(index.save(tmp_path / "i.npz"))
    assert again.paths == index.paths and again.names == index.names
    assert again.left_out == ("a note",)
    pd.testing.assert_frame_equal(again.judge(index.embeddings), index.judge(index.embeddings))


def test_wrong_requests_are_one_sentence(judging, encoder, tmp_path):
    index = judging[0]
    with pytest.raises(SobookError, match="calibration"):
        dataclasses.replace(index, calibration=None).judge(index.embeddings)
    with pytest.raises(SobookError):
        index.search(np.ones((1, 5), np.float32))
    (tmp_path / "other.npz").write_bytes(b"PK")
    with pytest.raises(SobookError, match="no index"):
        search.Index.load(tmp_path / "other.npz")
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError):
            search.index_folder(encoder, folder)


def test_the_command_names_a_known_picture_and_refuses_noise(pictures, rng, tmp_path, capsys):
    noise, saved, page = tmp_path / "noise.png", tmp_path / "i.npz", tmp_path / "p.html"
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(noise)
    source = ["search", "--encoder", "deit_micro_patch8_64", "--index", str(saved)]
    assert main([*source, "--folder", str(pictures), "--page", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "left out" in shown and "asked as if they were new: " in shown and page.is_file()
    known = pictures / "class 2" / "1.png"
    assert main([*source, "--query", str(known), str(noise), "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and re.search(r"1\.png: .*, right with a chance of \d+%$", lines[0])
    assert lines[1].split()[:3] == ["+1.000", "class", "2"]
    assert "noise.png: nothing like this here" in lines[3]
