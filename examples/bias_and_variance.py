"""Two pictures of what advantage estimators are for, from a language small enough to know the true gradient.

    python examples/bias_and_variance.py     # draws bias_and_variance.png, prints every estimator's numbers

Left, the first flaw of the raw return: its noise grows with the size of the rewards; a baseline takes that away.
Right, the second: one return for all tokens is coarse credit. A critic judges token by token, and lambda
says how far a critic, which is never quite right, is believed. Takes half a minute on one core.

How much each helps depends on the language: try other seeds. Where scores happen to lie around 0 the raw return
is as good as most, and an untypical greedy response makes a poor baseline. Once a constant is added, none is as
bad as no baseline at all.
"""

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.ticker import PercentFormatter

import rl_estimators
from rl_estimators.errors import InputError
from rl_estimators.lab import LanguageMDP, Measurement, measure

GROUP, PROMPTS = 4, 4  # responses to each prompt, prompts in a batch
SHIFT = 5.0  # the constant on all rewards
CRITIC_ERROR = 0.5  # standard deviation; the scores of a prompt's responses have one of about 0.9
LAMBDAS = [i / 20 for i in range(21)]
RESPONSES = 400  # in the batch of the right picture

# what the left picture shows: label, estimator, options
BASELINES: list[tuple[str, str, dict[str, Any]]] = [
    ("none: the raw return", "reinforce", {}),
    ("the batch's mean", "reinforce_pp", {}),
    ("the greedy response", "remax", {}),
    ("the group's other samples", "rloo", {}),
    ("a critic", "mc", {"whiten": False}),
]
RED, BLUE, GREY, INK = "#c0392b", "#2c6fb3", "#9aa5b1", "#22303c"


def language(seed: int, shift: float = 0.0) -> LanguageMDP:
    """Three prompts of unlike difficulty and the 63 responses that each can have, of up to 5 tokens."""
    return LanguageMDP(vocabulary=3, max_length=5, prompts=3, shift=shift, seed=seed)


def sampled(name: str, mdp: LanguageMDP, samples: int, **options: Any) -> Measurement:
    """One estimator on random batches, the same ones for all."""
    sizes = {"group_size": GROUP, "batch_size": PROMPTS, "samples": samples}
    return measure(name, mdp, critic=mdp.critic(CRITIC_ERROR), options=options, **sizes)


def lambda_curve(mdp: LanguageMDP) -> list[Measurement]:
    """GAE with a wrong critic at each lambda, exact: every response is looked at."""
    critic = mdp.critic(CRITIC_ERROR)
    return [measure("gae", mdp, critic=critic, options={"lam": lam, "whiten": False}) for lam in LAMBDAS]


def parts(found: Measurement) -> tuple[float, float]:
    """Squared bias and variance of the mean over RESPONSES responses, in units of the true gradient's square."""
    square = float(found.truth.square().sum())
    return found.relative_bias**2, found.variance / RESPONSES / square


def print_estimators(plain: LanguageMDP, shifted: LanguageMDP, samples: int) -> None:
    print(
        f"Every estimator with its default options, {samples} batches of {PROMPTS} prompts x {GROUP} responses."
    )
    print(
        "turned: tangent of the angle between its mean gradient and the true one; +-: what chance alone makes"
    )
    print("noise: responses until signal and noise are equally strong, with the rewards as they are and with")
    print(
        f"  {SHIFT:g} added to all; length: of its mean gradient along the true one (arbitrary if it whitens)"
    )
    print("grpo_passk (best of n) and maxrl (log of success) have another aim: their angle is no fault;")
    print("  k_step_td (k=1) and length_adaptive_gae (lambda 0 for responses so short) are td here\n")
    print(
        f"{'estimator':24}{'cosine':>8}{'turned':>8}{'+-':>7}{'length':>8}{'noise':>8}{f'noise+{SHIFT:g}':>9}"
    )
    for name in rl_estimators.list_adv_est():
        try:
            here, there = sampled(name, plain, samples), sampled(name, shifted, samples)
        except InputError as error:
            print(f"{name:24}refuses: {textwrap.shorten(str(error).removeprefix(f'{name}: '), 80)}")
            continue
        chance = here.standard_error / float(here.mean.norm())
        print(
            f"{name:24}{here.cosine:8.3f}{here.bias_up_to_scale:8.3f}{chance:7.3f}{here.scale:8.3f}"
            f"{here.noise_to_signal:8.1f}{there.noise_to_signal:9.1f}"
        )


def print_lambdas(curve: list[Measurement]) -> None:
    print(
        f"\ngae with a critic off by {CRITIC_ERROR:g}, exact; mean over {RESPONSES} responses, in units of |g|^2\n"
    )
    print(f"{'lambda':>6}{'bias^2':>9}{'variance':>10}{'error':>8}")
    for lam, found in list(zip(LAMBDAS, curve, strict=True))[::2]:
        bias, variance = parts(found)
        print(f"{lam:6.2f}{bias:9.4f}{variance:10.4f}{bias + variance:8.4f}")


def draw_baselines(axes: Any, plain: LanguageMDP, shifted: LanguageMDP, samples: int) -> None:
    for i, (label, name, options) in enumerate(BASELINES):
        here, there = (sampled(name, mdp, samples, **options).noise_to_signal for mdp in (plain, shifted))
        colour = RED if i == 0 else BLUE
        for noise, offset, alpha in ((here, -0.19, 0.5), (there, 0.19, 1.0)):
            axes.barh(i + offset, noise, 0.34, color=colour, alpha=alpha)
            axes.text(noise + 5, i + offset, f"{noise:.0f}", va="center", color=INK, fontsize=9)
        axes.text(-8, i - 0.12, label, ha="right", va="center", color=INK, fontsize=10)
        axes.text(-8, i + 0.24, name, ha="right", va="center", color=GREY, fontsize=9, family="monospace")
    axes.barh(0, 0, color=GREY, alpha=0.5, label="light: rewards as they are")
    axes.barh(0, 0, color=GREY, label=f"dark: {SHIFT:g} added to every reward")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("noise (responses needed until the gradient is as strong as its noise)")
    axes.text(-8, -0.62, "baseline", ha="right", va="center", color=INK, fontsize=10, weight="bold")
    axes.set_title(
        "A baseline quiets the gradient, and\na constant on all rewards no longer matters", loc="left"
    )


def draw_lambdas(axes: Any, curve: list[Measurement]) -> None:
    bias, variance = zip(*(parts(found) for found in curve), strict=True)
    error = [b + v for b, v in zip(bias, variance, strict=True)]
    best = min(range(len(error)), key=error.__getitem__)
    axes.plot(LAMBDAS, bias, color=RED, lw=2, label="squared bias: the critic's errors")
    axes.plot(LAMBDAS, variance, color=BLUE, lw=2, label="variance: the luck of the samples")
    axes.plot(LAMBDAS, error, color=INK, lw=2.5, label="their sum: the whole error")
    axes.plot(LAMBDAS[best], error[best], "o", color=INK)
    axes.annotate(
        f"least error, at {LAMBDAS[best]:g}", (LAMBDAS[best], error[best]), (0, 12),
        textcoords="offset points", ha="center", color=INK,
    )  # fmt: skip
    axes.set(
        xlim=(0, 1), ylim=(0, None), xlabel="lambda   (0: trust the critic, 1: trust what the samples earned)"
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(
        f"squared error of a gradient from {RESPONSES} responses\n(% of the true one's squared length)"
    )
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(
        "Lambda trades the errors of a critic\nfor the luck of the samples; the best lies between", loc="left"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=2000, help="random batches for each estimator")
    parser.add_argument("--seed", type=int, default=8, help="which language")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where to draw")
    chosen = parser.parse_args(arguments)
    plain, shifted = language(chosen.seed), language(chosen.seed, SHIFT)
    print_estimators(plain, shifted, chosen.samples)
    curve = lambda_curve(plain)
    print_lambdas(curve)

    matplotlib.use("agg")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    draw_baselines(left, plain, shifted, chosen.samples)
    draw_lambdas(right, curve)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(chosen.out, dpi=110)
    pyplot.close(figure)
    print(f"\ndrawn: {chosen.out}")


if __name__ == "__main__":
    main()
