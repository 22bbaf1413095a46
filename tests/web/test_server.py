"""Who may ask what: other sites, wrong keys, huge bodies and odd names are turned away in words; the newest request wins."""

import json
import socket
import threading
from pathlib import Path

import pytest

from mien.apps.web.app import make_server
from mien.apps.web.server import MAX_PHOTO_BYTES, explain
from mien.apps.web.turns import Superseded, Turns
from mien.errors import UserError


def test_the_page_needs_nothing_from_elsewhere(app):
    status, headers, page = app.raw("")
    assert status == 200 and app.key.encode() in page
    assert b"//" not in page.replace(b"<!doctype", b"") or b"http" not in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "script-src 'self';" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["style.css", "app.js", "common.js", "report.css", "hover.js", "icon.svg"])
def test_the_files_of_the_page(app, name):
    status, headers, content = app.raw(name)
    assert status == 200 and content
    assert b"://" not in content.replace(b"http://www.w3.org/", b"")  # no address to fetch from


@pytest.mark.parametrize("name", [
    "../server.py", "..%2fserver.py", "%2e%2e/server.py", "/etc/passwd", "static/../server.py", "__init__.py", "....//", "app.js/..",
    "%00", "",
])  # fmt: skip
def test_no_other_file_is_served(app, name):
    status, _, content = app.raw("./" + name if name else "nothing")
    assert status == 404 and json.loads(content)["error"]


def test_a_site_that_makes_its_name_point_here_is_turned_away(app):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "[::1"):
        assert app.raw("", Host=host)[0] == 403
        assert app.raw("api/start", b"{}", **{"Host": host, "X-Mien-Key": app.key})[0] == 403
    assert app.raw("", Host="localhost")[0] == 200


@pytest.mark.parametrize("key", ["", "wrong", "é"])
def test_a_question_needs_the_key_of_the_page(app, key):
    status, _, content = app.raw("api/start", b"{}", **{"X-Mien-Key": key.encode().decode("latin-1")})
    assert status == 403 and "reload" in json.loads(content)["error"]
    assert app.raw("api/picture?run=one")[0] == 403


def test_an_app_that_others_can_reach_asks_for_the_key_at_the_door(serve, runs_folder):
    open_to_all = serve(None, runs=runs_folder, host="0.0.0.0")
    assert open_to_all.key in open_to_all.url
    assert open_to_all.raw("")[0] == 403 and open_to_all.key.encode() not in open_to_all.raw("")[2]
    assert open_to_all.raw(f"?key={open_to_all.key}")[0] == 200


@pytest.mark.parametrize("body", [b"[]", b"not json", b"\xff\xfe", b"3", b"null", b"[" * 400_000, b'{"a":' * 100_000])
def test_a_question_is_a_json_object(app, body):
    status, _, content = app.raw("api/start", body, **{"X-Mien-Key": app.key})
    assert status == 400 and "JSON" in json.loads(content)["error"]


def test_unknown_questions(app):
    for name in ("nothing", "../start", "start/../../x", "__class__"):
        assert app.raw(f"api/{name}", b"{}", **{"X-Mien-Key": app.key})[0] == 404


def test_a_body_too_large_is_not_read(app):
    for name, length in (("photo", MAX_PHOTO_BYTES + 1), ("generate", 2_000_000), ("generate", -1), ("generate", "x")):
        with socket.create_connection(("127.0.0.1", app.server.server_port), timeout=20) as line:
            head = f"POST /api/{name} HTTP/1.1\r\nHost: localhost\r\nX-Mien-Key: {app.key}\r\nContent-Length: {length}\r\n\r\n"
            line.sendall(head.encode())
            answer = line.recv(4096)  # at once, though the body never came
        assert answer.startswith(b"HTTP/1.1 413") and b"error" in answer


def test_a_port_that_is_taken(app, runs_folder):
    with pytest.raises(UserError, match="give another --port"):
        make_server(None, runs=runs_folder, port=app.server.server_port)


def test_a_model_that_is_not_there_is_told_at_the_start(tmp_path):
    with pytest.raises(UserError, match="No model or run"):
        make_server(str(tmp_path / "none"), runs=tmp_path, port=0)


def test_a_fault_of_ours_is_a_sentence_and_a_file():
    try:
        raise KeyError("lost")
    except KeyError as error:
        sentence = explain(error)
    assert "lost" in sentence and "\n" not in sentence and "Traceback" not in sentence
    assert "Traceback" in Path(sentence.split("details are in ")[1].rstrip(").")).read_text()
    assert "memory" in explain(RuntimeError("CUDA out of memory. Tried to allocate"))


def test_newest_wins():
    turns = Turns()
    first, other = turns.take("page/edit 1"), turns.take("page/morph 1")
    second = turns.take("page/edit 2")
    assert first.superseded and not second.superseded and not other.superseded
    with pytest.raises(Superseded):
        first.check()
    late = turns.take("page/edit 1")  # overtaken on its way here
    assert late.superseded and not second.superseded


@pytest.mark.parametrize("said", [None, "", "x", "panel -1", "panel 1e3", "9", " 9", "a" * 101 + " 1", "p " + "9" * 16])
def test_a_turn_that_cannot_be_read_is_never_superseded(said):
    turns = Turns()
    assert not turns.take(said).superseded
    turns.take("panel 5")
    assert not turns.take(said).superseded


def test_many_clicks_at_once_leave_it_working(app, model):
    answers = {}

    def click(i):
        answers[i] = app.ask("generate", {"model": model, "seed": i, "count": 4, "where": {}, "truncation": 1}, turn=f"t/generate {i + 1}")

    clicks = [threading.Thread(target=click, args=(i,)) for i in range(10)]
    for each in clicks:
        each.start()
    for each in clicks:
        each.join()
    assert {status for status, _ in answers.values()} <= {200, 409}
    assert answers[9][0] == 200 and answers[9][1]["faces"][0]["seed"] == 9
    assert all(answer == {"superseded": True} for status, answer in answers.values() if status == 409)
    assert app.told("generate", model=model, seed=5, count=1, where={}, truncation=1)["faces"][0]["seed"] == 5
