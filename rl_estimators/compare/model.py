"""What is compared, and what comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Comparison", "Rollouts"]


@dataclass(frozen=True)
class Rollouts:
    """One training step's responses: what estimators see of them, and what people read.

    Attributes:
        source: The file they were read from, as the user named it.
        step: The training step, if the file says.
        prompts: ``B`` texts; None where the file has none.
        pieces: ``B`` lists of ``T_b`` texts, one for each position of ``response_mask`` up to the response's end: what
            the token view shows. Joined they are the response.
        exact: Whether ``pieces`` are the policy's own tokens; else the text was split at words, and lengths are
            approximate.
        inputs: Tensors, and names of groups, under the names of :data:`rl_estimators.fields.FIELDS`, each ``(B, T)``,
            ``(B,)`` or ``(B, K)``. There always are ``token_level_rewards``, ``response_mask`` and ``index``.
        components: Names of the K rewards of ``reward_components``, where the file names them.
        logged: ``(B,)`` the advantages that the run itself has logged, if it has.
        notes: What a reader of the numbers has to know: what was summed, left out, or assumed.
        format: What the file was read as, in words.
    """

    source: str
    step: int | None
    prompts: Sequence[str | None]
    pieces: Sequence[Sequence[str]]
    exact: bool
    inputs: Mapping[str, Any]
    components: Sequence[str] = ()
    logged: Tensor | None = None
    notes: Sequence[str] = ()
    format: str = ""


@dataclass(frozen=True)
class Comparison:
    """What each estimator makes of one step's rollouts.

    Attributes:
        rollouts: What was compared.
        advantages: ``(B, T)`` for each estimator that could run, by the name the user gave, in the user's order. What the
            run itself has logged comes last, as ``logged``.
        not_run: For each estimator that could not, why.
        excluded: For each that ran, how many responses it left out because a number was not finite.
    """

    rollouts: Rollouts
    advantages: Mapping[str, Tensor]
    not_run: Mapping[str, str] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)
