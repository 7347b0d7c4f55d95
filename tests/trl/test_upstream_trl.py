"""What we rely on in TRL is there in the installed release, and each kind of drift is an error that names it."""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402
from trl import GRPOTrainer  # noqa: E402

from rl_estimators.errors import PatchError  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, upstream  # noqa: E402


def test_the_installed_release_is_as_reviewed():
    upstream.check()


def source_files():
    return sorted(Path(upstream.__file__).parent.rglob("*.py"))


def reached(tree, owner):
    """Names X of ``owner.X``, ``anything.owner.X`` and, for self, ``super().X``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = node.value
            if isinstance(base, ast.Call) and owner == "self":
                name = "self" if getattr(base.func, "id", "") == "super" else ""
            else:
                name = getattr(base, "id", getattr(base, "attr", ""))
            if name == owner:
                yield node.attr


def used():
    """Names that the package reads from a trainer, ours among them, and the files that do."""
    found = {}
    for file in source_files():
        tree = ast.parse(file.read_text())
        owners = ("trainer", "self") if file.name == "trainer.py" else ("trainer",)
        for name in (name for owner in owners for name in reached(tree, owner)):
            found.setdefault(name, set()).add(file.name)
    return found


LISTED = {
    *upstream.SIGNATURES,
    *upstream.ATTRIBUTES,
    *(name for names in upstream.GENERATION.values() for name in names),
    *(name for names in upstream.WHILE_TRAINING.values() for name in names),
}
OF_OURS = {"_scored", "_token_reward_funcs"}  # instance attributes that the trainer sets itself
BY_VERSION = {"eos_token_ids"}  # read where the release is compared first
# transformers' public attributes, which TRL sets as well
PUBLIC = {"model", "args", "accelerator", "state", "processing_class", "train_dataset"}


def test_all_that_is_used_is_listed():
    own = {name for name in vars(EstimatorTrainer) if name not in vars(GRPOTrainer)} | OF_OURS
    private = {name for name in used() if name.startswith("_") and not name.startswith("__")}
    assert {"_metrics", "_get_per_token_logps_and_entropies", "_tokenizer", "_get_output_dir"} <= private
    assert private - own - LISTED == set()
    source = inspect.getsource(inspect.getmodule(GRPOTrainer))
    of_trl = set(reached(ast.parse(source), "self"))
    public = {name for name in used() if not name.startswith("_")} & of_trl
    assert {"beta", "router_aux_loss_coef", "current_gradient_accumulation_steps"} <= public
    assert public - own - LISTED - BY_VERSION - PUBLIC == set()


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


def passed_on(self, model, *args, batch_size=None, compute_aux_loss=False, **kwargs):
    """As in TRL 1.14."""


def without_entropy(
    self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_aux_loss=False
):
    pass


def turned_around(self, ids, model, *args, batch_size=None, **kwargs):
    pass


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
        (
            {"_get_per_token_logps_and_entropies": without_entropy},
            "GRPOTrainer._get_per_token_logps_and_entropies no longer takes compute_entropy",
        ),
        (
            {"_get_per_token_logps_and_entropies": turned_around},
            "GRPOTrainer._get_per_token_logps_and_entropies(self, ids, model, args, batch_size, kwargs), reviewed as",
        ),
        (
            {"training_step": lambda self, model, inputs, num_items_in_batch: None},
            "GRPOTrainer.training_step no longer reads self.current_gradient_accumulation_steps",
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
    ids=[
        "renamed",
        "required",
        "reordered",
        "keyword",
        "around",
        "unread",
        "gone",
        "gone_with_keys",
        "key",
        "renamed_key",
    ],
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
    """New parameters with defaults; arguments passed on; a decorator around the same body."""
    upstream.check(drifted(_compute_loss=optional_more))
    upstream.check(drifted(_get_per_token_logps_and_entropies=passed_on))
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
