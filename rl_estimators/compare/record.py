"""One response as a file has it, before it meets the others of its batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from rl_estimators.compare.conversation import Parts
from rl_estimators.compare.words import Splitter

__all__ = ["Pieces", "Record"]


@dataclass(slots=True)
class Record:
    """One response.

    Attributes:
        place: Where it stands, for messages.
        step: The training step, if the file says.
        prompt: What it answers, if the file says.
        group: What tells its prompt from others: its name, else its text; None where there is neither.
        response: Its pieces, or its texts, each with whether the policy wrote it.
        reward: Its reward; None where the tokens' rewards, or several rewards, are given.
        tokens: Numbers for each piece, by the names of :data:`rl_estimators.fields.FIELDS`.
        numbers: Numbers for the whole response, likewise.
        components: Its rewards by name, before they are weighed and summed.
        columns: Other numbers that the file has of it.
        logged: The advantage that the run itself has logged.
        session: For one of several outputs of an agent loop: the loop's name, and which of its outputs this is.
    """

    place: str
    step: int | None
    prompt: str | None
    group: str | int | None
    response: list[str] | Parts
    reward: float | None = None
    tokens: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, float] = field(default_factory=dict)
    logged: float | None = None
    session: tuple[str, int] | None = None

    def characters(self) -> int:
        """How much text it holds."""
        told = self.response
        texts = told if isinstance(told, list) else [text for text, _ in told]
        return len(self.prompt or "") + sum(map(len, texts))


class Pieces(Sequence[Sequence[str]]):
    """The pieces of each response, cut when they are looked at: a word each would take ten times the text's memory."""

    def __init__(self, responses: Sequence[list[str] | Parts], splitter: Splitter) -> None:
        self._responses = responses
        self._splitter = splitter

    def __len__(self) -> int:
        return len(self._responses)

    @overload
    def __getitem__(self, at: int) -> Sequence[str]: ...
    @overload
    def __getitem__(self, at: slice) -> "Pieces": ...
    def __getitem__(self, at: int | slice) -> "Sequence[str] | Pieces":
        if isinstance(at, slice):
            return Pieces(self._responses[at], self._splitter)
        response = self._responses[at]
        if isinstance(response, list):
            return response
        # A response without text had at least the token that ends it.
        return [piece for text, _ in response for piece in self._splitter.split(text)] or [""]
