"""The critic's value after a truncated response, from verl's own `_compute_values` to an estimator.

The queue and the critic's workers are stand-ins; a real run: test_main_ppo_bootstrap.py.
"""

import importlib
import types

import numpy as np
import pytest
import torch

from rl_estimators import patching
from rl_estimators.errors import InputError, PatchError

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

SWITCH = "+rl_estimators.bootstrap_truncated"
LIMIT, END = 3, 9
KEYS = ["p_0_0", "p_1_0", "q_0_0", "q_1_0", "r_0_0"]
PROMPTS = [2, 1, 1, 2, 1]
RESPONSES = [
    [1, 2, 3],  # cut off
    [1, 2, END],  # the end is the last token that the limit allows
    [1, 2],  # shorter, without an end: an engine's other stop token
    [1, 2, END],  # a tool wrote the last token
    [1, END],
]
MASK = [[1, 1, 1], [1, 1, 1], [1, 1], [1, 0, 0], [1, 1]]
CUT_OFF = [True, False, False, True, False]
# The critic's value after token i of row b is b + i / 10, prompt included.
VALUES = [
    [b + i / 10 for i in range(p + len(r))] for b, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
]


def nested(rows, dtype):
    return torch.nested.as_nested_tensor(
        [torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged
    )


@pytest.fixture
def queue(monkeypatch):
    """verl's queue, as far as the trainer and the hooks use it."""
    from tensordict import TensorDict

    module = pytest.importorskip("transfer_queue")
    columns = {"responses": nested(RESPONSES, torch.int64), "response_mask": nested(MASK, torch.int64)}

    def kv_batch_get(keys, partition_id, select_fields):
        assert partition_id == "train"
        rows = [KEYS.index(key) for key in keys]
        found = {name: columns[name] for name in select_fields if name in columns}
        if rows != list(range(len(KEYS))):
            found = {name: column[rows] for name, column in found.items()}
        return TensorDict(found, batch_size=len(rows))

    def kv_batch_put(keys, partition_id, fields):
        assert (list(keys), partition_id) == (KEYS, "train")
        columns.update(fields.items())

    monkeypatch.setattr(module, "kv_batch_get", kv_batch_get)
    monkeypatch.setattr(module, "kv_batch_put", kv_batch_put)
    return columns


@pytest.fixture
def trainer(queue, compose, monkeypatch):
    """Of verl's class, whose critic writes its values into the queue."""
    base = importlib.import_module("verl.trainer.ppo.v1.trainer_base")
    monkeypatch.setattr(base.ray, "get", lambda futures: None)

    def infer_batch(batch):
        queue["values"] = nested(VALUES, torch.bfloat16)
        return types.SimpleNamespace(futures=[])

    config = compose("algorithm.adv_estimator=rle_gae", f"data.max_response_length={LIMIT}", f"{SWITCH}=True")
    return types.SimpleNamespace(
        config=config,
        tokenizer=types.SimpleNamespace(eos_token_id=END),
        critic_wg=types.SimpleNamespace(infer_batch=infer_batch),
        cls=base.PPOTrainer,
    )


class Batch(types.SimpleNamespace):
    def __len__(self):
        return len(self.keys)


def compute_values(trainer):
    batch = Batch(keys=KEYS, partition_id="train", extra_info={})
    assert trainer.cls._compute_values(trainer, batch, metrics={}) is batch


def test_the_value_after_the_last_token_is_kept(trainer, queue):
    compute_values(trainer)
    last = torch.tensor([row[-1] for row in VALUES])
    torch.testing.assert_close(queue["rle_bootstrap_values"], last, rtol=1e-2, atol=0)  # bf16 in verl's queue
    assert queue["rle_bootstrap_values"].dtype == torch.float32
    assert queue["rle_truncated"].tolist() == CUT_OFF
    before = [row[p - 1 : -1] for row, p in zip(VALUES, PROMPTS, strict=True)]
    for kept, wanted in zip(queue["values"].unbind(), before, strict=True):  # verl's own, as ever
        torch.testing.assert_close(kept.float(), torch.tensor(wanted), rtol=1e-2, atol=1e-2)


def test_several_end_tokens(trainer, queue):
    trainer.tokenizer.eos_token_id = [3, END]
    compute_values(trainer)
    assert queue["rle_truncated"].tolist() == [False, False, False, True, False]


def test_nothing_is_kept_unless_asked_for(trainer, queue):
    trainer.config.rl_estimators.bootstrap_truncated = False
    compute_values(trainer)
    assert sorted(queue) == ["response_mask", "responses", "values"]


def test_a_trainer_that_cuts_elsewhere(trainer, monkeypatch):
    """Then there is nothing to keep, and 0 in its place would be a silent mistake."""
    bootstrap = importlib.import_module("rl_estimators.verl.bootstrap")
    batch = Batch(keys=KEYS, partition_id="train", extra_info={})
    with pytest.raises(
        PatchError, match="no longer cuts the critic's values as reviewed; remove the setting"
    ):
        bootstrap.compute_values(lambda *_: batch, trainer, batch, {})


def advantages(name, config, rows=(0, 1, 2, 3, 4)):
    """verl's own advantage step of the v1 trainer, hooked as in a run; gamma and lambda are 1."""
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    mask = torch.tensor([row + [0] * (LIMIT - len(row)) for row in MASK])[list(rows)]
    before = [row[p - 1 : -1] for row, p in zip(VALUES, PROMPTS, strict=True)]
    values = torch.tensor([row + [0.0] * (LIMIT - len(row)) for row in before])[list(rows)]
    keys = [KEYS[row] for row in rows]
    data = DataProto.from_dict(
        tensors={"token_level_rewards": 0.0 * values, "response_mask": mask, "values": values},
        non_tensors={"uid": np.array([key[0] for key in keys], dtype=object)},
    )
    return compute_advantage_for_multi_trajectories(data, keys, name, config=config.algorithm).batch


@pytest.mark.parametrize("name", ["rle_gae", "rle_mc", "td", "k_step_td", "decoupled_gae", "turn_gae"])
def test_an_estimator_ends_in_it(trainer, name):
    """Without rewards the first token's target is, with gamma = lambda = 1, the value that the response ends in."""
    compute_values(trainer)
    trainer.config.algorithm.adv_estimator = name
    # td and k_step_td ask the critic after one step: there it is the last token's target
    place = [2, 2, 1, 0, 1] if name in ("td", "k_step_td") else [0] * len(KEYS)
    rows = [4, 2, 0, 1, 3]  # the keys tell which row is which
    returns = advantages(name, trainer.config, rows)["returns"]
    ends = {row: VALUES[row][-1] if CUT_OFF[row] else 0.0 for row in rows}
    found = {row: returns[at, place[row]].item() for at, row in enumerate(rows)}
    assert found == pytest.approx(ends, rel=1e-2)


def test_off_it_ends_in_nothing(trainer):
    compute_values(trainer)
    trainer.config.rl_estimators.bootstrap_truncated = False
    assert advantages("rle_gae", trainer.config)["returns"][:, 0].tolist() == pytest.approx(
        [0] * len(KEYS), abs=1e-6
    )


def test_rows_without_it(queue, trainer):
    with pytest.raises(
        PatchError, match=r"no rle_truncated in the batch, so the hook verl_bootstrap did not run"
    ):
        advantages("rle_gae", trainer.config)


# ------------------------------------------------------------------------------------------------------ at start


def need_critic(config):
    from verl.trainer.ppo.utils import need_critic

    return need_critic(config)


@pytest.mark.parametrize("value", ["True", "1", "on"])
def test_accepted(compose, value):
    assert need_critic(compose("algorithm.adv_estimator=rle_gae", f"{SWITCH}={value}")) is True


def test_neither_true_nor_false(compose):
    message = r"rl_estimators.bootstrap_truncated is 'some', expected true or false: \+rl_estimators"
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_gae", f"{SWITCH}=some"))


@pytest.mark.parametrize("name", ["rle_grpo", "grpo", "gae", "reinforce_pp"])
def test_an_estimator_that_does_not_read_it(compose, name):
    """verl's own `gae` among them."""
    message = (
        rf"^rl_estimators.bootstrap_truncated=True with algorithm.adv_estimator={name}, which does not read truncated and "
        r"bootstrap_values: it would have no effect. Remove it, or take one of rle_decoupled_gae, rle_gae, "
    )
    with pytest.raises(InputError, match=message):
        need_critic(compose(f"algorithm.adv_estimator={name}", f"{SWITCH}=True"))


def test_the_legacy_trainer(compose):
    message = (
        "adv_estimator=rle_gae: trainer.use_v1=False cannot give what it needs; remove it, or train with"
    )
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_gae", f"{SWITCH}=True", "trainer.use_v1=False"))


def test_a_limit_that_would_not_be_noticed(compose):
    """vLLM stops at max_model_len, before the response has its full length, and the response would look finished."""
    lengths = "data.max_prompt_length=512", "data.max_response_length=1024"
    given = ("algorithm.adv_estimator=rle_gae", f"{SWITCH}=True", *lengths)
    message = r"max_model_len=1024, which may cut .* Set max_model_len to 1536 \(prompt_length \+ response_length\) or more"
    with pytest.raises(InputError, match=message):
        need_critic(compose(*given, "actor_rollout_ref.rollout.max_model_len=1024"))
    assert need_critic(compose(*given, "actor_rollout_ref.rollout.max_model_len=1536")) is True


def test_an_experimental_trainer(compose):
    message = "adv_estimator=rle_gae: verl's experimental trainers cannot give what it needs; remove it"
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_gae", f"{SWITCH}=True", "+rollout.nnodes=1"))


def test_a_hook_that_is_off(compose, monkeypatch):
    def require(name, purpose):
        raise PatchError(f"{purpose} needs {name}")

    monkeypatch.setattr(patching, "require", require)
    with pytest.raises(PatchError, match=r"^rl_estimators.bootstrap_truncated=True needs verl_bootstrap"):
        need_critic(compose("algorithm.adv_estimator=rle_gae", f"{SWITCH}=True"))


def test_an_estimator_that_cannot_do_without(compose, monkeypatch):
    """Said at start, not after the first rollout."""
    from verl.trainer.ppo import core_algos

    import rl_estimators
    from rl_estimators.registry import ADV_ESTIMATORS

    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))

    @rl_estimators.register_adv_est("leaves_out_truncated")
    def leaves_out_truncated(token_level_rewards, response_mask, values, truncated, bootstrap_values):
        return values, values

    message = r"leaves_out_truncated needs truncated \(1 on .*\), which .*; set `\+rl_estimators.bootstrap_truncated=True`"
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=leaves_out_truncated"))
    assert need_critic(compose("algorithm.adv_estimator=leaves_out_truncated", f"{SWITCH}=True")) is True
    legacy = ["algorithm.adv_estimator=leaves_out_truncated", "trainer.use_v1=False"]
    assert need_critic(compose(*legacy)) is True  # a column of the batch may hold it there
