"""What the plugin costs each process that imports verl: ``python benchmarks/startup.py``.

Every Ray worker of a run loads it. Fresh processes import one module of verl with and without it, in turn and in
alternating order; inside each the processor's time is taken around the import, after torch's own. The garbage
collector is off meanwhile: its full passes take 160 ms, and whether one more falls into the import is luck. Beside them,
what `import rl_estimators` itself takes beyond torch and numpy.
"""

import os
import statistics
import subprocess
import sys

MODULES = ("verl", "verl.trainer.ppo.v1.trainer_base", "verl.trainer.main_ppo")
CODE = """
import gc, importlib, sys, time, torch, numpy
if sys.argv[1].startswith("verl"):
    import ray
gc.disable()
start = time.process_time()
importlib.import_module(sys.argv[1])
print("SECONDS", time.process_time() - start)
"""


def seconds(module: str, plugins: str) -> float:
    """Import ``module`` in a fresh process under one setting of verl's plugin switch."""
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins}
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, module],
        env=env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return next(float(line.split()[1]) for line in printed.splitlines() if line.startswith("SECONDS"))


def pair(module: str, turned: bool) -> tuple[float, float]:
    """Seconds without and with the plugin, one after the other; ``turned`` has the plugin go first."""
    settings = ("rl_estimators", "none") if turned else ("none", "rl_estimators")
    found = {plugins: seconds(module, plugins) for plugins in settings}
    return found["none"], found["rl_estimators"]


def main(repeats: int = 10) -> None:
    """Print medians over ``repeats`` pairs for each module; a pair before them warms the disk cache."""
    alone = sorted(1000 * seconds("rl_estimators", "none") for _ in range(repeats + 1))
    print(
        f"import rl_estimators: median {statistics.median(alone):.0f} ms, from {alone[0]:.0f} to {alone[-1]:.0f}"
    )
    for module in MODULES:
        pairs = [pair(module, turned=bool(i % 2)) for i in range(repeats + 1)][1:]
        columns = list(zip(*pairs, strict=True))
        without, with_plugin = (statistics.median(column) for column in columns)
        least = 1000 * (min(columns[1]) - min(columns[0]))
        differences = sorted(1000 * (b - a) for a, b in pairs)
        print(
            f"import {module}: {1000 * without:.0f} ms without the plugin, {1000 * with_plugin:.0f} ms with it, "
            f"ratio {with_plugin / without:.3f}; the plugin: median {statistics.median(differences):.0f} ms, "
            f"from {differences[0]:.0f} to {differences[-1]:.0f}; between the fastest of each {least:.0f} ms"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
