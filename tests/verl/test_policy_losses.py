"""Our policy losses through verl's registry and its actor's `ppo_loss`, on batches as its engines pass them."""

import inspect
from functools import partial

import pytest
import torch

import rl_estimators
from rl_estimators.aggregation import MODES
from rl_estimators.errors import DuplicateNameError, InputError
from rl_estimators.registry import POLICY_LOSSES

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

PROMPT = 2
LENGTHS = (3, 1, 4, 2)  # of the responses
MASKS = ((1, 0, 1), (1,), (1, 1, 1, 1), (0, 0))  # a hole, and a response without any valid token
TOKENS = 2 + 1 + 4
ALL = [0, 1, 2, 3]
COUNTS = [
    {},
    {"batch_num_tokens": TOKENS, "global_batch_size": 3},
    {"batch_num_tokens": 20, "global_batch_size": 8, "dp_size": 2},
]
VERLS = ("actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl")


@pytest.fixture(scope="module")
def core_algos():
    found = pytest.importorskip("verl.trainer.ppo.core_algos")
    from rl_estimators.verl import policy_losses

    policy_losses.offer(found)
    return found


@pytest.fixture
def registries(core_algos, monkeypatch):
    """Both registries, to be changed for the length of a test."""
    monkeypatch.setattr(POLICY_LOSSES, "_specs", dict(POLICY_LOSSES._specs))
    monkeypatch.setattr(core_algos, "POLICY_LOSS_REGISTRY", dict(core_algos.POLICY_LOSS_REGISTRY))
    return core_algos


def actor(loss_mode, options=None, **fields):
    """verl's actor configuration; with options, as `settings.apply` prepares it."""
    from verl.workers.config import ActorConfig, PolicyLossConfig

    from rl_estimators.verl.actor_config import PolicyLossConfig as Ours

    theirs = PolicyLossConfig(loss_mode=loss_mode)
    loss = theirs if options is None else Ours(loss_mode=loss_mode, options=options)
    return ActorConfig(
        strategy="fsdp", ppo_micro_batch_size_per_gpu=1, rollout_n=1, policy_loss=loss, **fields
    )


def jagged(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(length, generator=generator, dtype=torch.float64) for length in LENGTHS]


def run(config, rows=ALL, weights=False, **counts):
    """What verl's `ppo_loss` makes of a micro-batch: loss, metrics, and the gradient by every row's output."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    columns = {
        "old_log_probs": numbers(1),
        "advantages": numbers(8),  # with these seeds every branch of the clip is taken
        "response_mask": [torch.tensor(mask) for mask in MASKS],
    }
    if weights:
        columns["rollout_is_weights"] = [n.abs() for n in numbers(4)]
    tensors = {name: jagged([column[row] for row in rows]) for name, column in columns.items()}
    tensors["prompts"] = jagged([torch.zeros(PROMPT, dtype=torch.long)] * len(rows))
    tensors["responses"] = jagged([torch.zeros(LENGTHS[row], dtype=torch.long) for row in rows])
    counts = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, **counts}
    shift = [torch.zeros(PROMPT - 1), torch.zeros(1)]  # a log-probability stands one token before its own
    outputs = [torch.cat([shift[0], numbers(3)[row], shift[1]]).requires_grad_() for row in rows]
    model_output = {"log_probs": torch.nested.as_nested_tensor(outputs, layout=torch.jagged)}
    loss, metrics = ppo_loss(config, model_output, tu.get_tensordict(tensors, counts))
    loss.backward()
    return loss.item(), metrics, [output.grad for output in outputs]


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-7)


def test_registered_under_both_names(core_algos):
    registry = core_algos.POLICY_LOSS_REGISTRY
    assert registry["ppo_clip"] is registry["rle_ppo_clip"]
    for name in rl_estimators.list_policy_loss():
        assert registry[f"rle_{name}"].__module__ == "rl_estimators.verl.policy_losses"
    assert registry["vanilla"].__module__ == core_algos.__name__


def test_offering_twice_changes_nothing(core_algos):
    from rl_estimators.verl import policy_losses

    before = dict(core_algos.POLICY_LOSS_REGISTRY)
    policy_losses.offer(core_algos)
    assert before == core_algos.POLICY_LOSS_REGISTRY


@pytest.mark.parametrize("loss_mode", ["rle_ppo_clip", "ppo_clip"])
@pytest.mark.parametrize("counts", COUNTS, ids=["local", "global", "two ranks"])
@pytest.mark.parametrize("mode", MODES)
def test_without_options_it_is_verls_vanilla(core_algos, loss_mode, counts, mode):
    """Value, gradient and metrics, with verl's defaults: 0.2, 0.2 and a dual clip at 3."""
    wanted = run(actor("vanilla", loss_agg_mode=mode), **counts)
    actual = run(actor(loss_mode, loss_agg_mode=mode), **counts)
    close(actual[0], wanted[0])
    close(actual[2], wanted[2])
    for name in VERLS:
        close(actual[1][name].aggregate(), wanted[1][name].aggregate())
        assert actual[1][name].aggregation == wanted[1][name].aggregation
    assert wanted[1]["actor/pg_clipfrac_lower"].aggregate() > 0
    assert {*actual[1]} - {*wanted[1]} == {"actor/rl_estimators/policy_loss/ppo_clip"}
    assert actual[1]["actor/rl_estimators/policy_loss/ppo_clip"].aggregate() == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3},
        {"clip_ratio": 0.4, "clip_ratio_low": None, "clip_ratio_high": None},  # verl then takes clip_ratio
        {"clip_ratio_c": 1.5},
    ],
)
def test_verls_own_clip_ratios_hold(core_algos, fields):
    wanted, actual = run(actor("vanilla", **fields)), run(actor("rle_ppo_clip", **fields))
    close(actual[0], wanted[0])
    close(actual[2], wanted[2])
    assert actual[0] != pytest.approx(run(actor("vanilla"))[0])


def test_options_win_over_verls_clip_ratios(core_algos):
    own = {"clip_ratio_low": 0.1, "clip_ratio_c": 1.5}
    wanted = run(actor("vanilla", clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1.5))
    close(run(actor("rle_ppo_clip", own, clip_ratio_high=0.3))[0], wanted[0])


def test_null_switches_the_dual_clip_off(core_algos):
    _, metrics, _ = run(actor("rle_ppo_clip", {"clip_ratio_c": None}))
    assert metrics["actor/pg_clipfrac_lower"].aggregate() == 0
    wanted = run(actor("vanilla", clip_ratio_c=1e9))
    close(run(actor("rle_ppo_clip", {"clip_ratio_c": None}))[0], wanted[0])


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_add_up(core_algos, mode):
    config = partial(actor, "rle_ppo_clip", loss_agg_mode=mode, loss_scale_factor=5)
    counts = {"batch_num_tokens": TOKENS, "global_batch_size": 3}
    whole, _, slopes = run(config(), **counts)
    parts = [run(config(), rows, **counts) for rows in ([0, 1], [2], [3])]
    close(sum(loss for loss, *_ in parts), whole)
    close([slope for *_, part in parts for slope in part], slopes)


def test_importance_weights_of_the_rollout(core_algos):
    wanted = run(actor("vanilla"), weights=True)
    actual = run(actor("rle_ppo_clip"), weights=True)
    close(actual[0], wanted[0])
    close(actual[2], wanted[2])
    assert actual[0] != pytest.approx(run(actor("rle_ppo_clip"))[0])


def test_a_loss_that_would_leave_the_weights_out(registries):
    @rl_estimators.register_policy_loss("unweighted")
    def unweighted(log_prob, response_mask, loss_agg_mode="token-mean", global_batch_info=None):
        return (log_prob * response_mask).sum(), {}

    run(actor("rle_unweighted"))
    message = (
        r"unweighted has no parameter rollout_is_weights, so it would leave out the weights that "
        r"algorithm.rollout_correction.rollout_is asks for; set that to null or choose another policy loss"
    )
    with pytest.raises(InputError, match=message):
        run(actor("rle_unweighted"), weights=True)


def test_the_kl_loss_is_added_by_verl(core_algos):
    """Ours is one term of what verl's actor minimises: entropy bonus and KL penalty stay with verl."""
    loss, metrics, _ = run(actor("rle_ppo_clip"))
    assert metrics["actor/pg_loss"].aggregate() == pytest.approx(loss)


def test_a_loss_in_verls_style(registries):
    """Written for `register_policy_loss` of verl's, registered with us, with options and metrics of its own."""

    @rl_estimators.register_policy_loss("verl_style")
    def verl_style(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None,
                   rollout_is_weights=None, factor=1.0):  # fmt: skip
        from verl.trainer.ppo.core_algos import agg_loss

        counts = config.global_batch_info
        loss = agg_loss(-log_prob * advantages * factor, response_mask, loss_agg_mode, **counts)
        return loss, {"actor/mine": 2, "other": log_prob.sum()}

    loss, metrics, _ = run(actor("verl_style", {"factor": 3.0}))
    wanted, *_ = run(actor("gpg"))
    close(loss, 3 * wanted)
    assert metrics["actor/mine"].aggregate() == 2
    assert "actor/rl_estimators/other" in metrics


def test_one_registered_later_is_offered_at_once(registries):
    @rl_estimators.register_policy_loss("dro")
    def dro(log_prob, response_mask, **kwargs):
        return (log_prob * response_mask).sum() * kwargs["dp"], {}

    assert registries.POLICY_LOSS_REGISTRY["dro"].__module__ == registries.__name__  # verl's stays verl's
    close(run(actor("rle_dro", {"dp": 2}))[0], 2 * run(actor("rle_dro", {"dp": 1}))[0])


def test_the_prefixed_name_is_ours_alone(registries):
    def theirs():
        raise RuntimeError

    registries.register_policy_loss("rle_mine")(theirs)
    message = r"verl's policy loss 'rle_mine' is already .*:.*theirs; register 'mine' under another name"
    with pytest.raises(DuplicateNameError, match=message):

        @rl_estimators.register_policy_loss("mine")
        def mine(log_prob):
            raise RuntimeError

    assert registries.POLICY_LOSS_REGISTRY["rle_mine"] is theirs


def test_whose_loss_a_mode_is(core_algos):
    from rl_estimators.verl.policy_losses import name_of

    assert [name_of(mode) for mode in ("ppo_clip", "rle_ppo_clip", "vanilla", "dro", "unheard_of")] == [
        *("ppo_clip", "ppo_clip"),
        *(None, None, None),
    ]


def test_without_a_configuration_it_is_the_plain_loss(core_algos):
    tensors = {name: torch.randn(2, 3) for name in ("old_log_prob", "log_prob", "advantages")}
    tensors["response_mask"] = torch.ones(2, 3)
    loss, _ = core_algos.get_policy_loss_fn("rle_ppo_clip")(**tensors)
    assert loss == rl_estimators.policy_loss("ppo_clip", **tensors)[0]


def test_it_takes_what_verl_passes(core_algos):
    """The parameters of `vanilla`, by name and with the same defaults."""

    def bare(function):
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    registry = core_algos.POLICY_LOSS_REGISTRY
    assert bare(registry["rle_ppo_clip"]) == bare(registry["vanilla"])
