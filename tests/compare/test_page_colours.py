"""What can be read and told apart, measured from the pixels that Chromium would paint, in light and in dark."""

import itertools

import numpy as np
import pytest
import torch
from compare.browser import chromium, set_scheme
from compare.page_samples import compared, rollouts

from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.compare.page import render

TEXT, LARGE_OR_GRAPHICAL = 4.5, 3.0  # WCAG 2.2, 1.4.3 AA and 1.4.11
SCHEMES = ["light", "dark"]
STRENGTHS = 101

# Colours as they are painted: every CSS colour space goes through a canvas of sRGB bytes.
PAINTED = """
const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const painted = (colour) => {
  pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
  return Array.from(pen.getImageData(0, 0, 1, 1).data);
};
const ground = (e) => {
  for (; e; e = e.parentElement) { const c = painted(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; }
};
const variable = (name) => {
  const probe = document.createElement('span');
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = painted(getComputedStyle(probe).color);
  probe.remove();
  return found;
};
"""

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A response whose tokens have every advantage from -1 to 1, with a hole; the samples as a second step."""
    size = 2 * STRENGTHS
    mask = torch.ones(1, size)
    mask[:, -4:] = 0
    inputs = {"token_level_rewards": torch.eye(1, size), "response_mask": mask, "index": ["p"]}
    texts = [[" x\n" if i % 20 == 0 else " x" for i in range(size)]]
    ramp = Comparison(
        Rollouts("ramp", 1, ["?"], texts, True, inputs), {"ramp": torch.linspace(-1, 1, size)[None] * mask}
    )
    path = tmp_path_factory.mktemp("page") / "ramp.html"
    path.write_text(render([ramp, compared(rollouts())], "Colours"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(params=SCHEMES)
def opened(request, driver, page):
    set_scheme(driver, request.param)
    driver.get(page)
    return driver


def look(driver, script):
    return driver.execute_script(PAINTED + script)


def linear(colour):
    c = np.asarray(colour[:3], dtype=float) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2.2's contrast ratio of two opaque colours."""
    assert a[3] == b[3] == 255
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb):
    """CIE L*a*b* under D65 of linear sRGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.asarray(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_measure_itself():
    """Black on white is 21 : 1; #777777 on white is the known near miss of 4.48."""
    black, grey, white = [0, 0, 0, 255], [119, 119, 119, 255], [255, 255, 255, 255]
    assert contrast(black, white) == pytest.approx(21)
    assert contrast(grey, white) == pytest.approx(4.48, abs=0.005)
    np.testing.assert_allclose(lab(np.ones(3)), [100, 0, 0], atol=0.05)


def test_tokens_are_legible_on_every_ground(opened):
    pairs = look(
        opened,
        "return Array.from(document.querySelectorAll('.token'), (e) => [painted(getComputedStyle(e).color), ground(e)])",
    )
    assert len({tuple(ground) for _, ground in pairs}) > STRENGTHS  # the whole ramp was painted
    assert min(contrast(*pair) for pair in pairs) >= TEXT


def test_tokens_in_a_hole_are_legible_on_the_hatching(opened):
    ink, hatch, paper = look(
        opened,
        "return [painted(getComputedStyle(document.querySelector('.foreign .token')).color), variable('hatch'), variable('paper')]",
    )
    assert contrast(ink, hatch) >= TEXT
    assert contrast(ink, paper) >= TEXT


def test_all_other_text_is_legible(opened):
    """Every element with text of its own, in both steps; what is switched off is exempt."""
    collect = """
    const own = (e) => Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.data.trim() !== '');
    const seen = Array.from(document.body.querySelectorAll('*')).filter(
      (e) => own(e) && e.checkVisibility() && !e.closest('script, svg, :disabled') && !e.closest('.unseen'));
    return seen.map((e) => [painted(getComputedStyle(e).color), ground(e), e.tagName + '.' + e.className]);
    """
    opened.execute_script(
        "const s = document.getElementById('step'); s.value = 1; s.dispatchEvent(new Event('change'))"
    )
    opened.execute_script("document.querySelectorAll('.token')[5].focus()")
    found = look(opened, collect)
    assert len(found) > 500
    weak = {
        (what, round(contrast(ink, ground), 2)) for ink, ground, what in found if contrast(ink, ground) < TEXT
    }
    assert not weak


def test_marks_stand_out(opened):
    marks = look(opened, "return ['above-mark', 'below-mark', 'focus', 'ink', 'muted'].map(variable)")
    grounds = look(opened, "return ['paper', 'raised', 'hatch'].map(variable)")
    for mark, ground in itertools.product(marks, grounds):
        assert contrast(mark, ground) >= LARGE_OR_GRAPHICAL


def test_the_focus_stands_out_on_every_token(opened):
    (focus,) = look(opened, "return [variable('focus')]")
    grounds = look(opened, "return Array.from(document.querySelectorAll('.token'), ground)")
    assert min(contrast(focus, ground) for ground in grounds) >= LARGE_OR_GRAPHICAL


@pytest.mark.parametrize("pair", [("above", "below"), ("above-mark", "below-mark")])
@pytest.mark.parametrize("vision", VISIONS)
def test_above_and_below_are_apart_for_every_vision(opened, vision, pair):
    """At full strength further than 30 in L*a*b*, a dozen times what is just noticeable; and each from no colour."""
    a, b, paper = (
        lab(np.asarray(VISIONS[vision]) @ linear(c))
        for c in look(opened, f"return [...{list(pair)}, 'paper'].map(variable)")
    )
    assert np.linalg.norm(a - b) > 30
    assert min(np.linalg.norm(a - paper), np.linalg.norm(b - paper)) > 20


def test_the_stronger_the_advantage_the_further_from_the_paper(opened):
    """Through all strengths, in lightness or colour; and the least is already apart from nothing."""
    grounds = look(
        opened, "return Array.from(document.querySelectorAll('.turn:not(.foreign) .token'), ground)"
    )
    (paper,) = look(opened, "return [variable('paper')]")
    away = [np.linalg.norm(lab(linear(ground)) - lab(linear(paper))) for ground in grounds]
    left, right = away[:STRENGTHS][::-1], away[STRENGTHS:]
    for side in (left, right):
        assert side[0] > 1
        assert side[-1] > 10 * side[0] > 0 or side[-1] > 20
        assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(side))
