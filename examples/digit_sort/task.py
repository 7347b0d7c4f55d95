"""The task: "4821=" asks for "1248". The prompts, the answers, and both as files that verl reads."""

import random
from pathlib import Path

import pandas as pd

DATA_SOURCE = "rl_estimators/digit_sort"
DIGITS = 4
TRAIN_ROWS = 8192  # 64 steps of 128 prompts before one comes round again
VAL_ROWS = 256


def prompt_of(digits: str) -> str:
    """What the model is shown."""
    return digits + "="


def answer_of(digits: str) -> str:
    """What it should answer."""
    return "".join(sorted(digits))


def draw_digits(rng: random.Random) -> str:
    """Draw one of the 10,000 tasks, each as likely as any other."""
    return f"{rng.randrange(10**DIGITS):0{DIGITS}d}"


def split(seed: int) -> tuple[list[str], list[str]]:
    """Return the digits of the training and of the validation prompts; no prompt is in both."""
    every = [f"{number:0{DIGITS}d}" for number in range(10**DIGITS)]
    random.Random(seed).shuffle(every)
    return every[:TRAIN_ROWS], every[TRAIN_ROWS : TRAIN_ROWS + VAL_ROWS]


def rows(digits: list[str], name: str) -> list[dict]:
    """Lay the tasks out as verl's data format wants them: the prompt as chat messages, the truth beside it."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": prompt_of(one)}],
            "reward_model": {"style": "rule", "ground_truth": answer_of(one)},
            "extra_info": {"split": name, "index": index},
        }
        for index, one in enumerate(digits)
    ]


def write(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``val.parquet`` into ``folder`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.parquet", folder / "val.parquet"
    for path, digits in zip(paths, split(seed), strict=True):
        pd.DataFrame(rows(digits, path.stem)).to_parquet(path)
    return paths
