"""What the pages list is what there is: names, inputs, settings, links; and README stays short."""

import inspect
import json
import re
from dataclasses import fields

import pytest
from docblocks import ROOT, documents

import rl_estimators
from rl_estimators.diagnostics import DIAGNOSTICS
from rl_estimators.fields import FIELDS
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES

REGISTRIES = {"estimator": ADV_ESTIMATORS, "policy loss": POLICY_LOSSES, "value loss": VALUE_LOSSES}
# PPOTrainer's parameters and PPOConfig's own fields in TRL 1.12.0, the last with them, read from its wheel; `exp_name` is
# of 0.15.2.
OLD_ARGUMENTS = """args processing_class model ref_model reward_model train_dataset value_model data_collator eval_dataset
optimizers callbacks peft_config"""
OLD_FIELDS = """learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size
num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size push_to_hub
reward_model_path model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef
cliprange_value gamma lam ds3_gather_for_generation exp_name"""


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def section(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text):
    """The cells of every row but heads."""
    rows = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return [row for row in cells if set("".join(row)) - set("-: ")]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def ours(registry):
    return [name for name in registry.names() if registry.spec(name).is_ours]


class TestThePicture:
    @pytest.mark.parametrize("name", ours(ADV_ESTIMATORS))
    def test_every_estimator_has_its_stop(self, name):
        """A heading, a formula, code that runs it, and when to take it."""
        stop = page("docs/picture.md").partition(f"\n### `{name}`\n")[2].partition("\n##")[0]
        assert "```math\n" in stop
        assert f'("{name}"' in stop.partition("```python\n")[2]
        assert "\n*When:* " in stop
        assert f"[`{name}`](#{name})" in page("docs/picture.md").partition("\n## ")[0]

    @pytest.mark.parametrize(("title", "registry"), [
        ("The step: ratio and clip", POLICY_LOSSES), ("The critic's loss", VALUE_LOSSES)
    ])  # fmt: skip
    def test_every_loss_has_its_row(self, title, registry):
        rows = table(section(page("docs/picture.md"), title))
        assert sorted(names(row[0])[0] for row in rows if names(row[0])) == ours(registry)
        assert all(all(row) for row in rows)


def test_readme_names_everything_registered():
    readme = page("README.md")
    for registry in REGISTRIES.values():
        for name in ours(registry):
            assert f"`{name}`" in readme, name


def test_readme_is_short():
    assert 150 <= page("README.md").count("\n") <= 200


@pytest.mark.parametrize("document", [*documents(), "README.zh-CN.md"])
def test_links_lead_somewhere(document):
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page(document)):
        file, _, anchor = target.partition("#")
        path = folder / file if file else ROOT / document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(one) for one in headings}, target


def test_every_page_is_in_the_index():
    index = page("docs/README.md")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


def _anchor(heading):
    """As GitHub makes it: lower case, words joined by hyphens, other signs dropped."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_input_is_listed():
    """For estimators; what only losses get is not theirs."""
    rows = table(section(page("docs/your-own-estimator.md"), "What it may ask for"))
    listed = {name: row for row in rows for name in names(row[0])}
    of_losses = {"old_log_prob", "log_prob", "advantages", "returns", "vpreds"}
    assert {*listed} - {"parameter"} == {*FIELDS} - of_losses
    for name, row in listed.items():
        if FIELDS[name].dims:
            assert row[1] == f"`({', '.join(FIELDS[name].dims)}{',' * (len(FIELDS[name].dims) == 1)})`"
            assert row[2].startswith(FIELDS[name].meaning)


def test_conventions_count_the_presets():
    """`compat`: which estimators have verl's and TRL's."""
    with_compat = {
        library: [
            name
            for name in ours(ADV_ESTIMATORS)
            if library
            in str(inspect.signature(ADV_ESTIMATORS.spec(name).function).parameters.get("compat", ""))
        ]
        for library in ("verl", "trl")
    }
    (row,) = [row for row in table(page("docs/conventions.md")) if "`compat`" in row[1]]
    assert len(with_compat["verl"]) == 10
    assert "`verl` (ten estimators)" in row[3]
    assert names(row[3].partition("`trl`")[2]) == sorted(
        with_compat["trl"], key=["grpo", "rloo", "gdpo"].index
    )


def test_every_diagnostic_has_its_row():
    """The page's words are the table's, which the command prints."""
    rows = {names(row[0])[0]: row[1:] for row in table(page("docs/diagnostics.md")) if names(row[0])}
    told = {name: [one.what, one.bad, one.remedy] for name, one in DIAGNOSTICS.items()}
    assert {*rows} == {*told}
    for name, texts in told.items():
        assert rows[name] == [text.replace("|", "\\|") for text in texts], name


@pytest.mark.trl
class TestFromPPOTrainer:
    @pytest.fixture(autouse=True)
    def _trl(self):
        pytest.importorskip("trl")

    def old(self, title):
        rows = table(section(page("docs/from-ppotrainer.md"), title))
        return {name: row[1] for row in rows for name in names(row[0])}

    def test_every_old_argument_has_a_row(self):
        assert {*self.old("Arguments of the trainer")} == {*OLD_ARGUMENTS.split()}

    def test_every_old_field_has_a_row(self):
        assert {*self.old("Fields of the config")} == {*OLD_FIELDS.split()}

    @pytest.mark.parametrize("title", ["Arguments of the trainer", "Fields of the config"])
    def test_new_names_exist(self, title):
        from trl import GRPOTrainer

        from rl_estimators.trl import EstimatorTrainer, PPOConfig

        known = {one.name for one in fields(PPOConfig)} | {
            "PPOConfig",
            "input_ids",
            "prompt",
            "rl-estimators compare",
        }
        for trainer in (GRPOTrainer, EstimatorTrainer):
            known |= {*inspect.signature(trainer.__init__).parameters}
        for old, new in self.old(title).items():
            for name in names(new):
                bare = re.match(r"(--)?([\w-]+( compare)?)", name)
                known_options = {"reward_model_name_or_path", "model_name_or_path", "rl-estimators"}
                assert not bare or bare[2] in known | known_options or name.startswith('"'), (old, name)
            if "the same" in new.partition(";")[0].partition(".")[0]:
                assert old in known, old

    def test_defaults(self):
        from rl_estimators.trl import PPOConfig

        default = {one.name: one.default for one in fields(PPOConfig)}
        rows = {
            names(row[0])[0]: row
            for row in table(section(page("docs/from-ppotrainer.md"), "Defaults that differ"))
            if names(row[0])
        }
        for name, row in rows.items():
            assert float(row[2]) == default[name], name
        unchanged = {
            "num_iterations": 4,
            "beta": 0.05,
            "kl_penalty": "k1",
            "cliprange_value": 0.2,
            "epsilon": 0.2,
        }
        for name, value in (unchanged | {"gamma": 1.0, "lam": 0.95, "kl_in_reward": True}).items():
            assert default[name] == value, name


@pytest.mark.trl
def test_every_field_of_ours_is_in_docs_trl():
    pytest.importorskip("trl")
    from trl import GRPOConfig

    from rl_estimators.trl import EstimatorConfig

    own = {one.name for one in fields(EstimatorConfig)} - {one.name for one in fields(GRPOConfig)}
    told = {*names(section(page("docs/trl.md"), "The config"))} | {*names(page("docs/diagnostics.md"))}
    assert not {name for name in own if not any(re.match(rf"{name}\b", one) for one in told)}


@pytest.mark.trl
def test_every_trainer_is_in_docs_trl():
    pytest.importorskip("trl")
    import rl_estimators.trl

    rows = [names(row[0])[0] for row in table(section(page("docs/trl.md"), "Trainers")) if names(row[0])]
    assert {*rows} - {"...Config"} == {name for name in rl_estimators.trl.__all__ if name.endswith("Trainer")}


def test_curves_are_plots():
    from rl_estimators.plot.concepts import CONCEPTS

    rows = {names(row[0])[0]: row for row in table(page("docs/plot.md")) if names(row[0])}
    for concept in CONCEPTS:
        assert [*map(tuple, map(names, rows[concept.name][1:]))] == [concept.verl, concept.trl]


def test_functions_are_those_of_the_package():
    told = {name for row in table(page("docs/functions.md")) for name in names(row[0])}
    classes = {
        "Estimate",
        "EstimatorError",
        "diagnose",
    }  # what they return and raise, and docs/diagnostics.md
    assert told == {*rl_estimators.__all__} - classes


@pytest.mark.parametrize(
    ("readme", "words"), [("README.md", "GAE is {} times"), ("README.zh-CN.md", "{} 倍")]
)
def test_readmes_figure_is_the_measured_one(readme, words):
    """That of the run in the repository, as the adapters call it."""
    races = json.loads(page("benchmarks/results/kernels.json"))["races"]
    which = {"rows": 1024, "length": 8192, "mask": "prefix", "case": "gae + carry"}
    (race,) = [race for race in races if which.items() <= race.items()]
    assert words.format(round(race["times_verl"]["numba"])) in page(readme)
