"""The playground: its settings, and its arithmetic against `sobook.losses` in a browser."""

import numpy as np
import pytest
import torch

from sobook import geometry
from sobook.course.pages import playground
from sobook.errors import SobookError
from sobook.losses import SoftOrthogonalProxyAnchor


@pytest.mark.parametrize("settings", [{"num_classes": 9}, {"so_weight": -1}, {"seeds": 1}])
def test_settings_are_checked(settings):
    with pytest.raises(SobookError, match="3 to 8|'seed'"):
        playground.page(**settings)


def board(page):
    """The scene and the numbers that follow from it, arrays as lists of rows."""
    return page.evaluate("""["scene", "now"].map((part) => Object.fromEntries(
        Object.entries(board[part]).map(([name, value]) => [name, value instanceof Float64Array
            ? rowsOf(value, board.scene.dim).map((row) => [...row]) : value])))""")


def torch_loss(scene):
    settings = {name: scene[name] for name in ("margin", "threshold", "scale", "so_weight")}
    shape = len(scene["proxies"]), len(scene["proxies"][0])
    model = SoftOrthogonalProxyAnchor(*shape, **settings).double()
    model.proxies.data = torch.tensor(scene["proxies"], dtype=torch.float64)
    images = torch.tensor(scene["images"], dtype=torch.float64)
    return model, images, torch.tensor(scene["labels"])


@pytest.mark.parametrize("classes, dim", [(3, 2), (8, 2), (4, 3)])
def test_playground_numbers_equal_the_losses(visit, classes, dim):
    settings = {"so_weight": 35, "threshold": 0.1 * (classes - 5), "seed": classes}
    page = visit(playground.page(num_classes=classes, dim=dim, **settings).source)
    scene, now = board(page)
    model, images, labels = torch_loss(scene)
    parts = model.parts(images, labels)
    for name, value in parts.items():
        assert now[name] == pytest.approx(value.item(), abs=1e-4)
    shape = geometry.describe(model.proxies)
    assert now["coherence"] == pytest.approx(shape.coherence, abs=1e-4)
    assert now["mean_cosine"] == pytest.approx(shape.mean_cosine, abs=1e-4)
    assert now["welch_bound"] == pytest.approx(shape.welch_bound)
    assert now["floor"] == pytest.approx(shape.orthogonality_floor / classes / (classes - 1))
    for name, key in (("proxy_anchor", "anchorGradient"), ("soft_orthogonality", "soGradient")):
        (gradient,) = torch.autograd.grad(parts[name], model.proxies, retain_graph=True)
        np.testing.assert_allclose(now[key], gradient, atol=1e-4)


def test_playground_steps_are_real_descent(visit):
    page = visit(playground.page(num_classes=5, dim=3, so_weight=50).source)
    page.locator("#images_move").check()
    scene, before = board(page)
    for _ in range(10):
        page.locator("#step").click()
        model, images, labels = torch_loss(scene)
        images.requires_grad_()
        model(images, labels).backward()
        rate = scene["rate"]
        unit = torch.nn.functional.normalize
        moved = unit(model.proxies.detach() - rate * model.proxies.grad)
        images = unit(images.detach() - rate * images.grad)
        scene |= {"proxies": moved.tolist(), "images": images.tolist()}
    after, now = board(page)
    np.testing.assert_allclose(after["proxies"], scene["proxies"], atol=1e-4)
    np.testing.assert_allclose(after["images"], scene["images"], atol=1e-4)
    assert now["loss"] < before["loss"]


def test_dragging_a_proxy_changes_loss_and_arrows(visit):
    page = visit(playground.page(num_classes=4, dim=2).source)
    scene, before = board(page)
    old = page.evaluate("document.getElementById('board').toDataURL()")
    box = page.locator("#board").bounding_box()
    x, y, _ = page.evaluate("place(board.scene.proxies.subarray(0, 2))")
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - x, box["y"] + box["width"] - y, steps=4)
    page.mouse.up()
    moved, after = board(page)
    held = page.evaluate("board.chosen")
    assert np.dot(moved["proxies"][held], scene["proxies"][held]) < 0.99
    assert after["loss"] != before["loss"] and after["anchorGradient"] != before["anchorGradient"]
    assert f"{after['loss']:.4f}" in page.locator("#numbers").inner_text()
    assert page.evaluate("document.getElementById('board').toDataURL()") != old


def test_playground_by_keyboard_sliders_and_run(visit):
    page = visit(playground.page(num_classes=3, dim=2).source)
    page.locator("#board").focus()
    page.keyboard.press("2")
    scene = board(page)[0]
    page.keyboard.press("ArrowLeft")
    moved = board(page)[0]
    assert moved["proxies"][1] != scene["proxies"][1] and moved["proxies"][0] == scene["proxies"][0]
    page.locator("#num_classes").fill("6")
    assert len(board(page)[0]["proxies"]) == 6
    loss = board(page)[1]["loss"]
    page.locator("#so_weight").fill("120")
    assert board(page)[1]["loss"] > loss
    page.locator("#shape").click()
    assert len(board(page)[0]["proxies"][0]) == 3
    page.locator("#run").click()
    page.wait_for_function(f"board.now.loss < 0.9 * {board(page)[1]['loss']}")
    page.locator("#run").click()


def test_a_point_on_the_sphere_comes_back_to_where_it_was(visit):
    page = visit(playground.page(num_classes=8, dim=3).source)
    gaps = page.evaluate("""rowsOf(board.scene.proxies, 3).map((p) => {
        const [x, y, near] = place(p), q = unplace(x, y);
        return near < 0 ? 0 : Math.hypot(...p.map((value, k) => value - q[k]));
    })""")
    assert max(gaps) < 1e-6
