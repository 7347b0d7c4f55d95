"""The options of an estimator or a loss, put together from several fields of a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from trl import GRPOConfig

from rl_estimators.errors import EstimatorError, InputError
from rl_estimators.registry import Registry, Spec
from rl_estimators.trial import try_out

__all__ = ["Options", "changed", "look_up"]


class Options:
    """Options of one estimator or loss, by name: those of its ``..._kwargs``, and what other fields add.

    Where a field contradicts the ``..._kwargs``, they win if it has its class's default; else that is an error.

    Args:
        config: The configuration.
        key: Its field that names the estimator or loss, such as ``"value_loss"``.
        spec: What that is.

    Raises:
        InputError: the ``..._kwargs`` are no mapping.
    """

    def __init__(self, config: GRPOConfig, key: str, spec: Spec) -> None:
        given = getattr(config, f"{key}_kwargs")
        if given is not None and not isinstance(given, Mapping):
            raise InputError(
                f'{key}_kwargs is {given!r}, expected options by name, for example {{"epsilon": 1e-4}}'
            )
        self.found: dict[str, Any] = dict(given or {})
        self._config, self._key, self._spec = config, key, spec

    def take(self, field: str) -> None:
        """Take the option that the field of the same name sets.

        A configuration class's own default adds nothing where there is no such option.

        Raises:
            InputError: see :meth:`add`.
        """
        if self._has(field) or changed(self._config, [field]):
            self.add(field, getattr(self._config, field), field)

    def add(self, option: str, value: Any, field: str, said: str | None = None) -> None:
        """Add what a field means for an option of another name.

        Args:
            option: The option.
            value: Its value; None adds nothing.
            field: The field that asks for it.
            said: The field as the message has it; None for its name.

        Raises:
            InputError: there is no such option, or the ``..._kwargs`` contradict the user's own value of the field.
        """
        if value is None:
            return
        said = said or field
        owner = f"{self._key} {self._spec.name!r}"
        if option in self.found and self.found[option] != value:
            if not changed(self._config, [field]):
                return
            raise InputError(
                f"{owner}: {option} is {self.found[option]!r} among its options, but {said} says {value!r}"
            )
        if not self._has(option):
            known = ", ".join(self._spec.options) or "none"
            raise InputError(f"{said} is set, but {owner} has no {option}; its options: {known}")
        self.found[option] = value

    def checked(self) -> dict[str, Any]:
        """All of them.

        Raises:
            InputError: one is unknown; or, for functions of ours, which are tried out, out of range or at odds with another.
        """
        spec, weights = self._spec, self.found.get("weights")
        try:
            if spec.is_ours:
                rewards = len(weights) if isinstance(weights, (list, tuple)) else 1
                try_out(spec, [*spec.required, *spec.optional], self.found, rewards)
            else:
                spec.options_from(self.found)
        except InputError as error:
            raise InputError(f"{self._key}={self._spec.name!r} with {self._key}_kwargs: {error}") from None
        return self.found

    def _has(self, option: str) -> bool:
        return option in self._spec.options or self._spec.takes_config or self._spec.takes_any


def look_up(registry: Registry, key: str, name: str) -> Spec:
    """What the field ``key`` names.

    Raises:
        UnknownNameError: no such estimator or loss; the message has the field's name in front.
        DuplicateNameError, EntryPointError: see :meth:`~rl_estimators.registry.Registry.spec`.
    """
    try:
        return registry.spec(name)
    except EstimatorError as error:
        raise type(error)(f"{key}={name!r}: {error}") from None


def changed(config: GRPOConfig, names: Sequence[str]) -> list[str]:
    """Those of the fields that differ from the configuration class's own defaults."""
    defaults = {one.name: one.default for one in fields(config)}  # MISSING where a factory makes it
    return [name for name in names if getattr(config, name) != defaults[name]]
