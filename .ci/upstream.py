"""Which hooks fit a release of verl: ``python .ci/upstream.py 0.9.0 0.9.1``, or ``make upstream``.

Fetches each release's wheel without its dependencies and reads its source; nothing of it is imported. For
each hook the report says

    fits           the target looks as reviewed
    changed body   its signature is the same, its source is not as in any release that was read
    changed        its signature is another
    moved          the module has no such function, but another module of verl defines one of that name
    gone           no module of verl defines it

and in brackets whether the hook is applied in that release at all. Exit code 1 if a hook that would be applied
is changed, moved or gone, or has a changed body where `body_matters`. A new release that fits needs one change: the
hook's `releases`. One that does not needs a review of the upstream function, then a new entry in the hook's
`reviewed` (the digest is in the line) or a new signature.
"""

import argparse
import ast
import hashlib
import importlib
import inspect
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.specifiers import SpecifierSet

from rl_estimators.patching import Patch


class Literal:
    """A default that is an expression: shown as it stands in the source."""

    def __init__(self, node):
        self.text = ast.unparse(node)

    def __repr__(self):
        return self.text


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="+", help="releases of verl, or folders that hold a `verl` package")
    chosen = parser.parse_args(arguments).releases
    patches = importlib.import_module("rl_estimators.patches").VERL
    misfits = 0
    with tempfile.TemporaryDirectory() as scratch:
        for release in chosen:
            tree = Path(release) if Path(release, "verl").is_dir() else fetch(release, Path(scratch))
            print(f"verl {release}")
            for patch in patches:
                verdict = examine(patch, tree)
                applied = SpecifierSet(patch.releases).contains(release_of(tree), prereleases=True)
                tolerated = ("fits",) if patch.body_matters else ("fits", "changed body")
                misfits += applied and not verdict.startswith(tolerated)
                print(
                    f"  {patch.name:26s} {verdict}" + ("" if applied else f" [not applied: {patch.releases}]")
                )
    return int(misfits > 0)


def fetch(release, scratch):
    """Unpack the release's wheel and return the folder it lies in."""
    folder = scratch / release
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
    ]
    subprocess.run([*command, f"verl=={release}"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def release_of(tree):
    return (tree / "verl/version/version").read_text().strip()


def examine(patch: Patch, tree: Path) -> str:
    """One line on how the target of ``patch`` looks in the source under ``tree``."""
    path = tree.joinpath(*patch.module.split("."))
    source = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
    node = find(ast.parse(source.read_text()), patch.attribute) if source else None
    if node is None:
        return elsewhere(patch, tree)
    found = signature(node)
    if found != patch.signature:
        return f"changed: expected {patch.signature}, found {found}"
    digest = hashlib.sha256(text(node, source.read_text()).encode()).hexdigest()[:12]
    if patch.reviewed and digest not in patch.reviewed.values():
        read = ", ".join(f"{source} in {release}" for release, source in patch.reviewed.items())
        return f"changed body: reviewed {read}, found {digest}"
    return "fits"


def find(module: ast.Module, attribute: str):
    """The definition at a dotted path, or None."""
    node = module
    for name in attribute.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        node = next((n for n in node.body if isinstance(n, kinds) and n.name == name), None)
        if node is None:
            return None
    return node


def elsewhere(patch, tree):
    places = [
        str(path.relative_to(tree).with_suffix("")).replace("/", ".")
        for path in sorted(tree.glob("verl/**/*.py"))
        if patch.attribute.split(".")[-1] in path.read_text(errors="replace")
        and find(ast.parse(path.read_text()), patch.attribute) is not None
    ]
    return f"moved: to {', '.join(places)}" if places else "gone"


def signature(node) -> str:
    """As `rl_estimators.patching.signature` prints it, from the source."""
    kind = inspect.Parameter
    given = node.args
    positional = given.posonlyargs + given.args
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    parameters = []
    for i, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
        of = kind.POSITIONAL_ONLY if i < len(given.posonlyargs) else kind.POSITIONAL_OR_KEYWORD
        parameters.append(kind(arg.arg, of, default=value(default)))
    if given.vararg:
        parameters.append(kind(given.vararg.arg, kind.VAR_POSITIONAL))
    for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        parameters.append(kind(arg.arg, kind.KEYWORD_ONLY, default=value(default)))
    if given.kwarg:
        parameters.append(kind(given.kwarg.arg, kind.VAR_KEYWORD))
    return str(inspect.Signature(parameters))


def value(node):
    if node is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Literal(node)


def text(node, source):
    """The function's source as `inspect.getsource` gives it, decorators included."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "".join(source.splitlines(keepends=True)[first - 1 : node.end_lineno])


if __name__ == "__main__":
    sys.exit(main())
