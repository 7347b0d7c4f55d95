"""From files to batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rl_estimators.compare import tensors
from rl_estimators.compare.batching import batch
from rl_estimators.compare.content import Content, Gatherer
from rl_estimators.compare.files import files_of, kind_of
from rl_estimators.compare.model import Rollouts
from rl_estimators.compare.record import Record
from rl_estimators.compare.steps import Steps
from rl_estimators.compare.verl_dump import final_outputs
from rl_estimators.compare.weights import Weights
from rl_estimators.compare.words import Splitter, Words
from rl_estimators.errors import InputError
from rl_estimators.files.problems import Problems

__all__ = ["FORMATS", "Reader"]

FORMATS = {
    "verl": "verl's rollout dump",
    "trl": "TRL's logged completions",
    "jsonl": "JSON lines",
    "tensors": "a batch of tensors",
}


@dataclass
class Reader:
    """Reads rollouts, one training step after the other.

    Attributes:
        format: One of :data:`FORMATS`; None: what each file's content says.
        steps: Which steps.
        splitter: What text is cut with.
        weights: What each of several rewards counts for.
        problems: Takes the lines and files that are skipped.
        advance: Told how many bytes have been read.
    """

    format: str | None = None
    steps: Steps = field(default_factory=Steps)
    splitter: Splitter = field(default_factory=Words)
    weights: Weights = field(default_factory=Weights)
    problems: Problems = field(default_factory=Problems)
    advance: Callable[[int], None] = lambda count: None

    def read(self, paths: Iterable[str | Path]) -> Iterator[Rollouts]:
        """The batches of all files, a file's in the order of their steps.

        Raises:
            InputError: a file that was named is not there or cannot be read; a folder holds none that can; no step was
                chosen that is there. A file that was found in a folder and cannot be read is skipped.
        """
        gatherer = Gatherer(self.steps, self.weights, self.problems, self.advance)
        others: set[int | None] = set()
        found = False
        before: list[object] = []  # what TRL logged last
        for path, named in files_of(paths):
            try:
                content = self._content(gatherer, path)
            except InputError as error:
                if named or self.problems.strict or gatherer.budget.over:
                    raise
                self.problems.skip(str(path), str(error).removeprefix(f"{path}: "))
                continue
            if isinstance(content, Rollouts):
                if content.step in self.steps:
                    found = True
                    yield content
                else:
                    others.add(content.step)
                continue
            others |= content.others
            for rollouts in self._batches(content, str(path), before):
                found = True
                yield rollouts
        if not found:
            raise self._nothing(others)

    def _content(self, gatherer: Gatherer, path: Path) -> Content | Rollouts:
        source = str(path)
        try:
            kind = self.format or kind_of(path, source)
            if kind == "tensors":
                self.advance(path.stat().st_size)
                return tensors.load(path, source)
            if kind == "trl":
                return gatherer.completions(path, source)
            return gatherer.lines(path, source, None if kind == "lines" else kind)
        except OSError as error:
            raise InputError(f"{source}: it cannot be read: {error.strerror or error}") from error

    def _batches(self, content: Content, source: str, before: list[object]) -> Iterator[Rollouts]:
        for step in sorted(content.steps, key=lambda step: (step is not None, step or 0)):
            records, notes = content.steps.pop(step), list(content.notes)
            if content.kind == "trl" and self._repeats(records, before, source):
                continue
            if content.kind == "verl":
                final = final_outputs(records)
                if earlier := len(records) - len(final):
                    outputs, are = ("output", "is") if earlier == 1 else ("outputs", "are")
                    notes.append(
                        f"{earlier:,} {outputs} before the final one of an agent loop {are} left out"
                    )
                records = final
            rollouts = batch(
                source, records, self.splitter, self.weights, self.problems, FORMATS[content.kind], notes
            )
            if rollouts is not None:
                yield rollouts

    def _repeats(self, records: list[Record], before: list[object], source: str) -> bool:
        """Whether TRL has logged its last batch of completions again: it does so at each update on the same ones."""
        now = [
            (record.group, record.response, str(record.components), str(record.logged)) for record in records
        ]
        same = now == before
        before[:] = now
        if same:
            self.problems.note(source, "the completions of the step before, logged again, count once")
        return same

    def _nothing(self, others: set[int | None]) -> InputError:
        if not others:
            return InputError("nothing that was given holds a response that can be read")
        there = sorted(step for step in others if step is not None)
        steps = ", ".join(map(str, there[:10])) + (f", ... {there[-1]}" if len(there) > 10 else "")
        return InputError(
            f"no step is in --steps {self.steps.words}; there are: {steps or 'none with a number'}"
        )
