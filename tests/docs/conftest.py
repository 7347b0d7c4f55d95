"""A working directory in which what the docs name is there: small, local, and under the same names."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from docblocks import ARITHMETIC, DATA, MODEL, REWARD_MODEL, ROOT, VALUE_MODEL

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a host
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""
SMALL = {  # what makes a run of the docs' settings one step of a second
    "max_steps": 1,
    "max_completion_length": 6,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A folder with the models and data that the docs name; a name of the Hub is a path in it as well."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        from digit_sort import model, sizes, task

        ignorant = replace(sizes.TINY, warm_up_steps=5)  # it need not know anything
        model.build(folder / MODEL, 0, size=ignorant)
        digits = task.split(0)[0][:64]
    _as_classifiers(folder)
    # "solution" is what the reward function of TRL that the docs use asks for
    rows = [{"prompt": [_asked(task.prompt_of(one))], "solution": task.answer_of(one)} for one in digits]
    _write(folder / DATA / "train.jsonl", rows)
    for split in ("train", "test"):
        rows = [
            {"question": f"{n} and {n}?", "answer": f"It is {2 * n}.\n#### {1000 * n:,}"} for n in range(8)
        ]
        _write(folder / ARITHMETIC / f"{split}.jsonl", rows)
    (folder / ARITHMETIC / "README.md").write_text(CARD)
    return folder


def _as_classifiers(folder: Path) -> None:
    """The same model with a number for a sequence: what a reward model is, and TRL's old value model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for name in (REWARD_MODEL, VALUE_MODEL):
        model = AutoModelForSequenceClassification.from_pretrained(folder / MODEL, num_labels=1)
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(folder / MODEL).save_pretrained(folder / name)


def _asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workplace(hub, tmp_path, tmp_path_factory, monkeypatch):
    """The working directory of a reader; what they register or import does not stay."""
    from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES

    for folder in hub.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for registry in (ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES):
        monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    yield tmp_path
    made = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(made):
            del sys.modules[name]


@pytest.fixture
def small(workplace, monkeypatch):
    """Trainings with TRL are one step long, and TRL's reward for mathematics looks for digits."""
    import datasets
    import torch
    import trl.rewards

    from rl_estimators.trl import EstimatorConfig

    def right_digits(completions, solution, **columns):
        texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
        return [float(text[:1] == wanted[:1]) for text, wanted in zip(texts, solution, strict=True)]

    original = EstimatorConfig.__post_init__

    def shortened(self):
        for name, value in SMALL.items():
            setattr(self, name, value)
        original(self)

    monkeypatch.setattr(EstimatorConfig, "__post_init__", shortened)
    monkeypatch.setattr(trl.rewards, "accuracy_reward", right_digits)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(workplace / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def offered(tmp_path_factory):
    """A folder with the example package and what an installer writes of its entry points: no build, in no time."""
    package, folder = ROOT / "examples" / "own_estimator", tmp_path_factory.mktemp("offered")
    (folder / "my_estimators").symlink_to(package / "my_estimators")
    table = (
        (package / "pyproject.toml").read_text().partition("[project.entry-points.")[2].partition("\n\n")[0]
    )
    group, *entries = table.splitlines()
    told = folder / "my_estimators-0.1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: my-estimators\nVersion: 0.1.0\n")
    (told / "entry_points.txt").write_text(
        f"[{group.strip(']').strip(chr(34))}]\n" + "\n".join(entries).replace('"', "")
    )
    return folder
