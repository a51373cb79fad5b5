"""Thousands of points on hundreds of pixels: only points that nobody would see are left out.

In each column of pixels the first, the lowest, the highest and the last point stay, so that a dip
of a single revision is drawn as deep as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

Dot = tuple[float, float]  # x, y


def thin(dots: Sequence[Dot], columns: int) -> list[Dot]:
    """Return at most four dots in each of `columns` columns of equal width. `dots` come by x."""
    if len(dots) <= 2 * columns:
        return list(dots)
    selection: list[Dot] = []
    for column in by_column(dots, columns):
        places = range(len(column))
        lowest = min(places, key=lambda place: column[place][1])
        highest = max(places, key=lambda place: column[place][1])
        selection += [column[place] for place in sorted({0, lowest, highest, len(column) - 1})]
    return selection


def by_column(dots: Sequence[Dot], columns: int) -> list[list[Dot]]:
    """Group the dots in columns of equal width from the first x to the last, without empty ones."""
    if not dots:
        return []
    start, end = dots[0][0], dots[-1][0]
    width = (end - start) / columns or 1.0
    groups: dict[int, list[Dot]] = {}
    for dot in dots:
        groups.setdefault(min(columns - 1, int((dot[0] - start) / width)), []).append(dot)
    return [groups[column] for column in sorted(groups)]
