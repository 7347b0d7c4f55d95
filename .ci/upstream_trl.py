"""What our trainers rely on in TRL, against the source of a release: the part of ``upstream.py`` about TRL.

`rl_estimators.trl.upstream` lists it, and compares it whenever a trainer is made. Here the same comparison is made of a
wheel that is not installed: the methods' headers and bodies are compiled, without decorators, annotations and defaults,
and never called. Three things are added that cost too much at each start: whether a body is as in a release that was
read (``reviewed_trl.json``), where a method went that is gone, and whether every name is there that we import from TRL.

Methods that TRL inherits from transformers are those of the installed transformers.
"""

import ast
import hashlib
import importlib.util
import json
from pathlib import Path

from rl_estimators.trl import upstream

HERE = Path(__file__).parent
TRAINER, OUTSIDE = "GRPOTrainer", "Trainer"  # ours derive from the one; the other is transformers'
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def examine(tree):
    """The verdict of each thing that we rely on in the TRL under ``tree``, by its name."""
    classes = lineage(tree)
    if not classes:
        return {TRAINER: f"gone: no module of trl defines a class {TRAINER}"}
    changes = changes_of(classes)
    found = {
        f"{TRAINER}.{name}": method_verdict(name, classes, changes, tree) for name in upstream.SIGNATURES
    }
    found["attributes"] = attributes_verdict(classes)
    found["imports"] = imports_verdict(tree)
    return found


def lineage(tree):
    """The classes that GRPOTrainer consists of, itself first: each node and the source it stands in."""
    found, names = [], [TRAINER]
    while names:
        name = names.pop(0)
        place = defining(name, tree)
        if place is None:
            continue
        node, source = place
        found.append((node, source))
        names += [base.id for base in node.bases if isinstance(base, ast.Name)]
    return found


def defining(name, tree):
    """The class of that name and its source, in TRL or, for its own base, in transformers; None if there is none."""
    if name == OUTSIDE:
        # found without an import; transformers takes seconds
        places = [Path(importlib.util.find_spec("transformers").origin).parent / "trainer.py"]
    else:
        places = sorted(tree.glob("trl/trainer/*.py")) + sorted(tree.glob("trl/**/*.py"))
    for path in places:
        source = path.read_text(errors="replace")
        if f"class {name}" in source:
            nodes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
            if node := next((node for node in nodes if node.name == name), None):
                return node, source
    return None


def method(name, classes):
    """The definition that an instance gets, and its source; None if there is none."""
    for owner, source in classes:
        for node in owner.body:
            if isinstance(node, DEFINITIONS) and node.name == name:
                return node, source
    return None


def changes_of(classes):
    """What `upstream.check` says of the trainer, by method."""
    members = {}
    for name in upstream.SIGNATURES:
        if place := method(name, classes):
            members[name] = stripped(place[0])
    body = list(members.values()) or [ast.Pass()]
    shell = ast.ClassDef(name=TRAINER, bases=[], keywords=[], body=body, decorator_list=[], type_params=[])
    module = ast.fix_missing_locations(ast.Module(body=[shell], type_ignores=[]))
    scope = {}
    exec(compile(module, "<upstream>", "exec"), scope)  # defines functions: nothing of TRL's is run
    trainer = scope[TRAINER]
    told = [
        *upstream._signature_changes(trainer),
        *upstream._key_changes(trainer),
        *upstream._reading_changes(trainer),
    ]
    return {name: [line for line in told if of(line) == name] for name in upstream.SIGNATURES}


def of(line):
    """The method that a line of `upstream`'s is about."""
    return line.removeprefix(f"{TRAINER}.").replace("(", " ").split(" ")[0]


def stripped(node):
    """A definition whose execution runs nothing: no decorator, no annotation, and None for each default."""
    given = node.args
    for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if arg is not None:
            arg.annotation = None
    given.defaults = [ast.Constant(None) for _ in given.defaults]
    given.kw_defaults = [default and ast.Constant(None) for default in given.kw_defaults]
    node.decorator_list, node.returns, node.type_params = [], None, []
    return node


def method_verdict(name, classes, changes, tree):
    # `stripped` has emptied the headers of these nodes: positions still tell where the text stands
    place = method(name, classes)
    if place is None:
        return elsewhere(name, tree)
    if changes[name]:
        return "changed: " + "; ".join(line.removeprefix(f"{TRAINER}.") for line in changes[name])
    digest = digest_of(*place)
    reviewed = json.loads((HERE / "reviewed_trl.json").read_text()).get(name, {})
    if digest in reviewed.values():
        return "fits"
    read = ", ".join(f"{found} in {release}" for release, found in reviewed.items())
    return f"changed body: reviewed {read or 'nothing'}, found {digest}"


def digest_of(node, source):
    """As `rl_estimators.patching.digest`, but from ``def`` on: a decorator is no part of a body."""
    lines = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def elsewhere(name, tree):
    places = []
    for path in sorted(tree.glob("trl/**/*.py")):
        source = path.read_text(errors="replace")
        if f"def {name}(" in source:
            module = str(path.relative_to(tree).with_suffix("")).replace("/", ".")
            places += [f"{module}.{owner}".rstrip(".") for owner in owners(name, ast.parse(source))]
    return f"moved: to {', '.join(places)}" if places else "gone"


def owners(name, module):
    """The classes of a module that define ``name``; "" for the module itself."""
    for node in module.body:
        if isinstance(node, DEFINITIONS) and node.name == name:
            yield ""
        if isinstance(node, ast.ClassDef) and any(
            isinstance(member, DEFINITIONS) and member.name == name for member in node.body
        ):
            yield node.name


def attributes_verdict(classes):
    """Whether somewhere each attribute of an instance that we read is set, or is a method or property."""
    known = set()
    for owner, _ in classes:
        for node in ast.walk(owner):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                known.add(node.attr)
            elif isinstance(node, DEFINITIONS):
                known.add(node.name)
    needed = {*upstream.ATTRIBUTES, *(name for names in upstream.GENERATION.values() for name in names)}
    needed |= {name for names in upstream.WHILE_TRAINING.values() for name in names}
    absent = sorted(needed - known)
    return f"gone: nothing sets self.{', self.'.join(absent)}" if absent else "fits"


def imports_verdict(tree):
    """Whether TRL still has every name that our package imports from it."""
    absent = [
        f"{module}.{name}"
        for module, name in imported()
        if not any(known(name, f) for f in files(module, tree))
    ]
    return f"gone: {', '.join(absent)}" if absent else "fits"


def imported():
    """Modules of TRL and the names that our files import from them; "" for the module itself."""
    found = set()
    for path in sorted(Path(upstream.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trl":
                found |= {(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "trl"}
    return sorted(found)


def files(module, tree):
    path = tree.joinpath(*module.split("."))
    return [place for place in (path.with_suffix(".py"), path / "__init__.py") if place.is_file()]


def known(name, path):
    """Whether a module defines or imports a name, or lists it among those that it imports when asked."""
    if not name:
        return True
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (*DEFINITIONS, ast.ClassDef)) and node.name == name:
            return True
        if isinstance(node, ast.alias) and name in (node.name, node.asname):
            return True
        if isinstance(node, ast.Constant) and node.value == name:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
    return False
