"""Greedy completions in one batch with the samples: a pass over the model serves both.

TRL calls the model's ``generate`` once for the samples. For that call the prompts that want a greedy completion are
added as rows, in which a logits processor leaves the likeliest token only; TRL gets the samples back. When it then
generates for the greedy completions, it gets those rows. The processor comes after the penalties, which
greedy decoding has as well, and before temperature, top-k, top-p and min-p, which change nothing about a
single token.

A sample's distribution is the same as ever. Its random numbers are not, for sampling draws them by row, and two batches
of unequal size are unequal in the last bits of their logits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["LikeliestOnly", "beside_samples", "possible", "swapped"]

_PLAIN = {"input_ids", "attention_mask", "generation_config"}  # what TRL hands generate for text
_MISSING = object()


def possible(trainer: "EstimatorTrainer") -> bool:
    """Whether the samples come from one call of transformers' ``generate``, for text and without tools."""
    elsewhere = trainer.use_vllm or trainer.use_transformers_continuous_batching
    return not (elsewhere or trainer.tools or trainer._is_vlm)


@contextmanager
def beside_samples(trainer: "EstimatorTrainer", rows: Sequence[int]) -> Iterator[None]:
    """While this lasts, sampling decodes ``rows`` of its batch greedily, too."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)  # as TRL finds it
    with swapped(model, generate=_Generate(model.generate, list(rows))):
        yield


class LikeliestOnly(LogitsProcessor):
    """Leaves the likeliest token only, in the rows from ``first`` on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(B, V)`` log-odds: the same in the samples, 0 and -inf in the others."""
        likeliest = scores[self.first :].argmax(-1, keepdim=True)
        alone = torch.full_like(scores[self.first :], -torch.inf).scatter_(-1, likeliest, 0.0)
        return torch.cat([scores[: self.first], alone])


class _Generate:
    """Stands in for a model's ``generate``."""

    def __init__(self, original: Callable[..., Any], rows: list[int]) -> None:
        self.original, self.rows = original, rows
        self.greedy: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or set(kwargs) != _PLAIN:
            return self.original(*args, **kwargs)
        config = kwargs["generation_config"]
        if config.do_sample and self.greedy is None and (config.num_beams or 1) == 1:
            return self._sample(**kwargs)
        if not config.do_sample and self.greedy is not None and len(kwargs["input_ids"]) == len(self.greedy):
            return torch.cat([kwargs["input_ids"], self.greedy], dim=1)
        return self.original(**kwargs)

    def _sample(self, input_ids: Tensor, attention_mask: Tensor, generation_config: Any) -> Tensor:
        found: Tensor = self.original(
            input_ids=torch.cat([input_ids, input_ids[self.rows]]),
            attention_mask=torch.cat([attention_mask, attention_mask[self.rows]]),
            generation_config=generation_config,
            logits_processor=LogitsProcessorList([LikeliestOnly(len(input_ids))]),
        )
        self.greedy = found[len(input_ids) :, input_ids.shape[1] :]
        return found[: len(input_ids)]


@contextmanager
def swapped(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give an object other attributes for the moment."""
    before = {name: vars(owner).get(name, _MISSING) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            delattr(owner, name) if value is _MISSING else setattr(owner, name, value)
