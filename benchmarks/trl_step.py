"""What our trainer costs beside TRL's: a training step with our ``grpo`` against the stock ``trl.GRPOTrainer``.

    python benchmarks/trl_step.py [--batch 128] [--steps 10] [--repeats 9]

Both train the digit-sort model from the same weights on the same prompts, in one process and on one thread, by turns.
The ratio is taken for each pair of runs that follow each other, and the median of the ratios is printed with its
quartiles: for the process's own CPU time, which neighbours on the machine disturb least, and for the clock. The third
row is stock against stock: how much of a difference is noise.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from digits import make, model
from trl import GRPOConfig, GRPOTrainer

from rl_estimators import trl as ours

Kind = tuple[type[GRPOTrainer], type[GRPOConfig], dict[str, Any]]
KINDS: dict[str, Kind] = {
    "grpo": (ours.GRPOTrainer, ours.GRPOConfig, {}),
    'grpo, compat="trl"': (ours.GRPOTrainer, ours.GRPOConfig, {"adv_estimator_kwargs": {"compat": "trl"}}),
    "stock (noise)": (GRPOTrainer, GRPOConfig, {}),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="completions a step")
    parser.add_argument("--generations", type=int, default=8, help="completions a prompt")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps a run")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        model.build(Path(scratch), 0)
        ratios = {name: [] for name in KINDS}
        seconds = []
        timed((GRPOTrainer, GRPOConfig, {}), scratch, chosen)  # the first run imports and warms up
        for repeat in range(chosen.repeats):
            for name, kind in KINDS.items():
                pair = [kind, (GRPOTrainer, GRPOConfig, {})]
                if repeat % 2:  # whoever comes second finds warmer caches
                    pair.reverse()
                times = [timed(one, scratch, chosen) for one in pair]
                if repeat % 2:
                    times.reverse()
                ratios[name].append([a / b for a, b in zip(*times, strict=True)])
                seconds.append(times[1][0])
    print(
        f"a stock step: {1000 * statistics.median(seconds) / chosen.steps:.1f} ms of CPU time, batch {chosen.batch}"
    )
    print(f"{'times stock':22s}{'CPU time':>24s}{'clock':>24s}")
    for name, pairs in ratios.items():
        print(f"{name:22s}" + "".join(f"{spread(column):>24s}" for column in zip(*pairs, strict=True)))


def timed(kind: Kind, folder: str, chosen: argparse.Namespace) -> tuple[float, float]:
    """CPU time and clock of one run, seconds; making the trainer does not count."""
    cls, config, fields = kind
    fields = {**fields, "num_generations": chosen.generations, "max_steps": chosen.steps, "logging_steps": 1}
    trainer = make(cls, config, folder, chosen.batch, learning_rate=1e-3, **fields)
    start = time.process_time(), time.perf_counter()
    trainer.train()
    return time.process_time() - start[0], time.perf_counter() - start[1]


def spread(numbers: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(numbers, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
