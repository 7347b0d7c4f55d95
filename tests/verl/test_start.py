"""What verl's configuration asks for and cannot get is said by `need_critic`, before anything starts."""

import re

import pytest
import torch

import rl_estimators
from rl_estimators import patching
from rl_estimators.errors import InputError, PatchError, UnknownNameError
from rl_estimators.registry import ADV_ESTIMATORS

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

OPTIONS = "+algorithm.adv_estimator_kwargs"


def need_critic(config):
    from verl.trainer.ppo.utils import need_critic

    return need_critic(config)


@pytest.mark.parametrize(
    ("name", "wanted"), [("rle_gae", True), ("gae", True), ("reinforce_pp", False), ("rle_grpo", False), ("grpo", False)]
)  # fmt: skip
def test_the_critic_follows_the_signature(compose, name, wanted):
    assert need_critic(compose(f"algorithm.adv_estimator={name}")) is wanted


def test_critic_may_be_asked_for_anyway(compose):
    assert need_critic(compose("algorithm.adv_estimator=rle_grpo", "critic.enable=True")) is True


def test_no_critic_and_an_estimator_that_needs_one(compose):
    message = r"adv_estimator=rle_gae needs values \(the critic's value before each token\), which .* not provide; set"
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_gae", "critic.enable=False"))


def test_unknown_estimator(compose):
    message = r"algorithm.adv_estimator=reinforce_p: no such estimator. Did you mean 'reinforce_pp'\? Known: .*gae, "
    with pytest.raises(UnknownNameError, match=message):
        need_critic(compose("algorithm.adv_estimator=reinforce_p"))


def test_unknown_option(compose):
    message = (
        r"^algorithm.adv_estimator_kwargs.epsilom: grpo has no such option. Did you mean 'epsilon'\? Its options: "
        r"norm_by_std=True, .* ~algorithm.adv_estimator_kwargs.epsilom removes it.$"
    )
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_grpo", f"{OPTIONS}.epsilom=1"))


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("rle_grpo", "epsilon=abc", r"epsilon is 'abc' \(str\), expected a number; its default is 1e-06"),
        ("rle_grpo", "epsilon=null", r"epsilon is None \(NoneType\), expected a number; its default is"),
        (
            "rle_grpo",
            "norm_by_std=1",
            r"norm_by_std is 1 \(int\), expected true or false; its default is True",
        ),
        ("rle_grpo", "ddof='1'", r"ddof is '1' \(str\), expected an integer; its default is 1"),
        ("rle_grpo", "epsilon=[1]", r"epsilon is \[1\] \(list\), expected a number"),
        ("rle_gae", "lam=half", r"lam is 'half' \(str\), expected a number; its default is 1.0"),
        ("rle_gae", "values=1", "values: verl hands that to gae itself; leave it out"),
        ("rle_gae", "config=1", "config: verl hands that to gae itself; leave it out"),
    ],
)
def test_options_of_another_type(compose, name, option, message):
    with pytest.raises(InputError, match="^algorithm.adv_estimator_kwargs." + message):
        need_critic(compose(f"algorithm.adv_estimator={name}", f"{OPTIONS}.{option}"))


def test_options_that_fit(compose):
    """An integer is a number, and a reference to another key is what it refers to."""
    options = [f"{OPTIONS}.epsilon=1", f"{OPTIONS}.singleton=raw"]
    assert need_critic(compose("algorithm.adv_estimator=rle_grpo", *options)) is False
    options = [f"{OPTIONS}.lam=${{algorithm.gamma}}"]
    assert need_critic(compose("algorithm.adv_estimator=rle_gae", *options)) is True


def test_options_that_are_no_mapping(compose):
    message = r"algorithm.adv_estimator_kwargs is 'raw', expected options by name: \+algorithm.adv_estimator_kwargs.NAME"
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_grpo", "+algorithm.adv_estimator_kwargs=raw"))


@pytest.mark.parametrize(
    "written",
    ["(token_level_rewards, response_mask, gamma, config=None)", "(response_mask, gamma, **kwargs)"],
)
def test_options_in_verls_style(compose, monkeypatch, written):
    """A parameter that verl always sets may have no default; ``**kwargs`` take anything but what verl hands over."""
    from verl.trainer.ppo import core_algos

    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))
    scope = {}
    exec(f"def in_verls_style{written}: ...", scope)
    rl_estimators.register_adv_est("in_verls_style")(scope["in_verls_style"])
    chosen = "algorithm.adv_estimator=in_verls_style"
    assert need_critic(compose(chosen, f"{OPTIONS}.gamma=0.5")) is False
    with pytest.raises(InputError, match=r"kwargs.index: verl hands that to in_verls_style itself"):
        need_critic(compose(chosen, f"{OPTIONS}.index=0"))
    if "kwargs" in written:
        assert need_critic(compose(chosen, f"{OPTIONS}.whatever=1")) is False
    else:
        with pytest.raises(
            InputError, match=r"kwargs.whatever: in_verls_style has no such option. Its options: gamma"
        ):
            need_critic(compose(chosen, f"{OPTIONS}.whatever=1"))


@pytest.fixture
def asks_for(compose, monkeypatch):
    """An estimator that asks for one more input, registered for the length of the test."""
    from verl.trainer.ppo import core_algos

    def register(field):
        monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
        monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))
        scope = {}
        exec(f"def asks(token_level_rewards, response_mask, {field}):\n return {field}, {field}", scope)
        rl_estimators.register_adv_est("asks")(scope["asks"])

    return register


ROLLOUT = "actor_rollout_ref.rollout.calculate_log_probs=True"


@pytest.mark.parametrize(
    ("field", "provided_by"),
    [
        ("ref_log_prob", ["algorithm.use_kl_in_reward=True"]),
        ("ref_log_prob", ["actor_rollout_ref.actor.use_kl_loss=True"]),
        ("rollout_log_probs", [ROLLOUT]),
        ("rollout_is_weights", [ROLLOUT, "algorithm.rollout_correction.rollout_is=token"]),
        (
            "sum_pi_squared",
            ["actor_rollout_ref.actor.calculate_sum_pi_squared=True", "trainer.use_v1=False"],
        ),
    ],
)
def test_inputs_that_depend_on_the_configuration(compose, asks_for, field, provided_by):
    asks_for(field)
    assert need_critic(compose("algorithm.adv_estimator=asks", *provided_by)) is False
    without = "actor_rollout_ref.rollout.calculate_log_probs=False"
    message = rf"adv_estimator=asks needs {field} \(.*\), which this configuration does not provide; set"
    with pytest.raises(InputError, match=message):
        need_critic(compose("algorithm.adv_estimator=asks", without))


def test_old_log_probs_are_always_there(compose, asks_for):
    asks_for("old_log_probs")
    assert need_critic(compose("algorithm.adv_estimator=asks")) is False


def test_a_hook_that_drifted_is_named_by_those_who_need_it(compose, monkeypatch):
    """And by nobody else: reinforce_pp goes on."""
    (status,) = (status for status in patching.report() if status.patch.name == "verl_inputs")
    drifted = patching.Status(status.patch, patching.State.DRIFTED, "expected (data), found (batch)")
    monkeypatch.setitem(patching._statuses, "verl_inputs", drifted)
    need_critic(compose("algorithm.adv_estimator=reinforce_pp"))
    message = (
        r"adv_estimator=rle_gae needs a hook .* verl_inputs: drifted.*expected \(data\), found \(batch\)"
    )
    with pytest.raises(PatchError, match=message):
        need_critic(compose("algorithm.adv_estimator=rle_gae"))


def test_what_verl_has_reaches_the_estimator(compose, asks_for):
    """Every column of the batch, through verl's `compute_advantage`."""
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    for i, field in enumerate(("values", "old_log_probs", "ref_log_prob", "rollout_log_probs")):
        asks_for(field)
        column = torch.full((1, 2), float(i))
        tensors = {"token_level_rewards": torch.zeros(1, 2), "response_mask": torch.ones(1, 2), field: column}
        data = compute_advantage(DataProto.from_dict(tensors=tensors), "asks", config=OmegaConf.create({}))
        assert torch.equal(data.batch["advantages"], column)


def test_outside_of_verls_call_there_is_no_batch():
    from rl_estimators.verl import batch

    assert batch.inputs() == {}


class TestWhatIsNotOurs:
    """verl calls `need_critic` for everybody, also with a part of the configuration: stock answers stay."""

    @pytest.mark.parametrize(
        ("config", "wanted"),
        [
            ({"critic": {"enable": True}}, True),
            ({"critic": {"enable": False}, "algorithm": {"adv_estimator": "grpo"}}, False),
            ({"critic": {"enable": None}, "algorithm": {"adv_estimator": "gae"}}, True),
            ({"critic": {"enable": None}, "algorithm": {"adv_estimator": None}}, False),
            ({"critic": {"enable": None}, "algorithm": {"adv_estimator": "a_trainers_own"}}, False),
        ],
    )
    def test_partial_configurations(self, compose, config, wanted):
        from omegaconf import OmegaConf

        assert need_critic(OmegaConf.create(config)) is wanted

    def test_a_policy_loss_that_only_the_workers_will_know(self, compose):
        mode = "actor_rollout_ref.actor.policy_loss.loss_mode=my_loss"
        external = "actor_rollout_ref.model.external_lib=my_losses"
        assert need_critic(compose("algorithm.adv_estimator=grpo", mode, external)) is False
        message = (
            r"loss_mode=my_loss: no such policy loss. Known: bypass_mode, .*vanilla. One of yours is known once its module "
            r"is imported: VERL_USE_EXTERNAL_MODULES=my_module, or actor_rollout_ref.model.external_lib"
        )
        with pytest.raises(UnknownNameError, match=message):
            need_critic(compose("algorithm.adv_estimator=rle_grpo", mode, "+rl_estimators.diagnostics=True"))

    def test_a_name_that_nobody_has_yet(self, compose, caplog):
        """A trainer of the user's own may know it, or a module that it imports later: verl's answer, and a warning."""
        chosen, mode = (
            "algorithm.adv_estimator=a_trainers_own",
            "actor_rollout_ref.actor.policy_loss.loss_mode=my_loss",
        )
        quiet = (
            "actor_rollout_ref.model.external_lib=mine",
            "data.custom_cls.path=mine.py",
            "+rollout.n=1",  # as verl's experimental trainers have it
        )
        for more in quiet:
            assert need_critic(compose(chosen, mode, more)) is False
        assert not caplog.records
        for _ in range(2):  # asked several times in a run, it says so once
            assert need_critic(compose(chosen, mode)) is False
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2
        assert re.search(
            r"adv_estimator=a_trainers_own: no such estimator. Known: .*decoupled_gae, gae, .*turn_gae. One of yours is "
            r"known once its module is imported: VERL_USE_EXTERNAL_MODULES=my_module, or actor_rollout_ref.model.ext",
            said[0],
        )
        assert "loss_mode=my_loss: no such policy loss." in said[1]

    @pytest.mark.parametrize("name", ["grop", "rle_nobodys", "reinforcepp"])
    def test_a_slip_in_a_name_of_ours(self, compose, name):
        with pytest.raises(UnknownNameError, match=f"adv_estimator={name}: no such estimator"):
            need_critic(compose(f"algorithm.adv_estimator={name}"))

    def test_options_of_ours_for_an_estimator_that_nobody_has(self, compose):
        chosen = "algorithm.adv_estimator=a_trainers_own", "+algorithm.adv_estimator_kwargs.gamma=0.9"
        with pytest.raises(UnknownNameError, match="adv_estimator=a_trainers_own: no such estimator"):
            need_critic(compose(*chosen))

    @pytest.mark.parametrize(
        ("name", "end"),
        [
            ("reinforce_plus_plus", "ours is reinforce_pp$"),
            ("reinforce_plus_plus_baseline", "ours is reinforce_pp_baseline$"),
            ("rloo_vectorized", "ours is rle_rloo$"),
            ("grpo_vectorized", "ours is rle_grpo$"),
            ("gae", "ours is rle_gae$"),
            ("optimal_token_baseline", "there is none of ours in its place: remove the options$"),
        ],
    )
    def test_options_that_verls_own_do_not_read(self, compose, name, end):
        message = rf"adv_estimator_kwargs is set and algorithm.adv_estimator={name} is verl's own, which does not read it; "
        with pytest.raises(InputError, match=message + end):
            need_critic(compose(f"algorithm.adv_estimator={name}", f"{OPTIONS}.epsilon=0.1"))

    def test_options_of_somebody_elses_estimator_are_theirs(self, compose, monkeypatch):
        from verl.trainer.ppo import core_algos

        monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", {"theirs": test_reward_components})
        for key in ("adv_estimator_kwargs", "adv_estimator_args"):
            assert need_critic(compose("algorithm.adv_estimator=theirs", f"+algorithm.{key}.a=1")) is False

    def test_our_options_for_verls_estimator(self, compose):
        message = r"adv_estimator_kwargs is set and algorithm.adv_estimator=grpo is verl's own, .*; ours is rle_grpo"
        with pytest.raises(InputError, match=message):
            need_critic(
                compose("algorithm.adv_estimator=grpo", "+algorithm.adv_estimator_kwargs.singleton=raw")
            )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+algorithm.adv_estimator_kwargs.singleton=rwa"], "singleton is 'rwa', expected one of zero, raw"),
        (["+algorithm.adv_estimator_kwargs.ddof=2"], "ddof is 2, expected"),
    ],
)
def test_values_of_options(compose, overrides, message):
    tail = r".* Options are set under algorithm.adv_estimator_kwargs.NAME"
    with pytest.raises(InputError, match="algorithm.adv_estimator=rle_grpo: grpo: " + message + tail):
        need_critic(compose("algorithm.adv_estimator=rle_grpo", *overrides))


def test_a_lambda_out_of_range(compose):
    with pytest.raises(InputError, match=r"gae: lam is 7.0, expected a number in \[0, 1\]"):
        need_critic(compose("algorithm.adv_estimator=rle_gae", "algorithm.lam=7.0"))


def test_reward_components(compose, asks_for):
    """Both trainers bring them, under the names that the configuration gives."""
    gdpo = "algorithm.adv_estimator=rle_gdpo"
    message = (
        r"adv_estimator=rle_gdpo needs reward_components \(each response's K rewards, .* does not provide; set "
        r"`\+algorithm.adv_estimator_kwargs.reward_keys=\[NAME,...\]`: the names under which the reward function returns"
    )
    for trainer in ("trainer.use_v1=True", "trainer.use_v1=False"):
        for keys in (f"{OPTIONS}.reward_keys=[a]", "+algorithm.gdpo_reward_keys=[a]"):
            assert need_critic(compose(gdpo, keys, trainer)) is False
        with pytest.raises(InputError, match=message):
            need_critic(compose(gdpo, trainer))
    asks_for("reward_components")
    with pytest.raises(InputError, match="adv_estimator=asks needs reward_components"):
        need_critic(compose("algorithm.adv_estimator=asks"))
    assert need_critic(compose("algorithm.adv_estimator=asks", f"{OPTIONS}.reward_keys=[a]")) is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["reward_keys=a"], "reward_keys is 'a', expected a list of the names under which the reward function returns"),
        (["reward_keys=[a,b]", "weights=[1.0]"], "weights is .*, expected 2 finite numbers, one for each reward"),
        (["reward_keys=[a,b]", "norm_level=batch"], "norm_level is 'batch', expected one of sequence, token"),
    ],
)  # fmt: skip
def test_options_of_gdpo(compose, options, message):
    given = [f"{OPTIONS}.{option}" for option in options]
    with pytest.raises(InputError, match=rf"^algorithm.adv_estimator=rle_gdpo: gdpo: {message}"):
        need_critic(compose("algorithm.adv_estimator=rle_gdpo", *given))


@pytest.mark.parametrize(("name", "keys"), [("rle_rloo", []), ("asks", [f"{OPTIONS}.reward_keys=[a]"])])
def test_what_the_v1_trainers_rows_hold_needs_its_hook(compose, asks_for, monkeypatch, name, keys):
    asks_for("reward_components")
    (status,) = (status for status in patching.report() if status.patch.name == "verl_sessions")
    off = patching.Status(status.patch, patching.State.DISABLED, "by hand")
    monkeypatch.setitem(patching._statuses, "verl_sessions", off)
    chosen = f"algorithm.adv_estimator={name}"
    with pytest.raises(PatchError, match=rf"adv_estimator={name} needs a hook .* verl_sessions: disabled"):
        need_critic(compose(chosen, *keys))
    assert need_critic(compose(chosen, *keys, "trainer.use_v1=False")) is False


def test_gamma_as_an_argument_of_verls_call(compose):
    """Without a config, as some trainers call it: the returns of rewards 0, 0, 1 are 1/4, 1/2, 1."""
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    tensors = {"token_level_rewards": torch.tensor([[0.0, 0.0, 1.0]]), "response_mask": torch.ones(1, 3)}
    data = compute_advantage(DataProto.from_dict(tensors=tensors), "rle_reinforce", gamma=0.5)
    assert data.batch["returns"].tolist() == [[0.25, 0.5, 1.0]]


@pytest.mark.parametrize("name", ["rle_grpo", "reinforce_plus_plus"])
@pytest.mark.parametrize("key", ["adv_estimators_kwargs", "adv_estimator_kwarg", "adv_estimator_args"])
def test_misspelt_options(compose, name, key):
    message = rf"^algorithm.{key}: no such key. Did you mean 'adv_estimator_kwargs'\?$"
    with pytest.raises(InputError, match=message):
        need_critic(compose(f"algorithm.adv_estimator={name}", f"+algorithm.{key}.epsilon=0.1"))


def test_keys_of_algorithm_that_are_verls(compose):
    """All that verl's dataclass has, those its YAML leaves out included, and somebody's own."""
    import dataclasses

    from verl.trainer.config import AlgoConfig

    verls = {field.name for field in dataclasses.fields(AlgoConfig)} - set(compose().algorithm)
    assert "gdpo_reward_keys" in verls
    added = [f"+algorithm.{name}=null" for name in (*verls, "a_key_of_mine")]
    assert need_critic(compose("algorithm.adv_estimator=rle_grpo", *added)) is False


@pytest.fixture
def tensors():
    return {"token_level_rewards": torch.tensor([[0.0, 1.0]]), "response_mask": torch.ones(1, 2)}


@pytest.mark.parametrize("hook", ["verl_need_critic", "verl_inputs"])
def test_a_missing_input_names_the_hook_that_is_off(monkeypatch, tensors, hook):
    """What is not said at start, as the hook that says it is disabled, is said in the first step."""
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    data = DataProto.from_dict(tensors=tensors)
    with pytest.raises(InputError, match="gae is missing values"):
        compute_advantage(data, "rle_gae")
    (status,) = (status for status in patching.report() if status.patch.name == hook)
    off = patching.Status(status.patch, patching.State.DISABLED, "by hand")
    monkeypatch.setitem(patching._statuses, hook, off)
    with pytest.raises(
        PatchError, match=rf"rle_gae, which is missing values, needs a hook .* {hook}: disabled"
    ):
        compute_advantage(data, "rle_gae")
    compute_advantage(data, "rle_reinforce")  # nothing is missing
