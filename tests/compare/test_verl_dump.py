"""verl's rollout dumps: lines as they are documented here, and files that verl's own code has written."""

import json
from types import SimpleNamespace

import pytest
import torch

from rl_estimators.compare import Problems, Reader
from rl_estimators.errors import InputError


def line(**fields):
    return json.dumps(
        {"input": "user\n1+1?", "output": "it is 2", "gts": "2", "score": 1.0, "step": 3, **fields}
    )


@pytest.fixture
def read(tmp_path):
    def run(*lines, **options):
        (tmp_path / "3.jsonl").write_text("\n".join(lines))
        return list(Reader(**options).read([tmp_path]))

    return run


class TestLines:
    def test_one_without_uid(self, read):
        """Responses to the same text are a group."""
        (found,) = read(line(), line(score=0.0, input="user\n2+2?"), line(score=0.5))
        assert (found.step, found.format, found.exact) == (3, "verl's rollout dump", False)
        assert list(found.inputs["index"]) == ["user\n1+1?", "user\n2+2?", "user\n1+1?"]
        assert found.inputs["token_level_rewards"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0.5]]

    def test_the_key_of_a_row_names_its_prompt(self, read):
        """Two prompts of the same text are two groups; a uid may itself hold what looks like a key."""
        (found,) = read(line(uid="a_1_0_0"), line(uid="a_1_1_0"), line(uid="b_0_0"), line(uid="my_own"))
        assert list(found.inputs["index"]) == ["a_1", "a_1", "b", "my_own"]

    def test_a_session_counts_once_by_its_final_output(self, read):
        (found,) = read(
            line(uid="a_0_0", output="first"),
            line(uid="a_0_1", output="last"),
            line(uid="a_1_0", output="other"),
        )
        assert ["".join(own) for own in found.pieces] == ["last", "other"]
        assert "1 output before the final one of an agent loop is left out" in found.notes
        (found,) = read(*(line(uid=f"a_0_{number}") for number in range(3)))
        assert "2 outputs before the final one of an agent loop are left out" in found.notes

    def test_what_the_reward_function_returned_beside_the_score(self, read):
        """For estimators that read verl's columns; only numbers, and only what all lines have."""
        (found,) = read(line(acc=True, pred="2", length=0.5), line(acc=False, pred="3", length=1, extra=1))
        columns = found.inputs["non_tensor_batch"]
        assert {name: column.tolist() for name, column in columns.items()} == {
            "acc": [1, 0],
            "length": [0.5, 1],
        }

    def test_a_response_without_text_has_the_token_that_ends_it(self, read):
        (found,) = read(line(output="", score=0.0))
        assert found.inputs["response_mask"].tolist() == [[True]]

    def test_the_files_of_a_run_in_the_order_of_their_numbers(self, tmp_path):
        for step in (10, 9, 100):
            (tmp_path / f"{step}.jsonl").write_text(line(step=step))
        assert [found.step for found in Reader().read([tmp_path])] == [9, 10, 100]

    def test_a_line_of_another_kind_among_them(self, read):
        problems = Problems()
        read(line(), json.dumps({"output": "a", "score": 1}), problems=problems)
        assert problems.reasons[0].endswith("3.jsonl:2: it has no input, which verl writes into every line")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"score": "1.0"}, 'score is "1.0", expected a number'),
            ({"output": None}, "output is null, expected text"),
        ],
    )
    def test_what_it_cannot_be(self, read, fields, message):
        with pytest.raises(InputError, match="nothing that was given holds a response"):
            read(line(**fields), problems=(problems := Problems()))
        assert message in problems.reasons[0]


class Digits:
    """A tokenizer: token 0 pads, the others are their number."""

    pad_token_id = 0

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(int(one)) for one in ids if one)

    def batch_decode(self, ids, skip_special_tokens):
        return [self.decode(row, skip_special_tokens) for row in ids]


@pytest.mark.verl
class TestWrittenByVerl:
    """The trainers' own methods, from the batch to the file; only what is around them is stood in for."""

    def test_the_v1_trainer(self, tmp_path, monkeypatch):
        trainer_base = pytest.importorskip("verl.trainer.ppo.v1.trainer_base")
        keys = ["q_1_0", "p_0_0", "q_0_0", "p_1_0"]  # verl sorts them
        scores = torch.tensor([[0.0, 0.25], [0.0, 1.0], [0.0, 0.0], [float("nan"), 0.0]])
        jagged = [torch.tensor([5, 6]), torch.tensor([7]), torch.tensor([8, 9]), torch.tensor([3])]
        columns = {
            "uid": SimpleNamespace(tolist=lambda: keys),
            "prompts": torch.nested.nested_tensor([torch.tensor([4])] * 4, layout=torch.jagged),
            "responses": torch.nested.nested_tensor(jagged, layout=torch.jagged),
            "rm_scores": scores,
        }
        monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_batch_get=lambda **_: columns))
        trainer = _trainer(trainer_base.PPOTrainer, 7)
        trainer._log_rollout_data(SimpleNamespace(keys=keys, partition_id="train"), {}, str(tmp_path))
        trainer._shutdown_dump_executor()
        (found,) = Reader().read([tmp_path])
        assert found.step == 7
        assert list(found.inputs["index"]) == ["p", "p", "q", "q"]
        assert ["".join(own) for own in found.pieces] == ["7", "3", "8 9", "5 6"]
        sums = found.inputs["token_level_rewards"].sum(-1).tolist()
        assert sums[0] == 1
        assert sums[1] != sums[1]
        assert sums[2:] == [0, 0.25]

    def test_the_trainer_without_v1(self, tmp_path):
        ray_trainer = pytest.importorskip("verl.trainer.ppo.ray_trainer")
        from verl.protocol import DataProto

        batch = DataProto.from_single_dict(
            {
                "prompts": torch.tensor([[4], [4], [5]]),
                "responses": torch.tensor([[7, 8], [9, 0], [3, 0]]),
                "token_level_scores": torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]),
            }
        )
        trainer = _trainer(ray_trainer.RayPPOTrainer, 2)
        trainer._log_rollout_data(batch, {"acc": [1.0, 0.0, 0.0]}, {}, str(tmp_path))
        trainer._shutdown_dump_executor()
        (found,) = Reader().read([tmp_path])
        assert found.step == 2
        assert list(found.inputs["index"]) == ["4", "4", "5"]
        assert found.inputs["token_level_rewards"].tolist() == [[0, 1], [0.5, 0], [0, 0]]
        assert found.inputs["non_tensor_batch"]["acc"].tolist() == [1, 0, 0]


def _trainer(cls, step):
    """A trainer that has everything its dump needs and nothing else."""
    missing = dict.fromkeys(getattr(cls, "__abstractmethods__", ()))
    trainer = object.__new__(type("Dumping", (cls,), missing))
    trainer.tokenizer, trainer.global_steps = Digits(), step
    trainer._init_dump_executor()
    return trainer
