"""The playground: three to eight proxies on a circle or a sphere, moved by hand and by descent.

In a notebook with a kernel it is a widget (anywidget) whose numbers Python can read and set; on a
page without one the same script runs by itself. `Playground()` is the widget, `html` the page.
"""

import base64
import html as _html
import io
import json
import sys
from pathlib import Path

from sobook.errors import SobookError

_WEB = Path(__file__).resolve().parent / "assets"
_SETTINGS = {"num_classes": 4, "dim": 2, "so_weight": 20.0, "margin": 0.1, "scale": 32.0, "seed": 0}
COLAB_NOTE = (
    "Colab: this is the page form of the playground, which works without the kernel; on your own "
    "machine Playground() is a widget whose numbers Python can read."
)


def html(**settings) -> str:
    """The playground as one page that needs no kernel and no network.

    Args:
        settings: num_classes (3 to 8), dim (2 or 3), so_weight, margin, scale, seed.

    Raises:
        SobookError: an unknown setting, or one out of its range.
    """
    script, options = (_WEB / "playground.js").read_text(), json.dumps(_checked(settings))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,"><title>Proxy playground</title>'
        f"<style>body{{margin:0}}{(_WEB / 'playground.css').read_text()}</style></head><body>"
        f'<main id="board"></main><script type="module">{script}\n'
        "window.playground = { evaluate, step, newScene, board: mount("
        f"document.getElementById('board'), {options}) }};</script></body></html>"
    )


class Page:
    """A page that shows itself inside a notebook, and can be saved.

    Attributes:
        source: the HTML, complete in itself.
        height: of the frame in a notebook, pixels.
        note: a line above it.
        title: what the frame holds, for readers who do not see it.
        fallback: a figure for places that show no frames, such as a printed page.
    """

    def __init__(self, source, *, height: int = 560, note: str = "", title="page", fallback=None):
        self.source, self.height, self.note, self.title = source, height, note, title
        self.fallback = fallback

    def beside(self, fallback, *, height: int | None = None) -> "Page":
        """The same page with a figure to stand in for it, and another height."""
        page = Page(self.source, height=height or self.height, note=self.note, title=self.title)
        page.fallback = fallback
        return page

    def save(self, path) -> Path:
        """Write the page to a file."""
        path = Path(path).expanduser()
        path.write_text(self.source, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        note = f"<p>{_html.escape(self.note)}</p>" if self.note else ""
        return (
            f'{note}<iframe title="{_html.escape(self.title)}" sandbox="allow-scripts" '
            f'srcdoc="{_html.escape(self.source)}" style="width:100%;height:{self.height}px;'
            'border:0" loading="lazy"></iframe>'
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        if self.fallback is None:
            return bundle
        raw = io.BytesIO()
        self.fallback.savefig(raw, format="png", dpi=72)
        bundle["image/png"] = base64.b64encode(raw.getvalue()).decode()
        return bundle, {"image/png": {"alt": self.fallback.get_label() or self.title}}

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.source) / 1e6:.2f} MB of HTML; .save(path) writes it"


def playground(**settings):
    """The playground for where this runs: the widget, or in Colab the page with a note.

    Args:
        settings: as for `html`.
    """
    settings = _checked(settings)
    if "google.colab" not in sys.modules:
        try:
            return widget_class()(**settings)
        except ImportError:
            return page("anywidget is not installed: this is the page form.", **settings)
    return page(COLAB_NOTE, **settings)


def page(note: str = "", **settings) -> Page:
    """The page form, to be shown inside a notebook or saved."""
    return Page(html(**settings), note=note, title="Proxy playground")


def widget_class():
    """The widget's class; made on demand, so that sobook works without anywidget."""
    import anywidget
    import traitlets

    class Playground(anywidget.AnyWidget):
        """Proxies under the mouse; `proxies`, `images`, `labels`, `numbers` follow what is done."""

        _esm = _WEB / "playground.js"
        _css = _WEB / "playground.css"
        num_classes = traitlets.Int(4, min=3, max=8).tag(sync=True)
        dim = traitlets.Int(2, min=2, max=3).tag(sync=True)
        so_weight = traitlets.Float(20.0, min=0.0).tag(sync=True)
        margin = traitlets.Float(0.1).tag(sync=True)
        scale = traitlets.Float(32.0, min=1.0).tag(sync=True)
        rate = traitlets.Float(0.004).tag(sync=True)
        images_move = traitlets.Bool(False).tag(sync=True)
        seed = traitlets.Int(0).tag(sync=True)
        proxies = traitlets.List().tag(sync=True)
        images = traitlets.List().tag(sync=True)
        labels = traitlets.List().tag(sync=True)
        numbers = traitlets.Dict().tag(sync=True)

    return Playground


def _checked(settings: dict) -> dict:
    if unknown := set(settings) - set(_SETTINGS):
        raise SobookError(f"the playground has no setting {sorted(unknown)}; {list(_SETTINGS)}.")
    values = _SETTINGS | settings
    if not 3 <= values["num_classes"] <= 8 or values["dim"] not in (2, 3):
        raise SobookError("the playground shows 3 to 8 classes in 2 or 3 dimensions.")
    if values["so_weight"] < 0 or values["scale"] <= 0:
        raise SobookError("so_weight must not be negative, scale must be positive.")
    return values
