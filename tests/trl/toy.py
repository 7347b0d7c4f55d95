"""Real TRL runs for tests: the smoke task's model, half warmed up, on a few prompts; and what such a run logged."""

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[2]
WARM_UP_STEPS = 120  # enough for rewards that differ, and for completions that end
UNCOMPARED = ("step_time", "_runtime", "_per_second", "rl_estimators/")  # clocks, and what only ours logs


def digit_sort(module):
    """A module of ``examples/digit_sort``."""
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    return importlib.import_module(f"digit_sort.{module}")


def build(folder):
    """Save the tiny model and its tokenizer in ``folder``."""
    size = replace(digit_sort("sizes").TINY, warm_up_steps=WARM_UP_STEPS)
    digit_sort("model").build(folder, 0, size=size)


def rows(count=64, chat=False):
    """A data set of prompts, the same at each call; with ``chat`` as messages."""
    from datasets import Dataset

    task, rng = digit_sort("task"), random.Random(0)
    prompts = [task.prompt_of(task.draw_digits(rng)) for _ in range(count)]
    return Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": text}] for text in prompts] if chat else prompts}
    )


def text_of(message):
    return message if isinstance(message, str) else message[0]["content"]


def reward(prompts, completions, **_):
    """The share of digits in place, as in the example."""
    task, score = digit_sort("task"), digit_sort("reward").compute_score
    return [
        score("", text_of(completion), task.answer_of(text_of(prompt)[: task.DIGITS]))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def settings(folder, **fields):
    """Fields of a configuration for a run of seconds; those given win."""
    small = {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return small | fields


class Run(NamedTuple):
    trainer: object
    logs: list  # one dict for each step, or evaluation, without clocks
    weights: dict

    def column(self, name):
        return [row[name] for row in self.logs if name in row]


def make(cls, config, model, reward_funcs=reward, chat=False, **more):
    """A trainer on the tiny model in the folder ``model``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    given = {"train_dataset": rows(chat=chat), "processing_class": AutoTokenizer.from_pretrained(model)}
    if config.eval_strategy != "no":
        given["eval_dataset"] = rows(8, chat=chat)
    trainer = cls(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        reward_funcs=reward_funcs,
        **{**given, **more},
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(cls, config, model, **more):
    """Make a trainer as :func:`make` does, train, and collect what it logged."""
    trainer = make(cls, config, model, **more)
    trainer.train()
    return Run(trainer, logged(trainer), weights(trainer))


def logged(trainer):
    """The log without what may differ between two equal runs."""
    return [
        {key: value for key, value in row.items() if not any(part in key for part in UNCOMPARED)}
        for row in trainer.state.log_history
    ]


def weights(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(run, other):
    """Assert that two runs are equal to the bit, each number logged and each weight."""
    assert [row.keys() for row in run.logs] == [row.keys() for row in other.logs]
    for row, expected in zip(run.logs, other.logs, strict=True):
        for name, number in expected.items():
            assert row[name] == number or (row[name] != row[name] and number != number), (name, row["step"])
    assert run.weights.keys() == other.weights.keys()
    for name, tensor in other.weights.items():
        assert torch.equal(run.weights[name], tensor), name


def policy_batch(trainer, rows, seed=0):
    """A batch with tool output, completions of unequal length, one without a valid token, and an old policy."""
    from rl_estimators.trl import counts, upstream

    generator = torch.Generator().manual_seed(seed)
    width = 5
    ids = torch.randint(2, 200, (rows, 3 + width), generator=generator)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    mask[1] = 0
    tool = torch.ones_like(mask)
    tool[0, 0] = 0
    batch = {
        "prompt_ids": ids[:, :3],
        "prompt_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_ids": ids[:, 3:],
        "completion_mask": mask,
        "tool_mask": tool,
        "advantages": torch.randn(rows, width, generator=generator),
        "num_items_in_batch": (mask * tool).sum(),
    }
    with torch.no_grad():
        log_probs = upstream.log_probs(trainer, trainer.model, batch)[0]
    batch["old_per_token_logps"] = log_probs + 0.3 * torch.randn(rows, width, generator=generator)
    counts.add_rows(trainer, batch)
    return batch


def part(batch, rows):
    return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in batch.items()}


def gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
