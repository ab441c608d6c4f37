"""The lab, as a reader uses it: in a browser, from a file, without network."""

import functools
import json
import re

import numpy as np
import pandas as pd
import pytest

from sobook.cli import main
from sobook.course.pages import lab
from sobook.course.pages.page import read_asset
from sobook.course.studies import report, study
from sobook.errors import SobookError
from sobook.retrieval import evaluate
from sobook.statistics import compare_classes, compare_seeds, holm
from sobook.training.heads import HeadConfig
from tests.course.pages.conftest import HEAD
from tests.test_evidence import RESULTS, unsupported


def clusters(classes, each, width=16, noise=0.9):
    """Features (N, F) around one center per class, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    centers = rng.standard_normal((classes, width))
    return (centers[labels] + noise * rng.standard_normal((len(labels), width))), labels


@functools.cache
def own_features(folder):
    """A file of 10 training and 6 test classes, 12 rows each."""
    features, labels = clusters(16, 12, noise=1.6)
    split = np.where(labels < 10, "train", "test")
    np.savez(folder / "own.npz", features=features, labels=labels, split=split)
    return folder / "own.npz"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The source of a lab whose runs take a fraction of a second."""
    return lab.from_features(own_features(tmp_path_factory.mktemp("lab"))).source


def train(page, condition="lab.runs.length"):
    page.get_by_role("button", name="Train").click()
    wait(page, condition)


def wait(page, condition):
    page.wait_for_function(f"lab.running === null && {condition}", timeout=120_000)


def live(page):
    return page.locator("[aria-live]").inner_text()


# ---- what is inside -----------------------------------------------------------------------------


def test_quantized_features_find_what_the_features_find(visit):
    features, labels = clusters(50, 40, width=128, noise=2.0)
    features[:, 7] = 3.0
    exact = evaluate(features.astype(np.float32), labels, ks=(1,)).recall[1]
    packed = json.loads(json.dumps(lab.pack(features)))
    restored = lab.unpack(packed)
    assert restored.dtype == np.float32 and restored.shape == features.shape
    assert evaluate(restored, labels, ks=(1,)).recall[1] == pytest.approx(exact, abs=0.002)
    steps = (features.max(axis=0) - features.min(axis=0)) / 255
    assert (np.abs(restored - features) <= 0.51 * steps + 1e-6).all()
    page = visit(f"{HEAD}<script>{read_asset('numerics.js')}</script>")
    seen = page.evaluate("(packed) => [...numerics.decode(packed)]", lab.pack(features[:50]))
    assert seen == lab.unpack(lab.pack(features[:50])).flatten().tolist()  # to the bit


def test_large_sets_are_cut_evenly_and_every_class_stays_as_long_as_it_can():
    labels = np.repeat(np.arange(40), 500)
    chosen = lab._fitting(labels, 384, 500_000)
    counts = np.bincount(labels[chosen])
    assert len(set(counts)) == 1 and chosen.sum() * 384 <= 500_000 < 41 * 384 * counts[0]
    many = np.repeat(np.arange(11_000), 5)  # as in Stanford Online Products
    kept = np.bincount(many[lab._fitting(many, 384, 500_000)], minlength=11_000)
    assert set(kept) == {0, 4} and kept.sum() * 384 <= 500_000


def test_page_of_the_aviary_is_one_file_with_pictures(
    visit, tiny_aviary, tiny_options, monkeypatch
):
    monkeypatch.setattr(lab, "_MOST_BYTES", 16 * 128)  # 16 of 24 images
    config = HeadConfig(root=str(tiny_aviary), options=tiny_options, dim=8, epochs=2)
    source = lab.page(config).source
    assert "http" not in source.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "16 of 24 train images fit into the page" in source
    page = visit(source, bypass_csp=False)  # under the policy that readers have
    page.get_by_role("button", name="Train").click()
    page.wait_for_selector("#after:not([hidden])", timeout=120_000)
    assert re.search(r"Recall@1 [01]\.\d{3} on 4 unseen species", live(page))
    birds = page.locator("#pictures .bird")
    assert birds.count() == 13
    style = "node => getComputedStyle(node).backgroundImage"
    assert birds.first.evaluate(style).startswith('url("data:image/webp')
    assert str(tiny_aviary) in page.locator("#code").inner_text()
    assert page.locator("#pictures .query p").inner_text()  # the query's field marks
    assert re.search("genus, other .+", page.locator(".mistake").first.inner_text())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"split": None}, "split"),
        ({"split": np.array(["train"] * 191 + ["valid"])}, "'valid'"),
        ({"labels": np.arange(5)}, "one row, one label"),
        ({"labels": np.arange(192) % 10}, "both splits"),
        ({"features": np.full((192, 4), np.nan)}, "NaN"),
        ({"labels": np.arange(192)}, "2 images each"),
        ({"labels": np.array([None] * 192)}, "Python objects"),
    ],
)
def test_own_features_are_checked(tmp_path, change, word):
    features, labels = clusters(16, 12)
    split = np.where(labels < 10, "train", "test")
    arrays = {"features": features, "labels": labels, "split": split} | change
    file = tmp_path / "own.npz"
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(SobookError, match=word):
        lab.from_features(file)


def test_what_only_python_trains_with_is_refused():
    with pytest.raises(SobookError, match="images_per_class, schedule"):
        lab.page(HeadConfig(images_per_class=4, schedule="constant"))


def test_command(tiny_aviary, tmp_path, capsys):
    """A teacher's own lab, from a folder of pictures and from a file of features."""
    pictures, out = next(tiny_aviary.glob("aviary/v*-8x6-64px-seed0")), tmp_path / "lab.html"
    assert main(["lab", "--dataset", "folder", "--root", str(pictures), "--out", str(out)]) == 0
    assert "lab.html" in capsys.readouterr().out and "data:image/webp" in out.read_text()
    own = own_features(tmp_path)
    assert main(["lab", "--features", str(own), "--out", str(out)]) == 0
    assert "Features: own.npz." in out.read_text()


# ---- what the reader does -----------------------------------------------------------------------


def test_predict_then_train(visit, small):
    page = visit(small)
    assert "Recall@1" in live(page) and page.locator("#stop").is_disabled()
    page.get_by_label("your prediction of Recall@1").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("radio", name="Crowd them together").check()
    train(page)
    after = page.locator("#after").inner_text()
    recall, rms = page.evaluate("[lab.runs[0].recall_at_1, lab.runs[0].geometry.rms_cosine]")
    assert f"it came out {recall:.3f}" in after and "you predicted" in after
    assert f"Recall@1 {recall:.3f}" in live(page) and "frozen encoder" in live(page)
    assert ("They crowded:" in after) == (rms > 1.15 / 8)
    assert f"{recall:.3f}" in page.locator("#runs").inner_text()
    undescribed = "all => all.filter(canvas => !canvas.getAttribute('aria-label')).length"
    assert page.locator("canvas[role=img]").evaluate_all(undescribed) == 0


def test_every_lever_says_what_it_does_and_the_question_follows_the_settings(visit, small):
    page = visit(small)
    words = set()
    for lever in page.locator("#levers input, #levers select").all():
        lever.focus()
        words.add(page.locator("#lever-words").inner_text())
    assert len(words) == page.locator("#levers label").count() == 11
    page.locator("#dim").select_option("3")
    assert "in 3 dimensions" in page.locator("#question").inner_text()
    page.get_by_role("button", name="set them back").click()
    assert page.evaluate("lab.settings.dim") == 64 and page.locator("#reset").is_hidden()


def test_levers_answer_during_training(visit, small):
    page = visit(small)
    page.evaluate("lab.settings.epochs = 9000")  # until it is stopped
    page.get_by_role("button", name="Train").click()
    page.wait_for_function("lab.live.losses.length > 2")
    before = page.evaluate("lab.live.geometry.rms_cosine")
    page.locator("#so_weight").focus()
    page.keyboard.press("End")  # λ = 1000
    page.wait_for_function(f"lab.live.geometry.rms_cosine < 0.5 * {before}")
    page.get_by_role("button", name="Stop").click()
    wait(page, "lab.runs.length")
    run = page.evaluate("lab.runs[0]")
    assert run["changed"] and run["stopped"] and page.locator("#after").is_hidden()


def test_every_step_of_the_story_can_be_told(visit, small):
    page = visit(small)
    assert page.evaluate("STORY.map((step) => step.key)") == list(lab.STEPS)
    page.evaluate("START.epochs = 2")  # a quick story
    for number in range(7):
        page.get_by_role("button", name=f"{number + 1}. ").first.click()
        choices = page.get_by_role("radio")
        assert choices.count() == 3 and "undefined" not in page.locator("#question").inner_text()
        choices.nth(0).check()
        train(page, f"lab.concluded === {number}")
        after = page.locator("#after").inner_text()
        assert "predicted" in after and not re.search("undefined|NaN|Infinity", after)
        assert page.locator("#choices .came").count() == 1
    assert "fool yourself" in after
    assert page.evaluate("lab.runs.length") <= 12  # a run that is there is not done again


SAME = "no difference shown"
VERDICTS = [  # of step, study, rows of its family, and what the page says of them
    (2, "convergence_heads", {"dim": 64, "so_weight": 100, "epochs": 20}, SAME),
    (4, "threshold_aviary", {"setting": "b = .4", "so_weight": 0}, SAME),
    (4, "threshold_aviary", {"setting": "b learned", "so_weight": 0}, SAME),
    (4, "threshold_many_classes", {"method": "PA, b learned"}, "higher"),
    (5, "convergence_heads", {"dim": 512, "so_weight": 30, "epochs": 20}, "higher"),
    (5, "convergence_heads", {"dim": 512, "so_weight": 30, "epochs": 120}, SAME),
    (5, "convergence_heads", {"dim": 512, "so_weight": 30, "epochs": 240}, SAME),
    (6, "scale_batches", {"scale": 8, "images_per_class": 0, "epochs": 20}, "higher"),
    (6, "scale_batches", {"scale": 8, "images_per_class": 0, "epochs": 240}, "higher"),
]


def test_what_the_story_says_was_found_is_in_the_committed_tables(visit, small):
    story = visit(small).evaluate("STORY.map((step) => step.found)")
    for text in story:
        assert re.search(r"\bstudy (\w+)", text), text
        assert unsupported(f"# {text}") == []
    for step, name, where, verdict in VERDICTS:
        rows = report.summary(study.load(name), pd.read_csv(RESULTS / f"{name}.csv"))
        rows = rows[(rows[list(where)] == list(where.values())).all(axis=1)]
        (shown,) = rows["verdict"].dropna()
        assert shown == verdict and verdict in story[step]


def test_circle_and_sphere(visit, small):
    page = visit(small)
    for dim, title in (("2", "On the circle"), ("3", "On the sphere"), ("16", "mean proxy")):
        page.locator("#dim").select_option(dim)
        train(page, f"lab.runs.at(-1)?.settings.dim === {dim}")
        assert title in page.locator("#space-title").inner_text()
        picture = "document.getElementById('space').toDataURL()"
        before = page.evaluate(picture)
        page.locator("#space").press("ArrowLeft")
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        assert (page.evaluate(picture) != before) == (dim != "2")


def test_forking_paths(visit, small):
    page = visit(small)
    page.evaluate("START.epochs = 5; openStep(0)")
    page.get_by_role("button", name="Make SO win").click()
    wait(page, "winner() && !document.getElementById('fresh').disabled")
    all_tries = page.evaluate("tries().length")
    for name, key in (("Fresh seeds", "fresh"), ("Four times longer", "longer")):
        page.get_by_role("button", name=name).click()
        wait(page, f"lab.family.{key}")
    left = page.evaluate("lab.left")
    assert [row["n"] for row in left[1:]] == [5, 5]
    # The family: every try, and the two confirmations.
    p_values = [row["p"] for row in page.evaluate("tries()")] + [row["p"] for row in left[1:]]
    assert len(p_values) == all_tries + 2
    corrected = dict(zip(p_values, holm(np.array(p_values, dtype=float)), strict=True))
    assert [row["corrected"] for row in left] == pytest.approx([corrected[r["p"]] for r in left])
    words = page.locator("#fork-words").inner_text()
    assert f"{all_tries + 2} comparisons" in words and re.search("left|loss", words)
    seeds = page.evaluate("lab.runs.slice(-10).map((run) => run.settings.seed)")
    assert set(seeds) == set(range(200, 205)) and "Recall@1" in live(page)


def test_statistics_are_those_of_the_package(visit, small, rng):
    page = visit(small)
    labels = np.repeat(np.arange(30), 20)
    results = [evaluate(rng.standard_normal((600, 8)), labels, ks=(1,)) for _ in range(2)]
    hits = [result.by_class(1)[1].tolist() for result in results]
    expected = compare_classes(*results)
    seen = page.evaluate(f"statistics.compareClasses({hits[0]}, {hits[1]}, Array(30).fill(20))")
    assert seen["difference"] == pytest.approx(expected.difference)
    assert seen["p"] == pytest.approx(expected.p_value, abs=0.02)
    assert [seen["low"], seen["high"]] == pytest.approx([expected.low, expected.high], abs=0.003)
    for shift in (0, 0.5, 5):
        first, second = rng.random((2, 5)).round(3)
        expected = compare_seeds(first, second + shift)
        call = f"statistics.compareSeeds({first.tolist()}, {(second + shift).tolist()})"
        seen = page.evaluate(call)
        interval = [expected.low, expected.high]
        assert [seen["low"], seen["high"]] == pytest.approx(interval, abs=1e-9)
        assert seen["p"] == pytest.approx(expected.p_value, rel=1e-6)
    p_values = [0.04, 0.01, 0.03, 0.2]
    assert page.evaluate(f"statistics.holm({p_values})") == pytest.approx(holm(p_values).tolist())
    assert page.evaluate("Number.isNaN(statistics.holm([0.04, NaN])[1])")


def test_the_notebook_of_runs_is_kept_and_cleared(visit, small):
    page = visit(small)
    assert page.locator("#clear").is_hidden()
    page.evaluate("START.epochs = 2; openStep(1)")
    train(page, "lab.concluded === 1")
    runs, left = page.evaluate("[lab.runs, lab.left]")
    page.reload()
    assert page.evaluate("[lab.runs, lab.left]") == [runs, left] and len(runs) == 2
    assert f"{runs[1]['recall_at_1']:.3f}" in page.locator("#runs").inner_text()
    page.get_by_role("button", name="Clear it").click()
    assert page.locator("#runs").is_hidden() and page.locator("#tries").is_hidden()
    page.reload()
    assert page.evaluate("lab.runs") == []


SETTINGS = {"so_weight": 30, "scale": 8, "threshold_lr": 0.01, "epochs": 40, "center": True}


def test_export_is_read_by_python(visit, small, tmp_path):
    page = visit(small)
    page.evaluate(f"for (const [k, v] of Object.entries({json.dumps(SETTINGS)})) pull(k, v)")
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "lab.toml")
    loaded = study.load(tmp_path / "lab.toml")
    plan = [loaded.config(varied) for _, varied in loaded.plan()]
    assert len(plan) == 10 and {config.so_weight for config in plan} == {0, 30}
    assert HeadConfig(dim=64, batch_size=page.evaluate("START.batch_size"), **SETTINGS) in plan


def test_narrow_dark_and_calm(visit, small):
    size = {"width": 390, "height": 844}
    page = visit(small, viewport=size, color_scheme="dark", reduced_motion="reduce")
    train(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    heights = "all => all.map(node => node.checkVisibility() ? node.offsetHeight : 44)"
    assert min(page.get_by_role("button").evaluate_all(heights)) >= 24


@pytest.mark.parametrize("step", lab.STEPS)
def test_a_piece_asks_one_question_inside_a_notebook(visit, tiny_aviary, tiny_options, step):
    config = HeadConfig(root=str(tiny_aviary), options=tiny_options, dim=16, epochs=4)
    frame = lab.piece(step, config)._repr_html_()
    assert len(frame) < 250_000  # without features
    page = visit(HEAD + frame, viewport={"width": 900, "height": 900}, bypass_csp=False)
    inner = page.frame_locator("iframe")
    inner.get_by_role("button", name="Train").click()
    inner.locator("#after").wait_for(timeout=120_000)
    assert inner.locator("h1, #forks, #notebook, #export").locator("visible=true").count() == 0
    assert inner.locator("figure").locator("visible=true").count() == 3
    levers = page.frames[1].evaluate("STORY[lab.concluded].levers")
    shown = inner.locator("#levers input, #levers select").locator("visible=true")
    assert set(shown.evaluate_all("all => all.map(node => node.id)")) == set(levers)
    assert page.frames[1].evaluate("document.documentElement.scrollWidth <= innerWidth")
