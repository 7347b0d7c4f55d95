"""Mean 0 and variance 1 over a batch, and the conventions on which frameworks differ there.

Two rules of :mod:`rl_estimators.masked` hold: nothing at a masked position is read, and numbers that are all equal are
exactly 0 afterwards, whatever the convention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from rl_estimators import backends
from rl_estimators.backends.rows import inverse_std
from rl_estimators.errors import InputError
from rl_estimators.fields import check_choice, check_ddof, check_range
from rl_estimators.masked import to_tokens

__all__ = [
    "STANDARD",
    "Whitening",
    "normalise_centred",
    "read_whitening",
    "standardised",
    "unit_variance",
    "whitened",
]


@dataclass(frozen=True)
class Whitening:
    r"""How numbers are shifted and scaled to mean 0 and variance 1.

    .. math::
        y_i = \frac{x_i - \bar x}{\sqrt{s^2 + \epsilon}}, \qquad
        \bar x = \frac{\sum_i w_i x_i}{W}, \qquad
        s^2 = \frac{\sum_i w_i (x_i - \bar x)^2}{\max(W - \mathrm{ddof}, 1)}

    One object rather than four options of each estimator: few want to change them, and whoever does wants the same
    in every estimator. An estimator's option ``whitening`` takes it, or a mapping of what differs from the defaults:
    ``whitening={"ddof": 0}``; in verl ``+algorithm.adv_estimator_kwargs.whitening.ddof=0``. The defaults are those of
    verl's ``masked_whiten``.

    Attributes:
        eps: :math:`\epsilon`, at least 0.
        ddof: 1 for the unbiased variance; 0 for the mean square, as numpy's and JAX's ``var``.
        weighting: ``"token"``: each valid token counts once, w = 1 and W is their number. ``"sequence"``: each
            response counts once, w = 1 over its number of valid tokens and W is the number of responses.
        eps_in: ``"variance"``: as above. ``"std"``: the divisor is :math:`s + \epsilon`, as in TRL.

    Raises:
        InputError: eps below 0, ddof neither 0 nor 1, an unknown weighting or eps_in.
    """

    eps: float = 1e-8
    ddof: int = 1
    weighting: Literal["token", "sequence"] = "token"
    eps_in: Literal["variance", "std"] = "variance"

    def __post_init__(self) -> None:
        check_range("whitening", eps=self.eps)
        check_ddof("whitening", self.ddof)
        check_choice("whitening", "weighting", self.weighting, ("token", "sequence"))
        check_choice("whitening", "eps_in", self.eps_in, ("variance", "std"))


STANDARD = Whitening()


def read_whitening(
    owner: str, given: Whitening | Mapping[str, Any], on: bool = True, weighting_is: str | None = None
) -> Whitening:
    """What an estimator was given as ``whitening``.

    Args:
        owner: Who asks, for messages.
        given: The conventions, or those that differ from the defaults by name.
        on: Whether anything will be whitened.
        weighting_is: The estimator's own option that says how responses are weighted, if it has one.

    Raises:
        InputError: an unknown name, a value out of range, or something that would be without effect: conventions where
            nothing is whitened, a weighting where the estimator has its own option for it.
    """
    if not isinstance(given, Whitening):
        if not isinstance(given, Mapping):
            raise InputError(
                f"{owner}: whitening is {given!r}, expected conventions by name, e.g. {{'ddof': 0}}; "
                f"the defaults are {STANDARD}"
            )
        for name in given:
            check_choice(owner, "a name in whitening", name, Whitening.__dataclass_fields__)
        try:
            given = Whitening(**{str(name): value for name, value in given.items()})
        except InputError as error:
            raise InputError(f"{owner}: {error}") from None
    if not on and given != STANDARD:
        raise InputError(
            f"{owner}: whitening is given and whiten is False; set whiten=True, or drop whitening"
        )
    if weighting_is is not None and given.weighting != STANDARD.weighting:
        raise InputError(
            f"{owner}: whitening has weighting={given.weighting!r}, which {weighting_is} says here; set that instead"
        )
    return given


def whitened(x: Tensor, mask: Tensor, how: Whitening = STANDARD) -> Tensor:
    """Shift and scale the valid numbers to mean 0 and variance 1; 0 elsewhere.

    With 0 or 1 valid numbers or none that differ, all are exactly 0.

    Args:
        x: ``(B, T)``, or ``(B,)`` where each number is a response; finite where ``mask`` is true.
        mask: Same shape, in any dtype.
        how: The conventions.
    """
    if x.ndim == 1:
        return whitened(x[None], mask[None], replace(how, weighting="token"))[0]
    mask = backends.packed(mask)
    return standardised(x, mask, backends.moments(x, mask), how)


def standardised(
    x: Tensor, mask: Tensor, rows: backends.Rows, how: Whitening = STANDARD, out: Tensor | None = None
) -> Tensor:
    """As :func:`whitened`, with the rows' statistics from the kernel that made ``x``.

    Args:
        x: ``(B, T)``.
        mask: ``(B, T)``, in any dtype.
        rows: Statistics of ``x``.
        how: The conventions.
        out: Where to write; ``x`` itself is fine.
    """
    if not x.numel():
        return x if out is None else out
    found = backends.pooled(rows, how.weighting == "sequence", how.ddof, how.eps, how.eps_in)
    return backends.standardise(x, mask, rows, *found, out)


def unit_variance(x: Tensor, mask: Tensor, how: Whitening = STANDARD) -> Tensor:
    """Scale numbers whose mean is 0 to variance 1.

    Args:
        x: Any shape, with mean 0 where ``mask`` is true and 0 elsewhere.
        mask: Same shape, bool.
        how: The conventions; each number counts once, whatever its weighting.
    """
    variance = x.square().sum() / (mask.sum() - how.ddof).clamp(min=1)
    return x * inverse_std(variance, how.eps, how.eps_in)


def normalise_centred(
    x: Tensor,
    rows: Tensor,
    mask: Tensor,
    norm_level: str,
    how: Whitening = STANDARD,
    singleton: str = "zero",
) -> Tensor:
    """Spread numbers whose mean over each group is 0 over their tokens, with mean 0 and variance 1.

    Args:
        x: ``(B,)``, 0 where ``rows`` is false.
        rows: ``(B,)`` bool, true on responses that count.
        mask: ``(B, T)`` bool, true on tokens that count.
        norm_level: ``"token"``: mean and variance over tokens. ``"sequence"``: over responses, where the mean is 0
            already; so that zeros stay zeros, it is not subtracted again.
        how: The conventions, but for the weighting.
        singleton: ``"raw"``: groups of one hold their raw number, so that the mean is not 0 and is subtracted.

    Returns:
        ``(B, T)``.
    """
    if norm_level == "token":
        return whitened(to_tokens(x, mask), mask, how)
    return to_tokens(whitened(x, rows, how) if singleton == "raw" else unit_variance(x, rows, how), mask)
