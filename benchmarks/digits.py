"""What the benchmarks in TRL share: a trainer of the digit-sort model, on a CPU, that tells and keeps nothing."""

import random
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digit_sort import model, reward, task

PROMPTS = 512


def make(cls: type[GRPOTrainer], config: type[GRPOConfig], folder: str, batch: int, **fields: Any) -> Any:
    """Return a trainer of the model in ``folder``, with ``batch`` completions a step; ``fields`` are ``config``'s."""
    rng = random.Random(0)
    digits = [task.draw_digits(rng) for _ in range(PROMPTS)]
    rows = [{"prompt": task.prompt_of(one), "answer": task.answer_of(one)} for one in digits]
    args = config(
        output_dir=str(Path(folder, "out")),
        per_device_train_batch_size=batch,
        max_completion_length=model.MAX_ANSWER,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **fields,
    )
    trainer = cls(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=args,
        reward_funcs=reward.digits_in_place,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
