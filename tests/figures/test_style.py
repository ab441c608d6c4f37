"""The book's style: colors, settings, and the output for a notebook."""

import base64
import io

import matplotlib as mpl
import numpy as np
from PIL import Image

from sobook import figures
from tests.figures.reading import PA, SO


def test_methods_keep_their_colors_and_others_get_stable_ones():
    assert figures.method_color("PA") == PA != figures.method_color("PA+SO") == SO
    assert figures.method_color("triplet") == figures.method_color("triplet")
    assert figures.method_color("triplet") not in (PA, SO)


def test_style_holds_when_drawn_later_and_leaves_other_settings_alone(proxies):
    before = dict(mpl.rcParams)
    figure = figures.spectra(proxies)
    with mpl.rc_context({"xtick.labelsize": 3}):
        figure.canvas.draw()
    assert all(label.get_size() == 12 for label in figure.axes[0].get_xticklabels())
    assert dict(mpl.rcParams) == before


def test_a_notebook_gets_the_picture_and_its_alternative_text(proxies, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *data, **how: shown.append((*data, how)))
    figures.spectra(proxies)._ipython_display_()
    data, how = shown.pop()
    picture = how["metadata"]["image/png"]
    assert data["text/plain"] == picture["alt"]
    assert picture["alt"].startswith("Singular values of the proxies; effective rank of 18: PA")
    width = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width
    assert width == 2 * picture["width"]  # sharp on dense screens
    noisy = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    figures.contact_sheet(noisy)._ipython_display_()
    assert "image/jpeg" in shown.pop()[0]  # photographs as PNG would make a notebook heavy
