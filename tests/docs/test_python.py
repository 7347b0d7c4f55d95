"""Every Python block of README and docs runs, and prints what stands below it."""

import importlib.util
import re

import pytest
from docblocks import VALUE_MODEL, blocks, documents, printed

DOCUMENTS = [document for document in documents() if [*blocks(document, "python")]]


def needs(document):
    """The marks of what a document's blocks import."""
    text = "".join(block.text for block in blocks(document, "python"))
    found = {
        name for name in ("verl", "trl") if re.search(rf"(from|import) (rl_estimators\.)?{name}\b", text)
    }
    return found | ({"trl"} if "load_dataset" in text else set())


def scope_of(document):
    """Names that a document takes for granted; README's show how to call, not where tensors come from."""
    if not document.startswith("README"):
        return {"__name__": "__main__"}
    import torch

    ones = torch.ones(2, 3)
    names = ("rewards", "mask", "old", "new", "values", "new_values")
    return {"__name__": "__main__", **dict.fromkeys(names, ones), "uids": ["a", "a"]}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(one, marks=[getattr(pytest.mark, name) for name in sorted(needs(one))])
        for one in DOCUMENTS
    ],
)
def test_python_blocks(document, request):
    missing = [name for name in needs(document) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    request.getfixturevalue("small" if "trl" in needs(document) else "workplace")
    scope = scope_of(document)
    for block in blocks(document, "python"):
        shown = printed(block, scope)
        if block.prints is not None:
            assert shown == block.prints, block


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
def test_verls_own_checker_scores_the_data_of_docs_verl(small):
    """What the page writes to a file is what verl's reward function for that data set looks for."""
    pandas = pytest.importorskip("pandas")
    score = pytest.importorskip("verl.utils.reward_score").default_compute_score
    for block in blocks("docs/verl.md", "python"):
        printed(block, {})
    for file in ("train.parquet", "val.parquet"):
        rows = pandas.read_parquet(file)
        assert [row["content"].endswith("####.") for (row,) in rows["prompt"]] == [True] * 8
        for n, (source, truth) in enumerate(zip(rows["data_source"], rows["reward_model"], strict=True)):
            assert score(source, f"It is more.\n#### {1000 * n}", truth["ground_truth"]) == 1.0
            assert score(source, f"It is more.\n#### {1000 * n + 1}", truth["ground_truth"]) == 0.0


@pytest.mark.trl
@pytest.mark.filterwarnings("ignore")
def test_an_old_value_model_says_the_same(hub):
    """docs/from-ppotrainer.md: the checkpoint of a sequence classifier serves as a token classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    old = AutoModelForSequenceClassification.from_pretrained(hub / VALUE_MODEL).eval()
    new = AutoModelForTokenClassification.from_pretrained(hub / VALUE_MODEL, num_labels=1).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        one, each = old(input_ids=ids).logits, new(input_ids=ids).logits
    assert each.shape == (1, 4, 1)
    assert float(one) != 0
    torch.testing.assert_close(each[:, -1], one)  # a sequence's number is that of its last token
