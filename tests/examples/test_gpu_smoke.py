"""The smoke run for a GPU without one: its command, its clock on the real trainer, its report and its driver."""

import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.verl  # the data set wants pandas, the tokenizer transformers 5: verl brings both
pytest.importorskip("verl")
torch = pytest.importorskip("torch")

EXAMPLES = str(Path(__file__).parents[2] / "examples")
sys.path.insert(0, EXAMPLES)
from digit_sort import (  # noqa: E402
    command,
    gpu_report,
    gpu_smoke,
    machine,
    model,
    parts,
    processes,
    report,
    requirements,
    smoke,
    task,
    trl_run,
    where,
)
from digit_sort.sizes import SMALL, TINY  # noqa: E402

sys.path.remove(EXAMPLES)

CUDA = where.Setup(SMALL, "cuda", "hf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = model.build_tokenizer()
    model.build_model(tokenizer, 0).save_pretrained(
        folder / "model"
    )  # untaught: only its times are asked for
    tokenizer.save_pretrained(folder / "model")
    return folder


# ---------------------------------------------------------------------------------------------- the command


COMPOSE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from hydra import compose, initialize_config_module
from verl.utils.config import validate_config
found = []
with initialize_config_module("verl.trainer.config", version_base=None):
    for words in json.load(sys.stdin):
        config = compose("ppo_trainer", words)  # refuses a key that verl does not have
        validate_config(config, use_reference_policy=True, use_critic=True)
        actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
        found.append({
            "device": config.trainer.device, "engine": rollout.name, "dtype": rollout.dtype,
            "attention": [config[role].model.override_config.attn_implementation
                          for role in ("actor_rollout_ref", "critic")],
            "precision": [str(x.get("mixed_precision")) for x in (actor.fsdp_config, config.critic.fsdp)],
            "lr": [actor.optim.lr, config.critic.optim.lr],
        })
json.dump(found, sys.__stdout__)
"""


def test_verl_takes_the_commands(tiny):
    """Composed and validated by verl itself: bfloat16 and no flash-attention on CUDA, float32 on the CPU."""
    setups = [where.CPU, CUDA, where.Setup(SMALL, "cuda", "vllm")]
    paths = tiny / "model", (Path("t"), Path("v")), Path("o")
    words = [command.training_command("rle_gae", 40, 0, 1, *paths, setup)[3:] for setup in setups]
    plain = [[word for word in line if not word.startswith("hydra.")] for line in words]
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE], input=json.dumps(plain), capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cpu, hf, vllm = json.loads(done.stdout[done.stdout.index('[{"device"') :])
    assert cpu["precision"] == ["{'param_dtype': 'fp32', 'reduce_dtype': 'fp32', 'buffer_dtype': 'fp32'}"] * 2
    assert {**cpu, "precision": 0} == {
        "device": "cpu", "engine": "hf", "dtype": "float32", "attention": ["eager"] * 2, "precision": 0,
        "lr": [TINY.lr, TINY.critic_lr],
    }  # fmt: skip
    assert hf == {
        "device": "cuda", "engine": "hf", "dtype": "bfloat16", "attention": ["sdpa"] * 2,
        "precision": ["None"] * 2, "lr": [SMALL.lr, SMALL.critic_lr],
    }  # fmt: skip
    assert vllm == {**hf, "engine": "vllm"}


def test_environment(tmp_path):
    """On CUDA the caller's choice of a GPU stands, and nothing says that there is none."""
    places = tmp_path / "scratch", tmp_path / "ray", tmp_path / "metrics"
    assert command.training_environment(*places, where.CPU)["VERL_PLATFORM"] == "cpu"
    ours = command.training_environment(*places, CUDA)
    assert ours["VERL_PLATFORM"] == "nvidia"
    assert "VERL_ENGINE_DEVICE" not in ours
    assert ours["NCCL_SOCKET_IFNAME"] == ours["GLOO_SOCKET_IFNAME"] == "lo"
    assert command.taken_out(CUDA) == ("RAY_ADDRESS",)
    assert "CUDA_VISIBLE_DEVICES" in command.taken_out(where.CPU)


@pytest.mark.parametrize(
    ("cuda", "vllm", "wanted"),
    [
        (False, True, where.CPU),
        (True, False, CUDA),
        (True, True, where.Setup(SMALL, "cuda", "vllm")),
    ],
)
def test_the_best_that_is_there(cuda, vllm, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(where, "find_spec", lambda name: object() if vllm else None)
    assert where.best() == wanted


def test_trl_s_configuration_on_cuda(monkeypatch, tmp_path):
    """bfloat16 and the larger model's rates; transformers would refuse bf16 here, so it is looked at before."""
    pytest.importorskip("trl")
    import rl_estimators.trl

    monkeypatch.setattr(rl_estimators.trl, "EstimatorConfig", lambda **fields: fields)
    fields = trl_run._config("rle_gae", 40, 0, 1, tmp_path, CUDA)
    assert (fields["use_cpu"], fields["bf16"]) == (False, True)
    assert (fields["learning_rate"], fields["critic_learning_rate"]) == (SMALL.lr, SMALL.critic_lr)
    fields = trl_run._config("grpo", 40, 0, 8, tmp_path, where.CPU)
    assert (fields["use_cpu"], fields["bf16"], fields["learning_rate"]) == (True, False, TINY.lr)
    assert "critic_learning_rate" not in fields


def test_the_larger_model_has_some_twenty_million_parameters(tmp_path):
    with torch.device("meta"):
        built = model.build_model(model.build_tokenizer(), 0, SMALL)
    count = sum(one.numel() for one in built.parameters())
    assert 10e6 < count < 50e6
    tiny = model.build_model(model.build_tokenizer(), 0)
    tiny.save_pretrained(tmp_path)
    assert gpu_smoke.parameters(tmp_path) == sum(one.numel() for one in tiny.parameters())


# ------------------------------------------------------------------------------------------------ the parts


def test_parts_of_verl():
    row = {"gen": 2.0, "old_log_prob": 0.5, "ref": 0.25, "values": 0.125, "adv": 0.0625, "update_actor": 1.0}
    row |= {"update_critic": 0.5, "update_weights": 0.25, "step": 5.0}
    assert parts.of_verl({f"timing_s/{name}": seconds for name, seconds in row.items()}) == {
        "rollout": 2.0, "reward": 0.0, "log-probs": 0.75, "values": 0.125, "advantage": 0.0625, "update": 1.5,
        "weights": 0.25, "other": 5.0 - 4.6875,
    }  # fmt: skip
    assert parts.of_verl({"timing_s/step": 1.0})["other"] == 1.0


def test_mean_step_leaves_out_the_first():
    assert parts.per_step([{"rollout": 9.0}, {"rollout": 1.0}, {"rollout": 3.0}])["rollout"] == 2.0
    assert parts.per_step([{"rollout": 9.0}]) == {
        part: 9.0 if part == "rollout" else 0.0 for part in parts.PARTS
    }


def test_a_part_within_another_does_not_count_for_it():
    """Every look at the clock is a second later."""
    seconds, waits = iter(range(100)), []
    clock = parts.Clock(lambda: waits.append(1), lambda: next(seconds))
    clock.begin_step()  # 0
    # update runs from 0 to 1, other to 2, rollout to 3, other to 4, update to 5
    with clock.running("other"), clock.running("rollout"):
        assert clock.part == "rollout"
    clock.end_step()
    assert clock.steps == [{"update": 2, "other": 2, "rollout": 1}]
    assert clock.part is None
    assert len(waits) == 6


@pytest.mark.parametrize("estimator", ["gae", "remax"])
def test_the_clock_on_the_real_trainer(tiny, tmp_path, estimator):
    """All parts that the estimator has take time, and together they are the step; afterwards all is as before."""
    pytest.importorskip("trl")
    from rl_estimators.trl import advantages

    found = []

    @contextmanager
    def watch(trainer):
        with parts.watch_trl(trainer) as clock:
            found.append((trainer, clock))
            yield

    before = advantages.add
    trl_run.train(estimator, 2, 0, 1, tiny / "model", tmp_path, lambda rewards: None, where.CPU, watch)
    ((trainer, clock),) = found
    assert advantages.add is before
    assert not {"_generate", "_prepare_inputs"} & vars(trainer).keys()
    assert len(clock.steps) == 2
    wanted = {"rollout", "reward", "log-probs", "advantage", "update", "other"}
    wanted |= {"values"} if estimator == "gae" else set()
    for step in clock.steps:
        assert step.keys() == wanted
        assert all(seconds > 0 for seconds in step.values())
    (row,) = [row for row in trainer.state.log_history if row.get("step") == 2 and "step_time" in row]
    # TRL's own time of a step has no optimizer step in it
    assert row["step_time"] * 0.9 < sum(clock.steps[1].values()) < row["step_time"] + 5


# ------------------------------------------------------------------------------------------------ the report


def a_run(first=0.5, last=0.8, steps=10, **more):
    rewards = [first] * (steps // 2) + [last] * (steps - steps // 2)
    known = {"seconds": 60.0, "host_bytes": 3 << 30, "device_bytes": 2 << 30, "reserved_bytes": 1 << 30}
    return {"rewards": rewards, "parts": dict.fromkeys(parts.PARTS, 0.25), **known, **more}


def results(**runs):
    settings = {"device": "cuda", "engine": "hf", "steps": 10, "seed": 0, "parameters": 21_000_000}
    known = {"machine": {"gpu": "some GPU", "processor": "some processor"}, "settings": settings}
    return {**known, "runs": {name.replace("_", ":", 1): run for name, run in runs.items()}}


def test_summary():
    lines = gpu_report.summary({"verl:gae": a_run(), "trl:gae": a_run(device_bytes=0)}).splitlines()
    assert lines[0].split()[:4] == ["run", "first", "last", "s/step"]
    assert lines[1].split() == ["verl:gae", "0.500", "0.800", "2.00", *["0.250"] * 8, "2.0", "3.0"]
    assert lines[2].split()[-2:] == ["0.0", "3.0"]


def test_picture_and_file(tmp_path):
    every = results(verl_gae=a_run(), trl_gae=a_run(), trl_reinforce_pp=a_run(steps=1))
    gpu_report.plot(every, tmp_path / "all.png")
    gpu_report.plot(results(), tmp_path / "none.png")  # before the first run is over
    for name in ("all", "none"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    gpu_report.write(every, tmp_path / "all.json")
    assert gpu_report.read(tmp_path / "all.json", every) == every["runs"]
    assert gpu_report.read(tmp_path / "no.json", every) == {}
    other = {**every, "settings": {**every["settings"], "seed": 1}}
    assert gpu_report.read(tmp_path / "all.json", other) == {}
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_results_of_several_calls_are_brought_together(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(requirements, "problem", lambda: None)
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    gpu_report.write(results(verl_gae=a_run(), trl_gae=a_run()), one)
    gpu_report.write(results(trl_gae=a_run(last=0.9)), two)
    assert gpu_smoke.main(["--merge", str(one), str(two), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / gpu_smoke.RESULTS).read_text())["runs"]
    assert {name: run["rewards"][-1] for name, run in found.items()} == {"verl:gae": 0.8, "trl:gae": 0.9}
    assert (tmp_path / "out" / "smoke_gpu.png").is_file()
    other = results(trl_gae=a_run())
    other["settings"]["steps"] = 11
    gpu_report.write(other, two)
    assert gpu_smoke.main(["--merge", str(one), str(two), "--out", str(tmp_path / "out")]) == 2
    assert f"--merge: {two} has settings" in capsys.readouterr().err


def test_machine():
    found = machine.describe()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["verl"].startswith("0.")


@pytest.mark.parametrize(
    ("said", "gpu", "driver"),
    [
        ("NVIDIA H200, 143771 MiB, 580.159.03\\nNVIDIA H200, 143771 MiB, 580.159.03\\n", "NVIDIA H200, 143771 MiB", "580.159.03"),
        ("No devices were found\\n", "-", "-"),
    ],
)  # fmt: skip
def test_the_gpu_is_described_by_the_driver(said, gpu, driver, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.describe()
    assert (found["gpu"], found["driver"]) == (gpu, driver)


@pytest.mark.parametrize(
    ("said", "status", "wanted"), [("512\n1024\n", 0, 512 << 20), ("", 9, 0), ("[N/A]\n", 0, 0)]
)
def test_device_memory_is_the_driver_s(said, status, wanted, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{said}'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert processes.device_memory() == wanted
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert processes.device_memory() == 0


# ------------------------------------------------------------------------------------------------ the driver


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """`main` around runs that only pretend; what they were is in ``done``."""
    monkeypatch.setattr(requirements, "problem", lambda: None)
    monkeypatch.setattr(machine, "describe", lambda: {"gpu": "-", "processor": "p"})
    monkeypatch.setattr(gpu_smoke, "assets", lambda *_: (tmp_path / "model", (tmp_path, tmp_path)))
    monkeypatch.setattr(gpu_smoke, "parameters", lambda model: 82432)
    for name in ("MPLCONFIGDIR", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")

    def pretend(name, steps, *_):
        main.done.append(name)
        found = main.outcome(name, steps)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(gpu_smoke, "in_verl", pretend)
    monkeypatch.setattr(gpu_smoke, "in_trl", pretend)

    def main(*arguments):
        return gpu_smoke.main([*arguments, "--tiny", "--out", str(tmp_path / "out")])

    main.done, main.outcome = [], lambda name, steps: a_run(steps=steps)
    return main


def test_all_eight_are_done_once(driver, capsys):
    assert driver() == 0
    assert driver.done == gpu_smoke.RUNS
    assert len(driver.done) == 8
    out = capsys.readouterr().out
    assert out.startswith("CUDA is not used: the tiny model on the CPU, 4 steps a run; its times say nothing")
    assert "no verdict: 4 steps are too few for the reward to rise" in out
    assert driver() == 0
    assert len(driver.done) == 8  # they are in the results
    assert driver("--runs", "trl:gae", "--again") == 0
    assert driver.done[8:] == ["trl:gae"]
    assert driver("--runs", "trl:gae", "--seed", "1") == 0
    assert driver.done[9:] == ["trl:gae"]  # other settings, other results


def test_a_failure_keeps_what_was_done(driver, tmp_path, capsys):
    driver.outcome = lambda name, steps: (
        smoke.SmokeError("its last words") if name == "verl:remax" else a_run()
    )
    assert driver("--runs", "verl:gae,verl:remax,trl:gae") == 1
    assert "its last words" in capsys.readouterr().err
    assert [*json.loads((tmp_path / "out" / gpu_smoke.RESULTS).read_text())["runs"]] == ["verl:gae"]


@pytest.mark.parametrize(("last", "status"), [(0.8, 0), (0.55, 1)])
def test_rewards_have_to_rise_in_a_long_run(driver, last, status, capsys):
    driver.outcome = lambda name, steps: a_run(last=last, steps=steps)
    assert driver("--runs", "trl:remax", "--steps", "40") == status
    assert (
        f"trl:remax: The reward {'rose' if status == 0 else 'did NOT clearly rise'}: "
        in capsys.readouterr().out
    )


def test_an_unknown_run_is_named(driver, capsys):
    with pytest.raises(SystemExit):
        driver("--runs", "trl:gae,verl:ppo")
    assert "--runs has verl:ppo, expected some of verl:gae," in capsys.readouterr().err


def test_what_runs_on_a_gpu_is_said():
    assert gpu_smoke.on_what(CUDA, 40) == "on CUDA, in bfloat16, verl's rollouts by hf: 40 steps a run"


def test_assets_are_made_once_for_a_seed_and_size(tmp_path, monkeypatch):
    made = []

    def child(name, steps, options, folder, progress, setup):
        made.append((name, options.seed, setup))
        (folder / "model").mkdir()

    monkeypatch.setattr(gpu_smoke, "child", child)
    for seed, setup in ((0, where.CPU), (0, where.CPU), (1, where.CPU), (1, CUDA)):
        found = gpu_smoke.assets(tmp_path, 4, gpu_smoke.parse(["--seed", str(seed)]), None, setup)
        assert found == (tmp_path / "model", (tmp_path / "data/train.parquet", tmp_path / "data/val.parquet"))
    assert made == [("assets", 0, where.CPU), ("assets", 1, where.CPU), ("assets", 1, CUDA)]


def test_a_child_sees_one_gpu_and_makes_the_assets(tmp_path, monkeypatch):
    """Of those the caller sees, the first; on the CPU nothing is said about it."""
    (tmp_path / "child.log").write_text("teaching\n")
    seen = []

    class Ended:
        def __init__(self, command, environment, folder, log):
            seen.append((command, environment.get("CUDA_VISIBLE_DEVICES")))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self, seconds):
            return 0

        def measure(self):
            pass

    monkeypatch.setattr(processes, "ProcessTree", Ended)
    options, said = gpu_smoke.parse(["--seed", "3"]), []
    progress = type("Said", (), {"show": lambda self, text: said.append(text)})()
    for visible, setup in (("2,3", CUDA), (None, CUDA), (None, where.CPU)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpu_smoke.child("assets", 4, options, tmp_path, progress, setup)
    assert [devices for _, devices in seen] == ["2", "0", None]
    assert said == ["assets: teaching"] * 3
    parsed = [gpu_smoke.parse(command[2:]) for command, _ in seen]
    assert [(one.child, one.steps, one.seed, one.out, one.tiny) for one in parsed] == [
        ("assets", 4, 3, tmp_path, False), ("assets", 4, 3, tmp_path, False), ("assets", 4, 3, tmp_path, True),
    ]  # fmt: skip
    built = []
    monkeypatch.setattr(smoke, "build_assets", lambda *given: built.append((*given[:2], given[3])))
    gpu_smoke.be_child(parsed[0], 4, tmp_path, CUDA)
    assert built == [(tmp_path, 3, CUDA)]


def test_trl_in_a_process_of_its_own(tiny, tmp_path):
    """The real child, two steps: its numbers, its memory, and nothing left running."""
    pytest.importorskip("trl")
    from digit_sort.progress import Progress

    (tmp_path / "model").symlink_to(tiny / "model")
    (folder := tmp_path / "trl-grpo").mkdir()
    options, stream = gpu_smoke.parse([]), io.StringIO()
    with Progress(stream) as progress:
        found = gpu_smoke.in_trl("trl:grpo", 2, options, folder, progress, where.CPU)
    assert len(found["rewards"]) == 2
    assert found["parts"].keys() == {*parts.PARTS}
    assert found["parts"]["rollout"] > 0
    assert found["host_bytes"] > 100 << 20
    assert found["device_bytes"] == found["reserved_bytes"] == 0 or torch.cuda.is_available()
    assert "trl:grpo: training: step 2 of 2 done" in stream.getvalue()


def test_a_child_that_fails_shows_the_end_of_its_log(tmp_path):
    from digit_sort.progress import Progress

    (folder := tmp_path / "trl-gae").mkdir()  # there is no model beside it
    with (
        Progress(io.StringIO()) as progress,
        pytest.raises(smoke.SmokeError, match="trl:gae ended with exit status 1"),
    ):
        gpu_smoke.in_trl("trl:gae", 2, gpu_smoke.parse([]), folder, progress, where.CPU)


def test_the_data_are_those_of_the_smoke_task():
    assert gpu_smoke.ANSWERS.keys() == {"gae", "grpo", "reinforce_pp", "remax"}
    assert all(command.BATCH % answers == 0 for answers in gpu_smoke.ANSWERS.values())
    assert task.TRAIN_ROWS >= command.BATCH
    assert report.WINDOW < gpu_smoke.JUDGED < gpu_smoke.STEPS
