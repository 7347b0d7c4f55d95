"""Text for a terminal: what may be printed of it, and how wide it is there."""

import re
import unicodedata

__all__ = ["MOST", "clip", "clip_middle", "escaped", "pad", "width"]

MOST = 4000  # columns of one message: a name in a file made by hand may have millions of signs

# Controls may move the cursor or recolour the screen, direction marks reorder what stands there, others are not to be seen.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_PLAIN = re.compile(r"[ -~]*")


def escaped(text: str) -> str:
    r"""Everything on one line, and whatever does not show as a sign written out: ``\n``, ``\x1b``, ``\u202e``."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(_escape(sign) if unicodedata.category(sign) in _UNSEEN else sign for sign in text)


def width(text: str) -> int:
    """Columns that a text takes: signs of East Asian scripts take two, marks on the sign before none."""
    if _PLAIN.fullmatch(text):
        return len(text)
    return sum(_columns(sign) for sign in text)


def clip(text: str, columns: int) -> str:
    """A text on one line, escaped, in at most so many columns; where something is cut off it ends in dots."""
    # An escape is at most ten columns: what is beyond need not be looked at.
    shown = escaped(text[: columns + 1])
    if width(shown) <= columns and len(text) <= columns + 1:
        return shown
    room, kept = columns - 3, ""
    for sign in shown:
        room -= _columns(sign)
        if room < 0:
            break
        kept += sign
    return kept + "..."[: max(columns, 0)]


def clip_middle(text: str, columns: int) -> str:
    """As :func:`clip`, but what is cut off is the middle: of a response the end matters as much as the beginning."""
    if len(text) <= columns and width(escaped(text)) <= columns:
        return escaped(text)
    half = (columns - 3) // 2
    end, room = "", half
    for sign in reversed(escaped(text[-half:])):
        room -= _columns(sign)
        if room < 0:
            break
        end = sign + end
    return clip(text, columns - width(end)) + end


def pad(text: str, columns: int, right: bool = False) -> str:
    """A text with spaces up to so many columns."""
    space = " " * (columns - width(text))
    return space + text if right else text + space


def _columns(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def _escape(sign: str) -> str:
    code = ord(sign)
    if sign in _SHORT:
        return _SHORT[sign]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
