"""The explorer in a real browser, headless."""

import numpy as np
import pytest

from sobook import geometry
from sobook.course.pages import explorer
from sobook.errors import SobookError

CLASSES, TEST, EACH, DIM, EPOCHS = 12, 4, 5, 16, 4


def toy(classes=CLASSES, test=TEST, each=EACH, dim=DIM, epochs=EPOCHS):
    """Two models on the same colored squares; proxies drift towards their classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes + test), each)
    centers = rng.normal(size=(classes + test, dim))
    colors = rng.integers(0, 255, (classes + test, 3), dtype=np.uint8)
    pictures = [np.full((20, 30, 3), colors[c], np.uint8) for c in labels]
    models = {}
    for name, lean in (("PA", 1.0), ("PA+SO", 0.0)):
        points = centers[labels] + 0.8 * rng.normal(size=(len(labels), dim)) + lean
        start = rng.normal(size=(classes, dim))
        drift = np.linspace(0, 1, epochs)[:, None, None] * (centers[:classes] + lean - start)
        shapes = [geometry.describe(p) for p in start + drift]
        numbers = [shape.summary() | {"recall": 0.1 * e} for e, shape in enumerate(shapes)]
        models[name] = explorer.Model([*range(epochs)], epochs - 2, start + drift, numbers, points)
    names = [f"{c:03}.Bird_<{c}>_{c % 3}" for c in range(classes + test)]
    return models, pictures, labels, names


@pytest.fixture(scope="module")
def shown():
    models, pictures, labels, names = toy()
    page = explorer.build(models, pictures, labels, names, methods=["pca"])
    return page.source, models, labels


def state(page, key):
    return page.evaluate(f"state.{key}")


def picture(page, canvas):
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(f"document.getElementById('{canvas}').toDataURL()")


def cell(page, row, column):
    box = page.locator("#heat").bounding_box()
    bar = max(6, box["width"] * 0.03)
    side = (box["width"] - bar) / CLASSES
    return {"x": bar + (column + 0.5) * side, "y": (row + 0.5) * side}


def test_explorer_shows_the_numbers_of_geometry(visit, shown):
    source, models, _ = shown
    page = visit(source)
    for r, (name, model) in enumerate(models.items()):
        expected = geometry.describe(model.proxies[model.kept])
        values = np.sort(page.evaluate(f"cosines(runs[{r}])"))
        pairs = np.sort(geometry.off_diagonal(expected.cosines))
        np.testing.assert_allclose(values, pairs, atol=4e-5)
        row = page.locator("#numbers tbody tr").nth(r).inner_text().split()
        assert row[0] == name and float(row[1]) == pytest.approx(expected.rms_cosine, abs=6e-4)
    a, b = (int(page.evaluate(f"classes[{c}].name").split("<")[1].split(">")[0]) for c in (2, 7))
    cosine = expected.cosines[a, b]  # classes are numbered as in the heatmap
    assert page.evaluate("cosine(runs[1], 7, 2)") == pytest.approx(cosine, abs=4e-5)


def test_hovering_a_cell_lights_up_every_view(visit, shown):
    page = visit(shown[0])
    before = {name: picture(page, name) for name in ("heat", "map", "angles")}
    page.locator("#heat").hover(position=cell(page, 2, 5))
    assert state(page, "over") == [2, 5]
    assert all(picture(page, name) != old for name, old in before.items())
    assert "cosine" in page.locator("#tip").inner_text()
    page.mouse.move(5, 5)
    assert state(page, "over") == [-1, -1] and page.locator("#tip").is_hidden()


def test_clicking_a_cell_shows_both_classes_and_their_confusion(visit, shown):
    page = visit(shown[0])
    page.locator("#heat").click(position=cell(page, 1, 4))
    names = page.evaluate("classes.map(c => c.name)")
    text = page.locator("#pictures").inner_text()
    assert names[1] in text and names[4] in text
    assert text.count("of the nearest images of the first") == 2  # PA and PA+SO
    assert page.locator("#pictures .thumb").count() == 2 * EACH
    assert names[1] in page.locator("#status").inner_text()
    page.locator("#pictures .thumb").first.click()
    assert page.locator("#pictures .thumb.relevant").count() > 0
    page.keyboard.press("Escape")
    assert state(page, "a") == -1


def test_confusions_equal_a_slow_count(visit, shown):
    source, models, _ = shown
    page = visit(source)
    written = np.array(page.evaluate("runs[0].confusion"))
    labels = np.array(page.evaluate("labels"))
    unit = geometry.unit_rows(models["PA"].embeddings)
    expected = np.zeros_like(written)
    for i in range(len(unit)):
        same_side = (labels < CLASSES) == (labels[i] < CLASSES)
        others = [j for j in np.flatnonzero(same_side) if j != i]
        for j in sorted(others, key=lambda j: -unit[i] @ unit[j])[: EACH - 1]:
            expected[labels[i], labels[j]] += 1 / EACH / (EACH - 1)
    np.testing.assert_allclose(written, expected, atol=1e-4)


def test_scrubbing_and_playing_move_proxies_but_no_image(visit, shown):
    page = visit(shown[0])
    before = {name: picture(page, name) for name in ("heat", "map", "angles")}
    page.locator("#epoch").fill("0")
    assert state(page, "epoch") == 0
    assert all(picture(page, name) != old for name, old in before.items())
    assert page.locator("#when").inner_text() == "epoch 0"
    page.locator("#epoch").press("ArrowRight")
    assert state(page, "epoch") == 1
    page.locator("#play").click()
    page.wait_for_function(f"state.epoch === {EPOCHS - 1} && !state.playing")
    second = picture(page, "heat")
    page.get_by_role("button", name="PA", exact=True).click()
    assert state(page, "run") == 0 and picture(page, "heat") != second
    assert page.locator("#runs [aria-pressed=true]").inner_text() == "PA"


def test_search_and_keyboard(visit, shown):
    page = visit(shown[0])
    page.keyboard.press("/")
    page.keyboard.type("bird <7>")
    page.keyboard.press("Enter")
    assert page.evaluate("classes[state.a].name") == "Bird <7> 1"
    assert "Bird <7> 1" in page.locator("#pictures").inner_text()
    page.locator("#search").fill("nothing like it")
    page.keyboard.press("Enter")
    assert "no class is called" in page.locator("#status").inner_text()
    page.locator("#heat").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert state(page, "b") >= 0
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    assert state(page, "b") == -1


def test_it_fits_a_phone_and_both_backgrounds(visit, shown):
    page = visit(shown[0], viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.evaluate(f"select({CLASSES})")
    assert "no proxy" in page.locator("#pictures").inner_text()
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(paper) == "rgb(255, 255, 255)" != dark


@pytest.mark.parametrize("sizes", [{"test": 1, "each": 1}, {"each": 7}])
def test_too_few_and_too_many_are_refused(sizes, monkeypatch):
    monkeypatch.setattr(explorer, "_MOST_SIDE", 10 * explorer.TILE)
    with pytest.raises(SobookError, match="at most 100 pictures, and at least two"):
        explorer.build(*toy(**sizes), methods=["pca"])
