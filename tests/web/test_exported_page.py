"""The page of `mien export --format web`, in headless Chromium from a plain file server: mien's own faces, and it follows its controls."""

import functools
import io
import json
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from mien.explore.interpolate import slerp
from mien.explore.latents import truncate
from mien.explore.sample import attribute_rows, render
from mien.models.latents import latents, uniforms

from .conftest import PATIENCE_MS

pytest.importorskip("onnxscript", reason="the export needs mien[export]")
SEEDS = (0, 1, 1234, 2**32 - 1, 2**32, 2**53 - 1)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_generator, browser):
    """The address of an exported tiny model, served as `python -m http.server` does. (Asks for the browser first: no export in vain.)"""
    from mien.apps.export.package import export

    folder = tmp_path_factory.mktemp("site") / "tiny"
    export(tiny_generator, folder, form="web", half=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(browser, site):
    """The page, loaded once; it asked for nothing outside its folder and no script failed."""
    troubles = []
    context = browser.new_context(viewport={"width": 1100, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
    page.on("console", lambda said: said.type == "error" and troubles.append(f"console: {said.text}"))
    page.on("request", lambda sent: sent.url.startswith(("data:", "blob:", site)) or troubles.append(f"asked {sent.url}"))
    page.goto(site)
    yield page
    context.close()
    assert not troubles


def shown(page, **wanted):
    """Set the controls (id -> value, or True/False for a tick) as a hand would; wait; the picture [R, R, 3] and what it is said to be."""
    for name, value in wanted.items():
        page.eval_on_selector(f"#{name.replace('_', '-')}", """(node, value) => {
            if (typeof value === 'boolean') node.checked = value; else node.value = value;
            node.dispatchEvent(new Event('input', {bubbles: true})); }""", value)  # fmt: skip
    asked = """() => document.body.dataset.shown && (([seed, other, way, psi]) => seed == document.querySelector('#seed').value
        && other == document.querySelector('#other').value && way == document.querySelector('#way').value
        && psi == document.querySelector('#truncation').value)(JSON.parse(document.body.dataset.shown))"""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(asked):
        assert time.monotonic() < end, page.text_content("#status")
        page.wait_for_timeout(30)
    page.wait_for_timeout(60)
    data = page.evaluate("""() => { const face = document.querySelector('#face');
        return [face.width, Array.from(face.getContext('2d').getImageData(0, 0, face.width, face.height).data)]; }""")
    picture = np.array(data[1], dtype=np.int64).reshape(data[0], data[0], 4)
    assert (picture[..., 3] == 255).all()
    return picture[..., :3], json.loads(page.evaluate("document.body.dataset.shown"))


def own(generator, z, row):
    """The same face as mien draws it: [R, R, 3]."""
    return render(generator, z, torch.as_tensor(row, dtype=torch.float32).reshape(1, -1))[0].permute(1, 2, 0).numpy().astype(np.int64)


def same(picture, other):
    """Equal but for pixels that lay on the edge between two levels (float32 sums in another order)."""
    return picture.shape == other.shape and np.abs(picture - other).max() <= 1 and (picture != other).mean() < 0.01


def test_a_faces_numbers_are_those_of_python_to_the_bit(page):
    said = page.evaluate("""async seeds => { const {rawNumbers, latent, uniforms} = await import('./latents.js');
        return seeds.map(seed => [rawNumbers(seed, 0, 5).map(String), Array.from(latent(seed, 300)), uniforms(seed, 3, 1)]); }""",
        list(SEEDS))  # fmt: skip
    for seed, (raw, z, u) in zip(SEEDS, said):
        assert raw == [str(number) for number in np.random.PCG64([seed, 0]).random_raw(5)]
        assert np.array_equal(np.array(z, dtype=np.float32), latents([seed], 300)[0].numpy())
        assert np.array_equal(u, uniforms([seed], 3, stream=1)[0])


def test_the_tails_of_the_normal_distribution(page):
    p = [1e-16, 1e-12, 1e-9, 1e-5, 0.02, 0.074, 0.076, 0.3, 0.5, 0.9, 0.98, 1 - 1e-9]
    said = page.evaluate("async p => p.map((await import('./latents.js')).normalInverse)", p)
    np.testing.assert_allclose(said, torch.special.ndtri(torch.tensor(p, dtype=torch.float64)), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("seed", [0, 7, 1234])
def test_a_number_is_the_face_that_mien_sample_draws(page, tiny_generator, seed):
    picture, (_, _, _, _, row) = shown(page, seed=seed, way=0, truncation=1, drawn=True)
    assert row == attribute_rows(tiny_generator, {}, 1, seed)[0].tolist()  # drawn as the training data has them
    assert same(picture, own(tiny_generator, latents([seed], 8), row))
    assert f"--seed {seed} --count 1" in page.text_content("#command")


def test_sliders_and_truncation_are_followed(page, tiny_generator):
    before, _ = shown(page, seed=3, way=0, truncation=1, drawn=True)
    picture, (_, _, _, _, row) = shown(page, attribute_0=0.25, attribute_1=1, truncation=0.5)
    assert row == [0.25, 1] and not page.is_checked("#drawn")  # a moved slider is one's own
    assert same(picture, own(tiny_generator, truncate(latents([3], 8), 0.5), row)) and not same(picture, before)
    assert "--where Male=0.25,Smiling=1 --truncation 0.5" in page.text_content("#command")
    picture, (_, _, _, _, row) = shown(page, beyond=True, attribute_0=1.8)
    assert row == [1.8, 1] and same(picture, own(tiny_generator, truncate(latents([3], 8), 0.5), row))
    shown(page, beyond=False, truncation=1)


def test_a_morph_goes_along_the_arc(page, tiny_generator):
    picture, (_, _, way, _, row) = shown(page, seed=3, other=8, way=0.4, truncation=1, drawn=True)
    ends = [attribute_rows(tiny_generator, {}, 1, seed)[0] for seed in (3, 8)]
    np.testing.assert_allclose(row, ends[0] + 0.4 * (ends[1] - ends[0]), atol=1e-6)
    z = slerp(latents([3], 8), latents([8], 8), torch.tensor([[0.4]]))
    assert way == 0.4 and same(picture, own(tiny_generator, z, row))
    picture, _ = shown(page, way=1)
    assert same(picture, own(tiny_generator, latents([8], 8), ends[1]))
    shown(page, way=0)


def test_the_download_is_what_is_shown(page, tiny_generator):
    picture, _ = shown(page, seed=5, way=0, truncation=1, drawn=True)
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download PNG").click()
    assert coming.value.suggested_filename == "tiny-5.png"
    with open(coming.value.path(), "rb") as file:
        saved = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    assert np.array_equal(saved, picture)


def test_by_keyboard_and_by_name(page):
    shown(page, seed=20, way=0, drawn=True)
    page.get_by_role("button", name="Next face").press("Enter")
    assert shown(page)[1][0] == 21
    page.get_by_role("slider", name="Truncation").press("ArrowLeft")
    assert shown(page)[1][3] == pytest.approx(0.95)
    page.get_by_role("button", name="Face 23", exact=True).click()
    assert shown(page)[1][0] == 23
    assert page.get_by_role("img", name="Face 23").count() == 1
    unnamed = page.evaluate("""[...document.querySelectorAll('button,input,canvas#face')].filter(node =>
        !(node.labels?.length || node.getAttribute('aria-label') || node.textContent.trim())).map(node => node.id)""")
    assert unnamed == []
    page.fill("#seed", "-3")
    page.wait_for_timeout(60)
    assert "whole number" in page.text_content("#status")
    shown(page, seed=0, truncation=1)


def test_a_missing_file_is_told_in_a_sentence(browser, site):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/model.onnx", lambda route: route.fulfill(status=404, body=""))
    page.goto(site)
    page.wait_for_selector("#status.failed", timeout=PATIENCE_MS)
    assert "model.onnx is missing (404)" in page.text_content("#status")
    context.close()
