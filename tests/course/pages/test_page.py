"""Pages: what a notebook shows of them, and data that cannot break out."""

import json
import re

from PIL import Image

from sobook import figures
from sobook.course.pages import page


def test_a_page_carries_a_picture_for_where_frames_do_not_show(tmp_path):
    figure = figures.finish(figures.new_figure(2, 2), "a circle")
    shown = page.Page("<p>hi</p>", title="a greeting").beside(figure, height=300)
    bundle, metadata = shown._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain", "image/png"}
    assert metadata["image/png"]["alt"] == "a circle" and "height:300px" in bundle["text/html"]
    assert 'title="a greeting"' in bundle["text/html"] and "srcdoc" in bundle["text/html"]
    assert shown.save(tmp_path / "page.html").read_text() == shown.source


def test_data_comes_back_as_it_was_and_cannot_end_its_script():
    data = {"names": ["<!--<script>", "</script>", "\u2028", '"quoted"', "{{script}}"], "n": 1.5}
    source = page.render("search", "{{data}} & <b>", data)
    written = re.search(r'id="data">(.*?)</script>', source, re.DOTALL)[1]
    assert json.loads(written) == data and "<" not in written
    assert "<title>{{data}} &amp; &lt;b&gt;</title>" in source


def test_a_thumbnail_is_the_middle_square():
    wide = Image.new("RGB", (80, 20), "red")
    wide.paste("blue", (20, 0, 60, 20))
    small = page.thumbnail(wide, 5)
    assert small.size == (5, 5) and small.getcolors() == [(25, (0, 0, 255))]
    assert page.data_url(small, "png").startswith("data:image/png;base64,")
