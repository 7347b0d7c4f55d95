"""What the reward function returns beside its score reaches an estimator that asks for it, in both of verl's trainers.

In the v1 trainer it comes from verl's queue, for which a stand-in holds rows as verl's agent loop and reward model
write them. Real runs: test_main_ppo_catalogue.py and test_main_ppo_gdpo.py.
"""

import importlib

import numpy as np
import pytest
import torch
from reference import groups

import rl_estimators
from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS, Spec
from rl_estimators.verl import reward_keys

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

# Prompt p: two sessions, one with two outputs, the last of which stands first; q: three; one empty row of verl's.
KEYS = ["p_0_1", "p_0_0", "p_1_0", "q_0_0", "q_1_0", "q_2_0", "pad7_0_0"]
SESSIONS = [0, 2, 3, 4, 5]  # rows of the final outputs that are real
MASK = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [1, 1], [1, 0], [0, 0]])
PLACES = [0.5, 0.5, 1.0, 0.25, 0.75, 0.0, 0.5]
LENGTH = [1, 1, 0, True, False, 1, 1]
INFOS = [
    {"reward_extra_info": {"score": place, "places": place, "length": long, "text": "12"}, "turn_scores": []}
    for place, long in zip(PLACES, LENGTH, strict=True)
]
WEIGHTS = [1.0, 0.5]


@pytest.fixture
def queue(monkeypatch):
    """Rows of verl's queue by column; every reading is noted."""
    from verl.utils.tensordict_utils import get_tensordict

    module = pytest.importorskip("transfer_queue")
    columns, readings = {}, []

    def kv_batch_get(keys, partition_id, select_fields):
        assert partition_id == "train"
        readings.append(select_fields)
        rows = [KEYS.index(key) for key in keys]
        found = {
            name: [columns[name][row] for row in rows]
            for name in select_fields
            if name in columns and len(columns[name]) == len(KEYS)  # it leaves out what some rows do not have
        }
        return get_tensordict(found)

    monkeypatch.setattr(module, "kv_batch_get", kv_batch_get)
    columns.update(extra_fields=INFOS)
    kv_batch_get.columns, kv_batch_get.readings = columns, readings
    return kv_batch_get


def compute(name, keys=KEYS, columns=(), **config):
    """verl's own function for the v1 trainer's advantage step, hooked as it is in a run."""
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rows = [KEYS.index(key) for key in keys]
    uids = np.array([key.split("_")[0] for key in keys], dtype=object)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": torch.ones(len(keys), 2), "response_mask": MASK[rows]},
        non_tensors={"uid": uids, **dict(columns)},
    )
    config = OmegaConf.create({"gamma": 1.0, "lam": 1.0, **config})
    return compute_advantage_for_multi_trajectories(data, keys, name, config=config).batch["advantages"]


def expected(rows=SESSIONS, **options):
    """By the independent reference, over one row a session."""
    components = np.array([PLACES, LENGTH], dtype=float).T[rows]
    mask = MASK[rows].numpy()
    uids = np.array([KEYS[row].split("_")[0] for row in rows], dtype=object)
    return groups.gdpo(np.ones(mask.shape), mask, uids, components, **options).advantages


NAMED = {"gdpo_reward_keys": ["places", "length"], "gdpo_reward_weights": WEIGHTS}


def test_each_sessions_own_rewards(queue):
    advantages = compute("rle_gdpo", **NAMED)
    np.testing.assert_allclose(advantages[SESSIONS].numpy(), expected(weights=WEIGHTS), rtol=1e-5, atol=1e-6)
    assert advantages[1].tolist() == [advantages[0, 0], 0]  # an earlier output of the first session
    assert advantages[6].tolist() == [0, 0]
    assert queue.readings == [["extra_fields"]]


def test_rows_in_another_order(queue):
    order = [5, 0, 6, 2, 1, 4, 3]
    advantages = compute("rle_gdpo", [KEYS[row] for row in order], **NAMED)
    torch.testing.assert_close(advantages, compute("rle_gdpo", **NAMED)[order])


def test_an_estimator_of_anybodys(queue, monkeypatch):
    """It names no keys itself; in the legacy trainer, whose batch holds the columns, it gets the same."""
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import compute_advantage

    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))

    @rl_estimators.register_adv_est("first_minus_last")
    def first_minus_last(token_level_rewards, response_mask, reward_components):
        difference = reward_components[:, :1] - reward_components[:, -1:]
        return difference * response_mask, difference * response_mask

    options = {"adv_estimator_kwargs": {"reward_keys": ["places", "length"]}}
    wanted = torch.tensor([place - long for place, long in zip(PLACES, LENGTH, strict=True)])[:, None] * MASK
    assert torch.equal(compute("first_minus_last", **options), wanted)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": torch.ones(7, 2), "response_mask": MASK},
        non_tensors={"places": np.array(PLACES), "length": np.array(LENGTH, dtype=float)},
    )
    config = OmegaConf.create(options)
    assert torch.equal(compute_advantage(data, "first_minus_last", config=config).batch["advantages"], wanted)
    config.adv_estimator_kwargs.reward_keys[1] = "lenght"
    message = r"^first_minus_last: a name in reward_keys is 'lenght', expected one of length, places. Did you mean 'len"
    with pytest.raises(InputError, match=message):
        compute_advantage(data, "first_minus_last", config=config)
    with pytest.raises(InputError, match="first_minus_last is missing reward_components"):
        compute("first_minus_last")


def test_whoever_asks_for_verls_columns_gets_them_all(queue, monkeypatch):
    from verl.trainer.ppo import core_algos

    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))
    seen = {}

    @rl_estimators.register_adv_est("looks")
    def looks(token_level_rewards, response_mask, non_tensor_batch):
        seen.update(non_tensor_batch)
        return token_level_rewards, token_level_rewards

    compute("looks", columns=[("length", np.zeros(7))])
    assert sorted(seen) == ["length", "places", "score", "text", "uid"]
    assert seen["places"].tolist() == PLACES
    assert seen["text"].tolist() == ["12"] * 7
    assert seen["length"].tolist() == [0] * 7  # what the batch has already is not replaced


def test_a_colocated_reward_models_columns(queue):
    """verl's trainer asks it after the rollout and writes columns of the queue; a data set's do not take part else."""
    queue.columns.update(places=[0.0] * 7, length=[0.0] * 7)
    np.testing.assert_allclose(
        compute("rle_gdpo", **NAMED)[SESSIONS].numpy(), expected(weights=WEIGHTS), rtol=1e-5, atol=1e-6
    )
    queue.columns.update(places=PLACES, length=LENGTH)
    for nothing in ({}, {"reward_extra_info": {}}, {"reward_extra_info": None}):
        queue.columns["extra_fields"] = [nothing] * 7
        advantages = compute("rle_gdpo", **NAMED)[SESSIONS].numpy()
        np.testing.assert_allclose(advantages, expected(weights=WEIGHTS), rtol=1e-5, atol=1e-6)
    queue.columns["extra_fields"] = []  # no such column
    assert (compute("rle_gdpo", **NAMED)[0] != 0).all()


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_whatever_the_queue_holds_a_column_in(kind):
    info = importlib.import_module("rl_estimators.verl.reward_info")
    assert info._listed(kind([0.5, 1.0])) == [0.5, 1.0]


def test_what_was_not_returned(queue):
    message = (
        r"^algorithm.adv_estimator=rle_gdpo: reward_keys names 'lenght', which the reward function returned for 0 of 7 "
        r"responses. Did you mean 'length'\? For each it returned length, places, score, text; components stand beside "
        r"the score in the dictionary that it returns$"
    )
    with pytest.raises(InputError, match=message):
        compute("rle_gdpo", gdpo_reward_keys=["places", "lenght"])
    queue.columns["extra_fields"] = [*INFOS[:-2], *[{"reward_extra_info": {"acc": 1.0, "places": 0.5}}] * 2]
    message = r"names 'length', which the reward function returned for 5 of 7 responses. For each it returned places; "
    with pytest.raises(InputError, match=message):
        compute("rle_gdpo", **NAMED)
    queue.columns["extra_fields"] = [{}] * 7
    message = r"names 'places', .* for 0 of 7 responses. For each it returned nothing; components stand beside the score"
    with pytest.raises(InputError, match=message):
        compute("rle_gdpo", **NAMED)


def test_what_is_no_number(queue):
    queue.columns["extra_fields"] = [{"reward_extra_info": {"text": "ab"}}] * 7
    with pytest.raises(InputError, match=r"^gdpo: column 'text' holds what is no number"):
        compute("rle_gdpo", gdpo_reward_keys=["text"])


def test_nothing_is_read_for_the_others(queue):
    """Nor for verl's own gdpo, which stays as it is: in this trainer it has not what it needs."""
    for name in ("rle_grpo", "grpo", "reinforce_pp"):
        compute(name)
    with pytest.raises(KeyError, match="prompts"):
        compute("gdpo", **NAMED)
    assert queue.readings == []


@pytest.mark.parametrize("keys", ["places", 3, ["places", 1], {"places": 1}])
def test_keys_that_are_no_names(keys):
    spec = ADV_ESTIMATORS.spec("gdpo")
    with pytest.raises(
        InputError, match=r"^gdpo: reward_keys is .*, expected a list of the names under which"
    ):
        reward_keys.names(spec, {"reward_keys": keys})


def test_whose_the_option_is():
    grpo = ADV_ESTIMATORS.spec("grpo")
    other = Spec("other", len, "", ("reward_components",), (), {})
    optional = Spec("optional", len, "", (), ("reward_components",), {})
    specs = [ADV_ESTIMATORS.spec("gdpo"), grpo, other, optional]
    assert [reward_keys.read_here(spec) for spec in specs] == [False, False, True, True]
    assert [reward_keys.missing(spec, {}) for spec in specs] == [True, False, True, False]
    assert not reward_keys.missing(other, {"reward_keys": ["a"]})
    assert reward_keys.names(grpo, {"reward_keys": "an option of somebody's own"}) == []
    assert reward_keys.on_nothing(optional, {"reward_keys": [], "a": 1}) == {"a": 1}
    assert reward_keys.on_nothing(grpo, {"reward_keys": 1}) == {"reward_keys": 1}
    assert reward_keys.resolve(optional, {"reward_keys": [], "a": 1}) == {"a": 1}
