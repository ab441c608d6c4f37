"""A browser that opens pages from files and lets nothing go wrong.

Debian's chromium (or another Chrome on PATH) is used, nothing is downloaded; where there is none,
these tests skip and say so. No page may ask the network for anything, or write an error.
"""

import pytest

HEAD = "<!doctype html><html><head><link rel='icon' href='data:,'></head><body>"


@pytest.fixture
def visit(browser, tmp_path):
    """Opens HTML from a file, as a reader would; at the end nothing may have gone wrong."""
    errors, requests, pages = [], [], []

    def open_page(source, **options):
        file = tmp_path / f"page{len(pages)}.html"
        file.write_text(source, encoding="utf-8")
        # The pages' own policy forbids network and eval; without it the driver can wait for a
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


# WCAG 2.2, success criterion 1.4.3: text that is shown and not disabled, each against the colors
# behind it, laid over one another; 3 is enough for large text. What canvases hold is not text.
CONTRAST = """() => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, k) => a * v + (1 - a) * below[k]);
  const light = (color) => {
    const [r, g, b] = color.map((v) =>
      v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const chain = (node) => (node ? [...chain(node.parentElement), node] : []);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const valued = node.matches("select, input[type=number], input[type=search]");
    if (!(own || valued) || !node.checkVisibility() || node.closest("script, option")) continue;
    if (node.closest(":disabled, [aria-disabled=true]") || !node.getClientRects().length) continue;
    if (getComputedStyle(node).backgroundImage !== "none") continue; // a picture, marked by shape
    let behind = dark ? [0, 0, 0] : [255, 255, 255];
    for (const one of chain(node)) {
      behind = over(parse(getComputedStyle(one).backgroundColor), behind);
    }
    const style = getComputedStyle(node), color = parse(style.color);
    color[3] *= chain(node).reduce((all, one) => all * getComputedStyle(one).opacity, 1);
    const [a, b] = [light(over(color, behind)), light(behind)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize) * (style.fontWeight >= 700 ? 24 / 18.66 : 1);
    if (ratio < (size >= 24 ? 3 : 4.5))
      found.push(`${ratio.toFixed(2)} ${node.tagName} ${node.textContent.trim().slice(0, 40)}`);
  }
  return found;
}"""
