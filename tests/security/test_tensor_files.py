"""Batches of tensors made by hand: a small file stands for a large one, or for one that takes for ever to look through."""

import io
import json
import struct
import time
import zipfile

import pytest
import torch

from rl_estimators import cli

ONES = {"token_level_rewards": torch.ones(2, 2), "response_mask": torch.ones(2, 2)}
MARK = 1_234_567  # stands in a pickle where something else is put


def refused(capsys, path):
    """What is said of it; within half a minute of work, and as an error, not as a traceback."""
    start = time.process_time()
    code = cli.main(["compare", str(path)])
    assert time.process_time() - start < 30
    said = capsys.readouterr()
    assert code == 2, said.out
    assert len(said.err) < 1000
    return said.err


def pickled(path, name, opcodes):
    """Write a batch beside which ``name`` is what these opcodes of pickle make."""
    whole, mark = io.BytesIO(), b"J" + struct.pack("<i", MARK)
    torch.save({**ONES, name: MARK}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as out:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(mark) == 1
                content = content.replace(mark, opcodes)
            out.writestr(entry.filename, content)
    return path


def test_a_list_that_stands_for_many(tmp_path, capsys):
    """A megabyte of pickle for 2**36 texts: to look at each would take hours."""
    torch.save({**ONES, "pieces": [["a"] * 2**18] * 2**18}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2_000_000
    assert "pieces has 262144 entries for 2 responses" in refused(capsys, tmp_path / "a.pt")
    torch.save({**ONES, "pieces": [["a"] * 2**18] * 2}, tmp_path / "a.pt")
    assert "pieces has 262144 texts for 2 tokens" in refused(capsys, tmp_path / "a.pt")


def test_a_number_that_stands_for_a_whole_batch(tmp_path, capsys):
    """One number with strides of 0: 256 MiB for each estimator, out of 2 KB."""
    number = torch.ones(1).expand(2**13, 2**13)
    torch.save({"token_level_rewards": number, "response_mask": number}, tmp_path / "a.pt")
    assert (
        "token_level_rewards has shape (8192, 8192), more than the 4 bytes it has hold: it repeats some; save it as "
        ".contiguous()" in refused(capsys, tmp_path / "a.pt")
    )


def test_parts_of_an_archive_that_lie_upon_each_other(tmp_path, capsys):
    """Each of a hundred names leads to the same megabyte."""
    path = tmp_path / "a.pt"
    torch.save({**ONES, "values": torch.zeros(2**18)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as source, zipfile.ZipFile(path, "w") as out:
        for entry in source.infolist():
            out.writestr(entry.filename, source.read(entry))
        largest = max(out.infolist(), key=lambda entry: entry.file_size)
        for number in range(100):
            again = zipfile.ZipInfo(f"whole/data/{number + 10}")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, name, getattr(largest, name))
            out.filelist.append(again)
    assert "its parts lie upon each other" in refused(capsys, path)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]" * 50_000 + b"a" * 49_999,
        b"\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000,
        b"(" * 100_000,
        b"0" * 100,
        b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 2**50) + b"\x85R",
    ],
    ids=["depth", "digits", "marks", "empty_stack", "memory"],
)
def test_a_pickle_made_by_hand(tmp_path, capsys, opcodes):
    said = refused(capsys, pickled(tmp_path / "a.pt", "step", opcodes))
    reasons = ("step is a list of 1", "only unpickling restores", "no whole file of torch.save")
    assert any(reason in said for reason in reasons), said


def safetensors(path, header):
    """A file of that header, and of 32 bytes: two tensors of 2 by 2."""
    rows = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * at, 16 * at + 16]}
        for at, name in enumerate(ONES)
    }
    head = json.dumps(rows | header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(32))
    return path


def test_many_tensors_of_nothing(tmp_path, capsys):
    """A name of eight bytes would be an object of a kilobyte."""
    pytest.importorskip("safetensors")
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}
    path = safetensors(tmp_path / "a.safetensors", {f"{n:x}": nothing for n in range(5000)})
    assert "5,002 tensors, more than 1,000" in refused(capsys, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"pieces": [' + "[],[]," * 2**19 + "[]]}", "it holds more than 1,048,576 lists and objects"),
        ('{"step": ' + "[" * 100_000 + "]" * 100_000 + "}", "its lists and objects are nested too deep"),
        ('{"step": ' + "9" * 5000 + "}", "it holds a whole number of thousands of digits"),
        ('{"step": ' + "9" * 4000 + "}", "expected a whole number"),
        ('{"step": ' + "[" * 500 + "]" * 500 + "}", "step is a list of 1, expected a whole number"),
    ],
    ids=["brackets", "depth", "digits", "large", "list"],
)
def test_texts_in_a_header(tmp_path, capsys, text, message):
    pytest.importorskip("safetensors")
    path = safetensors(tmp_path / "a.safetensors", {"__metadata__": {"rl_estimators": text}})
    assert message in refused(capsys, path)


def test_every_kind_of_plain_value_beside_the_tensors(tmp_path, capsys):
    """What weights_only lets through and this has no use for is named, not shown."""
    for value in (b"x" * 10**6, {1, 2}, 1j, torch.Size([1]), torch.float16, 10**500, True, {"a": 1}):
        torch.save({**ONES, "step": value}, tmp_path / "a.pt")
        said = refused(capsys, tmp_path / "a.pt")
        assert "expected a whole number" in said or "only unpickling restores" in said
