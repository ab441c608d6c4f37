"""The search page in a browser, opened from a file."""

import shutil

import numpy as np
import pytest
from PIL import Image

from sobook.interactive import search


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
    page = browser.new_page(viewport={"width": 400, "height": 800})
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
    tab.wait_for_function("document.getElementById('said').textContent.includes('not among')")
    assert found(tab) == []


def test_names_filter_and_a_narrow_screen_does_not_scroll_sideways(tab):
    tab.fill("#filter", "class 1")
    assert tab.locator("#all img").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
