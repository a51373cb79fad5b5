"""Whether a text names a subject. Knows normalised texts alone."""

from __future__ import annotations

_WITHOUT_BLANKS = (  # scripts that put no blanks between words
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Myanmar
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # kana
    ("\u3400", "\u9fff"),  # Han
    ("\uf900", "\ufaff"),
)


def names(text: str, subject: str) -> bool:
    """Tell whether a normalised text names a normalised subject, as whole words where words have
    blanks between them."""
    place = text.find(subject)
    while place >= 0:
        before, behind = text[place - 1 : place], text[place + len(subject) :][:1]
        if not (_continues(before, subject[:1]) or _continues(behind, subject[-1:])):
            return True
        place = text.find(subject, place + 1)
    return False


def _continues(neighbour: str, edge: str) -> bool:
    """Tell whether a character beside a word's edge belongs to the same word."""
    return neighbour.isalnum() and edge.isalnum() and not (_is_bare(neighbour) or _is_bare(edge))


def _is_bare(character: str) -> bool:
    return any(start <= character <= end for start, end in _WITHOUT_BLANKS)
