"""What the README shows works."""

import re
from pathlib import Path

import pytest
import torch

import rl_estimators
from rl_estimators.registry import ADV_ESTIMATORS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [  # what trains is run in tests/examples/test_trl.py
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "rl_estimators.trl" not in block
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block, monkeypatch):
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    ones = torch.ones(2, 3)
    names = ("rewards", "mask", "old", "new", "values", "new_values")
    scope = {**dict.fromkeys(names, ones), "uids": ["a", "a"], "rl_estimators": rl_estimators}
    exec(block, scope)
    if "def centred" in block:
        result = rl_estimators.estimate("centred", token_level_rewards=ones, response_mask=ones)
        assert (result.advantages == 0).all()


def test_files_named_in_it_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_estimator_has_its_row():
    for name in rl_estimators.list_adv_est():
        assert f"| `{name}` |" in README


def test_the_commands_are_the_makefiles():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"smoke", "test", "lint", "clean"} <= {*targets}
    assert {*re.findall(r"^make (\w+)", README, re.MULTILINE)} == {"smoke", "test"}
