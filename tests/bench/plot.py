"""Lines in a picture: as much of SVG as the documents need, legible on white and on black."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1010, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 450, 40, 50
COLOURS = ("#d1495b", "#e08e2b", "#2a9d8f", "#8a63b5", "#4a7bd0")
GREY = "#888888"
FONT = f'font-family="sans-serif" font-size="12" fill="{GREY}"'


@dataclass(frozen=True)
class Line:
    """A series of points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    """Index in COLOURS."""
    dashed: bool = False


def lines(title: str, x_axis: str, y_axis: str, series: Sequence[Line]) -> str:
    """The picture. The axes begin at 0 and end behind the largest value."""
    x_step = _step(max(max(each.x) for each in series))
    y_step = _step(max(max(each.y) for each in series))
    x_end = _end(max(max(each.x) for each in series), x_step)
    y_end = _end(max(max(each.y) for each in series), y_step)

    def place(x: float, y: float) -> str:
        across = LEFT + x / x_end * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - y / y_end * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<text x="{LEFT}" y="22" font-size="15">{html.escape(title)}</text>',
    ]
    for tick in _ticks(y_end, y_step):
        parts += [
            f'<path d="M{place(0, tick)}L{place(x_end, tick)}" stroke="{GREY}" opacity="0.3"/>',
            _text(place(0, tick), f"{tick:,g} {y_axis}", "end", -8, 4),
        ]
    parts += [
        _text(place(tick, 0), f"{tick:,g}", "middle", 0, 18) for tick in _ticks(x_end, x_step)
    ]
    parts.append(_text(place(x_end / 2, 0), x_axis, "middle", 0, 38))
    for number, each in enumerate(series):
        style = (
            f'stroke="{COLOURS[each.colour]}" stroke-width="2.2" fill="none"'
            + ' stroke-dasharray="3 4"' * each.dashed
        )
        points = " ".join(place(x, y) for x, y in zip(each.x, each.y, strict=True))
        height = TOP + 20 + 22 * number
        begin = WIDTH - RIGHT + 20
        parts += [
            f'<polyline points="{points}" {style}/>',
            f'<path d="M{begin},{height}h28" {style}/>',
            f'<text x="{begin + 36}" y="{height + 4}">{html.escape(each.name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(place: str, text: str, anchor: str, across: int, down: int) -> str:
    x, y = map(float, place.split(","))
    where = f'x="{x + across:.1f}" y="{y + down:.1f}" text-anchor="{anchor}"'
    return f"<text {where}>{html.escape(text)}</text>"


def _step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are four to ten steps."""
    power = 10.0 ** math.floor(math.log10(largest / 4))
    return max(each * power for each in (1, 2, 5) if each * power <= largest / 4)


def _end(largest: float, step: float) -> float:
    return math.ceil(largest / step) * step


def _ticks(end: float, step: float) -> list[float]:
    return [step * number for number in range(round(end / step) + 1)]
