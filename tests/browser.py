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
    "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
)  # fmt: skip

EARLY = "<script>window.faults = []; addEventListener('error', (e) => faults.push(String(e.message)), true);</script>"

PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const shown = (node) => node.getBoundingClientRect().width > 0 && getComputedStyle(node).display !== "none";
  const outside = [...document.querySelectorAll("svg.chart")].filter(shown).flatMap((svg) => {
    const room = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((text) => {
      const place = text.getBoundingClientRect();
      return place.left < room.left - 1.5 || place.right > room.right + 1.5;
    }).map((text) => text.textContent);
  });
  const { backgroundColor: paper, color: ink } = getComputedStyle(document.body);
  const { clientWidth: width, scrollWidth } = document.documentElement;
  const pictures = [...document.querySelectorAll("figure")].map((each) => [...each.querySelectorAll("svg")].filter(shown).length);
  const seen = { faults, width, overflow: scrollWidth - width, pictures, outside, paper, ink, hacked: window.hacked ?? null };
  seen.extra = (() => { /* MORE */ })() || null;
  const answer = document.body.appendChild(document.createElement("pre"));
  answer.id = "answer";
  answer.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(seen))));
}, 50));</script>"""  # noqa: E501

NARROW, A4 = 500, 687
"""CSS pixels of Chromium's narrowest window, and between margins of 14 mm on paper."""


def look(page: Path, folder: Path, width=1000, dark: bool = False, more: str = "", printed: bool = False) -> dict:
    """What the page looks like in a window of that width: PROBE's answers, and "console", the lines written there.

    folder: an empty one. more: the body of a function of the page, whose answer comes as "extra". printed: by its rules
    for paper, and without those for screens alone.
    """
    if (program := next((path for name in NAMES if (path := shutil.which(name))), None)) is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    text = page.read_text(encoding="utf-8")
    if printed:
        text = text.replace("@media print", "@media all").replace("@media screen", "@media not all")
    # The page itself but for what asks it: first in its head, and last in its body.
    asked, last = folder / "asked.html", PROBE.replace("/* MORE */", more)
    asked.write_text(text.replace("<head>", f"<head>{EARLY}", 1).replace("</body>", f"{last}</body>"), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    own = [f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([program, *FLAGS, scheme, *own, asked.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'id="answer">([^<]+)<', done.stdout)
    assert found, f"the page did not answer: {done.stderr[-2000:]}"
    seen = json.loads(base64.b64decode(found[1]))
    return {**seen, "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


def brightness(color: str) -> float:
    """Of a CSS rgb(), from 0 (black) to 255."""
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3
