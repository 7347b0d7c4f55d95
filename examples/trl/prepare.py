"""Make what the examples here train on: a tiny model that has half learned to sort digits, and 8192 prompts.

    python examples/trl/prepare.py     # ten seconds; writes .smoke/trl/model and .smoke/trl/data

A row of the data is {"prompt": "4821=", "answer": "1248"}. TRL shows the prompt to the model and hands the other
columns to the reward functions.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for digit_sort, the task

from digit_sort import model, task


def main(folder: Path = Path(".smoke/trl"), seed: int = 0) -> None:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, digits in zip(("train", "test"), task.split(seed), strict=True):
        rows = [{"prompt": task.prompt_of(one), "answer": task.answer_of(one)} for one in digits]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model.build(folder / "model", seed)
    print(f"made: {folder / 'model'}, {data}")


if __name__ == "__main__":
    main()
