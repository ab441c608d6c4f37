"""Readers for what a figure shows."""

import matplotlib as mpl

from sobook import figures

PA, SO = figures.COLORS["PA"], figures.COLORS["PA+SO"]


def texts(figure):
    """All text in a figure."""
    return " | ".join(t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text())


def legend(figure):
    boxes = [*figure.legends, *filter(None, (axis.get_legend() for axis in figure.axes))]
    return [text.get_text() for box in boxes for text in box.get_texts()]
