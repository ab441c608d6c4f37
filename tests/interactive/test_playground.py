"""The playground's Python side; what happens in the browser is in test_explorer_browser.py."""

import sys
import types

import pytest

from sobook import figures
from sobook.interactive import playground


def test_page_is_one_file_with_its_settings():
    source = playground.html(num_classes=6, dim=3)
    assert '"num_classes": 6' in source and '"dim": 3' in source
    assert "http" not in source.replace("http-equiv", "")  # nothing to fetch


def test_settings_are_checked():
    for settings, message in (
        ({"num_classes": 9}, "3 to 8 classes"),
        ({"dim": 4}, "2 or 3 dimensions"),
        ({"so_weight": -1}, "must not be negative"),
        ({"color": "red"}, "no setting"),
    ):
        with pytest.raises(ValueError, match=message):
            playground.html(**settings)


def test_widget_and_page_come_from_one_source():
    pytest.importorskip("anywidget")
    widget = playground.playground(num_classes=5, dim=3)
    assert (widget.num_classes, widget.dim) == (5, 3)
    script = (playground._WEB / "playground.js").read_text()
    assert str(widget._esm) == script and script in playground.html()


def test_colab_gets_the_page_with_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    shown = playground.playground(num_classes=3)
    assert isinstance(shown, playground.Page) and "Colab" in shown._repr_html_()
    assert "srcdoc" in shown._repr_html_()


def test_a_page_carries_a_picture_for_where_frames_do_not_show(tmp_path):
    figure = figures.finish(figures.new_figure(2, 2), "a circle")
    page = playground.page().beside(figure, height=300)
    bundle, metadata = page._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain", "image/png"}
    assert metadata["image/png"]["alt"] == "a circle" and "height:300px" in bundle["text/html"]
    assert page.save(tmp_path / "page.html").read_text() == page.source
