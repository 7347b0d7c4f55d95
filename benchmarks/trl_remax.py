"""What ReMax's greedy completions cost in TRL: whole steps on the digit-sort task, with and without them, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/trl_remax.py [--steps 30] [--generations 1]

Three trainers take turns, one optimizer step each: without greedy completions (the same loss, with the estimator
``reinforce``), with them in one batch with the samples, and with them afterwards. A step is generation, rewards, loss
and update.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from rl_estimators.trl import ReMaxConfig, ReMaxTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digit_sort import model as tiny
from digit_sort import reward, task

VARIANTS = {
    "without": {"adv_estimator": "reinforce"},
    "in one batch": {"greedy_with_samples": True},
    "afterwards": {"greedy_with_samples": False},
}


def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [
        reward.compute_score("", completion, task.answer_of(prompt[: task.DIGITS]))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def make(folder: Path, options: dict[str, Any], batch: int, generations: int) -> ReMaxTrainer:
    rng = random.Random(0)
    trainer = ReMaxTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=score,
        args=ReMaxConfig(
            output_dir=str(folder / "out"),
            max_steps=1,
            per_device_train_batch_size=batch,
            num_generations=generations,
            max_completion_length=6,
            learning_rate=1e-6,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": [task.prompt_of(task.draw_digits(rng)) for _ in range(512)]}
        ),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def step(trainer: ReMaxTrainer) -> float:
    """Seconds of one step: a batch drawn, generated, scored, learnt from."""
    rows = [trainer.train_dataset[k % 512] for k in range(trainer.args.per_device_train_batch_size)]
    size = trainer.num_generations
    rows = [rows[k - k % size] for k in range(len(rows))]
    trainer.model.train()
    trainer._buffered_inputs = None
    begun = time.perf_counter()
    trainer.training_step(trainer.model, rows)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - begun


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        begun = time.perf_counter()
        found = function(*args)
        seconds.append(time.perf_counter() - begun)
        return found

    return wrapper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--generations", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.build(folder, 0)
        trainers = {
            label: make(folder, options, arguments.batch, arguments.generations)
            for label, options in VARIANTS.items()
        }
        for trainer in trainers.values():
            trainer.train()  # one step: makes the optimizer, warms up
        seconds, generating = {label: [] for label in trainers}, []
        plain = trainers["without"]
        plain._generate = timed(plain._generate, generating)
        for _ in range(arguments.steps):
            for label, trainer in trainers.items():
                seconds[label].append(step(trainer))
    base = statistics.median(seconds["without"])
    for label, numbers in seconds.items():
        paired = statistics.median(a / b for a, b in zip(numbers, seconds["without"], strict=True))
        print(
            f"{label:13} {statistics.median(numbers) * 1000:7.1f} ms a step, {paired:.2f} of the one without"
        )
    greedy = arguments.batch // arguments.generations
    share = statistics.median(generating) / base
    print(
        f"generating {arguments.batch} samples takes {share:.2f} of a step without; {greedy} completions more,"
    )
    print(f"each as dear as a sample, would make a step {1 + share * greedy / arguments.batch:.2f} of that")


if __name__ == "__main__":
    main()
