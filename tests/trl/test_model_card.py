"""The model card of a trained model names the algorithm that trained it, and that one's paper."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402

from rl_estimators import trl as ours  # noqa: E402

PAPERS = {
    "PPO": "1707.06347",
    "GRPO": "2402.03300",
    "ReinforcePP": "2501.03262",
    "ReinforcePPBaseline": "2501.03262",
    "ReMax": "2310.10505",
}


@pytest.mark.parametrize("name", [*PAPERS, "Estimator"])
def test_the_card(name, tiny, tmp_path):
    config = getattr(ours, f"{name}Config")(**toy.settings(tmp_path))
    toy.make(getattr(ours, f"{name}Trainer"), config, tiny).create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "rl-estimators" in card
    others = set(PAPERS.values()) - {PAPERS.get(name)}
    assert name not in PAPERS or PAPERS[name] in card
    assert not [paper for paper in others if paper in card]
