"""What the plugin costs each process that imports verl: ``python benchmarks/startup.py``.

Every Ray worker of a run loads it. Fresh processes import verl with and without it, in turn; inside each the
processor's time is taken around ``import verl``, after torch's own import.
"""

import os
import statistics
import subprocess
import sys

CODE = """
import time, torch, numpy, ray
start = time.process_time()
import verl
print("SECONDS", time.process_time() - start)
"""


def seconds(plugins: str) -> float:
    """Import verl in a fresh process under one setting of verl's plugin switch."""
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins}
    printed = subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True
    ).stdout
    return next(float(line.split()[1]) for line in printed.splitlines() if line.startswith("SECONDS"))


def main(repeats: int = 10) -> None:
    """Print medians over ``repeats`` pairs; the first pair only warms the disk cache."""
    pairs = [(seconds("none"), seconds("rl_estimators")) for _ in range(repeats + 1)][1:]
    without, with_plugin = (statistics.median(column) for column in zip(*pairs, strict=True))
    differences = sorted(1000 * (b - a) for a, b in pairs)
    print(f"import verl without the plugin {1000 * without:.0f} ms, with it {1000 * with_plugin:.0f} ms")
    print(
        f"the plugin: median {statistics.median(differences):.0f} ms, from {differences[0]:.0f} to {differences[-1]:.0f}"
    )
    print(f"ratio {with_plugin / without:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
