"""The colours of a video in headless Chromium, which guesses those of a file that does not name them by its height."""

import base64
import shutil

import numpy as np
import pytest

from nfsd3d.visualize.images import write_video

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.engines, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

PATCHES = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [200, 100, 50], [128, 128, 128], [255, 255, 255]]

SEEN = """async ([address, count]) => {
  const video = document.createElement("video");
  document.body.append(video);
  await new Promise((shown, failed) => {
    video.requestVideoFrameCallback(shown);
    video.onerror = () => failed(video.error.message);
    video.muted = true;
    video.src = address;
    video.play();
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const side = video.videoWidth / count;
  const pixel = (i) => Array.from(context.getImageData((i + 0.5) * side, video.videoHeight / 2, 1, 1).data).slice(0, 3);
  return Array.from({ length: count }, (_, i) => pixel(i));
}"""


@pytest.mark.parametrize("height", [256, 720, 1080])
def test_a_browser_shows_a_videos_colours(tmp_path, height):
    frame = np.repeat(np.repeat(np.array([PATCHES], np.uint8), 64, 1), height, 0)
    write_video(tmp_path / "video.mp4", iter([frame] * 24))
    address = "data:video/mp4;base64," + base64.b64encode((tmp_path / "video.mp4").read_bytes()).decode()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        seen = browser.new_page().evaluate(SEEN, [address, len(PATCHES)])
        browser.close()
    # In a file without names the green patch is off by 39 from 720 pixels on; BT.709's matrix is off by 12.
    assert np.abs(np.array(seen, float) - PATCHES).max() <= 4
