"""How problems with logs are told: the first of each log, for one of the wrong kind would fill the screen."""

from rl_estimators.files.problems import Manner

__all__ = ["IN_LOGS"]

IN_LOGS = Manner(
    shown=5,
    refused="; without --strict it would be skipped",
    skipped="{place}: {reason}; skipped",
    more="{file}: {more} more skipped, {count} in all",
    total="",
)
