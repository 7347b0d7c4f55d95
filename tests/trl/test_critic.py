"""The separate critic: where it starts, what it learns from a micro-batch, and that the policy does not notice."""

import itertools
import math

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import critics  # noqa: E402
import huggingface_hub  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import (  # noqa: E402
    Adafactor,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    TrainerCallback,
)

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.trl import EstimatorTrainer  # noqa: E402
from rl_estimators.trl.critic.base import before_and_after  # noqa: E402
from rl_estimators.trl.critic.metrics import TokenMeans, explained  # noqa: E402
from rl_estimators.trl.critic.value_model import ValueHead, switch_off_dropout, value_model  # noqa: E402


class Positions(nn.Module):
    """A value model that says where it stands: the value of position p is p, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, input_ids, attention_mask):
        return torch.arange(input_ids.shape[1]).expand(input_ids.shape) * self.weight


# ---------------------------------------------------------------------------------------------------------- pieces


def test_a_value_stands_before_its_token():
    """Prompt of 3, completions of 4, 2 and 1 tokens: the first token is at position 3, so its value is at 2."""
    values = torch.arange(7.0).expand(3, 7)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    before, after = before_and_after(values, {"completion_mask": mask})
    assert before.tolist() == [[2, 3, 4, 5]] * 3
    assert after.tolist() == [6, 4, 3]  # at positions 6, 4 and 3 stand the last tokens


def test_explained_variance_by_hand():
    """Returns 0, 2, 4 (variance 8/3), values 0, 2, 1: differences 0, 0, 3 (variance 2): 1 - 2 / (8/3) = 1/4."""
    returns, values = torch.tensor([[0.0, 2.0], [4.0, math.nan]]), torch.tensor([[0.0, 2.0], [1.0, math.nan]])
    found = explained(values, returns, torch.tensor([[True, True], [True, False]]))
    assert found == pytest.approx({"explained_variance": 0.25, "values_mean": 1.0, "returns_mean": 2.0})


def test_equal_returns_explain_nothing():
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = explained(torch.rand(1, 3), torch.ones(1, 3), mask)
    assert set(found) == {"values_mean", "returns_mean"}
    assert explained(torch.rand(1, 3), torch.ones(1, 3), ~mask) == {}


def test_means_are_over_tokens_and_losses_add_up():
    class Alone:
        def reduce(self, tensor, reduction):
            return tensor

    means = TokenMeans(Alone())
    means.add(torch.tensor(0.5), {"share": torch.tensor(1.0)}, torch.ones(1, 3))
    means.add(torch.tensor(0.25), {"share": torch.tensor(0.0)}, torch.tensor([[1, 0, 0]]))
    assert means.pop() == {"value_loss": 0.75, "share": 0.75}
    assert means.pop() == {}


def test_the_head_is_exact_under_autocast():
    head = ValueHead(2)
    assert head(torch.randn(1, 3, 2)).tolist() == [[0.0] * 3]
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 1 / 1024]]))
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.ones(1, 1, 2)).item() == 1 + 1 / 1024  # bf16 would have 1


def test_dropout_is_switched_off():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_dropout, self.dropout = 0.3, nn.Dropout(0.2)

    layer = Layer()
    switch_off_dropout(layer)
    assert (layer.attention_dropout, layer.dropout.p) == (0.0, 0.0)


# ----------------------------------------------------------------------------------------------------- where it starts


def test_it_starts_at_zero_with_the_policys_weights(tiny, tmp_path):
    trainer = critics.make(tmp_path, tiny)
    before, after = trainer.critic.values(critics.batch())
    assert before.shape == (5, 4)
    assert not before.any()
    assert not after.any()
    own, policy = trainer.critic.module.backbone, trainer.model.model
    assert own.state_dict().keys() == policy.state_dict().keys()
    for (name, mine), theirs in zip(own.named_parameters(), policy.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.data_ptr() != theirs.data_ptr(), name
    hidden = policy(critics.batch()["prompt_ids"])[0]
    assert torch.equal(own(critics.batch()["prompt_ids"])[0], hidden)  # buffers too


def test_it_copies_a_policy_that_is_nowhere_on_disk(tiny, tmp_path):
    model = critics.policy(tiny, dtype=torch.bfloat16)
    model.config._name_or_path = model.name_or_path = ""
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    trainer = critics.make(tmp_path, model)
    found = trainer.critic.module.backbone
    assert torch.equal(found.norm.weight, model.model.norm.weight.float())
    assert {p.dtype for p in found.parameters()} == {torch.float32}


def test_a_lora_policy_has_a_full_critic(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["norm"])
    trainer = critics.make(tmp_path, tiny, peft_config=lora)
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).model.state_dict()
    own = trainer.critic.module.backbone.state_dict()
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in plain)
    assert all(p.requires_grad for p in trainer.critic.module.parameters())


def test_it_starts_from_a_path_and_from_a_checkpoints_critic(tiny, tmp_path):
    trainer = critics.make(tmp_path, tiny, critic_model_name_or_path=str(tiny))
    critics.randomised(trainer.critic.module)
    expected = trainer.critic.values(critics.batch())[0]
    assert expected.abs().max() > 0.01
    trainer.critic.save(tmp_path / "critic", optimizer=False)
    again = critics.make(tmp_path, tiny, critic_model_name_or_path=str(tmp_path / "critic"))
    assert torch.equal(again.critic.values(critics.batch())[0], expected)


def head_of_others(folder, *names):
    """A critic's folder, its head stored under other names."""
    file = folder / "critic" / "model.safetensors"
    weights = load_file(file)
    head = {name: weights.pop(f"v_head.{own}") for name, own in zip(names, ("weight", "bias"), strict=True)}
    save_file(weights | head, file, metadata={"format": "pt"})
    return str(folder / "critic")


def test_a_head_that_cannot_be_read_is_not_lost(tiny, tmp_path):
    critics.make(tmp_path, tiny).critic.save(tmp_path / "critic", optimizer=False)
    name = head_of_others(tmp_path, "v_head.summary.weight", "v_head.summary.bias")
    with pytest.raises(
        InputError,
        match=r"critic' has a value head \(v_head.summary.bias, v_head.summary.weight\) .*v_head.weight \(1, 64\)",
    ):
        critics.make(tmp_path, tiny, critic_model_name_or_path=name)


def test_a_critic_on_the_hub_keeps_its_head(tiny, tmp_path, monkeypatch):
    """A repository is a folder in the Hub's cache, as a download leaves it."""
    trainer = critics.make(tmp_path, tiny)
    critics.randomised(trainer.critic.module)
    snapshot = tmp_path / "hub" / "models--someone--critic" / "snapshots" / "0123abc"
    trainer.critic.save(snapshot, optimizer=False)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    for owner in (transformers.utils.hub, huggingface_hub.constants):
        for constant in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
            if hasattr(owner, constant):
                monkeypatch.setattr(owner, constant, str(tmp_path / "hub"))
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # the environment may be read too late
    again = critics.make(tmp_path, tiny, critic_model_name_or_path="someone/critic")
    assert torch.equal(again.critic.module.v_head.weight, trainer.critic.module.v_head.weight)
    assert again.critic.module.v_head.weight.any()


def test_a_path_of_another_vocabulary_is_refused(tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"critic_model_name_or_path='.*other' knows 100 tokens and the policy writes 258"
    ):
        critics.make(tmp_path, tiny, critic_model_name_or_path=str(tmp_path / "other"))


def test_making_it_draws_no_random_numbers(tiny, tmp_path):
    states = []
    runs = {critics.PPOTrainer: critics.config(tmp_path), EstimatorTrainer: critics.without(tmp_path)}
    for cls, config in runs.items():
        toy.make(cls, config, tiny)
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


def test_a_quantized_policy_cannot_be_copied(tiny, tmp_path):
    trainer = critics.make(tmp_path, tiny)
    trainer.model.model.norm.weight = nn.Parameter(torch.ones(64, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(
        InputError, match=r"the policy is quantized.*critic_model_name_or_path.*critic='shared'"
    ):
        value_model(trainer)


# ---------------------------------------------------------------------------------------------------- what it learns


def learn(trainer, found, rows):
    """Learn from a batch in micro-batches, and leave the gradient."""
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = len(rows)
    trainer.critic.updates.optimizer.zero_grad(set_to_none=True)
    for number, some in enumerate(rows, 1):
        trainer.accelerator.gradient_state._set_sync_gradients(number == len(rows))
        loss = torch.tensor(7.0)
        assert trainer.critic.learn(critics.part(found, some), loss) is loss
    return critics.gradients(trainer.critic.module)


@pytest.mark.parametrize("size", [1, 2, None])
@pytest.mark.parametrize("rows", [[slice(0, 8)], [slice(0, 3), slice(3, 8)]], ids=["whole", "accumulated"])
def test_its_gradient_is_that_of_the_batch(tiny, tmp_path, size, rows):
    trainer = critics.make(tmp_path, tiny, vf_coef=0.5, cliprange_value=0.2, critic_micro_batch_size=size)
    module, found = critics.randomised(trainer.critic.module), critics.batch(8)
    twin = critics.twin(module)
    loss = critics.reference_loss(critics.reference_values(twin, found), found, 0.2)
    (0.5 * loss).backward()
    expected = critics.gradients(twin)
    gradient = learn(trainer, found, rows)
    assert gradient.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(gradient[name], tensor, rtol=1e-4, atol=1e-6)
    trainer.critic.step()
    assert trainer._metrics["train"]["critic/value_loss"] == [pytest.approx(loss.item(), rel=1e-5)]
    norm = math.sqrt(sum(tensor.square().sum().item() for tensor in expected.values()))
    assert trainer._metrics["train"]["critic/grad_norm"] == [pytest.approx(norm, rel=1e-4)]


def test_it_steps_as_adamw_does(tiny, tmp_path):
    """First step of AdamW: p (1 - lr wd) - lr g / (|g| + eps), with the gradient clipped to norm .01."""
    fields = {"max_grad_norm": 0.01, "weight_decay": 0.1, "adam_epsilon": 1e-3}
    trainer = critics.make(tmp_path, tiny, critic_learning_rate=0.01, **fields)
    module, found = critics.randomised(trainer.critic.module), critics.batch()
    trainer.critic.create_scheduler(10)
    old = {name: p.detach().clone() for name, p in module.named_parameters()}
    gradient = learn(trainer, found, [slice(0, 5)])
    norm = math.sqrt(sum(tensor.square().sum().item() for tensor in gradient.values()))
    assert norm > 0.01
    trainer.critic.step()
    for name, p in module.named_parameters():
        g = gradient[name] * 0.01 / norm
        decay = 0.0 if "bias" in name or "norm" in name else 0.1
        torch.testing.assert_close(
            p, old[name] * (1 - 0.01 * decay) - 0.01 * g / (g.abs() + 1e-3), rtol=1e-4, atol=1e-6
        )
    assert not critics.gradients(module)


@pytest.mark.parametrize(
    ("optim", "kind"),
    [
        ("adamw_torch", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
        ("rmsprop", torch.optim.RMSprop),
        ("adafactor", Adafactor),
    ],
)
def test_it_has_the_policys_kind_of_optimizer(tiny, tmp_path, optim, kind):
    run = toy.train(critics.PPOTrainer, critics.config(tmp_path, optim=optim, max_steps=1), tiny)
    updates = run.trainer.critic.updates
    assert type(updates.optimizer) is kind
    assert type(run.trainer.optimizer.optimizer) is kind
    assert {group["lr"] for group in updates.optimizer.param_groups} == {3e-3}
    assert run.trainer.critic.module.v_head.weight.abs().max() > 0


def test_it_steps_as_sgd_does(tiny, tmp_path):
    """First step of SGD with weight decay, which optim_args' momentum leaves alone: p - lr (g + wd p)."""
    fields = {"optim": "sgd", "optim_args": "momentum=0.5", "weight_decay": 0.1, "max_grad_norm": 0.0}
    trainer = critics.make(tmp_path, tiny, critic_learning_rate=0.01, **fields)
    module, found = critics.randomised(trainer.critic.module), critics.batch()
    old = {name: p.detach().clone() for name, p in module.named_parameters()}
    gradient = learn(trainer, found, [slice(0, 5)])
    trainer.critic.step()
    assert {group["momentum"] for group in trainer.critic.updates.optimizer.param_groups} == {0.5}
    for name, p in module.named_parameters():
        decay = 0.0 if "bias" in name or "norm" in name else 0.1
        expected = old[name] - 0.01 * (gradient[name] + decay * old[name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-8)


def test_its_learning_rate_follows_the_policys_schedule(tiny, tmp_path):
    fields = {"lr_scheduler_type": "cosine", "warmup_steps": 3, "max_steps": 6, "learning_rate": 1e-4}
    run = toy.train(critics.PPOTrainer, critics.config(tmp_path, critic_learning_rate=1e-3, **fields), tiny)
    assert run.column("critic/lr") == pytest.approx(
        [10 * rate for rate in run.column("learning_rate")], rel=1e-6
    )
    assert len(set(run.column("critic/lr"))) > 3


def test_the_rollouts_values_do_not_depend_on_chunks_or_dropout(tiny, tmp_path):
    found = critics.batch()
    model = critics.policy(tiny, dtype=torch.float32, attention_dropout=0.5)
    values = []
    for size in (1, 5):
        trainer = critics.make(tmp_path, model, critic_micro_batch_size=size)
        module = critics.randomised(trainer.critic.module).train()
        values += [trainer.critic.values(found)[0], trainer.critic.values(found)[0]]
        state = torch.random.get_rng_state()
        learn(trainer, found, [slice(0, 5)])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(values[0], values[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        values[0], critics.reference_values(module.eval(), found), rtol=1e-4, atol=1e-5
    )


def test_gradient_checkpointing_changes_nothing(tiny, tmp_path):
    found, gradients = critics.batch(), []
    for checkpointing in (False, True):
        trainer = critics.make(tmp_path, tiny, gradient_checkpointing=checkpointing)
        assert trainer.critic.module.backbone.is_gradient_checkpointing is checkpointing
        critics.randomised(trainer.critic.module)
        gradients.append(learn(trainer, found, [slice(0, 5)]))
        assert trainer.critic.module.training is checkpointing
    for name, tensor in gradients[0].items():
        assert torch.equal(tensor, gradients[1][name]), name


def test_mixed_precision_keeps_the_weights_in_fp32(tiny, tmp_path):
    run = toy.train(critics.PPOTrainer, critics.config(tmp_path, bf16=True, max_steps=2), tiny)
    assert {p.dtype for p in run.trainer.critic.module.parameters()} == {torch.float32}
    seen = []
    layer = run.trainer.critic.module.backbone.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    before, _ = run.trainer.critic.values(critics.batch())
    assert seen == [torch.bfloat16]
    assert before.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ a model of the user's


def test_a_value_model_of_yours(tiny, tmp_path):
    trainer = critics.make(tmp_path, tiny, Positions())
    before, after = trainer.critic.values(critics.batch())
    assert before[0].tolist() == [2, 3, 4, 5]
    assert after.tolist() == [6, 4, 5, 3, 6]  # completions of 4, 2, 3, 1 and 4 tokens
    trainer.train()
    assert trainer.critic.module.weight.item() != 1.0


def test_a_token_classifier_is_a_value_model(tiny, tmp_path):
    model = AutoModelForTokenClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    trainer = critics.make(tmp_path, tiny, model, max_steps=1)
    found = critics.batch()
    ids = torch.cat([found["prompt_ids"], found["completion_ids"]], 1)
    mask = torch.cat([found["prompt_mask"], found["completion_mask"]], 1)
    expected = model.eval()(input_ids=ids, attention_mask=mask).logits[:, 2:6, 0]
    torch.testing.assert_close(trainer.critic.values(found)[0], expected)
    trainer.train()
    assert trainer.state.global_step == 1


class Wide(Positions):
    def forward(self, input_ids, attention_mask):
        return self.weight.expand(*input_ids.shape, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Wide,
            r"value_model \(Wide\) returned a tensor \(5, 7, 2\) for ids of shape \(5, 7\); expected a tensor of",
        ),
        (
            "causal",
            r"Qwen2ForCausalLM\) returned .* with logits \(5, 7, 258\) .* whose logits are \(5, 7, 1\)",
        ),
    ],
)
def test_a_wrong_shape_is_refused(tiny, tmp_path, model, message):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32) if model == "causal" else model()
    trainer = critics.make(tmp_path, tiny, model)
    with pytest.raises(InputError, match=message):
        trainer.critic.values(critics.batch())


def test_a_value_model_of_the_policys_parameters_is_refused(tiny, tmp_path):
    policy = critics.policy(tiny, dtype=torch.float32)
    with pytest.raises(
        InputError, match=r"shares \d+ parameters with the policy \(embed_tokens.weight, .*critic='shared'"
    ):
        critics.make(tmp_path, policy, policy.model)


def test_a_value_model_without_anything_to_train_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        critics.make(tmp_path, tiny, Positions().requires_grad_(False))
    with pytest.raises(InputError, match=r"value_model is a str, expected a torch\.nn\.Module"):
        critics.make(tmp_path, tiny, "gpt2")


# -------------------------------------------------------------------------------------------- the policy does not notice


def test_the_policy_samples_what_it_would_without_a_critic(tiny, tmp_path):
    """With a learning rate of 0 two runs differ only in what they sample; and the critic does learn meanwhile."""
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "max_steps": 6, "gradient_accumulation_steps": 2}
    still |= {"steps_per_generation": 4, "num_iterations": 2}
    ours = toy.train(critics.PPOTrainer, critics.config(tmp_path, critic_micro_batch_size=3, **still), tiny)
    plain = toy.train(EstimatorTrainer, critics.without(tmp_path, **still), tiny)
    for name in ("reward", "completions/mean_length", "entropy"):
        assert ours.column(name) == plain.column(name)
    assert len(set(ours.column("reward"))) > 1
    assert ours.column("critic/values_mean")[-1] != 0


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_policy_waits_while_the_critic_warms_up(tiny, tmp_path, critic):
    fields = {"max_steps": 4, "critic_warmup_steps": 3, "weight_decay": 0.1, "gradient_accumulation_steps": 2}
    trainer = critics.make(tmp_path, tiny, critic=critic, **fields)
    first, seen = toy.weights(trainer), []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            head = trainer.critic.module.state_dict()
            seen.append(
                (toy.weights(trainer), len(trainer.optimizer.state), {n: p.clone() for n, p in head.items()})
            )

    trainer.add_callback(Watch())
    trainer.train()
    for weights, states, _ in seen[:3]:
        assert all(torch.equal(weights[name], first[name]) for name in first)
        assert states == 0
    weights, states, _ = seen[3]
    assert states > 0
    assert any(not torch.equal(weights[name], first[name]) for name in first)
    heads = [head for _, _, head in seen]
    for old, new in itertools.pairwise(heads):
        assert any(not torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_what_is_logged(tiny, tmp_path, critic):
    config = critics.config(tmp_path, max_steps=2, critic=critic, eval_strategy="steps", eval_steps=2)
    run = toy.train(critics.PPOTrainer, config, tiny)
    rollout = {"explained_variance", "values_mean", "returns_mean"}
    learnt = {"value_loss", "vf_clipfrac", "vpred_mean", "grad_norm", "lr", "update_skipped"}
    found = {name for row in run.logs for name in row if "critic/" in name}
    assert found == {f"critic/{name}" for name in rollout | learnt} | {
        f"eval_critic/{name}" for name in rollout
    }
    assert run.column("critic/values_mean")[0] == 0.0
    assert run.column("critic/explained_variance")[0] == 0.0
    assert run.column("eval_critic/values_mean")[0] != 0.0
