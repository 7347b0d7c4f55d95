"""Every policy loss through verl's actor loss and TRL's `_compute_loss`, every value loss through the critics' of both.

Losses are the same to the bit, and so are the gradients by the log-probabilities and by the critic's values. Aligned by
the options: verl's actor fills in its clip ratio of 0.2 where an option is not given, TRL's trainer leaves the loss's
own default; verl counts a mini-batch's sequences by its configured size, TRL's trainer those with a valid token.
"""

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.trl, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("verl")
pytest.importorskip("trl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from reference import losses, policy_losses  # noqa: E402

from parity import recorded, trl_side, verl_side  # noqa: E402
from rl_estimators import list_policy_loss, list_value_loss  # noqa: E402
from rl_estimators.aggregation import MODES  # noqa: E402

POLICY, VALUE = list_policy_loss(), list_value_loss()
SEPARABLE = [name for name in POLICY if name not in recorded.PER_BATCH]
THIRDS = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
UNEVEN = ((0, 1, 2, 3, 4), (8,), (5, 6, 7, 9, 10), (11,))  # one without any valid token
SHUFFLED = (10, 8, 11, 9, 1, 3, 2, 0, 7, 5, 4, 6)
# A sum of 44 numbers in another order, in fp32: relative to the largest gradient, and to the sum of the sizes.
REORDERED = 1e-6


def loss_of(side, kind, name, mode, model, folder, **how):
    """``(loss, gradient)`` of a policy or value loss in one of the frameworks."""
    function = getattr(side, f"{kind}_loss")
    return function(name, mode, **how) if side is verl_side else function(model, folder, name, mode, **how)


def close(found, wanted):
    scale = float(wanted[1].abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=REORDERED * scale)
    assert found[0] == pytest.approx(wanted[0], rel=0, abs=REORDERED * scale * recorded.TOKENS)


EVERY = [("policy", name) for name in POLICY] + [("value", name) for name in VALUE]


def test_every_loss_has_options():
    """One registered later must be told what it is compared with."""
    assert set(recorded.POLICY_OPTIONS) == set(POLICY)
    assert set(recorded.VALUE_OPTIONS) == set(VALUE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_equal_to_the_bit(model, tmp_path, kind, name, mode):
    loss, gradient = loss_of(verl_side, kind, name, mode, model, tmp_path)
    in_trl, slope = loss_of(trl_side, kind, name, mode, model, tmp_path)
    assert loss == in_trl
    assert torch.equal(gradient, slope)
    assert (gradient[~torch.tensor(recorded.MASK)] == 0).all()
    assert (gradient != 0).sum() >= 10


@pytest.mark.parametrize("name", [*losses.LOSSES, *policy_losses.LOSSES])
def test_right_by_the_reference(name):
    """Value and gradient in float64 by the definition, averaged over tokens."""
    mask = recorded.MASK
    arrays = {
        key: np.where(mask, array, 0).astype(np.float64)
        for key, array in (
            *(
                ("old_log_prob", recorded.OLD),
                ("log_prob", recorded.NEW),
                ("advantages", recorded.ADVANTAGES),
            ),
            *(("vpreds", recorded.PREDICTED), ("values", recorded.VALUES), ("returns", recorded.RETURNS)),
        )
    }
    share = losses.weights(mask, "token-mean")
    options = recorded.VALUE_OPTIONS.get(name, recorded.POLICY_OPTIONS.get(name))
    if name in losses.LOSSES:
        per_token = losses.LOSSES[name](
            **{key: arrays[key] for key in losses.INPUTS[name]}, response_mask=mask, **options
        )
        value, slope = losses.aggregate(per_token.loss, mask, "token-mean"), share * per_token.slope
    else:
        old, new, advantages = (arrays[key] for key in ("old_log_prob", "log_prob", "advantages"))
        per_token, pull = policy_losses.LOSSES[name](old, new, new, advantages, mask, **options)
        value, (slope, _) = losses.aggregate(per_token, mask, "token-mean"), pull(share)
    kind = verl_side.policy_loss if name in POLICY else verl_side.value_loss
    found = kind(name, "token-mean")
    assert found[0] == pytest.approx(value, rel=0, abs=1e-5)
    np.testing.assert_allclose(found[1].numpy(), slope, rtol=0, atol=1e-5 * np.abs(slope).max())


@pytest.mark.parametrize("mode", MODES)
def test_the_kl_divergence_in_the_loss(model, tmp_path, mode):
    """verl's `low_var_kl`, which clamps what is far outside here, and TRL's k3: the same equation, another order."""
    found = verl_side.policy_loss("ppo_clip", mode, kl=0.3)
    close(trl_side.policy_loss(model, tmp_path, "ppo_clip", mode, kl=0.3), found)
    assert found[0] != pytest.approx(verl_side.policy_loss("ppo_clip", mode)[0], abs=1e-3)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize(("kind", "name"), [pair for pair in EVERY if pair[1] not in recorded.PER_BATCH])
def test_micro_batches_add_up_to_the_whole(model, tmp_path, kind, name, mode):
    """Three equal ones in TRL; four in verl, narrower than the whole, one without a valid token."""
    whole = loss_of(verl_side, kind, name, mode, model, tmp_path)
    close(loss_of(verl_side, kind, name, mode, model, tmp_path, parts=UNEVEN), whole)
    close(loss_of(trl_side, kind, name, mode, model, tmp_path, parts=3), whole)


@pytest.mark.parametrize("name", recorded.PER_BATCH)
def test_what_is_chosen_per_micro_batch_is_chosen_alike(model, tmp_path, name):
    """These choose tokens among those at hand, so the whole differs; the same micro-batches agree."""
    found = trl_side.policy_loss(model, tmp_path, name, "token-mean", parts=3)
    close(found, verl_side.policy_loss(name, "token-mean", parts=THIRDS))
    assert found[0] != pytest.approx(verl_side.policy_loss(name, "token-mean")[0], abs=1e-4)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_rows_in_another_order(model, tmp_path, kind, name):
    """The gradient is by recorded row in both, so it stays where it was."""
    whole = loss_of(verl_side, kind, name, "token-mean", model, tmp_path)
    close(loss_of(verl_side, kind, name, "token-mean", model, tmp_path, parts=(SHUFFLED,)), whole)
    close(loss_of(trl_side, kind, name, "token-mean", model, tmp_path, order=SHUFFLED), whole)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_more_padding(model, tmp_path, kind, name):
    """`pad_to_multiple_of=16` in TRL, NaN in the added columns; verl's engines hand a loss no padding to vary.

    The mode is the one that could take the batch's width for the length limit.
    """
    mode = "seq-mean-token-sum-norm"
    wanted = loss_of(trl_side, kind, name, mode, model, tmp_path)
    close(loss_of(trl_side, kind, name, mode, model, tmp_path, pad=16), wanted)
