"""A real Chromium without a window, for the tests of the page.

Debian's own, driven by its own chromedriver: nothing is downloaded. Where it is missing the tests are skipped, unless
``RL_ESTIMATORS_REQUIRE_CHROMIUM=1`` says that it must be there.
"""

import json
import os
import shutil
import time
from contextlib import contextmanager

import pytest
from selenium import webdriver

REQUIRED = "RL_ESTIMATORS_REQUIRE_CHROMIUM"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


def programs():
    """Paths of browser and driver; skips, or fails if they are required."""
    found = [shutil.which("chromium"), shutil.which("chromedriver")]
    if all(found):
        return found
    missing = [name for name, path in zip(("chromium", "chromedriver"), found, strict=True) if not path]
    reason = f"{' and '.join(missing)} not installed"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1")
    pytest.skip(reason)


@contextmanager
def chromium(folder, width=1280, height=900):
    """A driver whose profile stands in ``folder``; it logs its console and its network."""
    browser, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        session.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})  # as if in front
        session.set_page_load_timeout(180)
        session.set_script_timeout(180)
        yield session
    finally:
        session.quit()


def set_scheme(driver, scheme):
    """What the system prefers: ``light`` or ``dark``."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def set_size(driver, width, height, mobile=False):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def console(driver):
    """Messages of its console since the last look."""
    return [entry["message"] for entry in driver.get_log("browser") if "favicon.ico" not in entry["message"]]


def requests_of(driver, page):
    """URLs that were asked for since ``page`` was, that one included; waits for the log, which may be late.

    The browser's own first tab, with its ``chrome://`` addresses, may still be loading.
    """
    urls, end = [], time.monotonic() + 60
    while page not in urls and time.monotonic() < end:
        events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        urls += [url for url in asked if not url.startswith("chrome://")]
    starts = [i for i, url in enumerate(urls) if url == page]
    return urls[starts[-1] :] if starts else urls
