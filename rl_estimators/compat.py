"""Another library's numbers: one word, ``compat="verl"``, for the options that give them.

A preset is a table of option values beside the estimator it belongs to, so what it stands for can be read there, and
there is no second body to keep in step. It covers ordinary inputs: what a library does with NaN, with rounding errors
on equal scores or at masked positions is not taken over, unless the estimator's docstring says so.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from rl_estimators.errors import InputError
from rl_estimators.fields import check_choice

__all__ = ["compat"]

F = TypeVar("F", bound=Callable[..., Any])


def compat(**libraries: Mapping[str, Any]) -> Callable[[F], F]:
    """Decorator that gives a function the option ``compat``, the name of one of ``libraries`` or None.

    With a library's name its values stand in for the function's defaults. An option that is given beside it must
    agree, for one of the two would be without effect: ``InputError`` names both. The values that equal the
    function's defaults stand in the table as well, for that reason.

    Args:
        **libraries: For each library the options that give its numbers.
    """

    def decorator(function: F) -> F:
        signature = inspect.signature(function)
        name = function.__name__

        @functools.wraps(function)
        def with_compat(*args: Any, compat: str | None = None, **kwargs: Any) -> Any:
            if compat is None:
                return function(*args, **kwargs)
            check_choice(name, "compat", compat, libraries)
            given = signature.bind_partial(*args, **kwargs).arguments
            for option, theirs in libraries[compat].items():
                if option in given and not _agrees(given[option], theirs):
                    raise InputError(
                        f"{name}: {option}={given[option]!r} contradicts compat={compat!r}, which has {theirs!r}; "
                        "drop one"
                    )
            rest = {option: theirs for option, theirs in libraries[compat].items() if option not in given}
            return function(*args, **kwargs, **rest)

        choices: Any = Literal[tuple(libraries)]
        parameter = inspect.Parameter(
            "compat", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=choices | None
        )
        # The signature is what a registry reads an option from.
        vars(with_compat)["__signature__"] = signature.replace(
            parameters=[*signature.parameters.values(), parameter]
        )
        return with_compat  # type: ignore[return-value]

    return decorator


def _agrees(given: Any, theirs: Any) -> bool:
    """Whether an option has the library's value; a mapping stands for what differs from a dataclass's defaults."""
    if isinstance(given, Mapping) and dataclasses.is_dataclass(theirs) and not isinstance(theirs, type):
        try:
            return bool(type(theirs)(**given) == theirs)
        except (InputError, TypeError):
            return True  # the function itself says what is wrong with it
    return bool(given == theirs)
