"""What ReMax's greedy completions cost in TRL: whole steps on the digit-sort task, with and without them, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/trl_remax.py [--steps 30] [--generations 1]

Three trainers take turns, one optimizer step each: without greedy completions (the same loss, with the estimator
``reinforce``), with them in one batch with the samples, and with them afterwards. A step is generation, rewards, loss
and update.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digits import PROMPTS, make, model

from rl_estimators.trl import ReMaxConfig, ReMaxTrainer

VARIANTS = {
    "without": {"adv_estimator": "reinforce"},
    "in one batch": {"greedy_with_samples": True},
    "afterwards": {"greedy_with_samples": False},
}


def trainer_of(folder: str, options: dict[str, Any], batch: int, generations: int) -> ReMaxTrainer:
    fields = {"max_steps": 1, "num_generations": generations, "learning_rate": 1e-6, **options}
    return make(ReMaxTrainer, ReMaxConfig, folder, batch, **fields)


def step(trainer: ReMaxTrainer) -> float:
    """Seconds of one step: a batch drawn, generated, scored, learnt from."""
    rows = [trainer.train_dataset[k % PROMPTS] for k in range(trainer.args.per_device_train_batch_size)]
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
    with tempfile.TemporaryDirectory() as folder:
        model.build(Path(folder), 0)
        trainers = {
            label: trainer_of(folder, options, arguments.batch, arguments.generations)
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
