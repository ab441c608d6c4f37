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
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
