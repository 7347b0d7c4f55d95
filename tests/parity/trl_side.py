"""The recording through TRL: the real trainer's step from generation to the loss.

Real: `EstimatorTrainer` with its configuration, TRL's `_generate_and_score_completions` (padding, masks, scoring, gathering
over processes), our greedy pass, `token_reward_funcs`, the separate critic with its forward and backward passes, and
`_compute_loss`. Fed: what `_generate` writes; the log-probabilities of the policy and the reference; the reward
functions' numbers; the values, which are the parameters of the `value_model`.
"""

from typing import NamedTuple

import numpy as np
import torch
import toy
from torch import nn

from parity import recorded
from rl_estimators.registry import ADV_ESTIMATORS
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer
from rl_estimators.trl import advantages as step

ALL = tuple(range(recorded.ROWS))
MARK = 100  # the prompt of row b is the two tokens (100 + b, 2)
WRITTEN, GREEDY = 5, 6  # tokens that stand for samples and for greedy completions
PROMPT = 2


class Found(NamedTuple):
    advantages: torch.Tensor
    returns: torch.Tensor
    batch: dict


def row_of(ids):
    """``(B,)`` which row of the recording a sequence is; and where its prompt begins."""
    marks = torch.where(ids >= MARK, ids, 0)
    return marks.amax(-1) - MARK, marks.argmax(-1)


class Table(nn.Module):
    """A critic whose values are its parameters: one for each row and position."""

    def __init__(self):
        super().__init__()
        before = torch.tensor(recorded.VALUES)
        table = torch.full((recorded.ROWS, PROMPT + recorded.WIDTH), torch.nan)
        table[:, PROMPT - 1 : -1] = before
        for row, length in enumerate(recorded.LENGTHS):
            table[row, PROMPT - 1 + length] = recorded.AFTER[row].item()
        self.table = nn.Parameter(table)

    def forward(self, input_ids, attention_mask):
        rows, first = row_of(input_ids)
        at = torch.arange(input_ids.shape[1]) - first[:, None]
        inside = (at >= 0) & (at < self.table.shape[1])
        return torch.where(
            inside, self.table[rows].gather(1, at.clamp(0, self.table.shape[1] - 1)), torch.nan
        )


class Replay(EstimatorTrainer):
    """The trainer with a recording in place of its models; ``order`` says which row comes where."""

    order = ALL

    def _generate(self, prompts):
        own = self.own_rows(len(prompts))
        end = self.processing_class.eos_token_id
        if self.num_generations == 1:  # our greedy pass: one for each of these prompts
            ids = [[GREEDY, end] for _ in prompts]
            return [[MARK, 2] for _ in prompts], ids, None, ["" for _ in prompts], None, {}, None, None
        ids, tools = [], []
        for row in own:
            length = recorded.LENGTHS[row]
            ids.append([WRITTEN] * (length - 1) + [WRITTEN if recorded.TRUNCATED[row] else end])
            tools.append([int(wrote) for wrote in recorded.MASK[row, :length]])
        return [[MARK + row, 2] for row in own], ids, tools, ["" for _ in own], None, {}, None, None

    def own_rows(self, share):
        first = self.accelerator.process_index * share
        return self.order[first : first + share]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **_):
        rows, _ = row_of(input_ids)
        if torch.is_grad_enabled():
            kept = self.leaf
        else:
            kept = torch.tensor(recorded.REFERENCE if model is self.ref_model else recorded.OLD)
        more = logits_to_keep - kept.shape[1]
        kept = nn.functional.pad(kept[rows], (0, max(more, 0)), value=torch.nan)[:, :logits_to_keep]
        return kept, torch.zeros_like(kept), None

    def inputs(self):
        """Rows of a data set: TRL hands its columns to the reward functions."""
        share = self.args.per_device_train_batch_size
        return [{"prompt": str(recorded.UIDS[row]), "row": row} for row in self.own_rows(share)]


def component(k):
    def reward(completion_ids, row, **_):
        greedy = completion_ids[0][0] == GREEDY
        numbers = recorded.BASELINES * (k == 0) if greedy else recorded.COMPONENTS[:, k]
        return [None if np.isnan(numbers[one]) else float(numbers[one]) for one in row]

    reward.__name__ = recorded.NAMES[k]
    return reward


def process(completion_ids, row, **_):
    return [
        [0.0] * len(ids) if ids[0] == GREEDY else recorded.PROCESS[one, : len(ids)].tolist()
        for one, ids in zip(row, completion_ids, strict=True)
    ]


def trainer(model, folder, name="grpo", order=ALL, world=1, kl=None, pad=None, **fields):
    """A trainer for the estimator ``name`` that replays the recording.

    Args:
        model: Folder of a tiny model: TRL wants one, and nothing asks it.
        folder: For its output.
        name: The estimator.
        order: Rows as the data set has them; a prompt's stand together.
        world: Processes that share the rows.
        kl: Factor of the KL divergence in the rewards; None for none.
        pad: TRL's ``pad_to_multiple_of``.
        **fields: More of the configuration.
    """
    spec = ADV_ESTIMATORS.spec(name)
    values = "values" in spec.required
    said = {
        key: value for key, value in (("gamma", recorded.GAMMA), ("lam", recorded.LAM)) if key in spec.options
    }
    if kl is not None:
        said |= {"kl_in_reward": True, "beta": kl}
    config = EstimatorConfig(
        **toy.settings(
            folder,
            per_device_train_batch_size=recorded.ROWS // world,
            num_generations=recorded.GROUP,
            max_completion_length=recorded.WIDTH,
            adv_estimator=name,
            adv_estimator_kwargs=recorded.OPTIONS.get(name),
            reward_weights=list(recorded.WEIGHTS),
            bootstrap_truncated=values,
            pad_to_multiple_of=pad,
            **{**said, **fields},
        )
    )
    more = {"value_model": Table()} if values else {}
    if name != "gdpo":
        more["token_reward_funcs"] = process
    made = toy.make(Replay, config, model, reward_funcs=[component(0), component(1)], **more)
    made.order = order
    made.leaf = torch.tensor(recorded.NEW).requires_grad_()
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def advantages(model, folder, name, **how):
    """Advantages and returns ``(B, T)`` of this process's rows by TRL's own step.

    TRL's batch has returns only where a critic learns from them. Those of the other estimators are taken from the call
    of `estimate` inside the step.
    """
    made = trainer(model, folder, name, **how)
    seen = []

    def spy(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    original = step.estimate
    step.estimate = spy
    try:
        batch = made._generate_and_score_completions(made.inputs())
    finally:
        step.estimate = original
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    found = batch["advantages"]
    if found.ndim == 1:  # one for the whole completion, as TRL has it
        found = torch.where(mask, found[:, None], 0)
    share = len(mask)
    own = slice(made.accelerator.process_index * share, (made.accelerator.process_index + 1) * share)
    returns = batch.get("returns", seen[0].returns[own, : mask.shape[1]])
    return Found(found, returns, batch)


def learning_batch(made):
    """The step's batch with what the losses are fed: recorded log-probabilities, advantages, values and returns."""
    batch = made._generate_and_score_completions(made.inputs())
    width = batch["completion_mask"].shape[1]

    def own(array):
        tensor = torch.tensor(array[list(made.own_rows(len(batch["completion_mask"])))])[:, :width]
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=torch.nan)

    batch |= {"old_per_token_logps": own(recorded.OLD), "advantages": own(recorded.ADVANTAGES)}
    if made.critic is not None:
        batch |= {"values": own(recorded.VALUES), "returns": own(recorded.RETURNS)}
    return batch


def policy_loss(model, folder, name, mode, parts=1, kl=None, **how):
    """Loss and its gradient by the log-probabilities ``(B, T)``, summed over micro-batches, by `_compute_loss`."""
    # TRL's default weighs the divergence by the ratio, which verl does not do
    fields = {"beta": kl, "use_bias_correction_kl": False} if kl is not None else {}
    made = trainer(
        model, folder, policy_loss=name, policy_loss_kwargs=recorded.POLICY_OPTIONS[name], loss_agg_mode=mode,
        **fields, **how,
    )  # fmt: skip
    total = 0.0
    for micro_batch in _split(made, parts):
        loss = made._compute_loss(made.model, micro_batch)
        loss.backward()
        total += loss.item()
    return total, made.leaf.grad


def value_loss(model, folder, name, mode, parts=1, **how):
    """The same by the critic's values: the gradient that its own backward pass leaves on the value model."""
    made = trainer(
        model, folder, "gae", value_loss=name,
        value_loss_kwargs={**recorded.VALUE_OPTIONS[name], "loss_agg_mode": mode}, **how,
    )  # fmt: skip
    micro_batches = list(_split(made, parts))
    with torch.no_grad():
        made.critic.module.table[:, PROMPT - 1 : -1] = torch.tensor(recorded.PREDICTED)
    for micro_batch in micro_batches:
        made.critic.learn(micro_batch, torch.zeros(()))
    gradient = made.critic.module.table.grad[:, PROMPT - 1 : -1]
    return made.critic._means.pop()["value_loss"], gradient


def _split(made, parts):
    batch = learning_batch(made)
    share = len(batch["completion_mask"]) // parts
    for first in range(0, share * parts, share):
        yield toy.part(batch, slice(first, first + share))
