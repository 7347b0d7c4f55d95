"""A real run in which the length limit cuts responses off, and their advantages end in the critic's value."""

import numpy as np
import pytest
import runs
from reference import returns

pytestmark = [pytest.mark.verl, pytest.mark.slow]

INPUTS = ("token_level_rewards", "values", "response_mask", "truncated", "bootstrap_values")
LIMIT = 5  # four digits and the end: who is not done by then is cut off


def test_truncated_responses_end_in_the_critics_value(tmp_path, monkeypatch):
    records = runs.recorded(monkeypatch, tmp_path / "records")
    overrides = ["+rl_estimators.bootstrap_truncated=True", f"data.max_response_length={LIMIT}"]
    overrides += ["algorithm.lam=0.9", "algorithm.gamma=0.95", "actor_rollout_ref.rollout.temperature=1.5"]
    rows = runs.smoke().run("rle_gae", steps=2, out=tmp_path / "out", overrides=overrides)
    for record, row in zip(records(), rows, strict=True):
        given = dict(zip(INPUTS, runs.arrays(record, *INPUTS), strict=True))
        mask, truncated, last = (given[name] for name in INPUTS[2:])
        full = mask.sum(axis=1) == LIMIT
        assert truncated.any()
        assert full[truncated == 1].all()
        assert (full & (truncated == 0)).any()  # done with the last token
        assert row["rl_estimators/truncated_response_share"] == pytest.approx(truncated.mean())
        assert len(np.unique(last)) > len(last) / 2  # the critic saw each response to its end
        wanted = returns.ESTIMATORS["gae"](**given, gamma=0.95, lam=0.9)
        for column in ("advantages", "returns"):
            np.testing.assert_allclose(
                record[column].double().numpy(), getattr(wanted, column), rtol=1e-4, atol=1e-4, err_msg=column
            )
        assert row["critic/grad_norm"] > 0
