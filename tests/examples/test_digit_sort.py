"""The smoke task without verl: its reward, data and model, and its driver around commands that only pretend."""

import io
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.verl  # the data set wants pandas, the tokenizer transformers 5: verl brings both
pytest.importorskip("verl")
torch = pytest.importorskip("torch")

EXAMPLES = str(Path(__file__).parents[2] / "examples")
sys.path.insert(0, EXAMPLES)
from digit_sort import command, model, report, requirements, smoke, task  # noqa: E402
from digit_sort.processes import ProcessTree  # noqa: E402
from digit_sort.progress import Progress, describe_step  # noqa: E402
from digit_sort.reward import compute_score  # noqa: E402
from digit_sort.sizes import TINY  # noqa: E402

sys.path.remove(EXAMPLES)


# ---------------------------------------------------------------------------------------------- the task


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("1248", 1.0),
        ("1284", 0.5),  # two of four in place
        ("8421", 0.0),
        ("124", 0.375),  # three of four in place, halved for the length
        ("12480", 0.5),  # all four in place, halved
        ("a2b8", 0.5),
        (" 1248", 0.0),  # everything one place further: 1 stands where 2 should
        ("one two", 0.0),
        ("", 0.0),
    ],
)
def test_reward_by_hand(answer, reward):
    assert compute_score(task.DATA_SOURCE, answer, "1248", extra_info={"index": 0}, more=1) == reward


def test_answer():
    assert task.prompt_of("4821") == "4821="
    assert task.answer_of("4821") == "1248"
    assert task.answer_of("0070") == "0007"


def test_data_is_deterministic_and_validation_is_unseen(tmp_path):
    train, val = task.split(3)
    assert (train, val) == task.split(3)
    assert train != task.split(4)[0]
    assert (len(train), len(val)) == (task.TRAIN_ROWS, task.VAL_ROWS)
    assert len(set(train) | set(val)) == task.TRAIN_ROWS + task.VAL_ROWS
    first, second = task.write(tmp_path / "a", 3), task.write(tmp_path / "b", 3)
    assert [one.read_bytes() for one in first] == [one.read_bytes() for one in second]


def test_data_has_verls_format(tmp_path):
    pandas = pytest.importorskip("pandas")
    train, val = task.write(tmp_path, 0)
    digits = task.split(0)[1][0]
    row = pandas.read_parquet(val).iloc[0]
    assert row["data_source"] == task.DATA_SOURCE
    assert list(row["prompt"]) == [{"role": "user", "content": digits + "="}]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "".join(sorted(digits))}
    assert row["extra_info"] == {"split": "val", "index": 0}
    assert len(pandas.read_parquet(train)) == task.TRAIN_ROWS


# --------------------------------------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    steps = []
    return folder, model.build(folder, 0, lambda step, of: steps.append((step, of))), steps


@pytest.mark.filterwarnings("ignore")
def test_tokenizer_survives_saving(built):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    text = "4821=1248 é\n" + model.END
    assert tokenizer(text)["input_ids"] == model.build_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("4821=")["input_ids"]) == 5  # one byte, one token
    assert len(tokenizer.encode("\n")) == 1  # verl's Qwen chat handling wants it so
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (
        model.END,
        model.PAD,
        "left",
    )


def test_chat_template_adds_nothing_to_the_prompt(built):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    chat = [{"role": "user", "content": "4821="}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "4821="
    chat.append({"role": "assistant", "content": "1248"})
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "4821=1248" + model.END


def test_same_seed_same_weights(built, tmp_path):
    folder, first, steps = built
    torch.rand(3)  # whatever was drawn before does not matter, nor does the number of threads
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    second = model.build(tmp_path, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert steps == [(step + 1, TINY.warm_up_steps) for step in range(TINY.warm_up_steps)]


def test_other_seed_other_weights():
    tokenizer = model.build_tokenizer()
    zero, one = (model.build_model(tokenizer, seed).state_dict() for seed in (0, 1))
    assert not torch.equal(zero["model.embed_tokens.weight"], one["model.embed_tokens.weight"])


def test_warmed_up_model_is_half_right(built):
    reward = model.sampled_reward(built[1], model.build_tokenizer(), task.split(0)[0][:1024], seed=1)
    assert 0.45 <= reward <= 0.62


# -------------------------------------------------------------------------------------- numbers and words


def entry(step, reward, **more):
    return {"step": step, "data": {report.REWARD: reward, **more}}


def test_metrics_are_parsed_line_by_line():
    whole = json.dumps(entry(1, 0.5)) + "\n" + json.dumps({"step": 1, "data": {"val-core/x": 1.0}}) + "\n"
    text = whole + json.dumps(entry(2, 0.6))
    assert report.read_metrics("") == []
    assert report.read_metrics(text[:-7]) == [
        {"step": 1, report.REWARD: 0.5}
    ]  # the last line is being written
    assert [row["step"] for row in report.read_metrics(text + "\n")] == [1, 2]


def test_table_shows_what_is_there():
    rows = [
        {
            "step": 1,
            report.REWARD: 0.5625,
            "actor/reward_kl_penalty": 0.0123,
            "actor/entropy": 1.25,
            "actor/grad_norm": 0.875,
            "response_length/mean": 4.96,
            "timing_s/step": 2.96,
        },
        {"step": 2, report.REWARD: 0.6, "actor/grad_norm": None},
    ]
    assert report.table(rows).splitlines() == [
        "step   reward       KL  entropy  grad norm  length  seconds",
        "   1    0.562   0.0123    1.250      0.875    4.96      3.0",
        "   2    0.600        -        -          -       -        -",
    ]


@pytest.mark.parametrize(
    ("rewards", "rose"),
    [
        ([0.55] * 5 + [0.60] * 5 + [0.75] * 5, True),
        ([0.55] * 5 + [0.90] * 5 + [0.69] * 5, False),  # a gain, not above 0.70
        ([0.70] * 5 + [0.79] * 5, False),  # above, too small a gain
        ([0.5, 0.8], True),
        ([0.8], False),
    ],
)
def test_verdict(rewards, rose):
    rows = [{"step": number, report.REWARD: reward} for number, reward in enumerate(rewards, start=1)]
    assert report.verdict(rows)[0] is rose


def test_describe_step():
    assert describe_step([0.5], 4, 0.1) == "training: step 1 of 4 done, mean reward 0.500"
    assert (
        describe_step([0.5, 0.625], 4, 3.0)
        == "training: step 2 of 4 done, mean reward 0.625 (first step 0.500), about 6 s left"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_pipe_prints_lines_at_changes_and_in_between(monkeypatch):
    def told(seconds, *phases, lines):
        monkeypatch.setattr("digit_sort.progress.IN_PIPE", seconds)
        stream = io.StringIO()
        with Progress(stream) as progress:
            for phase in phases:
                progress.show(phase)
            end = time.monotonic() + 60
            while stream.getvalue().count("\n") < lines and time.monotonic() < end:
                time.sleep(0.05)
        found = stream.getvalue().splitlines()
        assert all(line.startswith("[   ") for line in found)
        return [line.partition("] ")[2] for line in found]

    assert told(1000, "one", "one", "two", lines=2) == ["one", "two"]
    assert told(0.2, "one", lines=3)[-2:] == ["one"] * 2


def test_progress_on_a_terminal_rewrites_its_line():
    stream = Terminal()
    with Progress(stream) as progress:
        progress.show("one")
        progress.show("two")
    assert stream.getvalue() == "\r\x1b[K[   0 s] one\r\x1b[K[   0 s] two\n"


def test_phase_follows_the_log():
    assert smoke.phase("") == "starting Ray"
    assert smoke.phase("... Started a local Ray instance.\n") == "starting verl's trainer"
    assert (
        smoke.phase("create worker group x\nall initialize finished, ready to fit\n")
        == "starting the agent loop"
    )


def test_plot_is_a_png(tmp_path):
    rows = [{"step": step, report.REWARD: step / 10} for step in range(1, 8)]
    report.plot({"verl": rows, "TRL": rows[:3]}, "reinforce_pp", tmp_path / "reward.png")
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------------- the driver


def test_deep_checkout_gets_a_short_folder_for_rays_sockets(tmp_path):
    short = Path("/s")
    assert smoke.ray_folder(short) == short
    other = smoke.ray_folder(tmp_path / ("deep" * 30))
    try:
        assert len(str(other)) + smoke.RAY_BELOW <= smoke.LONGEST_SOCKET
        assert other.is_dir()
    finally:
        other.rmdir()


def test_environment_points_into_the_scratch_folder(tmp_path):
    ours = command.training_environment(tmp_path / "scratch", tmp_path / "ray", tmp_path / "metrics.jsonl")
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(ours[name]).is_relative_to(tmp_path / "scratch")
        assert Path(ours[name]).is_dir()
    assert ours["RAY_TMPDIR"] == str(tmp_path / "ray")


def test_answers_share_the_batch():
    words = command.training_command("rle_grpo", 40, 0, 8, Path("m"), (Path("t"), Path("v")), Path("o"))
    assert words[1:3] == ["-m", "verl.trainer.main_ppo"]
    assert "algorithm.adv_estimator=rle_grpo" in words
    assert "data.train_batch_size=16" in words
    assert "actor_rollout_ref.rollout.n=8" in words


def test_hydra_reads_every_word_and_any_path():
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    odd = Path("/it's (a, b)/c=d")
    words = command.training_command("gae", 3, 0, 1, odd / "m", (odd / "t", odd / "v"), odd)
    values = {one.key_or_group: one.value() for one in parser.parse_overrides(words[3:])}
    assert str(values["actor_rollout_ref.model.path"]) == str(odd / "m")
    assert str(values["data.train_files"]) == str(odd / "t")
    assert str(values["hydra.run.dir"]) == str(odd / "hydra")
    assert len(values) == len(words) - 3  # no key is set twice


PRETEND = """
import json, os, sys
print("Started a local Ray instance")
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
    for step, reward in enumerate({rewards}, start=1):
        file.write(json.dumps({{"step": step, "data": {{"critic/score/mean": reward}}}}) + "\\n")
print("the last words")
sys.exit({status})
"""


@pytest.fixture
def pretend(monkeypatch):
    """Put a command that only pretends to train in verl's place, and rewards in TRL's; no model is built for it."""

    def put(rewards, status=0, in_trl="not here"):
        if not isinstance(in_trl, str):
            in_trl = [{"step": step, report.REWARD: reward} for step, reward in enumerate(in_trl, start=1)]
        monkeypatch.setattr(smoke, "train_in_trl", lambda *_: in_trl)
        script = PRETEND.format(rewards=rewards, status=status)
        monkeypatch.setattr(command, "training_command", lambda *_: [sys.executable, "-c", script])
        monkeypatch.setattr(smoke, "build_assets", lambda out, seed, progress: (out, (out, out)))

    return put


@pytest.fixture
def main(tmp_path, monkeypatch):
    monkeypatch.setattr(requirements, "problem", lambda: None)
    for name in ("MPLCONFIGDIR", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # main sets them; this has them set back

    def call(steps):
        return smoke.main(["--steps", str(steps), "--out", str(tmp_path)])

    return call


def test_reward_that_rises_is_a_success(pretend, main, tmp_path, capsys):
    pretend([0.5, 0.6, 0.75, 0.8])
    assert main(4) == 0
    out = capsys.readouterr().out
    assert "training: step 4 of 4 done, mean reward 0.800" in out
    assert "   4    0.800" in out
    assert "The reward rose: mean reward 0.550 in the first 2 steps, 0.775 in the last 2 steps" in out
    assert "peak memory" in out
    assert "no run in TRL: not here" in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"command.sh", "metrics.jsonl", "reward.png", "verl.log"}


def test_reward_that_does_not_rise_is_a_failure(pretend, main, capsys):
    pretend([0.6, 0.6, 0.65, 0.65])
    assert main(4) == 1
    assert "The reward did NOT clearly rise: mean reward 0.600" in capsys.readouterr().out


@pytest.mark.parametrize(("in_trl", "code"), [([0.5, 0.75], 0), ([0.5, 0.5], 1), ([0.75, 0.8], 1)])
def test_the_reward_has_to_rise_in_trl_too(pretend, main, capsys, in_trl, code):
    pretend([0.5, 0.75], in_trl=in_trl)
    assert main(2) == code
    out = capsys.readouterr().out
    assert out.index("reinforce_pp in verl\nstep ") < out.index("reinforce_pp in TRL\nstep ")
    assert f"mean reward {in_trl[0]:.3f} in the first step, {in_trl[1]:.3f} in the last step" in out


@pytest.mark.parametrize(("rewards", "status"), [([0.5], 3), ([0.5], 0)])
def test_failed_command_shows_the_end_of_its_log(pretend, main, tmp_path, capsys, rewards, status):
    pretend(rewards, status)
    assert main(2) == 1
    err = capsys.readouterr().err
    assert "the last words" in err
    assert f"verl ended with exit status {status} after 1 of 2 steps" in err
    assert str(tmp_path / "verl.log") in err
    assert (tmp_path / "scratch").is_dir()  # Ray's own logs would be in it


def test_the_run_in_trl(built, tmp_path):
    """The real trainer, for three steps: what it logs is what the report reads."""
    pytest.importorskip("trl")
    folder = built[0]
    options = smoke.parse(["--steps", "3", "--estimator", "rle_grpo", "--answers", "4"])
    verl = smoke.Outcome([{"step": 1, report.REWARD: 0.5}], {}, 0)
    (tmp_path / "model").symlink_to(folder)
    stream = io.StringIO()
    with Progress(stream) as progress:
        rows = smoke.train_in_trl(options, tmp_path, verl, progress)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0.3 < row[report.REWARD] < 0.8 for row in rows)
    assert all(" -" not in line for line in report.table(rows).splitlines())  # every column has its number
    assert "TRL: training: step 3 of 3 done, mean reward 0." in stream.getvalue()
    assert verl.seconds["TRL"] > 0
    entries = [json.loads(line) for line in (tmp_path / "trl_metrics.jsonl").read_text().splitlines()]
    assert [entry["data"] for entry in entries] == rows
    assert (tmp_path / "reward.png").is_file()


def test_no_run_in_trl_says_why(monkeypatch, tmp_path):
    from digit_sort import trl_run

    options = smoke.parse(["--estimator", "optimal_token_baseline"])
    assert smoke.train_in_trl(options, tmp_path, None, None) == (
        "optimal_token_baseline is an estimator of verl's alone"
    )
    monkeypatch.setattr(trl_run, "find_spec", lambda name: None)
    assert smoke.train_in_trl(options, tmp_path, None, None) == (
        "TRL is not installed: pip install 'rl-estimators[trl]'"
    )


def test_refusal_in_trl_is_a_failure(built, tmp_path):
    pytest.importorskip("trl")
    options = smoke.parse(["--estimator", "grpo", "--answers", "1", "--steps", "1"])
    (tmp_path / "model").symlink_to(built[0])
    progress = Progress(io.StringIO())
    with pytest.raises(smoke.SmokeError, match=r"TRL: .*num_generations=1"):
        smoke.train_in_trl(options, tmp_path, smoke.Outcome([], {}, 0), progress)


@pytest.mark.parametrize(("lost", "code"), [(1, 0), (2, 1)])
def test_a_port_lost_to_another_program_costs_one_more_start(
    monkeypatch, pretend, main, tmp_path, capsys, lost, code
):
    """verl asks for a free port, and listens on it seconds later."""
    pretend([0.5, 0.8])
    starts = tmp_path / "starts"
    before = f"""
import pathlib, sys
starts = pathlib.Path({str(starts)!r})
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
if len(starts.read_text()) <= {lost}:
    sys.exit("DistNetworkError: port: 40207, code: -98, name: EADDRINUSE")
"""
    script = before + PRETEND.format(rewards=[0.5, 0.8], status=0)
    monkeypatch.setattr(command, "training_command", lambda *_: [sys.executable, "-c", script])
    assert main(2) == code
    assert starts.read_text() == "xx"
    said = capsys.readouterr()
    assert "verl lost its port to another program; starting Ray again" in said.out
    assert ("EADDRINUSE" in said.err) == bool(code)


def test_a_failure_of_another_kind_is_not_tried_again(pretend, main, capsys):
    pretend([], status=1)
    assert main(2) == 1
    assert "starting Ray again" not in capsys.readouterr().out


def test_command_that_hangs_is_given_up(monkeypatch, main, capsys):
    monkeypatch.setattr(smoke, "PATIENCE", 3.0)
    monkeypatch.setattr(smoke, "build_assets", lambda out, seed, progress: (out, (out, out)))
    monkeypatch.setattr(command, "training_command", lambda *_: ["sh", "-c", "echo hm; exec sleep 60"])
    assert main(2) == 1
    assert "hm\nverl made no step for 3 s after 0 of 2 steps" in capsys.readouterr().err


def test_run_returns_the_metrics_of_each_step(pretend, tmp_path):
    pretend([0.5, 0.25])
    assert smoke.run(estimator="grpo", steps=2, out=tmp_path, overrides=["a=b"]) == [
        {"step": 1, report.REWARD: 0.5},
        {"step": 2, report.REWARD: 0.25},
    ]
    with pytest.raises(smoke.SmokeError, match="after 2 of 3 steps"):
        smoke.run(steps=3, out=tmp_path)


def test_overrides_follow_the_dashes():
    options = smoke.parse(["--steps", "3", "--", "a.b=1", "+c=2"])
    assert (options.steps, options.overrides, options.estimator) == (3, ["a.b=1", "+c=2"], "reinforce_pp")


def test_nothing_stays_running(tmp_path):
    # The grandchild leaves its parent's process group, as Ray's workers do, and does not heed SIGTERM.
    grandchild = (
        "import os, signal, time; os.setpgrp(); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(60)"
    )
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}])"
    log = tmp_path / "log"
    tree = ProcessTree([sys.executable, "-c", child], dict(os.environ), tmp_path, log)
    assert tree.wait(200) == 0  # an orphan from here on
    while "up" not in log.read_text():
        time.sleep(0.05)
    assert len(tree.alive()) == 1
    tree.measure()
    assert tree.peak_bytes > 2**20
    tree.stop(patience=0.5)
    assert tree.alive() == set()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sys", SimpleNamespace(platform="win32"), "wsl --install"),
        (
            "sys",
            SimpleNamespace(platform="linux", version_info=(3, 14)),
            "Python 3.14 cannot run verl 0.9: python3.12 -m",
        ),
        (
            "find_spec",
            lambda name: None if name == "ray" else 1,
            "ray cannot be found: pip install 'rl-estimators[verl",
        ),
        ("version", lambda name: "0.8.0", "verl 0.8.0 is installed, verl 0.9 is wanted: pip install"),
        (
            "entry_points",
            lambda group: (),
            "verl does not know rl_estimators, which is not installed: pip install",
        ),
    ],
)
def test_what_is_missing_is_said_with_its_repair(monkeypatch, capsys, name, value, message):
    monkeypatch.setattr(requirements, name, value)
    assert smoke.main([]) == 2
    assert message in capsys.readouterr().err
