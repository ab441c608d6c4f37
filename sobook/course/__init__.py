"""Everything notebooks need beside the library: a session, and exercises that check themselves."""

from typing import TYPE_CHECKING

from sobook import lazy

if TYPE_CHECKING:
    from sobook.course.session import setup as setup

__getattr__, __dir__, __all__ = lazy(__name__, session="setup")
