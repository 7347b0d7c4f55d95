"""The estimators that compare the answers to one prompt, written out from their equations: explicit sums, float64.

As in definitions.py a row is cut down to its valid positions, and a response counts when it has any and all their
rewards are finite. The score s_b of a response that counts is the sum of its valid rewards.
"""

import numpy as np

from reference import tolerance
from reference.cases import rng_of
from reference.definitions import WHITEN_EPSILON, Estimate, counted, group_key, valid, whitened


def rows_of(rewards, mask, usable=None):
    """Rows that count; ``usable`` (B,) drops further ones."""
    return [
        b for b in range(len(mask)) if counted(rewards[b], mask[b]) and (usable is None or bool(usable[b]))
    ]


def groups_of(index, rows):
    """Rows by prompt."""
    groups = {}
    for b in rows:
        groups.setdefault(group_key(index[b]), []).append(b)
    return list(groups.values())


def score(rewards, mask, b):
    return float(np.sum(rewards[b, valid(mask[b])]))


def on_tokens(numbers, rewards, mask):
    """A number per row on all its valid tokens."""
    advantages = np.zeros(rewards.shape)
    for b, number in numbers.items():
        advantages[b, valid(mask[b])] = number
    return Estimate(advantages, advantages.copy())


def each_group(rewards, mask, index, of_group):
    """``of_group(scores, lengths)`` returns the group's advantages."""
    numbers = {}
    for group in groups_of(index, rows_of(rewards, mask)):
        scores = np.array([score(rewards, mask, b) for b in group])
        lengths = np.array([float(len(valid(mask[b]))) for b in group])
        numbers.update(zip(group, of_group(scores, lengths), strict=True))
    return numbers


def equal(scores):
    return bool((scores == scores[0]).all())


def minus_mean(scores, lengths=None):
    """Score minus the group's mean; exactly 0 for equal scores."""
    return np.zeros(len(scores)) if equal(scores) else scores - np.sum(scores) / len(scores)


def deviation(scores):
    """Unbiased; 0 for equal scores."""
    return 0.0 if equal(scores) else np.sqrt(np.sum(minus_mean(scores) ** 2) / (len(scores) - 1))


def rloo(token_level_rewards, response_mask, index, singleton="zero"):
    """A_i = s_i - mean of s_j, j != i; Ahmadian et al., arXiv 2402.14740."""

    def of_group(scores, lengths):
        if len(scores) == 1:
            return scores if singleton == "raw" else np.zeros(1)
        if equal(scores):
            return np.zeros(len(scores))
        return [s - np.sum(np.delete(scores, i)) / (len(scores) - 1) for i, s in enumerate(scores)]

    numbers = each_group(token_level_rewards, response_mask, index, of_group)
    return on_tokens(numbers, token_level_rewards, response_mask)


def over_batch(numbers, rewards, mask, norm_level):
    """Mean 0 and variance 1 over all valid tokens, or over all rows, of what is centred per group."""
    plain = on_tokens(numbers, rewards, mask)
    if norm_level == "token":
        at = [(b, t) for b in numbers for t in valid(mask[b])]
        if at:
            where = tuple(np.array(at).T)
            plain.advantages[where] = whitened(plain.advantages[where])
        return Estimate(plain.advantages, plain.advantages.copy())
    a = np.array(list(numbers.values()))
    mean = np.sum(a) / max(len(a), 1)
    spread = np.sqrt(np.sum((a - mean) ** 2) / max(len(a) - 1, 1) + WHITEN_EPSILON)
    return on_tokens({b: (x - mean) / spread for b, x in numbers.items()}, rewards, mask)


def reinforce_pp_baseline(token_level_rewards, response_mask, index, norm_level="token"):
    """(a - mean(a)) / sqrt(var(a) + 1e-8) over the batch, a = s - group mean; Hu et al., arXiv 2501.03262v9."""
    numbers = each_group(token_level_rewards, response_mask, index, minus_mean)
    return over_batch(numbers, token_level_rewards, response_mask, norm_level)


def opo(token_level_rewards, response_mask, index):
    """A = s - sum(l s) / sum(l), l the lengths; Hao et al., arXiv 2505.23585."""

    def of_group(scores, lengths):
        return scores - (scores[0] if equal(scores) else np.sum(lengths * scores) / np.sum(lengths))

    numbers = each_group(token_level_rewards, response_mask, index, of_group)
    return on_tokens(numbers, token_level_rewards, response_mask)


def gpg(token_level_rewards, response_mask, index, f_norm=1.0, alpha=None):
    """A = B / (B - M) (s - group mean) / F, M rows in groups of equal scores; Chu et al., arXiv 2504.02546."""
    numbers = each_group(token_level_rewards, response_mask, index, minus_mean)
    alive = each_group(
        token_level_rewards, response_mask, index, lambda scores, lengths: [not equal(scores)] * len(scores)
    )
    if alpha is None:
        alpha = len(alive) / max(sum(alive.values()), 1)
    scaled = {b: alpha * a / f_norm for b, a in numbers.items()}
    return on_tokens(scaled, token_level_rewards, response_mask)


def grpo_passk(token_level_rewards, response_mask, index, norm_by_std=True, epsilon=1e-6):
    """A_i = max of all - max of all but i, over std + epsilon; Tang et al., arXiv 2503.19595."""

    def of_group(scores, lengths):
        if len(scores) == 1 or equal(scores):
            return np.zeros(len(scores))
        lost = np.array([max(scores) - max(np.delete(scores, i)) for i in range(len(scores))])
        return lost / (deviation(scores) + epsilon) if norm_by_std else lost

    numbers = each_group(token_level_rewards, response_mask, index, of_group)
    return on_tokens(numbers, token_level_rewards, response_mask)


def maxrl(token_level_rewards, response_mask, index):
    """A = (s - mean) / mean, 0 where the mean is 0; Tajwar et al., arXiv 2602.02710."""

    def of_group(scores, lengths):
        mean = np.sum(scores) / len(scores)
        return minus_mean(scores) / mean if mean > 0 else np.zeros(len(scores))

    numbers = each_group(token_level_rewards, response_mask, index, of_group)
    return on_tokens(numbers, token_level_rewards, response_mask)


def gdpo_sums(rewards, mask, index, components, weights=None, norm_by_std=True, epsilon=1e-6):
    """Each row's weighted sum of (r_k - group mean) / (group std + epsilon), before the batch is normalised."""
    weights = np.ones(components.shape[1]) if weights is None else weights
    numbers = {}
    for group in groups_of(index, rows_of(rewards, mask, np.isfinite(components).all(axis=1))):
        total = np.zeros(len(group))
        for k, weight in enumerate(weights):
            r = components[group, k]
            total += weight * minus_mean(r) / (deviation(r) + epsilon if norm_by_std else 1.0)
        numbers.update(zip(group, total, strict=True))
    return numbers


def gdpo(token_level_rewards, response_mask, index, reward_components, norm_level="sequence", **options):
    """Liu et al., arXiv 2601.05242: the sums of gdpo_sums, normalised over the batch."""
    numbers = gdpo_sums(token_level_rewards, response_mask, index, reward_components, **options)
    return over_batch(numbers, token_level_rewards, response_mask, norm_level)


ESTIMATORS = {
    "rloo": rloo,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "opo": opo,
    "gpg": gpg,
    "grpo_passk": grpo_passk,
    "maxrl": maxrl,
    "gdpo": gdpo,
}


def components_of(case):
    """Three rewards for each row of a case: 0 or 1, normal, and large but equal for all rows but the last.

    A case with a score that is not finite gets a component that is not finite as well, in its second row.
    """
    rng, rows = rng_of("components " + case.name), len(case.response_mask)
    components = np.stack([rng.integers(0, 2, rows), rng.normal(size=rows), np.full(rows, 1000.5)], axis=1)
    components[-1, 2] = 1001.5
    if "score" in case.name and rows > 1:
        components[1, 1] = np.nan
    return components


# ---- how far a correct implementation may be from it; see tolerance.py


def score_error(inputs, eps):
    """Error of a score, or of a score minus a mean of scores: sums of at most max_b sum_t |r_bt|."""
    rewards, mask = inputs["token_level_rewards"], np.asarray(inputs["response_mask"]) != 0
    handled = [np.abs(r[m]).sum() for r, m in zip(rewards, mask, strict=True) if counted(r, m)]
    return 4 * (tolerance.recursion(eps, mask.shape[1], 1.0, 1.0) + 4 * eps) * max(handled, default=0.0)


def spread_of_groups(inputs, statistic):
    """(B, 1): ``statistic`` of the scores of each row's group; 1 for rows that do not count."""
    found = each_group(
        inputs["token_level_rewards"],
        inputs["response_mask"],
        inputs["index"],
        lambda scores, lengths: [statistic(scores)] * len(scores),
    )
    return np.array([[found.get(b, 1.0)] for b in range(len(inputs["response_mask"]))])


def over_batch_bound(numbers, inputs, norm_level, error, eps):
    at = [len(valid(inputs["response_mask"][b])) if norm_level == "token" else 1 for b in numbers]
    return tolerance.whitening(eps, np.repeat([*numbers.values()], at), error) if numbers else 0.0


def bound(name, inputs, options, eps):
    """Of the advantages: a number, or one for each row."""
    error = score_error(inputs, eps)
    wanted = np.abs(ESTIMATORS[name](**inputs, **options).advantages).max(axis=1, keepdims=True)
    if name == "gpg":
        alpha = 1.0 if options.get("alpha") is None else options["alpha"]
        dead = each_group(*(inputs[n] for n in ("token_level_rewards", "response_mask", "index")), minus_mean)
        alpha *= max(len(dead), 1)  # at least one response in B is alive, or all are exactly 0
        return alpha * error / options.get("f_norm", 1.0) + 4 * eps * wanted
    if name == "grpo_passk" and options.get("norm_by_std", True):
        spread = spread_of_groups(inputs, lambda s: 1.0 if equal(s) else deviation(s))
        return (1 + wanted) * error / (spread + options.get("epsilon", 1e-6))
    if name == "maxrl":
        return (1 + wanted) * error / spread_of_groups(inputs, lambda s: np.mean(s) or 1.0)
    if name == "reinforce_pp_baseline":
        own = [inputs[n] for n in ("token_level_rewards", "response_mask", "index")]
        level = options.get("norm_level", "token")
        return over_batch_bound(each_group(*own, minus_mean), inputs, level, error, eps)
    if name == "gdpo":
        own = [inputs[n] for n in ("token_level_rewards", "response_mask", "index", "reward_components")]
        plain = {key: value for key, value in options.items() if key != "norm_level"}
        return over_batch_bound(
            gdpo_sums(*own, **plain), inputs, options.get("norm_level", "sequence"),
            gdpo_error(*own, eps=eps, **plain), eps,
        )  # fmt: skip
    return error  # rloo, opo: a difference of a score and a mean


def gdpo_error(rewards, mask, index, components, eps, weights=None, norm_by_std=True, epsilon=1e-6):
    """Sum over the rewards of |w| (1 + |a|) 16 eps max|r| / (least std + epsilon)."""
    total = 0.0
    groups = groups_of(index, rows_of(rewards, mask, np.isfinite(components).all(axis=1)))
    for k, weight in enumerate(np.ones(components.shape[1]) if weights is None else weights):
        for group in groups:
            r = components[group, k]
            if equal(r):
                continue
            spread = deviation(r) + epsilon if norm_by_std else 1.0
            a = np.abs(minus_mean(r)).max() / spread
            total = max(total, abs(weight) * (1 + a) * 16 * eps * np.abs(r).max() / spread)
    return total * components.shape[1]
