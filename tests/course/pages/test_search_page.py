"""The search page and the notebook widget."""

import json
import re
import shutil
from datetime import datetime, timezone

import numpy as np
import pytest
from PIL import Image

from sobook import search
from sobook.course.pages import search_page
from sobook.encoder import Encoder
from sobook.errors import SobookError

HOSTILE = ("<!--<script>", "</script><b>", "line\u2028end")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of twelve plain pictures in four classes, and its index."""
    folder = tmp_path_factory.mktemp("page")
    rng, paths = np.random.default_rng(0), []
    for number in range(12):
        paths.append(folder / f"{number:02d}.png")
        Image.new("RGB", (120, 80), tuple(rng.integers(0, 256, 3).tolist())).save(paths[-1])
    rows = rng.standard_normal((12, 128)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = search.Index(rows, tuple(paths), ("class 0", *HOSTILE) * 3)
    return index, search_page.page(index, folder / "search.html", k=4, title="A <b> {{data}}")


@pytest.fixture
def tab(visit, site):
    return visit(site[1].read_text(), viewport={"width": 400, "height": 800})


def shown(tab) -> list[str]:
    return tab.eval_on_selector_all("#found img", "all => all.map((i) => i.alt)")


def expected(index, query: int, k: int = 4) -> list[str]:
    cosines = index.embeddings @ index.embeddings[query]
    cosines[query] = -9
    order = [query, *np.argsort(-cosines)[:k]]
    return [f"{index.names[i]} {index.paths[i].name}" for i in order]


def test_the_page_stands_alone_and_holds_the_true_neighbors(site, monkeypatch):
    index, file = site
    text = file.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    assert not re.search(r"(?:src|href)=[\"']?https?:", text)
    cosines = index.embeddings @ index.embeddings.T
    np.fill_diagonal(cosines, -9)
    for i, near in enumerate(data["neighbors"]):
        assert near == np.argsort(-cosines[i])[:4].tolist()
    assert all(len(picture["thumbnail"]) < 8000 for picture in data["pictures"])
    monkeypatch.setattr(search_page, "_MOST", 5)
    with pytest.raises(SobookError, match="too many"):
        search_page.page(index, file)


def test_clicks_files_and_the_filter(tab, site, tmp_path):
    index = site[0]
    assert tab.locator("h1").inner_text() == "A <b> {{data}}"
    tab.locator("#all button").nth(5).click()
    assert shown(tab) == expected(index, 5)
    tab.set_input_files("#file", shutil.copy(index.paths[7], tmp_path / "other name.png"))
    tab.wait_for_function("document.querySelector('#found img').alt.includes('07.png')")
    assert shown(tab) == expected(index, 7)
    Image.new("RGB", (9, 9)).save(tmp_path / "new.png")
    tab.set_input_files("#file", tmp_path / "new.png")
    tab.wait_for_function("document.getElementById('status').textContent.includes('not among')")
    tab.fill("#filter", "class 0")
    assert tab.locator("#all img").count() == 3
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_widget_answers_an_upload(site):
    widgets = pytest.importorskip("ipywidgets", minversion="8")
    index, encoder = site[0], Encoder.create("deit_micro_patch8_64").eval()
    upload, output = search_page.widget(index, encoder, k=2).children
    content = index.paths[4].read_bytes()
    answer = search_page.answer(index, encoder, "<my>.png", content, 2)
    assert answer.count("<figure") == 3 and "alt='query: &lt;my&gt;.png'" in answer
    assert "not a picture" in search_page.answer(index, encoder, "x.png", b"nothing", 2)
    file = {"name": "q.png", "type": "image/png", "size": len(content)}
    file |= {"last_modified": datetime.now(timezone.utc), "content": memoryview(content)}
    assert isinstance(upload, widgets.FileUpload)
    upload.value = (file,)  # by ipywidgets 8; 7 gives a dict
    assert output.value.count("<figure") == 3
    assert search_page.uploaded({"a.png": {"content": b"x"}}) == [("a.png", b"x")]
