"""Named estimators and losses, and what each of them needs, as its signature says.

A function declares its needs the way a pytest test declares fixtures: a parameter named after one of
:data:`~rl_estimators.fields.FIELDS` is an input, required unless it has a default; any other parameter is an
option and needs a default (but for ``gamma`` and ``lam``, which every framework sets). ``config`` and
``**kwargs`` mean what they mean in verl, so a function written for verl's ``register_adv_est`` registers here
as it is.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from rl_estimators.errors import (
    DefinitionError,
    DuplicateNameError,
    EntryPointError,
    InputError,
    UnknownNameError,
)
from rl_estimators.fields import FIELDS, SETTINGS, as_index, check
from rl_estimators.hints import did_you_mean

__all__ = [
    "ADV_ESTIMATORS",
    "POLICY_LOSSES",
    "VALUE_LOSSES",
    "Config",
    "Estimate",
    "Registry",
    "Spec",
]

F = TypeVar("F", bound=Callable[..., Any])


class Estimate(NamedTuple):
    """What an advantage estimator returns; unpacks like verl's ``(advantages, returns)``."""

    advantages: Tensor
    returns: Tensor


class Config(dict[str, Any]):
    """Stands in for verl's ``config.algorithm``: options readable as items, attributes and by ``get``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"no option {name!r} was given; given: {', '.join(self) or 'none'}"
            ) from None


@dataclass(frozen=True)
class Spec:
    """One registered function and what its signature says.

    Attributes:
        name: The name it is registered under.
        function: The function, unchanged.
        source: The paper or code it follows.
        required: Inputs it cannot do without.
        optional: Inputs it takes if they are there.
        options: Its other parameters and their defaults.
        takes_config: It has a parameter ``config``, or ``**kwargs`` to hold it, as in verl.
        takes_any: It has ``**kwargs``.
    """

    name: str
    function: Callable[..., Any]
    source: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    options: Mapping[str, Any]
    takes_config: bool = False
    takes_any: bool = False

    def __call__(self, given: Mapping[str, Any], also: tuple[str, ...] = ()) -> Any:
        """Check what is given, hand the function what it asked for, return what it returns.

        ``given`` holds inputs and options by name. An input that is None counts as absent; one that nobody
        asked for is left aside. ``index`` arrives as a numpy array, whatever was given: verl-style functions
        look groups up by ``index[i]``, which for a tensor's elements never matches. ``also``: see
        :meth:`options_from`.

        Raises:
            InputError: an input is missing or does not fit; an option is unknown.
        """
        names = filter(FIELDS.__contains__, given) if self.takes_any else (*self.required, *self.optional)
        asked = {name: given[name] for name in names if given.get(name) is not None}
        check(self.name, asked, self.required)
        if "index" in asked:
            asked = {**asked, "index": as_index(asked["index"])}
        return self.function(**asked, **self.options_from(given, also))

    def asks_for(self, name: str) -> bool:
        """Whether the signature names the input ``name``, required or not; ``**kwargs`` names nothing."""
        return name in self.required or name in self.optional

    @functools.cached_property
    def is_ours(self) -> bool:
        """Whether the function is this package's own, rather than a user's or another distribution's."""
        return str(getattr(self.function, "__module__", None)).startswith("rl_estimators.")

    def options_from(self, given: Mapping[str, Any], also: tuple[str, ...] = ()) -> dict[str, Any]:
        """What the function gets beside its inputs.

        ``also`` names the options that the caller keeps for itself: a slip may have meant one of them.

        Raises:
            InputError: an option is unknown.
        """
        given = {name: value for name, value in given.items() if name not in FIELDS}
        config = given.pop("config", None)
        if config is not None and not self.takes_config:
            raise InputError(f"{self.name} takes no config; its options: {self._known()}")
        named = {name: value for name, value in given.items() if name in self.options}
        other = {name: value for name, value in given.items() if name not in self.options}
        for name, default in self.options.items():
            if default is inspect.Parameter.empty and name not in named:
                named[name] = SETTINGS[name]
        for name, value in named.items():
            self._check_type(name, value)
        # Without a configuration of verl's a stand-in for it takes every option, but for what looks like a slip.
        absorbed = self.takes_config and config is None
        for name in () if self.takes_any else other:
            hint = did_you_mean(name, [*self.options, *self.required, *self.optional, *also])
            if hint or not absorbed:
                raise InputError(f"{self.name} has no option {name!r}.{hint} Its options: {self._known()}.")
        if self.takes_config:
            named["config"] = Config({**SETTINGS, **given}) if config is None else config
        return named | (other if self.takes_any else {})

    def _known(self) -> str:
        """Options with their defaults, and the inputs that are given like them: ``rollout_is_weights``, say."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items()) or "none"
        return options + (f"; optional inputs: {', '.join(self.optional)}" if self.optional else "")

    def _check_type(self, name: str, value: Any) -> None:
        """A flag that is no bool, or None where a number is due, would train on other numbers in silence."""
        default = self.options[name]
        if isinstance(default, bool) and not isinstance(value, (bool, np.bool_)):
            raise InputError(f"{self.name}: {name} is {value!r}, expected True or False")
        if value is None and default is not None:
            raise InputError(f"{self.name}: {name} is None, expected a value; leave it out for the default")


class Registry:
    """Functions of one kind by name, plus those that other distributions offer as entry points.

    Attributes:
        kind: What is registered here, for messages.
        group: The entry-point group of other distributions' offers.
        one: The kind with its article.
        call: The name of the function that runs what is registered here.
        elsewhere: What other frameworks call it, and its name here.
    """

    def __init__(
        self, kind: str, group: str, call: str = "", elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.group = group
        self.one = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        self.call = call
        self.elsewhere = elsewhere or {}
        self._specs: dict[str, Spec] = {}
        self._loaded: set[str] = set()  # names whose function came through an entry point
        self._settled: dict[str, Spec] = {}  # those that were asked for, and have no rival
        self._listeners: list[Callable[[str], None]] = []

    def register(self, name: str, *, source: str = "") -> Callable[[F], F]:
        """Decorator that registers a function under ``name`` (a string or a string enum) and returns it unchanged.

        Raises:
            DuplicateNameError: another function has this name.
            DefinitionError: a parameter is neither a known input nor an option with a default.
        """
        name = getattr(name, "value", name)
        if not isinstance(name, str):
            raise DefinitionError(f'{self.one} is registered by name, @register("name"), not as {name!r}')

        def decorator(function: F) -> F:
            known = self._specs.get(name)
            if known is not None and not _same(known.function, function):
                raise DuplicateNameError(
                    f"{self.kind} {name!r} is already {_where(known.function)}; "
                    f"register {_where(function)} under another name"
                )
            self._specs[name] = _read(self.kind, name, function, source)
            for listener in self._listeners:
                listener(name)
            return function

        return decorator

    def spec(self, name: str) -> Spec:
        """The spec of ``name`` (a string or a string enum), importing the distribution that offers it if need be.

        Raises:
            UnknownNameError: nobody has registered or offers it, or it is no string.
            DuplicateNameError: several distributions offer it, or one offers what is registered here.
            EntryPointError: the distribution that offers it cannot be imported.
        """
        known = self._specs.get(name) if isinstance(name, str) else None
        return known if known and known is self._settled.get(name) else self._settle(name)

    def _settle(self, given: object) -> Spec:
        name = getattr(given, "value", given)
        if not isinstance(name, str):
            raise UnknownNameError(f"{self.one} is named by a string, not {given!r}")
        offers = self._offers.get(name, [])
        if name not in self._specs and len(offers) == 1:
            self._load(name, offers[0])
        self._refuse_rivals(name, offers)
        if name not in self._specs:
            raise UnknownNameError(
                f"no {self.kind} is named {name!r}.{self._hint(name)} Known: {', '.join(self.names())}."
            )
        self._settled[name] = self._specs[name]
        return self._specs[name]

    def _hint(self, name: str) -> str:
        """What may have been meant: a name here, or one of another registry, which is not near by accident."""
        name = name.lower()
        meant, known = self.elsewhere.get(name, name), self.names()
        others = [other for other in _REGISTRIES if other is not self and name in other.names()]
        near = "" if others and meant not in known else did_you_mean(meant, known)
        return near + "".join(f" {name!r} is {other.one}: {other.call}({name!r}, ...)." for other in others)

    def names(self) -> list[str]:
        """All names, registered or on offer, sorted. Imports nothing."""
        return sorted({*self._specs, *self._offers})

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call ``listener(name)`` for every name there is and, once per registration, for each to come."""
        for name in self.names():
            listener(name)
        if listener not in self._listeners:
            self._listeners.append(listener)

    @functools.cached_property
    def _offers(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        """Other distributions' entry points by name; read once, for it searches every installed package."""
        offers: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for offer in importlib.metadata.entry_points(group=self.group):
            offers.setdefault(offer.name, []).append(offer)
        return offers

    def _load(self, name: str, offer: importlib.metadata.EntryPoint) -> None:
        try:
            function = offer.load()
        except Exception as error:
            raise EntryPointError(
                f"{self.kind} {name!r} is offered by {_distribution(offer)} as {offer.value!r}, which cannot be "
                f"imported: {type(error).__name__}: {error}"
            ) from error
        if name not in self._specs:  # importing it may have run our decorator
            self.register(name)(function)
        self._loaded.add(name)

    def _refuse_rivals(self, name: str, offers: list[importlib.metadata.EntryPoint]) -> None:
        known = self._specs.get(name)
        registered = known is not None and name not in self._loaded
        if known is not None and registered and len(offers) == 1 and _leads_to(offers[0], known.function):
            self._loaded.add(name)
            return
        owners = [f"{offer.value} of {_distribution(offer)}" for offer in offers]
        if known is not None and registered:
            owners.insert(0, _where(known.function))
        if len(owners) > 1:
            raise DuplicateNameError(
                f"{self.kind} {name!r} has several owners: {'; '.join(owners)}. Keep one."
            )


def _read(kind: str, name: str, function: Callable[..., Any], source: str) -> Spec:
    """Read off a signature what a function needs."""
    required: list[str] = []
    optional: list[str] = []
    options: dict[str, Any] = {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise DefinitionError(
            f"{kind} {name!r}: {function!r} is no function with a signature to read"
        ) from None
    for parameter in parameters.values():
        has_default = parameter.default is not parameter.empty
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise DefinitionError(
                f"{kind} {name!r}: {parameter.name!r} is positional-only; inputs come by name"
            )
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name == "config":
            continue
        if parameter.name in FIELDS:
            (optional if has_default else required).append(parameter.name)
        elif has_default or parameter.name in SETTINGS:
            options[parameter.name] = parameter.default
        else:
            raise DefinitionError(
                f"{kind} {name!r}: parameter {parameter.name!r} is no known input, and an option needs a default."
                f"{did_you_mean(parameter.name, FIELDS)} Known inputs: {', '.join(FIELDS)}."
            )
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    takes_config = "config" in parameters or takes_any
    return Spec(name, function, source, (*required,), (*optional,), options, takes_config, takes_any)


def _same(known: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether a module has been reloaded, or a notebook's cell run again, rather than the name taken by another."""
    if known is function:
        return True
    code, other = (getattr(inspect.unwrap(f), "__code__", None) for f in (known, function))
    if code is None or other is None or _where(known) != _where(function) or "<" in _where(function):
        return False
    place = (code.co_filename, code.co_firstlineno)
    return function.__module__ == "__main__" or place == (other.co_filename, other.co_firstlineno)


def _leads_to(offer: importlib.metadata.EntryPoint, function: Callable[..., Any]) -> bool:
    """Whether an entry point leads to a function that has been registered already."""
    try:
        return offer.load() is function
    except Exception:  # then it is a rival, and is named as one
        return False


def _where(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}:{name}"


def _distribution(offer: importlib.metadata.EntryPoint) -> str:
    return f"distribution {offer.dist.name!r}" if offer.dist else "an unknown distribution"


# Elsewhere: what verl and TRL call one of ours, where no hint finds it or it finds another.
ADV_ESTIMATORS = Registry(
    "advantage estimator",
    "rl_estimators.adv_estimators",
    "estimate",
    {
        "ppo": "gae",
        "reinforce++": "reinforce_pp",
        "grpo_vectorized": "grpo",
        "rloo_vectorized": "rloo",
    },
)
POLICY_LOSSES = Registry(
    "policy loss",
    "rl_estimators.policy_losses",
    "policy_loss",
    {**dict.fromkeys(("vanilla", "ppo", "grpo", "dapo"), "ppo_clip"), "geo_mean": "gmpo"},
)
VALUE_LOSSES = Registry("value loss", "rl_estimators.value_losses", "value_loss")
_REGISTRIES = (ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES)
