"""HTML in which no text can become a tag: whatever is not made here is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from vipscope.logs import escape


class Markup(str):
    """What is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element. `class_` and `aria_label` are the attributes class and aria-label."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """One after another, what is not Markup escaped."""
    return Markup("".join(each if isinstance(each, Markup) else _text(each) for each in children))


def _text(text: str) -> str:
    # Terminal controls and changes of direction can spoil a page as well.
    return html.escape(escape(text))


def sparkline(points: Sequence[tuple[float, int | None]], what: str) -> Markup:
    """A small line; points are (0 to 1 from left to right, value), with None where it breaks.

    At least one has a value. It takes its colour from the style; words tell what it shows, too.
    """
    known = [value for _, value in points if value is not None]
    low, high = min(known), max(known)
    described = f"{what}: {low:,} to {high:,}" if high > low else f"{what}: {low:,}"

    def y(value: int) -> float:
        return _HEIGHT / 2 if high == low else _TOP + (high - value) / (high - low) * _REACH

    lines: list[list[str]] = [[]]
    for x, value in points:
        if value is None:
            lines.append([])
        else:
            lines[-1].append(f"{x * _WIDTH:.1f},{y(value):.1f}")
    drawn = (
        # A single point is a line without length, of which the round cap is seen.
        tag("polyline", points=" ".join(line if len(line) > 1 else line * 2))
        for line in lines
        if line
    )
    return tag(
        "svg", tag("title", described), *drawn,
        class_="line", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", preserveAspectRatio="none",
        role="img", aria_label=described,
    )  # fmt: skip


_WIDTH, _HEIGHT, _TOP, _REACH = 120, 24, 2, 20
