"""A reward function that fails in verl's real `main_ppo`: what a step loses, what ends the run, what is kept."""

import json
import math
from pathlib import Path

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.slow]
pytest.importorskip("verl")

import runs  # noqa: E402
import torch  # noqa: E402
from remax_runs import SMALL  # noqa: E402


def test_nan_infinity_an_exception_and_none(tmp_path, monkeypatch):
    """Step 1 meets the first three and goes on; None in step 2 ends the run, with the checkpoint of step 1 whole.

    In step 1, 8 prompts with 4 answers each: NaN and infinity cost an answer each, the exception its session.
    """
    records = runs.recorded(monkeypatch, tmp_path / "records")
    monkeypatch.setenv("RLE_TEST_REWARD", str(runs.ROOT / "examples" / "digit_sort" / "reward.py"))
    faulty = Path(__file__).with_name("faulty_reward.py")
    overrides = [*SMALL, f"reward.custom_reward_function.path='{faulty}'", "trainer.save_freq=1"]
    out = tmp_path / "out"
    with pytest.raises(runs.smoke().SmokeError, match="exit status 1"):
        runs.smoke().run("rle_grpo", steps=2, out=out, answers=4, overrides=overrides)
    log = (out / "verl.log").read_text()
    assert "RuntimeError: made to fail by a test" in log
    assert 'key "rm_scores" not found' in log  # of verl's queue: not every answer has a score

    [line] = (out / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)["data"]
    assert row["rl_estimators/excluded_responses"] == 2
    assert row["critic/score/mean"] is None  # verl's own mean is over all answers: NaN
    assert 0 < row["rl_estimators/reward_mean"] < 1
    assert math.isfinite(row["actor/grad_norm"])

    record = records()[0]
    scores, advantages = record["token_level_scores"].sum(-1), record["advantages"]
    real = record["response_mask"].any(-1)
    assert int(real.sum()) == 31  # of 32: the failed session has no row, and verl fills up with an empty one
    assert (int(scores.isnan().sum()), int(scores.isinf().sum())) == (1, 1)
    assert advantages.isfinite().all()
    assert not advantages[~scores.isfinite()].any()
    bad = {uid for uid, score in zip(record["uid"], scores.tolist(), strict=True) if not math.isfinite(score)}
    others = [
        uid in bad and math.isfinite(score) for uid, score in zip(record["uid"], scores.tolist(), strict=True)
    ]
    assert sum(others) == 6
    assert advantages[torch.tensor(others)].any()  # they are compared with each other

    checkpoints = out / "checkpoints"
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == "1"
    [model] = (checkpoints / "global_step_1" / "actor").glob("model_world_size_*.pt")
    assert all(bool(x.isfinite().all()) for x in weights(model).values())


def weights(file):
    """Of a rank's shard in a checkpoint of verl's."""
    found = torch.load(file, weights_only=False, map_location="cpu")
    return {name: x.to_local() if hasattr(x, "to_local") else x for name, x in found.items()}
