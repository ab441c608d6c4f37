"""Explorer and playground in a real browser: headless Chromium, driven by playwright.

Debian's chromium (or another Chrome on PATH) is used, nothing is downloaded; where there is none,
these tests skip and say so. No page may ask the network for anything, or write an error.
"""

import json

import numpy as np
import pytest
import torch

from sobook import geometry
from sobook.interactive import explorer, playground
from sobook.losses import SoftOrthogonalProxyAnchor

CLASSES, TEST, EACH, DIM, EPOCHS = 12, 4, 5, 16, 4


@pytest.fixture
def visit(browser, tmp_path):
    """Opens HTML from a file, as a reader would; at the end nothing may have gone wrong."""
    errors, requests, pages = [], [], []

    def open_page(source, **options):
        file = tmp_path / f"page{len(pages)}.html"
        file.write_text(source, encoding="utf-8")
        # The explorer's own policy forbids network and eval; without it the driver can wait for a
        # condition, and a request would be seen rather than be refused.
        settings = {"viewport": {"width": 1280, "height": 900}, "bypass_csp": True}
        page = browser.new_page(**(settings | options))
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: requests.append(r.url))
        pages.append(page)
        page.goto(file.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []


def toy(classes=CLASSES, test=TEST, each=EACH, dim=DIM, epochs=EPOCHS, seed=0):
    """Two models on the same colored squares; proxies drift towards their classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes + test), each)
    centers = rng.normal(size=(classes + test, dim))
    colors = rng.integers(0, 255, (classes + test, 3), dtype=np.uint8)
    pictures = [np.full((20, 30, 3), colors[c], np.uint8) for c in labels]
    models = {}
    for name, lean in (("PA", 1.0), ("PA+SO", 0.0)):
        points = centers[labels] + 0.8 * rng.normal(size=(len(labels), dim)) + lean
        start = rng.normal(size=(classes, dim))
        steps = [start + (centers[:classes] + lean - start) * t for t in np.linspace(0, 1, epochs)]
        models[name] = explorer.Model(
            steps, points, kept=epochs - 2, recall=[0.1 * e for e in range(epochs)]
        )
    names = [f"Bird <{c}> & co" if c == 0 else f"Bird {c}" for c in range(classes + test)]
    return models, pictures, labels, names


@pytest.fixture(scope="module")
def shown():
    models, pictures, labels, names = toy()
    page = explorer.build(
        models,
        pictures,
        labels,
        names,
        methods=["pca"],
        groups=[str(c % 3) for c in range(len(names))],
    )
    return page.source, models, labels


def state(page, key):
    return page.evaluate(f"explorer.state.{key}")


def picture(page, canvas):
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(f"document.getElementById('{canvas}').toDataURL()")


def cell(page, row, column):
    box = page.locator("#heat").bounding_box()
    bar = max(6, box["width"] * 0.03)
    side = (box["width"] - bar) / CLASSES
    return {"x": bar + (column + 0.5) * side, "y": (row + 0.5) * side}


# ---- explorer -----------------------------------------------------------------------------------


def test_explorer_shows_the_numbers_of_geometry(visit, shown):
    source, models, _ = shown
    page = visit(source)
    for r, (name, model) in enumerate(models.items()):
        expected = geometry.describe(model.epochs[model.kept])
        values = page.evaluate(f"[...explorer.cosines(explorer.data.runs[{r}], {model.kept})]")
        np.testing.assert_allclose(values, geometry.off_diagonal(expected.cosines), atol=4e-5)
        row = page.locator("#numbers tbody tr").nth(r).inner_text().split()
        assert row[0] == name and float(row[1]) == pytest.approx(expected.rms_cosine, abs=6e-4)
    heights = page.evaluate("[...explorer.histogram(explorer.cosines(explorer.data.runs[0], 0))]")
    angles = np.degrees(
        np.arccos(geometry.off_diagonal(geometry.describe(models["PA"].epochs[0]).cosines))
    )
    np.testing.assert_allclose(
        heights, np.histogram(angles, np.arange(0, 181, 2), density=True)[0], atol=1e-6
    )
    density = page.evaluate("[...Array(1801).keys()].map(k => explorer.randomDensity(k / 10))")
    assert np.trapezoid(density, dx=0.1) == pytest.approx(1, abs=1e-4)


def test_hovering_a_cell_lights_up_every_view(visit, shown):
    page = visit(shown[0])
    before = {name: picture(page, name) for name in ("heat", "map", "angles")}
    page.locator("#heat").hover(position=cell(page, 2, 5))
    order = page.evaluate("explorer.data.order")
    assert state(page, "over") == [order[2], order[5]]
    assert all(picture(page, name) != old for name, old in before.items())
    assert "cosine" in page.locator("#tip").inner_text()
    page.mouse.move(5, 5)
    assert state(page, "over") == [-1, -1] and page.locator("#tip").is_hidden()


def test_clicking_a_cell_shows_both_classes_and_their_confusion(visit, shown):
    page = visit(shown[0])
    page.locator("#heat").click(position=cell(page, 1, 4))
    order = page.evaluate("explorer.data.order")
    names = page.evaluate("explorer.data.classes.map(c => c.name)")
    text = page.locator("#pictures").inner_text()
    assert names[order[1]] in text and names[order[4]] in text
    assert text.count("of the nearest images of the first") == 2  # PA and PA+SO
    assert page.locator("#pictures .thumb").count() == 2 * EACH
    assert names[order[1]] in page.locator("#status").inner_text()
    page.locator("#pictures .thumb").first.click()
    assert page.locator("#pictures .thumb.right").count() > 0
    page.keyboard.press("Escape")
    assert state(page, "a") == -1


def test_confusions_equal_a_slow_count(visit, shown):
    source, models, labels = shown
    page = visit(source)
    written = np.array(page.evaluate("[...explorer.data.runs[0].confusion]")) / 10_000
    written = written.reshape(CLASSES + TEST, -1)
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
    page.wait_for_function(f"explorer.state.epoch === {EPOCHS - 1} && !explorer.state.playing")
    assert len(set(page.evaluate("[...explorer.data.runs[1].maps.pca]"))) > 1


def test_switching_runs_and_the_difference(visit, shown):
    page = visit(shown[0])
    second = picture(page, "heat")
    page.get_by_role("button", name="PA", exact=True).click()
    assert state(page, "run") == 0
    page.wait_for_function("explorer.state.slide === 1")
    first = picture(page, "heat")
    page.get_by_role("button", name="PA+SO − PA").click()
    assert len({first, second, picture(page, "heat")}) == 3
    assert page.locator("#runs [aria-pressed=true]").inner_text() == "PA+SO − PA"


def test_search_and_keyboard(visit, shown):
    page = visit(shown[0])
    page.keyboard.press("/")
    page.keyboard.type("bird 7")
    page.keyboard.press("Enter")
    assert state(page, "a") == 7
    assert "Bird 7" in page.locator("#pictures").inner_text()
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


def test_test_classes_have_no_proxy_and_say_so(visit, shown):
    page = visit(shown[0])
    page.evaluate(f"explorer.select({CLASSES})")
    assert "no proxy" in page.locator("#pictures").inner_text()


def test_it_fits_a_phone_and_both_backgrounds(visit, shown):
    page = visit(shown[0], viewport={"width": 390, "height": 844}, color_scheme="dark")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.locator("#light").click()
    assert page.evaluate(paper) == "rgb(255, 255, 255)" != dark


def test_inside_a_notebooks_frame(visit, shown):
    models, pictures, labels, names = toy()
    frame = explorer.build(models, pictures, labels, names, methods=["pca"])._repr_html_()
    page = visit(f"<!doctype html><html><head><link rel='icon' href='data:,'></head><body>{frame}")
    inner = page.frame_locator("iframe")
    inner.locator("#play").wait_for()
    assert inner.locator("#numbers tbody tr").count() == 2


def frames_a_second(visit) -> float:
    """Of the explorer while it plays 2,000 points over the epochs."""
    page_made = explorer.build(
        *toy(classes=60, test=40, each=20, dim=32, epochs=9), methods=["pca"]
    )
    assert len(page_made.source) < 8e6
    page = visit(page_made.source)
    page.evaluate("explorer.state.epoch = 0, explorer.frames.count = 0, explorer.play(true)")
    page.wait_for_timeout(3000)
    return page.evaluate("explorer.frames.count") / 3


@pytest.mark.slow
def test_two_thousand_points_are_smooth_and_small(visit):
    # 30 on a machine that does nothing else: tests/benchmarks/test_speed_explorer.py
    assert frames_a_second(visit) > 10


# ---- playground ---------------------------------------------------------------------------------


def board(page):
    return page.evaluate("playground.board.scene"), page.evaluate("playground.board.now")


def torch_loss(scene):
    model = SoftOrthogonalProxyAnchor(
        len(scene["proxies"]),
        len(scene["proxies"][0]),
        margin=scene["margin"],
        scale=scene["scale"],
        so_weight=scene["so_weight"],
    ).double()
    model.proxies.data = torch.tensor(scene["proxies"], dtype=torch.float64)
    images = torch.tensor(scene["images"], dtype=torch.float64)
    return model, images, torch.tensor(scene["labels"])


@pytest.mark.parametrize("classes, dim", [(3, 2), (5, 2), (8, 2), (4, 3), (8, 3)])
def test_playground_numbers_equal_the_losses(visit, classes, dim):
    page = visit(playground.html(num_classes=classes, dim=dim, so_weight=35, seed=classes))
    scene, now = board(page)
    model, images, labels = torch_loss(scene)
    parts = model.parts(images, labels)
    for name, value in parts.items():
        assert now[name] == pytest.approx(value.item(), abs=1e-4)
    shape = geometry.describe(model.proxies)
    assert now["coherence"] == pytest.approx(shape.coherence, abs=1e-4)
    assert now["welch_bound"] == pytest.approx(shape.welch_bound)
    assert now["floor"] == pytest.approx(shape.orthogonality_floor / classes / (classes - 1))
    for name, key in (("proxy_anchor", "anchorGradient"), ("soft_orthogonality", "soGradient")):
        (gradient,) = torch.autograd.grad(parts[name], model.proxies, retain_graph=True)
        np.testing.assert_allclose(now[key], gradient, atol=1e-4)


def test_playground_steps_are_real_descent(visit):
    page = visit(playground.html(num_classes=5, dim=3, so_weight=50))
    page.locator("[name=images_move]").check()
    scene, before = board(page)
    for _ in range(10):
        page.locator("button[name=step]").click()
        model, images, labels = torch_loss(scene)
        images.requires_grad_()
        model(images, labels).backward()
        rate = scene["rate"]
        unit = torch.nn.functional.normalize
        moved = unit(model.proxies.detach() - rate * model.proxies.grad)
        scene |= {
            "proxies": moved.tolist(),
            "images": unit(images.detach() - rate * images.grad).tolist(),
        }
    after, now = board(page)
    np.testing.assert_allclose(after["proxies"], scene["proxies"], atol=1e-4)
    np.testing.assert_allclose(after["images"], scene["images"], atol=1e-4)
    assert now["loss"] < before["loss"]


def test_dragging_a_proxy_changes_loss_and_arrows(visit):
    page = visit(playground.html(num_classes=4, dim=2))
    scene, before = board(page)
    old, words = (
        page.evaluate("playground.board.canvas.toDataURL()"),
        page.locator(".numbers").inner_text(),
    )
    box = page.locator(".board").bounding_box()
    x, y, _ = page.evaluate("playground.board.place(playground.board.scene.proxies[0])")
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.down()
    target = -np.array(scene["proxies"][0])
    middle, radius = box["width"] / 2, box["width"] * 0.4
    page.mouse.move(
        box["x"] + middle + radius * target[0], box["y"] + middle - radius * target[1], steps=4
    )
    page.mouse.up()
    moved, after = board(page)
    held = page.evaluate("playground.board.chosen")
    assert np.dot(moved["proxies"][held], scene["proxies"][held]) < 0.99
    assert after["loss"] != before["loss"] and after["anchorGradient"] != before["anchorGradient"]
    assert page.locator(".numbers").inner_text() != words
    assert page.evaluate("playground.board.canvas.toDataURL()") != old


def test_playground_by_keyboard_sliders_and_run(visit):
    page = visit(playground.html(num_classes=3, dim=2))
    page.locator(".board").focus()
    page.keyboard.press("2")
    scene = board(page)[0]
    page.keyboard.press("ArrowLeft")
    moved = board(page)[0]
    assert moved["proxies"][1] != scene["proxies"][1] and moved["proxies"][0] == scene["proxies"][0]
    page.locator("input[name=num_classes]").fill("6")
    assert len(board(page)[0]["proxies"]) == 6
    loss = board(page)[1]["loss"]
    page.locator("input[name=so_weight]").fill("120")
    assert board(page)[1]["loss"] > loss
    page.locator("button[name=shape]").click()
    assert len(board(page)[0]["proxies"][0]) == 3
    page.locator("button[name=run]").click()
    page.wait_for_function(
        "playground.board.now.loss < 0.9 * " + json.dumps(board(page)[1]["loss"])
    )
    page.locator("button[name=run]").click()


def test_in_the_plane_so_alone_ends_at_its_floor(visit):
    page = visit(playground.html(num_classes=3, dim=2, so_weight=1))
    final = page.evaluate("""() => {
        let scene = { ...playground.newScene(3, 2, 0), so_weight: 1e4, margin: 0.1, scale: 1e-3,
                      rate: 5e-6, images_move: false };
        for (let k = 0; k < 2000; k++) scene = playground.step(scene);
        return playground.evaluate(scene);
    }""")
    assert final["floor"] == pytest.approx(0.25)
    assert final["soft_orthogonality"] == pytest.approx(0.25, abs=1e-3)


def test_a_point_on_the_sphere_comes_back_to_where_it_was(visit):
    page = visit(playground.html(num_classes=8, dim=3))
    gaps = page.evaluate("""() => playground.board.scene.proxies.map(p => {
        const [x, y, near] = playground.board.place(p);
        const q = playground.board.unplace(x, y);
        return near < 0 ? 0 : Math.hypot(...p.map((value, k) => value - q[k]));
    })""")
    assert max(gaps) < 1e-6
