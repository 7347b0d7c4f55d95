"""Batched generation with a key-value cache, one token at a time, so that the caller may step in between."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rl_estimators.verl.rollout.options import Options
from rl_estimators.verl.rollout.request import Sampling
from rl_estimators.verl.rollout.sampling import draw, log_probabilities

__all__ = ["Batch", "Row"]


@dataclass(eq=False)
class Row:
    """One response in the making. Whoever sets ``done`` takes it out of its batch."""

    prompt: Sequence[int]
    sampling: Sampling
    stream: np.random.Generator | None  # None for a greedy response
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    done: bool = False

    def append(self, token: int, log_prob: float) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.done = token in self.sampling.stop or len(self.tokens) >= self.sampling.max_tokens


class Batch:
    """Responses that are generated together, their prompts padded on the left.

    In float32 a response does not depend on its neighbours but for rounding; in bfloat16 rounding is coarse
    enough to turn a draw now and then.
    """

    def __init__(self, model: Any, rows: Sequence[Row], options: Options) -> None:
        self.rows = list(rows)
        self._model = model
        self._options = options
        self._cache: Any = None
        self._extra = {"logits_to_keep": 1} if _takes_logits_to_keep(model) else {}
        width = max(len(row.prompt) for row in self.rows)
        ids = [[0] * (width - len(row.prompt)) + list(row.prompt) for row in self.rows]
        mask = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in self.rows]
        self._ids = torch.tensor(ids, device=model.device)  # [B, what the cache does not hold yet]
        self._mask = torch.tensor(mask, device=model.device)  # [B, all positions so far]

    def drop_done(self) -> bool:
        """Take the finished rows out; returns whether any are left."""
        left = [i for i, row in enumerate(self.rows) if not row.done]
        if left and len(left) < len(self.rows):
            index = torch.tensor(left, device=self._ids.device)
            self._ids, self._mask = self._ids[index], self._mask[index]
            if self._cache is not None:
                self._cache.batch_select_indices(index)
        self.rows = [self.rows[i] for i in left]
        return bool(left)

    @torch.inference_mode()
    def step(self) -> None:
        """Append one token to every row."""
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._extra,
        )
        self._cache = output.past_key_values
        logits = output.logits[:, -1].double()
        logits[:, self._options.vocabulary :] = -torch.inf
        tokens, log_probs = self._choose(logits)
        for row, token, log_prob in zip(self.rows, tokens.tolist(), log_probs.tolist(), strict=True):
            row.append(token, log_prob)
        self._ids = tokens.unsqueeze(-1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=-1)

    def _choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row [B] and its log-probability [B]; greedy rows count as temperature 1."""
        settings = [row.sampling for row in self.rows]
        greedy = torch.tensor([s.greedy for s in settings], device=logits.device)
        temperature = torch.tensor(
            [s.temperature for s in settings], device=logits.device, dtype=logits.dtype
        )
        # filters would not change a greedy choice, and vLLM leaves them out of its log-probability too
        top_k = torch.tensor([0 if s.greedy else s.top_k for s in settings], device=logits.device)
        top_p = torch.tensor(
            [1.0 if s.greedy else s.top_p for s in settings], device=logits.device, dtype=logits.dtype
        )
        uniforms = [0.0 if row.stream is None else row.stream.random() for row in self.rows]
        processed = log_probabilities(logits, temperature, top_k, top_p)
        drawn = draw(processed, torch.tensor(uniforms, device=logits.device, dtype=logits.dtype))
        tokens = torch.where(greedy, logits.argmax(dim=-1), drawn)
        raw = self._options.logprobs_mode == "raw_logprobs"
        reported = logits.log_softmax(dim=-1) if raw else processed
        return tokens, reported.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _takes_logits_to_keep(model: Any) -> bool:
    """Whether the model can leave out the logits of the prompt, which may be gigabytes."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
