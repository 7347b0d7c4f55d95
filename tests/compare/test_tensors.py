"""A batch of tensors, saved and read again; and what is refused of files that somebody else has made."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from rl_estimators.compare import Reader, save
from rl_estimators.compare.schema import PLACEHOLDER
from rl_estimators.errors import InputError

REWARDS = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
SUFFIXES = ("safetensors", "pt")


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"batch.{request.param}"


def read(path, **options):
    (found,) = Reader(**options).read([path])
    return found


def put(path, tensors, **texts):
    """Write a file without the checks of ``save``."""
    if path.suffix == ".pt":
        torch.save({**tensors, **texts}, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"rl_estimators": json.dumps(texts)})


class TestRoundTrip:
    def test_everything(self, path):
        values = torch.randn(2, 3, dtype=torch.bfloat16)
        save(
            path, step=5, prompts=["p", None], pieces=[["a", " b"], ["c"]], token_level_rewards=REWARDS,
            response_mask=MASK, index=["x", 3], values=values, truncated=torch.tensor([True, False]),
        )  # fmt: skip
        found = read(path)
        assert (found.step, found.exact, found.format) == (5, True, "a batch of tensors")
        assert list(found.prompts) == ["p", None]
        assert [list(own) for own in found.pieces] == [["a", " b"], ["c"]]
        assert list(found.inputs["index"]) == ["x", 3]
        assert torch.equal(found.inputs["values"], values)
        assert torch.equal(found.inputs["token_level_rewards"], REWARDS)
        assert found.inputs["truncated"].tolist() == [True, False]

    @pytest.mark.parametrize("index", [torch.tensor([4, 4]), np.array([4, 4])])
    def test_index_as_numbers(self, path, index):
        save(path, token_level_rewards=REWARDS, response_mask=MASK, index=index)
        assert [int(name) for name in read(path).inputs["index"]] == [4, 4]

    def test_without_index_prompts_tell_groups(self, path):
        save(path, token_level_rewards=REWARDS, response_mask=MASK, prompts=["p", "p"])
        assert list(read(path).inputs["index"]) == ["p", "p"]

    def test_with_neither(self, path):
        save(path, token_level_rewards=REWARDS, response_mask=MASK)
        found = read(path)
        assert list(found.inputs["index"]) == [0, 1]
        assert list(found.notes) == ["without index and prompts each response is a group of its own"]
        assert [list(own) for own in found.pieces] == [[PLACEHOLDER] * 2, [PLACEHOLDER]]

    def test_views_and_shared_memory(self, path):
        both = torch.arange(12.0).view(2, 6)
        save(
            path,
            token_level_rewards=both[:, :3],
            response_mask=MASK,
            values=both[:, :3],
            old_log_probs=both[:, 3:],
        )
        assert torch.equal(read(path).inputs["old_log_probs"], both[:, 3:])

    def test_a_header_of_any_length(self, tmp_path):
        """Its length comes first, and 0x80 there is how a pickle begins."""
        pytest.importorskip("safetensors")
        path, first = tmp_path / "a.safetensors", set()
        for number in range(0, 300, 8):
            save(path, token_level_rewards=REWARDS, response_mask=MASK, prompts=["p" * number, "q"])
            first.add(path.read_bytes()[0])
            assert read(path).prompts[0] == "p" * number
        assert 0x80 in first

    def test_inputs_stay_as_they_are(self, path):
        given = REWARDS.clone().requires_grad_()
        save(path, token_level_rewards=given, response_mask=MASK)
        assert given.requires_grad
        assert not read(path).inputs["token_level_rewards"].requires_grad

    def test_steps_are_chosen(self, path):
        from rl_estimators.compare.steps import Steps

        save(path, step=5, token_level_rewards=REWARDS, response_mask=MASK)
        with pytest.raises(InputError, match="no step is in --steps 6; there are: 5"):
            read(path, steps=Steps("6"))


class TestSaveRefuses:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"valeus": REWARDS}, "there is no input 'valeus'. Did you mean 'values'"),
            ({"values": REWARDS[:, :2]}, "values has T=2, but token_level_rewards has T=3"),
            ({"prompts": ["p"]}, "prompts has 1 entries for 2 responses"),
            ({"pieces": [["a"] * 4, []]}, "pieces has 4 texts for 3 tokens"),
            ({"pieces": [["a"], [1]]}, "pieces is no list of lists of texts"),
            ({"prompts": ["p", 1]}, "prompts is no list of texts"),
            ({"step": 1.5}, "step is 1.5, expected a whole number"),
        ],
    )
    def test_what_does_not_fit(self, path, given, message):
        with pytest.raises(InputError, match=message):
            save(path, **{"token_level_rewards": REWARDS, "response_mask": MASK, **given})
        assert not list(path.parent.iterdir())

    def test_what_is_missing(self, path):
        with pytest.raises(InputError, match="is missing response_mask"):
            save(path, token_level_rewards=REWARDS)

    def test_another_ending(self, tmp_path):
        with pytest.raises(InputError, match=r"a batch is saved as \.safetensors or \.pt"):
            save(tmp_path / "batch.bin", token_level_rewards=REWARDS, response_mask=MASK)

    def test_texts_too_long_for_a_header(self, tmp_path, monkeypatch):
        monkeypatch.setattr("rl_estimators.compare.tensors._MOST_METADATA", 10)
        path = tmp_path / "batch.safetensors"
        with pytest.raises(
            InputError, match=r"more than a header of safetensors holds; save as \.pt, or leave pieces out"
        ):
            save(path, token_level_rewards=REWARDS, response_mask=MASK, prompts=["p", "q"])
        assert not list(tmp_path.iterdir())

    def test_without_safetensors(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
        with pytest.raises(InputError, match=r"needs safetensors: pip install 'rl-estimators\[see\]'"):
            save(tmp_path / "batch.safetensors", token_level_rewards=REWARDS, response_mask=MASK)


class Evil:
    def __reduce__(self):
        return os.system, ("echo unpickled > unpickled",)


class TestLoadRefuses:
    def test_what_needs_unpickling(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "batch.pt"
        torch.save({"token_level_rewards": REWARDS, "response_mask": MASK, "index": Evil()}, path)
        with pytest.raises(
            InputError, match="holds objects that only unpickling restores, which may run any code"
        ):
            read(path)
        path.write_bytes(pickle.dumps({"response_mask": Evil()}))
        with pytest.raises(InputError, match=r"no whole file of torch\.save: it is cut short, or a pickle"):
            read(path)
        assert not (tmp_path / "unpickled").exists()

    @pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "renamed.jsonl"])
    def test_a_damaged_file(self, tmp_path, name):
        good = tmp_path / ("good.pt" if name == "a.pt" else "good.safetensors")
        save(good, token_level_rewards=REWARDS, response_mask=MASK)
        path, whole = tmp_path / name, good.read_bytes()
        for size in (1, 9, 40, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(
                InputError, match=r"no whole (file of torch\.save|safetensors file)|no line can be read"
            ):
                read(path)

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            ([REWARDS], "it holds a list, expected a dict of tensors"),
            ({"a": {"b": REWARDS}}, "a is a dict, expected a tensor"),
        ],
    )
    def test_other_contents(self, tmp_path, found, message):
        path = tmp_path / "a.pt"
        torch.save(found, path)
        with pytest.raises(InputError, match=message):
            read(path)

    def test_what_does_not_fit(self, path):
        put(path, {"token_level_rewards": REWARDS, "response_mask": MASK[:1]})
        with pytest.raises(InputError, match=r"has B=., but .* has B=."):
            read(path)

    def test_what_is_no_mask(self, path):
        put(path, {"token_level_rewards": REWARDS, "response_mask": MASK * 2})
        with pytest.raises(InputError, match=r"response_mask has dtype torch\.int64 and holds 2"):
            read(path)

    def test_texts_of_other_kinds(self, path):
        tensors = {"token_level_rewards": REWARDS, "response_mask": MASK}
        for texts, message in (
            ({"prompts": "ab"}, "prompts is no list of texts"),
            ({"pieces": [["a"] * 9, []]}, "pieces has 9 texts for 3 tokens"),
            ({"index": [1.5, 2.5]}, "index is no list of strings or whole numbers"),
            ({"index": [1]}, "index has B=1"),
        ):
            put(path, tensors, **texts)
            with pytest.raises(InputError, match=message):
                read(path)

    def test_unknown_tensors_are_named(self, path):
        put(path, {"token_level_rewards": REWARDS, "response_mask": MASK, "valeus": REWARDS.clone()})
        assert read(path).notes[0] == "not read: valeus. Did you mean 'values'?"

    @pytest.mark.parametrize("metadata", ["[1]", "{", "[" * 100_000])
    def test_metadata_of_another_kind(self, tmp_path, metadata):
        from safetensors.torch import save_file

        path = tmp_path / "a.safetensors"
        save_file({"response_mask": MASK}, path, metadata={"rl_estimators": metadata})
        with pytest.raises(InputError, match="the metadata 'rl_estimators' is no JSON object"):
            read(path)

    @pytest.mark.parametrize("size", [(10**9, 10**9), (2**14, 2**13)])
    def test_a_tensor_that_claims_to_be_huge(self, tmp_path, size):
        path = tmp_path / "a.pt"
        torch.save({"token_level_rewards": torch.zeros(1).expand(size), "response_mask": MASK}, path)
        with pytest.raises(
            InputError, match=r"token_level_rewards has shape \(.*, more than 67,108,864 numbers"
        ):
            read(path)

    @pytest.mark.parametrize("odd", [REWARDS.to_sparse(), REWARDS.to("meta")], ids=["sparse", "meta"])
    def test_tensors_of_other_kinds(self, tmp_path, odd):
        path = tmp_path / "a.pt"
        torch.save({"token_level_rewards": odd, "response_mask": MASK}, path)
        with pytest.raises(
            InputError, match=r"token_level_rewards is no plain tensor|no whole file|only unpickling"
        ):
            read(path)

    def test_a_packed_archive(self, tmp_path):
        path, packed = tmp_path / "a.pt", tmp_path / "b.pt"
        torch.save({"response_mask": MASK}, path)
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        with pytest.raises(InputError, match="its parts are compressed"):
            read(packed)

    def test_too_large(self, path, monkeypatch):
        monkeypatch.setattr("rl_estimators.compare.limits.MOST_CELLS", 5)
        save(path, token_level_rewards=REWARDS, response_mask=MASK)
        with pytest.raises(
            InputError, match="a batch of 2 responses of up to 3 tokens is more than the 5 numbers"
        ):
            read(path)

    def test_without_safetensors(self, tmp_path, monkeypatch):
        path = tmp_path / "a.safetensors"
        save(path, token_level_rewards=REWARDS, response_mask=MASK)
        monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
        with pytest.raises(InputError, match=r"needs safetensors: pip install 'rl-estimators\[see\]'"):
            read(path)
