"""A name that nobody knows yet: a slip, or an estimator or loss that somebody's module has still to register.

A slip is refused before Ray starts. What may be somebody else's is left to verl with a warning: whoever has this package
installed and uses nothing of it must not notice.
"""

import functools
import logging
from collections.abc import Collection
from typing import Any

from rl_estimators.errors import UnknownNameError
from rl_estimators.hints import did_you_mean
from rl_estimators.registry import Registry
from rl_estimators.verl.estimators import KEY, OPTIONS_KEY, PREFIX
from rl_estimators.verl.trainers import EXTERNAL_LIB, is_complete, loads_more

__all__ = ["report"]

_ALIKE = 0.75  # grop and grpo are as much, somebody's my_grpo and grpo are not

logger = logging.getLogger(__name__)


def report(what: str, name: str, registry: Registry, known: Collection[str], config: Any) -> None:
    """Refuse a slip, warn of a name that verl's own trainer will not know, and keep silent on all else.

    Args:
        what: How the message begins, as in ``algorithm.adv_estimator=grop: no such estimator.``
        name: The name.
        registry: Ours of that kind.
        known: All names of that kind.
        config: verl's configuration, or a part of it.

    Raises:
        UnknownNameError: the name is meant to be ours.
    """
    message = (
        f"{what}{did_you_mean(name, known)} Known: {', '.join(sorted(known))}. One of "
        f"yours is known once its module is imported: VERL_USE_EXTERNAL_MODULES=my_module, or {EXTERNAL_LIB}"
    )
    if name.startswith(PREFIX):  # nobody else's begin so
        raise UnknownNameError(message)
    if loads_more(config):
        return
    ours = [alias for own in registry.names() for alias in (own, PREFIX + own)]
    if _uses_us(config) or did_you_mean(name, ours, _ALIKE):
        raise UnknownNameError(message)
    if is_complete(config):
        _warn(message)


@functools.cache
def _warn(message: str) -> None:
    """Once in a process: verl asks several times in a run."""
    logger.warning("%s", message)


def _uses_us(config: Any) -> bool:
    algorithm = config.get("algorithm")
    return bool(config.get(KEY) or (algorithm is not None and algorithm.get(OPTIONS_KEY)))
