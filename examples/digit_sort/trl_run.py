"""The same task in TRL: the same model, prompts, reward, estimator and batch, in this process."""

import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from digit_sort import report, task
from digit_sort.command import BATCH
from digit_sort.model import MAX_ANSWER
from digit_sort.reward import digits_in_place
from digit_sort.where import CPU, Setup


def unavailable(estimator: str) -> str | None:
    """Return why there is nothing to run, or None."""
    if find_spec("trl") is None:
        return "TRL is not installed: pip install 'rl-estimators[trl]'"
    import rl_estimators

    if _ours(estimator) not in rl_estimators.list_adv_est():
        return f"{estimator} is an estimator of verl's alone"
    return None


def train(
    estimator: str,
    steps: int,
    seed: int,
    answers: int,
    model: Path,
    out: Path,
    tell: Callable[[list[float]], None],
    setup: Setup = CPU,
    watch: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
) -> list[dict[str, Any]]:
    """Train and return the metrics of each step under verl's names, which the report reads.

    Writes ``trl.log`` and ``trl_metrics.jsonl``.

    Args:
        estimator: as for verl; ``rle_`` in front of it makes no difference here.
        steps: of 128 answers each.
        seed: for the data, their order, and sampling.
        answers: to each prompt.
        model: the folder of the model to begin with.
        out: the folder to write to.
        tell: hears of all rewards so far, once a step.
        setup: device and learning rates.
        watch: entered with the trainer while it trains.
    """
    with (
        (out / "trl.log").open("w") as log,
        redirect_stdout(log),
        redirect_stderr(log),
        warnings.catch_warnings(),
    ):
        config = _config(estimator, steps, seed, answers, out / "trl", setup)
        trainer = _trainer(config, model, tell)
        with watch(trainer):
            trainer.train()
    rows = [as_verl_names(row) for row in trainer.state.log_history if "reward" in row]
    lines = [json.dumps({"step": row["step"], "data": row}) + "\n" for row in rows]
    (out / "trl_metrics.jsonl").write_text("".join(lines))
    return rows


def as_verl_names(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the report's table shows of a row of TRL's log."""
    names = {
        "step": "step",
        report.REWARD: "reward",
        "actor/reward_kl_penalty": "kl",
        "actor/entropy": "entropy",
        "actor/grad_norm": "grad_norm",
        "response_length/mean": "completions/mean_length",
        "timing_s/step": "step_time",
    }
    return {ours: row[theirs] for ours, theirs in names.items() if theirs in row}


def _config(estimator: str, steps: int, seed: int, answers: int, out: Path, setup: Setup) -> Any:
    from rl_estimators.registry import ADV_ESTIMATORS
    from rl_estimators.trl import EstimatorConfig

    spec = ADV_ESTIMATORS.spec(_ours(estimator))
    return EstimatorConfig(
        output_dir=str(out),
        adv_estimator=spec.name,
        num_generations=answers,
        beta=0.01,  # what follows is what digit_sort/command.py tells verl
        kl_in_reward=True,
        learning_rate=setup.size.lr,
        **({"critic_learning_rate": setup.size.critic_lr} if "values" in spec.required else {}),
        lr_scheduler_type="constant",
        per_device_train_batch_size=BATCH,
        max_completion_length=MAX_ANSWER,
        max_steps=steps,
        seed=seed,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=setup.device == "cpu",
        bf16=setup.device != "cpu",
        gradient_checkpointing=False,
    )


def _trainer(config: Any, model: Path, tell: Callable[[list[float]], None]) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from rl_estimators.trl import EstimatorTrainer

    class Telling(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tell([row["reward"] for row in state.log_history if "reward" in row])

    digits = task.split(config.seed)[0]
    rows = [{"prompt": task.prompt_of(one), "answer": task.answer_of(one)} for one in digits]
    trainer = EstimatorTrainer(
        model=str(model), reward_funcs=digits_in_place, args=config, train_dataset=Dataset.from_list(rows)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Telling)
    return trainer


def _ours(estimator: str) -> str:
    return estimator.removeprefix("rle_")
