"""Draw docs/compare.png again: ``PYTHONPATH=tests python tests/compare/page_picture.py docs/compare.png``."""

import base64
import sys
import tempfile
from pathlib import Path

from compare.browser import chromium, set_scheme, set_size
from compare.page_samples import compared, rollouts

from rl_estimators.compare.page import render

CHOOSE = """
document.querySelector('#table tr[data-row="12"]').click();
document.querySelectorAll('input[name=estimator]')[4].click();
[...document.querySelectorAll('.token')].at(-1).focus();
const box = document.getElementById('responses-scroll');
box.scrollTop = box.querySelector('[aria-selected=true]').offsetTop - box.querySelector('thead').offsetHeight;
const top = document.getElementById('responses').getBoundingClientRect().top + scrollY - 20;
for (let e = document.getElementById('tokens'); (e = e.nextElementSibling); ) e.hidden = true;
const bottom = document.getElementById('tip').getBoundingClientRect().bottom + scrollY + 14;
return [top, bottom - top];
"""


def draw(path: Path, scheme: str = "light", width: int = 1280) -> None:
    """The table and one response's tokens, as the samples have them."""
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as driver:
        page = Path(folder) / "page.html"
        page.write_text(render([compared(rollouts())], "Seven questions"), encoding="utf-8")
        set_scheme(driver, scheme)
        set_size(driver, width, 640)
        driver.get(page.as_uri())
        top, height = driver.execute_script(CHOOSE)
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", options)
    path.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    draw(Path(sys.argv[1]), *sys.argv[2:3])
