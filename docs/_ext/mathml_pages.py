"""Sphinx extension: formulas become MathML when pages are built, and unused scripts stay out.

Browsers draw MathML themselves, so a page needs no script for its mathematics and works from a
file, offline. The converter is the one of the notebooks' own pages (`notebooks/build.py pages`).
"""

import html
import re

from docutils import nodes
from latex2mathml.converter import convert


def to_mathml(tex: str, display: str = "inline") -> str:
    """A formula as MathML; what the converter does not know stays as it was typed."""
    tex = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{split}", tex.strip())  # one it does not know
    try:
        return convert(tex, display=display)
    except Exception:  # of many kinds; a page is worth more than a formula
        return f"<code>{html.escape(tex)}</code>"


def visit_math(translator, node) -> None:
    translator.body.append(f'<span class="math">{to_mathml(node.astext())}</span>')
    raise nodes.SkipNode


def visit_displaymath(translator, node) -> None:
    # `amsmath` blocks come with their own environment; align is what the converter calls split.
    tex = re.sub(r"\\(begin|end)\{(?:align|equation)\*?\}", r"\\\1{split}", node.astext())
    formula = to_mathml(tex, "block")
    translator.body.append(f'<div class="math displaymath" tabindex="0">{formula}</div>')
    raise nodes.SkipNode


def without_thebe(app, page, template, context, doctree) -> None:
    """Leave out the scripts for running cells in the page, which Jupyter Book adds (twice)."""
    context["script_files"] = [
        script
        for script in context.get("script_files", ())
        if "thebe" not in f"{script} {getattr(script, 'attributes', '')}".lower()
    ]


def keep_bars(app, what, name, obj, options, lines) -> None:
    """In docstrings |x| is an absolute value, not a substitution of reStructuredText."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("html-page-context", without_thebe, priority=990)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_displaymath, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
