"""What the frameworks' logs call the same thing: the one table of names."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CONCEPTS", "Concept", "canonical"]


@dataclass(frozen=True)
class Concept:
    """A curve that is worth a look in every run.

    Attributes:
        name: What ``--metric`` and the table call it.
        title: What stands above its panel.
        verl: verl's names for it; the first that a run has is taken.
        trl: TRL's names, and those of our trainers, likewise.
        best: ``max`` where more is better; None where neither end is good in itself.
        floor: Below it the vertical axis is cut off; None: it never is.
    """

    name: str
    title: str
    verl: tuple[str, ...]
    trl: tuple[str, ...]
    best: str | None = None
    floor: float | None = None

    @property
    def names(self) -> Sequence[str]:
        """All names, verl's first: no run has names of both."""
        return self.verl + self.trl


CONCEPTS: Sequence[Concept] = (
    Concept("reward", "reward", ("critic/score/mean", "critic/rewards/mean"), ("reward",), best="max"),
    Concept(
        "kl", "KL from the reference (nats a token)", ("actor/reward_kl_penalty", "actor/kl_loss"), ("kl",)
    ),
    Concept("entropy", "entropy (nats a token)", ("actor/entropy", "actor/entropy_loss"), ("entropy",)),
    Concept(
        "clip_share",
        "share of clipped tokens",
        ("actor/pg_clipfrac",),
        ("clip_ratio/region_mean", "cispo_clip_ratio"),
    ),
    Concept(
        "explained_variance",
        "critic's explained variance",
        ("critic/vf_explained_var",),
        ("critic/explained_variance",),
        best="max",
        floor=-1.0,
    ),
    Concept(
        "response_length",
        "response length (tokens)",
        ("response_length/mean",),
        ("completions/mean_length",),
    ),
)

_PREFIXES = {"train/": "", "eval/": "eval_", "test/": "test_"}


def canonical(name: str) -> str:
    """The name as transformers' ``trainer_state.json`` has it, ``reward`` for ``train/reward``.

    transformers writes other names into event files than it keeps itself; every other name stays as it is.
    """
    for written, kept in _PREFIXES.items():
        if name.startswith(written):
            return kept + name.removeprefix(written)
    return name
