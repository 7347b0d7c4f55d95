"""Text split into a model's own tokens, by its tokenizer. The one file here that knows transformers."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from rl_estimators.errors import InputError

__all__ = ["Tokens"]

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can hold one, UTF-8 and tokenizers cannot
_AT_ONCE = 1024


class Tokens:
    """A piece is a token; of a character that several tokens share, the last one shows it.

    Written text does not say how it came about: a model may have spelt it with other tokens than its tokenizer would.
    The tokens that text does not show, like the one that ends a response, are not there.

    Args:
        name: A folder with a tokenizer, or a model's name.

    Raises:
        InputError: transformers is not installed, there is no such tokenizer, or it does not say where tokens begin.
    """

    exact = True

    def __init__(self, name: str) -> None:
        if find_spec("transformers") is None:
            raise InputError("--tokenizer needs transformers: pip install transformers")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # what it raises depends on what it finds, and where it looks
            raise InputError(
                f"no tokenizer can be loaded from {name!r}: {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"the tokenizer {name!r} ({type(tokenizer).__name__}) does not say where a token begins in the text; a "
                "fast one is needed, a tokenizer.json"
            )
        tokenizer.model_max_length = 2**62  # nothing is cut, and nothing warned of: no model reads this
        self._tokenizer = tokenizer

    def split(self, text: str) -> list[str]:
        """The pieces; joined they are the text."""
        (begins,) = self._begins([text])
        if not begins:
            return [text] if text else []
        edges = [0, *begins[1:], len(text)]
        return [text[start:end] for start, end in pairwise(edges)]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        found: list[int] = []
        for first in range(0, len(texts), _AT_ONCE):
            part = texts[first : first + _AT_ONCE]
            found += [
                len(begins) or bool(text) for text, begins in zip(part, self._begins(part), strict=True)
            ]
        return found

    def _begins(self, texts: Sequence[str]) -> list[list[int]]:
        """Where each token begins in its text."""
        if not texts:
            return []
        clean = [_SURROGATE.sub("\ufffd", text) for text in texts]
        encoded = self._tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True)
        return [[begin for begin, _ in offsets] for offsets in encoded["offset_mapping"]]
