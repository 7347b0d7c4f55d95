"""Texts that want to be code, or to hide: in a real Chromium they are text, and can be seen."""

import re
import unicodedata

import pytest
import torch
from compare.browser import chromium, console, requests_of
from selenium.webdriver.common.by import By

from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.compare.page import render

CODE = [
    "<script>window.fired = 1</script>",
    "</script><script>window.fired = 1</script>",
    "<!--<script>",
    "--><script>window.fired = 1</script>",
    "<img src=x onerror='window.fired = 1'>",
    "<svg/onload=window.fired=1>",
    "<iframe srcdoc='<script>parent.fired = 1</script>'></iframe>",
    "<style>* { display: none }</style>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "<a href='javascript:window.fired=1'>x</a>",
    "{{data}} {{script}} ${window.fired = 1}",
    "\"'`;window.fired=1;//",
    "&lt;b&gt; &#x3c;",
    "\\u003cscript\\u003e \\",
    "__proto__",
]
HIDDEN = {
    "\x00": "\\0",
    "\x1b": "\\x1b",
    "\r": "\\r",
    "\x85": "\\x85",
    "\xa0": "\\xa0",
    "\xad": "\\xad",
    "\u061c": "\\u061c",
    "\u200b": "\\u200b",
    "\u200f": "\\u200f",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
    "\u202e": "\\u202e",
    "\u2066": "\\u2066",
    "\u3164": "\\u3164",
    "\ufeff": "\\ufeff",
    "\ud800": "\\ud800",
    chr(0xDFFF): "\\udfff",
    "\U000e0041": "\\u{e0041}",
}
VISIBLE = ["é", "漢字", "🙂", "e\u0301", "שלום", "\ufffd"]
NASTY = [*CODE, *(f"a{c}b" for c in HIDDEN), *VISIBLE]
EVERYTHING = " | ".join(NASTY)


def nasty_page():
    """Every text that the page shows is hostile, in each place where one can stand."""
    pieces = [*NASTY, "\n", "\t", "   ", "", "end"]
    inputs = {
        "token_level_rewards": torch.eye(2, len(pieces)),
        "response_mask": torch.ones(2, len(pieces)),
        "reward_components": torch.ones(2, 1),
        "index": [EVERYTHING, EVERYTHING],
    }
    batch = Rollouts(
        EVERYTHING, 3, [EVERYTHING] * 2, [pieces] * 2, False, inputs, components=[EVERYTHING], notes=[EVERYTHING]
    )  # fmt: skip
    ones = torch.ones(2, len(pieces))
    names = {EVERYTHING: ones, "__proto__": -ones, "<script>window.fired = 1</script>": torch.nan * ones}
    step = Comparison(batch, names, {EVERYTHING: EVERYTHING})
    return render([step, step], EVERYTHING)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def opened(driver, tmp_path_factory):
    """Opened, and everything in it shown once."""
    path = tmp_path_factory.mktemp("page") / "nasty.html"
    path.write_text(nasty_page(), encoding="utf-8")
    driver.get(path.as_uri())
    driver.execute_script("""
      document.querySelectorAll('#table tbody tr').forEach((row) => row.click());
      document.querySelectorAll('input[name=estimator]').forEach((radio) => radio.click());
      document.querySelectorAll('#prompts button').forEach((button) => button.click());
      for (const token of document.querySelectorAll('.token')) { token.focus(); token.click(); }
    """)
    driver.page = path.as_uri()
    return driver


def test_no_text_becomes_code(opened):
    assert opened.execute_script("return window.fired ?? null") is None
    tags = "script, img, iframe, svg:not(.plot svg), a:not(.skip), link, style"
    found = opened.execute_script(
        "return Array.from(document.querySelectorAll(arguments[0]), (e) => e.tagName)", tags
    )
    assert sorted(found) == ["SCRIPT", "SCRIPT", "STYLE"]
    assert requests_of(opened, opened.page) == [opened.page]
    assert console(opened) == []


def test_no_element_listens_or_points_elsewhere(opened):
    names = opened.execute_script(
        "return [...new Set(Array.from(document.querySelectorAll('*'), (e) => e.getAttributeNames()).flat())]"
    )
    assert not [
        name for name in names if name.startswith("on") or name in ("src", "srcdoc", "action", "formaction")
    ]


@pytest.mark.parametrize(
    "position", range(len(NASTY)), ids=lambda i: NASTY[i].encode("unicode_escape").decode()
)
def test_each_token_reads_as_it_is_with_the_hidden_escaped(opened, position):
    shown = opened.execute_script(
        "return Array.from(document.querySelectorAll('.token'), (e) => e.firstChild && Array.from(e.childNodes)"
        ".filter((n) => n.className !== 'reward-tag').map((n) => n.textContent).join(''))"
    )
    expected = NASTY[position]
    for character, escape in HIDDEN.items():
        expected = expected.replace(character, escape)
    assert shown[position] == expected


def test_nothing_hidden_is_left_anywhere(opened):
    """In no text and in no attribute that is shown or read aloud."""
    everything = opened.execute_script("""
      const texts = [];
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walk.nextNode()) if (walk.currentNode.parentNode.tagName !== 'SCRIPT') texts.push(walk.currentNode.data);
      for (const e of document.querySelectorAll('*')) {
        for (const name of ['aria-label', 'title', 'placeholder', 'alt']) texts.push(e.getAttribute(name) ?? '');
      }
      return texts.map((t) => Array.from(t, (c) => c.codePointAt(0)));
    """)
    codes = {code for text in everything for code in text}
    left = [hex(c) for c in codes if unicodedata.category(chr(c)) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
    assert sorted(left) == ["0x9", "0xa"]
    assert 0x3164 not in codes


def test_white_space_is_marked(opened):
    kinds = opened.execute_script(
        "return Array.from(document.querySelectorAll('.token'), (e) => e.firstChild?.className ?? null)"
    )
    assert kinds[len(NASTY) : len(NASTY) + 4] == ["newline", "tab", "space", "empty"]
    marks = opened.execute_script(
        "return ['newline', 'tab', 'empty'].map((k) => getComputedStyle(document.querySelector('.token .' + k), '::before').content)"
    )
    assert marks == ['"↵"', '"→"', '"∅"']
    dots = opened.find_element(By.CSS_SELECTOR, ".token .space").value_of_css_property("background-image")
    assert dots.startswith("radial-gradient")


def test_direction_cannot_be_turned(opened):
    """The letters of a word behind U+202E stand from left to right."""
    position = NASTY.index("a\u202eb")
    places = opened.execute_script(
        """
        const token = document.querySelectorAll('.token')[arguments[0]];
        return Array.from(token.childNodes, (n) => { const r = new Range(); r.selectNode(n); return r.getBoundingClientRect().left; });
        """,
        position,
    )
    assert len(places) == 3
    assert places == sorted(places)


def test_the_title_is_text(opened):
    assert opened.find_element(By.TAG_NAME, "h1").text.startswith("<script>window.fired = 1</script> | ")
    assert opened.title.startswith("<script>window.fired = 1</script> | ")


def test_advantages_that_are_no_numbers_are_named(opened):
    radios = opened.find_elements(By.CSS_SELECTOR, "input[name=estimator]")
    opened.execute_script("arguments[0].click(); document.querySelector('.token').focus()", radios[2])
    assert re.match(r"NaN <script>", opened.find_element(By.CSS_SELECTOR, "#tip strong").text)
    assert "that are not finite: look at its inputs" in opened.find_element(By.ID, "lessons").text
