"""Which hooks fit a release of verl, and our trainers one of TRL: ``make upstream``, or

    python .ci/upstream.py 0.9.0 0.9.1 --trl 1.14.0 1.16.0

Fetches each release's wheel without its dependencies and reads its source; nothing of it is imported. For
each hook into verl, and each method of TRL's trainer that ours rely on, the report says

    fits           it looks as reviewed
    changed body   its signature is the same, its source is not as in any release that was read
    changed        its signature is another, or a name is gone from it that we rely on
    moved          it is not where it was, but another module or class has one of that name
    gone           there is none of that name

and in brackets whether a hook is applied in that release at all. What is to be done follows the report, for each
verdict that came up. Exit code 1 if something is changed, moved or gone that would be used, or has a changed body where
`body_matters`. docs/upstream.md takes a maintainer through a new release.
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

HERE = Path(__file__).parent
# By verdict, in the order in which they are printed.
NEXT = {
    "not applied": (
        "nothing, while the release is not to be supported. Otherwise widen `releases` in each patches/NAME.py, `VERL` in "
        "rl_estimators/doctor.py and the extra `verl` in pyproject.toml, and run this again."
    ),
    "changed body": (
        "read the function, at the link in patches/NAME.py but in this release, beside the one that was reviewed. If all "
        "holds that the hook's docstring says, add the release and the digest found to its `reviewed`. Otherwise mend "
        "`wrap` and its test. Until then the hook is applied and doctor notes it; with `body_matters` it is not applied."
    ),
    "changed": (
        "the hook is not applied: what needs it stops with PatchError. Read the function; is the hook still needed "
        "(`remove_when`)? If so, let `wrap` take both signatures, or add a second patch for the new releases and end the "
        "first one's `releases`; set `signature`, `upstream` and `reviewed`; run tests/patches."
    ),
    "moved": (
        "the hook is not applied. Add a second patch with the new `module` and `attribute` for the new releases, and end "
        "the first one's `releases`. Whoever imports the function by name must be imported after it: look for `late` in "
        "the doctor's report."
    ),
    "gone": (
        "the hook is not applied. Find out what upstream does instead (its commits to the module). If it does by itself "
        "what the hook is for, end the hook's `releases`; else hook into what took the function's place."
    ),
    "changed body in TRL": (
        "read the method beside the reviewed one, then `make trl-releases RELEASES=...`, which trains with every trainer. "
        "If all is well, add the release and the digest found to .ci/reviewed_trl.json."
    ),
    "changed in TRL": (
        "trainers refuse this release by name (PatchError). Let the override take both, or raise `RELEASES` in "
        "rl_estimators/trl/upstream.py, `TRL` in rl_estimators/doctor.py and the extra in pyproject.toml; then correct "
        "`SIGNATURES`, `KEYS` or `KEYWORDS` there, and `make trl-releases`."
    ),
    "moved in TRL": (
        "trainers refuse this release by name. Override or call it where it is now, with an explicit comparison of "
        "releases while the older ones are supported; then correct rl_estimators/trl/upstream.py, and `make trl-releases`."
    ),
    "gone in TRL": (
        "trainers refuse this release by name, or cannot be imported where an import is gone. Find out what took its "
        "place; until our trainers use that, end the extra `trl` in pyproject.toml, `RELEASES` and doctor's `TRL` below it."
    ),
}


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
    parser.add_argument("releases", nargs="*", help="releases of verl, or folders that hold a `verl` package")
    parser.add_argument("--trl", nargs="*", default=[], help="the same for TRL")
    chosen = parser.parse_args(arguments)
    if not (chosen.releases or chosen.trl):
        parser.error("name a release of verl, or of TRL with --trl")
    seen, misfits = set(), 0
    with tempfile.TemporaryDirectory() as scratch:
        for release in chosen.releases:
            tree = Path(release) if Path(release, "verl").is_dir() else fetch("verl", release, Path(scratch))
            print(f"verl {release}")
            misfits += hooks(tree, seen)
        for release in chosen.trl:
            tree = Path(release) if Path(release, "trl").is_dir() else fetch("trl", release, Path(scratch))
            print(f"TRL {release}")
            misfits += seams(tree, seen)
    for word in (word for word in NEXT if word in seen):
        print(f"What to do about {word!r}: {NEXT[word]}")
    return int(misfits > 0)


def hooks(tree, seen):
    """Print the verdict on each hook into the verl under ``tree``; how many of them need somebody."""
    misfits = 0
    for patch in importlib.import_module("rl_estimators.patches").VERL:
        verdict = examine(patch, tree)
        applied = SpecifierSet(patch.releases).contains(release_of(tree), prereleases=True)
        tolerated = ("fits",) if patch.body_matters else ("fits", "changed body")
        misfits += applied and not verdict.startswith(tolerated)
        print(f"  {patch.name:26s} {verdict}" + ("" if applied else f" [not applied: {patch.releases}]"))
        seen.add(word_of(verdict) if applied else "not applied")
    return misfits


def seams(tree, seen):
    """The same for what our trainers rely on in the TRL under ``tree``."""
    misfits = 0
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))
    verdicts = importlib.import_module("upstream_trl").examine(tree)
    for name, verdict in verdicts.items():
        misfits += not verdict.startswith(("fits", "changed body"))
        seen.add(f"{word_of(verdict)} in TRL")
        if verdict != "fits":
            print(f"  {name:50s} {verdict}")
    print(f"  {sum(verdict == 'fits' for verdict in verdicts.values())} of {len(verdicts)} fit")
    return misfits


def word_of(verdict):
    return verdict.partition(":")[0]


def fetch(distribution, release, scratch):
    """Unpack the release's wheel and return the folder it lies in."""
    folder = scratch / distribution / release
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
    subprocess.run([*command, f"{distribution}=={release}"], check=True)
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
