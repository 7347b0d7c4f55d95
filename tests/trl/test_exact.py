"""With ``compat="trl"`` a run of ours is TRL's to the bit: every number it logs, in each step, and every weight."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from rl_estimators.trl import EstimatorConfig, EstimatorTrainer  # noqa: E402

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")
SEVERAL_PASSES = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
CASES = {
    "default": {},
    "several_passes": SEVERAL_PASSES,
    "kl_and_checkpointing": {"beta": 0.04, "gradient_checkpointing": True},
    "kl_bias_correction": {"beta": 0.04, "use_bias_correction_kl": True, **SEVERAL_PASSES},
    "sequence_level": {"importance_sampling_level": "sequence", "loss_type": "grpo", **SEVERAL_PASSES},
    "sequence_level_luspo": {"importance_sampling_level": "sequence", "loss_type": "luspo", **SEVERAL_PASSES},
    "unscaled": {"scale_rewards": "none"},
    "scaled_by_the_batch": {"scale_rewards": "batch"},
    "high_entropy_tokens": {"top_entropy_quantile": 0.5},
    "two_sided_clipping": {"delta": 1.5, "epsilon": 0.05, "epsilon_high": 0.1, **SEVERAL_PASSES},
    "off_policy_mask": {"off_policy_mask_threshold": 0.01, **SEVERAL_PASSES},
    "entropy_bonus": {"entropy_coef": 0.01, "loss_type": "grpo"},
    "truncated_masked": {"mask_truncated_completions": True, "max_completion_length": 4},
    **{f"loss_{name}": {"loss_type": name, **SEVERAL_PASSES} for name in LOSS_TYPES},
}


def both(folder, tiny, steps=10, **more):
    """The same run with TRL's trainer and with ours."""
    fields = toy.settings(folder, max_steps=steps, **more.pop("fields", {}))
    theirs = toy.train(GRPOTrainer, GRPOConfig(**fields), tiny, **more)
    config = EstimatorConfig(**fields, adv_estimator="grpo", adv_estimator_kwargs={"compat": "trl"})
    return theirs, toy.train(EstimatorTrainer, config, tiny, **more)


def varied(run):
    """Whether the run could have gone wrong: it had rewards that differ, and it moved."""
    assert len(set(run.column("reward"))) > 1
    assert max(run.column("grad_norm")) > 0


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_equals_trl(tiny, tmp_path, fields):
    theirs, ours = both(tmp_path, tiny, fields=fields)
    toy.same(ours, theirs)
    varied(theirs)
    assert list(ours.trainer._logs["advantages"]) == list(theirs.trainer._logs["advantages"])


def test_the_cases_clip_and_truncate(tiny, tmp_path):
    """Else two of the cases above would say nothing."""
    _, ours = both(tmp_path / "clip", tiny, fields=CASES["two_sided_clipping"])
    assert max(ours.column("clip_ratio/region_mean")) > 0
    _, ours = both(tmp_path / "cut", tiny, fields=CASES["truncated_masked"])
    shares = ours.column("completions/clipped_ratio")
    assert 0 < min(shares) < max(shares) == 1


def test_truncated_completions_leave_the_group(tiny, tmp_path):
    """TRL's ``mask_truncated_completions`` counts them in the group's mean; ours without ``compat`` does not."""
    fields = toy.settings(tmp_path, max_steps=1, max_completion_length=4, mask_truncated_completions=True)
    theirs, ours = (
        toy.train(trainer, config(**fields), tiny, reward_funcs=long_ones_are_dear)
        for trainer, config in ((GRPOTrainer, GRPOConfig), (EstimatorTrainer, EstimatorConfig))
    )
    assert ours.column("completions/clipped_ratio") == theirs.column("completions/clipped_ratio")
    assert set(ours.trainer._logs["advantages"]) == {0.0}  # those that ended have equal rewards
    assert max(map(abs, theirs.trainer._logs["advantages"])) > 0.5


def long_ones_are_dear(prompts, completions, **_):
    """-1 for a completion that the limit of 4 tokens cut off, else 0."""
    return [-1.0 if len(one) >= 4 else 0.0 for one in completions]


def test_every_loss_type_of_trl_is_here():
    import inspect
    import re

    known = re.findall(r"self\.loss_type (?:==|in) (.*):", inspect.getsource(GRPOTrainer._compute_loss))
    assert set(re.findall(r"[a-z_]+", " ".join(known))) == set(LOSS_TYPES)


def test_chat_with_evaluation(tiny, tmp_path):
    fields = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "per_device_eval_batch_size": 8,
        "num_generations_eval": 2,
    }
    theirs, ours = both(tmp_path, tiny, fields=fields, chat=True)
    toy.same(ours, theirs)
    varied(theirs)
    assert len(ours.column("eval_reward")) == 3  # after steps 4 and 8, and at the end


def sometimes(prompts, completions, **kwargs):
    """No reward for every third completion."""
    return [None if row % 3 == 0 else one for row, one in enumerate(toy.reward(prompts, completions))]


def length(prompts, completions, **_):
    """A reward for all but every sixth completion."""
    return [None if row % 6 == 0 else len(one) / 7 for row, one in enumerate(completions)]


def test_several_rewards_some_of_them_missing(tiny, tmp_path):
    """Every sixth completion has no reward at all, and is left out of its group."""
    fields = {"reward_weights": [0.7, 0.2]}
    theirs, ours = both(tmp_path, tiny, fields=fields, reward_funcs=[sometimes, length])
    toy.same(ours, theirs)
    varied(theirs)
    column = torch.tensor(list(ours.trainer._logs["advantages"])[-8:])
    assert column[[0, 6]].tolist() == [0, 0]
    assert (column != 0).sum() == 6


def test_the_default_differs_from_trl(tiny, tmp_path):
    """What ``compat`` is for: without it epsilon is 1e-6."""
    fields = toy.settings(tmp_path, max_steps=2)
    theirs = toy.train(GRPOTrainer, GRPOConfig(**fields), tiny)
    ours = toy.train(EstimatorTrainer, EstimatorConfig(**fields, adv_estimator="grpo"), tiny)
    assert ours.column("reward") == theirs.column("reward")
    assert ours.column("grad_norm") != theirs.column("grad_norm")
    assert ours.column("grad_norm") == pytest.approx(theirs.column("grad_norm"), rel=1e-2)
