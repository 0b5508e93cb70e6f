"""The documentation's site: built without a warning, and searched in headless Chromium from the disk."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(find_spec("material") is None, reason="MkDocs' theme is not installed"),
]


def test_the_site_is_read_and_searched_from_the_disk(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    asked, errors = [], []
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "site" / "index.html").as_uri())
        page.get_by_placeholder("Search").first.click()
        page.keyboard.type("janus")
        found = page.locator(".md-search-result__link")
        found.first.wait_for(timeout=20_000)
        page.get_by_text(re.compile(r"\d+ matching documents")).wait_for(timeout=20_000)
        found.first.click()
        page.get_by_text("Janus").first.wait_for(timeout=20_000)
        chromium.close()
    assert not errors
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
