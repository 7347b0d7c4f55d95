"""Guarded, visible, reversible replacements of upstream functions: a last resort, kept honest.

A :class:`Patch` is data: the target, the releases it was reviewed for, what the original must look like.
:func:`install` arms it, :func:`report` tells what became of it, :func:`require` refuses to go on without
it, :func:`uninstall` puts the original back. A patch that does not fit leaves upstream as it is and says so;
it never breaks an upstream import, unless ``RL_ESTIMATORS_STRICT=1`` asks for that.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

from packaging.specifiers import SpecifierSet

from rl_estimators.errors import PatchError
from rl_estimators.imports import when_imported

__all__ = [
    "Patch",
    "State",
    "Status",
    "changed_body",
    "digest",
    "disabled",
    "in_force",
    "install",
    "report",
    "require",
    "signature",
    "uninstall",
]

DISABLE = "RL_ESTIMATORS_DISABLE_PATCHES"  # "all", or names of patches, separated by commas
STRICT = "RL_ESTIMATORS_STRICT"  # "1": a patch that should apply and cannot raises at import

Function = Callable[..., Any]
logger = logging.getLogger(__name__)
_MARK = "__rl_estimators_patch__"


class State(Enum):
    """What can become of a patch."""

    PENDING = "pending: its module has not been imported"
    APPLIED = "applied"
    UNNEEDED = "not needed here"
    DISABLED = "disabled"
    UNINSTALLED = "uninstalled"
    UNSUPPORTED = "unsupported release"
    DRIFTED = "drifted: upstream does not look as reviewed"
    FAILED = "failed"


@dataclass(frozen=True)
class Patch:
    """One replacement of one upstream function.

    Attributes:
        name: How users write it in ``RL_ESTIMATORS_DISABLE_PATCHES``.
        distribution: The distribution whose release must lie in ``releases``.
        releases: The releases it was reviewed for, as a PEP 440 specifier.
        module: The module that defines the target.
        attribute: The target's dotted path in that module.
        signature: :func:`signature` of the original, as reviewed.
        upstream: Link to the code or issue upstream.
        remove_when: The condition under which this patch can be deleted.
        wrap: Takes the original and returns the replacement.
        needed: Whether this process has any use for it; asked once, when the module has been imported.
        reviewed: :func:`digest` of the original by release, as it was read. Any of them will do, in any release.
        body_matters: The replacement relies on what the original does inside: another body is a drift. Else it
            is worth a look (:func:`changed_body`), and the patch is applied.
    """

    name: str
    distribution: str
    releases: str
    module: str
    attribute: str
    signature: str
    upstream: str
    remove_when: str
    wrap: Callable[[Function], Function] = field(compare=False)
    needed: Callable[[], bool] = field(default=lambda: True, compare=False)
    reviewed: Mapping[str, str] = field(default_factory=dict, hash=False)
    body_matters: bool = False


@dataclass(frozen=True)
class Status:
    """A patch, its state, and what there is to say about it.

    Attributes:
        patch: The patch.
        state: What became of it.
        detail: Why.
        late: Where loaded modules hold by name what has been replaced, having imported it before.
    """

    patch: Patch
    state: State
    detail: str = ""
    late: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is to be repaired."""
        return self.state not in (State.UNSUPPORTED, State.DRIFTED, State.FAILED) and not self.late

    def __str__(self) -> str:
        details = [self.detail] if self.detail else []
        details += [f"too late for {', '.join(self.late)}"] if self.late else []
        detail = f" ({'; '.join(details)})" if details else ""
        return f"{self.patch.name}: {self.state.value}{detail} [{self.patch.module}:{self.patch.attribute}]"


_statuses: dict[str, Status] = {}


def install(patch: Patch) -> None:
    """Arm ``patch``: it is applied when its module is imported, or now if it is.

    A second call changes nothing, but after :func:`uninstall`, when the patch is applied anew.

    Raises:
        PatchError: another patch has this name.
    """
    known = _statuses.get(patch.name)
    if known is not None and known.patch != patch:
        raise PatchError(f"two different patches are named {patch.name!r}; rename one of them")
    if known is not None and known.state is not State.UNINSTALLED:
        return
    _statuses[patch.name] = Status(patch, State.PENDING)
    if {"all", patch.name} & disabled():
        _statuses[patch.name] = Status(patch, State.DISABLED, f"by {DISABLE}")
    if known is None:
        when_imported(patch.module, functools.partial(_on_import, patch))
    elif patch.module in sys.modules:  # it listens already
        _on_import(patch, sys.modules[patch.module])


def disabled() -> set[str]:
    """The names that ``RL_ESTIMATORS_DISABLE_PATCHES`` lists."""
    return {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}


def report() -> list[Status]:
    """What became of every patch, in order of installation."""
    return list(_statuses.values())


def in_force(name: str) -> bool:
    """Whether the patch ``name`` is applied, or will be when its module is imported."""
    status = _statuses.get(name)
    return status is not None and status.state in (State.APPLIED, State.PENDING)


def require(name: str, *, purpose: str) -> None:
    """Refuse to go on unless the patch ``name`` is in force.

    Raises:
        PatchError: it is not; the message names ``purpose``, the state, what was expected and found.
    """
    status = _statuses.get(name)
    if status is not None and status.state is State.PENDING and not _can_come(status.patch.module):
        status = Status(status.patch, State.DRIFTED, f"gone: there is no module {status.patch.module}")
    if status is None or status.state not in (State.APPLIED, State.PENDING):
        found = status or f"{name}: not installed"
        raise PatchError(f"{purpose} needs a hook that is not in force. {found}. See `rl-estimators doctor`.")


def uninstall(name: str) -> None:
    """Put the original back. Who has imported the replacement by name keeps it, and is named in the report.

    Raises:
        PatchError: no such patch, or somebody else has replaced the target since.
    """
    if name not in _statuses:
        raise PatchError(f"no patch is named {name!r}; installed: {', '.join(_statuses) or 'none'}")
    status = _statuses[name]
    late = status.late
    if status.state is State.APPLIED:
        owner, leaf = _resolve(sys.modules[status.patch.module], status.patch.attribute)
        current = vars(owner)[leaf]
        if getattr(current, _MARK, None) != name:
            raise PatchError(f"cannot undo {name!r}: {status.patch.attribute} has since become {current!r}")
        setattr(owner, leaf, current.__wrapped__)
        late = _holders(status.patch, current)
    _statuses[name] = Status(status.patch, State.UNINSTALLED, late=late)


def signature(function: Function) -> str:
    """Names, kinds and defaults of the parameters; no annotations, which Python versions print differently."""
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(bare))


def digest(function: Function) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the function's source."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def changed_body(status: Status) -> str:
    """What to know of an applied patch whose original is not as any that was reviewed; empty if it is.

    Reads the original's source, so it is not asked while modules are imported.
    """
    if status.state is not State.APPLIED or not status.patch.reviewed:
        return ""
    owner, leaf = _resolve(sys.modules[status.patch.module], status.patch.attribute)
    return _other_body(status.patch, vars(owner)[leaf])


def _can_come(module: str) -> bool:
    """Whether ``module`` can be found; what keeps its packages from being imported is not for us to judge."""
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        missing = error.name or ""
        return not (module == missing or module.startswith(missing + "."))


def _on_import(patch: Patch, module: ModuleType) -> None:
    try:
        status = _apply(patch, module)
    except Exception as error:  # whatever upstream has become: tell, and leave it alone
        status = Status(patch, State.FAILED, f"{type(error).__name__}: {error}")
    _statuses[patch.name] = status
    if not status.healthy:
        if os.environ.get(STRICT) == "1":
            raise PatchError(str(status))
        logger.warning("rl_estimators: %s", status)


def _apply(patch: Patch, module: ModuleType) -> Status:
    if _statuses[patch.name].state in (State.DISABLED, State.UNINSTALLED):
        return _statuses[patch.name]
    if not patch.needed():
        return Status(patch, State.UNNEEDED)
    release = _release(patch.distribution)
    if not SpecifierSet(patch.releases).contains(release, prereleases=True):
        detail = f"{patch.distribution} {release}, reviewed for {patch.releases}"
        return Status(patch, State.UNSUPPORTED, detail)

    try:
        owner, leaf = _resolve(module, patch.attribute)
        original = vars(owner)[leaf]
    except (AttributeError, KeyError):
        return Status(patch, State.DRIFTED, f"gone: {patch.module} defines no {patch.attribute}")
    if getattr(original, _MARK, None) == patch.name:
        return Status(patch, State.APPLIED)
    if home := _moved_to(patch, original):
        return Status(patch, State.DRIFTED, f"moved: {patch.module} has it from {home}")
    if signature(original) != patch.signature:
        return Status(patch, State.DRIFTED, f"expected {patch.signature}, found {signature(original)}")
    if patch.body_matters and (other := _other_body(patch, original)):
        return Status(patch, State.DRIFTED, other)

    replacement = functools.wraps(original)(patch.wrap(original))  # keeps its name: Ray pickles by reference
    setattr(replacement, _MARK, patch.name)
    setattr(owner, leaf, replacement)
    return Status(patch, State.APPLIED, late=_holders(patch, original))


@functools.cache  # the look-up reads a file, and a dozen hooks would each do it
def _release(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def _moved_to(patch: Patch, original: Function) -> str:
    """The module of the same package that defines the target, if it is another: who imports it there gets no patch."""
    home = str(getattr(original, "__module__", patch.module))
    family = patch.module.partition(".")[0]
    return home if home != patch.module and home.partition(".")[0] == family else ""


def _other_body(patch: Patch, original: Function) -> str:
    found = digest(original)
    if found in patch.reviewed.values():
        return ""
    read = ", ".join(f"{source} in {release}" for release, source in patch.reviewed.items())
    return f"its body has changed: reviewed {read}, found {found}"


def _holders(patch: Patch, function: Function) -> tuple[str, ...]:
    """Where loaded modules hold a function by name; a method is looked up in its class at every call.

    Only modules whose names begin with that of the target's package: all of them are thousands.
    """
    if "." in patch.attribute:
        return ()
    family = patch.module.partition(".")[0]
    return tuple(
        sorted(
            f"{name}.{key}"
            for name, namespace in list(sys.modules.items())
            if name.startswith(family) or name == "__main__"
            for key, value in list(getattr(namespace, "__dict__", {}).items())
            if value is function
        )
    )


def _resolve(module: ModuleType, attribute: str) -> tuple[Any, str]:
    *path, leaf = attribute.split(".")
    return functools.reduce(getattr, path, module), leaf
