"""Finds the logs of training runs in files and folders, by what is in them, and reads them."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl_estimators.errors import InputError
from rl_estimators.files.plain import escaped
from rl_estimators.files.problems import Problems
from rl_estimators.plot import event_file, trainer_state, verl_log
from rl_estimators.plot.runs import Points, Run

__all__ = ["is_log", "load"]

_HEAD = 2**16  # bytes of a file that tell its format
_FORMATS: Mapping[str, tuple[Callable[[bytes], bool], Callable[[Path, Points, Problems], None]]] = {
    "event files": (event_file.is_event_file, event_file.read),
    "trainer_state.json": (trainer_state.is_trainer_state, trainer_state.read),
    "verl's file logger": (verl_log.is_verl_log, verl_log.read),
}
_KNOWN = (
    "verl's file logger (trainer.logger=[file]), TensorBoard's event files (trainer.logger=[tensorboard], "
    'report_to="tensorboard") and the trainer_state.json in TRL\'s checkpoints'
)


@dataclass
class _Log:
    """Files of one format that hold one run: ``place`` tells it apart from others."""

    place: Path
    format: str
    files: list[Path] = field(default_factory=list)


def load(paths: Sequence[Path], problems: Problems) -> list[Run]:
    """Read every run in ``paths``, files or folders, which are searched with all that is below them.

    A file of verl is a run; so are the event files of one folder, in the order in which they were begun; and the
    states in a folder's checkpoints, of which the one that went furthest holds them all. Folders whose names begin
    with a dot are left out. States are left out where event files below the same folder went as far: they tell of
    the same run.

    Raises:
        InputError: a path does not exist or has no log in it; or something in a log cannot be read and ``problems``
            is strict.
    """
    logs: dict[tuple[Path, str], _Log] = {}
    for path in paths:
        found = list(_search(path, problems))
        if not found:
            raise InputError(f"{path}: no log of a run in it; known are {_KNOWN}")
        for log in found:
            files = logs.setdefault((log.place, log.format), _Log(log.place, log.format)).files
            files.extend(file for file in log.files if file not in files)
    read = [(log, _read(log, problems)) for log in logs.values()]
    kept = [(log, points) for log, points in read if not _told_elsewhere(log, points, read, problems)]
    names = _names([log for log, _ in kept], paths)
    return [points.run(name, problems) for name, (_, points) in zip(names, kept, strict=True)]


def is_log(path: Path) -> bool:
    """Whether a file is one of those that :func:`load` reads, so that no output takes its place."""
    with path.open("rb") as opened:
        return _format(opened.read(_HEAD)) is not None


def _format(head: bytes) -> str | None:
    return next((name for name, (fits, _) in _FORMATS.items() if fits(head)), None)


def _search(path: Path, problems: Problems) -> Iterator[_Log]:
    """The logs in a file or folder, a file each."""
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    path = path.resolve()
    for file in sorted(_files(path, problems)) if path.is_dir() else [path]:
        try:
            with file.open("rb") as opened:
                head = opened.read(_HEAD)
        except OSError as error:
            if file == path:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from None
            problems.skip("the file", f"cannot be read ({error.strerror})", file)
            continue
        name = _format(head)
        if name is not None:
            yield _Log(_place(file, name), name, [file])


def _files(folder: Path, problems: Problems) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        problems.skip("the folder", f"cannot be read ({error.strerror})", Path(error.filename))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (file for file in (Path(parent, name) for name in names) if file.is_file())


def _place(file: Path, format_: str) -> Path:
    """What tells a file's run apart: the file without ``.jsonl``, the event file's folder, TRL's output folder."""
    if format_ == "verl's file logger":
        return file.with_suffix("") if file.suffix == ".jsonl" else file
    inside_checkpoint = format_ == "trainer_state.json" and file.parent.name.startswith("checkpoint-")
    return file.parent.parent if inside_checkpoint else file.parent


def _read(log: _Log, problems: Problems) -> Points:
    files = log.files
    if log.format == "trainer_state.json":
        return _furthest(files, problems)
    if log.format == "event files":
        files = sorted(files, key=_started)
    points = Points()
    for file in files:
        _FORMATS[log.format][1](file, points, problems)
    return points


def _furthest(files: Sequence[Path], problems: Problems) -> Points:
    """Of a run's states the one that holds the most: the last checkpoint's, or one beside the checkpoints."""
    last = max(files, key=_checkpoint)
    states = []
    for file in {last, *(file for file in files if _checkpoint(file) < 0)}:
        states.append(Points())
        trainer_state.read(file, states[-1], problems)
    return max(states, key=lambda points: points.last_step)


def _checkpoint(file: Path) -> int:
    """The number of the checkpoint that a state lies in; -1 outside of one."""
    number = file.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _started(file: Path) -> tuple[float, str]:
    with file.open("rb") as opened:
        return event_file.started(opened.read(64)), file.name


def _told_elsewhere(
    log: _Log, points: Points, read: Sequence[tuple[_Log, Points]], problems: Problems
) -> bool:
    """Whether these are states whose run is there in event files as well."""
    if log.format != "trainer_state.json":
        return False
    for other, theirs in read:
        inside = log.place in (other.place, *other.place.parents)
        if other.format == "event files" and inside and theirs.last_step >= points.last_step:
            problems.tell(
                f"{log.place}: its trainer_state.json is left out: the event files in {other.place} went as far"
            )
            return True
    return False


def _names(logs: Sequence[_Log], paths: Sequence[Path]) -> list[str]:
    """A run's name: its path below what all have in common; for a single run what was asked for."""
    if len(logs) == 1:
        path = paths[0].resolve()
        return [escaped(path.name if path.is_dir() else logs[0].place.name)]
    places = [_output_folder(log, logs) for log in logs]
    common = Path(os.path.commonpath([place.parent for place in places]))
    names = [str(place.relative_to(common)) for place in places]
    return [
        escaped(name if names.count(name) == 1 else f"{name} ({log.format})")
        for name, log in zip(names, logs, strict=True)
    ]


def _output_folder(log: _Log, logs: Sequence[_Log]) -> Path:
    """``out`` for transformers' ``out/runs/Jul01_12-00-00_host``, if no other run lies in ``out``."""
    place = log.place
    if place.parent.name != "runs":
        return place
    folder = place.parent.parent
    alone = sum(folder in (other.place, *other.place.parents) for other in logs) == 1
    return folder if alone else place
