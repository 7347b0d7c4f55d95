"""The page in a real Chromium: what is shown is what Python computed, reached by keyboard, sent to nobody."""
# ruff: noqa: RUF001  the page writes a minus as a minus

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from compare.browser import chromium, console, requests_of, set_scheme, set_size
from compare.page_samples import compared, rollouts
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.compare.page import render


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def comparison():
    return compared(
        rollouts(),
        not_run={"mc": "it lacks values", "gdpo": "it lacks reward_components", "td": "it lacks values"},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory, comparison):
    """Two steps: the samples, and the same again under another number."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    later = compared(rollouts(step=41), {"rloo": {}, "gae": {"lam": 0.5}})
    path.write_text(render([comparison, later], "Seven questions"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(driver, page):
    set_scheme(driver, "light")
    set_size(driver, 1280, 900)
    driver.get(page)
    return driver


def text(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector).text


def texts(driver, selector):
    """What is written in each, whether it is in view or not."""
    found = "return Array.from(document.querySelectorAll(arguments[0]), (e) => e.textContent)"
    return driver.execute_script(found, selector)


def read(shown):
    """A number as the page writes it."""
    return float(shown.replace("−", "-").replace("∞", "inf"))


def press(driver, *keys):
    ActionChains(driver, duration=0).send_keys(*keys).perform()


def tab_to(driver, selector):
    """Tab until the focus is on such an element; no mouse."""
    for _ in range(80):
        press(driver, Keys.TAB)
        if driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return driver.switch_to.active_element
    raise AssertionError(f"Tab never came to {selector}")


def close(shown, expected, significant):
    """As far as that many significant digits go, and the 16 bits that are kept of each number."""
    assert read(shown) == pytest.approx(float(expected), rel=0.51 * 10 ** (1 - significant) + 2**-16)


# ---- nothing goes wrong, nothing goes out


def test_nothing_is_requested_and_nothing_complains(opened, page):
    opened.execute_script("document.querySelectorAll('input[name=estimator]')[3].click()")
    opened.execute_script("document.getElementById('next').click()")
    assert requests_of(opened, page) == [page]
    assert console(opened) == []


def test_a_page_that_is_served_asks_for_nothing_else(driver, comparison):
    """The server sees every request, the browser's own for an icon included."""
    asked = []
    body = render([comparison], "served").encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        driver.get(f"http://127.0.0.1:{server.server_port}/page")
        assert text(driver, "h1") == "served"
        driver.execute_script("document.getElementById('next').click()")
        driver.execute_script(
            "const i = new Image(); i.src = '/stolen?' + document.title; document.body.append(i)"
        )
        driver.execute_async_script("setTimeout(arguments[0], 200)")
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path in asked if path != "/favicon.ico"] == ["/page"]
    assert any("stolen" in line and "Content Security Policy" in line for line in console(driver))


def test_a_script_that_is_added_does_not_run(driver, tmp_path, comparison):
    """The counterpart of the hash: without it every test of hostile text would pass for the wrong reason."""
    changed = render([comparison], "t").replace("</body>", "<script>window.added = 1</script></body>")
    path = tmp_path / "changed.html"
    path.write_text(changed, encoding="utf-8")
    driver.get(path.as_uri())
    assert driver.execute_script(
        "return [window.added ?? null, document.querySelectorAll('script').length]"
    ) == [None, 3]
    assert any("Content Security Policy" in line for line in console(driver))


# ---- what is shown


def test_the_overview_says_what_python_counts(opened):
    assert text(opened, "h1") == "Seven questions"
    assert text(opened, "#source").startswith("rollouts/40.jsonl · step 40 · 28 responses to 7 prompts · ")
    kinds = [t.split("\n") for t in (e.text for e in opened.find_elements(By.CSS_SELECTOR, ".kind"))]
    assert kinds == [
        ["5 prompts", "better and worse responses"],
        ["1 prompt", "all right"],
        ["1 prompt", "all wrong"],
    ]
    said = text(opened, "#lessons")
    assert "2 of 7 prompts got the same reward for all their responses (1 all right and 1 all wrong)." in said
    assert "Here grpo, rloo and remax give 0 to all of them; reinforce_pp, gae and turn_gae do not" in said
    assert "mc and td could not run: it lacks values\ngdpo could not run: it lacks reward_components" in said


def test_the_table_of_estimators_holds_their_numbers(opened, comparison):
    mask = comparison.rollouts.inputs["response_mask"].bool()
    rows = opened.find_elements(By.CSS_SELECTOR, "#estimators tbody tr")
    for row, (name, advantages) in zip(rows, comparison.advantages.items(), strict=True):
        cells = [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
        own = advantages[mask].double()
        zero = 100 * (own == 0).double().mean().item()
        assert cells[0] == name
        assert cells[1] == f"{zero:.0f} %"
        close(cells[6], own.std(unbiased=False), 3)


def test_the_responses_table_holds_every_mean(opened, comparison):
    mask = comparison.rollouts.inputs["response_mask"].bool()
    numbers = opened.execute_script(
        "return Array.from(document.querySelectorAll('#table tbody tr'), (r) => "
        "[Number(r.dataset.row), ...Array.from(r.querySelectorAll('.adv .number'), (n) => n.textContent)])"
    )
    assert [row for row, *_ in numbers] == list(range(28))
    for row, *shown in numbers:
        for number, advantages in zip(shown, comparison.advantages.values(), strict=True):
            close(number, advantages[row][mask[row]].double().mean(), 3)


def test_bars_go_to_the_side_of_the_sign_and_as_far_as_the_number(opened, comparison):
    """Half the cell is the estimator's largest number but for a twentieth; 28 responses: the second largest."""
    mask = comparison.rollouts.inputs["response_mask"].bool()
    found = opened.execute_script(
        "return Array.from(document.querySelectorAll('#table tbody td:nth-of-type(9) .fill'), (f) => "
        "[f.className, parseFloat(f.style.width)])"
    )
    means = torch.where(mask, comparison.advantages["gae"], 0).double().sum(-1) / mask.sum(-1)
    scale = means.abs().sort().values[-2].item()
    for (side, width), mean in zip(found, means.tolist(), strict=True):
        assert side == ("fill above" if mean > 0 else "fill below")
        assert width == pytest.approx(50 * max(0.08, min(1, abs(mean) / scale)), abs=0.01)


def test_lines_show_what_each_estimator_gives_along_the_response(opened, comparison):
    """grpo: one height, parted by the tool's output; turn_gae: two heights; gae: another at each token."""
    choose_response(opened, 12)
    paths = opened.execute_script(
        "return Object.fromEntries(Array.from(document.querySelectorAll('.choice'), (line) => "
        "[line.querySelector('.name').textContent, ['above', 'below'].map((side) => line.querySelector('path.' + side)"
        ".getAttribute('d'))]))"
    )
    tops = {
        name: [[column.split(" ")[1].split("H")[0] for column in path.split("M")[1:]] for path in both]
        for name, both in paths.items()
    }
    assert [len(tops["grpo"][0]), len(tops["turn_gae"][0])] == [2, 2]
    assert len(set(tops["grpo"][0])) == 1
    assert len(set(tops["turn_gae"][0])) == 2
    gae = comparison.advantages["gae"][12]
    assert [len(side) for side in tops["gae"]] == [(gae > 0).sum(), (gae < 0).sum()]
    assert min(len(side) for side in tops["gae"]) > 0


def test_prompts_are_ordered_by_what_they_carry(opened, comparison):
    mask = comparison.rollouts.inputs["response_mask"].bool()
    grpo = torch.where(mask, comparison.advantages["grpo"], 0).abs().sum(-1).reshape(7, 4).sum(-1)
    shares = {}
    for row in opened.find_elements(By.CSS_SELECTOR, "#prompts tbody tr"):
        name = row.find_element(By.CSS_SELECTOR, "button").text
        shares[int(name.removeprefix("prompt ")) - 1] = row.find_element(By.CSS_SELECTOR, ".share").text
    assert sorted(shares) == list(range(7))
    for prompt, shown in shares.items():
        share = 100 * (grpo[prompt] / grpo.sum()).item()
        assert shown == ("<1 %" if 0 < share < 1 else f"{share:.0f} %")


def test_turns_holes_and_rewards_can_be_seen(opened, comparison):
    """Response 13: a call, the tool's output, an answer with the reward on its last token."""
    choose_response(opened, 12)
    groups = opened.find_elements(By.CSS_SELECTOR, "#tokens [role=group]")
    assert [g.get_attribute("aria-label") for g in groups] == [
        "turn 1, written by the policy",
        "not written by the policy: no advantage",
        "turn 2, written by the policy",
    ]
    hole = groups[1]
    assert "3193200" in hole.text
    assert "repeating-linear-gradient" in hole.value_of_css_property("background-image")
    assert texts(opened, ".reward-tag") == ["reward +1"]
    assert "reward +1" in groups[2].text
    assert not hole.find_elements(By.CSS_SELECTOR, ".above, .below")
    mask = comparison.rollouts.inputs["response_mask"][12].tolist()
    assert len(groups[0].find_elements(By.CSS_SELECTOR, ".token.above")) == mask.index(0)


def test_the_text_in_the_tokens_is_the_response(opened, comparison):
    choose_response(opened, 12)
    opened.execute_script("document.querySelectorAll('.reward-tag').forEach((e) => e.remove())")
    assert texts(opened, ".token") == comparison.rollouts.pieces[12]


def choose_response(driver, row):
    driver.execute_script("document.querySelector(`#table tr[data-row='${arguments[0]}']`).click()", row)
    assert text(driver, "#about").startswith(f"Response {row + 1} to prompt")


@pytest.mark.parametrize(
    ("row", "estimator", "said"),
    [
        (
            0,
            "grpo",
            "Under grpo every token has the same advantage, +0.866: the whole response is praised alike",
        ),
        (
            2,
            "grpo",
            "Under grpo every token has the same advantage, −0.866: the whole response is blamed alike",
        ),
        (
            8,
            "grpo",
            "nothing is learnt from this response. All 4 responses to its prompt have the reward 0, so none",
        ),
        (12, "turn_gae", "Under turn_gae each turn has one number: 2 for 2 turns (48 above 0, 0 below)."),
        (2, "gae", "credit differs from token to token"),
    ],
)
def test_what_credit_means_is_said_in_words(opened, row, estimator, said):
    choose_response(opened, row)
    names = texts(opened, ".choice .name")
    opened.execute_script(
        "document.querySelectorAll('input[name=estimator]')[arguments[0]].click()", names.index(estimator)
    )
    assert said in text(opened, "#verdict")


# ---- by keyboard


COLOURED = """
return Array.from(document.querySelectorAll('.token'), (e) => e.classList.contains('above') - e.classList.contains('below'));
"""


def read_token(driver):
    """The lines of the label beside the focused token, and what a screen reader is told."""
    return driver.execute_script(
        "return [...Array.from(document.querySelectorAll('#tip > *'), (e) => e.innerText), "
        "document.activeElement.getAttribute('aria-label')]"
    )


def test_another_response_another_estimator_another_token_without_a_mouse(opened, comparison):
    batch, names = comparison.rollouts, list(comparison.advantages)
    press(opened, Keys.TAB)
    assert opened.switch_to.active_element.text == "Skip to the responses"
    press(opened, Keys.ENTER)
    row = tab_to(opened, "#table tbody tr")
    start = int(row.get_attribute("data-row"))
    press(opened, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    row = opened.switch_to.active_element
    chosen = int(row.get_attribute("data-row"))
    assert chosen == start + 2
    assert row.get_attribute("aria-selected") == "true"
    assert text(opened, "#about").startswith(f"Response {chosen + 1} ")

    radio = tab_to(opened, "input[name=estimator]")
    press(opened, Keys.ARROW_UP, Keys.ARROW_UP)  # from the first over the end to the last but one
    radio = opened.switch_to.active_element
    assert radio.is_selected()
    estimator = names[int(radio.get_attribute("value"))]
    assert estimator == "gae"
    assert text(opened, "#verdict").startswith("Under gae ")

    tab_to(opened, "[role=option]")
    length = len(batch.pieces[chosen])
    for token in range(length):
        if token:
            press(opened, Keys.ARROW_RIGHT)
        first, *others, label = read_token(opened)
        if batch.inputs["response_mask"][chosen, token]:
            number, name = first.split(" ")
            assert name == "gae"
            close(number, comparison.advantages["gae"][chosen, token], 4)
            (value,) = (fact.removeprefix("value ") for fact in others if fact.startswith("value "))
            close(value, batch.inputs["values"][chosen, token], 4)
        else:
            assert first == "no advantage: not written by the policy"
        assert first in label
        assert f"token {token + 1} of {length}" in others
    signs = comparison.advantages["gae"][chosen, :length].sign().tolist()
    assert opened.execute_script(COLOURED) == signs
    tracks = texts(opened, ".choice .number")  # the last token's number under every estimator
    for number, advantages in zip(tracks, comparison.advantages.values(), strict=True):
        close(number, advantages[chosen, length - 1], 4)


def test_keys_within_the_tokens(opened):
    choose_response(opened, 12)
    tab_to(opened, "[role=option]")

    def here():
        return int(opened.switch_to.active_element.get_attribute("data-i"))

    def line():
        return opened.switch_to.active_element.rect["y"]

    assert here() == 0
    first = line()
    press(opened, Keys.ARROW_DOWN)
    assert line() > first
    press(opened, Keys.ARROW_UP)
    assert line() == first
    press(opened, Keys.END)
    last = here()
    press(opened, Keys.ARROW_RIGHT)
    assert here() == last == len(texts(opened, ".token")) - 1
    press(opened, Keys.HOME)
    assert here() == 0
    press(opened, Keys.PAGE_DOWN)
    assert text(opened, "#about").startswith("Response 14 ")
    assert here() == 0
    press(opened, Keys.PAGE_UP)
    assert text(opened, "#about").startswith("Response 13 ")
    assert opened.find_element(By.ID, "tip").is_displayed()
    press(opened, Keys.ESCAPE)
    assert not opened.find_element(By.ID, "tip").is_displayed()


def test_what_has_the_focus_can_be_seen(opened):
    """Each stop of Tab has an outline, its own or that of what surrounds it."""
    look = """
      const e = document.activeElement;
      if (e === document.body) return null;
      const drawn = (n) => getComputedStyle(n).outlineStyle !== 'none' && parseFloat(getComputedStyle(n).outlineWidth) >= 1;
      for (let n = e; n && n.tagName !== 'MAIN' && n.tagName !== 'BODY'; n = n.parentElement) if (drawn(n)) return [true, ''];
      return [false, e.outerHTML.slice(0, 120)];
    """
    stops = 0
    for _ in range(80):
        press(opened, Keys.TAB)
        found = opened.execute_script(look)
        if found is None:
            break
        assert found[0], found[1]
        stops += 1
    assert stops > 20


def test_enter_on_a_row_goes_to_its_tokens(opened):
    choose_response(opened, 3)
    press(opened, Keys.ENTER)
    assert opened.switch_to.active_element.get_attribute("role") == "option"


def test_roles_and_names(opened):
    """As the accessibility tree has them, not as the source says."""
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]

    def value(node, key):
        return node.get(key, {}).get("value", "")

    found = {(value(n, "role"), value(n, "name")) for n in nodes if not n.get("ignored")}
    roles = [role for role, _ in found]
    assert ("heading", "One response, token by token") in found
    assert ("grid", "Responses side by side") in found
    assert ("listbox", "Tokens") in found
    assert ("group", "What each estimator makes of the same tokens") in found
    assert ("image", "rewards 1, 1, 0, 0") in found
    assert ("group", "7 prompts: 5 better and worse responses, 1 all right, 1 all wrong") in found
    assert roles.count("radio") == 3 + 6
    nameless = {
        role for role, name in found if role in ("button", "radio", "checkbox", "searchbox") and not name
    }
    assert not nameless


# ---- sorting, filtering, steps


def test_columns_are_sorted(opened, comparison):
    opened.find_element(By.CSS_SELECTOR, "#table th[data-key='4'] button").click()  # gae
    shown = [read(n) for n in texts(opened, "#table tbody td:nth-of-type(9) .number")]
    assert shown == sorted(shown, reverse=True)
    assert opened.find_element(By.CSS_SELECTOR, "[data-key='4']").get_attribute("aria-sort") == "descending"
    opened.find_element(By.CSS_SELECTOR, "#table th[data-key='4'] button").click()
    again = [read(n) for n in texts(opened, "#table tbody td:nth-of-type(9) .number")]
    assert again == sorted(shown)
    assert opened.find_element(By.CSS_SELECTOR, "[data-key='4']").get_attribute("aria-sort") == "ascending"


def test_rows_are_found_by_text_prompt_and_sign(opened):
    opened.find_element(By.ID, "find").send_keys("NRETNAL")
    assert text(opened, "#found") == "0 of 28 responses"
    opened.find_element(By.ID, "find").send_keys(Keys.BACKSPACE * 7, "Lantern")
    assert text(opened, "#found") == "4 of 28 responses"  # it stands in the prompt
    opened.find_element(By.ID, "find").send_keys(Keys.BACKSPACE * 7)
    opened.find_element(By.ID, "split").click()
    assert (
        text(opened, "#found") == "3 of 28 responses"
    )  # better than their group's mean, worse than the batch's
    opened.find_element(By.ID, "split").click()
    opened.find_element(By.XPATH, "//table[@id='prompts']//button[.='prompt 5']").click()
    assert text(opened, "#found") == "4 of 28 responses"
    assert text(opened, "#about").startswith("Response 17 to prompt 5")
    opened.find_element(By.ID, "any-prompt").click()
    assert text(opened, "#found") == "28 of 28 responses"


def test_another_step_brings_its_own_estimators(opened):
    opened.find_element(By.ID, "find").send_keys("no such text")
    assert text(opened, "#found") == "0 of 28 responses"
    press(opened, Keys.HOME)
    opened.execute_script("document.activeElement.blur()")
    step = tab_to(opened, "#step")
    step.send_keys("41")
    assert text(opened, "#source").startswith("rollouts/41.jsonl · step 41 ")
    assert texts(opened, "#estimators tbody th") == ["rloo", "gae"]
    assert len(opened.find_elements(By.CSS_SELECTOR, ".choice")) == 2
    assert text(opened, "#found") == "28 of 28 responses"


# ---- on every screen


def test_light_and_dark_follow_the_system_until_chosen(opened):
    def ground():
        return opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")

    light = ground()
    set_scheme(opened, "dark")
    dark = ground()
    assert light != dark
    for value, expected in (("light", light), ("dark", dark), ("system", dark)):
        opened.execute_script(f"document.querySelector('input[value={value}]').click()")
        assert ground() == expected


def test_nothing_moves_by_itself(opened):
    moving = """
      const still = (s) => s.transitionDuration === '0s' && s.animationName === 'none' && s.scrollBehavior === 'auto';
      return Array.from(document.querySelectorAll('*')).filter((e) => !still(getComputedStyle(e))).length;
    """
    assert opened.execute_script(moving) == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_the_page_itself_never_scrolls_sideways(opened, width):
    set_size(opened, width, 800, mobile=width < 500)
    opened.execute_script("document.querySelector('#table tr[data-row=\"12\"]').click()")
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert (
        opened.execute_script("return document.querySelector('#tokens').getBoundingClientRect().width") > 250
    )


def test_the_label_of_a_token_stays_on_the_screen(opened):
    set_size(opened, 390, 800, mobile=True)
    choose_response(opened, 12)
    opened.execute_script("document.querySelectorAll('.token')[10].focus()")
    for _ in range(8):
        press(opened, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        box = opened.execute_script(
            "const r = document.querySelector('#tip').getBoundingClientRect(); return [r.left, r.right]"
        )
        assert box[0] >= 0
        assert box[1] <= 390


# ---- large


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """200 responses of 1000 tokens under six estimators, three of them with another number at each token."""
    generator = torch.Generator().manual_seed(0)
    size, width = 208, 1200
    names = ["grpo", "rloo", "reinforce_pp", "gae", "td", "mc"]
    rewards = torch.zeros(size, width)
    rewards[:, -1] = (torch.rand(size, generator=generator) < 0.5).float()
    inputs = {
        "token_level_rewards": rewards,
        "response_mask": torch.ones(size, width),
        "values": torch.rand(size, width, generator=generator),
        "index": [i // 8 for i in range(size)],
    }
    pieces = [[f" word{(i * t) % 97}" for t in range(width)] for i in range(size)]
    prompts = [f"question {i // 8}" for i in range(size)]
    page = render(
        [compared(Rollouts("large", 1, prompts, pieces, True, inputs), {name: {} for name in names})], "Large"
    )
    path = tmp_path_factory.mktemp("large") / "large.html"
    path.write_text(page, encoding="utf-8")
    return path


def test_a_large_page_opens_fast_and_says_what_it_lacks(driver, large):
    assert large.stat().st_size < 10e6
    set_size(driver, 1280, 900)
    driver.get(large.as_uri())
    assert (
        driver.execute_script("return performance.getEntriesByType('navigation')[0].domComplete") < 5000
    )  # ms; 700 here
    assert driver.execute_script("return document.querySelectorAll('*').length") < 12_000
    assert "This page holds 200 of 208 responses" in text(driver, "#left-out")
    assert "Of responses longer than 1,000 tokens it holds the beginning and the end" in text(
        driver, "#left-out"
    )
    assert texts(driver, ".cut-note") == ["200 tokens left out of this page"]
    assert len(driver.find_elements(By.CSS_SELECTOR, "#table tbody tr")) < 200


def test_rows_come_when_they_are_walked_to(driver, large):
    driver.get(large.as_uri())
    driver.execute_script("document.querySelector('#table tbody tr').focus()")
    press(driver, Keys.END)
    assert driver.execute_script("return document.activeElement.sectionRowIndex") == 199
    press(driver, Keys.ENTER)
    press(driver, Keys.END)
    assert "token 1200 of 1,200" in text(driver, "#tip")


def test_a_comparison_without_estimators_still_shows_the_texts(driver, tmp_path):
    path = tmp_path / "none.html"
    path.write_text(
        render([Comparison(rollouts(), {}, {"grpo": "it is missing index"})], "None"), encoding="utf-8"
    )
    driver.get(path.as_uri())
    assert "grpo could not run: it is missing index" in text(driver, "#lessons")
    assert len(texts(driver, ".token")) > 0
    assert console(driver) == []


def test_a_batch_without_responses_is_a_page_without_tokens(driver, tmp_path):
    inputs = {"token_level_rewards": torch.zeros(0, 3), "response_mask": torch.zeros(0, 3), "index": []}
    path = tmp_path / "empty.html"
    path.write_text(
        render(
            [Comparison(Rollouts("empty", 1, [], [], True, inputs), {"grpo": torch.zeros(0, 3)})], "Empty"
        ),
        encoding="utf-8",
    )
    driver.get(path.as_uri())
    assert text(driver, "#found") == "0 of 0 responses"
    assert not driver.find_element(By.ID, "tokens").is_displayed()
    assert console(driver) == []
