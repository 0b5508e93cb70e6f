// Shows the preview of the step that a slider chooses; a click, Enter or space holds the video, which has no controls
// because they would cover a small one.
"use strict";

const video = document.querySelector("video");
if (video) {
  const hold = () => (video.paused ? video.play() : video.pause());
  video.addEventListener("click", hold);
  video.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    hold();
  });
}

const scrubber = document.getElementById("scrubber");
if (scrubber) {
  const previews = JSON.parse(document.getElementById("scrubber-data").textContent);
  scrubber.addEventListener("input", () => {
    const index = Number(scrubber.value);
    document.getElementById("scrubber-image").src = previews.images[index];
    document.getElementById("scrubber-step").textContent = previews.steps[index];
    scrubber.setAttribute("aria-valuetext", `step ${previews.steps[index]}`);
  });
}
