"""The explorer in headless Chromium: at least 30 frames a second with 2,000 points."""

from tests.course.pages.conftest import visit  # noqa: F401  (fixture)
from tests.course.pages.test_explorer import frames_a_second


def test_frames(visit, capsys):  # noqa: F811
    rate = frames_a_second(visit)
    with capsys.disabled():
        print(f"\nexplorer, 2,000 points: {rate:.0f} frames a second (goal 30)")
    assert rate >= 30
