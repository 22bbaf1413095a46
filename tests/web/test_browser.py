"""The page in headless Chromium: each tab does its job, by mouse and by keyboard, and every control has a name."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mien.apps.web import training

from .conftest import PATIENCE_MS

TABS = ("generate", "morph", "edit", "ablate", "train", "compare")
FACE = "#generate .faces img"
READY = {  # a part of each tab that is there once the tab has what it begins with
    "generate": "#generate .keepsake code:not(:empty)", "morph": "#morph .keepsake code:not(:empty)",
    "edit": "#edit .slider label:has-text('Unnamed 1')", "ablate": "#ablate .channels input",
    "train": "#train .watch > .report", "compare": "#compare .list input",
}  # fmt: skip


def first_face(page):
    """The data of the first face once there is one."""
    page.wait_for_selector(f"{FACE}[src^=data]")
    return page.get_attribute(f"{FACE} >> nth=0", "src")


def moved(page, selector, value):
    """Set a slider as a drag would."""
    script = "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }"
    page.eval_on_selector(selector, script, value)


def until(page, true):
    """Wait for a line of JavaScript to hold (wait_for_function would need a page that lets strings be run)."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(true):
        assert time.monotonic() < end, true
        page.wait_for_timeout(30)


def changes(page, before):
    page.wait_for_selector(f"{FACE}[src^=data]")
    end = time.monotonic() + PATIENCE_MS / 1000
    while (now := page.get_attribute(f"{FACE} >> nth=0", "src")) == before:
        assert time.monotonic() < end
        page.wait_for_timeout(30)
    return now


def settled(page, tab):
    """The page once a tab shows what it begins with, and the model is known."""
    page.wait_for_selector(READY[tab])
    until(page, "document.querySelector('#facts').textContent !== ''")
    return page


def slider(page, name):
    return "#" + page.get_by_role("slider", name=name, exact=True).get_attribute("id")


def test_faces_appear_and_follow_the_controls(app, visit):
    page = visit(app)
    before = first_face(page)
    assert page.locator(FACE).count() == 16
    sides = page.eval_on_selector_all(FACE, "all => all.map(one => [one.naturalWidth, one.clientWidth])")
    assert all(natural == 32 and shown > 100 for natural, shown in sides)  # small pictures, shown large
    moved(page, slider(page, "Male"), 0.3)  # which no face of the data has
    after = changes(page, before)
    assert "--where Male=0.3" in page.text_content("#generate .keepsake code")
    page.get_by_text("64", exact=True).click()
    until(page, f"document.querySelectorAll('{FACE}[src^=data]').length === 64")
    page.get_by_role("button", name="Faces after these").click()
    assert changes(page, after) and page.input_value("#generate input[type=number]") == "64"


def test_the_download_is_what_is_shown(app, visit, tmp_path):
    page = visit(app)
    first_face(page)
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download PNG").first.click()
    coming.value.save_as(tmp_path / "sheet.png")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape == (4 * 34 + 2, 4 * 34 + 2, 3)


def test_ten_clicks_at_once_leave_the_last(app, visit):
    page = visit(app)
    before = first_face(page)
    page.eval_on_selector("#generate button:has-text('Next')", "button => { for (let i = 0; i < 10; i++) button.click(); }")
    until(page, "document.querySelector('#generate .keepsake code').textContent.includes('--seed 160')")
    assert changes(page, before) and page.get_attribute(f"{FACE} >> nth=0", "alt").startswith("Face 160")
    assert not page.is_visible("#generate .error")


def test_a_wrong_number_is_told_and_mended(app, visit):
    page = visit(app)
    first_face(page)
    page.fill("#generate input[type=number]", "-5")
    page.wait_for_selector("#generate .error:visible")
    assert "whole number" in page.text_content("#generate .error")
    page.fill("#generate input[type=number]", "5")
    page.wait_for_selector("#generate .error", state="hidden")
    assert page.get_attribute(f"{FACE} >> nth=0", "alt").startswith("Face 5")


def test_kept_faces_stay(app, visit):
    page = visit(app)
    first_face(page)
    page.locator("#generate .faces button").nth(6).click()
    page.get_by_role("button", name="Keep").click()
    page.wait_for_selector("#generate .shelf img")
    page.reload()
    page.wait_for_selector("#generate .shelf img")
    page.locator("#generate .shelf button").click()
    until(page, f"document.querySelectorAll('{FACE}').length === 1")
    assert page.get_attribute(FACE, "alt").startswith("Face 6,")


def test_without_a_model_the_page_says_what_there_is(serve, runs_folder, tmp_path, visit):
    page = visit(serve(None, runs=runs_folder))
    page.wait_for_selector("text=Choose a model")
    page.locator(".card", has_text="one").click()
    first_face(page)
    empty = visit(serve(None, runs=tmp_path / "none"))
    empty.get_by_role("button", name="Train a new one").click()
    empty.wait_for_selector("#train:visible")


def test_tabs_by_keyboard(app, visit):
    page = visit(app)
    first_face(page)
    page.focus("#tab-generate")
    for name in (*TABS[1:], TABS[0]):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#{name}:visible")
        until(page, f"document.activeElement.id === 'tab-{name}'")
    page.keyboard.press("End")
    page.wait_for_selector("#compare:visible")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#compare, main') !== null")


@pytest.mark.parametrize("tab", TABS)
def test_every_control_has_a_name_and_every_picture_words(app, visit, tab):
    page = settled(visit(app, tab), tab)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    kinds = {"button", "checkbox", "combobox", "link", "radio", "slider", "spinbutton", "textbox", "tab", "img", "image", "progressbar"}
    seen = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored") and "role" in node]
    controls = [(role, name) for role, name in seen if role in kinds]
    assert len(controls) > 6 + 2
    assert not [role for role, name in controls if not name.strip()]
    assert page.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("tab", TABS)
def test_nothing_overflows_a_phone(app, visit, tab):
    page = settled(visit(app, tab), tab)
    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "innerWidth === 390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_focus_can_be_seen(app, visit):
    page = visit(app)
    first_face(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate("""() => {
            const node = document.activeElement, shown = node.type === 'radio' ? node.nextElementSibling : node;
            return [node.tagName, getComputedStyle(shown).outlineStyle, parseFloat(getComputedStyle(shown).outlineWidth)];
        }""")
        assert outline[0] == "BODY" or outline[1] == "solid" and outline[2] >= 2, outline


# --- morph, edit, ablate ----------------------------------------------------------------------------------------------


def picture_of(page, selector):
    page.wait_for_selector(f"{selector}[src^=data]")
    return page.get_attribute(selector, "src")


def becomes(page, selector, before):
    end = time.monotonic() + PATIENCE_MS / 1000
    while (now := picture_of(page, selector)) == before:
        assert time.monotonic() < end
        page.wait_for_timeout(30)
    return now


def test_a_morph_plays_and_is_kept(app, visit):
    page = visit(app, "morph", reduced_motion="reduce")
    first = picture_of(page, "#morph .screen")
    moved(page, "#morph .player input[type=range]", 30)
    middle = becomes(page, "#morph .screen", first)
    page.get_by_role("button", name="Play").click()
    becomes(page, "#morph .screen", middle)
    page.get_by_role("button", name="Pause").click()
    moved(page, slider(page, "Frames"), 8)
    until(page, "document.querySelector('#morph .keepsake code').textContent.includes('--frames 8')")
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download MP4").click()
    assert coming.value.suggested_filename == "morph.mp4" and coming.value.path().read_bytes()[4:8] == b"ftyp"
    for _ in range(3):
        page.locator("#morph .chips button").first.click()
    page.get_by_label("Add face number").fill("9")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_selector("text=One face alone does not move")


def test_a_face_is_edited(app, visit):
    page = visit(app, "edit")
    before = picture_of(page, "#edit figure:nth-of-type(3) img")
    moved(page, slider(page, "Male"), 0.4)
    after = becomes(page, "#edit figure:nth-of-type(3) img", before)
    assert after != before and page.locator("#edit .judged td").count() >= 2
    assert "--to Male=0.4" in page.text_content("#edit .keepsake code")
    page.wait_for_selector("#edit .slider label:has-text('Unnamed 1')")
    moved(page, slider(page, "Unnamed 1"), 3)
    becomes(page, "#edit figure:nth-of-type(3) img", after)
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download the edit as JSON").click()
    saved = coming.value.path().read_bytes()
    page.get_by_role("button", name="Start over").click()
    end = time.monotonic() + PATIENCE_MS / 1000
    while page.get_attribute("#edit figure:nth-of-type(3) img", "src") != before:
        assert time.monotonic() < end
        page.wait_for_timeout(30)
    page.set_input_files("#edit input[accept*=json]", {"name": "edit.json", "mimeType": "application/json", "buffer": saved})
    page.wait_for_selector("text=1 saved edit is applied first")
    until(page, "document.querySelector('#edit .keepsake code').textContent.includes('--edit edit.json')")
    page.set_input_files("#edit input[accept*=json]", {"name": "x.json", "mimeType": "application/json", "buffer": b"{}"})
    page.wait_for_selector("#edit .error:has-text('not an edit')")


def test_odd_uploads_leave_it_working(app, visit, monkeypatch, too_big):
    from mien.apps.web import sources

    from .test_editing import huge_png, picture

    monkeypatch.setattr(sources, "STEPS", 4)
    page = visit(app, "edit")
    picture_of(page, "#edit figure:nth-of-type(3) img")
    for name, content in (("notes.png", b"only words"), ("wide.png", huge_png()), (too_big, None)):
        given = name if content is None else {"name": name, "mimeType": "image/png", "buffer": content}
        page.set_input_files("#edit input[accept*=image]", given)
        page.wait_for_selector("#edit .error:visible")
        said = page.text_content("#edit .error")
        assert said.endswith(".") and "Traceback" not in said and "Error" not in said
        page.get_by_role("button", name="Next face").click()
        page.wait_for_selector("#edit .error", state="hidden")
    page.get_by_label("Crop").select_option("square")
    page.set_input_files("#edit input[accept*=image]", {"name": "..%2f..%2fetc%2fpasswd.png", "mimeType": "image/png", "buffer": picture()})
    page.wait_for_selector("#edit p:has-text('Found, off by')")
    assert page.is_visible("#edit figure:nth-of-type(1) img")


@pytest.fixture
def too_big(tmp_path):
    """A file larger than the app takes, by its name: to send its bytes to the browser would take many seconds."""
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(21_000_000)
    return str(path)


def test_a_late_answer_leaves_a_newer_complaint(app, visit, too_big):
    page = visit(app, "edit")
    before = picture_of(page, "#edit figure:nth-of-type(3) img")
    page.evaluate("""() => {
        const whole = window.fetch;
        const held = new Promise(release => { window.release = release; });
        window.fetch = (url, more) => url === 'api/edit' ? (window.asked = true, held.then(() => whole(url, more))) : whole(url, more);
    }""")
    page.get_by_role("button", name="Next face").click()
    until(page, "window.asked")
    page.set_input_files("#edit input[accept*=image]", too_big)
    page.wait_for_selector("#edit .error:visible")
    page.evaluate("window.release()")  # the next face, asked for before the picture was refused
    after = becomes(page, "#edit figure:nth-of-type(3) img", before)
    assert "20 MB" in page.text_content("#edit .error") and page.is_visible("#edit .error")
    page.get_by_role("button", name="Next face").click()
    becomes(page, "#edit figure:nth-of-type(3) img", after)
    assert page.is_hidden("#edit .error")


def test_channels_are_switched_off(app, visit):
    page = visit(app, "ablate")
    before = picture_of(page, "#ablate figure:nth-of-type(2) img")
    page.locator("#ablate .place").click(position={"x": 200, "y": 290})
    page.wait_for_selector("#ablate .channels input")
    page.locator("#ablate .channels input").first.check()
    after = becomes(page, "#ablate figure:nth-of-type(2) img", before)
    assert "--edit edit.json" in page.text_content("#ablate .keepsake code")
    moved(page, slider(page, "Times"), 1)
    assert becomes(page, "#ablate figure:nth-of-type(2) img", after) == before  # once itself is itself
    listed = "document.querySelector('#ablate .channels').textContent"
    seen = page.evaluate(listed)
    page.get_by_label("Layer").select_option("8x8")  # it began with the middle one, 16x16
    until(page, f"{listed} !== {json.dumps(seen)}")
    seen = page.evaluate(listed)
    page.get_by_text("Place by numbers").click()
    moved(page, slider(page, "Down"), 0.2)
    until(page, f"{listed} !== {json.dumps(seen)}")
    assert "of 16x16" in page.text_content("#ablate .controls")  # what was chosen in another layer stays chosen
    page.get_by_role("button", name="None of them").click()
    page.wait_for_selector("#ablate .keepsake", state="hidden")


def test_a_face_goes_from_tab_to_tab(app, visit):
    page = visit(app)
    first_face(page)
    page.locator("#generate .faces button").nth(3).click()
    page.get_by_role("button", name="Take it apart").click()
    picture_of(page, "#ablate figure:nth-of-type(2) img")
    assert page.input_value("#ablate input[type=number]") == "3"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_runs_are_compared(app, visit):
    page = visit(app, "compare")
    page.get_by_label("one", exact=True).check()
    page.get_by_label("two", exact=True).check()
    until(page, "document.querySelector('#compare .report').shadowRoot?.querySelectorAll('svg').length > 5")
    assert "mien compare" in page.text_content("#compare .keepsake code")
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download Markdown").click()
    assert "fd-face" in coming.value.path().read_text()


def test_a_run_is_watched(app, visit):
    page = visit(app, "train")
    page.locator("#train .run", has_text="one").click()
    page.wait_for_selector("#train h2:has-text('one') >> visible=true")
    until(page, "document.querySelector('#train .watch > .report').shadowRoot?.querySelectorAll('svg').length > 8")
    until(page, "document.querySelector('#train .sheet').naturalWidth > 0")
    assert page.locator("#train tr.warn").count() >= 1 and page.get_by_text("Finished after 40,000").count()
    latest = page.get_attribute("#train .sheet", "src")
    moved(page, "#train .samples input[type=range]", 0)
    assert page.get_attribute("#train .sheet", "src") != latest
    until(page, "document.querySelector('#train .sheet').complete && document.querySelector('#train .sheet').naturalWidth > 0")


def test_a_run_is_started_and_the_page_keeps_up(serve, visit, tmp_path, monkeypatch):
    from reports.fake_run import make_run

    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "manifest.json").write_text('{"format": "mien-faces/1"}')
    monkeypatch.chdir(tmp_path)
    begin = threading.Event()

    class Process:
        returncode = None

        def poll(self):
            if begin.is_set() and not (tmp_path / "runs" / "mine").exists():
                make_run(tmp_path / "runs" / "mine", total=4_000, samples=2)

    words = []
    monkeypatch.setattr(training, "_process", lambda given, log: (words.extend(given), Process())[1])
    page = visit(serve(None, runs=tmp_path / "runs"), "train")
    page.get_by_label("Name").fill("../mine")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_selector("text=letters, digits")
    page.get_by_label("Name").fill("mine")
    page.get_by_label("Images to show").fill("4k")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_selector("text=Starting: it reads the data")
    assert words == ["train", "faces", "--preset", "demo", "--run", str(tmp_path / "runs" / "mine"), "--images", "4000", "--seed", "0"]
    begin.set()
    page.wait_for_selector("text=Finished after 4,000")  # without a touch
    page.wait_for_selector("#train .run:has-text('mine'):has-text('finished')")
