"""The pack for a GPU machine without a registry, and its run script: what is chosen, shrunk, run and stopped; no network."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "gpu"


def load(name):
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pack():
    path = list(sys.path)
    yield load("pack")
    sys.path[:] = path


@pytest.fixture(scope="module")
def ray_core():
    return load("ray_core")


@pytest.fixture(scope="module")
def run():
    return load("run")


# ------------------------------------------------------------------------------------------------- choosing


def choose(pack, metadata, machine="", root="root", extras=()):
    def requires(name):
        asked.append(name)
        return metadata.get(name, ())

    asked = []
    choice = pack.choose(root, extras, requires, pack.read_machine(machine))
    assert len(asked) >= len(choice.wanted)
    return choice


def test_requirements_are_followed_to_the_end(pack):
    """root needs a, a needs b, and b needs a again."""
    assert choose(pack, {"root": ["a>=1"], "a": ["B_b"], "b-b": ["a", "c"]}).wanted == [
        "root",
        "a",
        "b-b",
        "c",
    ]


def test_what_the_machine_has_is_left_there_with_what_it_needs(pack):
    found = choose(pack, {"root": ["Have_This", "a"], "have-this": ["b"]}, "have-this==1.0\n")
    assert (found.wanted, found.conflicts) == (["root", "a"], [])


def test_another_release_on_the_machine_is_a_conflict(pack):
    found = choose(
        pack, {"root": ["a"], "a": ["have<2", "unknown<2"]}, "# a comment\nhave==2.1  # here\nunknown\n"
    )
    assert found.wanted == ["root", "a"]
    assert found.conflicts == ["a wants have<2, the machine has 2.1"]


def test_markers_are_the_machine_s_not_ours(pack):
    lines = ["a; python_version < '3.12'", "b; python_version >= '3.12'", "c; sys_platform == 'win32'"]
    assert choose(pack, {"root": [*lines, "d; platform_machine == 'x86_64'"]}).wanted == ["root", "b", "d"]


def test_extras(pack):
    """Only those asked for; one that is asked for later is followed all the same; Ray's dashboard never is."""
    metadata = {
        "root": ["a; extra == 'one'", "b; extra == 'two'", "ray[default]", "c", "d[more]"],
        "ray": ["aiohttp-cors; extra == 'default'", "click"],
        "c": ["d"],
        "d": ["e; extra == 'more'"],
    }
    assert choose(pack, metadata, extras=["one"]).wanted == ["root", "a", "ray", "c", "d", "click", "e"]


def test_what_nobody_imports_is_left_out(pack):
    assert choose(pack, {"root": ["wandb", "qwen_vl_utils", "a"]}).wanted == ["root", "a"]


def test_pins_are_those_of_the_machine_s_python(pack):
    text = "# from a comment\na==1 ; python_version < '3.11'\na==2 ; python_version >= '3.11'\nB_b==3\n"
    assert pack.read_pins(text) == {"a": "2", "b-b": "3"}


def test_this_project_s_own_files_fit_together(pack):
    """What we declare is pinned or on the machine, and verl's odd requirement is known."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in pack.EXTRAS:
        lines += [f"{one}; extra == '{extra}'" for one in project["optional-dependencies"][extra]]
    machine = (FOLDER / "machine.txt").read_text()
    found = choose(pack, {"rl-estimators": lines}, machine, "rl-estimators", pack.EXTRAS)
    assert {*found.wanted} == {"rl-estimators", "verl", "trl"}
    assert found.conflicts == []
    pins = pack.read_pins((ROOT / "constraints.txt").read_text())
    assert {*found.wanted} - {"rl-estimators"} <= {*pins}


def wheel(folder, name, release, files):
    path = folder / f"{name}-{release}-cp312-cp312-manylinux2014_x86_64.whl"
    with zipfile.ZipFile(path, "w") as file:
        for place, content in files.items():
            file.writestr(place, content)
    return path


def test_metadata_is_read_from_the_wheel(pack, tmp_path):
    text = "Metadata-Version: 2.1\nName: a\nRequires-Dist: b>=1\nRequires-Dist: c; extra == 'x'\n\nRequires-Dist: no\n"
    path = wheel(
        tmp_path, "a", "1", {"a-1.dist-info/METADATA": text, "a/data/METADATA": "Requires-Dist: d\n"}
    )
    assert pack.metadata(path) == ["b>=1", "c; extra == 'x'"]


@pytest.mark.parametrize(("mb", "status"), [(59.9, 0), (60.1, 1)])
def test_size(pack, mb, status, tmp_path, capsys):
    with (tmp_path / "a.whl").open("wb") as file:
        file.truncate(int(mb * 1e6) - 100)
    (tmp_path / "b.whl").write_bytes(bytes(100))
    assert pack.main(["--size", "--out", str(tmp_path)]) == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{mb:.2f}", "0.00", f"{mb:.2f}"]
    assert lines[-1].endswith("of at most 60")
    with pytest.raises(SystemExit):
        pack.main(["--size", "--out", str(tmp_path / "none")])
    assert "there is no folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ Ray


def test_ray_s_core_installs_and_is_whole(ray_core, tmp_path):
    """pip takes the smaller wheel, and every file is as its RECORD says; what was taken out is not there."""
    info = "ray-2.0.dist-info"
    binary = Path(sys.executable).resolve().read_bytes()[:64]  # strip cannot read it: kept as it is
    files = {
        "ray/__init__.py": "x = 1\n",
        "ray/core/src/ray/raylet/raylet": binary,
        "ray/rllib/__init__.py": "",
        "ray/serve/app.py": "",
        "ray/dashboard/agent.py": "",
        "ray/dashboard/client/page.js": "",
        "ray/_private/x.js.map": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: ray\nVersion: 2.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: false\nTag: py3-none-any\n\n",
        f"{info}/RECORD": "stale,,\n",
    }
    whole = wheel(tmp_path, "ray", "2.0", files)
    whole = whole.rename(tmp_path / "ray-2.0-py3-none-any.whl")
    (out := tmp_path / "out").mkdir()
    smaller = ray_core.shrink(whole, out)
    assert smaller.name == "ray-2.0-1core-py3-none-any.whl"
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*command, str(smaller)], check=True)
    there = {
        str(path.relative_to(site)) for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in there if name.startswith("ray/")} == {
        "ray/__init__.py", "ray/core/src/ray/raylet/raylet", "ray/dashboard/agent.py",
    }  # fmt: skip
    assert (site / "ray/core/src/ray/raylet/raylet").read_bytes() == binary
    assert "Build: 1core\n" in (site / info / "WHEEL").read_text()


def test_without_strip_it_says_what_to_install(ray_core, monkeypatch, tmp_path):
    monkeypatch.setattr(ray_core.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"no 'strip' here.*install binutils"):
        ray_core.shrink(tmp_path / "ray-2.0-py3-none-any.whl", tmp_path)


@pytest.mark.verl
def test_what_ray_loses_is_not_imported_by_it(ray_core):
    """The installed Ray, as verl and TransferQueue use it, loads nothing that the smaller wheel lacks."""
    pytest.importorskip("ray")
    code = "import sys, ray, transfer_queue, verl.trainer.main_ppo; print(*sorted(sys.modules), sep='\\n')"
    names = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).splitlines()
    assert "ray.actor" in names
    files = [f"{name.replace('.', '/')}/" for name in names if name.startswith("ray.")]
    assert not [name for name in files if ray_core.unneeded(name)]


# ------------------------------------------------------------------------------------------------- the runs


def stage(run, name, code, seconds=30.0):
    return run.Stage(name, seconds, [sys.executable, "-c", code])


@pytest.fixture
def options(run, tmp_path):
    found = run.parse(["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    found.work.mkdir()
    return found


def states(found):
    return {name: one["state"] for name, one in found.items()}


def test_stages_run_and_are_not_repeated(run, options):
    said, chosen = (
        [],
        [stage(run, "a", "print('of a')"), stage(run, "verl:b", "import sys; print('why'); sys.exit(3)")],
    )
    assert states(run.go(chosen, options, said.append)) == {"a": "ok", "verl:b": "failed with exit status 3"}
    assert said[-1] == "why"
    assert "===== a\nof a\n" in (options.out / "logs.txt").read_text()
    said.clear()
    assert states(run.go([chosen[0], stage(run, "verl:b", "")], options, said.append)) == {
        "a": "ok",
        "verl:b": "ok",
    }
    assert said[0] == "a: done before"
    assert states(json.loads((options.out / "run.json").read_text())) == {"a": "ok", "verl:b": "ok"}
    options.again = True
    assert "done before" not in " ".join(said[1:])
    assert states(run.go([stage(run, "a", "raise SystemExit(2)")], options, said.append))["a"].endswith(
        "status 2"
    )


def test_a_stage_is_stopped_at_its_limit_with_all_that_it_started(run, options, monkeypatch):
    """The leader hears SIGTERM first; a grandchild that does not heed it goes by force."""
    monkeypatch.setattr(run, "PATIENCE", 0.5)
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    found = run.go([stage(run, "slow", code, 3.0), stage(run, "next", "")], options, lambda text: None)
    assert states(found) == {"slow": "stopped after 3 s", "next": "ok"}
    assert time.monotonic() - begin < 30
    assert (options.work / "slow.log").read_text() == "up\n"


def test_nothing_is_begun_when_the_budget_is_used_up(run, options):
    options.budget, times = 100.0, iter(range(0, 10_000, 45))
    chosen = [stage(run, name, "") for name in "abc"]
    found = run.go(chosen, options, lambda text: None, clock=lambda: next(times))
    assert states(found) == {"a": "ok", "b": "no time left", "c": "no time left"}


def test_a_failed_install_ends_it(run, options):
    found = run.go(
        [stage(run, "install", "raise SystemExit(1)"), stage(run, "a", "")], options, lambda text: None
    )
    assert [*found] == ["install"]


def test_stages_are_chosen_by_name(run, capsys):
    chosen = [one.name for one in run.parse(["--stages", "kernels,trl,verl:gae"]).chosen]
    assert chosen == ["kernels", "trl:gae", "trl:grpo", "trl:reinforce_pp", "trl:remax", "verl:gae"]
    with pytest.raises(SystemExit):
        run.parse(["--stages", "kernel,tests"])
    assert (
        "--stages has kernel, expected some of all, trl, verl, install, doctor, tests"
        in capsys.readouterr().err
    )
    assert run.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_stages_shown_in_the_docs(run):
    """In docs/gpu.md: the two calls together are all stages."""
    shown = re.findall(
        r"^python3 examples/gpu/run.py (--stages .*)$", (ROOT / "docs/gpu.md").read_text(), re.M
    )
    calls = [run.parse(shlex.split(line)) for line in shown]
    assert [one.budget for one in calls] == [570.0, 570.0]
    names = [stage.name for one in calls for stage in one.chosen]
    assert names == [stage.name for stage in run.stages(calls[0])]


def test_all_stages_fit_their_commands(run):
    """Ten minutes a command: each stage fits, and its files are there."""
    for one in run.stages(run.parse([])):
        assert one.seconds <= 600
        for word in one.command[1:]:
            assert not word.startswith(str(ROOT / "tests")) or Path(word).is_file(), word
            assert not word.endswith(".py") or Path(word).is_file(), word


def test_without_a_pack_it_says_how_to_get_one(run, tmp_path, capsys):
    assert run.main(["--wheels", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert f"{tmp_path} has no pack: python examples/gpu/pack.py --out {tmp_path}" in capsys.readouterr().err
