// A click on a picture plays its stretch of the video in place.
document.addEventListener("click", (event) => {
  const screen = event.target.closest(".screen[data-video]");
  if (!screen || screen.querySelector("video")) return;
  const video = document.createElement("video");
  video.src = screen.dataset.video;
  video.controls = video.autoplay = video.muted = video.playsInline = true;
  const end = Number(screen.dataset.end);
  video.addEventListener("timeupdate", () => {
    if (video.currentTime >= end && !video.dataset.passed) {
      video.pause();
      video.dataset.passed = "1"; // from here on the viewer decides
    }
  });
  video.addEventListener("error", () => {
    video.remove();
    const note = document.createElement("span");
    note.className = "note";
    note.textContent = "This browser cannot play the file here. Open it in a video player: " + screen.dataset.name;
    screen.append(note);
  });
  screen.append(video);
});
