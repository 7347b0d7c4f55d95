"""On a CUDA device: the reference's cases within the bounds that hold on the CPU, nothing waits, and one seed is one run.

The bounds are forward errors in working precision (tests/reference/tolerance.py); a GPU adds up in another order, which
they allow for, and has no right to more.
"""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from reference import cases, tolerance
from reference import definitions as ref
from reference import policy_losses as reference_losses
from reference.tensors import arrays_of, as_tensor, epsilon_of, tensors_of, working_dtype

import rl_estimators
from rl_estimators import backends

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
VARIANTS = {
    "gae": [
        {},
        {"whiten": False},
        {"gamma": 0.99, "lam": 0.95},
        {"gamma": 0.99, "lam": 0.95, "whiten": False},
    ],
    "grpo": [{}, {"norm_by_std": False}],
    "reinforce_pp": [{}, {"gamma": 0.99}],
    "remax": [{}, {"gamma": 0.9}],
}
BATCHES = [*cases.SHORT, *cases.LONG_CASES]
LOSSES = sorted(
    {*reference_losses.LOSSES} - {"clip_cov", "kl_cov"}
)  # which choose tokens, by lot or where equals tie
FIELDS = ("old_log_prob", "log_prob", "advantages", "response_mask")


def on(device, inputs):
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


@CUDA
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_reference_s_cases(name, dtype):
    """All cases and options in one test: a thousand tests that are skipped elsewhere would say no more."""
    for case in BATCHES:
        for options in VARIANTS[name]:
            arrays = arrays_of(case, ref.INPUTS[name], dtype)
            wanted = ref.ESTIMATORS[name](**arrays, **options)
            bounds = tolerance.BOUNDS[name](arrays, options, epsilon_of(dtype))
            inputs = on("cuda", tensors_of(case, ref.INPUTS[name], dtype))
            for backend in ("torch", "triton"):  # in fp64 triton's hands on to torch's
                label = f"{case.name}, {options}, {backend}"
                with backends.use_backend(backend):
                    assert backends.choose.name_for(inputs["token_level_rewards"]) == backend, label
                    found = rl_estimators.estimate(name, **inputs, **options)
                for field, bound in zip(("advantages", "returns"), bounds, strict=True):
                    actual = getattr(found, field)
                    assert (actual.device.type, actual.dtype) == ("cuda", working_dtype(dtype)), label
                    actual = actual.double().cpu().numpy()
                    assert (np.abs(actual - getattr(wanted, field)) <= bound).all(), f"{label}: {field}"
                    assert (actual[~case.response_mask] == 0).all(), f"{label}: {field}"


@CUDA
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, dtype):
    """Loss and gradient as on the CPU in float64, to a thousand roundings of the largest number."""
    for case in cases.LOSS_CASES:
        found = {}
        for device, precision in (("cpu", torch.float64), ("cuda", dtype)):
            rounded = {field: as_tensor(getattr(case, field), dtype).to(precision) for field in FIELDS[:3]}
            inputs = on(device, {**rounded, "response_mask": torch.tensor(case.response_mask)})
            leaf = inputs.pop("log_prob").requires_grad_()
            loss, _ = rl_estimators.policy_loss(name, log_prob=leaf, **inputs)
            loss.backward()
            found[device] = (loss.detach().double().cpu(), leaf.grad.double().cpu())
        for actual, wanted in zip(found["cuda"], found["cpu"], strict=True):
            scale = max(1.0, float(wanted.abs().nan_to_num(0, 0, 0).max()))
            torch.testing.assert_close(
                actual, wanted, rtol=0, atol=1000 * epsilon_of(dtype) * scale, equal_nan=True, msg=case.name
            )


def batch(device, rows=16, length=512):
    numbers = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.randint(1, length, (rows, 1), generator=numbers)
    rewards, values = torch.randn(2, rows, length, generator=numbers)
    baselines = torch.randn(rows, generator=numbers)
    return on(
        device,
        {
            "token_level_rewards": rewards,
            "values": values,
            "response_mask": mask,
            "reward_baselines": baselines,
            "index": np.repeat(np.arange(rows // 4), 4),
        },
    )


def estimate(name, inputs, **options):
    return rl_estimators.estimate(name, **{key: inputs[key] for key in ref.INPUTS[name]}, **options)


@contextmanager
def waits_are_errors():
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@CUDA
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", ["gae", "reinforce_pp", "remax"])  # grpo's uids come from the host
def test_the_host_does_not_wait(name, backend):
    """tests/core/test_no_sync.py shows it of every estimator's own code; this of what torch and triton do below it."""
    inputs = batch("cuda")
    with backends.use_backend(backend):
        estimate(name, inputs, gamma=0.99)  # compiles
        with waits_are_errors():
            estimate(name, inputs, gamma=0.99)


@CUDA
def test_waiting_would_be_seen():
    """The check above can fail."""
    with waits_are_errors(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@CUDA
def test_triton_s_kernels_compile_here_without_a_warning():
    """Else torch's kernels stand in, with a warning, and nobody is the wiser."""
    backends.choose._works.cache_clear()
    with warnings.catch_warnings(), backends.use_backend("triton"):
        warnings.simplefilter("error")
        assert backends.choose.name_for(torch.ones(1, device="cuda")) == "triton"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_device_that_is_not_the_current_one(name):
    """Triton launches on the current device, whatever its tensors are on."""
    here, there = (estimate(name, batch(device)) for device in ("cuda:0", "cuda:1"))
    assert there.advantages.device.index == 1
    assert torch.equal(here.advantages.cpu(), there.advantages.cpu())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_inputs_give_the_same_bits(name, device):
    first, *others = (estimate(name, batch(device)) for _ in range(3))
    for other in others:
        assert torch.equal(first.advantages, other.advantages)
        assert torch.equal(first.returns, other.returns)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gives_the_same_bits(name, device):
    """Loss and gradient, twice."""
    inputs, found = batch(device), []
    for _ in range(2):
        leaf = (inputs["values"] * 0.1).detach().requires_grad_()
        loss, _ = rl_estimators.policy_loss(
            name, old_log_prob=torch.zeros_like(leaf), log_prob=leaf,
            advantages=inputs["token_level_rewards"], response_mask=inputs["response_mask"],
        )  # fmt: skip
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
