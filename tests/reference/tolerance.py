"""How far a correct implementation in working precision may be from the reference.

A recursion over n steps commits, at each step, a few roundings of size u * m, where m is the largest number it handles
(u = eps / 2). Their sum grows like sqrt(n) in practice (Higham and Mary 2019, probabilistic bounds: lambda sqrt(n) u m
with lambda about 4; 5 here), and n can be replaced by the horizon 1 / (1 - decay) where old errors are discounted
away. A discount that is itself rounded to working precision adds horizon * u * m. Dividing by a spread then magnifies
the error, so the bounds below scale with magnitude / spread: huge offsets are honestly harder in float32.
The bounds for float64 are the same with its eps: about 1e-12 relative for T = 4096, 1e-14 for a short row.
"""

import numpy as np

from reference import definitions as ref


def largest(*arrays):
    """The largest finite magnitude, 0 for none."""
    finite = [np.abs(x[np.isfinite(x)]) for x in arrays]
    return max((float(x.max()) for x in finite if x.size), default=0.0)


def seen(array, inputs):
    """An input at the valid positions of counted responses."""
    mask = np.asarray(inputs["response_mask"]) != 0
    rows = [ref.counted(r, m) for r, m in zip(inputs["token_level_rewards"], mask, strict=True)]
    return np.asarray(array)[mask & np.array(rows)[:, None]]


def recursion(eps, steps, decay, magnitude):
    horizon = steps if decay >= 1 else min(steps, 1 / (1 - decay))
    rounded_decay = 0.0 if decay == 1 else horizon
    return eps * magnitude * (4 + 5 * np.sqrt(horizon) + rounded_decay)


def whitening(eps, raw, error):
    """|dw| <= (1 + |w|) * 2 * (error + 4 eps max|a|) / sqrt(var + 1e-8): error of a, of the mean, and of the spread."""
    if len(raw) < 2:
        return 0.0
    spread = np.sqrt(np.var(raw, ddof=1) + ref.WHITEN_EPSILON)
    largest_whitened = np.abs(raw - raw.mean()).max() / spread
    return (1 + largest_whitened) * 2 * (error + 4 * eps * largest(raw)) / spread


def gae(inputs, options, eps):
    raw = ref.gae(**inputs, **{**options, "whiten": False})
    values, rewards = seen(inputs["values"], inputs), seen(inputs["token_level_rewards"], inputs)
    advantages = seen(raw.advantages, inputs)
    magnitude = largest(rewards) + 3 * largest(values) + 2 * largest(advantages)
    decay = options.get("gamma", 1.0) * options.get("lam", 1.0)
    error = recursion(eps, inputs["response_mask"].shape[1], decay, magnitude)
    whiten = options.get("whiten", True)
    return whitening(eps, advantages, error) if whiten else error, error + eps * largest(values)


def reinforce_pp(inputs, options, eps):
    returns = seen(ref.reinforce_pp(**inputs, **options).returns, inputs)
    magnitude = largest(seen(inputs["token_level_rewards"], inputs)) + 2 * largest(returns)
    error = recursion(eps, inputs["response_mask"].shape[1], options.get("gamma", 1.0), magnitude)
    return whitening(eps, returns, error), error


def remax(inputs, options, eps):
    own = {name: inputs[name] for name in ("token_level_rewards", "response_mask")}
    _, error = reinforce_pp(own, options, eps)
    return error + 2 * eps * largest(inputs["reward_baselines"]), error


def group_spreads(inputs, options):
    """What each row's advantage is divided by: std + epsilon of its group, or 1."""
    plain = ref.grpo(**inputs, **{**options, "norm_by_std": False, "singleton": "zero"}).advantages
    mask = np.asarray(inputs["response_mask"]) != 0
    rows = {}
    for b in range(len(mask)):
        if ref.counted(inputs["token_level_rewards"][b], mask[b]):
            rows.setdefault(ref.group_key(inputs["index"][b]), []).append(b)
    spreads = np.ones(len(mask))
    for members in rows.values():
        centred = [plain[b, ref.valid(mask[b])[0]] for b in members]
        std = np.sqrt(np.sum(np.square(centred)) / (len(members) - 1)) if len(members) > 1 else 1.0
        spreads[members] = std + options.get("epsilon", 1e-6)
    return spreads if options.get("norm_by_std", True) else np.ones(len(mask))


def grpo(inputs, options, eps):
    """One bound per row: (1 + |a|) * 2 * (error of a score + 4 eps max|s|) / (std + epsilon)."""
    rewards, mask = inputs["token_level_rewards"], np.asarray(inputs["response_mask"]) != 0
    handled = [np.abs(r[m]).sum() for r, m in zip(rewards, mask, strict=True) if ref.counted(r, m)]
    error = (recursion(eps, mask.shape[1], 1.0, 1.0) + 4 * eps) * max(handled, default=0.0)
    a = np.abs(ref.grpo(**inputs, **options).advantages).max(axis=1)
    bound = ((1 + a) * 2 * error / group_spreads(inputs, options))[:, None]
    return bound, bound


BOUNDS = {"gae": gae, "grpo": grpo, "reinforce_pp": reinforce_pp, "remax": remax}
