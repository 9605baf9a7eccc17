"""Drawings as SVG text: the few shapes that plots need, with axes and round numbers."""

import html
import math
from collections.abc import Sequence

FONT = "Helvetica, Arial, sans-serif"
INK, GREY, PALE = "#222222", "#767676", "#dddddd"


class Drawing:
    """A picture of `width` x `height` pixels, y downwards; shapes are drawn in the order given."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        colour: str = INK,
        wide: float = 1,
        **more: str,
    ) -> None:
        """A polyline; `more` are attributes, `_` for `-`."""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        self._add(
            "polyline", points=points, fill="none", stroke=colour, stroke_width=f"{wide:g}", **more
        )

    def dot(self, x: float, y: float, radius: float, colour: str, fill: str | None = None) -> None:
        """A circle, filled with its own colour unless `fill` says another."""
        self._add(
            "circle",
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r=f"{radius:g}",
            fill=fill or colour,
            stroke=colour,
            stroke_width="1.5" if fill else "0",
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle."""
        self._add(
            "rect",
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            width=f"{width:.1f}",
            height=f"{height:.1f}",
            fill=colour,
        )

    def text(
        self, x: float, y: float, words: str, size: float = 12, colour: str = INK,
        anchor: str = "start",
    ) -> None:  # fmt: skip
        """Words whose baseline begins, has its middle or ends at a place."""
        attributes = _attributes(
            {
                "x": f"{x:.1f}",
                "y": f"{y:.1f}",
                "font-size": f"{size:g}",
                "fill": colour,
                "text-anchor": anchor,
            }
        )
        self.parts.append(f"<text{attributes}>{html.escape(words)}</text>")

    def render(self) -> str:
        """The SVG element, whole; it is a file's content and a part of a page alike."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}"'
        name = f"<title>{html.escape(self.title)}</title>"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} height="{self.height}" role="img" '
            f'font-family="{FONT}">{name}{"".join(self.parts)}</svg>\n'
        )

    def _add(self, shape: str, **attributes: str) -> None:
        named = {name.replace("_", "-"): value for name, value in attributes.items()}
        self.parts.append(f"<{shape}{_attributes(named)}/>")


def ticks(lo: float, hi: float, most: int = 6) -> list[float]:
    """At most `most` round numbers in lo..hi, evenly spaced: steps of 1, 2 or 5 times 10^n."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(lo / step - 1e-9)
    return [n * step for n in range(first, math.floor(hi / step + 1e-9) + 1)]


class Frame:
    """A plot's field inside a drawing, with its axes' ranges; (x, y) of data become places."""

    def __init__(
        self,
        drawing: Drawing,
        place: tuple[float, float, float, float],
        xs: tuple[float, float],
        ys: tuple[float, float],
    ) -> None:
        """place: left, top, width and height in pixels."""
        self.drawing, self.xs, self.ys = drawing, xs, ys
        self.left, self.top, self.width, self.height = place

    def x(self, value: float) -> float:
        """The column of a value."""
        return self.left + self.width * (value - self.xs[0]) / (self.xs[1] - self.xs[0])

    def y(self, value: float) -> float:
        """The row of a value."""
        return self.top + self.height * (self.ys[1] - value) / (self.ys[1] - self.ys[0])

    def axes(self, x_title: str, y_title: str) -> None:
        """Ticks with numbers, faint lines across, and titles."""
        bottom, right = self.top + self.height, self.left + self.width
        for value in ticks(*self.ys):
            self.drawing.line([self.left, right], [self.y(value)] * 2, PALE)
            self.drawing.text(self.left - 6, self.y(value) + 4, f"{value:g}", 11, GREY, "end")
        for value in ticks(*self.xs, 8):
            self.drawing.line([self.x(value)] * 2, [bottom, bottom + 4], GREY)
            self.drawing.text(self.x(value), bottom + 17, f"{value:g}", 11, GREY, "middle")
        self.drawing.line([self.left, right], [bottom] * 2, GREY)
        self.drawing.text((self.left + right) / 2, bottom + 34, x_title, 12, INK, "middle")
        self.drawing.text(self.left - 40, self.top - 10, y_title, 12, INK)


def _attributes(values: dict[str, str]) -> str:
    return "".join(f' {name}="{html.escape(value)}"' for name, value in values.items())
