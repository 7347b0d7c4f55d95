"""Text split at words, for files that hold text and no tokens."""

import re
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Splitter", "Words"]

# Chinese, Japanese and Korean have no spaces between words: a sign is a piece there.
_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"\s*(?:[{_SIGNS}]|[^\W{_SIGNS}]+|[^\w\s])|\s+")


class Splitter(Protocol):
    """Cuts a text into pieces; joined they are the text.

    Attributes:
        exact: Whether the pieces are a model's own tokens.
    """

    exact: bool

    def split(self, text: str) -> list[str]:
        """The pieces."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many pieces each text has."""


class Words:
    """A word, a punctuation mark or a sign with the white space before it is a piece."""

    exact = False

    def split(self, text: str) -> list[str]:
        """The pieces; joined they are the text."""
        return _WORD.findall(text)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many pieces each text has."""
        return [sum(1 for _ in _WORD.finditer(text)) for text in texts]
