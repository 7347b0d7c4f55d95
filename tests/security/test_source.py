"""What may not stand in the source: functions that run what they read, and where the few that may are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("rl_estimators", "patches", "examples", ".ci", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "pandas.read_pickle", "pd.read_pickle", "os.system",
    "os.popen", "subprocess.getoutput", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp",
    "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "runpy.run_path", "runpy.run_module", "eval",
    "tarfile.open", "urllib.request.urlopen", "requests.get",
}  # fmt: skip
# By file: why it is no danger.
ALLOWED = {
    "exec": {".ci/upstream_trl.py": "defines functions from a header and a body, and calls none"},
    "import_module": {
        "rl_estimators/backends/choose.py": "from a table",
        "rl_estimators/cli.py": "the name of a command",
        "rl_estimators/doctor.py": "modules that our hooks name",
        "rl_estimators/modules.py": "reward functions of train, external modules of train and compare: documented",
        "rl_estimators/verl/": "verl's modules, by name",
    },
    "spec_from_file_location": {"rl_estimators/modules.py": "the same by file: documented"},
}
OUTSIDE = ("examples/", ".ci/", "benchmarks/")  # commands for developers, with names of their own


def calls(path):
    """The dotted name of everything that a file calls, and the call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_what_it_reads(path):
    check(path, name_of(path))


def check(path, name):
    for function, call in calls(path):
        where = f"{name}:{call.lineno} calls {function}"
        assert function not in NEVER, where
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if function.endswith("torch.load"):
            assert keywords.get("weights_only") == "True", where
        if function in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", where
        assert keywords.get("shell", "False") == "False", where
        leaf = function.rpartition(".")[-1]
        if function == "exec" or leaf in ("import_module", "spec_from_file_location"):
            allowed = ALLOWED["exec" if function == "exec" else leaf]
            if function != "exec" and name.startswith(OUTSIDE):
                continue
            assert any(name.startswith(place) for place in allowed), where


def test_what_is_allowed_is_there():
    """Or the list would hide what comes later."""
    for leaf, places in ALLOWED.items():
        for place in places:
            files = [path for path in FILES if name_of(path).startswith(place)]
            found = [f for path in files for f, _ in calls(path) if f.rpartition(".")[-1] == leaf]
            assert found, f"{place} no longer calls {leaf}"


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("yaml.load(text, yaml.Loader)", True),
        ("subprocess.run(words, shell=True)", True),
        ("model.eval()", False),
        ("np.load(path, allow_pickle=True)", True),
        ("exec(text)", True),
        ("import_module(name)", True),
    ],
)
def test_the_search_finds(tmp_path, line, caught):
    (tmp_path / "one.py").write_text(line + "\n")
    if caught:
        with pytest.raises(AssertionError, match=r"one\.py:1 calls "):
            check(tmp_path / "one.py", "one.py")
    else:
        check(tmp_path / "one.py", "one.py")
