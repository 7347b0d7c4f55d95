"""`import rl_estimators` is light: it brings nothing along that only some need."""

import json
import subprocess
import sys

from docblocks import ROOT

HEAVY = (
    *("verl", "trl", "transformers", "accelerate", "datasets", "ray", "hydra", "omegaconf", "tensordict"),
    *("numba", "triton", "matplotlib", "pandas", "pyarrow", "tensorboard", "tqdm", "safetensors", "PIL"),
)
CODE = """
import json, sys
import numpy, torch
before = set(sys.modules)
import rl_estimators
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_nothing_heavy_comes_along():
    out = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=True
    )
    new = {*json.loads(out.stdout)}
    assert "rl_estimators" in new
    assert not {*HEAVY} & new


def test_the_page_tells_the_figure():
    """Measured by `benchmarks/startup.py`; a timed test would say more of the machine than of the package."""
    assert (
        "`import rl_estimators` takes about 30 ms beyond `import torch`"
        in (ROOT / "docs/fast.md").read_text()
    )
