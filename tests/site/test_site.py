"""The built site, as a reader's browser shows it, from files and without network.

Built by `make book`, run by `make book-test`; in an ordinary test run this skips where no site was
built.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HTML = Path(__file__).resolve().parents[2] / "build/book/_build/html"
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if not {"_static", "_sources", "_images", "_downloads"} & set(path.relative_to(HTML).parts)
    and path.name not in ("genindex.html", "py-modindex.html", "search.html")  # made by Sphinx
)

if not PAGES:
    pytest.skip("no site in build/book: run `make book` first", allow_module_level=True)


@pytest.fixture
def tab(browser):
    """A tab that remembers what went wrong in it: `tab.trouble`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.trouble = []
    page.on("console", lambda m: page.trouble.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("request", lambda r: page.trouble.append(r.url) if not local(r.url) else None)
    yield page
    context.close()


def local(url: str) -> bool:
    return urlsplit(url).scheme in ("file", "data", "blob", "about")


def go(tab, page: str) -> None:
    tab.goto((HTML / page).as_uri(), wait_until="load")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_complete_and_without_complaint(tab, page):
    go(tab, page)
    assert not tab.trouble
    assert tab.locator("h1").first.inner_text()
    pictures = tab.evaluate(
        """async () => {
            const all = [...document.querySelectorAll("article img")];
            for (const image of all) {
                image.loading = "eager";
                await image.decode().catch(() => 0);
            }
            return all.map((i) => [i.currentSrc.slice(-60), i.naturalWidth, i.alt]);
        }"""
    )
    assert [p for p in pictures if p[1] == 0] == [], "pictures that do not load"
    assert [p for p in pictures if len(p[2]) < 5] == [], "pictures without a description"


# Formulas that were left as they were typed; outside code, where such text belongs.
LEFT = re.compile(r"\$\$|\\(?:frac|sum|hat|lVert|mathrm|text|begin)\b|\$[^$\n]*\\[a-z]+[^$\n]*\$")


@pytest.mark.parametrize("page", PAGES)
def test_mathematics_is_drawn(tab, page):
    go(tab, page)
    text = tab.evaluate(
        """() => {
            const copy = document.querySelector("article").cloneNode(true);
            copy.querySelectorAll("pre, code, math annotation").forEach((e) => e.remove());
            return copy.textContent;
        }"""
    )
    assert not (found := LEFT.search(text)), found.group(0)
    flat = tab.evaluate(
        """() => [...document.querySelectorAll("article math")].filter((m) => {
            const box = m.getBoundingClientRect();
            return m.checkVisibility() && (box.height < 4 || box.width < 2);
        }).length"""
    )
    assert flat == 0
    cut = tab.evaluate(
        """() => [...document.querySelectorAll(".displaymath")].filter((box) => {
            box.scrollLeft = 0;
            const inner = box.firstElementChild.getBoundingClientRect();
            const start = box.getBoundingClientRect().left;
            return inner.left < start - 1 || box.scrollWidth < inner.width - 1;
        }).length"""
    )
    assert cut == 0  # the beginning of a formula that is too wide can be reached, and its end
    if re.search("notebooks/0[03457]|notation|glossary", page):
        assert tab.locator("article math").count() >= 3


class Links(HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id") or values.get("name"))
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])


@pytest.fixture(scope="module")
def links():
    return {page: Links((HTML / page).read_text(encoding="utf-8")) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_site_lead_somewhere(links, page):
    dead = []
    for href in links[page].targets:
        parts = urlsplit(href)
        if parts.scheme or parts.netloc:
            continue
        path = ((HTML / page).parent / unquote(parts.path)).resolve() if parts.path else HTML / page
        if not path.exists():
            dead.append(href)
            continue
        name = path.relative_to(HTML.resolve()).as_posix()
        if parts.fragment and name in links and unquote(parts.fragment) not in links[name].ids:
            dead.append(href)
    assert dead == []


@pytest.mark.parametrize("page", PAGES)
def test_a_narrow_screen_does_not_scroll_sideways(tab, page):
    tab.set_viewport_size({"width": 400, "height": 800})
    go(tab, page)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 401
    size = tab.evaluate("parseFloat(getComputedStyle(document.querySelector('article')).fontSize)")
    assert size >= 14


CONTRAST = """() => {
    const numbers = (color) => (color.match(/[\\d.]+/g) || [0, 0, 0]).map(Number);
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => {
        v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = (e) => { for (; e; e = e.parentElement) {
        const c = numbers(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0.5) return c; } return [255, 255, 255]; };
    const found = [];
    const kinds = ["p", "li", "td", "th", "h1", "h2", "pre", "math"];
    for (const e of document.querySelectorAll(kinds.map((kind) => "article " + kind).join())) {
        if (!e.textContent.trim() || !e.checkVisibility()) continue;
        const a = light(numbers(getComputedStyle(e).color)), b = light(behind(e));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const said = e.textContent.trim().slice(0, 40);
        if (ratio < 4.5) found.push([e.tagName, said, ratio.toFixed(1)]);
    }
    return found.slice(0, 5);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_text_can_be_read_in_either_theme(tab, page, theme):
    tab.add_init_script(
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
    )
    go(tab, page)
    assert tab.evaluate("document.documentElement.dataset.theme") == theme
    assert tab.evaluate(CONTRAST) == []
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(float, re.findall(r"[\d.]+", back)[:3])) / 3
    assert (brightness > 128) == (theme == "light")


@pytest.mark.parametrize("word, page", [("Welch", "05_soft"), ("misconceptions", "teaching")])
def test_the_search_finds(tab, word, page):
    tab.goto((HTML / "search.html").as_uri() + f"?q={word}")
    tab.wait_for_selector("#search-results li a", timeout=60_000)
    found = tab.eval_on_selector_all("#search-results li a", "all => all.map((a) => a.href)")
    assert any(page in href for href in found)
    assert not tab.trouble


def test_every_notebook_has_a_launch_button():
    for page in PAGES:
        if page.startswith("notebooks/"):
            text = (HTML / page).read_text(encoding="utf-8")
            name = page.split("/")[1].removesuffix(".html")
            assert re.search(
                rf"https://colab\.research\.google\.com/github/[^\"]+/notebooks/{name}\.ipynb", text
            )


def test_answers_are_folded_and_unfold(tab):
    go(tab, "notebooks/04_proxy_anchor.html")
    folded = tab.locator("article details").last
    assert folded.get_attribute("open") is None
    folded.locator("summary").click()
    assert folded.locator("p, math").first.is_visible()
