"""What the engine accepts of a request's sampling parameters: verl's dictionary, in vLLM's and SGLang's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl_estimators.errors import InputError
from rl_estimators.verl.rollout.options import Options

__all__ = ["Sampling", "read"]

KNOWN = frozenset(
    {
        "ignore_eos",
        "logprobs",
        "max_new_tokens",
        "max_tokens",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)
NEUTRAL = {
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "min_tokens": 0,
    "n": 1,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True)
class Sampling:
    """How one response is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: How many of the most probable tokens to draw from; 0 for all.
        top_p: The share of probability to draw from; 1 for all.
        max_tokens: The response ends after that many tokens.
        stop: The response ends with any of these tokens.
        log_probs: Whether the log-probabilities of the response are asked for.
    """

    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    stop: frozenset[int]
    log_probs: bool

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def read(parameters: Mapping[str, Any], prompt_tokens: int, options: Options) -> Sampling:
    """Check and complete a request's sampling parameters. Missing ones default as in vLLM.

    The length limit is as in verl's vLLM server: ``max_tokens`` or ``max_new_tokens``; else the configured
    response length, less what the prompt has in excess of the configured prompt length; and in any case at
    least one token and no more than the model has positions for.

    Raises:
        InputError: an unknown parameter, one that cannot be honoured, one out of range, or too long a prompt.
    """
    _refuse(parameters)
    temperature = float(parameters.get("temperature", 1.0))
    top_p = float(parameters.get("top_p", 1.0))
    top_k = int(parameters.get("top_k", 0))
    if not (0 <= temperature < math.inf):
        raise InputError(f"temperature={temperature}: set 0 (greedy) or a finite positive number")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p}: set a number above 0 and up to 1 (off)")
    if top_k < -1:
        raise InputError(f"top_k={top_k}: set a positive number, or 0 or -1 (off)")

    stop = frozenset(parameters.get("stop_token_ids") or ())
    ignore_eos = parameters.get("ignore_eos", options.ignore_eos)
    return Sampling(
        temperature=temperature,
        top_k=max(top_k, 0),
        top_p=top_p,
        max_tokens=_max_tokens(parameters, prompt_tokens, options),
        stop=stop if ignore_eos else stop | options.eos,
        # verl's servers take a truth value here, not vLLM's number of alternatives
        log_probs=bool(parameters.get("logprobs", False)),
    )


def _refuse(parameters: Mapping[str, Any]) -> None:
    unknown = sorted(set(parameters) - KNOWN - set(NEUTRAL))
    if unknown:
        raise InputError(
            f"rollout.name=hf does not know the sampling parameters {', '.join(unknown)}; "
            f"it knows {', '.join(sorted(KNOWN))}. Leave them out, or choose another engine."
        )
    for name, neutral in NEUTRAL.items():
        value = parameters.get(name, neutral)
        if value is not None and value != neutral:
            raise InputError(
                f"rollout.name=hf cannot honour {name}={value}; leave it at {neutral}, or choose another engine"
            )


def _max_tokens(parameters: Mapping[str, Any], prompt_tokens: int, options: Options) -> int:
    possible = options.max_model_len - prompt_tokens
    if prompt_tokens < 1:
        raise InputError("the prompt is empty; send at least one token")
    if possible < 1:
        raise InputError(
            f"a prompt of {prompt_tokens} tokens leaves no room for a response: "
            f"max_model_len={options.max_model_len}. Shorten the prompt or raise max_model_len."
        )
    wanted = parameters.get("max_tokens", parameters.get("max_new_tokens"))
    if wanted is None:
        excess = max(prompt_tokens - options.prompt_length, 0)
        wanted = options.response_length - excess
    return max(1, min(int(wanted), possible))
