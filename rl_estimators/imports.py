"""Call a function when a module has been imported, without importing that module.

The idea is PEP 369's post-import hook; `wrapt` ships one too. Ours also fires again after
``importlib.reload`` and refuses a module that is half imported, where wrapt would call back too early.
Standard library only: this runs while somebody else's ``import`` statement is still under way.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["when_imported"]

Callback = Callable[[ModuleType], None]
_HEARD = "__rl_estimators_listens__"


def when_imported(module: str, callback: Callback) -> None:
    """Call ``callback(module)`` now if ``module`` is loaded, and after each later import or reload of it.

    What ``callback`` raises comes out of the ``import`` statement that triggered it.

    Raises:
        ImportError: ``module`` is being imported at this moment, so the call would come too early.
    """
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded.__spec__, "_initializing", False):
        raise ImportError(f"cannot wait for {module!r}: its import is already under way", name=module)
    _callbacks.setdefault(module, []).append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if loaded is not None:
        callback(loaded)


class _Finder:
    """First on ``sys.meta_path``: leaves the finding to the others and listens in on the execution."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _callbacks:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)  # importlib skips such, too
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                _listen(spec)
                return spec
        return None


def _listen(spec: ModuleSpec) -> None:
    loader = spec.loader
    # A namespace package executes nothing; a loader may be shared, and is listened to once.
    if loader is None or hasattr(loader, _HEARD):
        return
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        for callback in tuple(_callbacks.get(module.__name__, ())):
            callback(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]
    setattr(loader, _HEARD, True)


_callbacks: dict[str, list[Callback]] = {}
_finder = _Finder()
