"""The app, served as `mien app` serves it, with a tiny untrained generator and drawn runs; and a browser to look at it with."""

import json
import shutil
import threading
import urllib.error
import urllib.request

import pytest

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE_MS = 30_000  # a browser on a machine that is busy with other tests


class Served:
    """A running app and how to ask it."""

    def __init__(self, server):
        self.server, self.key = server, server.site.key
        self.url = server.url
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def raw(self, path, data=None, *, method=None, **headers):
        """(status, headers, bytes)"""
        wanted = urllib.request.Request(self.url.split("?")[0] + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(wanted, timeout=120) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def ask(self, name, body=None, *, turn=None, **asked):
        """(status, answer) of one question, asked as the page asks it."""
        headers = {"X-Mien-Key": self.key} | ({"X-Mien-Turn": turn} if turn else {})
        data = body if isinstance(body, bytes) else json.dumps({**(body or {}), **asked}).encode()
        status, _, content = self.raw(f"api/{name}", data, **headers)
        return status, json.loads(content)

    def told(self, name, body=None, **asked):
        """The answer to a question that must succeed."""
        status, answer = self.ask(name, body, **asked)
        assert status == 200, answer
        return answer

    def refused(self, name, body=None, **asked):
        """The sentence with which a question is refused: words, one line, no traceback."""
        status, answer = self.ask(name, body, **asked)
        assert status in (400, 413), (status, answer)
        sentence = answer["error"]
        assert sentence and "\n" not in sentence and "Traceback" not in sentence and sentence.strip()[-1] in ".:?)", sentence
        return sentence


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory, tiny_snapshot):
    """A folder of two drawn runs, `one` with the tiny generator as its snapshot, `two` with none."""
    from reports.fake_run import make_run

    folder = tmp_path_factory.mktemp("app") / "runs"
    make_run(folder / "one", seed=0, total=40_000, samples=4)
    make_run(folder / "two", seed=1, total=40_000, samples=4, optimizer__lr_g=1e-4)
    (folder / "one" / "snapshots").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), folder / "one" / "snapshots" / f"000040kimg{suffix}")
    return folder


@pytest.fixture(scope="session")
def model(runs_folder):
    """What the tests call the tiny generator by."""
    return str(runs_folder / "one")


@pytest.fixture(scope="session")
def serve():
    """Start an app: serve(model, runs=..., ...) -> Served. All are ended with the session."""
    from mien.apps.web.app import make_server

    begun = []

    def start(model=None, **options):
        begun.append(Served(make_server(model, port=0, **options)))
        return begun[-1]

    yield start
    for served in begun:
        served.server.shutdown()
        served.server.server_close()


@pytest.fixture(scope="session")
def app(serve, model, runs_folder):
    """The app with the tiny generator."""
    return serve(model, runs=runs_folder)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("the browser tests need Chromium on PATH (on Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield window
        window.close()


@pytest.fixture
def visit(browser):
    """Open a page of an app. Afterwards: nothing was asked of another machine, no script failed, the policy refused nothing."""
    contexts, troubles = [], []

    def open_page(app, tab="generate", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        own = app.url.split("?")[0]
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.on("console", lambda said: said.type == "error" and "status of" not in said.text and troubles.append(f"console: {said.text}"))
        page.on("request", lambda sent: sent.url.startswith(("data:", "blob:", own)) or troubles.append(f"asked {sent.url}"))
        page.goto(f"{app.url}#{tab}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles
