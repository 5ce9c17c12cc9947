"""A headless Chromium that opens a page and tells what it looks like; tests skip where there is none."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-logging=stderr", "--virtual-time-budget=2000",
)  # fmt: skip

EARLY = "<script>window.faults = []; addEventListener('error', (e) => faults.push(String(e.message)), true);</script>"

PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const shown = (node) => node.getBoundingClientRect().width > 0 && getComputedStyle(node).display !== "none";
  const seen = {};
  seen.faults = faults;
  seen.width = document.documentElement.clientWidth;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.pictures = [...document.querySelectorAll("figure")].map((figure) =>
    [...figure.querySelectorAll("svg")].filter(shown).map((svg) => svg.getBoundingClientRect().height));
  seen.outside = [...document.querySelectorAll("svg.chart")].filter(shown).flatMap((svg) => {
    const room = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((text) => {
      const place = text.getBoundingClientRect();
      return place.left < room.left - 1.5 || place.right > room.right + 1.5;
    }).map((text) => text.textContent);
  });
  seen.images = document.querySelectorAll("img, iframe, object, embed").length;
  const style = getComputedStyle(document.body);
  seen.paper = style.backgroundColor;
  seen.ink = style.color;
  seen.text = document.body.innerText;
  seen.hacked = window.hacked === undefined ? null : window.hacked;
  seen.extra = (() => { /* MORE */ })() || null;
  parent.postMessage(btoa(unescape(encodeURIComponent(JSON.stringify(seen)))), "*");
}, 50));</script>"""

FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body style="margin: 0">
<script>addEventListener("message", (event) => {
  const out = document.body.appendChild(document.createElement("pre"));
  out.id = "answer";
  out.textContent = event.data;
});</script>
<iframe src="asked.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe></body>"""
"""A window of Chromium's has a least width of 500 pixels; a frame has none."""


def browser() -> str:
    """The browser's path; the test is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    return found


A4, A4_ACROSS = 687, 1017
"""CSS pixels between margins of 14 mm, on upright paper and on paper laid across."""


def look(
    page: Path, folder: Path, width: int = 1000, dark: bool = False, more: str = "", printed: bool = False
) -> dict:
    """What the page looks like in a window of that width: PROBE's answers, and "console", the lines written there.

    folder: an empty one. more: the body of a function of the page, whose answer comes as "extra". printed: by its rules
    for paper, and without those for screens alone.
    """
    program = browser()
    text = page.read_text(encoding="utf-8")
    if printed:
        text = text.replace("@media print", "@media all").replace("@media screen", "@media not all")
    # The page itself but for what asks it: first in its head, and last in its body.
    last = PROBE.replace("/* MORE */", more)
    asked = text.replace("<head>", f"<head>{EARLY}", 1).replace("</body>", f"{last}</body>")
    (folder / "asked.html").write_text(asked, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [program, *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'id="answer">([^<]+)<', done.stdout)
    assert found, f"the page did not answer: {done.stderr[-2000:]}"
    seen = json.loads(base64.b64decode(found[1]))
    return {**seen, "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


def brightness(color: str) -> float:
    """Of a CSS rgb(), from 0 (black) to 255."""
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3
