"""A policy loss of ours in TRL's step: its micro-batches add up to the whole batch, and two of them are TRL's."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from rl_estimators import list_policy_loss, policy_loss  # noqa: E402
from rl_estimators.aggregation import MODES  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, policy, upstream  # noqa: E402

CLIPS = [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")]
SEVERAL_PASSES = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
# They choose tokens by their rank among those of the micro-batch, so a whole batch has other ones.
RANKED = {"clip_cov", "kl_cov"}


@pytest.fixture(scope="module")
def trainer(tiny, tmp_path_factory):
    """Four micro-batches of two rows to an optimizer step."""
    size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    config = EstimatorConfig(
        **toy.settings(tmp_path_factory.mktemp("out"), **size, num_generations=2), policy_loss="reinforce"
    )
    made = toy.make(EstimatorTrainer, config, tiny)
    made.model.train()
    made.current_gradient_accumulation_steps = 4
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(set(list_policy_loss()) - RANKED))
def test_micro_batches_add_up(trainer, name, mode):
    """To the loss and the gradient of our function on the whole batch, called by itself."""
    trainer.args.policy_loss, trainer.args.loss_agg_mode = name, mode
    batch = toy.policy_batch(trainer, 8)
    mask = upstream.response_mask(batch)
    trainer.model.zero_grad()
    log_prob = upstream.log_probs(trainer, trainer.model, batch)[0]
    options = trainer.args.policy_loss_options()
    whole, _ = policy_loss(
        name,
        old_log_prob=batch["old_per_token_logps"],
        log_prob=log_prob,
        advantages=batch["advantages"],
        response_mask=mask,
        loss_agg_mode=mode,
        # TRL divides by the length limit, ours by the batch's width
        global_batch_info={"loss_scale_factor": trainer.max_completion_length},
        **options,
    )
    whole.backward()
    wanted = toy.gradient(trainer)
    trainer.model.zero_grad()
    total = 0.0
    for first in range(0, 8, 2):
        loss = policy.loss(trainer, trainer.model, toy.part(batch, slice(first, first + 2)))
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(toy.gradient(trainer), wanted, rtol=1e-4, atol=1e-6)
    assert wanted.abs().max() > 1e-3


def close(ours, theirs, columns=("loss", "grad_norm", "reward", "entropy")):
    for column in columns:
        assert ours.column(column) == pytest.approx(theirs.column(column), rel=1e-6, abs=1e-6), column
    for name, tensor in theirs.weights.items():
        # AdamW turns a gradient's rounding error into a step where the gradient is next to nothing
        torch.testing.assert_close(ours.weights[name], tensor, rtol=1e-5, atol=5e-5)


def both(folder, tiny, theirs, ours, **fields):
    fields = toy.settings(folder, max_steps=6, **SEVERAL_PASSES, **fields)
    stock = toy.train(GRPOTrainer, GRPOConfig(**fields, **theirs), tiny)
    config = EstimatorConfig(**fields, **ours, adv_estimator_kwargs={"compat": "trl"})
    return stock, toy.train(EstimatorTrainer, config, tiny)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_ppo_clip_is_dapo(tiny, tmp_path, beta):
    """TRL's default loss: the clipped surrogate, averaged over all tokens of the step."""
    clip = {"epsilon": 0.05, "epsilon_high": 0.1, "delta": 1.3, "beta": beta}
    theirs, ours = both(tmp_path, tiny, {"loss_type": "dapo"}, {"policy_loss": "ppo_clip"}, **clip)
    close(ours, theirs, ("loss", "grad_norm", "reward", "entropy", *CLIPS, *(["kl"] if beta else [])))
    assert max(theirs.column("clip_ratio/low_mean")) > 0
    assert max(theirs.column("clip_ratio/high_max")) > 0


def test_gspo_is_trls_sequence_level(tiny, tmp_path):
    """With TRL's loss_type "grpo", the mean over completions: no completion here is without tokens."""
    clip = {"epsilon": 0.01, "epsilon_high": 0.02}
    theirs, ours = both(
        tmp_path,
        tiny,
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"policy_loss": "gspo", "loss_agg_mode": "seq-mean-token-mean"},
        **clip,
    )
    # TRL's means count completions there, ours tokens; the extremes are of completions in both
    close(
        ours, theirs, ("loss", "grad_norm", "reward", "entropy", "clip_ratio/low_min", "clip_ratio/high_max")
    )
    assert max(theirs.column("clip_ratio/region_mean")) > 0
    means = zip(*(ours.column(name) for name in CLIPS[:3]), strict=True)
    assert all(low + high == pytest.approx(region) for low, high, region in means)


def test_cispo_counts_its_clips_under_trls_name(tiny, tmp_path):
    """TRL's upper bound is the ratio itself, ours the distance from 1."""
    theirs, ours = both(
        tmp_path,
        tiny,
        {"loss_type": "cispo", "epsilon_high": 1.1},
        {"policy_loss": "cispo", "policy_loss_kwargs": {"clip_ratio_high": 0.1}},
    )
    close(ours, theirs, ("loss", "grad_norm", "reward", "entropy", "cispo_clip_ratio"))
    assert max(theirs.column("cispo_clip_ratio")) > 0
    assert not ours.column("clip_ratio/low_mean")


def lengths(prompts, completions, **_):
    return [len(one) / 7 for one in completions]


def test_gdpo_is_normalize_then_sum(tiny, tmp_path):
    """TRL's ``multi_objective_aggregation``: each reward over its group, weighed, then the sum over the batch."""
    fields = toy.settings(tmp_path, max_steps=3, reward_weights=[0.7, 0.2], per_device_train_batch_size=16)
    rewards = {"reward_funcs": [toy.reward, lengths]}
    stock = GRPOConfig(**fields, multi_objective_aggregation="normalize_then_sum")
    theirs = toy.train(GRPOTrainer, stock, tiny, **rewards)
    config = EstimatorConfig(
        **fields,
        multi_objective_aggregation="normalize_then_sum",  # makes gdpo of the trainer's own grpo
        adv_estimator_kwargs={"compat": "trl"},
    )
    ours = toy.train(EstimatorTrainer, config, tiny, **rewards)
    assert ours.trainer.estimator.name == "gdpo"
    close(ours, theirs)
    found = [list(run.trainer._logs["advantages"]) for run in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-5)
    assert max(found[0]) > 0.5
