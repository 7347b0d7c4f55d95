"""Our value losses inside verl's own `workers.utils.losses.value_loss`, on batches as its engines pass them."""

import importlib
import inspect
import pickle
from functools import partial

import pytest
import torch

import rl_estimators
from rl_estimators.aggregation import MODES
from rl_estimators.errors import InputError, PatchError
from rl_estimators.registry import VALUE_LOSSES

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

PROMPT = 2
LENGTHS = (3, 1, 4, 2)  # of the responses
MASKS = ((1, 0, 1), (1,), (1, 1, 1, 1), (0, 0))  # a hole, and a response without any valid token
TOKENS = 2 + 1 + 4
ALL = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def losses():
    return pytest.importorskip("verl.workers.utils.losses")


@pytest.fixture
def ours():
    return importlib.import_module("rl_estimators.verl.value_loss")


def critic(**fields):
    """verl's critic configuration, of which its loss reads three fields."""
    from verl.workers.config import CriticConfig

    return CriticConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=1, **fields)


def jagged(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator, dtype=torch.float64) for length in LENGTHS]


def batch(rows, **counts):
    """The rows as an engine's micro-batch: the critic's output with a gradient, and the data."""
    from verl.utils import tensordict_utils as tu

    columns = {"values": numbers(1), "returns": numbers(2), "response_mask": [torch.tensor(m) for m in MASKS]}
    tensors = {name: jagged([column[row] for row in rows]) for name, column in columns.items()}
    tensors["prompts"] = jagged([torch.zeros(PROMPT, dtype=torch.long)] * len(rows))
    tensors["responses"] = jagged([torch.zeros(LENGTHS[row], dtype=torch.long) for row in rows])
    counts = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, **counts}
    data = tu.get_tensordict(tensors, counts)
    shift = [torch.zeros(PROMPT - 1), torch.zeros(1)]  # a value stands one token before what it judges
    outputs = [torch.cat([shift[0], numbers(3)[row], shift[1]]).requires_grad_() for row in rows]
    return {"values": torch.nested.as_nested_tensor(outputs, layout=torch.jagged)}, data, outputs


def run(function, rows=ALL, **counts):
    """Loss, metrics, and the gradient by every row's output."""
    model_output, data, outputs = batch(rows, **counts)
    loss, metrics = function(model_output=model_output, data=data)
    loss.backward()
    return loss.item(), metrics, [output.grad for output in outputs]


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-7)


def padded(columns, fill=0.0):
    rows = [torch.nn.functional.pad(c.double(), (0, max(LENGTHS) - len(c)), value=fill) for c in columns]
    return torch.stack(rows)


def directly(name, loss_agg_mode="token-mean", **options):
    """The same loss without verl."""
    return rl_estimators.value_loss(
        name,
        vpreds=padded(numbers(3)),
        values=padded(numbers(1)),
        returns=padded(numbers(2)),
        response_mask=padded([torch.tensor(mask) for mask in MASKS]),
        loss_agg_mode=loss_agg_mode,
        **options,
    )


COUNTS = [
    {},
    {"batch_num_tokens": TOKENS, "global_batch_size": 3},
    {"batch_num_tokens": 20, "global_batch_size": 8, "dp_size": 2},
]


@pytest.mark.parametrize("counts", COUNTS, ids=["local", "global", "two ranks"])
@pytest.mark.parametrize("mode", MODES)
def test_clipped_is_verls_own_loss(losses, ours, mode, counts):
    """Value, gradient and metrics, with the range of `critic.cliprange_value`."""
    config = critic(cliprange_value=0.3, loss_agg_mode=mode)
    wanted = run(partial(losses.value_loss, config), **counts)
    actual = run(partial(ours.value_loss, config, name="clipped", own={}), **counts)
    close(actual[0], wanted[0])
    close(actual[2], wanted[2])
    assert actual[1].pop("critic/rl_estimators/value_loss/clipped") == 1.0
    assert actual[1].keys() == wanted[1].keys()
    for name in ("critic/vf_clipfrac", "critic/vpred_mean"):
        close(actual[1][name], wanted[1][name])
    assert actual[1]["critic/vf_loss"].aggregation == wanted[1]["critic/vf_loss"].aggregation
    assert wanted[1]["critic/vf_clipfrac"] > 0


def test_the_named_range_wins(losses, ours):
    config = critic(cliprange_value=0.3)
    wanted = run(partial(losses.value_loss, critic(cliprange_value=5.0)))
    close(run(partial(ours.value_loss, config, name="clipped", own={"cliprange_value": 5.0}))[0], wanted[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "own"), [("mse", {}), ("huber", {"delta": 0.4}), ("clipped", {})])
def test_it_is_the_named_loss(losses, ours, name, own, mode):
    config = critic(loss_agg_mode=mode)
    loss, metrics, _ = run(partial(ours.value_loss, config, name=name, own=own))
    wanted, ours_alone = directly(name, mode, **own)
    close(loss, wanted.item())
    close(metrics["critic/vf_loss"].aggregate(), wanted.item())
    close(metrics["critic/vpred_mean"], ours_alone["vpred_mean"].item())
    assert metrics[f"critic/rl_estimators/value_loss/{name}"] == 1.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["mse", "huber", "clipped"])
def test_micro_batches_add_up(losses, ours, name, mode):
    """Loss and gradient do not depend on how the batch is split, down to a micro-batch without valid tokens."""
    config = critic(loss_agg_mode=mode, loss_scale_factor=5)
    function = partial(ours.value_loss, config, name=name, own={})
    counts = {"batch_num_tokens": TOKENS, "global_batch_size": 3}
    whole, metrics, slopes = run(function, **counts)
    parts = [run(function, rows, **counts) for rows in ([0, 1], [2], [3])]
    close(sum(loss for loss, *_ in parts), whole)
    close([slope for *_, part in parts for slope in part], slopes)
    sums = metrics["critic/vf_loss"].init_list()
    for _, part, _ in parts:
        sums.append(part["critic/vf_loss"])
    close(sums.aggregate(), whole)


def test_metrics_that_verl_does_not_have(losses, ours):
    _, metrics, _ = run(partial(ours.value_loss, critic(), name="huber", own={"delta": 0.4}))
    assert set(metrics) == {
        "critic/vf_loss",
        "critic/vf_clipfrac",
        "critic/vpred_mean",
        "critic/rl_estimators/vf_linear_frac",
        "critic/rl_estimators/value_loss/huber",
    }
    errors = torch.cat([a - b for a, b in zip(numbers(3), numbers(2), strict=True)])
    valid = torch.cat([torch.tensor(mask) for mask in MASKS]).bool()
    close(
        metrics["critic/rl_estimators/vf_linear_frac"],
        (errors[valid].abs() > 0.4).double().mean().item(),
    )
    assert metrics["critic/vf_clipfrac"] == 0.0


def test_verl_reduces_them(losses, ours):
    """Over micro-batches, as its trainers do with what the workers collect."""
    from verl.utils.metric import reduce_metrics
    from verl.utils.py_functional import append_to_dict, rename_dict

    collected = {}
    for rows in ([0, 1], [2, 3]):
        _, metrics, _ = run(partial(ours.value_loss, critic(), name="huber", own={}), rows)
        append_to_dict(collected, metrics)
    reduced = reduce_metrics(rename_dict(collected, "critic/"))
    assert reduced["critic/rl_estimators/value_loss/huber"] == 1.0
    assert 0 <= reduced["critic/rl_estimators/vf_linear_frac"] <= 1


def test_nan_in_the_padding_of_the_targets(losses, ours):
    """The masked token in the hole of the first response; verl's own loss turns NaN."""
    function = partial(ours.value_loss, critic(), name="huber", own={})
    wanted = run(function)
    model_output, data, outputs = batch(ALL)
    data["returns"].values()[1] = float("nan")
    loss, _ = function(model_output=model_output, data=data)
    loss.backward()
    assert loss.item() == wanted[0]
    close([output.grad for output in outputs], wanted[2])


def test_verls_function_is_put_back(losses, ours):
    original = losses.compute_value_loss
    run(partial(ours.value_loss, critic(), name="mse", own={}))
    assert losses.compute_value_loss is original
    with pytest.raises(InputError, match="huber: delta is -1"):
        run(partial(ours.value_loss, critic(), name="huber", own={"delta": -1}))
    assert losses.compute_value_loss is original


def test_a_verl_that_no_longer_calls_it(losses, ours, monkeypatch):
    monkeypatch.setattr(losses, "value_loss", lambda *_: (torch.zeros((), requires_grad=True), {}))
    message = r"losses.value_loss no longer calls compute_value_loss, so rl_estimators.value_loss.name=mse cannot be put"
    with pytest.raises(PatchError, match=message):
        run(partial(ours.value_loss, critic(), name="mse", own={}))


def test_a_verl_that_passes_something_new(losses, ours, monkeypatch):
    def value_loss(config, model_output, data, dp_group):
        zeros = torch.zeros(1, 1)
        return losses.compute_value_loss(zeros, zeros, zeros, zeros, 0.5, num_microbatches=3)

    monkeypatch.setattr(losses, "value_loss", value_loss)
    with pytest.raises(InputError, match="a key of global_batch_info is 'num_microbatches', expected one of"):
        run(partial(ours.value_loss, critic(), name="mse", own={}))


def test_a_loss_of_somebody_else(losses, ours, monkeypatch):
    """With its own metrics, as plain numbers or tensors, and with verl's configuration."""
    monkeypatch.setattr(VALUE_LOSSES, "_specs", dict(VALUE_LOSSES._specs))

    @rl_estimators.register_value_loss("linear")
    def linear(vpreds, response_mask, config, loss_agg_mode="token-mean", global_batch_info=None, factor=1.0):
        total = (vpreds * response_mask).sum() * factor / global_batch_info["batch_num_tokens"]
        return total, {"vf_clipfrac": 0.25, "largest": vpreds.max(), "range": config.cliprange_value}

    function = partial(ours.value_loss, critic(cliprange_value=0.3), name="linear", own={"factor": 2.0})
    loss, metrics, slopes = run(function, [1], batch_num_tokens=4)
    value = numbers(3)[1].item()
    close(loss, value / 2)
    close(slopes[0], torch.tensor([0, 0.5, 0], dtype=slopes[0].dtype))
    assert metrics["critic/vf_clipfrac"] == 0.25
    assert metrics["critic/rl_estimators/range"] == 0.3
    close(metrics["critic/rl_estimators/largest"], value)


class WorkerGroup:
    """Stands in for verl's critic workers: keeps what they would be sent."""

    def set_loss_fn(self, loss_fn):
        self.sent = pickle.dumps(loss_fn)


def test_what_is_sent_to_the_workers(losses, ours):
    """It travels by reference, computes there what was asked for, and knows verl's configuration."""
    from omegaconf import OmegaConf

    config = OmegaConf.create(
        {
            "_target_": "verl.workers.config.CriticConfig",
            "strategy": "fsdp",
            "ppo_micro_batch_size_per_gpu": 1,
            "loss_agg_mode": "token-sum",
        }
    )
    workers = WorkerGroup()
    ours.send(workers, config, "huber", {"delta": 0.4})
    assert b"rl_estimators.verl.value_loss" in workers.sent
    function = pickle.loads(workers.sent)
    assert function.keywords["config"].loss_agg_mode == "token-sum"
    close(run(function)[0], directly("huber", "token-sum", delta=0.4)[0].item())


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        ("verl.workers.utils.losses", "value_loss", ["config", "model_output", "data", "dp_group"]),
        (
            "verl.workers.utils.losses",
            "compute_value_loss",
            [
                *("vpreds", "returns", "values", "response_mask", "cliprange_value", "loss_agg_mode"),
                *("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor"),
            ],
        ),
        ("verl.workers.engine_workers", "TrainingWorker.set_loss_fn", ["self", "loss_fn"]),
        ("verl.workers.engine_workers", "ActorRolloutRefWorker.set_loss_fn", ["self", "loss_fn"]),
        ("verl.utils.config", "omega_conf_to_dataclass", ["config", "dataclass_type"]),
    ],
)
def test_what_we_rely_on_in_verl(losses, module, name, parameters):
    """Where Ray has made an actor of a class before, its methods have parameters of Ray's beside."""
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert [key for key in inspect.signature(found).parameters if not key.startswith("_ray")] == parameters
