"""Troubleshooting quotes messages that the code really has, and leaves none out that a user of verl or TRL can meet."""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docblocks import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
SOMETHING = "\0"  # in a template: a value that is known only when the message is made
# Raised where nobody sees them, or what is said is the error that was caught and what stands around it.
UNQUOTED = {
    "\0: \0",  # gdpo, whitening, losses: the message of another with the owner in front
    "\0.name=\0: \0",
    "\0.name=\0: \0\0",
    "\0=\0: \0",
    "\0=\0 with \0_kwargs: \0",
    "\0",
    "\0: \0 \0 \0.\0",  # "has no function", which the page quotes as a text by itself
    "rl_estimators: \0",  # a hook's state, which the page quotes from the doctor's lines
}
# Metrics, settings and the like that stand in the same column.
NO_MESSAGE = re.compile(
    r"^(critic|rl_estimators)/\w+$|^(grpo|reward_std|RL_ESTIMATORS_BACKEND|backend|hook NAME: ...)$"
)
UPSTREAM = {  # not ours
    "Unknown advantage estimator simply: ...": "trainer/ppo/core_algos.py",
    "Could not find 'algorithm/...'": None,  # Hydra's
    "Your setup doesn't support bf16/gpu.": None,  # transformers'
}
# Whose messages the page is for. The commands compare, plot and diagnostics have pages of their own.
COMPLETE = (
    *("rl_estimators/verl", "rl_estimators/trl", "patches", "rl_estimators/estimators", "rl_estimators/lab"),
    *(
        "rl_estimators/fields.py",
        "rl_estimators/registry.py",
        "rl_estimators/calls.py",
        "rl_estimators/compat.py",
    ),
    *(
        "rl_estimators/whitening.py",
        "rl_estimators/steps.py",
        "rl_estimators/masked.py",
        "rl_estimators/shaping.py",
    ),
    *(
        "rl_estimators/aggregation.py",
        "rl_estimators/patching.py",
        "rl_estimators/imports.py",
        "rl_estimators/modules.py",
        "rl_estimators/backends",
    ),
)


def files(*places: str) -> list[Path]:
    found = [ROOT / place for place in places]
    return sorted(file for one in found for file in ([one] if one.is_file() else one.rglob("*.py")))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def constants(path: Path) -> dict[str, str]:
    """The module-level texts of a file, such as keys that its messages begin with; read, not imported."""
    known: dict[str, str] = {}
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rl_estimators."):
            source = ROOT / f"{node.module.replace('.', '/')}.py"
            theirs = constants(source) if source.is_file() else {}
            known |= {one.asname or one.name: theirs[one.name] for one in node.names if one.name in theirs}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = template(node.value, known)
            if SOMETHING not in text:
                known[node.targets[0].id] = text
    return known


def template(node: ast.AST, known: dict[str, str]) -> str:
    """A message as the code has it, with SOMETHING for what is not known yet."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, known) + template(node.right, known)
    if isinstance(node, ast.Name):
        return known.get(node.id, SOMETHING)
    return SOMETHING


def texts(path: Path) -> Iterator[str]:
    """Every text in a file that could be a message."""
    known = constants(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.JoinedStr, ast.BinOp, ast.Constant)):
            yield template(node, known)


def raised(path: Path) -> Iterator[tuple[int, str]]:
    """What a file raises, warns of or prints."""
    known = constants(path)
    for node in ast.walk(tree(path)):
        call = node.exc if isinstance(node, ast.Raise) else node
        said = isinstance(call, ast.Call) and call.args
        named = ast.unparse(call.func) if said else ""
        if said and (isinstance(node, ast.Raise) or named in ("warnings.warn", "logger.warning", "print")):
            text = template(call.args[0], known)
            yield node.lineno, re.sub(r"%[sr]", SOMETHING, text) if named == "logger.warning" else text


def quotes() -> list[str]:
    """What stands between backticks in the first column of the page's tables."""
    rows = re.findall(r"^\| (.+?) \| .+ \|$", PAGE, re.MULTILINE)
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]


def pattern(quote: str) -> re.Pattern[str]:
    return re.compile(".*?".join(re.escape(part.strip()) for part in quote.split("...")), re.DOTALL)


def test_quoted_messages_are_in_the_code():
    known = {
        text for file in files("rl_estimators", "patches") for text in texts(file) if 5 < len(text) < 600
    }
    known = {text.replace("%s", SOMETHING).replace("%r", SOMETHING) for text in known}
    ours = [quote for quote in quotes() if quote not in UPSTREAM and not NO_MESSAGE.match(quote)]
    assert len(ours) > 200
    assert not [quote for quote in ours if len(quote.replace("...", "")) < 6], "too little to look for"
    assert not [quote for quote in ours if not any(pattern(quote).search(text) for text in known)]


def test_quoted_messages_are_in_upstreams_code():
    verl = importlib.util.find_spec("verl")
    for quote, file in UPSTREAM.items():
        assert quote in quotes()
        if file and verl:
            assert pattern(quote).search((Path(verl.origin).parent / file).read_text())


@pytest.mark.parametrize("file", files(*COMPLETE), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_message_is_left_out(file):
    patterns = [pattern(quote) for quote in quotes() if len(quote.replace("...", "")) >= 11]
    missing = [
        f"{file.name}:{line}: {text.replace(SOMETHING, '...')}"
        for line, text in raised(file)
        if text not in UNQUOTED and not any(one.search(text) for one in patterns)
    ]
    assert not missing, "\n".join(missing)


def test_a_changed_message_is_noticed():
    """The two checks can fail."""
    assert not pattern("no such estimator at all").search("\0: no such estimator.")
    assert pattern("algorithm.adv_estimator=...: no such").search(
        "algorithm.adv_estimator=\0: no such estimator."
    )
    (call,) = ast.parse('f"{KEY}: " + f"{name!r} is {value}" "!"').body
    assert template(call.value, {"KEY": "a.b"}) == "a.b: \0 is \0!"
