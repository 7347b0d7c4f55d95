"""Many estimates in one process: ``python benchmarks/load.py``, some minutes.

First one after the other, all estimators and backends in turn, each on a fresh batch, as a training of weeks would: the
memory and the threads of the process must be after 10,000 what they were after 1,000. Then every estimator from eight
threads at once: their results must be those of one thread, to the bit.

Linux only: it reads /proc.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from typing import Any

import torch

import rl_estimators

BACKENDS = [name for name in ("torch", "numba") if name == "torch" or find_spec(name)]
PAGE = 4096  # bytes
GROWTH = 32 * 2**20  # bytes between two looks that are no leak: where malloc happens to put things


def batch(rows: int, tokens: int, seed: int) -> dict[str, Any]:
    """What any estimator asks for: eight responses a prompt, masks with holes, scores of at least 0 for maxrl."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=draw)
    return {
        "token_level_rewards": drawn(rows, tokens),
        "response_mask": mask & (drawn(rows, tokens) > 0.1),
        "values": drawn(rows, tokens),
        "index": [f"uid-{row // 8}" for row in range(rows)],
        "reward_baselines": drawn(rows),
        "reward_components": drawn(rows, 2),
    }


def process() -> dict[str, int]:
    """Bytes in memory and threads of this process, as the system counts them."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return {"bytes": resident, "threads": len([*Path("/proc/self/task").iterdir()])}


def consecutive(rows: int, tokens: int, count: int, looks: Sequence[int]) -> Iterator[dict[str, int]]:
    """Make ``count`` estimates; what the process takes after each number of them in ``looks``.

    Each estimator runs once on each backend before, for compilers and libraries are loaded at the first call.
    """
    names, batches = rl_estimators.list_adv_est(), [batch(rows, tokens, seed) for seed in range(4)]
    for name in names:
        for backend in BACKENDS:
            rl_estimators.estimate(name, **batches[0], backend=backend)
    for number in range(count):
        turn, kind = divmod(number, len(names))
        rl_estimators.estimate(
            names[kind], **batches[number % len(batches)], backend=BACKENDS[turn % len(BACKENDS)]
        )
        if number + 1 in looks:
            gc.collect()
            yield {"estimates": number + 1, **process()}


def grown(looks: Sequence[Mapping[str, int]]) -> list[str]:
    """What is larger at the last look than at the first, in words; nothing if all is well."""
    first, last = looks[0], looks[-1]
    more = last["bytes"] - first["bytes"]
    faults = [f"memory grew by {more / 2**20:.0f} MiB"] if more > GROWTH else []
    threads = last["threads"] - first["threads"]
    return faults + ([f"{threads} more threads"] if threads > 0 else [])


def at_once(rows: int, tokens: int, threads: int) -> list[str]:
    """Estimators whose results differ if several threads ask at once; none if all is well."""
    inputs, barrier = batch(rows, tokens, 0), Barrier(threads)
    differ = []
    with ThreadPoolExecutor(threads) as pool:
        for backend in BACKENDS:
            for name in rl_estimators.list_adv_est():

                def ask(_: int, name: str = name, backend: str = backend) -> rl_estimators.Estimate:
                    barrier.wait()
                    return rl_estimators.estimate(name, **inputs, backend=backend)

                alone = rl_estimators.estimate(name, **inputs, backend=backend)
                found = [*pool.map(ask, range(threads))]
                if not all(torch.equal(x, y) for one in found for x, y in zip(one, alone, strict=True)):
                    differ.append(f"{name} ({backend})")
    return differ


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each look, then the verdict; 1 if something grew or differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=8)
    given = parser.parse_args(arguments)
    looks = [given.count * tenths // 10 for tenths in range(1, 11)]
    begin, found = time.monotonic(), []
    for look in consecutive(given.rows, given.tokens, given.count, looks):
        found.append(look)
        print(
            json.dumps(
                {**look, "MiB": round(look["bytes"] / 2**20), "seconds": round(time.monotonic() - begin)}
            ),
            flush=True,
        )
    faults = grown(found)
    faults += [
        f"{what} differs among {given.threads} threads"
        for what in at_once(given.rows, given.tokens, given.threads)
    ]
    print(
        "; ".join(faults)
        or f"memory and threads flat; the same from {given.threads} threads at once as from one"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
