"""For the tests of the critic: trainers with one, batches made by hand, and what a step of theirs should do."""

import copy
import functools
from pathlib import Path

import torch
import toy
from transformers import AutoModelForCausalLM

from rl_estimators.trl import EstimatorConfig, PPOConfig, PPOTrainer

WIDTH, PROMPT = 4, 3


def config(folder, **fields):
    """PPO with one pass over a batch and no KL divergence: the fewest moving parts."""
    plain = {"num_generations": 1, "num_iterations": 1, "beta": 0.0, "kl_in_reward": False}
    fields = {**plain, "critic_learning_rate": 3e-3, "lr_scheduler_type": "constant", **fields}
    return PPOConfig(**toy.settings(folder, **fields))


def without(folder, **fields):
    """The same without a critic."""
    plain = {"num_generations": 1, "lr_scheduler_type": "constant", "adv_estimator": "reinforce"}
    return EstimatorConfig(**toy.settings(folder, **{**plain, **fields}))


def make(folder, model, value_model=None, **fields):
    """A trainer with a critic, in the middle of an optimizer step of one micro-batch.

    ``model`` is a folder, or a model that is in none.
    """
    more = {name: fields.pop(name) for name in ("peft_config",) if name in fields}
    cls = PPOTrainer
    if not isinstance(model, Path):
        cls, model = functools.partial(_of, model), model.tokenizer_folder
    trainer = toy.make(cls, config(folder, **fields), model, value_model=value_model, **more)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _of(policy, model, **given):
    return PPOTrainer(model=policy, **given)


def policy(folder, **options):
    """The tiny model as an object, to be changed."""
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    model.tokenizer_folder = folder
    return model


def batch(rows=5, seed=0, tool=True):
    """Completions of several lengths, tool output in one, with old values and targets."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([4, 2, 3, 1, 4, 3, 2, 4])[:rows]
    mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    tool_mask = torch.ones(rows, WIDTH, dtype=torch.long)
    tool_mask[0, 1] = 0
    prompt_mask = torch.ones(rows, PROMPT, dtype=torch.long)
    prompt_mask[1, 0] = 0
    found = {
        "prompt_ids": torch.randint(10, 200, (rows, PROMPT), generator=generator),
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(10, 200, (rows, WIDTH), generator=generator),
        "completion_mask": mask,
        "values": torch.randn(rows, WIDTH, generator=generator) * 0.3,
        "returns": torch.randn(rows, WIDTH, generator=generator),
    }
    if tool:
        found["tool_mask"] = tool_mask
    return counted(found)


def counted(found):
    """With the numbers that the trainer adds: tokens, and completions with any, of the whole batch."""
    mask = valid(found)
    return {**found, "num_items_in_batch": mask.sum(), "num_rows_in_batch": mask.any(-1).sum()}


def valid(found):
    mask = found["completion_mask"] * found.get("tool_mask", 1)
    return mask.bool()


def part(found, rows):
    """Some rows of a batch; the counts stay those of the whole."""
    return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in found.items()}


def reference_loss(vpreds, found, clip):
    """The clipped value loss by its definition, a token at a time: the mean over all valid tokens."""
    total, tokens = 0.0, 0
    for row in range(len(vpreds)):
        for token in range(WIDTH):
            if valid(found)[row, token]:
                new, old, target = (
                    vpreds[row, token],
                    found["values"][row, token],
                    found["returns"][row, token],
                )
                near = old + (new - old).clamp(-clip, clip)
                total = total + 0.5 * torch.maximum((new - target) ** 2, (near - target) ** 2)
                tokens += 1
    return total / tokens


def reference_values(module, found):
    """``(B, T)`` of a value model, one completion at a time, without its padding."""
    rows = []
    for row in range(len(found["completion_ids"])):
        prompt = found["prompt_ids"][row]
        ids = torch.cat([prompt, found["completion_ids"][row]])[None]
        mask = torch.cat([found["prompt_mask"][row], found["completion_mask"][row]])[None]
        rows.append(module(input_ids=ids, attention_mask=mask)[0, PROMPT - 1 : PROMPT + WIDTH - 1])
    return torch.stack(rows)


def randomised(module, seed=0):
    """Give a value model a head that says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module.v_head.weight.copy_(torch.randn(module.v_head.weight.shape, generator=generator) * 0.2)
        module.v_head.bias.fill_(0.1)
    return module


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def twin(module):
    """A copy of a critic's model, for a reference to differentiate."""
    return copy.deepcopy(module).eval()
