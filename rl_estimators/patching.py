"""Guarded, visible, reversible replacements of upstream functions: a last resort, kept honest.

A :class:`Patch` is data: the target, the releases it was reviewed for, what the original must look like.
:func:`install` arms it, :func:`report` tells what became of it, :func:`require` refuses to go on without
it, :func:`uninstall` puts the original back. A patch that does not fit leaves upstream as it is and says so;
it never breaks an upstream import, unless ``RL_ESTIMATORS_STRICT=1`` asks for that.
"""

import functools
import hashlib
import importlib.metadata
import inspect
import logging
import os
import sys
from collections.abc import Callable
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
    "digest",
    "disabled",
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
        digests: Reviewed values of :func:`digest`. Empty when the replacement only calls the original;
            filled when it repeats some of the original's body.
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
    digests: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Status:
    """A patch, its state, and what there is to say about it."""

    patch: Patch
    state: State
    detail: str = ""

    @property
    def healthy(self) -> bool:
        return (
            self.state not in (State.UNSUPPORTED, State.DRIFTED, State.FAILED)
            and "too late" not in self.detail
        )

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.patch.name}: {self.state.value}{detail} [{self.patch.module}:{self.patch.attribute}]"


_statuses: dict[str, Status] = {}


def install(patch: Patch) -> None:
    """Arm ``patch``: it is applied when its module is imported. A second call changes nothing.

    Raises:
        PatchError: another patch has this name.
    """
    known = _statuses.get(patch.name)
    if known is not None and known.patch != patch:
        raise PatchError(f"two different patches are named {patch.name!r}; rename one of them")
    if known is None:
        _statuses[patch.name] = Status(patch, State.PENDING)
        if {"all", patch.name} & disabled():
            _statuses[patch.name] = Status(patch, State.DISABLED, f"by {DISABLE}")
        when_imported(patch.module, functools.partial(_on_import, patch))


def disabled() -> set[str]:
    """The names that ``RL_ESTIMATORS_DISABLE_PATCHES`` lists."""
    return {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}


def report() -> list[Status]:
    """What became of every patch, in order of installation."""
    return list(_statuses.values())


def require(name: str, *, purpose: str) -> None:
    """Refuse to go on unless the patch ``name`` is applied, or will be when its module is imported.

    Raises:
        PatchError: it is not; the message names ``purpose``, the state, what was expected and found.
    """
    status = _statuses.get(name)
    if status is None or status.state not in (State.APPLIED, State.PENDING):
        found = f"{status}" if status else f"{name}: not installed"
        raise PatchError(f"{purpose} needs a hook that is not in force. {found}. See `rl-estimators doctor`.")


def uninstall(name: str) -> None:
    """Put the original back.

    Raises:
        PatchError: no such patch, or somebody else has replaced the target since.
    """
    if name not in _statuses:
        raise PatchError(f"no patch is named {name!r}; installed: {', '.join(_statuses) or 'none'}")
    status = _statuses[name]
    if status.state is State.APPLIED:
        owner, leaf = _resolve(sys.modules[status.patch.module], status.patch.attribute)
        current = vars(owner)[leaf]
        if getattr(current, _MARK, None) != name:
            raise PatchError(f"cannot undo {name!r}: {status.patch.attribute} has since become {current!r}")
        setattr(owner, leaf, current.__wrapped__)
    _statuses[name] = Status(status.patch, State.DISABLED, "uninstalled")


def signature(function: Function) -> str:
    """Names, kinds and defaults of the parameters; no annotations, which Python versions print differently."""
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(bare))


def digest(function: Function) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the function's source."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


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
    if _statuses[patch.name].state is State.DISABLED:
        return _statuses[patch.name]
    if not patch.needed():
        return Status(patch, State.UNNEEDED)
    release = importlib.metadata.version(patch.distribution)
    if not SpecifierSet(patch.releases).contains(release, prereleases=True):
        detail = f"{patch.distribution} {release}, reviewed for {patch.releases}"
        return Status(patch, State.UNSUPPORTED, detail)

    owner, leaf = _resolve(module, patch.attribute)
    original = vars(owner)[leaf]
    if getattr(original, _MARK, None) == patch.name:
        return Status(patch, State.APPLIED)
    if signature(original) != patch.signature:
        return Status(patch, State.DRIFTED, f"expected {patch.signature}, found {signature(original)}")
    if patch.digests and digest(original) not in patch.digests:
        expected = " or ".join(sorted(patch.digests))
        return Status(patch, State.DRIFTED, f"expected source {expected}, found {digest(original)}")

    replacement = functools.wraps(original)(patch.wrap(original))  # keeps its name: Ray pickles by reference
    setattr(replacement, _MARK, patch.name)
    setattr(owner, leaf, replacement)
    return Status(patch, State.APPLIED, _holders(original, patch.module.partition(".")[0]))


def _holders(original: Function, family: str) -> str:
    """Where loaded modules still hold the original because they imported it by name before us.

    Only in modules whose names begin with ``family``, the upstream package: all of them are thousands.
    """
    holders = [
        f"{module}.{name}"
        for module, namespace in list(sys.modules.items())
        if module.startswith(family) or module == "__main__"
        for name, value in list(getattr(namespace, "__dict__", {}).items())
        if value is original
    ]
    return f"too late for {', '.join(sorted(holders))}" if holders else ""


def _resolve(module: ModuleType, attribute: str) -> tuple[Any, str]:
    *path, leaf = attribute.split(".")
    return functools.reduce(getattr, path, module), leaf
