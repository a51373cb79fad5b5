"""HTML and SVG that cannot be broken out of: text that is not Markup is escaped.

Knows elements, attributes and text; leaves their meaning to others.
"""

from __future__ import annotations

from html import escape

VOID = frozenset({"meta", "link", "br", "hr", "col", "wbr", "img"})


class Markup(str):
    """Text that is markup, and is put into other markup as it is."""

    __slots__ = ()


def element(tag: str, /, *children: Markup | str | int | None, **attributes: object) -> Markup:
    """Return an element. Children that are no Markup are escaped; None is nothing.

    Attributes are escaped too; `class_` is class, `view_box` is viewBox, `stroke_width` is
    stroke-width; None and False leave one out, True gives it no value.
    """
    content = join(*children)
    start = f"<{tag}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Markup(start if tag in VOID else f"{start}{content}</{tag}>")


def join(*children: Markup | str | int | None) -> Markup:
    """Join children one after another; text that is no Markup is escaped."""
    return Markup("".join(_text(child) for child in children if child is not None))


def _text(child: Markup | str | int) -> str:
    return child if isinstance(child, Markup) else escape(str(child), quote=False)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    key = "viewBox" if name == "view_box" else name.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{escape(str(value), quote=True)}"'
