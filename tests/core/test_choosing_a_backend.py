"""Which kernels run: the argument's, then the environment's, then the fastest that are installed and work."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch

import rl_estimators
from rl_estimators import backends
from rl_estimators.backends import choose
from rl_estimators.errors import InputError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(choose.VARIABLE, raising=False)


def test_an_unknown_backend_is_named(monkeypatch):
    wanted = re.escape("backend is 'numbar', expected one of torch, numba, triton. Did you mean 'numba'?")
    with pytest.raises(InputError, match=wanted), backends.use_backend("numbar"):
        pass
    monkeypatch.setenv(choose.VARIABLE, "cuda")
    with pytest.raises(
        InputError, match="RL_ESTIMATORS_BACKEND is 'cuda', expected one of torch, numba, triton"
    ):
        backends.discounted_sum(torch.ones(1, 2), torch.ones(1, 2), 0.5)


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv(choose.VARIABLE, "numba")
    monkeypatch.setattr(choose, "_works", lambda name: True)
    assert choose.name_for(torch.ones(1)) == "numba"
    with backends.use_backend("torch"):
        assert choose.name_for(torch.ones(1)) == "torch"


def test_the_fastest_installed_is_taken(monkeypatch):
    monkeypatch.setattr(choose, "_works", lambda name: True)
    for there in (True, False):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, there=there: object() if there else None
        )
        choose._installed.cache_clear()
        assert choose.name_for(torch.ones(1)) == ("numba" if there else "torch")
        assert choose.name_for(torch.ones(1, device="meta")) == "torch"
    choose._installed.cache_clear()


def test_a_backend_out_of_order_is_replaced_with_one_warning(monkeypatch):
    def broken(name):
        raise ImportError("no LLVM here")

    choose._works.cache_clear()
    monkeypatch.setattr(choose.importlib, "import_module", broken)
    try:
        with backends.use_backend("numba"):
            with pytest.warns(RuntimeWarning, match=re.escape("the backend 'numba' cannot be used here, torch's kernels are used: ImportError: no LLVM here")):  # fmt: skip
                assert choose.name_for(torch.ones(1)) == "torch"
            assert choose.name_for(torch.ones(1)) == "torch"  # a second warning would be an error here
    finally:
        choose._works.cache_clear()


def test_importing_the_package_imports_no_compiler():
    code = "import sys, rl_estimators; print(sorted({'numba', 'triton', 'llvmlite'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_estimate_takes_a_backend():
    x, mask = torch.randn(2, 3), torch.ones(2, 3)
    for name in ("reinforce_pp", "remax"):
        others = {"token_level_rewards": x, "response_mask": mask, "reward_baselines": torch.zeros(2)}
        found = rl_estimators.estimate(name, backend="torch", **others)
        torch.testing.assert_close(found.returns, x.flip(-1).cumsum(-1).flip(-1))
    with pytest.raises(InputError, match="backend is 'fast', expected one of torch, numba, triton"):
        rl_estimators.estimate("reinforce_pp", token_level_rewards=x, response_mask=mask, backend="fast")
