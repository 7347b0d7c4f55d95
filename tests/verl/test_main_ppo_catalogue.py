"""The catalogue in verl's real `main_ppo`: one run, one training step with each estimator, by name."""

import numpy as np
import pytest
import runs
from reference import definitions, groups, returns

import rl_estimators

pytestmark = [pytest.mark.verl, pytest.mark.slow]

# remax decodes greedily and has runs of its own (test_main_ppo_remax.py)
NAMES = [name for name in rl_estimators.list_adv_est() if name != "remax"]
REFERENCE = {**definitions.ESTIMATORS, **groups.ESTIMATORS, **returns.ESTIMATORS}
COLUMNS = {
    **definitions.INPUTS,
    **returns.INPUTS,
    **dict.fromkeys(groups.ESTIMATORS, definitions.INPUTS["grpo"]),
}


def expected(name, record):
    columns = [column for column in COLUMNS[name] if column != "index"]
    given = dict(zip(columns, runs.arrays(record, *columns), strict=True))
    if "index" in COLUMNS[name]:
        given["index"] = runs.uids(record)
    if name == "gdpo":
        given |= runs.components(record)
    return REFERENCE[name](**given, **({"lam": 0.9} if name in ("gae", "decoupled_gae", "turn_gae") else {}))


def test_every_estimator_trains_a_step(tmp_path, monkeypatch):
    """Selected by name in the configuration that the trainer reads; each step's numbers are the definition's."""
    records = runs.recorded(monkeypatch, tmp_path / "records")
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "recorder,carousel")
    monkeypatch.setenv("RLE_TEST_ESTIMATORS", ",".join(f"rle_{name}" for name in NAMES))
    overrides = ["algorithm.lam=0.9", "algorithm.use_kl_in_reward=False"]  # maxrl wants scores of at least 0
    overrides += [*runs.returning_components(monkeypatch), "critic.enable=True"]  # gdpo passes the start
    rows = runs.smoke().run(
        "rle_gdpo", steps=len(NAMES), out=tmp_path / "out", answers=4, overrides=overrides
    )
    steps = records()
    assert [record["adv_estimator"] for record in steps] == [f"rle_{name}" for name in NAMES]
    for name, record, row in zip(NAMES, steps, rows, strict=True):
        wanted = expected(name, record)
        assert (wanted.advantages != 0).any(), name
        for column in ("advantages", "returns"):
            # fp32 sums of some ten numbers of about 1, over a spread of 0.1 or more
            np.testing.assert_allclose(
                record[column].double().numpy(), getattr(wanted, column), rtol=1e-4, atol=1e-4, err_msg=name
            )
        assert np.isfinite(row["actor/grad_norm"]), name
        assert row["actor/grad_norm"] > 0, name
