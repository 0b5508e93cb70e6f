"""The viewer of a run that trains, in headless Chromium: real drags, controls, and what becomes of the run."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.engines, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

SETTINGS = [
    *("prompt=a red and white dotted mushroom", "machine=cpu", "backend=numba", "prior=shapes", "train.steps=5000"),
    *("train.tensorboard=false", "export.mesh=false", "export.turntable=false", "viewer=127.0.0.1:8650"),
]


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A run that trains, its address and its directory."""
    run_dir = tmp_path_factory.mktemp("live") / "run"
    command = [sys.executable, "-u", str(ROOT / "launch.py"), *SETTINGS, f"run_dir={run_dir}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            for line in started.stdout:
                if found := re.search(r"viewer: (http://127\.0\.0\.1:\d+)", line):
                    yield started, found[1], run_dir
                    break
            else:
                pytest.fail("no address was printed")
        finally:
            started.kill()


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page(process, browser):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto(process[1])
    page.get_by_text(re.compile(r"step \d+ of 5000, ")).wait_for(timeout=30_000)
    return page


def shot(page, path=None):
    """[H,W,3] what the page shows, left of the panel."""
    image = np.asarray(Image.open(io.BytesIO(page.screenshot(path=path))).convert("RGB")).astype(int)
    return image[150:, : image.shape[1] * 2 // 3]


def steps(page):
    found = page.get_by_text(re.compile(r"step \d+ of 5000")).first.inner_text()
    return int(re.search(r"step (\d+) of", found)[1])


def until(page, happened, seconds=30):
    """Waits, in the page's time, until ``happened()`` is true."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        page.wait_for_timeout(300)


def click(page, label):
    page.get_by_text(label, exact=True).first.click()


def drag(page, across):
    page.mouse.move(300, 450)
    page.mouse.down()
    for part in range(20):
        page.mouse.move(300 + across * part / 20, 450)
        page.wait_for_timeout(30)
    page.mouse.up()


def test_a_drag_turns_the_scene_while_it_trains(page, tmp_path):
    until(page, lambda: np.ptp(shot(page).reshape(-1, 3), axis=0).max() > 60)  # an object before the background
    before, first = shot(page), steps(page)
    drag(page, 300)
    until(page, lambda: np.abs(shot(page, tmp_path / "turned.png") - before).mean() > 4)
    until(page, lambda: steps(page) > first)


def test_a_pause_holds_the_run_and_sharpens_the_view(page):
    click(page, "Pause")
    page.get_by_text(re.compile(r"paused after step \d+")).wait_for(timeout=10_000)
    held = steps(page)
    page.wait_for_timeout(2500)
    still, begin = shot(page), steps(page)
    assert begin == held
    drag(page, 200)
    until(page, lambda: np.abs(shot(page) - still).mean() > 2)
    click(page, "One step")
    page.get_by_text(f"paused after step {held + 1} of").wait_for(timeout=10_000)


def test_steering_is_recorded(page, process):
    click(page, "Steering")
    box = page.get_by_label("Guidance scale")
    box.fill("20")
    box.press("Enter")
    click(page, "Apply")
    page.get_by_text("steered: guidance_scale 20", exact=True).wait_for(timeout=10_000)
    click(page, "Go on")
    metrics = process[2] / "metrics.jsonl"
    end = time.monotonic() + 30
    while '"steered": 1' not in metrics.read_text() and time.monotonic() < end:
        time.sleep(0.2)
    (first, *_) = [json.loads(line) for line in metrics.read_text().splitlines() if "steered" in line]
    assert first["guidance_scale"] == 20 and first["learning_rate_factor"] == 1


def test_a_phone_shows_the_scene_and_its_controls(browser, process, page, tmp_path):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True).new_page()
    phone.goto(process[1])
    phone.get_by_text(re.compile(r"step \d+ of 5000")).wait_for(timeout=30_000)
    box = phone.get_by_text("Pause", exact=True).bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844

    def scene():
        image = np.asarray(Image.open(io.BytesIO(phone.screenshot(path=tmp_path / "phone.png"))).convert("RGB"))
        return image[150:340].reshape(-1, 3).astype(int)

    until(phone, lambda: np.ptp(scene(), axis=0).max() > 60)
    phone.close()


def test_stop_ends_the_run_resumably(page, process):
    started, _, run_dir = process
    click(page, "Stop")
    assert started.wait(60) == 130
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert [change["guidance_scale"] for change in summary["steered"]] == [20.0]
    assert (run_dir / "checkpoints" / f"step-{summary['steps']:06d}.json").is_file()
