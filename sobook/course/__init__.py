"""What the notebooks need beside the package: a session, and exercises that check themselves.

`session.setup` opens every notebook; `exercises.check` judges an answer by `checks`, which are made
of the comparisons in `compare`; `grading` runs notebooks that were handed in.
"""

from typing import TYPE_CHECKING

from sobook import lazy

if TYPE_CHECKING:
    from sobook.course import exercises as exercises
    from sobook.course.session import setup as setup

__getattr__, __dir__, __all__ = lazy.attach(__name__, {"sobook.course.session": ["setup"]})
__all__ += ["exercises"]
