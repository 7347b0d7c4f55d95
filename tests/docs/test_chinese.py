"""The README in Chinese says the same: the same code, the same rows, the same links."""

import re

from docblocks import ROOT, blocks

ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def rows(text):
    """The code terms of each row of a table."""
    return [re.findall(r"`([^`]+)`", line) for line in text.splitlines() if line.startswith("|")]


def code(name):
    return [(block.language, block.text) for block in blocks(name)]


def links(text):
    return sorted(target for target in re.findall(r"\]\(([^)]+)\)", text) if "README." not in target)


def terms(text):
    """Code terms between the fences, in any order: languages put words in different places."""
    return sorted(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def test_the_same_code():
    assert code("README.md") == code("README.zh-CN.md")
    assert len(code("README.md")) > 8


def test_the_same_tables():
    assert rows(ENGLISH) == rows(CHINESE)
    assert len(rows(ENGLISH)) > 20


def test_the_same_links_and_sections():
    assert links(ENGLISH) == links(CHINESE)
    assert ENGLISH.count("\n## ") == CHINESE.count("\n## ")


def test_the_same_terms():
    assert terms(ENGLISH) == terms(CHINESE)


def test_each_leads_to_the_other():
    assert "](README.zh-CN.md)" in ENGLISH
    assert "](README.md)" in CHINESE
