"""Every estimator through verl's advantage step and through TRL's: the same numbers to the bit, and the right ones.

Settings are aligned where the frameworks differ by design: verl's keys gamma and lam have a value always, TRL's trainer has
the estimator's default unless told; TRL hands on one number for a response whose advantage is the same everywhere,
which is spread out again here; TRL's trainer refuses rewards of tokens for `gdpo`, so verl's batch has none there.
"""

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.trl, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("verl")
pytest.importorskip("trl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from reference import definitions, groups, returns  # noqa: E402

from parity import recorded, trl_side, verl_side  # noqa: E402
from rl_estimators import list_adv_est  # noqa: E402
from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402

NAMES = list_adv_est()
REFERENCE = {**returns.ESTIMATORS, **groups.ESTIMATORS}
REFERENCE |= {name: definitions.ESTIMATORS[name] for name in ("grpo", "reinforce_pp", "remax")}
# gdpo reads no rewards of tokens; maxrl refuses the negative scores that a KL divergence may make. Both refuse it.
CHARGED = [name for name in NAMES if name not in ("gdpo", "maxrl")]
# Sums over the batch or a group in another order round otherwise; the largest numbers here are about 4.
REORDERED = 1e-6
SHUFFLED = (10, 8, 11, 9, 1, 3, 2, 0, 7, 5, 4, 6)  # prompts and, within them, responses


class Plain(dict):
    """What each framework makes of the recording as it is, by estimator: computed when it is asked for."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder

    def __missing__(self, name):
        self[name] = verl_side.advantages(name), trl_side.advantages(self.model, self.folder, name)
        return self[name]


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    return Plain(model, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_bit(plain, name):
    (advantages, targets), ours_in_trl = plain[name]
    assert torch.equal(advantages, ours_in_trl.advantages)
    assert torch.equal(targets, ours_in_trl.returns)
    assert (advantages[~torch.tensor(recorded.MASK)] == 0).all()
    assert (advantages[recorded.UNSCORED] == 0).all()
    assert (advantages != 0).sum() >= 8


@pytest.mark.parametrize("name", NAMES)
def test_trl_gets_what_it_takes_for_an_advantage(plain, name):
    """One number per completion where that is all there is; with a critic, its targets."""
    batch, spec = plain[name][1].batch, ADV_ESTIMATORS.spec(name)
    assert batch["advantages"].ndim == (1 if "index" in spec.required else 2)
    assert ("returns" in batch) == ("values" in spec.required)


@pytest.mark.parametrize("name", NAMES)
def test_right_by_the_reference(plain, name):
    """float64 from the definition. fp32 sums of at most 44 numbers below 8: 1e-5 of the largest leaves room."""
    inputs = {
        "token_level_rewards": recorded.carried(recorded.rewards(process=name != "gdpo")),
        "response_mask": recorded.MASK,
        "values": recorded.VALUES.astype(np.float64),
        "index": recorded.UIDS,
        "reward_baselines": recorded.BASELINES.astype(np.float64),
        "reward_components": recorded.COMPONENTS.astype(np.float64),
        "truncated": recorded.TRUNCATED,
        "bootstrap_values": recorded.AFTER.astype(np.float64),
    }
    spec = ADV_ESTIMATORS.spec(name)
    asked = {key: value for key, value in inputs.items() if spec.asks_for(key)}
    options = dict(recorded.OPTIONS.get(name, {}))
    options |= {k: v for k, v in (("gamma", recorded.GAMMA), ("lam", recorded.LAM)) if k in spec.options}
    if name == "gdpo":
        options["weights"] = recorded.WEIGHTS
    wanted = REFERENCE[name](**asked, **options)
    for found, right in zip(plain[name][0], wanted, strict=True):
        # values of a response that is left out are handed back; verl's batch has NaN where nobody wrote
        np.testing.assert_allclose(found.numpy(), right, rtol=0, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("name", CHARGED)
def test_kl_in_the_reward(model, tmp_path, name):
    """verl charges the KL divergence before rewards are carried to a valid token, TRL's trainer after: a rounding."""
    in_verl = verl_side.advantages(name, kl=0.1)
    in_trl = trl_side.advantages(model, tmp_path, name, kl=0.1)
    for found, wanted in zip(in_trl[:2], in_verl, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", CHARGED)
def test_the_kl_divergence_was_charged(plain, name):
    charged = verl_side.advantages(name, kl=0.1)
    assert (charged[0] - plain[name][0][0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_rows_in_another_order(plain, model, tmp_path, name):
    """verl's in any order; TRL's with each prompt's completions together, which is how TRL knows them."""
    order = list(SHUFFLED)
    anyhow = np.random.default_rng(0).permutation(recorded.ROWS).tolist()
    in_trl = trl_side.advantages(model, tmp_path, name, order=tuple(order))
    for found, in_order, rows in (
        (verl_side.advantages(name, rows=anyhow), plain[name][0], anyhow),
        (in_trl[:2], plain[name][1][:2], order),
    ):
        for tensor, wanted in zip(found, in_order, strict=True):
            torch.testing.assert_close(
                tensor, wanted[rows], rtol=0, atol=REORDERED * float(wanted.abs().max())
            )


@pytest.mark.parametrize("name", NAMES)
def test_more_padding(plain, model, tmp_path, name):
    """Nine more columns of NaN in verl; `pad_to_multiple_of=16` in TRL. To the bit."""
    in_verl = verl_side.advantages(name, width=16)
    in_trl = trl_side.advantages(model, tmp_path, name, pad=16)
    for found in (in_verl, in_trl[:2]):
        for tensor, wanted in zip(found, plain[name][0], strict=True):
            assert tensor.shape == (recorded.ROWS, 16)
            assert (tensor[:, recorded.WIDTH :] == 0).all()
            assert torch.equal(tensor[:, : recorded.WIDTH], wanted)


@pytest.mark.parametrize("name", [n for n in NAMES if "index" in ADV_ESTIMATORS.spec(n).required])
def test_a_session_with_two_outputs_counts_once(plain, name):
    """verl alone has such sessions. Rows 0 and 9 gave an output before; it gets their advantage on its valid tokens."""
    rows = [0, *verl_side.ALL, 9]
    keys = [f"{recorded.UIDS[row]}_{row}_1" for row in rows]
    keys[0], keys[-1] = f"{recorded.UIDS[0]}_0_0", f"{recorded.UIDS[9]}_9_0"
    for found, wanted in zip(verl_side.advantages(name, rows=rows, keys=keys), plain[name][0], strict=True):
        assert torch.equal(found[1:-1], wanted)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[-1], wanted[9])
