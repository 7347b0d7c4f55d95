"""Ours against verl's functions and a memory copy: ``make bench``, or ``python benchmarks/kernels.py --quick``.

One process and one thread. For every shape and mask each repeat draws fresh inputs and runs all contestants on them in
turn, another one first each time, as what one leaves in the cache helps or hinders the next; a contestant's time is the
smallest over the repeats, in seconds of the processor, which other programs on the machine do not lengthen much. What a
call returns is kept until its next one, as a trainer keeps it: memory is not handed back and forth between contestants.
Ours is called by name, with all checks.

The copy moves as many bytes as the call must read and write at least: its inputs and its outputs. ``copy`` is into
memory that is there; ``fresh`` into memory that the system must provide first, as for every call's outputs.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")

import verl.utils.torch_functional as verl_functional  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

import rl_estimators  # noqa: E402
from rl_estimators import backends, masked  # noqa: E402
from rl_estimators.whitening import whitened  # noqa: E402

SHAPES = ((64, 1024), (256, 4096), (1024, 8192), (512, 32768))
QUICK = ((8, 64), (64, 1024))
CONFIG = SimpleNamespace(gamma=1.0)
ACTOR = ActorConfig(
    strategy="fsdp",
    rollout_n=1,
    use_dynamic_bsz=True,
    clip_ratio=0.2,
    clip_ratio_low=0.2,
    clip_ratio_high=0.2,
)
CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}
Call = Callable[..., Any]


def inputs(rows: int, length: int, kind: str) -> dict[str, Any]:
    """A batch as verl has it: fp32 numbers, an int64 mask, eight responses a prompt."""
    mask = torch.arange(length) < torch.randint(length // 4, length + 1, (rows, 1))
    if kind == "holes":
        mask &= torch.rand(rows, length) > 0.1
    batch = {name: torch.randn(rows, length) for name in ("rewards", "values", "old", "new", "gain")}
    batch["new"] = (batch["old"] + 0.1 * batch["new"]).requires_grad_()
    batch["scored"] = batch["rewards"] * mask  # as a framework has them: nothing on masked tokens
    uids = np.array([f"{number // 8:08x}" for number in range(rows)], dtype=object)
    return {**batch, "mask": mask.long(), "baselines": torch.randn(rows), "uids": uids}


def estimate(name: str, **fields: str) -> Call:
    """Our estimator on a batch; ``fields`` says where further inputs stand."""

    def call(x: dict[str, Any]) -> Any:
        others = {field: x[key] for field, key in fields.items()}
        return rl_estimators.estimate(
            name, token_level_rewards=x["rewards"], response_mask=x["mask"], **others
        )

    return call


def trained(loss: Call) -> Call:
    """Forward and backward."""

    def call(x: dict[str, Any]) -> Any:
        x["new"].grad = None
        loss(x)[0].backward()
        return x["new"].grad

    return call


def policy_losses(
    theirs: Call, name: str, mode: str = "token-mean", **options: Any
) -> tuple[Call, Call, int]:
    """A case: verl's loss and ours of that name, averaged alike and with verl's options, forward and backward."""

    def verl(x: dict[str, Any]) -> Any:
        return theirs(x["old"], x["new"], x["gain"], x["mask"], loss_agg_mode="token-mean", config=ACTOR)

    def ours(x: dict[str, Any]) -> Any:
        return rl_estimators.policy_loss(
            name, old_log_prob=x["old"], log_prob=x["new"], advantages=x["gain"], response_mask=x["mask"],
            loss_agg_mode=mode, **options,
        )  # fmt: skip

    return trained(verl), trained(ours), 24


def verl_groups(x: dict[str, Any]) -> Any:
    return core_algos.compute_grpo_outcome_advantage(x["gain"][:, :1], x["mask"][:, :1], x["uids"])


def our_groups(x: dict[str, Any]) -> Any:
    ids = masked.group_ids(x["uids"], torch.device("cpu"))
    scores = x["gain"][:, 0]
    return masked.over_std(masked.group_moments(scores, ids, torch.ones_like(ids, dtype=torch.bool)), 1e-6)


# Name: verl's, ours, bytes a token that must be read and written.
CASES: dict[str, tuple[Call, Call, int]] = {
    "gae": (
        lambda x: core_algos.compute_gae_advantage_return(x["rewards"], x["values"], x["mask"], 1.0, 0.95),
        lambda x: rl_estimators.estimate(
            "gae", token_level_rewards=x["rewards"], response_mask=x["mask"], values=x["values"], lam=0.95
        ),
        24,
    ),
    # as the adapters call it: rewards on masked tokens are looked for
    "gae + carry": (
        lambda x: core_algos.compute_gae_advantage_return(x["scored"], x["values"], x["mask"], 1.0, 0.95),
        lambda x: rl_estimators.estimate(
            "gae", token_level_rewards=x["scored"], response_mask=x["mask"], values=x["values"], lam=0.95,
            masked_rewards="carry",
        ),
        24,
    ),
    "reinforce_pp": (
        lambda x: core_algos.compute_reinforce_plus_plus_outcome_advantage(x["rewards"], x["mask"], config=CONFIG),
        estimate("reinforce_pp"),
        20,
    ),
    "grpo": (
        lambda x: core_algos.compute_grpo_outcome_advantage(x["rewards"], x["mask"], x["uids"]),
        estimate("grpo", index="uids"),
        16,
    ),
    "remax": (
        lambda x: core_algos.compute_remax_outcome_advantage(
            x["rewards"], x["baselines"], x["mask"], config=CONFIG
        ),
        estimate("remax", reward_baselines="baselines"),
        20,
    ),
    "whitening": (
        lambda x: verl_functional.masked_whiten(x["values"], x["mask"]),
        lambda x: whitened(x["values"], x["mask"]),
        16,
    ),
    "groups": (verl_groups, our_groups, 0),
    "policy loss": policy_losses(core_algos.compute_policy_loss_vanilla, "ppo_clip", clip_ratio_c=3.0),
    "gspo": policy_losses(core_algos.compute_policy_loss_gspo, "gspo", token_level=True, **CLIP),
    "gmpo": policy_losses(core_algos.compute_policy_loss_geo_mean, "gmpo", "seq-mean-token-mean", **CLIP),
    "cispo": policy_losses(core_algos.compute_policy_loss_cispo, "cispo", **CLIP),
    "sapo": policy_losses(core_algos.compute_policy_loss_sapo, "sapo", "seq-mean-token-mean", tau_neg=1.05),
    "gpg": policy_losses(core_algos.compute_policy_loss_gpg, "gpg"),
    "reinforce": policy_losses(core_algos.compute_policy_loss_reinforce, "reinforce"),
    "clip_cov": policy_losses(core_algos.compute_policy_loss_clip_cov, "clip_cov", **CLIP),
    "kl_cov": policy_losses(core_algos.compute_policy_loss_kl_cov, "kl_cov", ppo_kl_coef=0.1),
    "value loss": (
        trained(lambda x: core_algos.compute_value_loss(x["new"], x["gain"], x["old"], x["mask"], 0.5)),
        trained(
            lambda x: rl_estimators.value_loss(
                "clipped", vpreds=x["new"], values=x["old"], returns=x["gain"], response_mask=x["mask"]
            )
        ),
        24,
    ),
}  # fmt: skip


LOSSES = [case for case, (call, _, _) in CASES.items() if call.__qualname__.startswith("trained")]


def available() -> list[str]:
    """The backends that work on the CPU here."""
    found = []
    for name in ("torch", "numba"):
        with backends.use_backend(name):
            if backends.choose.name_for(torch.ones(1)) == name:
                found.append(name)
    return found


def copies(size: int) -> dict[str, Callable[[], Any]]:
    """Copies that read and write ``size`` bytes together."""
    source = np.ones(max(size // 8, 1), np.float32)
    target = np.ones_like(source)
    return {"copy": lambda: np.copyto(target, source), "fresh": source.copy}


def contest(case: str, rows: int, length: int, kind: str, names: list[str], repeats: int) -> dict[str, float]:
    """Seconds of each contestant."""
    theirs, ours, size = CASES[case]
    moves = copies(size * rows * length)
    kept: dict[str, Any] = {}
    best: dict[str, float] = {}
    for turn in range(repeats):
        batch = inputs(rows, length, kind)
        calls = {"verl": lambda batch=batch: theirs(batch), **moves}
        for name in names:
            calls[name] = lambda batch=batch: ours(batch)
        order = [*calls]
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            call = calls[name]
            with backends.use_backend(name if name in names else "torch"):
                start = time.process_time()
                kept[name] = call()
                best[name] = min(best.get(name, np.inf), time.process_time() - start)
    return best


def race(
    shapes: tuple[tuple[int, int], ...], backend_names: list[str], quick: bool
) -> Iterator[dict[str, Any]]:
    """All cases; prints a line each."""
    for rows, length in shapes:
        repeats = 5 if rows * length > 1 << 22 else 25
        for kind in ("prefix", "holes"):
            for case in CASES:
                names = ["torch"] if case in LOSSES else backend_names  # the losses are the same in all
                seconds = contest(case, rows, length, kind, names, repeats)
                ratios = {name: seconds["verl"] / seconds[name] for name in names}
                share = {name: seconds["copy"] / seconds[name] for name in names}
                fresh = {name: seconds["fresh"] / seconds[name] for name in names}
                shown = "  ".join(
                    f"{name} {ratios[name]:6.1f}x ({share[name]:4.0%}, {fresh[name]:4.0%} of copies)"
                    for name in names
                )
                print(f"{rows:5d} x {length:<6d}{kind:7s}{case:13s}{shown}", flush=True)
                yield {
                    "rows": rows, "length": length, "mask": kind, "case": case, "seconds": seconds,
                    "times_verl": ratios, "of_copy": share, "of_fresh_copy": fresh,
                }  # fmt: skip


def accuracy(names: list[str], length: int) -> list[dict[str, Any]]:
    """Largest error of GAE without whitening, relative to the largest advantage in fp64."""
    batch = inputs(8, length, "holes")
    found = []
    for gamma, lam in ((1.0, 1.0), (1.0, 0.95), (0.99, 0.95)):
        rewards, values = batch["rewards"], batch["values"]
        exact = backends.torch_rows.gae(
            rewards.double(), values.double(), batch["mask"], None, gamma, gamma * lam
        )
        for name in names:
            with backends.use_backend(name):
                got = backends.gae(rewards, values, batch["mask"], None, gamma, gamma * lam).advantages
            error = float((got - exact.advantages).abs().max() / exact.advantages.abs().max())
            found.append({"backend": name, "gamma": gamma, "lam": lam, "length": length, "error": error})
            print(f"accuracy at T = {length}, gamma {gamma}, lambda {lam}, {name}: {error:.1e}", flush=True)
    return found


def peak(contestant: str, rows: int, length: int) -> int:
    """MiB by which GAE with whitening raises the peak of a process of its own, outputs included; Linux only."""
    batch, small = inputs(rows, length, "prefix"), inputs(4, 64, "prefix")
    theirs, ours, _ = CASES["gae"]
    call = theirs if contestant == "verl" else ours
    with backends.use_backend(None if contestant == "verl" else contestant):
        call(small)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the inputs
        before = resident("VmRSS")
        kept = call(batch)
        assert kept is not None
        return (resident("VmHWM") - before) // 1024


def resident(field: str) -> int:
    """KiB of this process, now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory(names: list[str], rows: int, length: int) -> list[dict[str, Any]]:
    """Peaks of all contestants."""
    found = []
    for name in ("verl", *names):
        command = [sys.executable, __file__, "--peak", name, str(rows), str(length)]
        mib = int(subprocess.check_output(command, text=True).split()[-1])
        found.append({"contestant": name, "rows": rows, "length": length, "peak_mib": mib})
        print(
            f"gae {rows} x {length}, {name}: {mib} MiB, of which outputs {rows * length * 8 >> 20}",
            flush=True,
        )
    return found


def growth(names: list[str], quick: bool) -> list[dict[str, Any]]:
    """How our time grows with rows, tokens and groups, the rest held."""
    top = 4 if quick else 6
    lines = {
        "rows": [("gae", 2**k * 16, 256 if quick else 2048) for k in range(top)],
        "length": [("gae", 16 if quick else 128, 2**k * 256) for k in range(top)],
        "groups": [("groups", 2**k * 256, 1) for k in range(top)],
    }
    found = []
    for axis, points in lines.items():
        for case, rows, length in points:
            seconds = contest(case, rows, length, "prefix", names, 5)
            found.append({"axis": axis, "case": case, "rows": rows, "length": length, "seconds": seconds})
    return found


def plot(found: list[dict[str, Any]], names: list[str], path: Path) -> None:
    """Time over size, one panel an axis; a straight line of slope 1 is linear growth."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for panel, axis in zip(panels, ("rows", "length", "groups"), strict=True):
        points = [point for point in found if point["axis"] == axis]
        sizes = [point["rows"] // 8 if axis == "groups" else point[axis] for point in points]
        for name in ("verl", *names):
            panel.loglog(sizes, [1e3 * point["seconds"][name] for point in points], "o-", label=name)
        panel.set_xscale("log", base=2)
        panel.set_xlabel({"rows": "responses B", "length": "tokens T", "groups": "groups of eight"}[axis])
        panel.set_ylabel("ms")
        panel.set_title(points[0]["case"])
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def machine() -> dict[str, str]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    packages = {}
    for name in ("torch", "numpy", "verl", "numba"):
        try:
            packages[name] = version(name)
        except Exception:  # not installed
            packages[name] = "-"
    return {
        "processor": model,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **packages,
    }


def main() -> None:
    """Run everything, print ratios, write a JSON and a PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, seconds in place of minutes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak", nargs=3, metavar=("CONTESTANT", "ROWS", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.peak:
        name, rows, length = options.peak
        print(peak(name, int(rows), int(length)))
        return
    names = available()
    for case in CASES:  # compile, fill caches
        contest(case, 4, 64, "holes", names, 1)
    results = {
        "machine": machine(),
        "races": list(race(QUICK if options.quick else SHAPES, names, options.quick)),
        "accuracy": accuracy(names, 1024 if options.quick else 32768),
        "memory": memory(names, *((64, 1024) if options.quick else (1024, 8192))),
        "growth": growth(names, options.quick),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "kernels.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results["growth"], names, options.out / "kernels.png")
    print(f"written to {options.out / 'kernels.json'} and kernels.png")


if __name__ == "__main__":
    main()
