"""What we rely on in TRL is there in the installed release, and each kind of drift is an error that names it."""

import functools
import re

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402
from trl import GRPOTrainer  # noqa: E402

from rl_estimators.errors import PatchError  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, upstream  # noqa: E402


def test_the_installed_release_is_as_reviewed():
    upstream.check()


def drifted(**members):
    """A TRL whose trainer differs."""
    return type("Drifted", (GRPOTrainer,), members)


class Gone:
    """Looks as if it were not there."""

    def __get__(self, instance, owner):
        raise AttributeError


def renamed(self, examples):
    pass


def required_more(self, model, inputs, what_for):
    pass


def optional_more(self, model, inputs, what_for=None, *args, **kwargs):
    return "advantages", "old_per_token_logps", "ref_per_token_logps", "tool_mask"


def reordered(self, prompts, inputs, completions, completion_ids_list):
    pass


def of_keywords(self, *, model, inputs):
    return "advantages", "old_per_token_logps", "ref_per_token_logps", "tool_mask"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"_generate": renamed}, "GRPOTrainer._generate(self, examples), reviewed as (self, prompts)"),
        (
            {"_compute_loss": required_more},
            "GRPOTrainer._compute_loss(self, model, inputs, what_for), reviewed as (self, model, inputs)",
        ),
        (
            {"_calculate_rewards": reordered},
            "GRPOTrainer._calculate_rewards(self, prompts, inputs, completions, completion_ids_list), reviewed as",
        ),
        ({"create_scheduler": Gone()}, "GRPOTrainer.create_scheduler is gone"),
        ({"_compute_loss": Gone()}, "GRPOTrainer._compute_loss is gone"),
        (
            {"_compute_loss": lambda self, model, inputs: inputs["advantages"]},
            "GRPOTrainer._compute_loss no longer mentions the batch's 'tool_mask'",
        ),
        (
            {"_generate_and_score_completions": lambda self, inputs: {"advantage": 0}},
            "GRPOTrainer._generate_and_score_completions no longer mentions the batch's 'advantages'",
        ),
    ],
    ids=["renamed", "required", "reordered", "gone", "gone_with_keys", "key", "renamed_key"],
)
def test_drift_is_named(members, message):
    with pytest.raises(PatchError, match=re.escape(message)) as caught:
        upstream.check(drifted(**members))
    text = str(caught.value)
    assert re.match(r"TRL [\d.]+ is not as reviewed \(trl>=1\.12,<2\):", text)
    assert text.endswith("Install a release that the README names, or a newer rl-estimators.")
    assert len(text.splitlines()) == len(members) + 2 or "no longer mentions" in text


def test_all_changes_are_named_at_once():
    with pytest.raises(PatchError) as caught:
        upstream.check(drifted(_generate=renamed, training_step=Gone()))
    assert "GRPOTrainer._generate(" in str(caught.value)
    assert "GRPOTrainer.training_step is gone" in str(caught.value)


def test_what_does_not_matter_is_no_drift():
    """New parameters with defaults; a decorator around the same body."""
    upstream.check(drifted(_compute_loss=optional_more))
    inner = GRPOTrainer._compute_loss

    @functools.wraps(inner)
    def wrapped(*args, **kwargs):
        return inner(*args, **kwargs)

    upstream.check(drifted(_compute_loss=wrapped))


def test_attributes(tiny, tmp_path):
    """They are there on a trainer as made, and each one that is missing is named."""
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**toy.settings(tmp_path)), tiny)
    upstream.check_attributes(trainer)
    for name in ("beta", "_logs", "generation_config"):
        kept = trainer.__dict__.pop(name)
        with pytest.raises(PatchError, match=f"the attribute {name} is gone"):
            upstream.check_attributes(trainer)
        setattr(trainer, name, kept)


@pytest.mark.parametrize("when", ["methods", "attributes"])
def test_a_trainer_on_a_drifted_trl_is_not_made(tiny, tmp_path, monkeypatch, when):
    if when == "methods":
        monkeypatch.setattr(GRPOTrainer, "_generate", renamed)
        message = "GRPOTrainer._generate(self, examples)"
    else:
        monkeypatch.setattr(upstream, "ATTRIBUTES", (*upstream.ATTRIBUTES, "ballots"))
        message = "the attribute ballots is gone"
    with pytest.raises(PatchError, match=re.escape(message)):
        toy.make(EstimatorTrainer, EstimatorConfig(**toy.settings(tmp_path)), tiny)
