"""Every registered estimator by name through verl's own path, without a special case."""

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators.registry import ADV_ESTIMATORS

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

OPTIONS = {"gdpo": {"reward_keys": ["format", "answer"]}}


@pytest.fixture(scope="module")
def batch():
    """Two prompts of three samples, with holes, NaN at masked positions and one all-masked row."""
    random = torch.Generator().manual_seed(0)
    mask = (torch.rand(6, 5, generator=random) > 0.3).float()
    mask[5] = 0
    tensors = {
        "token_level_rewards": torch.rand(6, 5, generator=random).masked_fill(mask == 0, float("nan")),
        "values": torch.rand(6, 5, generator=random).masked_fill(mask == 0, float("nan")),
        "response_mask": mask,
        "reward_baselines": torch.rand(6, generator=random),
    }
    columns = {
        "uid": np.array(list("aaabbb"), dtype=object),
        "format": np.array([0.0, 1.0, 0.5, 0.0, 1.0, 1.0], dtype=object),
        "answer": np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=object),
    }
    return tensors, columns


@pytest.mark.parametrize("name", rl_estimators.list_adv_est())
def test_the_same_numbers_as_a_direct_call(name, batch):
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    tensors, columns = batch
    given = {key: value.clone() for key, value in tensors.items()}
    data = DataProto.from_dict(tensors=given, non_tensors=dict(columns))
    config = {"gamma": 0.9, "lam": 0.8, "adv_estimator_kwargs": OPTIONS.get(name, {})}
    through_verl = compute_advantage(data, adv_estimator=f"rle_{name}", config=OmegaConf.create(config)).batch

    known = ADV_ESTIMATORS.spec(name).options
    settings = {key: value for key, value in (("gamma", 0.9), ("lam", 0.8)) if key in known}
    direct = rl_estimators.estimate(
        name, **tensors, index=columns["uid"], non_tensor_batch=columns, **settings, **OPTIONS.get(name, {})
    )
    for column in ("advantages", "returns"):
        assert torch.equal(through_verl[column], getattr(direct, column))
        assert through_verl[column].isfinite().all()
        assert (through_verl[column][tensors["response_mask"] == 0] == 0).all()
    assert (through_verl["advantages"] != 0).any()
