"""The triton kernel is compiled for GPUs, which takes none: typed, lowered, and assembled by NVIDIA's own assembler."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="triton is not installed, or set to interpret",
)

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rl_estimators.backends.triton_scan import gae_kernel

capability, mask, numbers, block = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
pointers = {"rewards": numbers, "values": numbers, "mask": mask, "last": "*fp32", "advantages": "*fp32",
            "targets": "*fp32", "stats": "*fp64"}
numbers = {"length": "i32", "reward_stride": "i32", "value_stride": "i32", "mask_stride": "i32", "gamma": "fp32",
           "decay": "fp32"}
types = {name: {**pointers, **numbers, "BLOCK": "constexpr"}[name] for name in gae_kernel.arg_names}
done = triton.compile(ASTSource(gae_kernel, types, {"BLOCK": block}), target=GPUTarget("cuda", capability, 32))
print(f".target sm_{capability}" in done.asm["ptx"], len(done.asm["cubin"]) > 1000)
"""


@pytest.mark.parametrize(
    ("capability", "mask", "numbers", "block"),
    [(80, "*i64", "*fp32", 1024), (90, "*u8", "*fp32", 1024), (90, "*i64", "*bf16", 128)],
    ids=["A100-long-fp32", "H100-bool-fp32", "H100-long-bf16-short"],
)
def test_it_compiles_for_a_gpu(capability, mask, numbers, block, tmp_path):
    """In a process of its own, with a cache of its own: nothing compiled earlier may answer."""
    known = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(capability), mask, numbers, str(block)]
    done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert [*Path(tmp_path).rglob("*.cubin")]
