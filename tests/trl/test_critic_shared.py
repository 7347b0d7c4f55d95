"""The critic as a head on the policy: one backward pass gives what two losses give when they are added by hand."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import critics  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402

from rl_estimators.errors import PatchError  # noqa: E402

COEF, CLIP = 0.5, 0.2


def make(folder, model, **fields):
    fields = {"critic": "shared", "vf_coef": COEF, "cliprange_value": CLIP, **fields}
    trainer = critics.make(folder, model, **fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        trainer.critic.module.weight.copy_(torch.randn(1, 64, generator=generator) * 0.2)
    return trainer


def with_advantages(found):
    return {**found, "advantages": torch.linspace(-1, 1, len(found["completion_ids"]))}


def gradient_of(trainer, micro_batches):
    """The policy's and the head's gradient of our loss, micro-batch by micro-batch."""
    trainer.model.zero_grad(set_to_none=True)
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = len(micro_batches)
    for inputs in micro_batches:
        trainer._compute_loss(trainer.model, inputs).backward()
    return critics.gradients(trainer.model), critics.gradients(trainer.critic.module)


def reference(trainer, found):
    """The gradient of TRL's loss without a critic, plus that of the value loss by its definition."""
    critic, trainer.critic = trainer.critic, None
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    trainer.model.zero_grad(set_to_none=True)
    critic.module.zero_grad(set_to_none=True)
    trainer._compute_loss(trainer.model, found).backward()
    trainer.critic = critic

    def values(input_ids, attention_mask):
        causal = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
        hidden = causal.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return hidden @ critic.module.weight[0] + critic.module.bias

    (COEF * critics.reference_loss(critics.reference_values(values, found), found, CLIP)).backward()
    return critics.gradients(trainer.model), critics.gradients(critic.module)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("policy_loss", ["trl", "ppo_clip"])
@pytest.mark.parametrize("lora", [False, True])
def test_one_backward_pass_for_both(tiny, tmp_path, checkpointing, policy_loss, lora):
    peft = {}
    if lora:
        peft["peft_config"] = pytest.importorskip("peft").LoraConfig(r=2, target_modules="all-linear")
    trainer = make(tmp_path, tiny, gradient_checkpointing=checkpointing, policy_loss=policy_loss, **peft)
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    found = with_advantages(critics.batch(8))
    expected = reference(trainer, found)
    for rows in ([slice(0, 8)], [slice(0, 3), slice(3, 8)]):
        trainer.critic.module.zero_grad(set_to_none=True)
        for ours, theirs in zip(
            gradient_of(trainer, [critics.part(found, some) for some in rows]), expected, strict=True
        ):
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-6)
    assert any(tensor.abs().max() > 1e-3 for tensor in expected[0].values())


def test_values_at_rollout(tiny, tmp_path):
    """In chunks of 8 rows at most, without the policy's dropout, and with its training mode as it was."""
    model = critics.policy(tiny, dtype=torch.float32, attention_dropout=0.5)
    trainer = make(tmp_path, model, per_device_train_batch_size=2)
    found = critics.batch()
    before, after = trainer.critic.values(found)
    assert trainer.model.training
    assert trainer.model.model.layers[0].training
    trainer.model.eval()
    expected = critics.reference_values(
        lambda input_ids, attention_mask: trainer.critic.module(model.model(input_ids, attention_mask)[0]),
        found,
    )
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[[1, 2, 3]], before[[1, 2, 3], [2, 3, 1]], rtol=1e-5, atol=1e-6)


def test_its_optimizer_moves_the_head_alone(tiny, tmp_path):
    trainer = make(tmp_path, tiny, max_steps=2, learning_rate=0.0, weight_decay=0.0)
    weights, head = toy.weights(trainer), trainer.critic.module.weight.detach().clone()
    trainer.train()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in toy.weights(trainer).items())
    assert not torch.equal(trainer.critic.module.weight, head)


def test_a_policy_that_is_run_otherwise_is_an_error(tiny, tmp_path):
    trainer = make(tmp_path, tiny)
    with pytest.raises(
        PatchError, match=r"Qwen2Model on \[\] for a micro-batch of \(5, 7\).*critic='separate'"
    ):
        trainer.critic.learn(critics.batch(), torch.zeros(()))
