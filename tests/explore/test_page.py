"""The page in headless Chromium: every control is moved, and the picture that it is for changes."""

import base64
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hamgan import snapshot
from hamgan.sampling.draw import draw_images

pytestmark = pytest.mark.slow

SERVE = """
import socket, sys
from hamgan.cli import main

connect, resolve = socket.socket.connect, socket.getaddrinfo

def own_machine(host):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        print("OUTSIDE", host, flush=True)
        raise OSError("no network in this test")

def connect_checked(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        own_machine(address[0])
    return connect(self, address)

def resolve_checked(host, *rest, **named):
    own_machine(host)
    return resolve(host, *rest, **named)

socket.socket.connect, socket.getaddrinfo = connect_checked, resolve_checked
sys.exit(main(["explore", sys.argv[1], "--port", "0"]))
"""
PATIENCE = 60.0
"""Seconds, with others on the same cores."""


def wait(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def address(explored_shot: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page; afterwards nothing may have been looked for outside this machine."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'hamgan[explore]'")
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(explored_shot)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        wait(lambda: process.poll() is not None or "Ctrl-C" in log.read_text(), "the server")
        assert process.poll() is None, log.read_text()
        yield log.read_text().split(": ")[-1].split(" (")[0]
    finally:
        process.send_signal(2)
        code = process.wait(30)
    assert code == 0 and "OUTSIDE" not in log.read_text() and log.read_text().count("\n") == 1, log.read_text()


class Page:
    """A browser that looks at the page."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def at(self, css: str) -> Any:
        return wait(lambda: self.browser.find_elements("css selector", css), css)[0]

    def sources(self, css: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(image => image.src)"
        return self.browser.execute_script(script, f"{css} img")

    def changes(self, css: str, move: Callable[[], None]) -> list[str]:
        """Move a control and return the pictures of an element once they differ from those before."""
        before = self.sources(css)
        move()
        wait(lambda: self.sources(css) != before, f"another picture in {css}")
        return self.sources(css)

    def click(self, css: str) -> Callable[[], None]:
        return lambda: self.browser.execute_script("arguments[0].click()", self.at(css))

    def set_number(self, control: str, value: str) -> Callable[[], None]:
        from selenium.webdriver.common.keys import Keys

        def move() -> None:
            field = self.at(f"#{control} input[type=number]")
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(value, Keys.TAB)

        return move

    def drag(self, control: str, keys: int) -> Callable[[], None]:
        from selenium.webdriver.common.keys import Keys

        return lambda: self.at(f"#{control} input[type=range]").send_keys(*[Keys.ARROW_RIGHT] * keys)

    def choose(self, control: str, name: str) -> Callable[[], None]:
        def move() -> None:
            self.at(f"#{control} input").click()
            option = wait(
                lambda: [e for e in self.browser.find_elements("css selector", "[role=option]") if name in e.text],
                f"the option {name}",
            )[0]
            option.click()

        return move


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install 'hamgan[dev]'")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        resize(browser, 1280)
        browser.get(address)
        yield Page(browser)
    finally:
        browser.quit()


def resize(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def decoded(source: str) -> Tensor:
    content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


def test_every_control_changes_its_picture(page: Page, explored_shot: Path) -> None:
    G = snapshot.read(explored_shot).generator
    wait(lambda: page.sources("#image"), "the first picture")
    assert torch.equal(decoded(page.sources("#image")[0]), draw_images(G, [0], [0])[0])

    # Seeds and classes.
    page.changes("#image", page.click("#next"))
    assert torch.equal(decoded(page.sources("#image")[0]), draw_images(G, [1], [0])[0])
    page.changes("#image", page.click("#previous"))
    page.changes("#image", page.click("#random"))
    page.changes("#image", page.set_number("seed", "7"))
    wait(lambda: torch.equal(decoded(page.sources("#image")[0]), draw_images(G, [7], [0])[0]), "seed 7")
    page.changes("#image", page.choose("first", "bird"))
    assert torch.equal(decoded(page.sources("#image")[0]), draw_images(G, [7], [2])[0])
    page.changes("#image", page.drag("share", 50))
    page.changes("#image", page.choose("second", "cat"))

    # Truncation.
    page.changes("#image", page.click("#truncated input"))
    page.changes("#image", page.drag("truncation", 12))
    wait(lambda: "hamgan recalibrate" in page.at("#note").text, "the warning")

    # What the ham sees.
    wait(lambda: len(page.sources("#image")) == 1, "one picture")
    assert len(page.changes("#image", page.click("#codes input"))) == 2
    image, codes = page.sources("#image")
    now = page.changes("#image", page.drag("strength", 5))
    assert now[0] == image and now[1] != codes

    # Between two pinned images.
    (pinned,) = page.changes("#pins", page.click("#pin-a"))
    assert pinned == image
    page.changes("#image", page.set_number("seed", "8"))
    first, between, _ = page.changes("#pins", page.click("#pin-b"))
    way = page.sources("#way")
    assert first == pinned and len(way) == 9 and len(set(way)) == 9
    moved = page.changes("#pins", page.drag("position", 30))
    assert moved[0] == pinned and moved[1] != between and moved[2] == page.sources("#image")[0] == way[-1]
    page.changes("#way", page.click("#curve label:nth-of-type(2) input"))

    # The button holds what is shown.
    button = page.at("#image a.download")
    assert button.get_attribute("href") == page.sources("#image")[0]
    assert button.get_attribute("download").endswith(".png") and button.is_displayed()


def test_a_bad_seed_gets_one_line_and_the_picture_stays(page: Page) -> None:
    wait(lambda: page.sources("#image"), "the first picture")
    before = page.sources("#image")
    page.set_number("seed", "-3")()
    wait(lambda: "seed is -3" in page.at("#note").text, "the note")
    assert page.sources("#image") == before
    page.changes("#image", page.set_number("seed", "3"))
    assert page.at("#note").text == ""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page_or_comes_from_elsewhere(page: Page, address: str, width: int) -> None:
    resize(page.browser, width)
    for control in ("#pin-a", "#next", "#pin-b", "#codes input"):
        page.click(control)()
        time.sleep(0.3)
    wait(lambda: len(page.sources("#image")) == 2 and len(page.sources("#way")) == 9, "all pictures")
    run = page.browser.execute_script
    assert run("return document.documentElement.scrollWidth") == width
    right = run(
        "return Math.max(...[...document.querySelectorAll('#pictures img')].map(i => i.getBoundingClientRect().right))"
    )
    assert right <= width
    names = run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names and all(name.startswith((address, "data:", "blob:")) for name in names), names
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    if width == 390:  # the pictures stay in sight
        run("window.scrollTo(0, 600)")
        wait(lambda: run("return window.scrollY") > 300, "the page to scroll")
        assert 0 <= run("return document.querySelector('#image img').getBoundingClientRect().top") < 100
