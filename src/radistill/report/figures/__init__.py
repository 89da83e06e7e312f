"""The figures of a report, one file each: a function from a run folder's figures to inline SVG."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A drawing and what belongs under it.

    Attributes:
        drawing: inline SVG, for wide and narrow pages.
        legend: sample and meaning of each mark.
        notes: sentences for the caption.
    """

    drawing: Markup
    legend: tuple[tuple[Markup, str], ...] = ()
    notes: tuple[str, ...] = ()
