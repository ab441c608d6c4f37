"""Search in a folder of pictures."""

import dataclasses
import io
import json
import re
import shutil
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sobook import search
from sobook.cli import main
from sobook.course.aviary import species as aviary
from sobook.data import image_sets
from sobook.embedding import embed
from sobook.encoder import Encoder


@pytest.fixture(scope="module")
def encoder():
    return Encoder.create("deit_micro_patch8_64").eval()


@pytest.fixture
def pictures(tmp_path, rng, monkeypatch):
    """Four classes of three pictures, one picture without a class, one broken file."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "pictures"
    for number, shade in enumerate(rng.integers(0, 200, (4, 3))):
        (root / f"class {number}").mkdir(parents=True)
        for copy in range(3):
            array = rng.integers(0, 55, (70, 80 + copy, 3)) + shade
            Image.fromarray(array.astype(np.uint8)).save(root / f"class {number}" / f"{copy}.png")
    Image.new("RGB", (50, 60), "red").save(root / "loose.jpg")
    (root / "class 0" / "broken.jpg").write_bytes(b"nothing")
    (root / ".hidden").mkdir()
    Image.new("RGB", (50, 60)).save(root / ".hidden" / "x.png")
    return root


@pytest.fixture
def index(pictures, encoder):
    return search.index_folder(encoder, pictures, progress=False)


def test_every_picture_is_indexed_or_named(index, pictures):
    assert len(index) == 13 and index.embeddings.shape[0] == 13
    assert sorted(set(index.names)) == ["", "class 0", "class 1", "class 2", "class 3"]
    assert len(index.left_out) == 1 and "broken.jpg" in index.left_out[0]
    np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1, rtol=1e-5)


def test_a_single_picture_is_embedded_as_in_a_set(index, encoder, pictures):
    one = np.stack([search.embed_picture(encoder, path) for path in index.paths])
    np.testing.assert_allclose(one, index.embeddings, atol=1e-5)
    content = io.BytesIO(index.paths[0].read_bytes())
    np.testing.assert_allclose(search.embed_picture(encoder, content), one[0], atol=1e-6)


def test_a_picture_finds_itself_first_and_order_is_by_cosine(index, encoder):
    for i in (0, 7, 12):
        similarities, found = index.search(encoder, index.paths[i], k=6)
        assert found[0] == i and similarities[0] == pytest.approx(1, abs=1e-4)
        slow = np.argsort(-(index.embeddings @ index.embeddings[i]), kind="stable")[:6]
        assert found.tolist() == slow.tolist()
        assert (np.diff(similarities) <= 0).all()
    assert len(index.search(encoder, index.paths[0], k=99)[1]) == 13


def test_an_index_survives_saving_and_is_that_of_embed(index, tmp_path, pictures, encoder):
    again = search.Index.load(index.save(tmp_path / "index.npz"))
    assert again.paths == index.paths and again.names == index.names
    np.testing.assert_array_equal(again.embeddings, index.embeddings)
    (tmp_path / "other.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no index"):
        search.Index.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="must end in .npz"):
        index.save(tmp_path / "index.csv")
    with pytest.warns(UserWarning):
        train = image_sets.load("folder", "train", pictures)
    rows = embed(encoder, train, progress=False)
    for path, row in zip(train.paths, rows, strict=True):
        np.testing.assert_allclose(index.embeddings[index.paths.index(path)], row, atol=1e-5)


# ---- is there anything like it? -----------------------------------------------------------------


def clusters(rng, classes=6, each=12, dim=16, noise=0.15):
    """(N, D) rows of unit length around one center per class, (N,) names, and the centers."""
    centers = rng.standard_normal((classes, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    labels = np.repeat(np.arange(classes), each)
    rows = centers[labels] + noise * rng.standard_normal((len(labels), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"class {label}" for label in labels], centers


@pytest.fixture
def judging(rng):
    """An index of six clusters with a calibration, its centers, and a stranger."""
    rows, names, centers = clusters(rng)
    stranger = -centers.sum(0, keepdims=True)
    strangers = (stranger / np.linalg.norm(stranger)).astype(np.float32)
    found = search.calibrate(rows, names, strangers)
    paths = tuple(Path(f"{i}.png") for i in range(len(rows)))
    return search.Index(rows, paths, tuple(names), (), found), centers, strangers


def test_a_class_that_is_there_is_named_and_one_that_is_not_is_refused(judging, rng):
    index, centers, strangers = judging
    rows, names, _ = clusters(np.random.default_rng(5))
    there = index.judge(index.embeddings + 0.01)
    assert (there["name"] == np.array(index.names)).mean() > 0.95
    assert there["nothing"].mean() < 0.2 and there["chance"].between(0, 1).all()
    elsewhere = index.judge(rows)  # clusters around other centers
    assert elsewhere["nothing"].all()
    assert index.judge(strangers)["nothing"].all()


def test_what_is_nearer_to_a_stranger_is_refused_however_near_it_is(judging):
    index, centers, _ = judging
    center = centers[:1].astype(np.float32)
    assert not index.judge(center)["nothing"].item()
    found = dataclasses.replace(index.calibration, strangers=center)
    assert dataclasses.replace(index, calibration=found).judge(center)["nothing"].item()


def test_the_threshold_is_that_of_pictures_asked_as_if_new(rng):
    rows, names, _ = clusters(rng, noise=0.5)
    found = search.calibrate(rows, names, rows[:1], refuse=0.25)
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
    assert found.threshold == pytest.approx(np.quantile(nearness, 0.25), abs=1e-6)
    expected = [(np.array(nearness) < found.threshold).mean()]
    expected.append((np.array(without) >= found.threshold).mean())
    np.testing.assert_allclose(found.rates, expected, atol=0.02)
    assert str(found).startswith(f"{found.rates[0]:.0%} refused; ")
    slope, intercept = found.chance
    assert slope > 0  # the larger the share of the vote, the better
    chance = 1 / (1 + np.exp(-(slope * np.array(shares) + intercept)))
    assert chance.mean() == pytest.approx(np.mean(right), abs=0.02)


def test_pictures_without_classes_get_a_threshold_but_no_chance(judging, rng):
    index = judging[0]
    found = search.calibrate(index.embeddings, [""] * len(index), index.embeddings[:1])
    loose = search.Index(index.embeddings, index.paths, ("",) * len(index), (), found)
    judged = loose.judge(judging[1].astype(np.float32)).iloc[1]
    assert "something like this here" in search.sentence(judged)
    assert "answered" not in str(found)


def test_a_judgment_is_one_sentence(judging):
    index, centers, strangers = judging
    judged = index.judge(np.concatenate([centers[2:3].astype(np.float32), strangers]))
    assert re.fullmatch(r"class 2, right with a chance of \d+%", search.sentence(judged.iloc[0]))
    assert search.sentence(judged.iloc[1]).startswith("nothing like this here (nearness ")


def test_a_picture_of_nothing_that_is_near_is_refused_for_its_own_reason(judging):
    index, centers, strangers = judging
    between = centers[2:3] + 1.2 * strangers[:1]  # as near as any, and nearer to a stranger
    between = (between / np.linalg.norm(between)).astype(np.float32)
    calibration = dataclasses.replace(index.calibration, threshold=-1.0)
    loose = dataclasses.replace(index, calibration=calibration)
    judged = loose.judge(between).iloc[0]
    assert judged["stranger"] and judged["nothing"]
    assert "nearer to a picture of nothing" in search.sentence(judged)


def test_the_calibration_survives_saving_and_old_files_have_none(judging, tmp_path):
    index = judging[0]
    again = search.Index.load(index.save(tmp_path / "i.npz"))
    for one, other in zip(
        vars(again.calibration).values(), vars(index.calibration).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    pd.testing.assert_frame_equal(again.judge(index.embeddings), index.judge(index.embeddings))
    old = dataclasses.replace(index, calibration=None)
    read = search.Index.load(old.save(tmp_path / "old.npz"))
    assert read.calibration is None
    with pytest.raises(ValueError, match="cannot judge: make it again"):
        read.judge(index.embeddings)
    with np.load(tmp_path / "i.npz", allow_pickle=False) as data:
        assert all(data[name].dtype.kind in "fiU" for name in data.files)


def test_few_pictures_set_no_threshold(index):
    assert len(index) == 13 and index.calibration is None


def test_noise_is_refused_on_the_command_line_and_a_known_bird_is_not(
    tmp_path, rng, monkeypatch, capsys
):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    birds = aviary.species(4, seed=3)
    for bird in birds:
        (tmp_path / "birds" / bird.name).mkdir(parents=True)
        for i in range(6):
            aviary.draw(bird, i).save(tmp_path / "birds" / bird.name / f"{i}.png")
    known, noise, saved = tmp_path / "known.png", tmp_path / "noise.png", tmp_path / "i.npz"
    aviary.draw(birds[0], 0).save(known)
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(noise)
    source = ["search", "--encoder", "deit_micro_patch8_64", "--index", str(saved)]
    assert main([*source, "--folder", str(tmp_path / "birds")]) == 0
    assert "asked as if new: " in capsys.readouterr().out
    assert main([*source, "--query", str(known), str(noise), "--k", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.search(r"known\.png: .*, right with a chance of \d+%$", shown[0])
    assert "noise.png: nothing like this here" in shown[2]


def test_wrong_requests_are_one_sentence(index, encoder, tmp_path):
    other = Encoder.create("deit_micro_patch8_64", dim=16).eval()
    with pytest.raises(ValueError, match="16"):
        index.search(other, index.paths[0])
    with pytest.raises(ValueError, match="whole numbers from 1"):
        index.search(encoder, index.paths[0], k=0)
    with pytest.raises(image_sets.DatasetError, match="no folder"):
        search.index_folder(encoder, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(image_sets.DatasetError, match="no picture"):
        search.index_folder(encoder, tmp_path / "empty")


def page_data(path):
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))


def test_the_page_stands_alone_and_holds_the_true_neighbors(index, tmp_path):
    text, data = page_data(search.page(index, tmp_path / "p.html", k=3, title="A <b> & c"))
    assert not re.search(r"(?:src|href)=[\"']?https?:", text)
    assert "A &lt;b&gt; &amp; c" in text and "{{" not in text
    cosines = index.embeddings @ index.embeddings.T
    np.fill_diagonal(cosines, -9)
    for i, near in enumerate(data["neighbors"]):
        assert len(near) == 3 and i not in near
        np.testing.assert_allclose(cosines[i, near], np.sort(cosines[i])[::-1][:3], atol=1e-5)
    assert all(len(p["thumbnail"]) < 8000 for p in data["pictures"])


def test_too_many_pictures_for_a_page(index, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MOST_ON_PAGE", 5)
    with pytest.raises(ValueError, match="too many"):
        search.page(index, tmp_path / "p.html")


def test_uploads_of_both_generations_of_ipywidgets():
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"x"}}
    eight = ({"name": "a.png", "content": memoryview(b"x"), "size": 1},)
    assert search.uploaded(seven) == search.uploaded(eight) == [("a.png", b"x")]
    assert search.uploaded({}) == search.uploaded(()) == []


def test_the_widget_answers_an_upload(index, encoder):
    widgets = pytest.importorskip("ipywidgets")
    box = search.widget(index, encoder, k=2)
    upload, output = box.children
    assert isinstance(upload, widgets.FileUpload)
    content = index.paths[4].read_bytes()
    said = search.answer(index, encoder, "<my>.png", content, 2)
    assert (
        said.count("<figure") == 3 and "alt='query: &lt;my&gt;.png'" in said and "class 1" in said
    )
    assert "not a picture" in search.answer(index, encoder, "x.png", b"nothing", 2)
    if int(widgets.__version__.split(".")[0]) >= 8:
        now = datetime.now(timezone.utc)
        file = {"name": "q.png", "type": "image/png", "size": len(content), "last_modified": now}
        upload.value = ({**file, "content": memoryview(content)},)
        assert output.value.count("<figure") == 3


def test_the_command(pictures, tmp_path, capsys):
    saved, out = tmp_path / "i.npz", tmp_path / "p.html"
    query = str(pictures / "class 2" / "1.png")
    first = ["--folder", str(pictures), "--index", str(saved), "--page", str(out)]
    assert main(["search", "--encoder", "deit_micro_patch8_64", *first, "--query", query]) == 0
    shown = capsys.readouterr().out
    assert "left out" in shown and out.exists()
    lines = [line for line in shown.splitlines() if line.startswith("  +")]
    assert len(lines) == 5 and lines[0].split()[0] == "+1.000" and "class 2" in lines[0]
    again = ["--index", str(saved), "--query", query, "--k", "2"]
    assert main(["search", "--encoder", "deit_micro_patch8_64", *again]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main(["search"]) == 1
    assert "needs --folder" in capsys.readouterr().err


# ---- the page in a browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of twelve plain pictures in three classes, and its index."""
    folder = tmp_path_factory.mktemp("page")
    rng, paths = np.random.default_rng(0), []
    for number in range(12):
        paths.append(folder / f"{number:02d}.png")
        Image.new("RGB", (120, 80), tuple(rng.integers(0, 256, 3).tolist())).save(paths[-1])
    rows = rng.standard_normal((12, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(f"class {number % 3}" for number in range(12))
    index = search.Index(rows, tuple(paths), names)
    return index, search.page(index, folder / "search.html", k=4)


@pytest.fixture
def tab(browser, site):
    page = browser.new_page(viewport={"width": 400, "height": 800}, bypass_csp=True)
    page.trouble = []
    page.on("console", lambda m: page.trouble.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.goto(site[1].as_uri())
    yield page
    assert page.trouble == []
    page.close()


def found(tab) -> list[str]:
    return tab.eval_on_selector_all("#found img", "all => all.map((i) => i.alt)")


def expected(index, query: int, k: int = 4) -> list[str]:
    cosines = index.embeddings @ index.embeddings[query]
    cosines[query] = -9
    order = [query, *np.argsort(-cosines)[:k]]
    return [f"{index.names[i]} {index.paths[i].name}" for i in order]


def test_a_click_shows_the_neighbors(tab, site):
    assert tab.locator("#all img").count() == 12
    tab.locator("#all button").nth(5).click()
    assert found(tab) == expected(site[0], 5)
    tab.locator("#found button").nth(1).click()  # a neighbor is a query, too
    assert found(tab)[0] == expected(site[0], 5)[1]


def test_a_file_that_is_indexed_is_recognized_whatever_its_name(tab, site, tmp_path):
    copy = shutil.copy(site[0].paths[7], tmp_path / "other name.png")
    tab.set_input_files("#file", copy)
    tab.wait_for_selector("#found img")
    assert found(tab) == expected(site[0], 7)


def test_a_file_that_is_not_indexed_is_answered_in_words(tab, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "new.png")
    tab.set_input_files("#file", tmp_path / "new.png")
    tab.wait_for_function("document.getElementById('status').textContent.includes('not among')")
    assert found(tab) == []


def test_names_filter_and_a_narrow_screen_does_not_scroll_sideways(tab):
    tab.fill("#filter", "class 1")
    assert tab.locator("#all img").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


HOSTILE = ("<!--<script>", "</script><b>", "\"quoted\" & 'so'", "line\u2028end", "{{data}}")


def test_names_cannot_break_out_of_the_page(browser, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(HOSTILE))]
    for path in paths:
        Image.new("RGB", (9, 9)).save(path)
    index = search.Index(np.eye(len(HOSTILE), dtype=np.float32), tuple(paths), HOSTILE)
    made = search.page(index, tmp_path / "hostile.html", k=2, title="{{data}} <b>")
    tab = browser.new_page()
    tab.goto(made.as_uri())
    shown = tab.eval_on_selector_all("#all img", "all => all.map((i) => i.alt)")
    assert shown == [f"{name} {path.name}" for name, path in zip(HOSTILE, paths, strict=True)]
    assert tab.locator("h1").inner_text() == "{{data}} <b>"
    tab.close()
