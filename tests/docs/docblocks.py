"""The code in README and docs: fenced blocks, and the output that stands below some of them.

A ```python block may be followed by a ```text block: then that is what it prints. One whose first line is ``# NAME.py`` is
the file of that name, in the working directory. ``python tests/docs/docblocks.py FILE`` runs a document's Python and writes
what it prints into those blocks, for whoever changes an example.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the docs name on the Hub; conftest.py has small ones under these names.
MODEL, REWARD_MODEL, VALUE_MODEL = "Qwen/Qwen3-0.6B", "my-org/my-reward-model", "my-org/my-value-model"
DATA, ARITHMETIC = "trl-lib/DeepMath-103K", "openai/gsm8k"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        document: Its file, from the root of the repository.
        line: Where it begins.
        language: What stands behind the fence.
        text: What stands inside, without the indentation of the fence.
        prints: The ``text`` block below it, None if there is none.
    """

    document: str
    line: int
    language: str
    text: str
    prints: str | None = None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[str]:
    """README and docs, from the root of the repository; README.zh-CN.md has README's code, see test_chinese.py."""
    return [
        "README.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
        "examples/own_estimator/README.md",
    ]


def blocks(document: str, language: str | None = None) -> Iterator[Block]:
    """The blocks of a document, in order; of one language if one is named."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for number, here in enumerate(found):
        if language not in (None, here[2]):
            continue
        below = next(iter(found[number + 1 :]), None)
        next_to = below is not None and below[2] == "text" and not text[here.end() : below.start()].strip()
        prints = _bare(below) if below is not None and next_to else None
        yield Block(document, text[: here.start()].count("\n") + 1, here[2], _bare(here), prints)


def _bare(fence: re.Match[str]) -> str:
    return "".join(line.removeprefix(fence[1]) for line in fence[3].splitlines(keepends=True))


def commands(document: str) -> Iterator[tuple[Block, str]]:
    """Each command of a document's ``bash`` blocks, on one line and without its comment."""
    for block in blocks(document, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*$", "", line)
            if command.strip():
                yield block, " ".join(command.split())


def printed(block: Block, scope: dict[str, object]) -> str:
    """What a Python block prints, run in the working directory; ``scope`` keeps its names from block to block."""
    out = io.StringIO()
    file = re.match(r"# (\w+)\.py\n", block.text)
    with contextlib.redirect_stdout(out):
        if file:  # a module of its own, which later blocks may import
            Path(f"{file[1]}.py").write_text(block.text, encoding="utf-8")
            scope.update(vars(importlib.import_module(file[1])))
        else:
            exec(compile(block.text, str(block), "exec"), scope)
    return out.getvalue()


def _rewrite(document: Path) -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    text = document.read_text(encoding="utf-8")
    for block in blocks(str(document.resolve().relative_to(ROOT)), "python"):
        shown = printed(block, scope) if "load_dataset" not in block.text else ""
        if block.prints is not None:
            before, after = (
                f"```python\n{block.text}```\n\n```text\n{one}```" for one in (block.prints, shown)
            )
            assert before in text, block
            text = text.replace(before, after)
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    paths = [Path(name).resolve() for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        for path in paths:
            _rewrite(path)
