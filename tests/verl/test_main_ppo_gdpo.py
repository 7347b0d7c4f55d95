"""gdpo in verl's legacy trainer; in the default one it is part of test_main_ppo_catalogue.py."""

import numpy as np
import pytest
import runs
from reference import groups

pytestmark = [pytest.mark.verl, pytest.mark.slow]


def test_the_legacy_trainer(tmp_path, monkeypatch):
    """The same overrides, the same numbers."""
    records = runs.recorded(monkeypatch, tmp_path / "records")
    overrides = ["trainer.use_v1=False", "algorithm.use_kl_in_reward=False"]
    overrides += runs.returning_components(monkeypatch)
    rows = runs.smoke().run("rle_gdpo", steps=1, out=tmp_path / "out", answers=4, overrides=overrides)
    (record,) = records()
    rewards, mask = runs.arrays(record, "token_level_rewards", "response_mask")
    wanted = groups.gdpo(rewards, mask, runs.uids(record), **runs.components(record))
    assert (wanted.advantages != 0).any()
    np.testing.assert_allclose(record["advantages"].double().numpy(), wanted.advantages, rtol=1e-4, atol=1e-4)
    assert rows[0]["actor/grad_norm"] > 0
