"""Takes the pictures of the app and of the exported page: `python docs/make_screens.py --runs DIR --watch RUN`.

DIR holds the runs that the Train tab lists, RUN is the one it shows. Needs Chromium on PATH and playwright (pip install playwright).
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from mien.apps.web.app import make_server

IMAGES = Path(__file__).parent / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE_MS = 120_000


def move(page: Page, name: str, value: float) -> None:
    """Set a slider as a drag would."""
    script = "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }"
    page.get_by_role("slider", name=name, exact=True).evaluate(script, value)


def quiet(page: Page, drawn: str) -> None:
    """Wait until `drawn` is there and nothing is being drawn any more."""
    page.wait_for_selector(drawn)
    page.wait_for_timeout(3000)
    page.wait_for_selector("#status:empty", state="attached")


def app_screens(open_page: Any, address: str, watch: str) -> None:
    def opened(tab: str) -> Page:
        return open_page(f"{address}#{tab}", 1280, 900)

    page = opened("generate")
    quiet(page, "#generate .keepsake code:not(:empty)")
    page.screenshot(path=IMAGES / "app-generate.png")

    page = opened("edit")
    quiet(page, "#edit figure:nth-of-type(3) img[src^=data]")
    smiles = page.get_by_role("slider", name="Smiling", exact=True).input_value()
    move(page, "Smiling", 1 - float(smiles))
    quiet(page, "#edit .judged td")
    page.screenshot(path=IMAGES / "app-edit.png")

    page = opened("ablate")
    quiet(page, "#ablate .channels input")
    page.locator("#ablate .place").click(position={"x": 200, "y": 290})  # the mouth
    quiet(page, "#ablate .channels input")
    for box in page.locator("#ablate .channels input").all()[:8]:
        box.check()
    quiet(page, "#ablate .keepsake code:not(:empty)")
    page.screenshot(path=IMAGES / "app-ablate.png")

    page = opened("train")
    page.get_by_role("button", name=watch).click()
    quiet(page, "#train .watch > .report")
    page.screenshot(path=IMAGES / "app-train.png")


def export_screen(open_page: Any, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "mien", "export", "celeba64", "--out", str(folder), "--format", "web"], check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{server.server_port}/", 1100, 1086)
        page.wait_for_selector("img, canvas")
        page.wait_for_timeout(5000)
        page.screenshot(path=IMAGES / "web-export.png", full_page=True)
        server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the app and of the exported page.")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--watch", required=True, help="the run that the Train tab shows")
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("There is no Chromium on PATH.")
    server = make_server("celeba64", runs=given.runs, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)

        def open_page(address: str, width: int, height: int) -> Page:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE_MS)
            page.goto(address)
            return page

        app_screens(open_page, server.url, given.watch)
        export_screen(open_page, Path(folder) / "web")
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
