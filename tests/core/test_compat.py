"""``compat``: another library's numbers, against verl 0.9's own functions and TRL 1.16's arithmetic.

verl adds 1e-8 to the number of tokens that a mean is divided by and computes some divisors in another order, so float64
results agree to 1e-7 of their size rather than to the bit; where the operations are the same, the test says so.
"""

import importlib.metadata
import inspect
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators.compat import compat
from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS

VERL = {
    "gae": "gae",
    "reinforce_pp": "reinforce_plus_plus",
    "remax": "remax",
    "grpo": "grpo",
    "rloo": "rloo",
    "opo": "opo",
    "gpg": "gpg",
    "grpo_passk": "grpo_passk",
    "reinforce_pp_baseline": "reinforce_plus_plus_baseline",
    "gdpo": "gdpo",
}
TRL = ["grpo", "rloo", "gdpo"]
SEEDS = range(6)


def drawn(seed, dtype=torch.float64, rows=9, width=5, singleton=True):
    """Groups lying apart, one of them alone; scores are multiples of 1/8, some 0; prefixes of at least two tokens."""
    rng = np.random.default_rng(seed)
    mask = torch.arange(width) < torch.tensor(rng.integers(2, width + 1, rows))[:, None]
    rewards = torch.tensor(rng.integers(-8, 24, (rows, width)) / 8 * (rng.random((rows, 1)) < 0.8))
    index = np.array([*"aabbcc", *rng.choice([*"abc"], rows - 6)], dtype=object)
    if singleton:
        index[-1] = "alone"
    return {
        "token_level_rewards": torch.where(mask, rewards, 0).to(dtype),
        "response_mask": mask.to(dtype),
        "index": index,
        "values": torch.where(mask, torch.tensor(rng.normal(size=(rows, width))), 0).to(dtype),
        "reward_baselines": torch.tensor(rng.normal(size=rows)).to(dtype),
        "reward_components": torch.tensor(rng.integers(0, 24, (rows, 2)) / 8).to(dtype),
    }


def ours(name, batch, **options):
    return rl_estimators.estimate(name, **batch, **options)


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-7)


# ---- verl


def verl(function):
    return pytest.mark.verl(pytest.mark.filterwarnings("ignore")(function))


def theirs(name, batch):
    """verl's own (advantages, returns), as its trainer would call it."""
    pytest.importorskip("verl")
    version = importlib.metadata.version("verl")
    if not version.startswith("0.9."):
        pytest.skip(f"pins verl 0.9, found {version}")
    from verl.trainer.ppo import core_algos

    function = core_algos.get_adv_estimator_fn(VERL[name])
    given = {
        "token_level_rewards": batch["token_level_rewards"].clone(),
        "response_mask": batch["response_mask"],
    }
    if name == "gae":
        return function(**given, values=batch["values"], gamma=1.0, lam=1.0)
    if name == "remax":
        given["reward_baselines"] = batch["reward_baselines"]
    if name not in ("remax", "reinforce_pp"):
        given["index"] = batch["index"]
    if name == "gdpo":
        rows, mask = len(batch["index"]), batch["response_mask"]
        config = {"gdpo_reward_keys": ["one", "two"]}
        components = batch["reward_components"].numpy()
        columns = {"one": components[:, 0], "two": components[:, 1]}
        tensors = {
            "prompts": torch.ones(rows, 2),
            "attention_mask": torch.cat([torch.ones(rows, 2), mask], 1).long(),
        }
        return function(**given, config=config, non_tensor_batch=columns, batch=tensors)
    if name == "grpo":  # its trainer calls it without config
        return function(**given)
    config = {} if name == "grpo_passk" else SimpleNamespace(gamma=1.0)
    return function(**given, config=config)


def batch_for(name, seed, dtype=torch.float64):
    return drawn(seed, dtype, singleton=name != "grpo_passk")  # verl refuses a group of one there


@verl
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", VERL)
def test_verl(name, seed):
    """Groups of one included. gdpo: verl computes the components in float32, a few roundings of 6e-8."""
    batch = batch_for(name, seed)
    actual, (advantages, returns) = ours(name, batch, compat="verl"), theirs(name, batch)
    mask = batch["response_mask"]
    if name == "gdpo":
        torch.testing.assert_close(actual.advantages, advantages.double(), rtol=1e-5, atol=1e-5)
        return
    close(actual.advantages, advantages * mask)
    close(actual.returns, returns * mask)


@verl
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["remax", "gpg"])
def test_verl_to_the_last_bit(name, seed):
    """Multiples of 1/8: sums are exact in any order, and what is divided is divided alike.

    gpg with groups of 2 and 4, whose means are exact, and 8 of 8 scores other than 0 or 4 of 8: alpha 1 or 2.
    """
    batch = drawn(seed, rows=8, singleton=False)
    batch["index"][:] = [*"aabbcccc"]
    if name == "gpg":
        zero = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1.0]).double() if seed % 2 else torch.ones(8).double()
        rewards = torch.zeros_like(batch["token_level_rewards"])
        rewards[:, 0] = zero * torch.arange(1, 9) / 8
        batch["token_level_rewards"] = rewards
    assert torch.equal(ours(name, batch, compat="verl").advantages, theirs(name, batch)[0])


@verl
@pytest.mark.parametrize(
    "name", [name for name in VERL if name not in ("gae", "reinforce_pp", "remax", "grpo_passk")]
)
def test_the_defaults_differ_from_verl(name):
    """Or there would be nothing to ask for: a group of one is 0 here."""
    batch = drawn(0)
    assert (ours(name, batch).advantages - theirs(name, batch)[0]).abs().max() > 0.1


@verl
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["gae", "reinforce_pp"])
def test_holes_as_verl(name, seed):
    """A hole is no step in either; what stands there is not compared."""
    batch, rng = drawn(seed), np.random.default_rng(seed)
    mask = torch.tensor(rng.random((9, 5)) < 0.7)
    mask[:, 0] = mask[:, -1] = True
    batch["response_mask"] = mask.double()
    actual, (advantages, returns) = ours(name, batch, compat="verl"), theirs(name, batch)
    close(actual.advantages[mask], advantages[mask])
    close(actual.returns[mask], returns[mask])


# ---- TRL


def trl_rloo(rewards, num_generations):
    """TRL 1.16.0, trl/trainer/rloo_trainer.py:1677-1699 in numpy; NaN is a completion that nobody could score."""
    grouped = rewards.reshape(-1, num_generations)
    if num_generations == 1:
        return np.zeros(len(rewards))
    counts = (~np.isnan(grouped)).sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        baselines = (np.nansum(grouped, axis=1, keepdims=True) - grouped) / (counts - 1)
    return np.nan_to_num((grouped - baselines).reshape(-1), nan=0.0)


def trl_gdpo(components, num_generations, weights):
    """TRL 1.16.0, trl/trainer/grpo_trainer.py:2790-2799 in numpy, all rewards finite."""
    grouped = components.reshape(-1, num_generations, components.shape[1])
    deviation = grouped.std(axis=1, ddof=1, keepdims=True)
    scaled = (grouped - grouped.mean(axis=1, keepdims=True)) / (deviation + 1e-4)
    sums = (scaled.reshape(components.shape) * weights).sum(axis=1)
    return (sums - sums.mean()) / (sums.std(ddof=1) + 1e-4)


def one_token(numbers):
    column = torch.tensor(np.asarray(numbers), dtype=torch.float64)[:, None]
    return {"token_level_rewards": column, "response_mask": torch.ones_like(column)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_generations", [1, 2, 4])
def test_rloo_trl(num_generations, seed):
    """Sums and one division of numbers of order 1: 1e-12."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=24)
    rewards[rng.random(24) < 0.2] = np.nan
    index = [*(np.arange(24) // num_generations)]
    got = rl_estimators.estimate("rloo", **one_token(rewards), index=index, compat="trl").advantages[:, 0]
    wanted = trl_rloo(rewards, num_generations)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_gdpo_trl(seed):
    components = np.random.default_rng(seed).normal(size=(24, 3))
    weights = np.array([1.0, 0.5, 2.0])
    got = rl_estimators.estimate(
        "gdpo", **one_token(np.zeros(24)), index=[*(np.arange(24) // 4)], weights=[*weights], compat="trl",
        reward_components=torch.tensor(components),
    ).advantages[:, 0]  # fmt: skip
    np.testing.assert_allclose(got.numpy(), trl_gdpo(components, 4, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.trl
@pytest.mark.parametrize(
    ("trainer", "lines"),
    [
        ("RLOOTrainer", [
            "grouped_sum = torch.nansum(grouped_rewards, dim=1, keepdim=True)",
            "baselines = (grouped_sum - grouped_rewards) / (scorable_counts - 1)",
            "advantages = rewards - baselines",
            "advantages = torch.nan_to_num(advantages, nan=0.0)",
        ]),
        ("GRPOTrainer", [
            "mean_k = torch.nanmean(grouped, dim=1, keepdim=True)",
            "reward_k = (grouped - mean_k) / (std_k + 1e-4)",
            "rewards = (reward_k * self.reward_weights.to(device).unsqueeze(0)).nansum(dim=1)",
            "advantages = (rewards - torch.nanmean(rewards)) / (std_rewards + 1e-4)",
        ]),
    ],
)  # fmt: skip
def test_the_transcripts_are_of_this_trl(trainer, lines):
    """The formulas as the installed TRL has them; if this fails, look at the transcripts again."""
    trl = pytest.importorskip("trl")
    source = inspect.getsource(getattr(trl, trainer))
    for line in lines:
        assert line in source


# ---- the option itself


def test_who_has_it():
    """The names here are all that offer it, and what they offer is what the tests above compare."""
    offered = {}
    for name in ADV_ESTIMATORS.names():
        if "compat" in ADV_ESTIMATORS.spec(name).options:
            annotation = inspect.signature(ADV_ESTIMATORS.spec(name).function).parameters["compat"].annotation
            offered[name] = annotation
    both, verl_only = Literal["verl", "trl"] | None, Literal["verl"] | None
    assert offered == {name: both if name in TRL else verl_only for name in VERL}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gae", {"compat": "verl", "whiten": False}, "gae: whiten=False contradicts compat='verl', which has True; drop one"),
        ("remax", {"compat": "verl", "gamma": 0.9}, "remax: gamma=0.9 contradicts compat='verl', which has 1.0; drop one"),
        ("rloo", {"compat": "verl", "singleton": "zero"}, "rloo: singleton='zero' contradicts compat='verl', which has 'raw'"),
        ("gpg", {"compat": "verl", "alpha": 2.0}, "gpg: alpha=2.0 contradicts compat='verl', which has None"),
        ("grpo", {"compat": "trl", "epsilon": 1e-6}, "grpo: epsilon=1e-06 contradicts compat='trl', which has 0.0001"),
        ("gae", {"compat": "trl"}, "gae: compat is 'trl', expected one of verl"),
        ("mc", {"compat": "verl"}, "mc has no option 'compat'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        ours(name, drawn(0), **options)


def test_an_option_that_agrees_may_be_given():
    batch = drawn(0)
    got = ours("rloo", batch, compat="verl", singleton="raw")
    assert torch.equal(got.advantages, ours("rloo", batch, compat="verl").advantages)


def test_the_decorator_keeps_the_function():
    """Positional arguments, the name, the docstring; the option is read from the signature."""

    @compat(theirs={"b": 3})
    def function(a, b=2):
        """What it says."""
        return a, b

    assert (function(1), function(1, compat="theirs"), function(1, 5)) == ((1, 2), (1, 3), (1, 5))
    assert (function.__name__, function.__doc__) == ("function", "What it says.")
    assert str(inspect.signature(function)) == "(a, b=2, *, compat: Optional[Literal['theirs']] = None)"
    with pytest.raises(InputError, match="function: b=5 contradicts compat='theirs', which has 3; drop one"):
        function(1, 5, compat="theirs")
    assert function(1, 3, compat="theirs") == (1, 3)


@pytest.mark.parametrize("whitening", [{}, {"ddof": 1}, {"ddof": 1, "eps": 1e-8}])
def test_a_mapping_that_says_the_same_agrees(whitening):
    batch = drawn(0)
    got = ours("reinforce_pp", batch, compat="verl", whitening=whitening)
    assert torch.equal(got.advantages, ours("reinforce_pp", batch, compat="verl").advantages)


@pytest.mark.parametrize(
    ("whitening", "message"),
    [
        ({"ddof": 0}, r"reinforce_pp: whitening=\{'ddof': 0\} contradicts compat='verl'"),
        ({"ddofs": 1}, "reinforce_pp: a name in whitening is 'ddofs'.*Did you mean 'ddof'"),
        ({"ddof": 2}, "reinforce_pp: whitening: ddof is 2, expected 0 or 1"),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(whitening, message):
    with pytest.raises(InputError, match=message):
        ours("reinforce_pp", drawn(0), compat="verl", whitening=whitening)
