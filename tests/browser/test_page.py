"""The listening page in a real Chromium: it plays, switches without a gap, sorts, hides names; what strangers wrote is text."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, METRICS, MODELS, TONE
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser
PHONE = {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
# Records what is heard, sample by sample, for a while; returns the longest silence in it, in samples, and how loud it was.
RECORD = """
const [seconds, done] = arguments;
const node = context.createScriptProcessor(1024, 1, 1);
const heard = [];
node.onaudioprocess = (event) => heard.push(...event.inputBuffer.getChannelData(0));
player.output.connect(node);
node.connect(context.destination);
const keys = ["2", "4", "1", "3", "5", "1"];
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const timer = setInterval(() => press(keys.shift() || "2"), 150);
setTimeout(() => {
  clearInterval(timer);
  player.output.disconnect(node);
  const first = heard.findIndex((value) => Math.abs(value) > 1e-4);
  let silence = 0, run = 0;
  for (let i = first + 1; i < heard.length; i++) {
    run = Math.abs(heard[i]) < 1e-4 ? run + 1 : 0;
    silence = Math.max(silence, run);
  }
  const loudest = heard.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  done({silence, samples: heard.length - first, loudest});
}, seconds * 1000);
"""
# Two sounds through the page's own player, rendered exactly; returns how far the output is from each, before and after a switch.
RENDER = """
const done = arguments[0];
const rate = 48000, length = 48000;
const offline = new OfflineAudioContext(1, length, rate);
const buffers = [1, -0.5].map((scale) => {
  const buffer = offline.createBuffer(1, length, rate);
  buffer.getChannelData(0).forEach((_, i, data) => { data[i] = scale * Math.sin(i / 7); });
  return buffer;
});
const own = new Player(offline);
own.load(buffers);
own.play(0, 0);
let at = 0;
offline.suspend(0.5).then(() => { at = Math.round(offline.currentTime * rate); own.switchTo(1); offline.resume(); });
offline.startRendering().then((rendered) => {
  const out = rendered.getChannelData(0);
  const [a, b] = buffers.map((buffer) => buffer.getChannelData(0));
  const faded = at + Math.ceil(FADE_SECONDS * rate) + 1;
  let before = 0, after = 0, between = 0;
  for (let i = 0; i < length; i++) {
    const error = (one) => Math.abs(out[i] - one[i]);
    if (i < at) before = Math.max(before, error(a));
    else if (i >= faded) after = Math.max(after, error(b));
    else {
      const share = Math.min(1, (i - at) / (FADE_SECONDS * rate));
      between = Math.max(between, Math.abs(out[i] - (1 - share) * a[i] - share * b[i]));
    }
  }
  done({at, before, after, between});
});
"""
CONTRAST = """
const luminance = (colour) => {
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => linear(part / 255));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const back = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility() || element.disabled || element.closest("svg")) continue;
  const [one, other] = [getComputedStyle(element).color, back(element)].map(luminance).sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < 4.5) found.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)} ${element.textContent.slice(0, 30)}`);
}
return found;
"""


def wait(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


def open_page(browser: webdriver.Chrome, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_script("window.addEventListener('beforeunload', (event) => event.stopImmediatePropagation(), true)")
    browser.get(address)
    wait(lambda: browser.execute_script("return document.body.dataset.clip === '0'"), "the first clip")


@pytest.fixture
def page(browser: webdriver.Chrome, page_folder: Path) -> webdriver.Chrome:
    """The page, opened from the disk, with its first clip ready."""
    open_page(browser, (page_folder / "index.html").as_uri())
    return browser


@pytest.fixture
def address(page_folder: Path) -> Iterator[str]:
    """The page at a static host."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(page_folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def find(page: webdriver.Chrome, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def choose(page: webdriver.Chrome, number: int) -> None:
    page.execute_script("choose(arguments[0])", number)
    ready = "return document.body.dataset.clip === arguments[0] && player.duration > 0"
    wait(lambda: page.execute_script(ready, str(number)), "the clip")


def press(page: webdriver.Chrome, key: str) -> None:
    page.execute_script("document.activeElement.blur()")
    find(page, "body").send_keys(key)


def heard(page: webdriver.Chrome) -> str:
    return str(page.execute_script("return document.querySelector('.choices input:checked + span').textContent"))


def test_it_plays(page: webdriver.Chrome, screenshots: Path) -> None:
    find(page, "#play").click()
    wait(lambda: page.execute_script("return player.position") > 0.2, "the position moves")
    assert "Pause" in find(page, "#play").text
    press(page, Keys.SPACE)
    stopped = page.execute_script("return player.position")
    time.sleep(0.3)
    assert page.execute_script("return player.position") == stopped > 0.2
    page.save_screenshot(str(screenshots / "desktop.png"))
    page.execute_script("document.getElementById('curves').scrollIntoView()")
    page.save_screenshot(str(screenshots / "desktop_curves.png"))


def test_a_switch_is_exact_to_the_sample(page: webdriver.Chrome) -> None:
    found = page.execute_async_script(RENDER)
    assert found["at"] >= 24000
    assert found["before"] == 0 and found["after"] < 1e-6 and found["between"] < 2e-3


def test_switching_leaves_no_gap(page: webdriver.Chrome) -> None:
    """A steady tone as it is heard while versions are switched by keys: never silent. That it does not click: the test above."""
    choose(page, 2)
    find(page, "#loop").click()
    find(page, "#play").click()
    wait(lambda: page.execute_script("return player.position") > 0.1, "the position moves")
    found = page.execute_async_script(RECORD, 1.2)
    assert found["samples"] > 20000 and 0.3 < found["loudest"] <= 0.55
    assert found["silence"] < 8  # of a tone that crosses zero


def test_switching_keeps_the_position(page: webdriver.Chrome) -> None:
    find(page, "#play").click()
    wait(lambda: page.execute_script("return player.position") > 0.3, "the position moves")
    begin = "const [position, time] = [player.position, context.currentTime]; hear(2);"
    moved, passed = page.execute_script(f"{begin} return [player.position - position, context.currentTime - time]")
    assert moved == pytest.approx(passed, abs=0.01) and page.execute_script("return player.playing")
    assert heard(page) == f"{MODELS[0]}, level 0 only"


def test_keys(page: webdriver.Chrome) -> None:
    assert heard(page) == MODELS[0]
    press(page, "1")
    assert heard(page) == "original"
    press(page, Keys.ARROW_RIGHT)
    assert page.execute_script("return player.position") == pytest.approx(1.0)
    press(page, Keys.ARROW_DOWN)
    wait(lambda: page.execute_script("return document.body.dataset.clip === '1'"), "the next clip")
    assert find(page, "#clip-name").text == HOSTILE


def column(page: webdriver.Chrome, number: int) -> list[str]:
    return [cell.text for cell in page.find_elements(By.CSS_SELECTOR, f"#clips tbody tr > :nth-child({number})")]


def test_the_table_sorts_both_ways_and_puts_what_is_missing_last(page: webdriver.Chrome) -> None:
    headings = [button.text for button in page.find_elements(By.CSS_SELECTOR, "#clips thead button")]
    place = next(i for i, text in enumerate(headings, start=1) if METRICS[1]["label"] in text)
    button = page.find_elements(By.CSS_SELECTOR, "#clips thead button")[place - 1]
    button.click()
    assert column(page, place) == ["8", "10", "–"]
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(page, place) == ["10", "8", "–"]
    assert "descending" in str(find(page, "#announcer").get_attribute("textContent"))


def test_what_strangers_wrote_is_text(page: webdriver.Chrome) -> None:
    choose(page, 1)
    assert page.execute_script("return window.hacked === undefined && document.querySelectorAll('main img, main b').length === 0")
    assert HOSTILE in find(page, "main").text and MODELS[1] in find(page, "#summary").text
    severe = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


def test_nothing_is_fetched_from_elsewhere(browser: webdriver.Chrome, address: str) -> None:
    """From a static host as well; what a page asks for is its own, and nothing else may be asked for."""
    open_page(browser, address)
    names = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(names) >= 9 and all(name.startswith((address, "data:")) for name in names)
    failed = "fetch('data.js').then(() => arguments[0]('fetched'), () => arguments[0]('refused'))"
    assert browser.execute_async_script(failed) == "refused"


def test_blind(page: webdriver.Chrome, downloads: Path, screenshots: Path) -> None:
    """No name is anywhere on the page while it runs; the answers come as CSV."""
    find(page, "#blind summary").click()
    trials = find(page, "#blind-trials")
    trials.clear()
    trials.send_keys("4")
    find(page, "#blind-start").click()
    for number in range(1, 5):
        wait(lambda n=number: find(page, "#clip-name").text == f"Trial {n} of 4", "the trial")
        visible = page.execute_script("return document.body.innerText + document.title")
        assert not [name for name in (*MODELS, "original", "codecs", TONE, HOSTILE) if name in visible]
        assert "Save what is heard" not in visible and "X is A" in visible
        for key in "abx":
            press(page, key)
            assert heard(page) == key.upper()
        if number == 1:
            page.save_screenshot(str(screenshots / "blind.png"))
        find(page, "#answer-a" if number % 2 else "#answer-b").click()
    verdict = wait(lambda: page.find_elements(By.CSS_SELECTOR, "#blind-verdict"), "the verdict")[0].text
    find(page, "#blind-csv").click()
    file = downloads / "blind_test.csv"
    wait(lambda: file.is_file() and file.stat().st_size, "the download")
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        assert {row["a"], row["b"]} == {"original", MODELS[0]} and row["x"] in (row["a"], row["b"])
        assert row["answer"] in (row["a"], row["b"]) and (row["correct"] == "true") == (row["answer"] == row["x"])
        assert int(row["switches"]) >= 2
    assert {f"'{TONE}", HOSTILE} & {row["clip"] for row in rows} and TONE not in {row["clip"] for row in rows}
    assert verdict.startswith(f"{sum(row['correct'] == 'true' for row in rows)} of 4 right")
    assert MODELS[0] in find(page, "main").text


def test_a_sound_can_be_saved(page: webdriver.Chrome, downloads: Path) -> None:
    press(page, "1")
    find(page, "#save").click()
    file = wait(lambda: list(downloads.glob("speech_first*.flac")), "the download")[0]
    assert file.read_bytes()[:4] == b"fLaC"


def test_everything_has_a_name_and_can_be_reached(page: webdriver.Chrome) -> None:
    controls = page.find_elements(By.CSS_SELECTOR, "button, input, select, canvas, svg[role=img], [role=region]")
    assert len(controls) > 20
    assert not [one.get_attribute("outerHTML") for one in controls if one.is_displayed() and not one.accessible_name]
    press(page, Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the clips"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: webdriver.Chrome, scheme: str, screenshots: Path) -> None:
    """4.5 to 1 for all text, as WCAG 2.2 AA asks."""
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        assert page.execute_script(CONTRAST) == []
        page.save_screenshot(str(screenshots / f"{scheme}.png"))
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_phone_can_show_it(page: webdriver.Chrome, screenshots: Path) -> None:
    """Nothing is wider than the screen, and what is touched is as high as a finger."""
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
        touched = "[...document.querySelectorAll('#player button, .choices label')]"
        assert min(page.execute_script(f"return {touched}.map((one) => one.getBoundingClientRect().height)")) >= 40
        page.save_screenshot(str(screenshots / "phone.png"))
        page.execute_script("document.getElementById('player').scrollIntoView()")
        page.save_screenshot(str(screenshots / "phone_player.png"))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
