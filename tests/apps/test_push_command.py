"""`mien push`, against a hub of our own on this machine: what is sent, that it comes back by its hf: name, and each refusal in one line."""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from mien.apps.cli.main import app
from mien.explore.load import load_generator

SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload and a download ask for. `repositories`: name -> {private, files}."""

    repositories: dict
    refuse: dict  # path pattern -> status

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, status in self.refuse.items():
            if re.search(pattern, self.path):
                return self.answer(status, {"error": "no"})
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            there = name in self.repositories
            private = asked["private"] if "private" in asked else asked["visibility"] == "private"  # by the client's version
            self.repositories.setdefault(name, {"private": private, "files": {}})
            return self.answer(409 if there else 200, {"url": f"http://{self.headers['Host']}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main.*", self.path):
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(content)["files"]]
            return self.answer(200, {"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main.*", self.path):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.repositories[found[1]]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{SHA}"
            return self.answer(200, {"success": True, "commitUrl": url, "commitOid": SHA})
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            if found[1] not in self.repositories:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            names = [{"rfilename": name} for name in self.repositories[found[1]]["files"]]
            return self.answer(200, {"id": found[1], "modelId": found[1], "sha": SHA, "siblings": names, "private": True, "tags": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path):
            files = self.repositories[found[1]]["files"].items()
            return self.answer(200, [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                                     for name, data in files])  # fmt: skip
        if (found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path)) and found[2] in self.repositories[found[1]]["files"]:
            data = self.repositories[found[1]]["files"][found[2]]
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=SHA)
        return self.answer(404, {"error": path})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The fake hub, in place of the real one for this process; its handler class."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="push needs mien[hub]")

    class Hub(FakeHub):
        repositories: dict = {}
        refuse: dict = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Hub
    server.shutdown()
    server.server_close()


def mien(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words):
    result = mien(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_what_is_pushed_comes_back_by_its_name(hub, tiny_snapshot, tiny_generator):
    result = mien("push", tiny_snapshot, "hf:someone/demo-faces")
    assert result.exit_code == 0, result.output
    assert "/someone/demo-faces" in result.stdout
    repository = hub.repositories["someone/demo-faces"]
    assert repository["private"] is True  # until one says otherwise
    assert sorted(repository["files"]) == ["README.md", "demo-faces.json", "demo-faces.safetensors"]
    card = repository["files"]["README.md"].decode()
    assert card.startswith("---\nlicense: other") and "# Model card: `demo-faces`" in card and "does not know them" in card
    back = load_generator("hf:someone/demo-faces")
    assert all((a == b).all() for a, b in zip(tiny_generator.net.state_dict().values(), back.net.state_dict().values()))
    assert back.attribute_names == ("Male", "Smiling")
    assert mien("push", tiny_snapshot, "hf:someone/demo-faces", "--half").exit_code == 0  # again: into the same one
    assert len(repository["files"]["demo-faces.safetensors"]) < tiny_snapshot.stat().st_size


def test_public_only_when_asked(hub, tiny_snapshot):
    assert mien("push", tiny_snapshot, "hf:someone/open-faces", "--public").exit_code == 0
    assert hub.repositories["someone/open-faces"]["private"] is False


def test_refusals_are_one_line(hub, tiny_snapshot, monkeypatch):
    for wrong in ("someone/faces", "hf:faces", "hf:a/b/c", "hf:some one/faces", "hf:someone/"):
        assert "write hf:user/repo" in refusal("push", tiny_snapshot, wrong)
    hub.refuse["repos/create"] = 403
    assert "may not write there" in refusal("push", tiny_snapshot, "hf:other/faces")
    hub.refuse.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert "does not accept the token" in refusal("push", tiny_snapshot, "hf:someone/faces")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refusal("push", tiny_snapshot, "hf:someone/faces")
    assert hub.repositories == {}
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'mien[hub]'" in refusal("push", tiny_snapshot, "hf:someone/faces")
