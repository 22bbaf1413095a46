"""How fast the app is, seen from a browser: from the start of `mien app` to the first face, and from a slider's move to the new face.

python benchmarks/app_latency.py MODEL [--starts 5] [--moves 30]

Needs playwright and a Chromium on PATH. The browser is running before the app starts; it asks for the page again and again until it is
there. A face counts as seen when its picture is decoded and one frame has been painted after that. Times are medians with the range.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from playwright.sync_api import Error, Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
FIRST_FACE = """async () => {
    const image = document.querySelector('#generate .faces img[src^=data]');
    if (!image) return false;
    await image.decode();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    return true;
}"""
LIVE = "() => document.querySelector('#generate .faces img[src^=data]') && !document.querySelector('#generate .keepsake').hidden"
MOVE = """async ([name, value]) => {
    const input = [...document.querySelectorAll('#generate input[type=range]')].find(one => one.labels[0].textContent === name);
    const image = document.querySelector('#generate .faces img'), before = image.src, began = performance.now();
    input.value = value;
    input.dispatchEvent(new Event('input', {bubbles: true}));
    while (image.src === before && performance.now() - began < 20000) await new Promise(done => setTimeout(done, 1));
    await image.decode();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    return performance.now() - began;
}"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(page: Page, model: str) -> tuple[subprocess.Popen[bytes], float, float]:
    """(the app's process, seconds from its start to the first face, to the first that it drew itself).

    The first are cut from what training drew with the same snapshot, and are the same faces; a model that is no run has none of those.
    """
    port = free_port()
    began = time.perf_counter()
    app = subprocess.Popen([sys.executable, "-m", "mien", "app", model, "--port", str(port)], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
    while True:
        if app.poll() is not None:
            sys.exit(f"the app ended with code {app.returncode}: does 'mien app {model}' work?")
        try:
            page.goto(f"http://127.0.0.1:{port}/", wait_until="commit")
            break
        except Error:
            time.sleep(0.02)
    while not page.evaluate(FIRST_FACE):
        time.sleep(0.005)
    seen = time.perf_counter() - began
    while not page.evaluate(LIVE):
        time.sleep(0.005)
    return app, seen, time.perf_counter() - began


def told(what: str, values: Sequence[float], unit: str, target: float) -> None:
    middle = statistics.median(values)
    span = f"{min(values):.3g} to {max(values):.3g}"
    print(f"{what:42}  {middle:7.3g} {unit}  ({span}, n={len(values)})  target {target:g} {unit}: {'met' if middle < target else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--moves", type=int, default=30)
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        starts: list[float] = []
        live: list[float] = []
        moves: dict[str, list[float]] = {"1": [], "16": [], "64": []}
        for i in range(given.starts):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            app, seconds, own = start(page, given.model)
            starts.append(seconds)
            live.append(own)
            if i == given.starts - 1:
                for count, times in moves.items():
                    page.locator("#generate .choices label", has_text=count).filter(has_text=count).get_by_text(count, exact=True).click()
                    page.wait_for_timeout(1000)
                    times += [page.evaluate(MOVE, ["Truncation", str(0.5 + 0.05 * (j % 15))]) for j in range(given.moves)]
            app.terminate()
            app.wait()
            page.close()
        browser.close()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, {given.model}")
    told("start of the process to the first face", starts, "s", 5)
    told("start of the process to a face drawn live", live, "s", 5)
    for count, times in moves.items():
        told(f"slider to new face{'s' if count != '1' else ''}, {count} shown", times, "ms", 300)


if __name__ == "__main__":
    main()
