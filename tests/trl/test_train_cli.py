"""``rl-estimators train``: what it is told reaches the trainer, and what it cannot use is refused by name."""

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402

from rl_estimators import cli  # noqa: E402
from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.modules import load_module  # noqa: E402
from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402
from rl_estimators.trl import EstimatorTrainer, ReinforcePPConfig, ReinforcePPTrainer  # noqa: E402
from rl_estimators.trl import train as command  # noqa: E402
from rl_estimators.trl.arguments import TRAINERS, parse  # noqa: E402
from rl_estimators.trl.functions import find  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "trl"
NEEDED = ["--model_name_or_path", "m", "--dataset_name", "d", "--use_cpu"]
REWARDS = f"{ROOT / 'examples' / 'digit_sort' / 'reward.py'}:digits_in_place"
FUNCTIONS = """
def length(completions, **kwargs):
    return [float(len(one)) for one in completions]

def scaled(scale):
    def inner(completions, **kwargs):
        return [scale * len(one) for one in completions]
    return inner

def per_token(completion_ids, **kwargs):
    calls.append(len(completion_ids))
    return [[0.5] * len(one) for one in completion_ids]

calls, number = [], 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with ``data/`` and ``mine.py`` in it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    task = toy.digit_sort("task")
    for name, digits in zip(("train", "test"), task.split(0), strict=True):
        rows = [{"prompt": task.prompt_of(one), "answer": task.answer_of(one)} for one in digits[:64]]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    yield tmp_path
    for name in [one for one in sys.modules if one in ("mine", "broken") or one.startswith("rle_file_")]:
        del sys.modules[name]


@pytest.fixture
def words(folder, tiny):
    """A command line that is complete; what a test adds wins."""
    small = {**toy.settings(folder / "out"), "max_steps": 2}
    small |= {"model_name_or_path": str(tiny), "dataset_name": "data", "reward_funcs": REWARDS}
    return ["train", *(word for name, value in small.items() for word in (f"--{name}", str(value)))]


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that were made."""
    made, build = [], command.build
    monkeypatch.setattr(command, "build", lambda given: made.append(build(given)) or made[-1])
    return made


def refused(arguments, capsys):
    assert cli.main(arguments) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("rl-estimators train: "))
    return line


# -------------------------------------------------------------------------------------------- what reaches it


def test_same_as_a_script(words, folder, tiny, trainers, monkeypatch):
    """To the bit what the class gives when it is called: nothing is lost, and nothing added."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    assert cli.main([*words, "--trainer", "reinforce_pp", "--num_generations", "1", "--gamma", "0.9"]) == 0
    config = ReinforcePPConfig(
        **toy.settings(folder / "script", max_steps=2, num_generations=1, gamma=0.9),
        model_init_kwargs={"dtype": "float32"},
    )
    script = ReinforcePPTrainer(
        model=str(tiny),
        reward_funcs=find(REWARDS, "reward_funcs"),
        args=config,
        train_dataset=load_dataset("data")["train"],
        processing_class=AutoTokenizer.from_pretrained(tiny),
    )
    script.train()
    (made,) = trainers
    assert type(made) is ReinforcePPTrainer
    assert len(toy.logged(script)) == 3  # two steps and the end
    toy.same(
        toy.Run(made, toy.logged(made), toy.weights(made)),
        toy.Run(script, toy.logged(script), toy.weights(script)),
    )


def test_the_model_is_saved(words, folder, tiny):
    assert cli.main(words) == 0
    assert (folder / "out" / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


def test_the_command_line_wins_over_the_file(folder):
    (folder / "c.yaml").write_text(
        "trainer: ppo\nlearning-rate: 1e-3\nbeta: 0.5\nlam: 0.3\nreward_funcs: mine.length\n"
        "adv_estimator_kwargs: {whiten: false}\nenv: {RLE_TEST_OF_THE_CLI: 7}\n"
    )
    given = parse(["--beta=0.25", "--config", "c.yaml", "--reward-funcs", "a.b", "c.d", *NEEDED])
    assert given.trainer is TRAINERS["ppo"]
    assert type(given.config) is TRAINERS["ppo"].config_class
    assert (given.config.learning_rate, given.config.beta, given.config.lam) == (1e-3, 0.25, 0.3)
    assert given.config.adv_estimator_kwargs == {"whiten": False}
    assert given.script.reward_funcs == ["a.b", "c.d"]
    assert parse(["--config=c.yaml", *NEEDED]).script.reward_funcs == ["mine.length"]
    assert parse(["--config", "c.yaml", "--trainer", "remax", "--lam", "none", "--adv_estimator_kwargs", "{}",
                  *NEEDED]).trainer is TRAINERS["remax"]  # fmt: skip
    import os

    assert os.environ.pop("RLE_TEST_OF_THE_CLI") == "7"


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_by_name(name):
    given = parse(["--trainer", name, "--reward_funcs", "a.b", *NEEDED])
    assert given.config == TRAINERS[name].config_class(use_cpu=True)


def test_without_a_trainer_any_estimator(words, trainers):
    assert cli.main([*words, "--adv_estimator", "rloo", "--max_steps", "1"]) == 0
    assert (type(trainers[0]), trainers[0].estimator.name) == (EstimatorTrainer, "rloo")


def test_rewards_of_ones_own_and_trls(words, folder, trainers):
    given = ["mine.length", "mine.py:scaled(scale=2.0)", "think_format_reward"]
    more = [
        "--token_reward_funcs",
        "mine.py:per_token",
        "--reward_weights",
        "1",
        "0",
        "0",
        "--max_steps",
        "1",
    ]
    (folder / "data" / "train.jsonl").write_text(
        "\n".join(json.dumps({"prompt": [{"role": "user", "content": f"{n}="}]}) for n in range(1000, 1064))
    )
    (folder / "data" / "test.jsonl").unlink()
    assert cli.main([*words, "--reward_funcs", *given, *more]) == 0
    (log, _) = trainers[0].state.log_history
    assert {f"rewards/{name}/mean" for name in ("length", "inner", "think_format_reward")} <= {*log}
    assert log["rewards/length/mean"] == 1.0  # a conversational completion is a list of one message
    assert log["rewards/inner/mean"] == 2.0
    assert load_module("mine.py", "x").calls == [8]  # the process reward was asked, once for the batch


def test_external_modules_come_first(words, folder, monkeypatch, trainers):
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    (folder / "theirs.py").write_text(
        "import rl_estimators\n"
        "@rl_estimators.register_adv_est('theirs')\n"
        "def theirs(token_level_rewards, response_mask):\n"
        "    scores = token_level_rewards.sum(-1, keepdim=True) * response_mask\n"
        "    return scores, scores\n"
    )
    assert (
        cli.main([*words, "--adv_estimator", "theirs", "--external_modules", "theirs.py", "--max_steps", "1"])
        == 0
    )
    assert trainers[0].estimator.name == "theirs"


def test_peft(words, folder, trainers):
    pytest.importorskip("peft")
    more = ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj", "--max_steps", "1"]
    assert cli.main([*words, *more]) == 0
    assert (folder / "out" / "adapter_model.safetensors").is_file()
    trained = [name for name, parameter in trainers[0].model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_evaluation_and_resuming(words, folder, trainers):
    more = ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1",
            "--per_device_eval_batch_size", "64"]  # fmt: skip
    assert cli.main([*words, *more, "--max_steps", "1"]) == 0
    assert "eval_reward" in trainers[0].state.log_history[1]
    assert cli.main([*words, *more, "--resume_from_checkpoint", "true"]) == 0
    assert [row["step"] for row in trainers[1].state.log_history if "loss" in row] == [1, 2]
    assert trainers[1].state.log_history[0] == trainers[0].state.log_history[0]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_train(path, folder, tiny, monkeypatch, trainers):
    """On the example's data, from the root, as their comments say; here for two steps."""
    monkeypatch.chdir(ROOT)
    small = ["--model_name_or_path", str(tiny), "--dataset_name", str(folder / "data"), "--disable_tqdm", "true",
             "--output_dir", str(folder / "out"), "--per_device_train_batch_size", "16", "--max_steps", "2"]  # fmt: skip
    assert cli.main(["train", "--config", str(path), *small]) == 0
    assert trainers[0].estimator.name == path.stem
    assert len([row for row in trainers[0].state.log_history if "reward" in row]) == 2


# ------------------------------------------------------------------------------------------- what is refused


def test_help_has_ours_and_trls(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--trainer", "remax", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in ("--reward_funcs", "--adv_estimator", "--learning_rate", "--use_peft", "--datasets"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer", "remaxx"], "trainer='remaxx' is unknown, expected one of grpo, ppo, .* Did you mean 'remax'"),
        (["--config", "grpo"], "no file 'grpo' in .* For the defaults of a trainer: --trainer grpo"),
        (["--config", "no.yaml"], "no file 'no.yaml' in "),
        (["--config", "list.yaml"], r"list.yaml holds \['a'\], expected settings by name"),
        (["--config", "bad.yaml"], "bad.yaml is not YAML: "),
        (["--config", "typo.yaml"], "'learning_rat' in typo.yaml is not a setting. Did you mean 'learning_rate'"),
        (["--config", "env.yaml"], "env in env.yaml is 'A', expected variables by name"),
        (["--learning_rat", "1"], "'--learning_rat' on the command line is not a setting. Did you mean 'learning_rate'"),
        (["--train", "remax"], "'--train' on the command line is not a setting"),  # no abbreviations
        (["ppo"], "'ppo' on the command line is not a setting. A trainer is named with --trainer ppo."),
        (["--beta", "0.1", "word"], "'word' on the command line is not a setting"),
        (["--external_modules", "rle_nowhere.x"], "external_modules: no module 'rle_nowhere', looked from"),
        (["--adv_estimator", "gea"], "adv_estimator='gea': no advantage estimator is named 'gea'"),
        (["--adv_estimator", "PPO"], r"adv_estimator='PPO': no advantage .* Did you mean 'gae'\?"),
        (["--policy_loss", "vanilla"], r"policy_loss='vanilla': no policy loss .* Did you mean 'ppo_clip'\?"),
        (["--value_loss", "mes"], r"value_loss='mes': no value loss .* Did you mean 'mse'\?"),
        (["--reward_funcs", "a.b", *NEEDED, "--kl_in_reward"], "kl_in_reward=True with beta=0 charges nothing"),
    ],
)  # fmt: skip
def test_arguments(folder, capsys, arguments, message):
    import re

    for name, text in {"list": "[a]", "bad": "a: [", "typo": "learning_rat: 1", "env": "env: A"}.items():
        (folder / f"{name}.yaml").write_text(text)
    assert re.search(message, refused(["train", *arguments, "--use_cpu"], capsys))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model_name_or_path", None, "model_name_or_path is not set: a folder or a name on the Hub"),
        ("dataset_name", None, "dataset_name is not set: a folder with train.jsonl, or"),
        (
            "reward_funcs",
            None,
            "reward_funcs is not set: package.module.function, path/to/file.py:function, or one",
        ),
        ("dataset_train_split", "trian", "dataset_train_split='trian': the data has train, test"),
        ("reward_funcs", "nope", "reward_funcs: 'nope' is unknown; expected one of accuracy_reward, "),
    ],
)
def test_what_a_run_needs(words, capsys, setting, value, message):
    if value is None:
        place = words.index(f"--{setting}")
        del words[place : place + 2]
    else:
        words += [f"--{setting}", value]
    assert message in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model_name_or_path is not set"),
        (["--adv_estimator", "gpro"], r"Did you mean 'grpo'\?"),
    ],
)
def test_what_is_missing_comes_before_what_the_machine_lacks(folder, capsys, monkeypatch, words, message):
    import re

    from trl import GRPOConfig

    def no_gpu(self):
        raise ValueError("Your setup doesn't support bf16/gpu.")

    monkeypatch.setattr(GRPOConfig, "__post_init__", no_gpu)
    assert re.search(message, refused(["train", *words], capsys))


def test_data_without_prompts(words, folder, capsys):
    (folder / "data" / "train.jsonl").write_text('{"question": "4821=", "answer": "1248"}')
    (folder / "data" / "test.jsonl").unlink()
    assert "the data's train split has no column 'prompt', but question, answer" in refused(words, capsys)


def test_data_named_twice(words, folder, capsys):
    (folder / "c.yaml").write_text("datasets: [{path: data}]")
    assert "dataset_name='data' and datasets are both set; drop one" in refused(
        [*words, "--config", "c.yaml"], capsys
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.lenght", r"k: mine has no function 'lenght'. Did you mean 'length'\?"),
        ("mine.number", "k: mine has something that is not a function under 'number'"),
        ("none.py:length", "k: no file 'none.py' in "),
        ("mine.py:lenght", r"k: mine.py has no function 'lenght'. Did you mean 'length'\?"),
        ("nowhere.at.all", "k: no module 'nowhere', looked from "),
        ("lenght", "k: 'lenght' is unknown; expected package.module.function or path/to/file.py:function."),
        ("mine.scaled(2)", r"k: cannot read 'mine.scaled\(2\)'; expected name\(option=value, ...\) with plain values"),
        ("mine.scaled(scale=x)", r"k: cannot read 'mine.scaled\(scale=x\)'"),
        ("mine.scaled(scale=2", r"k: cannot read 'mine.scaled\(scale=2'"),
        ("mine.scaled(scales=2)", r"k: mine.scaled\(scales=2\): missing a required argument: 'scale'; it takes \(scale\)"),
        ("mine.length(completions=[])", r"k: mine.length\(completions=\[\]\) returned \[\], expected a function"),
    ],
)  # fmt: skip
def test_functions_that_are_not_there(folder, name, message):
    with pytest.raises(InputError, match=message):
        find(name, "k")


def test_a_factory_of_trls_needs_its_numbers():
    made = find("get_repetition_penalty_reward(ngram_size=2)", "k", command.functions.builtin_rewards())
    assert made(completions=[[{"content": "a b a b a b"}]], completion_ids=[[1, 2, 1, 2, 1, 2]])[0] < 0
    with pytest.raises(
        InputError, match=r"makes a reward function; write get_soft_overlong_punishment\(max_compl"
    ):
        find("get_soft_overlong_punishment", "k", command.functions.builtin_rewards())


def test_what_goes_wrong_inside_a_file_is_not_hidden(folder):
    (folder / "broken.py").write_text("import rle_nowhere")
    for name in ("broken.f", "broken.py:f"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'rle_nowhere'"):
            find(name, "k")


def test_a_file_is_loaded_once(folder):
    assert find("mine.py:length", "a") is find(f"{folder / 'mine.py'}:length", "b")
