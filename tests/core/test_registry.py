"""Registration, look-up, and every message they give."""

import importlib.metadata
import pickle
import sys

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators import errors
from rl_estimators.errors import (
    DefinitionError,
    DuplicateNameError,
    EntryPointError,
    InputError,
    UnknownNameError,
)
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, Registry


@pytest.fixture
def registry():
    return Registry("advantage estimator", "rl_estimators.offered_by_nobody")


@pytest.fixture
def registered(monkeypatch):
    """A name in the real registry for the length of one test."""

    def register(function):
        specs = ADV_ESTIMATORS._specs
        monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(specs))
        rl_estimators.register_adv_est("mine")(function)
        return function

    return register


def batch(**change):
    inputs = {
        "token_level_rewards": torch.tensor([[0.0, 1.0], [0.0, 3.0]]),
        "response_mask": torch.ones(2, 2, dtype=torch.bool),
        "index": np.array(["q", "q"], dtype=object),
    }
    return {name: value for name, value in {**inputs, **change}.items() if value is not None}


class TestSignatures:
    def test_needs_are_read_off(self, registry):
        @registry.register("mine", source="a paper")
        def mine(
            token_level_rewards, response_mask, values=None, *, gamma, beta=0.5, config=None, **kwargs
        ): ...

        spec = registry.spec("mine")
        assert spec.function is mine
        assert spec.source == "a paper"
        assert spec.required == ("token_level_rewards", "response_mask")
        assert spec.optional == ("values",)
        assert list(spec.options) == ["gamma", "beta"]
        assert spec.takes_config
        assert spec.takes_any

    def test_unknown_parameter_without_default(self, registry):
        def mine(token_level_rewards, reward_baseline): ...

        message = "advantage estimator 'mine': parameter 'reward_baseline' is no known input, .* a default. "
        with pytest.raises(DefinitionError, match=message + "Did you mean 'reward_baselines'?"):
            registry.register("mine")(mine)

    def test_positional_only(self, registry):
        def mine(token_level_rewards, /): ...

        with pytest.raises(
            DefinitionError, match="'token_level_rewards' is positional-only; inputs come by name"
        ):
            registry.register("mine")(mine)

    @pytest.mark.verl
    @pytest.mark.filterwarnings("ignore")
    def test_all_of_verls_own_register_unchanged(self, registry):
        core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
        theirs = {
            name: function
            for name, function in core_algos.ADV_ESTIMATOR_REGISTRY.items()
            if function.__module__ == core_algos.__name__
        }
        assert len(theirs) >= 14
        for name, function in theirs.items():
            assert registry.register(name)(function) is function

    @pytest.mark.verl
    @pytest.mark.filterwarnings("ignore")
    def test_a_function_of_verls_runs_through_estimate(self, registered):
        """Scores 1 and 3: the leave-one-out baseline of each is the other."""
        core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
        registered(core_algos.compute_rloo_outcome_advantage)
        result = rl_estimators.estimate("mine", **batch(index=torch.tensor([4, 4])))
        assert result.advantages.tolist() == [[-2.0, -2.0], [2.0, 2.0]]

    @pytest.mark.verl
    @pytest.mark.filterwarnings("ignore")
    def test_verls_config_is_stood_in_for(self, registered):
        """With gamma 0 each token's return is its own reward."""
        core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
        registered(core_algos.compute_reinforce_plus_plus_outcome_advantage)
        inputs = batch(response_mask=torch.ones(2, 2))
        assert rl_estimators.estimate("mine", **inputs, gamma=0.0).returns.tolist() == [
            [0.0, 1.0],
            [0.0, 3.0],
        ]

    def test_asking_for_an_input(self, registry):
        """By name, required or not: what ``**kwargs`` would take is not asked for, and an option is no input."""

        @registry.register("mine")
        def mine(token_level_rewards, response_mask, values=None, gamma=1.0, **kwargs): ...

        spec = registry.spec("mine")
        asked = [name for name in ("response_mask", "values", "gamma", "index") if spec.asks_for(name)]
        assert asked == ["response_mask", "values"]

    def test_whose_it_is(self, registry):
        registry.register("mine")(lambda token_level_rewards: token_level_rewards)
        assert not registry.spec("mine").is_ours
        assert ADV_ESTIMATORS.spec("grpo").is_ours


class TestNames:
    def test_unknown(self):
        message = (
            "no advantage estimator is named 'gpro'. Did you mean 'grpo'\\? Known: .*gae, .*grpo, .*remax"
        )
        with pytest.raises(UnknownNameError, match=message):
            rl_estimators.get_adv_est("gpro")

    @pytest.mark.parametrize(
        ("run", "name", "message"),
        [
            ("estimate", None, "an advantage estimator is named by a string, not None"),
            ("estimate", ["grpo"], r"an advantage estimator is named by a string, not \['grpo'\]"),
            ("policy_loss", 3, "a policy loss is named by a string, not 3"),
            ("estimate", "GRPO", r"no advantage estimator is named 'GRPO'. Did you mean 'grpo'\? Known"),
            ("estimate", "PPO", r"Did you mean 'gae'\? Known"),
            ("estimate", "reinforce++", r"Did you mean 'reinforce_pp'\? Known"),
            (
                "estimate",
                "PPO_clip",
                r"'PPO_clip'. 'ppo_clip' is a policy loss: policy_loss\('ppo_clip', ...\). Known",
            ),
            ("policy_loss", "vanilla", r"no policy loss is named 'vanilla'. Did you mean 'ppo_clip'\? Known"),
            (
                "policy_loss",
                "grpo",
                r"Did you mean 'ppo_clip'\? 'grpo' is an advantage estimator: estimate\('grpo', ...\). Known",
            ),
            ("policy_loss", "mse", r"named 'mse'. 'mse' is a value loss: value_loss\('mse', ...\). Known"),
            ("value_loss", "Huber", r"no value loss is named 'Huber'. Did you mean 'huber'\? Known"),
        ],
    )
    def test_what_may_have_been_meant(self, run, name, message):
        zero = torch.zeros(1, 1)
        inputs = {
            "estimate": ("token_level_rewards",),
            "policy_loss": ("old_log_prob", "log_prob", "advantages"),
            "value_loss": ("vpreds", "values", "returns"),
        }[run]
        with pytest.raises(UnknownNameError, match=message):
            getattr(rl_estimators, run)(name, **dict.fromkeys((*inputs, "response_mask"), zero))

    @pytest.mark.parametrize("known", [ADV_ESTIMATORS, POLICY_LOSSES], ids=lambda known: known.call)
    def test_names_elsewhere_lead_to_names_here(self, known):
        assert {*known.elsewhere.values()} <= {*known.names()}
        assert not {*known.elsewhere} & {*known.names()}

    @pytest.mark.verl
    @pytest.mark.filterwarnings("ignore")
    def test_names_elsewhere_are_verls(self):
        """But for those of papers, and of TRL's losses."""
        core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
        assert {*ADV_ESTIMATORS.elsewhere} - {*core_algos.ADV_ESTIMATOR_REGISTRY} == {"ppo", "reinforce++"}
        assert {*POLICY_LOSSES.elsewhere} - {*core_algos.POLICY_LOSS_REGISTRY} == {"ppo", "grpo", "dapo"}

    def test_duplicate(self, registry):
        def first(token_level_rewards): ...
        def second(token_level_rewards): ...

        registry.register("mine")(first)
        with pytest.raises(
            DuplicateNameError, match=r"'mine' is already .*first; register .*second under another"
        ):
            registry.register("mine")(second)

    def test_the_same_function_again_is_a_reload(self, registry):
        def mine(token_level_rewards): ...

        assert registry.register("mine")(mine) is registry.register("mine")(mine)

    def test_lists(self):
        names = rl_estimators.list_adv_est()
        assert names == sorted(names)
        assert {"gae", "grpo", "reinforce_pp", "remax"} <= {*names}
        assert {"ppo_clip", "reinforce"} <= {*rl_estimators.list_policy_loss()}
        assert rl_estimators.list_value_loss() == ["clipped", "huber", "mse"]

    def test_get_returns_the_function_itself(self):
        from rl_estimators.estimators import gae
        from rl_estimators.policy_losses import ppo_clip
        from rl_estimators.value_losses import mse

        assert rl_estimators.get_adv_est("gae") is gae
        assert rl_estimators.get_policy_loss("ppo_clip") is ppo_clip
        assert rl_estimators.get_value_loss("mse") is mse

    def test_listeners_hear_of_names_old_and_new_once(self, registry):
        heard = []
        registry.register("old")(lambda token_level_rewards: None)
        registry.subscribe(heard.append)
        registry.register("new")(lambda token_level_rewards: None)
        assert heard == ["old", "new"]


class TestInputs:
    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("grpo", {"index": None}, r"grpo is missing index\n  index: which prompt .*\n    in verl: .*\n    in TRL: "),
            ("gae", {}, r"gae is missing values\n  values: the critic's value .*\n    in verl: .*\n    in TRL: "),
            ("grpo", {"index": ["q"]}, "grpo: index has B=1, but token_level_rewards has B=2"),
            ("grpo", {"index": [["q"], ["q", "r"]][:1]}, "index has B=1"),
            ("grpo", {"index": torch.zeros(2)}, "grpo: index has dtype torch.float32, expected integers"),
            ("grpo", {"index": np.zeros(2)}, "grpo: index has dtype float64, expected strings or integers"),
            ("grpo", {"index": torch.zeros(2, 1).long()}, r"grpo: index has shape \(2, 1\), expected \(B,\)"),
            ("grpo", {"index": "qq"}, "grpo: index has type str, expected a torch.Tensor, a numpy array or a list"),
            ("gae", {"values": torch.zeros(2, 3)}, "gae: values has T=3, but token_level_rewards has T=2"),
            ("gae", {"values": torch.zeros(2)}, r"gae: values has shape \(2,\), expected \(B, T\)"),
            ("gae", {"values": torch.zeros(2, 2).long()}, "gae: values has dtype torch.int64, expected a floating dtype"),
            ("gae", {"values": [[0, 0]]}, "gae: values has type list, expected a torch.Tensor"),
            ("gae", {"values": np.zeros((2, 2))}, "gae: values has type ndarray, expected a torch.Tensor"),
            (
                "gae",
                {"response_mask": torch.full((2, 2), 0.5), "values": torch.zeros(2, 2)},
                "gae: response_mask has dtype torch.float32 and holds 0.5, expected bool, or 0 and 1 in an integer",
            ),
            ("grpo", {"epsilom": 1.0}, "grpo has no option 'epsilom'. Did you mean 'epsilon'\\? Its options: norm_by_std"),
            ("grpo", {"epsilon": -1.0}, r"grpo: epsilon is -1.0, expected a number in \[0, inf\]"),
            ("grpo", {"singleton": "zer"}, "singleton is 'zer', expected one of zero, raw. Did you mean 'zero'?"),
            ("reinforce_pp", {"gamma": 1.5}, r"reinforce_pp: gamma is 1.5, expected a number in \[0, 1\]"),
            ("grpo", {"masked_reward": "carry"}, r"no option 'masked_reward'. Did you mean 'masked_rewards'\?"),
            ("grpo", {"backends": "torch"}, r"grpo has no option 'backends'. Did you mean 'backend'\?"),
            ("gae", {"values": torch.zeros(2, 2), "x": 1}, "Its options: .*; optional inputs: truncated, bootstrap_values."),
            ("gae", {"values": torch.zeros(2, 2), "lam": -0.1}, r"gae: lam is -0.1, expected a number in \[0, 1\]"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_named(self, name, change, message):
        with pytest.raises(InputError, match=message):
            rl_estimators.estimate(name, **batch(**change))

    def test_inputs_nobody_asked_for_are_left_aside(self):
        one = rl_estimators.estimate("grpo", **batch())
        other = rl_estimators.estimate(
            "grpo", **batch(values=torch.zeros(2, 2), reward_baselines=torch.zeros(2))
        )
        assert torch.equal(one.advantages, other.advantages)

    def test_none_counts_as_absent(self):
        with pytest.raises(InputError, match="gae is missing values"):
            rl_estimators.estimate("gae", **batch(), values=None)

    @pytest.mark.parametrize(
        "index", [["1", "01"], [1, "1"], torch.tensor([10**12, 0]), np.array(["a", "b"])]
    )
    def test_index_arrives_as_an_array_and_groups_by_object(self, registered, index):
        seen = []

        @registered
        def mine(token_level_rewards, response_mask, index):
            seen.append(index)
            return token_level_rewards, token_level_rewards

        rl_estimators.estimate("mine", **batch(index=index))
        assert isinstance(seen[0], np.ndarray)
        assert len({*seen[0].tolist()}) == 2
        assert (rl_estimators.estimate("grpo", **batch(index=index)).advantages == 0).all()

    def test_tensors_in_a_list_are_told_apart_by_what_they_hold(self):
        """As Python objects two tensors are never equal, and every response would stand alone."""
        listed = rl_estimators.estimate("grpo", **batch(index=list(torch.tensor([4, 4]))))
        assert (listed.advantages != 0).all()

    def test_no_gradient_leaks_through_the_values(self):
        values = torch.zeros(2, 2, requires_grad=True)
        assert not rl_estimators.estimate("gae", **batch(values=values)).returns.requires_grad

    def test_no_pair_returned(self, registered):
        registered(lambda token_level_rewards, response_mask: token_level_rewards)
        with pytest.raises(
            DefinitionError, match=r"'mine' returned Tensor, expected \(advantages, returns\)"
        ):
            rl_estimators.estimate("mine", **batch())

    def test_a_loss_that_returns_no_metrics(self, monkeypatch):
        from rl_estimators.registry import VALUE_LOSSES

        monkeypatch.setattr(VALUE_LOSSES, "_specs", dict(VALUE_LOSSES._specs))
        rl_estimators.register_value_loss("mine")(lambda vpreds, loss_agg_mode="token-mean": vpreds.sum())
        zero = torch.zeros(1, 1)
        with pytest.raises(
            DefinitionError, match=r"value loss 'mine' returned Tensor, expected \(loss, metrics\)"
        ):
            rl_estimators.value_loss("mine", vpreds=zero, values=zero, returns=zero, response_mask=zero)

    @pytest.mark.parametrize(
        ("result", "found"),
        [
            (torch.zeros(2, 2), r"shape \(2, 2\)"),
            (torch.zeros(1), r"shape \(1,\)"),
            (0.5, "type float"),
        ],
    )
    def test_a_loss_is_one_number(self, monkeypatch, result, found):
        monkeypatch.setattr(POLICY_LOSSES, "_specs", dict(POLICY_LOSSES._specs))
        rl_estimators.register_policy_loss("mine")(lambda log_prob, loss_agg_mode="token-mean": (result, {}))
        names = ("old_log_prob", "log_prob", "advantages", "response_mask")
        with pytest.raises(
            DefinitionError,
            match=f"policy loss 'mine' returned a loss of {found}, expected a 0-dim tensor",
        ):
            rl_estimators.policy_loss("mine", **dict.fromkeys(names, torch.zeros(2, 2)))


def offered(monkeypatch, tmp_path, **values):
    """A registry to which other distributions offer; their module is written here."""
    (tmp_path / "somebody.py").write_text(
        "def good(token_level_rewards, response_mask):\n    return token_level_rewards, token_level_rewards\n"
    )
    (tmp_path / "somebody_broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("advantage estimator", "rl_estimators.adv_estimators")
    registry.__dict__["_offers"] = {
        name: [importlib.metadata.EntryPoint(name, value, registry.group) for value in targets]
        for name, targets in values.items()
    }
    return registry


class TestOffers:
    def test_imported_only_when_asked_for(self, monkeypatch, tmp_path):
        registry = offered(monkeypatch, tmp_path, good=["somebody:good"])
        assert registry.names() == ["good"]
        assert "somebody" not in sys.modules
        assert registry.spec("good").required == ("token_level_rewards", "response_mask")
        assert registry.spec("good") is registry.spec("good")
        monkeypatch.delitem(sys.modules, "somebody")

    def test_cannot_be_imported(self, monkeypatch, tmp_path):
        registry = offered(monkeypatch, tmp_path, bad=["somebody_broken:bad"])
        message = (
            "'bad' is offered by .* as 'somebody_broken:bad', which cannot be imported: ModuleNotFoundError"
        )
        with pytest.raises(EntryPointError, match=message):
            registry.spec("bad")

    def test_two_distributions_offer_one_name(self, monkeypatch, tmp_path):
        registry = offered(monkeypatch, tmp_path, good=["somebody:good", "else_:good"])
        with pytest.raises(
            DuplicateNameError, match=r"'good' has several owners: somebody:good .*; else_:good .*Keep one"
        ):
            registry.spec("good")

    def test_an_offer_against_a_registered_name(self, monkeypatch, tmp_path):
        registry = offered(monkeypatch, tmp_path, good=["somebody:good"])

        @registry.register("good")
        def mine(token_level_rewards): ...

        with pytest.raises(DuplicateNameError, match=r"several owners: .*mine; somebody:good"):
            registry.spec("good")


def test_every_error_survives_pickling():
    for name in errors.__all__:
        error = getattr(errors, name)("what was wrong")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == "what was wrong"


class TestWhatOthersRegister:
    def test_two_functions_of_one_name_and_place(self, registry):
        def make():
            def est(token_level_rewards): ...

            return est

        registry.register("est")(make())
        with pytest.raises(
            DuplicateNameError, match=r"'est' is already .*est; register .*est under another name"
        ):
            registry.register("est")(make())

    def test_verls_enum_is_a_name(self, registry):
        from enum import Enum

        class Name(str, Enum):
            MINE = "mine"

        registry.register(Name.MINE)(lambda token_level_rewards: None)
        assert registry.names() == ["mine"]
        assert registry.spec(Name.MINE).name == "mine"

    def test_an_enum_is_a_name(self):
        """In messages, too: it stands for its value."""
        from enum import Enum

        class Name(Enum):
            GRPO = "grpo"

        assert torch.equal(
            rl_estimators.estimate(Name.GRPO, **batch()).returns,
            rl_estimators.estimate("grpo", **batch()).returns,
        )
        with pytest.raises(InputError, match=r"^grpo: masked_rewards is 'x', expected one of drop, carry"):
            rl_estimators.estimate(Name.GRPO, **batch(), masked_rewards="x")

    def test_the_decorator_without_its_name(self, registry):
        with pytest.raises(
            DefinitionError,
            match=r'^an advantage estimator is registered by name, @register\("name"\), not as <function',
        ):
            registry.register(lambda token_level_rewards: None)

    def test_what_is_no_function(self, registry):
        with pytest.raises(DefinitionError, match=r"'mine': 3 is no function with a signature to read"):
            registry.register("mine")(3)

    def test_an_offer_re_exported_by_its_package_is_the_same_function(self, monkeypatch, tmp_path):
        registry = offered(monkeypatch, tmp_path, good=["somebody_else:good"])
        (tmp_path / "somebody_else.py").write_text("from somebody import good\n")
        import somebody

        registry.register("good")(somebody.good)
        assert registry.spec("good").function is somebody.good
        for name in ("somebody", "somebody_else"):
            monkeypatch.delitem(sys.modules, name)

    def test_keywords_bring_the_config_along_as_in_verl(self, registered):
        @registered
        def mine(token_level_rewards, response_mask, **kwargs):
            return token_level_rewards * kwargs["config"].gamma, token_level_rewards

        assert rl_estimators.estimate("mine", **batch(), gamma=0.5).advantages.tolist() == [
            [0, 0.5],
            [0, 1.5],
        ]

    def test_a_near_miss_is_no_option_of_a_config(self, registered):
        @registered
        def mine(token_level_rewards, response_mask, epsilon=1e-6, config=None):
            return token_level_rewards, token_level_rewards

        with pytest.raises(InputError, match=r"mine has no option 'epsilom'. Did you mean 'epsilon'\?"):
            rl_estimators.estimate("mine", **batch(), epsilom=1)

    @pytest.mark.parametrize("result", [None, (torch.zeros(2), torch.zeros(2, 2)), (torch.zeros(2, 2), None)])
    def test_what_is_returned_has_the_shape_of_the_rewards(self, registered, result):
        registered(lambda token_level_rewards, response_mask: result)
        with pytest.raises(DefinitionError, match=r"'mine' returned .*expected"):
            rl_estimators.estimate("mine", **batch())

    def test_a_loss_with_one_way_of_averaging(self, monkeypatch):
        from rl_estimators.registry import VALUE_LOSSES

        monkeypatch.setattr(VALUE_LOSSES, "_specs", dict(VALUE_LOSSES._specs))
        rl_estimators.register_value_loss("mine")(lambda vpreds: (vpreds.sum(), {}))
        one = {name: torch.ones(1, 1) for name in ("vpreds", "values", "returns", "response_mask")}
        assert rl_estimators.value_loss("mine", **one)[0] == 1
        with pytest.raises(InputError, match="mine has no option 'loss_agg_mode'"):
            rl_estimators.value_loss("mine", **one, loss_agg_mode="token-sum")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"norm_by_std": "false"}, "grpo: norm_by_std is 'false', expected True or False"),
        ("grpo", {"epsilon": None}, "grpo: epsilon is None, expected a value; leave it out for the default"),
        ("reinforce_pp", {"gamma": "0.9"}, "reinforce_pp: gamma is '0.9', expected a number"),
        (
            "reinforce_pp",
            {"gamma": torch.tensor([0.5, 0.5])},
            r"gamma is tensor\(\[0.5000, 0.5000\]\), expected a number",
        ),
        ("reinforce_pp", {"gamma": torch.tensor(0.5j)}, "reinforce_pp: gamma is tensor.*, expected a number"),
        ("reinforce_pp", {"config": {"gamma": 0.5}}, "reinforce_pp takes no config; its options: gamma=1.0"),
        (
            "grpo",
            {"index": [[1], [2]]},
            r"index holds an entry that cannot be compared \(unhashable type: 'list'\)",
        ),
        ("grpo", {"index": torch.ones(2, dtype=torch.bool)}, "index has dtype torch.bool, expected integers"),
    ],
)
def test_options_of_a_wrong_type(name, options, message):
    with pytest.raises(InputError, match=message):
        rl_estimators.estimate(name, **{**batch(), **options})


def test_the_callers_index_is_not_written_into():
    from rl_estimators.fields import as_index

    index = torch.tensor([3, 3])
    as_index(index)[0] = 9
    assert index.tolist() == [3, 3]
