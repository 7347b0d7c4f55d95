"""The diagnostics in verl's log, on verl's own functions from the advantage step to the log, without Ray."""

import functools
import importlib
import math
import pickle

import numpy as np
import pytest
import torch

from rl_estimators import patching
from rl_estimators.diagnostics import DIAGNOSTICS, PREFIX
from rl_estimators.errors import InputError

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

NAN = float("nan")
PROMPT = 2
LENGTHS = (3, 1, 4, 2)  # of the responses in the workers
MASKS = ((1, 0, 1), (1,), (1, 1, 1, 1), (0, 0))  # a hole, and a response without any valid token
MICRO_BATCHES = ([0, 1], [2], [3])
OF_POLICY = {"ratio_mean", "ratio_std", "ratio_min", "ratio_max", "effective_sample_size", "policy_kl"}
OF_CRITIC = {"explained_variance_before", "explained_variance_after", "value_clip_share"}


@pytest.fixture(scope="module", autouse=True)
def core_algos():
    return pytest.importorskip("verl.trainer.ppo.core_algos")


def module(name):
    return importlib.import_module(f"rl_estimators.verl.{name}")


# ------------------------------------------------------------------------------------------------- the advantage step


def step(name, rewards, mask, uid, node=None, limit=None, columns=None, **algorithm):
    """A batch through the real `compute_advantage`; its advantages, and what `compute_data_metrics` then says."""
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo import metric_utils, ray_trainer

    module("step_metrics").drain()
    rewards, mask = torch.tensor(rewards), torch.tensor(mask)
    tensors = {
        "token_level_rewards": rewards,
        "token_level_scores": rewards,
        "response_mask": mask,
        **(columns or {}),
    }
    data = DataProto.from_dict(tensors=tensors, non_tensors={"uid": np.array(uid, dtype=object)})
    whole = {"algorithm": {"gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": True, **algorithm}}
    whole |= {} if node is None else {"rl_estimators": node}
    whole |= {} if limit is None else {"data": {"max_response_length": limit}}
    config = OmegaConf.create(whole).algorithm
    done = ray_trainer.compute_advantage(data, adv_estimator=name, gamma=1.0, lam=1.0, config=config)
    for key in ("responses", "prompts"):
        done.batch[key] = torch.ones_like(mask)
    done.batch["attention_mask"] = torch.ones(len(mask), 2 * mask.shape[1])
    metrics = metric_utils.compute_data_metrics(done, use_critic=False)
    ours = {key.removeprefix(PREFIX): number for key, number in metrics.items() if key.startswith(PREFIX)}
    return done.batch["advantages"], ours


# Two prompts of two responses: scores 1 and 0, and two times 0.
BATCH = {
    "rewards": [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "mask": [[1, 1], [1, 0], [1, 1], [1, 1]],
    "uid": ["p", "p", "q", "q"],
}


def test_a_batch_by_hand():
    """grpo without division: 1/2 on two tokens, -1/2 on one, 0 on four; mean 1/14, squares 3/4."""
    _, found = step("rle_grpo", **BATCH, norm_adv_by_std_in_grpo=False)
    expected = {
        "zero_advantage_token_share": 4 / 7,
        "zero_advantage_prompt_share": 0.5,
        "all_wrong_group_share": 0.5,
        "all_right_group_share": 0.0,
        "advantage_mean": 1 / 14,
        "advantage_std": math.sqrt((0.75 - 7 / 14**2) / 6),
        "advantage_min": -0.5,
        "advantage_max": 0.5,
        "reward_mean": 0.25,
        "reward_std": 0.5,
        "reward_std_within_groups": 0.5,
        "reward_std_between_groups": math.sqrt(1 / 8),
        "excluded_responses": 0,
    }
    assert {name: found.pop(name) for name in expected} == pytest.approx(expected)
    assert found.keys() == {"carried_rewards", "ignored_rewards"}


def test_scores_are_those_without_the_penalty():
    """Rewards with a KL penalty of 0.1 a token; verl keeps the scores beside them."""
    charged = torch.tensor(BATCH["rewards"]) - 0.1
    _, found = step("rle_grpo", **BATCH, columns={"token_level_rewards": charged})
    assert (found["reward_mean"], found["all_wrong_group_share"]) == (0.25, 0.5)


def test_the_divergence_where_rewards_are_charged_with_it():
    """Over the seven valid tokens: 0.5 on six of them, -1 on one."""
    reference = torch.full((4, 2), -0.5)
    reference[0, 0], reference[1, 1] = 1.0, NAN
    columns = {"old_log_probs": torch.zeros(4, 2), "ref_log_prob": reference}
    assert "reference_kl" not in step("rle_grpo", **BATCH, columns=columns)[1]
    _, found = step("rle_grpo", **BATCH, columns=columns, use_kl_in_reward=True)
    assert found["reference_kl"] == pytest.approx((6 * 0.5 - 1) / 7)


def test_truncated_by_the_limit():
    """Of length 2: three of four wrote their second token. Under a limit of 3 none of them has reached it."""
    assert step("rle_grpo", **BATCH, limit=2)[1]["truncated_response_share"] == 0.75
    assert step("rle_grpo", **BATCH, limit=3)[1]["truncated_response_share"] == 0
    assert "truncated_response_share" not in step("rle_grpo", **BATCH)[1]


def test_truncated_as_the_batch_says():
    columns = {"truncated": torch.tensor([1, 0, 0, 0])}
    assert step("rle_grpo", **BATCH, limit=2, columns=columns)[1]["truncated_response_share"] == 0.25


def test_a_score_on_tool_output_and_rubbish_beside_it():
    """1 on a masked token counts, as the estimator has it; NaN on another one does not."""
    batch = {"rewards": [[0.0, 1.0, NAN], [0.0, 0.0, 0.0]], "mask": [[1, 0, 0], [1, 1, 0]], "uid": ["p", "p"]}
    assert step("rle_grpo", **batch)[1]["reward_mean"] == 0.5


def test_a_response_without_a_score_is_counted_once():
    batch = {**BATCH, "rewards": [[0.0, 1.0], [NAN, 0.0], [0.0, 0.0], [0.0, 0.0]]}
    _, found = step("rle_grpo", **batch)
    assert found["excluded_responses"] == 1
    assert found["reward_mean"] == pytest.approx(1 / 3)


def test_switched_off(monkeypatch):
    """Nothing is computed, and the advantages are the same to the bit."""
    on, _ = step("rle_grpo", **BATCH)
    monkeypatch.setattr(module("diagnostics"), "measure", None)
    off, found = step("rle_grpo", **BATCH, node={"diagnostics": False})
    assert torch.equal(on, off)
    assert found.keys() == {"carried_rewards", "ignored_rewards", "excluded_responses"}


def test_verls_own_estimators_log_what_they_did():
    _, found = step("grpo", **BATCH)
    assert found == {}


def test_an_estimator_of_somebody_elses(core_algos, monkeypatch):
    """What it leaves on masked tokens is not read."""
    import rl_estimators
    from rl_estimators.registry import ADV_ESTIMATORS

    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))

    @rl_estimators.register_adv_est("untidy")
    def untidy(token_level_rewards, response_mask):
        return token_level_rewards + 3.0, token_level_rewards

    _, found = step("untidy", **BATCH)
    assert (found["advantage_min"], found["advantage_max"]) == (3, 4)
    assert found["advantage_mean"] == pytest.approx(22 / 7)


def test_several_batches_in_a_step():
    """Counts add up; other numbers are means, extremes are extremes."""
    metrics = module("step_metrics")
    metrics.drain()
    for number in (1.0, 3.0):
        metrics.add({"excluded_responses": torch.tensor(number)})
        metrics.keep({"reward_mean": number, "advantage_min": number, "advantage_max": number})
    expected = {"reward_mean": 2, "advantage_min": 1, "advantage_max": 3, "excluded_responses": 4}
    assert metrics.drain() == {PREFIX + name: number for name, number in expected.items()}
    assert metrics.drain() == {}


def test_numbers_that_nobody_collects_are_not_kept(monkeypatch):
    metrics = module("step_metrics")
    metrics.drain()
    metrics.keep({"reward_mean": 1.0})
    monkeypatch.setattr(patching, "in_force", lambda name: False)
    metrics.keep({"reward_mean": 1.0})
    assert metrics.drain() == {}


# -------------------------------------------------------------------------------------------------------- the workers


def jagged(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator, dtype=torch.float64) for length in LENGTHS]


def valid(columns):
    """The numbers under the masks, as numpy has them."""
    return np.concatenate([c.numpy()[np.array(m) > 0] for c, m in zip(columns, MASKS, strict=True)])


def micro_batch(rows, output, columns):
    """Rows as an engine passes them to a loss: the model's output by its name, and the data."""
    from verl.utils import tensordict_utils as tu

    columns = {**columns, "response_mask": [torch.tensor(mask) for mask in MASKS]}
    tensors = {name: jagged([column[row] for row in rows]) for name, column in columns.items()}
    tensors["prompts"] = jagged([torch.zeros(PROMPT, dtype=torch.long)] * len(rows))
    tensors["responses"] = jagged([torch.zeros(LENGTHS[row], dtype=torch.long) for row in rows])
    shift = [torch.zeros(PROMPT - 1), torch.zeros(1)]  # an output stands one token before its own
    name, numbers = output
    outputs = [torch.cat([shift[0], numbers[row], shift[1]]).requires_grad_() for row in rows]
    data = tu.get_tensordict(tensors, {"dp_size": 2, "batch_num_tokens": 7, "global_batch_size": 3})
    return {"model_output": {name: jagged(outputs)}, "data": data}, outputs


def logged(function, output, columns, role):
    """What verl logs of two mini-batches in two equal processes, by the functions that join metrics on the way."""
    from verl.utils.metric import Metric, reduce_metrics
    from verl.utils.py_functional import append_to_dict, rename_dict

    joined = {}
    for _ in range(2):
        of_process = {}
        for rows in MICRO_BATCHES:
            inputs, _ = micro_batch(rows, output, columns)
            append_to_dict(of_process, function(**inputs)[1])
        both = {name: [value, value] for name, value in of_process.items()}  # what all_gather leaves
        one = {
            name: Metric.aggregate_dp(values) if isinstance(values[0], Metric) else [*values[0], *values[1]]
            for name, values in both.items()
        }
        append_to_dict(joined, one)
    return log(reduce_metrics(rename_dict(joined, f"{role}/")))


def log(metrics):
    """What a logger of verl's gets of these metrics."""
    from verl.utils.tracking import Tracking

    class Logger:
        def log(self, data, step):
            self.data, self.step = data, step

    tracking = object.__new__(Tracking)
    tracking.logger = {"file": Logger()}
    tracking.log(metrics, step=3)
    assert tracking.logger["file"].step == 3
    return tracking.logger["file"].data


def actor_config(loss_mode, **fields):
    from verl.workers.config import ActorConfig, PolicyLossConfig

    loss = PolicyLossConfig(loss_mode=loss_mode)
    return ActorConfig(
        strategy="fsdp", ppo_micro_batch_size_per_gpu=1, rollout_n=1, policy_loss=loss, **fields
    )


def critic_config(**fields):
    from verl.workers.config import CriticConfig

    return CriticConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=1, **fields)


POLICY = {"old_log_probs": 1, "advantages": 2}
CRITIC = {"values": 4, "returns": 5}


def drawn(seeds):
    return {name: numbers(seed) for name, seed in seeds.items()}


@pytest.mark.parametrize("loss_mode", ["vanilla", "rle_ppo_clip", "gspo"])
def test_ratios_of_all_micro_batches(loss_mode):
    """Whichever loss, verl's own too; over all tokens, not means of micro-batches' numbers."""
    function = functools.partial(module("policy_updates").policy_loss, config=actor_config(loss_mode))
    found = logged(function, ("log_probs", numbers(3)), drawn(POLICY), "actor")
    log_ratio = valid(numbers(3)) - valid(numbers(1))
    ratio = np.exp(log_ratio)
    expected = {
        "ratio_mean": ratio.mean(),
        "ratio_std": ratio.std(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "effective_sample_size": ratio.sum() ** 2 / (7 * (ratio**2).sum()),
        "policy_kl": (ratio - 1 - log_ratio).mean(),
    }
    assert {name: found[PREFIX + name] for name in expected} == pytest.approx(expected)
    assert "actor/pg_loss" in found
    assert not any("sums" in key for key in found)


def test_the_divergence_from_the_reference():
    config = actor_config("vanilla", use_kl_loss=True)
    function = functools.partial(module("policy_updates").policy_loss, config=config)
    found = logged(function, ("log_probs", numbers(3)), drawn({**POLICY, "ref_log_prob": 6}), "actor")
    assert found[f"{PREFIX}reference_kl"] == pytest.approx((valid(numbers(1)) - valid(numbers(6))).mean())


@pytest.mark.parametrize(("name", "reach"), [(None, 0.5), ("clipped", 0.2), ("huber", None)])
def test_the_critic(name, reach):
    """verl's own loss with verl's clip range, and ours with theirs."""
    own = {} if name != "clipped" else {"cliprange_value": reach}
    given = {"config": critic_config(), "name": name, "own": own, "diagnosed": True}
    function = functools.partial(module("value_loss").value_loss, **given)
    found = logged(function, ("values", numbers(3)), drawn(CRITIC), "critic")
    new, old, target = valid(numbers(3)), valid(numbers(4)), valid(numbers(5))
    expected = {
        "explained_variance_before": 1 - (target - old).var() / target.var(),
        "explained_variance_after": 1 - (target - new).var() / target.var(),
    }
    if reach is not None:
        near = old + np.clip(new - old, -reach, reach)
        expected["value_clip_share"] = ((near - target) ** 2 > (new - target) ** 2).mean()
        assert expected["value_clip_share"] > 0
    ours = {key for key in found if key.startswith(PREFIX)}
    assert {key.removeprefix(PREFIX): found[key] for key in ours} == pytest.approx(expected)


def losses_of(function, inputs):
    given, outputs = inputs
    loss, metrics = function(**given)
    loss.backward()
    return loss.detach(), metrics, [output.grad for output in outputs]


def test_watching_changes_no_loss():
    """Loss, gradient and verl's own metrics, of the actor and of the critic, to the bit."""
    losses = importlib.import_module("verl.workers.utils.losses")
    watched = module("policy_updates").policy_loss
    valued = functools.partial(module("value_loss").value_loss, name=None, own={}, diagnosed=True)
    for config, ours, theirs, output, columns in (
        (actor_config("vanilla"), watched, losses.ppo_loss, ("log_probs", numbers(3)), drawn(POLICY)),
        (critic_config(), valued, losses.value_loss, ("values", numbers(3)), drawn(CRITIC)),
    ):
        found, wanted = (
            losses_of(functools.partial(function, config), micro_batch([0, 1, 2, 3], output, columns))
            for function in (ours, theirs)
        )
        assert torch.equal(found[0], wanted[0])
        assert all(torch.equal(*pair) for pair in zip(found[2], wanted[2], strict=True))
        for key, value in wanted[1].items():
            assert getattr(found[1][key], "values", found[1][key]) == getattr(value, "values", value)


@pytest.mark.parametrize(("name", "call"), [("ppo_loss", "policy"), ("value_loss", "value")])
def test_a_loss_that_is_no_longer_called_so_is_told_once(name, call, monkeypatch, caplog):
    losses = importlib.import_module("verl.workers.utils.losses")
    module("worker_losses")._tell.cache_clear()
    monkeypatch.setattr(losses, name, lambda *args: (torch.zeros(()), {"theirs": 1.0}))
    for _ in range(2):
        if call == "policy":
            _, metrics = module("policy_updates").policy_loss(None, {}, {})
        else:
            given = {"name": None, "own": {}, "diagnosed": True}
            _, metrics = module("value_loss").value_loss(critic_config(), {}, {}, **given)
        assert metrics == {"theirs": 1.0}
    (message,) = caplog.messages
    assert (
        f"losses.{name} does not call its loss as reviewed, so diagnostics of the updates are missing"
        in message
    )


def test_what_has_no_sums_is_logged_as_it_is():
    metrics = {"actor/pg_loss": 1.0}
    assert log(metrics) is metrics


def test_a_step_in_which_no_actor_was_updated():
    """While the critic warms up."""
    sums = {"critic/rl_estimators/sums/" + name: 1.0 for name in ("value_tokens", "value_targets")}
    sums |= {"critic/rl_estimators/sums/" + name: 2.0 for name in ("value_target_squares", "value_errors")}
    sums |= {"critic/rl_estimators/sums/value_error_squares": 4.5, "lr": 0.1}
    assert log(sums) == {f"{PREFIX}explained_variance_after": pytest.approx(0.5), "lr": 0.1}


# ----------------------------------------------------------------------------------------------------------- settings


class WorkerGroup:
    """Pickles what it is sent, as Ray does."""

    def set_loss_fn(self, loss_fn):
        self.sent = pickle.dumps(loss_fn)


@pytest.mark.parametrize(
    ("overrides", "watched"),
    [
        ([], False),
        (["algorithm.adv_estimator=grpo"], False),
        (["algorithm.adv_estimator=rle_grpo"], True),
        (["algorithm.adv_estimator=reinforce_pp"], True),
        (["+rl_estimators.value_loss.name=huber"], True),
        (["+rl_estimators.policy_loss.name=ppo_clip"], True),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=rle_gspo"], True),
        (["algorithm.adv_estimator=rle_grpo", "+rl_estimators.diagnostics=False"], False),
        (["algorithm.adv_estimator=rle_grpo", "+rl_estimators.diagnostics=True"], True),
    ],
)
def test_updates_are_watched_where_something_of_ours_is_in_use(compose, overrides, watched):
    assert module("settings").read(compose(*overrides)).diagnostics is watched


def test_without_the_hook_that_makes_numbers_of_sums_nothing_is_watched(compose, monkeypatch):
    monkeypatch.setattr(patching, "in_force", lambda name: name != "verl_log")
    assert not module("settings").read(compose("algorithm.adv_estimator=rle_grpo")).diagnostics


def test_the_switch_is_a_switch(compose):
    message = (
        r"rl_estimators.diagnostics is 'some', expected true or false: \+rl_estimators.diagnostics=False"
    )
    with pytest.raises(InputError, match=message):
        module("settings").read(compose("+rl_estimators.diagnostics=some"))


def test_the_switch_reaches_the_estimators(compose):
    switched_on = module("diagnostics").switched_on
    assert switched_on(compose().algorithm)
    assert not switched_on(compose("+rl_estimators.diagnostics=False").algorithm)
    assert not switched_on(compose("+rl_estimators.diagnostics=0").algorithm)
    assert not switched_on(compose("+rl_estimators.diagnostics=off").algorithm)
    assert switched_on(None)
    assert switched_on({"gamma": 1.0})


def test_what_is_sent_to_the_actor(compose):
    """It travels by reference, with the configuration that verl's worker would bind."""
    config = compose("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1")
    workers = WorkerGroup()
    module("policy_updates").send(workers, config)
    assert b"rl_estimators.verl.policy_updates" in workers.sent
    sent = pickle.loads(workers.sent)
    assert sent.keywords["config"].policy_loss.loss_mode == "vanilla"
    given, _ = micro_batch([0, 1, 2, 3], ("log_probs", numbers(3)), drawn(POLICY))
    assert any("sums" in key for key in sent(**given)[1])


def test_distillation_keeps_its_own_loss(compose):
    workers = WorkerGroup()
    module("policy_updates").send(workers, compose("distillation.enabled=True"))
    assert not hasattr(workers, "sent")


def test_everything_in_the_table_is_logged():
    """And nothing that is not, so that verl's names are those of TRL's log."""
    limited = {"limit": 2, "use_kl_in_reward": True}
    columns = {"old_log_probs": torch.zeros(4, 2), "ref_log_prob": torch.zeros(4, 2)}
    found = step("rle_grpo", **BATCH, columns=columns, **limited)[1].keys() - {
        "carried_rewards",
        "ignored_rewards",
    }
    assert found | OF_POLICY | OF_CRITIC == DIAGNOSTICS.keys()
