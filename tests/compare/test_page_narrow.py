"""The page of the README's own rollouts, with every estimator that runs on them, on a phone and beside a window."""

import pytest

pytest.importorskip("selenium")

from compare.browser import chromium, set_size

from rl_estimators.cli import main

ROLLOUTS = "examples/rollouts.jsonl"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def page(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["compare", str(request.config.rootpath / ROLLOUTS), "--html", str(path)]) == 0
    return path.as_uri()


@pytest.fixture(params=[320, 380, 800, 1280])
def opened(driver, page, request):
    set_size(driver, request.param, 800, mobile=request.param < 500)
    driver.get(page)
    return driver


def test_it_never_scrolls_sideways(opened):
    """Not even with the long key in the reason why gdpo could not run."""
    assert "reward_keys=[NAME,...]" in opened.execute_script("return document.body.textContent")
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_matrices_can_be_read(opened):
    """Names of rows stand on two lines at most, names of columns are not cut off, and both are all there."""
    names = opened.execute_script(
        "return Array.from(document.querySelectorAll('#rank th[scope=row]'), (e) => "
        "[e.textContent, e.getBoundingClientRect().height])"
    )
    turned = opened.execute_script(
        "return Array.from(document.querySelectorAll('#rank .turned'), (e) => "
        "[e.textContent, e.scrollHeight <= e.clientHeight])"
    )
    assert [name for name, _ in names] == [name for name, _ in turned]
    assert "reinforce_pp_baseline" in dict(names)
    assert max(height for _, height in names) <= 50
    assert all(whole for _, whole in turned)


def test_kinds_of_prompts_stand_on_one_line(opened):
    lines = opened.execute_script(
        "return Array.from(document.querySelectorAll('#prompts .kind-of'), (e) => e.getClientRects().length)"
    )
    assert set(lines) <= {0, 1}
    assert 1 in lines
