"""Losses in one reading of the batch: what autograd finds, in blocks as in one, and 4 bytes a token kept."""

import pytest
import torch
from batches import NAN, batch

import rl_estimators
from rl_estimators.backends import losses
from rl_estimators.backends.losses import loss_and_means
from rl_estimators.errors import InputError
from rl_estimators.policy_losses import covariance, ppo_clip
from rl_estimators.policy_losses.clip_cov import _draw, _draw_blindly
from rl_estimators.policy_losses.covariance import by_rank, by_threshold
from rl_estimators.value_losses import clipped


@pytest.mark.parametrize("bound", [None, 3.0])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_policy_loss_is_the_plain_one(bound, mode, weighted, dtype):
    draw = torch.Generator().manual_seed(0)
    old, step, gain, weights = (torch.randn(6, 50, generator=draw) for _ in range(4))
    mask = torch.rand(6, 50, generator=draw) > 0.3
    new = old + step
    new[0, :5] += 40  # beyond where the log-ratio is clamped
    new, old, gain = (x.masked_fill(~mask, NAN).to(dtype) for x in (new, old, gain))
    found = []
    for fused in (True, False):
        leaf = new.clone().requires_grad_()
        loss, metrics = ppo_clip(
            old, leaf, gain, mask, mode, clip_ratio_c=bound, fused=fused,
            rollout_is_weights=weights.abs() if weighted else None,
        )  # fmt: skip
        (3 * loss).backward()
        found.append((loss.detach(), leaf.grad, metrics))
    (loss, grad, metrics), (plain, wanted, others) = found
    largest = wanted.abs().max()
    torch.testing.assert_close(loss, plain)
    assert grad.dtype == dtype
    assert (grad - wanted).abs().max() <= (1e-6 if dtype == torch.float32 else 1e-2) * largest
    assert (grad[~mask] == 0).all()
    for name in others:
        torch.testing.assert_close(metrics[name], others[name])


@pytest.mark.parametrize("fused", [True, False])
def test_a_dual_clip_at_1_leaves_the_first_update_alone(fused):
    """On policy the ratio is 1, so the loss -A is as large as the bound -c A, and not larger: its slope is -A."""
    old, gain, mask = torch.zeros(1, 2), torch.tensor([[-1.0, 2.0]]), torch.ones(1, 2)
    leaf = old.clone().requires_grad_()
    loss, metrics = ppo_clip(old, leaf, gain, mask, "token-sum", clip_ratio_c=1.0, fused=fused)
    loss.backward()
    assert leaf.grad.tolist() == [[1.0, -2.0]]
    assert metrics["pg_clipfrac_lower"] == 0


@pytest.mark.parametrize("name", [*rl_estimators.list_policy_loss(), "clipped", "mse", "huber"])
def test_a_loss_that_is_differentiated_twice_says_that_it_cannot(name):
    """Its slopes would count as constants, and a gradient penalty would come out wrong without a word."""
    new, old, gain, mask = *torch.randn(3, 2, 4).unbind(0), torch.ones(2, 4)
    leaf = new.clone().requires_grad_()
    if name in rl_estimators.list_value_loss():
        loss, _ = rl_estimators.value_loss(name, vpreds=leaf, values=old, returns=gain, response_mask=mask)
    else:
        given = {"old_log_prob": old, "log_prob": leaf, "advantages": gain, "response_mask": mask}
        loss, _ = rl_estimators.policy_loss(name, **given)
    with pytest.raises(
        InputError, match="differentiated with create_graph=True, but it can be differentiated once"
    ):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_the_plain_policy_loss_can_be_differentiated_twice():
    """L = -A exp(x - x_old) within the clip, and so is its second derivative."""
    old, gain = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    leaf = torch.full((1, 2), 0.1, dtype=torch.float64, requires_grad=True)
    loss, _ = ppo_clip(old, leaf, gain, torch.ones(1, 2), "token-sum", fused=False)
    (slopes,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (second,) = torch.autograd.grad(slopes.sum(), leaf)
    torch.testing.assert_close(second, -gain * torch.tensor(0.1, dtype=torch.float64).exp())


def test_the_value_loss_has_the_gradient_that_autograd_finds():
    draw = torch.Generator().manual_seed(0)
    new, old, target = (torch.randn(6, 50, generator=draw) for _ in range(3))
    mask = torch.rand(6, 50, generator=draw) > 0.3
    leaf, other = new.clone().requires_grad_(), new.clone().requires_grad_()
    clipped(leaf, old, target, mask)[0].backward()
    near = torch.clamp(other, old - 0.5, old + 0.5)
    worse = torch.maximum((other - target) ** 2, (near - target) ** 2)
    (0.5 * worse[mask].mean()).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-6, atol=1e-7)


def test_losses_keep_4_bytes_a_token_for_the_backward_pass():
    x, mask = torch.randn(4, 5, 8, 1000).unbind(0), torch.ones(5, 8, 1000).bool().flatten(0, 1)
    a, b, c, leaf = (y.flatten(0, 1).clone() for y in x)
    leaf.requires_grad_()
    runs = [lambda: clipped(leaf, a, c, mask)[0]]
    for name in rl_estimators.list_policy_loss():
        runs.append(
            lambda name=name: rl_estimators.policy_loss(
                name, old_log_prob=a, log_prob=leaf, advantages=b, response_mask=mask
            )[0]
        )
    for run in runs:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda y, saved=saved: saved.append(y) or y, lambda y: y
        ):
            run()
        assert sum(y.numel() * y.element_size() for y in saved) <= 4 * mask.numel() + 1000


@pytest.mark.parametrize("name", rl_estimators.list_policy_loss())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_policy_losses_give_the_same_in_blocks(monkeypatch, name, dtype):
    """Loss, metrics and gradient over one block or five, to rounding."""
    old, gain, mask = batch(9, 37, holes=True, dtype=dtype)
    new = (old.nan_to_num(0.0) + torch.randn(9, 37).to(dtype) / 4).masked_fill(~mask, NAN)

    def found(rows_in_a_block):
        for module in (losses, covariance):
            monkeypatch.setattr(module, "block_elements", lambda x: rows_in_a_block * 37)
        given = {"old_log_prob": old, "log_prob": new.clone().requires_grad_(), "advantages": gain}
        chosen = {"generator": torch.Generator().manual_seed(1)} if name == "clip_cov" else {}
        loss, metrics = rl_estimators.policy_loss(name, **given, response_mask=mask, **chosen)
        loss.backward()
        return [loss.detach(), given["log_prob"].grad, *metrics.values()]

    for one, other in zip(found(18), found(4), strict=True):  # a loss takes half of that
        torch.testing.assert_close(one, other)


def test_a_device_s_batch_is_one_block():
    """In two, all of a loss's operations would be launched twice."""
    calls, x = [], torch.empty(6, 50, device="meta")

    def term(valid, new, old):
        calls.append(len(valid))
        return new, old

    loss_and_means(term, lambda number, tokens: (None, 1), x, x > 0, x)
    assert calls == [6]


@pytest.mark.parametrize("number", [0, 1, 7, 20, 64, 99])
def test_the_highest_scores_with_and_without_a_look(number):
    """Scores of five values, so that most tie: of equals the earlier, as a stable sort has it."""
    scores = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(0)).float()
    order = sorted(range(64), key=lambda place: (-scores[place].item(), place))
    wanted = [place in order[:number] for place in range(64)]
    for top in (by_rank, by_threshold):
        assert top(scores, torch.tensor(float(number))).tolist() == wanted


def test_a_draw_is_the_same_with_and_without_a_look():
    """What a GPU does, computed here; three of the candidates, and all of them when there are fewer than asked for."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 40, generator=draw) > 0.3
    candidates = mask & (torch.rand(6, 40, generator=draw) > 0.8)
    for number in (3, 500):
        both = [
            function(candidates, mask, torch.tensor(number), torch.Generator().manual_seed(1))
            for function in (_draw, _draw_blindly)
        ]
        assert torch.equal(*both)
        assert both[0].sum() == min(number, int(candidates.sum()))
        assert (candidates | ~both[0]).all()
