"""Numbers and texts as the page's script reads them: small, and unable to end the element they stand in."""

import base64
import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["number", "row", "text_of_json"]

# What HTML or a reader of the source could take for anything but a character of a string: markup, control and format
# characters, line separators, half surrogates, characters of no width beyond the first plane.
_HOSTILE = re.compile(
    "[<>&\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\uffff\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LEAST_SAVED = 4  # a run is two numbers in the text; below this mean length the packed form is shorter


def number(value: float) -> float | str:
    """One number as JSON has it: six digits, and a name where JSON has none (``"NaN"``, ``"Infinity"``)."""
    value = float(value)
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short


def row(numbers: NDArray[Any]) -> list[float | str] | str:
    """A row of numbers: runs of equal ones as ``[length, value, length, value, ...]``, else packed.

    Packed is base64 of the upper three bytes of each number in IEEE 754 single precision: sign, exponent and 15 of the
    23 further bits, so a relative error of at most 2**-16, 0 stays 0, and four characters a number.
    """
    numbers = np.asarray(numbers, dtype=np.float32)
    if not numbers.size:
        return []
    differs = (numbers[1:] != numbers[:-1]) & ~(np.isnan(numbers[1:]) & np.isnan(numbers[:-1]))
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    if len(starts) * _LEAST_SAVED <= numbers.size or numbers.size <= _LEAST_SAVED:
        lengths = np.diff(np.concatenate((starts, [numbers.size])))
        pairs = zip(lengths.tolist(), numbers[starts].tolist(), strict=True)
        return [part for length, value in pairs for part in (length, number(value))]
    return base64.b64encode(_upper_bytes(numbers)).decode("ascii")


def _upper_bytes(numbers: NDArray[np.float32]) -> bytes:
    numbers = np.where(np.isnan(numbers), np.float32(np.nan), numbers)  # other NaNs could round to a number
    bits = numbers.astype("<f4").view("<u4")
    finite = np.isfinite(numbers)
    rounded = np.where(finite, (bits.astype(np.uint64) + 0x80) >> 8, bits >> 8).astype("<u4")
    return rounded.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def text_of_json(data: Any) -> str:
    """JSON that may stand inside a ``<script>`` element, and inside UTF-8, whatever the strings in it hold."""
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _HOSTILE.sub(_escaped, plain)


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
