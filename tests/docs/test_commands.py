"""Every command of README and docs: run here, or named below with who runs it and why not here.

verl's commands are composed by Hydra with the plugin in place and looked at by verl's and our checks, which is all that
happens before Ray starts. Commands that train with TRL train for a step, on a tiny model under the name of the real one.
"""

import importlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from docblocks import ROOT, blocks, commands, documents, printed

from rl_estimators import cli
from rl_estimators.registry import ADV_ESTIMATORS

ALL = [(document, block, command) for document in documents() for block, command in commands(document)]
EXTRAS = re.findall(
    r"^(\w+) = \[",
    (ROOT / "pyproject.toml")
    .read_text()
    .partition("[project.optional-dependencies]\n")[2]
    .partition("\n\n")[0],
    re.MULTILINE,
)
NOT_OURS = {  # what else `pip install` is told to fetch: from the network, so not here
    "math-verify": "TRL's accuracy_reward imports it",
    "vllm": "needs a GPU",
}

ELSEWHERE = {  # command: the test that does the same
    "make smoke": "tests/verl/test_main_ppo.py::test_reinforce_pp_learns",
    "make test": "itself",
    "rl-estimators doctor": "tests/packaging/test_packaging.py::test_installed_elsewhere_main_ppo_knows_the_estimator",
    # they take Ray and minutes; their options are checked here
    "python examples/digit_sort/smoke.py --estimator rle_grpo --answers 8": (
        "tests/verl/test_main_ppo.py::test_rle_grpo_and_the_engines_log_probabilities"
    ),
    "python examples/digit_sort/smoke.py --estimator rle_gae --steps 10": (
        "tests/verl/test_main_ppo.py::test_rle_gae_gets_the_critics_values"
    ),
    # a module by the same two variables, in Ray's real processes: tests/verl/runs.py sets them
    "PYTHONPATH=$PWD VERL_USE_EXTERNAL_MODULES=my_estimator python examples/digit_sort/smoke.py --estimator centred": (
        "tests/verl/test_main_ppo.py::test_reinforce_pp_learns"
    ),
    # they take a GPU, or half an hour: their options are checked by the same tests
    "python3 examples/gpu/run.py --list": "tests/examples/test_gpu_pack.py::test_stages_are_chosen_by_name",
    "python3 examples/gpu/run.py --stages install,doctor,tests,kernels,trl --budget 570": (
        "tests/examples/test_gpu_pack.py::test_stages_shown_in_the_docs"
    ),
    "python3 examples/gpu/run.py --stages verl --budget 570": (
        "tests/examples/test_gpu_pack.py::test_stages_shown_in_the_docs"
    ),
    "pip install ./examples/own_estimator": "tests/docs/test_own_estimator.py::test_it_is_listed",
}
WRONG = (["algorithm.adv_estimator=reinforce_p", "..."], ["trainer.nodes=1"])  # the check can fail


def kind(command):
    """Which of the tests below a command is for."""
    if command in ELSEWHERE:
        return "elsewhere"
    if "verl.trainer.main_ppo" in command:
        return "verl"
    return command.split()[0]


def of(*kinds):
    found = {}
    for document, block, command in ALL:
        if kind(command) in kinds:
            found.setdefault(command, (document, block))
    return [pytest.param(*place, command, id=command[:70]) for command, place in found.items()]


def test_every_command_is_somebodys():
    kinds = {kind(command) for _, _, command in ALL}
    assert kinds <= {"elsewhere", "verl", "pip", "rl-estimators", "make"}, (
        "give it a test, or a line in ELSEWHERE"
    )
    assert {*ELSEWHERE} <= {command for _, _, command in ALL}, "what is no longer shown"


@pytest.mark.parametrize(("command", "test"), ELSEWHERE.items())
def test_what_is_run_elsewhere_is(command, test):
    file, _, name = test.partition("::")
    assert file == "itself" or f"def {name}(" in (ROOT / file).read_text()


def test_make():
    """The targets are there; each takes minutes or a network, and has tests of its own parts."""
    makefile = (ROOT / "Makefile").read_text()
    for _, block, command in ALL:
        if command.startswith("make "):
            assert re.search(rf"^{re.escape(shlex.split(command)[1])}:", makefile, re.MULTILINE), block


@pytest.mark.parametrize("command", [one for one in ELSEWHERE if "smoke.py" in one])
def test_options_of_the_smoke_run(command, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    smoke = importlib.import_module("digit_sort.smoke")
    before, _, options = command.partition(".py ")
    assert (ROOT / f"{before.split()[-1]}.py").samefile(smoke.__file__)
    options = smoke.parse(shlex.split(options))
    assert options.estimator.removeprefix("rle_") in [*ADV_ESTIMATORS.names(), "centred"]


@pytest.mark.parametrize(("document", "block", "command"), of("pip"))
def test_pip(document, block, command):
    pip, install, *wanted = shlex.split(command)
    assert (pip, install) == ("pip", "install")
    for one in wanted:
        ours = re.fullmatch(r"rl-estimators\[([\w,]+)\]", one)
        assert ours or one in NOT_OURS, one
        assert not ours or {*ours[1].split(",")} <= {*EXTRAS}, one


@pytest.mark.verl
def test_verl(workplace, offered):
    """All in one process, which has the variables of all of them; each is a command by itself below."""
    pytest.importorskip("verl")
    _files("README.md")
    told = {command: block for _, block, command in ALL if kind(command) == "verl"}
    lines = [_split(command) for command in told]
    variables = {name: value for given, _ in lines for name, value in given.items()}
    variables["PYTHONPATH"] = f"{offered}:{variables['PYTHONPATH'].replace('$PWD', str(workplace))}"
    *answers, slip, unknown = _start([*(words for _, words in lines), *WRONG], variables)
    wrong = {
        f"{block}: {command}": said for (command, block), said in zip(told.items(), answers, strict=True)
    }
    assert not {command: said for command, said in wrong.items() if said != "ok"}
    assert len(answers) >= 15
    assert "no such estimator. Did you mean 'reinforce_pp'?" in slip
    assert "nodes" in unknown


@pytest.mark.parametrize(("document", "block", "command"), of("verl"))
def test_verls_commands_bring_what_they_need(document, block, command):
    """The variables that a command cannot do without stand before it."""
    given, words = _split(command)
    mine = "algorithm.adv_estimator=centred" in words
    assert mine == ("VERL_USE_EXTERNAL_MODULES" in given) == ("PYTHONPATH" in given)
    assert ("trainer.device=cpu" in words) == (given.get("VERL_PLATFORM") == "cpu")


def _split(command):
    """The variables and the overrides of a verl command."""
    words = shlex.split(command)
    at = words.index("verl.trainer.main_ppo")
    *variables, python, dash = words[:at]
    assert (python, dash) == ("python", "-m"), command
    return dict(one.split("=", 1) for one in variables), words[at + 1 :]


def _start(overrides, variables):
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("verl_commands.py"))],
        input=json.dumps(overrides),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    ("document", "block", "command"),
    [
        pytest.param(*one.values, id=one.id, marks=[pytest.mark.trl] if " train " in one.values[2] else [])
        for one in of("rl-estimators")
    ],
)
def test_rl_estimators(document, block, command, request, capsys, monkeypatch):
    words = shlex.split(command)[1:]
    if words[0] == "train":
        pytest.importorskip("trl")
        request.getfixturevalue("small")
    workplace = request.getfixturevalue("workplace")
    _files("README.md", document)
    _logs(workplace)
    if "shrunk_mean" in command:
        _offer(request.getfixturevalue("offered"), monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    if "--help" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(words)
    else:
        assert cli.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for line in (block.prints or "").splitlines():
        assert " ".join(line.split()) in shown


def _files(*names):
    """The files that documents tell to write, or write themselves."""
    for block in [block for name in dict.fromkeys(names) for block in blocks(name, "python")]:
        file = re.match(r"# (\w+\.py)\n", block.text)
        if file:
            Path(file[1]).write_text(block.text)
        elif "compare import save" in block.text:
            printed(block, {})


def _logs(folder):
    """Two runs as TRL's trainers leave them."""
    for name in ("out", "other_run"):
        rows = [
            {"step": step, "reward": 0.3 + step / 100, "critic/explained_variance": 0.02}
            for step in range(1, 10)
        ]
        (folder / name).mkdir()
        (folder / name / "trainer_state.json").write_text(json.dumps({"log_history": rows, "global_step": 9}))


def _offer(folder, monkeypatch):
    """Have an installed package's entry points seen in this process."""
    monkeypatch.syspath_prepend(str(folder))
    offers = importlib.metadata.entry_points(group=ADV_ESTIMATORS.group)
    monkeypatch.setitem(ADV_ESTIMATORS.__dict__, "_offers", {one.name: [one] for one in offers})
    assert "shrunk_mean" in ADV_ESTIMATORS.names()
