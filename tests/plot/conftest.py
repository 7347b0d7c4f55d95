"""Logs as the frameworks write them."""

import json
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a host


@pytest.fixture
def verl_log(tmp_path):
    """Writes a log as verl's file logger does: a dict of metrics for each step, from ``start`` on."""

    def write(name, rows, start=1):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": step, "data": data}) + "\n" for step, data in enumerate(rows, start)]
        path.write_text("".join(lines))
        return path

    return write


@pytest.fixture
def rewards(verl_log):
    """Writes a log of verl with nothing but rewards."""
    return lambda name, values, start=1: verl_log(name, [{"critic/score/mean": v} for v in values], start)


@pytest.fixture
def state(tmp_path):
    """Writes a state as transformers does."""

    def write(name, history):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"global_step": 1, "log_history": history}, indent=2, sort_keys=True))
        return path

    return write


@pytest.fixture
def events(tmp_path):
    """Writes an event file with torch's SummaryWriter, a dict of metrics for each step."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def write(folder, rows, start=1, **how):
        before = {*(tmp_path / folder).glob("*")}
        writer = SummaryWriter(str(tmp_path / folder), filename_suffix=f".{len(before)}")
        for step, row in enumerate(rows, start):
            for name, value in row.items():
                writer.add_scalar(name, value, step, **how)
        writer.close()
        (path,) = {*(tmp_path / folder).glob("*")} - before
        return path

    return write
