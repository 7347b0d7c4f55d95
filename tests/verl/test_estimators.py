"""Our estimators through verl's own registry and `compute_advantage`."""

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators import patching
from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

NAN = float("nan")


@pytest.fixture(scope="module")
def core_algos():
    return pytest.importorskip("verl.trainer.ppo.core_algos")


def advantages(name, rewards, mask, uid=None, **config):
    """What verl's real `compute_advantage` makes of a batch."""
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    tensors = {"token_level_rewards": torch.tensor(rewards), "response_mask": torch.tensor(mask)}
    uids = {} if uid is None else {"uid": np.array(uid, dtype=object)}
    data = DataProto.from_dict(tensors=tensors, non_tensors=uids)
    config = OmegaConf.create({"gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": True, **config})
    return compute_advantage(data, adv_estimator=name, config=config).batch["advantages"]


def test_registered_under_both_names(core_algos):
    registry = core_algos.ADV_ESTIMATOR_REGISTRY
    assert registry["reinforce_pp"] is registry["rle_reinforce_pp"]
    for name in rl_estimators.list_adv_est():
        assert registry[f"rle_{name}"].__module__ == "rl_estimators.verl.estimators"


def test_verls_own_names_stay_verls(core_algos):
    for name in ("gae", "grpo", "remax"):
        assert core_algos.ADV_ESTIMATOR_REGISTRY[name].__module__ == core_algos.__name__


def test_reinforce_pp_by_hand(core_algos):
    """Rewards-to-go 1, 1, 3 over three valid tokens: mean 5/3, unbiased variance 4/3."""
    scale = (4 / 3) ** -0.5
    expected = torch.tensor([[-2 / 3, -2 / 3], [4 / 3, 0.0]]) * scale
    result = advantages("reinforce_pp", [[0.0, 1.0], [3.0, NAN]], [[1, 1], [1, 0]])
    torch.testing.assert_close(result, expected)


def test_gamma_comes_from_the_configuration(core_algos):
    """With gamma 0 the returns are the rewards 0 and 1: mean 1/2, unbiased variance 1/2."""
    result = advantages("reinforce_pp", [[0.0, 1.0]], [[1, 1]], gamma=0.0)
    torch.testing.assert_close(result, torch.tensor([[-0.5, 0.5]]) * 0.5**-0.5)


def test_grpo_takes_verls_switch_and_its_own_options(core_algos):
    batch = {"rewards": [[1.0], [3.0], [7.0]], "mask": [[1], [1], [1]], "uid": ["a", "a", "b"]}
    assert advantages("rle_grpo", **batch, norm_adv_by_std_in_grpo=False).tolist() == [[-1.0], [1.0], [0.0]]
    options = {"norm_by_std": False, "singleton": "raw"}
    assert advantages("rle_grpo", **batch, adv_estimator_kwargs=options).tolist() == [[-1.0], [1.0], [7.0]]


def test_unknown_option(core_algos):
    with pytest.raises(InputError, match=r"grpo has no option 'epsilom'. Did you mean 'epsilon'?"):
        advantages("rle_grpo", [[1.0]], [[1]], ["a"], adv_estimator_kwargs={"epsilom": 1})


def test_options_that_are_no_mapping(core_algos):
    message = r"algorithm.adv_estimator_kwargs is 3, expected options by name: \+algorithm.adv_estimator_kwargs.NAME"
    with pytest.raises(InputError, match=message):
        advantages("rle_grpo", [[1.0]], [[1]], ["a"], adv_estimator_kwargs=3)


def test_what_the_batch_lacks_is_named(core_algos):
    with pytest.raises(InputError, match=r"gae is missing values\n .*\n    in verl: "):
        advantages("rle_gae", [[1.0]], [[1]])


def test_a_score_on_tool_output_counts(core_algos):
    """The score 4 sits on a masked last token; verl's own reinforce_plus_plus would drop it."""
    carried = advantages("reinforce_pp", [[0.0, 4.0], [0.0, 1.0]], [[1, 0], [1, 1]])
    in_place = advantages("reinforce_pp", [[4.0, 0.0], [0.0, 1.0]], [[1, 0], [1, 1]])
    assert torch.equal(carried, in_place)
    assert carried[0, 0] > 0


def test_counts_are_kept_for_the_steps_metrics(core_algos):
    from rl_estimators.verl import step_metrics

    step_metrics.drain()
    off = {"diagnostics": False}
    advantages("reinforce_pp", [[0.0, 4.0], [NAN, 1.0]], [[1, 0], [1, 1]], rl_estimators=off)
    assert step_metrics.drain() == {
        "rl_estimators/carried_rewards": 1.0,
        "rl_estimators/ignored_rewards": 0.0,
        "rl_estimators/excluded_responses": 1.0,
    }
    assert step_metrics.drain() == {}


def test_counts_that_nobody_collects_are_not_kept(core_algos, monkeypatch):
    """Neither piled up nor handed to a later step, should the hook come back."""
    from rl_estimators.verl import step_metrics

    step_metrics.drain()
    score = ("reinforce_pp", [[0.0, 4.0]], [[1, 0]])
    advantages(*score)  # while the hook is in force, and then it is not
    status = next(status for status in patching.report() if status.patch.name == "verl_metrics")
    off = patching.Status(status.patch, patching.State.DISABLED)
    with monkeypatch.context() as context:
        context.setitem(patching._statuses, "verl_metrics", off)
        advantages(*score)
    assert step_metrics.drain() == {}
    advantages(*score)
    assert step_metrics.drain()["rl_estimators/carried_rewards"] == 1


def test_verl_collects_them(core_algos):
    """The hooked `compute_data_metrics`, over a batch as verl's trainers have it at the end of a step."""
    from verl import DataProto
    from verl.trainer.ppo import metric_utils

    from rl_estimators.verl import step_metrics

    step_metrics.drain()
    advantages("reinforce_pp", [[0.0, 4.0]], [[1, 0]])
    one = torch.ones(1, 2)
    names = (
        "token_level_scores",
        "token_level_rewards",
        "advantages",
        "returns",
        "response_mask",
        "responses",
        "prompts",
    )
    batch = DataProto.from_dict(tensors={**dict.fromkeys(names, one), "attention_mask": torch.ones(1, 4)})
    metrics = metric_utils.compute_data_metrics(batch, use_critic=False)
    assert metrics["rl_estimators/carried_rewards"] == 1
    assert "critic/score/mean" in metrics


def test_one_registered_later_is_offered_at_once(core_algos, monkeypatch):
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))

    @rl_estimators.register_adv_est("twice")
    def twice(token_level_rewards, response_mask, config, **kwargs):
        return token_level_rewards * config.get("factor"), token_level_rewards

    assert advantages("twice", [[1.0]], [[1]], factor=2.0).tolist() == [[2.0]]
    assert advantages("rle_twice", [[1.0]], [[1]], factor=3.0).tolist() == [[3.0]]
