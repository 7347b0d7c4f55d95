"""Batches that are bad all over, through verl's own advantage step, losses and optimizer step."""

import math
from types import SimpleNamespace

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("verl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from parity import recorded, verl_side  # noqa: E402

from rl_estimators import list_adv_est, list_policy_loss, list_value_loss  # noqa: E402
from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402

WITH_CRITIC = [name for name in list_adv_est() if "values" in ADV_ESTIMATORS.spec(name).required]


@pytest.mark.parametrize("name", list_adv_est())
def test_no_valid_token(name):
    tensors, columns = verl_side.batch(name)
    tensors["response_mask"] = torch.zeros_like(tensors["response_mask"])
    for found in verl_side.advantages(name, given=(tensors, columns)):
        assert not found.any()  # NaN would count


@pytest.mark.parametrize("name", list_policy_loss())
def test_no_valid_token_in_a_policy_loss(name, monkeypatch):
    empty(monkeypatch)
    total, gradient = verl_side.policy_loss(name, "token-mean")
    assert total == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", list_value_loss())
def test_no_valid_token_in_a_value_loss(name, monkeypatch):
    empty(monkeypatch)
    total, gradient = verl_side.value_loss(name, "token-mean")
    assert total == 0
    assert not gradient.any()


def empty(monkeypatch):
    monkeypatch.setattr(recorded, "MASK", np.zeros_like(recorded.MASK))
    for name in ("TOKENS", "SEQUENCES"):
        monkeypatch.setattr(recorded, name, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_critic_whose_values_explode(name, bad):
    """For one response: it has the advantage 0, the others have numbers. For all: nobody has another."""
    tensors, columns = verl_side.batch(name)
    tensors["values"][3] = bad
    advantages, returns = verl_side.advantages(name, given=(tensors, columns))
    assert advantages.isfinite().all()
    assert returns.isfinite().all()
    assert not advantages[3].any()
    assert advantages[0].any()
    tensors["values"][:] = bad
    assert not verl_side.advantages(name, given=(tensors, columns))[0].any()


@pytest.mark.parametrize("bad", [False, True])
def test_one_nan_log_probability_costs_a_step(monkeypatch, capsys, bad):
    """The loss is NaN and so is its gradient; verl's engine leaves the step out and prints that it does."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    new = recorded.NEW.copy()
    new[0, 0] = math.nan if bad else new[0, 0]
    monkeypatch.setattr(recorded, "NEW", new)
    total, gradient = verl_side.policy_loss("ppo_clip", "token-mean")
    assert math.isnan(total) == bad
    model = torch.nn.Linear(recorded.WIDTH, recorded.ROWS, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = gradient
    engine = SimpleNamespace(
        module=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        optimizer_config=SimpleNamespace(clip_grad=1.0),
        _qat_enabled=False,
    )
    norm = FSDPEngine.optimizer_step(engine)
    assert math.isfinite(norm) != bad
    assert torch.equal(model.weight, before) == bad
    assert ("WARN: grad_norm is not finite" in capsys.readouterr().out) == bad


@pytest.mark.parametrize("name", list_adv_est())
def test_every_response_is_cut_off(name):
    """verl has no column of that: with one, each goes on with the critic's value after its last token; no reward is lost."""
    tensors, columns = verl_side.batch(name)
    tensors["truncated"] = torch.ones(recorded.ROWS, dtype=torch.bool)
    tensors["bootstrap_values"] = torch.tensor(recorded.AFTER)
    advantages, targets = verl_side.advantages(name, given=(tensors, columns))
    assert advantages.isfinite().all()
    assert advantages.any()
    usual, _ = verl_side.advantages(name)
    read = ADV_ESTIMATORS.spec(name).asks_for("truncated")
    assert torch.equal(advantages, usual) != read
    if name == "gae":
        row, last = 0, recorded.LENGTHS[0] - 1
        wanted = recorded.rewards()[row, last] + recorded.GAMMA * recorded.AFTER[row]
        assert float(targets[row, last]) == pytest.approx(float(wanted), rel=1e-6)
