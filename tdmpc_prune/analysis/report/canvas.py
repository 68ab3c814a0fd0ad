"""A figure as SVG to stand inside a page, and as PNG to stand alone; colours that suit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""Text and axes: black on the PNG's white; in the SVG it becomes the colour of the page's text."""
COLOURS = ("#1F7FC4", "#D55E00", "#009E73", "#C4609F", "#A67C00", "#8A6FD6")
"""After Okabe and Ito, for the colour-blind; each stands out (3:1) from white and from near black."""
MARKERS = "osD^vP"
WIDTH = 5.4
"""Inches. All figures are as wide, so that text is as large in each; narrow, so that a phone shows it legibly."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.parse_math": False,  # what people typed is no formula
    "svg.fonttype": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    name: str
    """Its file's name without .png, unlike any other's."""
    title: str
    """What it is."""
    caption: str
    """What to see."""
    svg: Markup
    """An svg element that scales with its container."""
    png: bytes
    """The same on white."""
    folded: bool = False
    """Whether the page shows it only when asked to."""


def paint(
    name: str,
    title: str,
    caption: str,
    draw: Callable[[Figure], None],
    height: float,
    *,
    folded: bool = False,
) -> Picture:
    """Makes a picture of what `draw` puts on a figure of this height, inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=150, facecolor="white")
        figure.set_layout_engine("none")  # everything has its place by now
        figure.savefig(svg, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return Picture(name, title, caption, _inlined(svg.getvalue(), name, title), png.getvalue(), folded)


def _inlined(svg: str, name: str, title: str) -> Markup:
    """matplotlib's SVG file as an element of a page that holds others like it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Ids are numbered anew in every file.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "an SVG without a viewBox"
    start = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{}" {}>')
    return start.format(title, Markup(box[0])) + Markup(svg[svg.index(">") + 1 :].strip())


def slug(*words: str) -> str:
    """Words as a file's name and an id."""
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-.")[:120]
