"""Copies of upstream's files in which one function has drifted, in the ways in which functions do."""

import ast
from collections.abc import Callable
from pathlib import Path

KINDS = ("unchanged", "signature", "body", "gone", "moved")
ADDED = "rle_added"


def doctored(source: str, attribute: str, kind: str, elsewhere: str) -> str:
    """The source with the function at ``attribute`` drifted; all other lines are as they were.

    Args:
        source: A module's.
        attribute: ``function`` or ``Class.method``.
        kind: One of :data:`KINDS`.
        elsewhere: The module that the function has moved to; it must define it under the same path.
    """
    node = find(ast.parse(source), attribute)
    lines = source.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    indent = " " * node.col_offset
    if kind == "signature":
        node.args.kwonlyargs.append(ast.arg(ADDED))
        node.args.kw_defaults.append(ast.Constant(None))
        word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        header = f"{indent}{word} {node.name}({ast.unparse(node.args)}):\n"
        lines[node.lineno - 1 : node.body[0].lineno - 1] = [header]
    elif kind == "body":
        last = node.body[-1]
        lines.insert(last.lineno - 1, f"{' ' * last.col_offset}{ADDED} = None\n")
    elif kind == "gone":
        lines[first : node.end_lineno] = [f"{indent}pass\n"]
    elif kind == "moved":
        owner, _, leaf = attribute.rpartition(".")
        taken = f"{indent}from {elsewhere} import {owner or leaf} as {ADDED}\n"
        lines[first : node.end_lineno] = [
            taken,
            f"{indent}{leaf} = {ADDED}{'.' + leaf if owner else ''}\n",
            f"{indent}del {ADDED}\n",
        ]
    return "".join(lines)


def find(node: ast.AST, attribute: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for name in attribute.split("."):
        node = next(one for one in node.body if getattr(one, "name", None) == name)
    return node


def tree(package: Path, folder: Path, edits: dict[str, Callable[[str], str] | None]) -> Path:
    """A package in ``folder`` that is ``package`` with some files edited, added, or left out where the edit is None.

    All else is linked. Returns ``folder``, for ``PYTHONPATH``.
    """
    root = folder / package.name
    touched = {Path(name) for name in edits}
    _link(package, root, Path(), touched, {parent for path in touched for parent in path.parents})
    for name, edit in edits.items():
        if edit is not None:
            original = package / name
            (root / name).write_text(edit(original.read_text() if original.exists() else ""))
    return folder


def _link(source: Path, target: Path, inside: Path, touched: set[Path], opened: set[Path]) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        path = inside / entry.name
        if path in opened:
            _link(entry, target / entry.name, path, touched, opened)
        elif path not in touched and entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry)
