"""A TRL whose trainer has drifted: what `make upstream` says of its source, and what a trainer of ours says when made."""

import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doctored import ADDED, doctored, tree

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

CI = Path(__file__).parents[2] / ".ci"
PACKAGE = Path(importlib.util.find_spec("trl").origin).parent
TRAINER = "trainer/grpo_trainer.py"


def drift(method, kind):
    path, elsewhere = f"GRPOTrainer.{method}", "trl.trainer.rle_elsewhere"
    return functools.partial(doctored, attribute=path, kind=kind, elsewhere=elsewhere)


def replaced(before, after):
    def edit(source):
        assert before in source
        return source.replace(before, after)

    return edit


@pytest.fixture(scope="module")
def examine():
    sys.path.append(str(CI))
    yield importlib.import_module("upstream_trl").examine
    sys.path.remove(str(CI))


@pytest.fixture
def copy(tmp_path):
    return lambda **edits: tree(
        PACKAGE, tmp_path, {name.replace("__", "/") + ".py": e for name, e in edits.items()}
    )


def test_the_installed_release_fits(examine):
    assert {*examine(PACKAGE.parent).values()} == {"fits"}


@pytest.mark.parametrize(
    ("edit", "name", "verdict"),
    [
        (
            replaced("def _generate(self, prompts", "def _generate(self, examples"),
            "GRPOTrainer._generate",
            r"changed: _generate\(self, examples.*\), reviewed as \(self, prompts\)",
        ),
        (
            replaced("old_per_token_logps", "rle_logps"),
            "GRPOTrainer._compute_loss",
            "changed: _compute_loss no longer mentions the batch's 'old_per_token_logps'",
        ),
        (
            drift("_compute_loss", "body"),
            "GRPOTrainer._compute_loss",
            r"changed body: reviewed .* in 1\.16\.0, found [0-9a-f]{12}",
        ),
        (
            drift("_calculate_rewards", "gone"),
            "GRPOTrainer._calculate_rewards",
            r"moved: to trl\.",  # others of TRL's trainers have one of that name
        ),
        (
            drift("_generate_and_score_completions", "gone"),
            "GRPOTrainer._generate_and_score_completions",
            r"(gone|moved: to trl\.)",
        ),
        (
            replaced("self.num_generations =", "self.rle_generations ="),
            "attributes",
            r"gone: nothing sets self\.num_generations",
        ),
    ],
    ids=["signature", "key", "body", "moved", "gone", "attribute"],
)  # fmt: skip
def test_each_drift_is_named(examine, copy, edit, name, verdict):
    found = examine(copy(trainer__grpo_trainer=edit))
    assert re.match(verdict, found[name])
    others = {one: said for one, said in found.items() if said != "fits" and one != name}
    assert all("old_per_token_logps" in said or "changed body" in said for said in others.values()), others


def test_a_new_parameter_with_a_default_is_another_body_only(examine, copy):
    found = examine(copy(trainer__grpo_trainer=drift("_compute_loss", "signature")))
    assert found["GRPOTrainer._compute_loss"].startswith("changed body: ")


def test_no_trainer_at_all(examine, copy):
    edit = replaced("class GRPOTrainer(", "class GroupTrainer(")
    assert examine(copy(trainer__grpo_trainer=edit)) == {
        "GRPOTrainer": "gone: no module of trl defines a class GRPOTrainer"
    }


def test_a_name_that_we_import_is_gone(examine, copy):
    edit = replaced("disable_gradient_checkpointing", "rle_checkpointing")
    assert (
        examine(copy(models__utils=edit))["imports"]
        == "gone: trl.models.utils.disable_gradient_checkpointing"
    )


MAKE = """
import warnings
warnings.simplefilter("ignore")
from rl_estimators.trl import PPOTrainer
PPOTrainer(model="is-never-looked-for", reward_funcs=len)
"""


def made(folder):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MAKE],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        },
        timeout=300,
    )


def test_a_trainer_is_not_made_and_names_all_of_it(copy):
    """Before a model is loaded."""

    def edit(source):
        source = replaced("def _generate(self, prompts", "def _generate(self, examples")(source)
        source = drift("_log_metric", "gone")(source)
        return drift("_compute_loss", "body")(source)  # no reason to stop

    done = made(copy(trainer__grpo_trainer=edit))
    assert done.returncode == 1
    told = done.stderr[done.stderr.index("PatchError: ") :].splitlines()
    assert re.fullmatch(r"PatchError: TRL [\d.]+ is not as reviewed \(trl>=1\.12,<2\):", told[0])
    assert re.match(r"  GRPOTrainer\._generate\(self, examples.*\), reviewed as \(self, prompts\)", told[1])
    assert told[2] == "  GRPOTrainer._log_metric is gone"
    assert told[3:] == ["Install a release that the README names, or a newer rl-estimators."]
    assert ADDED not in done.stderr


def test_a_module_that_is_gone_is_named_at_import(copy):
    done = made(copy(trainer__grpo_trainer=None))
    assert done.returncode == 1
    assert "No module named 'trl.trainer.grpo_trainer'" in done.stderr
    assert "rl_estimators" in done.stderr
