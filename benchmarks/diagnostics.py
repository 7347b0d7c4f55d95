"""What diagnostics cost beside the advantages: ``python benchmarks/diagnostics.py [--quick]``.

One process and one thread. Each repeat draws a batch as verl's adapter has it (fp32, an int64 mask, eight responses a
prompt, a score of 0 or 1 on the last token), runs the estimator as the adapter does, and then its diagnostics. The smallest
processor time over the repeats counts, which other programs on the machine do not lengthen much. ``share`` is of the
estimate's time. The budget: 5 % of the advantage step, or 10 ms.

``updates`` are the sums over a micro-batch while it trains, beside the loss with its gradient, without any model.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rl_estimators
from rl_estimators import backends
from rl_estimators.diagnostics.updates import policy_sums, value_sums
from rl_estimators.metrics import collect_metrics
from rl_estimators.registry import ADV_ESTIMATORS
from rl_estimators.verl import diagnostics

SHAPES = ((64, 1024), (1024, 8192))
QUICK = ((8, 64),)
ESTIMATORS = ("grpo", "reinforce_pp", "gae")
ALGORITHM = None  # verl's configuration: none of its keys is needed


def batch(rows: int, length: int, holes: bool) -> dict[str, Any]:
    """A batch with responses of a quarter of the length to all of it."""
    lengths = torch.randint(length // 4, length + 1, (rows, 1))
    mask = torch.arange(length) < lengths
    if holes:
        mask &= torch.rand(rows, length) > 0.1
    rewards = torch.zeros(rows, length)
    rewards.scatter_(1, lengths - 1, torch.randint(0, 2, (rows, 1)).float())
    return {
        "token_level_rewards": rewards,
        "response_mask": mask.long(),
        "values": torch.randn(rows, length),
        "index": [f"{number // 8:08x}" for number in range(rows)],
    }


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes, and what it returns."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def estimate(name: str, given: dict[str, Any]) -> rl_estimators.Estimate:
    """As verl's adapter does it."""
    with collect_metrics():
        return rl_estimators.estimate(name, **{"masked_rewards": "carry", **given})


def diagnose(name: str, given: dict[str, Any], result: rl_estimators.Estimate) -> dict[str, float]:
    """As verl's adapter does it."""
    return diagnostics.of_batch(ADV_ESTIMATORS.spec(name), ALGORITHM, given, result)


def advantage_step(name: str, rows: int, length: int, holes: bool, repeats: int) -> dict[str, float]:
    """Milliseconds of the estimate and of its diagnostics."""
    best = {"estimate": float("inf"), "diagnostics": float("inf")}
    for _ in range(repeats):
        given = batch(rows, length, holes)
        own = {**given} if name == "gae" else {key: x for key, x in given.items() if key != "values"}
        took, result = seconds(lambda own=own: estimate(name, own))
        best["estimate"] = min(best["estimate"], 1e3 * took)
        took, _ = seconds(lambda own=own, result=result: diagnose(name, own, result))
        best["diagnostics"] = min(best["diagnostics"], 1e3 * took)
    return best


def update(rows: int, length: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a micro-batch's losses with their gradients, and of its sums."""
    best = {"losses": float("inf"), "sums": float("inf")}
    mask = torch.ones(rows, length)
    for _ in range(repeats):
        new, old, gain = (torch.randn(rows, length) / 10 for _ in range(3))
        new.requires_grad_()
        took, _ = seconds(lambda new=new, old=old, gain=gain: _train(new, old, gain, mask))
        best["losses"] = min(best["losses"], 1e3 * took)
        took, _ = seconds(lambda new=new, old=old, gain=gain: _sums(new.detach(), old, gain, mask))
        best["sums"] = min(best["sums"], 1e3 * took)
    return best


def _train(new: Tensor, old: Tensor, gain: Tensor, mask: Tensor) -> None:
    policy = rl_estimators.policy_loss(
        "ppo_clip", old_log_prob=old, log_prob=new, advantages=gain, response_mask=mask
    )
    value = rl_estimators.value_loss("clipped", vpreds=new, values=old, returns=gain, response_mask=mask)
    (policy[0] + value[0]).backward()


def _sums(new: Tensor, old: Tensor, gain: Tensor, mask: Tensor) -> None:
    policy_sums(new, old, mask)
    value_sums(old, gain, mask, new, 0.5)


def available() -> Iterator[str]:
    """The backends that work on the CPU here."""
    for name in ("torch", "numba"):
        with backends.use_backend(name):
            if backends.choose.name_for(torch.ones(1)) == name:
                yield name


def measure(shapes: tuple[tuple[int, int], ...], repeats: int) -> Iterator[dict[str, Any]]:
    """All cases; prints a line each."""
    for rows, length in shapes:
        for backend in available():
            for holes in (False, True):
                for name in ESTIMATORS:
                    with backends.use_backend(backend):
                        found = advantage_step(name, rows, length, holes, repeats)
                    share = found["diagnostics"] / found["estimate"]
                    kind = "holes" if holes else "prefix"
                    print(
                        f"{rows:5d} x {length:<6d}{backend:6s}{kind:7s}{name:13s}estimate {found['estimate']:8.2f} ms  "
                        f"diagnostics {found['diagnostics']:6.2f} ms  share {share:6.1%}",
                        flush=True,
                    )
                    yield {
                        "rows": rows,
                        "length": length,
                        "backend": backend,
                        "mask": kind,
                        "case": name,
                        **found,
                    }
    rows, length = shapes[0]
    found = update(rows, length, repeats)
    print(
        f"{rows:5d} x {length:<6d}updates: losses {found['losses']:.2f} ms, sums {found['sums']:.2f} ms",
        flush=True,
    )
    yield {"rows": rows, "length": length, "case": "updates", **found}


def main() -> None:
    """Measure, print, and write a JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small shape, seconds in place of a minute")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = list(measure(QUICK if options.quick else SHAPES, 3 if options.quick else 8))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "diagnostics.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {options.out / 'diagnostics.json'}")


if __name__ == "__main__":
    main()
