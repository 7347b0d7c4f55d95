"""The reward of a prompt's greedy completion, for estimators with ``reward_baselines``.

Each prompt of a generation batch is decoded once more, without sampling, and scored by the same reward functions with
the same columns. A group of completions may straddle processes: the process with a prompt's first completion
decodes for all of them, and every process decodes and scores equally many, for TRL gathers both; where one has
fewer prompts of its own, it fills up with rows that nobody reads.

The trainer does all of it by TRL's own methods, and what those leave behind is taken back: TRL's metrics
(``completions/*``, ``rewards/*``), its count of tokens (``num_tokens``: tokens learnt from, so greedy ones do
not count), the columns and metrics that reward functions log, and its table of completions tell of the samples alone.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import gather
from torch import Tensor

from rl_estimators.errors import PatchError
from rl_estimators.trl import greedy_batch
from rl_estimators.trl.greedy_batch import swapped
from rl_estimators.trl.rewards import Scored, scores, token_rewards

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["baselines", "beside_samples", "check_engine"]

# What vLLM's engine in TRL is told at each call, and what makes it decode greedily. A repetition penalty stays.
_ENGINE: Mapping[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": None}
# The same for transformers. None would let the model's own configuration in, so these are the defaults, which
# transformers takes for unset where it decodes greedily.
_CONFIG: Mapping[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None},
    **{"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
}


def baselines(
    trainer: "EstimatorTrainer", inputs: Sequence[Mapping[str, Any]], prompts: Sequence[Any], scored: Scored
) -> Tensor:
    """``(N,)`` the reward of the greedy completion of each completion's prompt, of all processes.

    Not a number where no reward function has one for it: an estimator leaves the prompt's completions out. A KL
    divergence in the rewards charges samples only.

    Args:
        trainer: Asked for its ways to generate and to score.
        inputs: Rows of the data set, one per completion of this process.
        prompts: Their prompts as TRL generates from them.
        scored: What is known of the samples, to compare with.
    """
    plan = _plan(trainer, len(prompts))
    with _without_trace(trainer), _greedily(trainer):
        found = _rewards(trainer, [inputs[row] for row in plan.rows], [prompts[row] for row in plan.rows])
    _log(trainer, found[plan.prompts], scored)
    return found[plan.completions]


def beside_samples(trainer: "EstimatorTrainer", batch: int) -> AbstractContextManager[None]:
    """Entered while TRL samples ``batch`` completions: decodes their prompts greedily in the same pass, if it can."""
    if not (trainer.args.greedy_with_samples and greedy_batch.possible(trainer)):
        return nullcontext()
    return greedy_batch.beside_samples(trainer, _plan(trainer, batch).rows)


def check_engine(engine: Any) -> None:
    """Compare TRL's wrapper of vLLM with what we set on it.

    Raises:
        PatchError: it does not keep its sampling parameters as reviewed.
    """
    gone = [name for name in (*_ENGINE, "generation_kwargs") if not hasattr(engine, name)]
    if gone:
        raise PatchError(
            f"TRL's {type(engine).__name__} has no {', '.join(gone)} any more, so it cannot be told to decode "
            "greedily for the baseline. Use use_vllm=False, an estimator without reward_baselines, or a release "
            "of TRL that the README names."
        )


class _Plan(NamedTuple):
    """Who decodes what.

    Attributes:
        rows: Rows of this process to decode.
        prompts: For each prompt of the batch, in order, where it is among the decoded ones of all processes.
        completions: The same for each completion.
    """

    rows: list[int]
    prompts: list[int]
    completions: list[int]


def _plan(trainer: "EstimatorTrainer", batch: int) -> _Plan:
    """Every process comes to the same plan by itself: batches are equally large, groups follow each other."""
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    processes = trainer.accelerator.num_processes
    owned: list[list[int]] = [[] for _ in range(processes)]
    for first in range(0, processes * batch, size):
        owned[first // batch].append(first % batch)
    most = max(map(len, owned))
    rows = owned[trainer.accelerator.process_index]
    places = [process * most + place for process, own in enumerate(owned) for place in range(len(own))]
    completions = [places[row // size] for row in range(processes * batch)]
    return _Plan(rows + [0] * (most - len(rows)), places, completions)


def _rewards(trainer: "EstimatorTrainer", inputs: list[Any], prompts: list[Any]) -> Tensor:
    """``(P,)`` rewards of newly generated completions, of all processes."""
    ids, tool_mask, completions = _read(trainer._generate(prompts), len(prompts))
    total = scores(trainer._calculate_rewards(inputs, prompts, completions, ids), trainer.reward_weights)
    own = token_rewards(trainer, prompts, completions, ids, inputs)
    if tool_mask is not None:  # a token that the policy did not write may have no reward
        masks = [torch.tensor(mask).bool() for mask in tool_mask]
        own = [
            [torch.where(mask | row.isfinite(), row, 0) for row, mask in zip(rows, masks, strict=True)]
            for rows in own
        ]
    return total + _token_sums(trainer, own) if own else total


def _token_sums(trainer: "EstimatorTrainer", rewards: Sequence[Sequence[Tensor]]) -> Tensor:
    """``(N,)`` all that the tokens of a completion got by themselves, of all processes."""
    weights = trainer.args.token_reward_weights or [1.0] * len(rewards)
    sums = [
        weight * torch.stack([row.sum() for row in rows])
        for weight, rows in zip(weights, rewards, strict=True)
    ]
    everywhere: Tensor = gather(torch.stack(sums).sum(0).to(trainer.accelerator.device))
    return everywhere


def _read(generated: Any, rows: int) -> tuple[list[list[int]], list[list[int]] | None, list[Any]]:
    """Ids, tool mask and completions in what TRL's ``_generate`` returns."""
    fits = isinstance(generated, tuple) and len(generated) == 8
    if not (fits and all(isinstance(generated[k], list) and len(generated[k]) == rows for k in (1, 3))):
        raise PatchError(
            "GRPOTrainer._generate returned something else than reviewed: expected 8 things, completion ids second "
            f"and completions fourth, one for each of {rows} prompts. Install a release of TRL that the README names."
        )
    return generated[1], generated[2], generated[3]


@contextmanager
def _greedily(trainer: "EstimatorTrainer") -> Iterator[None]:
    """One completion per row, without sampling, for the moment."""
    with swapped(trainer, num_generations=1, num_generations_eval=1):
        if trainer.use_vllm:
            check_engine(trainer.vllm_generation)
            more = {k: v for k, v in trainer.vllm_generation.generation_kwargs.items() if k not in _ENGINE}
            with swapped(trainer.vllm_generation, **_ENGINE, generation_kwargs=more):
                yield
            return
        config = copy.deepcopy(trainer.generation_config)
        for name, value in _CONFIG.items():
            setattr(config, name, value)
        arguments = {**trainer.generation_kwargs, **_CONFIG}
        with swapped(trainer, generation_config=config, generation_kwargs=arguments):
            yield


@contextmanager
def _without_trace(trainer: "EstimatorTrainer") -> Iterator[None]:
    """TRL's books stay as they are."""
    metrics: dict[str, Any] = {mode: defaultdict(list) for mode in trainer._metrics}
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    numbers: defaultdict[str, list[float]] = defaultdict(list)
    books = swapped(trainer, _metrics=metrics, _pending_extra_logs=columns, _pending_metrics=numbers)
    with books, swapped(trainer.state, num_input_tokens_seen=trainer.state.num_input_tokens_seen):
        yield


def _log(trainer: "EstimatorTrainer", greedy: Tensor, scored: Scored) -> None:
    """Compare the prompts' greedy rewards with the mean of their samples'."""
    assert scored.rewards_per_func is not None  # TRL has scored the samples
    sampled = scores(scored.rewards_per_func, trainer.reward_weights)
    if scored.token_rewards:  # of tool output, too, so that a missing one says nothing about the sample
        numbers = [[row.nan_to_num(0.0) for row in rows] for rows in scored.token_rewards]
        sampled = sampled + _token_sums(trainer, numbers)
    mean = sampled.view(len(greedy), -1).nanmean(1)
    known, both = greedy.isfinite(), greedy.isfinite() & mean.isfinite()
    metrics = trainer._metrics[trainer.mode]
    metrics["rl_estimators/greedy_excluded"].append(float((~known).sum()))
    if known.any():
        metrics["rl_estimators/greedy_reward_mean"].append(float(greedy[known].mean()))
    if both.any():
        metrics["rl_estimators/greedy_wins"].append(float((greedy > mean)[both].float().mean()))
