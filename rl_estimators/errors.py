"""Every exception that this package raises on purpose.

EstimatorError
├── UnknownNameError (LookupError)      nothing is registered under that name
├── DuplicateNameError (ValueError)     the name is taken
├── DefinitionError (TypeError)         a function that cannot be registered
├── InputError (ValueError)             an input or option is missing, misshapen, of a wrong dtype or unknown
├── EntryPointError (ImportError)       another distribution's offer cannot be imported
├── CheckpointError (OSError)            a checkpoint cannot be written
└── PatchError (RuntimeError)           a hook into upstream code is not in force, or cannot be undone

All of them survive pickling: they cross Ray's process borders as they are.
"""

__all__ = [
    "CheckpointError",
    "DefinitionError",
    "DuplicateNameError",
    "EntryPointError",
    "EstimatorError",
    "InputError",
    "PatchError",
    "UnknownNameError",
]


class EstimatorError(Exception):
    """Base of the hierarchy above."""


class UnknownNameError(EstimatorError, LookupError):
    """Nothing is registered under that name."""


class DuplicateNameError(EstimatorError, ValueError):
    """The name is taken by another function."""


class DefinitionError(EstimatorError, TypeError):
    """A function whose signature cannot be registered."""


class InputError(EstimatorError, ValueError):
    """An input or option is missing, misshapen, of a wrong dtype, or unknown."""


class EntryPointError(EstimatorError, ImportError):
    """What another distribution offers under an entry point cannot be imported."""


class CheckpointError(EstimatorError, OSError):
    """A checkpoint cannot be written: the disk is full, say."""


class PatchError(EstimatorError, RuntimeError):
    """A hook into upstream code is needed and not in force, or cannot be undone."""
