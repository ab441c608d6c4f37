"""The explorer in headless Chromium: at least 30 frames a second with 2,000 points."""

from sobook.course.pages import explorer
from tests.course.pages.conftest import visit  # noqa: F401  (fixture)
from tests.course.pages.test_explorer import toy


def test_frames(visit, capsys):  # noqa: F811
    arrays = toy(classes=60, test=40, each=20, dim=32, epochs=9)
    source = explorer.build(*arrays, methods=["pca"]).source
    page = visit(source)
    page.evaluate("frames = 0, drawn = drawMap, drawMap = () => { frames += 1; drawn() }; 0")
    page.evaluate("state.epoch = 0, play(true)")
    page.wait_for_timeout(3000)
    rate = page.evaluate("frames") / 3
    with capsys.disabled():
        print(f"\nexplorer, 2,000 points: {rate:.0f} frames a second (goal 30)")
    assert rate >= 30 and len(source) < 8e6
