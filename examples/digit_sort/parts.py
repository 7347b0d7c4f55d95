"""Where the time of a training step goes, in the same parts for verl and for TRL."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["PARTS", "Clock", "of_verl", "per_step", "watch_trl"]

PARTS = ("rollout", "reward", "log-probs", "values", "advantage", "update", "weights", "other")
# verl's timers, after "timing_s/". Its reward function runs within "gen"; "reward" is that of a reward model.
VERL = {
    "rollout": ("gen",),
    "reward": ("reward",),
    "log-probs": ("old_log_prob", "ref"),
    "values": ("values",),
    "advantage": ("adv",),
    "update": ("update_critic", "update_actor"),
    "weights": ("update_weights",),
}


def of_verl(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each part of a step by verl's metrics; "other" is what no timer of verl's covers."""
    seconds = {
        part: float(sum(row.get(f"timing_s/{name}", 0.0) for name in names)) for part, names in VERL.items()
    }
    return seconds | {"other": max(0.0, row["timing_s/step"] - sum(seconds.values()))}


def per_step(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean seconds of each part over all steps but the first, which pays for what is done once."""
    steps = steps[1:] or steps
    return {part: sum(step.get(part, 0.0) for step in steps) / len(steps) for part in PARTS}


class Clock:
    """Adds up the seconds of each part of a step; a part within another does not count for the outer one.

    Args:
        wait: called at each change of part, for a device that works while the host goes on.
        now: seconds.
    """

    def __init__(self, wait: Callable[[], None], now: Callable[[], float] = time.perf_counter) -> None:
        self.steps: list[dict[str, float]] = []
        self._wait, self._now = wait, now
        self._open: list[str] = []
        self._since = 0.0

    @property
    def part(self) -> str | None:
        """The innermost part that is running."""
        return self._open[-1] if self._open else None

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """What happens inside counts for ``part``."""
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def begin_step(self) -> None:
        """Begin a step, whose time is the update's where no other part runs."""
        self.steps.append({})
        self._wait()
        self._since = self._now()
        self._open = ["update"]

    def end_step(self) -> None:
        """End it."""
        self._turn()
        self._open = []

    def _turn(self) -> None:
        self._wait()
        now = self._now()
        if self._open and self.steps:
            seconds = self.steps[-1]
            seconds[self._open[-1]] = seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


@contextmanager
def watch_trl(trainer: Any) -> Iterator[Clock]:
    """Time the parts of each step of one of our trainers for TRL while it trains.

    Log-probabilities count as such where the batch is prepared; those of the loss belong to the update.
    """
    import torch
    from transformers import TrainerCallback

    from rl_estimators.trl import advantages

    clock = Clock(torch.cuda.synchronize if trainer.accelerator.device.type == "cuda" else lambda: None)

    class Steps(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin_step()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end_step()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if part == "log-probs" and clock.part == "update":
                return function(*args, **kwargs)
            with clock.running(part):
                return function(*args, **kwargs)

        return call

    seams = [
        (trainer, "_prepare_inputs", "other"),
        (trainer, "_generate", "rollout"),
        (trainer, "_calculate_rewards", "reward"),
        (trainer, "_get_per_token_logps_and_entropies", "log-probs"),
        (advantages, "add", "advantage"),
    ]
    if trainer.critic is not None:
        seams.append((trainer.critic, "values", "values"))
    callback = Steps()
    trainer.add_callback(callback)
    with ExitStack() as stack:
        stack.callback(trainer.remove_callback, callback)
        for owner, name, part in seams:
            stack.enter_context(_replaced(owner, name, timed(part, getattr(owner, name))))
        yield clock


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have the attribute be ``value`` on this very object, a module or an instance."""
    there, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
