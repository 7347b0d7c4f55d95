"""What a file holds: its responses, by training step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rl_estimators.compare import schema, trl_completions, verl_dump
from rl_estimators.compare.limits import MOST_LINE, Budget
from rl_estimators.compare.record import Record
from rl_estimators.compare.steps import Steps
from rl_estimators.compare.weights import Weights
from rl_estimators.errors import InputError
from rl_estimators.files.lines import Wording, json_lines
from rl_estimators.files.problems import Problems

__all__ = ["Content", "Gatherer"]

_PARSE = {"verl": verl_dump.parse, "jsonl": schema.parse}
_NAMED = 20
_NOTHING = "it has none"
_WORDING = Wording()


@dataclass
class Content:
    """What a file holds.

    Attributes:
        kind: What it was read as: ``verl``, ``trl`` or ``jsonl``.
        steps: The responses of each step that was chosen.
        others: The steps that were not.
        notes: What a reader of the numbers has to know.
    """

    kind: str
    steps: dict[int | None, list[Record]] = field(default_factory=dict)
    others: set[int | None] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


@dataclass
class Gatherer:
    """Reads files row by row; a row that cannot be read is a problem, a file without a row that can is an error.

    Attributes:
        chosen: Which steps are kept.
        weights: They may name the columns that are rewards.
        problems: Takes the rows that are skipped.
        advance: Told how many bytes have been read.
        budget: How much has been kept, of all files.
    """

    chosen: Steps
    weights: Weights
    problems: Problems
    advance: Callable[[int], None]
    budget: Budget = field(default_factory=Budget)

    def completions(self, path: Path, source: str) -> Content:
        """TRL's completions.

        Raises:
            InputError: nothing in it can be read, or it is too large.
        """
        content = Content("trl")
        first = _NOTHING
        for place, read in trl_completions.rows(path, source, self.weights):
            try:
                record = read()
            except InputError as error:
                first = f"row {place.rpartition(' ')[2]}: {error}" if first == _NOTHING else first
                self.problems.skip(place, str(error))
                continue
            self._keep(content, record, source)
        self.advance(path.stat().st_size)
        if not (content.steps or content.others):
            raise InputError(f"{source}: no row can be read: {first}")
        return content

    def lines(self, path: Path, source: str, kind: str | None) -> Content:
        """JSON lines, verl's or of our schema.

        Args:
            path: The file.
            source: Its name, for messages.
            kind: ``verl`` or ``jsonl``; None: what its first line is.

        Raises:
            InputError: nothing in it can be read, or it is too large.
        """
        content = Content(kind or "")
        first = _NOTHING
        unread: dict[str, None] = {}
        for number, row, _ in json_lines(path, MOST_LINE, _WORDING, self.advance):
            try:
                if isinstance(row, str):
                    raise InputError(row)
                content.kind = content.kind or ("verl" if verl_dump.is_row(row) else "jsonl")
                record = _PARSE[content.kind](row, f"{source}:{number}")
            except InputError as error:
                first = f"line {number}: {error}" if first == _NOTHING else first
                self.problems.skip(f"{source}:{number}", str(error))
                continue
            self._keep(content, record, source)
            if content.kind == "jsonl":
                unread |= dict.fromkeys(name for name in row if not schema.known(name))
                unread = dict.fromkeys([*unread][:_NAMED])
        if not (content.steps or content.others):
            raise InputError(f"{source}: no line can be read: {first}")
        if unread:
            content.notes.append(f"not read: {', '.join(unread)}")
        return content

    def _keep(self, content: Content, record: Record, source: str) -> None:
        if record.step not in self.chosen:
            content.others.add(record.step)
            return
        self.budget.spend(source, record.characters())
        content.steps.setdefault(record.step, []).append(record)
