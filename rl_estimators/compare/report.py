"""What is printed: tables of plain text, as wide as the terminal."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence

from rl_estimators.compare.overall import Overall, Row, add_up
from rl_estimators.compare.summary import Contested, Prompt, Summary
from rl_estimators.files.plain import MOST, clip, clip_middle, escaped, pad, width

__all__ = ["report"]

_ALIKE = ("right", "wrong", "same")
_NAME = 30  # columns of an estimator's name, at most


def report(summaries: Sequence[Summary], columns: int, shown: int, each: bool) -> Iterator[str]:
    """The lines of a report.

    Args:
        summaries: At least one.
        columns: How wide a line may be; at least 40.
        shown: How many prompts and responses are listed.
        each: A table of the estimators for each batch, before the one over all.
    """
    yield from _head(summaries, columns)
    if each and len(summaries) > 1:
        for summary in summaries:
            overall = add_up([summary], shown)
            yield from ["", clip(_where(summary.rollouts.source, summary.rollouts.step), columns)]
            yield from _standings(overall, columns)
            yield from _in_words(_alike(overall), columns)
    overall = add_up(summaries, shown)
    where = "" if len(summaries) == 1 else f", over {len(summaries):,} batches"
    yield from _heading(f"What each makes of the responses{where}", columns)
    yield from _standings(overall, columns)
    yield from _legend(columns)
    yield from _not_run(overall, columns)
    if len(overall.rows) > 1:
        yield from _heading(
            "Rank agreement (Spearman: 1 the same order of responses, 0 unrelated, -1 reversed)", columns
        )
        yield from _matrix(overall, overall.ranks.tolist(), lambda x: f"{x:.2f}", columns)
        yield from _heading(
            "Sign disagreement (share of responses that one praises and the other blames)", columns
        )
        yield from _matrix(overall, overall.signs.tolist(), _percent, columns)
    yield from _silent(overall, columns)
    yield from _carriers(overall, columns)
    yield from _contested(overall, columns)


def _heading(text: str, columns: int) -> list[str]:
    return ["", *_wrapped(text, columns)]


def _head(summaries: Sequence[Summary], columns: int) -> Iterator[str]:
    responses = sum(len(summary.scores) for summary in summaries)
    prompts = sum(len(summary.prompts) for summary in summaries)
    tokens = sum(int(summary.lengths.sum()) for summary in summaries)
    sources = [*dict.fromkeys(summary.rollouts.source for summary in summaries)]
    named = sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1:,} more"
    kinds = [*dict.fromkeys(summary.rollouts.format for summary in summaries)]
    yield clip(f"{named}: {', '.join(kinds)}", columns)
    exact = all(summary.rollouts.exact for summary in summaries)
    unit = f"{tokens:,} tokens" if exact else f"about {tokens:,} tokens"
    steps = f"{len(summaries):,} batches, " if len(summaries) > 1 else ""
    yield from _wrapped(
        f"{steps}{responses:,} responses to {prompts:,} prompts, {unit}, {_rewards(summaries)}", columns
    )
    if not exact:
        text = "The file holds text and no tokens. It is split at words: lengths, and what is counted per token, are "
        yield from _wrapped(text + "approximate. With --tokenizer they are exact.", columns)
    for note, count in _notes(summaries).items():
        yield from _wrapped(note + (f" (so in {count:,} batches)" if count > 1 else ""), columns)


def _rewards(summaries: Sequence[Summary]) -> str:
    scores = [score for summary in summaries for score in summary.scores.tolist()]
    finite = [score for score in scores if math.isfinite(score)]
    odd = len(scores) - len(finite)
    if not finite:
        return "no reward is a number"
    told = f"rewards from {min(finite):.4g} to {max(finite):.4g}, mean {math.fsum(finite) / len(finite):.4g}"
    are = "reward is" if odd == 1 else "rewards are"
    return told + (f"; {odd:,} {are} NaN or infinite, which our estimators leave out" if odd else "")


def _notes(summaries: Sequence[Summary]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for summary in summaries:
        for note in summary.rollouts.notes:
            told = clip(note, MOST)
            counts[told] = counts.get(told, 0) + 1
    return counts


def _standings(overall: Overall, columns: int) -> Iterator[str]:
    heads: dict[str, Callable[[Row], str]] = {
        "zero resp.": lambda row: _percent(row.zero_responses),
        "zero tok.": lambda row: _percent(row.zero_tokens),
        "praised tok.": lambda row: _percent(row.praised_tokens),
        "spread": lambda row: f"{row.spread:.3g}",
        "carrying": lambda row: _percent(row.carrying),
        "largest": lambda row: _percent(row.largest),
    }
    if any(row.excluded for row in overall.rows.values()):
        heads["left out"] = lambda row: f"{row.excluded:,}"
    lines = [["", *heads]]
    lines += [
        [_numbered(at, name), *(tell(row) for tell in heads.values())]
        for at, (name, row) in enumerate(overall.rows.items())
    ]
    yield from _table(lines, columns)


def _legend(columns: int) -> Iterator[str]:
    yield from _in_words(
        "zero: responses, and tokens, with the advantage 0, from which nothing is learnt. praised: tokens with an advantage "
        "above 0. spread: the standard deviation of the tokens' advantages. carrying: prompts with any advantage other "
        "than 0. largest: the part of the sum of all absolute advantages that one prompt has, at most.",
        columns,
    )


def _not_run(overall: Overall, columns: int) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for name, reason in overall.not_run.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield from _in_words(f"not run: {', '.join(names)}: {reason}", columns)


def _matrix(
    overall: Overall, table: Sequence[Sequence[float]], tell: Callable[[float], str], columns: int
) -> Iterator[str]:
    """Columns have the numbers of the rows' names."""
    lines = [["", *(str(at + 1) for at in range(len(table)))]]
    for at, (name, row) in enumerate(zip(overall.rows, table, strict=True)):
        cells = ["" if other == at else "-" if math.isnan(x) else tell(x) for other, x in enumerate(row)]
        lines.append([_numbered(at, name), *cells])
    yield from _table(lines, columns)


def _alike(overall: Overall) -> str:
    """What is to be learnt from prompts whose responses all have one score."""
    kinds, names = overall.kinds, {"right": "all right", "wrong": "all wrong", "same": "all the same"}
    number, prompts = sum(kinds[kind] for kind in _ALIKE), sum(kinds.values())
    alone = ""
    if kinds["single"]:
        alone = f" With a single response, and so none to compare it with: {kinds['single']:,}."
    if not number:
        return f"No prompt has responses that all score the same.{alone}"
    parts = ", ".join(f"{kinds[kind]:,} {names[kind]}" for kind in _ALIKE if kinds[kind])
    told = f"{number:,} of {prompts:,} prompts have responses that all score the same ({parts})."
    quiet = [name for name, row in overall.rows.items() if row.quiet == number]
    loud = [name for name, row in overall.rows.items() if row.quiet < number]
    told += " Right or wrong, within such a prompt there is nothing to compare."
    if quiet:
        told += (
            f" Nothing is learnt from any of them, for all their advantages are 0, under {', '.join(quiet)}."
        )
    if loud:
        told += f" Not so under {', '.join(loud)}: the prompt's own responses are not all that counts there."
    return told + alone


def _silent(overall: Overall, columns: int) -> Iterator[str]:
    yield from _heading("Prompts without a difference between their responses", columns)
    yield from _in_words(_alike(overall), columns)
    if not overall.silent:
        return
    names = {"right": "all right", "wrong": "all wrong", "same": "all the same"}
    lines = [["", "responses", "score", ""]]
    for summary, at in overall.silent:
        prompt = summary.prompts[at]
        lines.append([_title(summary, prompt), str(prompt.size), f"{prompt.mean:.4g}", names[prompt.kind]])
    yield from _table(lines, columns)


def _carriers(overall: Overall, columns: int) -> Iterator[str]:
    if not overall.carriers:
        return
    yield from _heading(
        "Prompts that carry the signal (part of the sum of absolute advantages of their batch)", columns
    )
    lines = [["", "responses", "mean", *(str(at + 1) for at in range(len(overall.rows)))]]
    for summary, at in overall.carriers:
        prompt = summary.prompts[at]
        shares = [
            _percent(summary.shares[name][at]) if name in summary.shares else "" for name in overall.rows
        ]
        lines.append([_title(summary, prompt), str(prompt.size), f"{prompt.mean:.3g}", *shares])
    yield from _table(lines, columns)


def _contested(overall: Overall, columns: int) -> Iterator[str]:
    if len(overall.rows) < 2 or not overall.contested:
        return
    yield from _heading("Most contested responses (advantage, mean over a response's tokens)", columns)
    for one in overall.contested:
        yield ""
        yield from _response(one, columns)
        numbers = ((at, one.advantages.get(name)) for at, name in enumerate(overall.rows))
        cells = [
            f"{at + 1}={number:+.3g}" if number else f"{at + 1}=0"
            for at, number in numbers
            if number is not None
        ]
        yield from _in_words("   ".join(cells), columns, indent="    ")


def _response(one: Contested, columns: int) -> Iterator[str]:
    alike = f" (and {one.alike:,} more to this prompt like it)" if one.alike else ""
    yield clip(
        f"  {_where(one.source, one.step)}, response {one.row + 1}, reward {one.score:.4g}{alike}", columns
    )
    if one.prompt is not None:
        yield clip(f"    prompt:   {one.prompt}", columns)
    yield "    response: " + clip_middle(one.response, columns - 14)


def _where(source: str, step: int | None) -> str:
    return source if step is None else f"{source}, step {step}"


def _title(summary: Summary, prompt: Prompt) -> str:
    step = "" if summary.rollouts.step is None else f"step {summary.rollouts.step}: "
    return step + (str(prompt.name) if prompt.text is None else prompt.text)


def _numbered(at: int, name: str) -> str:
    return f"{at + 1} {clip(name, _NAME)}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f}%" if share in (0, 1) else _between(100 * share)


def _between(percent: float) -> str:
    """Neither none nor all look like 0 or 100."""
    return "<1%" if percent < 0.5 else ">99%" if percent > 99.5 else f"{percent:.0f}%"


def _table(lines: Sequence[Sequence[str]], columns: int) -> Iterator[str]:
    """The first column to the left, clipped to the room there is; columns that do not fit go into a table below."""
    widths = [max(len(line[at]) for line in lines) + 2 for at in range(1, len(lines[0]))]
    title = max(width(escaped(line[0])) for line in lines)
    least = min(title, max(20, columns // 4))
    first = 0
    while first < len(widths):
        room, end = columns - 2 - least, first
        while end < len(widths) and (end == first or widths[end] <= room):
            room -= widths[end]
            end += 1
        own = max(8, min(title, columns - 2 - sum(widths[first:end])))
        for line in lines:
            cells = (pad(line[at + 1], widths[at], right=True) for at in range(first, end))
            yield f"  {pad(clip(line[0], own), own)}{''.join(cells)}".rstrip()
        first = end


def _in_words(text: str, columns: int, indent: str = "  ") -> Iterator[str]:
    yield from _wrapped(text, columns, indent)


def _wrapped(text: str, columns: int, indent: str = "") -> list[str]:
    shown = escaped(text)
    narrow = columns if width(shown) == len(shown) else columns // 2  # signs may take two columns each
    return textwrap.wrap(shown, narrow, initial_indent=indent, subsequent_indent=indent)
