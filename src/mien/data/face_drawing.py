"""Painting of the toy faces, back to front, from the wall to the hat.

Units: a face is drawn in its own frame, x to the viewer's right, y down, origin between the eyes, the head about 1 wide;
the canvas turns pixels into that frame, so a face is the same at any size. `synthetic` draws the looks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mien.data.face_shapes import Array, Canvas, Look, bump, clip, egg, lens, lit, mix, rgb, smooth, wave


def paint_faces(canvas: Canvas, body: Canvas, look: Look) -> None:
    """Paint every part in order. `canvas` is the head's frame, `body` the same pictures in the untilted frame."""
    background(body, look)
    outline, colour = hair_shape(canvas, look), hair_colour(canvas, look)
    hair_behind(canvas, look, outline, colour)
    shoulders(body, canvas, look)
    ears(canvas, look)
    head(canvas, look)
    only(canvas, look, look.old > 0, wrinkles)
    only(canvas, look, look.beard > 0, beard)
    nose(canvas, look)
    mouth(canvas, look)
    for side in (-1, 1):
        eye(canvas, look, side)
        brow(canvas, look, side)
    only(canvas, look, look.glasses > 0, arms)
    hair_front(canvas, look, outline, colour)
    only(canvas, look, look.earrings > 0, earrings)
    only(canvas, look, look.glasses > 0, glasses)
    only(canvas, look, look.hat > 0, hat)


def only(canvas: Canvas, look: Look, chosen: Array, painter: Callable[[Canvas, Look], None]) -> None:
    """Run a painter on the chosen faces."""
    keep = np.flatnonzero(chosen)
    if len(keep):
        part = Canvas(canvas.pixels[:, keep], canvas.x[keep], canvas.y[keep], canvas.px[keep])
        painter(part, look.take(keep))
        canvas.pixels[:, keep] = part.pixels


def background(body: Canvas, look: Look) -> None:
    """A blurred wall: a gradient, a few out-of-focus lights, a darker rim."""
    t = np.clip(0.5 + 0.36 * (body.x * look.wall_x + body.y * look.wall_y), 0, 1)
    body.pixels[:] = mix(look.wall, look.wall_far, smooth(t))
    for number in range(3):
        x, y, r = getattr(look, f"spot{number}_x"), getattr(look, f"spot{number}_y"), getattr(look, f"spot{number}_r")
        body.paint(look.spot, 0.42 * bump(body.x - x, body.y - y, r, r))
    away = np.clip(0.22 * (np.square(body.x - 0.3 * look.light_x) + np.square(body.y + 0.3)) - 0.12, 0, 0.35)
    body.darken(away, (0.8, 0.75, 0.7))


def placed(look: Look, across: float | Array, depth: float = 1.0) -> tuple[Array, Array]:
    """Where the turned head carries a point `across` (-1..1) its front: x, and how much things there narrow."""
    front = np.sqrt(np.float32(1) - np.square(np.float32(across)))
    return look.width * (across * look.yaw_cos + front * depth * look.yaw), look.yaw_cos - across / front * look.yaw


def shoulders(body: Canvas, canvas: Canvas, look: Look) -> None:
    """Neck, chest and clothes, and the shadow of the chin."""
    rows = np.flatnonzero((body.y[:, :, 0] > 0.3).any(axis=0))
    body, canvas = body.rows(rows[0]), canvas.rows(rows[0])
    y = body.y - 0.62
    neck = np.abs(body.x) - look.neck - 0.5 * np.square(np.maximum(y, 0))
    across = np.clip(body.x / look.neck, -1, 1)
    skin = mix(look.skin_dark, look.skin, smooth(lit(across * 0.8, across * 0, look)))
    trunk, h, v = egg(body.x, body.y - 1.42, look.shoulder, 0.56, 1.0, 0.5, 0.75)
    covered = body.fill(np.minimum(np.maximum(neck, 0.2 - body.y), trunk))
    body.paint(skin, covered)
    chin, _, _ = egg(canvas.x - 0.05 * look.light_x, canvas.y - 0.1, look.width, 0.6, look.chin, look.jaw)
    body.darken(0.45 * covered * body.fill(chin - 0.02, 0.16))
    rest = np.maximum(1 - mix(np.square(body.x / look.collar), np.abs(body.x / look.collar), look.vee), -1)
    opening = (body.y - 0.86 - look.neckline * rest) * 0.8
    cloth = body.fill(np.maximum(trunk, -opening))
    folds = 0.9 + 0.1 * wave(body.x * 2.3 + body.y * look.fold)
    light = 0.68 + 0.4 * lit(h * 0.9, v * 0.6 + 0.1, look)
    stripes = 1 - look.stripes * np.clip(wave(body.y * 7.0) * 3 - 1.5, 0, 1)
    body.paint(look.cloth * (light * folds * stripes), cloth)
    body.paint(look.trim, cloth * body.stroke(opening - 0.02, 0.05))


def ears(canvas: Canvas, look: Look) -> None:
    for side in (-1, 1):
        x = side * look.width * (look.yaw_cos * 0.99) - look.yaw * 0.12
        ear = canvas.window(x, 0.1, 0.3)
        shape, h, v = egg(ear.x - side * 0.03, ear.y, 0.085 * look.ear, 0.14 * look.ear, 0.15 * look.ear, -0.1)
        light = lit(h * 0.6 + side * 0.35, v * 0.5, look)
        ear.paint(mix(look.skin_dark, look.skin, smooth(light)), ear.fill(shape))
        ear.darken(0.42 * bump(ear.x - side * 0.035, ear.y, 0.055, 0.1))


def head(canvas: Canvas, look: Look) -> None:
    """The skin of the face with light, blush, and the hollows of the eyes."""
    x = canvas.x - 0.10 * look.yaw * np.maximum(canvas.y, 0)
    shape, h, v = egg(x, canvas.y, look.width, 0.66, look.chin, look.jaw, 0.35)
    light = smooth(lit(h * 0.92 - 0.5 * look.yaw, v * 0.8, look))
    skin = mix(look.skin_dark, look.skin, np.minimum(light * 1.5, 1))
    skin = mix(skin, look.skin_light, np.maximum(light * 1.6 - 0.75, 0))
    canvas.paint(skin, canvas.fill(shape))
    inside = canvas.fill(shape, 0.06)
    for side in (-1, 1):
        cheek_x, narrow = placed(look, side * 0.52)
        lift = look.smile * 0.05
        spot = bump(canvas.x - cheek_x, canvas.y - 0.27 + lift, 0.2 * narrow, 0.16)
        canvas.paint(look.blush_colour, look.blush * spot * inside)
        shine = bump(canvas.x - cheek_x, canvas.y - 0.2 + lift, 0.13 * narrow, 0.08)
        canvas.lighten((0.07 + 0.10 * look.smile) * look.shine * shine * inside)
        eye_x, narrow = placed(look, side * 0.44)
        canvas.darken(0.2 * bump(canvas.x - eye_x, canvas.y + 0.05, 0.2 * narrow, 0.15) * inside)
    forehead, _ = placed(look, 0.0)
    canvas.lighten(0.10 * look.shine * bump(canvas.x - forehead - 0.12 * look.light_x, canvas.y + 0.36, 0.24, 0.16) * inside)


def nose(canvas: Canvas, look: Look) -> None:
    """A ridge lit from one side, a round tip with a shadow under it, two nostrils."""
    tip, _ = placed(look, 0.0, 1.22)
    root, _ = placed(look, 0.0, 1.0)
    part = canvas.window(tip, 0.12, 0.5)
    y = part.y + 0.12 - look.nose_y
    along = np.clip((part.y + 0.14) / 0.3, 0, 1)
    x = part.x + (tip - root) * (1 - along)
    wide = look.nose * (0.6 + 0.4 * along)
    tall = bump(part.y - 0.0, part.x * 0, 0.3, 1.0)
    shadow_side = np.where(look.light_x > 0, -1.0, 1.0).astype(np.float32)
    part.darken(0.34 * np.abs(look.light_x) * tall * bump(x - shadow_side * wide * 0.75, x * 0, wide * 0.8, 1.0))
    part.lighten(0.26 * look.shine * bump(x, part.y, wide * 0.5, 0.22))
    part.darken(0.40 * bump(part.x, y - 0.052, look.nose * 1.25, 0.05))
    part.lighten(0.34 * look.shine * bump(part.x - 0.02 * look.light_x, y + 0.015, look.nose * 0.75, 0.055))
    for side in (-1, 1):
        part.darken(0.30 * bump(part.x - side * look.nose * 1.02, y - 0.005, 0.04, 0.05))
        part.darken(0.62 * bump(part.x - side * look.nose * 0.5, y - 0.042, 0.034, 0.026))


def mouth(canvas: Canvas, look: Look) -> None:
    """Lips, and teeth where they part; a smile lifts the corners and folds the cheeks."""
    centre, narrow = placed(look, 0.0, 1.08)
    part = canvas.window(centre, look.mouth_y, 0.42)
    half = look.mouth * narrow
    x, y, bend = part.x, part.y, look.bend
    for side in (-1, 1):
        corner_x = x - side * half * 1.03
        part.darken((0.14 + 0.22 * look.smile) * bump(corner_x, y + bend, 0.045, 0.05))
        fold_x = x - side * (half * 1.16 + 0.02 - 0.16 * np.square(y + 0.02))
        part.darken(look.smile * 0.17 * bump(fold_x, y + bend + 0.06, 0.03, 0.14))
    part.darken(0.26 * bump(x, y - look.lip_low - look.gape - 0.045, 0.12, 0.04))
    part.lighten(0.10 * look.shine * bump(x, y - look.lip_low - look.gape - 0.11, 0.1, 0.05))
    bow = 0.3 * look.lip_up * bump(x, x * 0, 0.05, 1.0)
    lips = lens(x, y + bow * -1, half, look.lip_up + look.gape * 0.3, look.lip_low + look.gape, bend)
    part.paint(look.lips, part.fill(lips))
    upper = np.clip(0.5 - (y + bend * np.square(x / half)) / 0.03, 0, 1)
    part.darken(0.22 * upper * part.fill(lips))
    part.lighten(0.26 * look.shine * bump(x, y - look.gape - look.lip_low * 0.5, half * 0.45, 0.02))
    inner = lens(x, y, half * 0.86, 0.3 * look.gape + 0.008, look.gape + 0.008, bend * 0.95)
    hole = part.fill(inner)
    part.paint(rgb(70, 22, 26), hole)
    drop = look.gape * look.teeth
    teeth = lens(x, y, half * 0.80, 0.3 * look.gape, drop, bend * 0.9)
    shade = 0.97 - 0.22 * np.square(x / half)
    part.paint(rgb(250, 246, 238) * shade, part.fill(teeth + 0.004) * hole * np.minimum(look.teeth * 3, 1))


def eye(canvas: Canvas, look: Look, side: int) -> None:
    """White, iris, pupil, a light in it, lids and lashes."""
    x, narrow = placed(look, side * look.eye_apart)
    part = canvas.window(x, look.eye_y, 0.26)
    half = look.eye * narrow
    y = part.y + look.slant * part.x * side
    up, low = look.lid_up, look.lid_low
    shape = lens(part.x, y, half, up, low)
    white = part.fill(shape)
    part.darken(0.20 * part.fill(shape - 0.02, 0.06))
    ball = 0.99 - 0.30 * np.clip(-(y + up * 0.35) / up, 0, 1) - 0.15 * np.square(part.x / half)
    part.paint(rgb(252, 250, 247) * ball, white)
    gx, gy = part.x - look.gaze_x - 0.02 * look.yaw, part.y - look.gaze_y
    away = np.sqrt(gx * gx + gy * gy)
    part.paint(look.iris * (0.75 + 0.5 * np.clip(0.5 + gy / look.iris_r, 0, 1)), white * part.fill(away - look.iris_r))
    part.paint(look.iris * 0.35, white * part.stroke(away - look.iris_r, 0.012) * 0.8)
    part.paint(rgb(14, 10, 12), white * part.fill(away - look.iris_r * 0.52))
    shine_x, shine_y = gx - 0.022 * np.where(look.light_x > 0, 1, -1).astype(np.float32), gy + 0.024
    part.paint(rgb(255, 255, 255), white * part.fill(np.sqrt(shine_x * shine_x + shine_y * shine_y) - 0.020))
    rest = 1 - np.square(part.x / (half * 1.12))
    lid = (y + up * rest) / np.sqrt(1 + np.square(2 * up * part.x / (half * half)))
    ends = part.fill(np.abs(part.x) - half * 1.12)
    part.paint(look.lash_colour, part.stroke(lid, look.lash) * ends)
    part.darken(0.30 * part.stroke(lid + 0.05, 0.016) * ends)
    bottom = (y - low * rest) / np.sqrt(1 + np.square(2 * low * part.x / (half * half)))
    part.darken(0.35 * part.stroke(bottom, 0.014) * ends)
    part.paint(
        look.lash_colour,
        look.wing * part.fill(lens(part.x - side * half * 1.08, y + 0.015 + 0.5 * (part.x * side - half), 0.04, 0.008, 0.01)),
    )
    part.darken(look.bags * bump(part.x, y - low - 0.07, 0.12, 0.035))


def brow(canvas: Canvas, look: Look, side: int) -> None:
    x, narrow = placed(look, side * (look.eye_apart + 0.01))
    part = canvas.window(x, look.brow_y, 0.24)
    half = look.brow_half * narrow
    out = part.x * side / half
    thick = look.brow * (1 - 0.35 * out)
    y = part.y + look.brow_slant * out - look.brow_arch * (np.square(out - 0.25))
    shape = lens(part.x, y, half, thick, thick * 0.5)
    part.paint(look.brow_colour, 0.88 * part.fill(shape, 0.02))


def wrinkles(canvas: Canvas, look: Look) -> None:
    """Lines of age: forehead, beside nose and mouth, beside the eyes."""
    centre, _ = placed(look, 0.0)
    x = canvas.x - centre
    for y in (-0.33, -0.41):
        line = canvas.y - y - 0.15 * x * x
        canvas.darken(0.26 * canvas.stroke(line, 0.016) * np.clip(2 - np.abs(x) / 0.12, 0, 1))
    for side in (-1, 1):
        fold = side * x - 0.12 - 0.35 * np.clip(canvas.y - 0.22, 0, 1)
        canvas.darken(0.27 * canvas.stroke(fold, 0.022) * np.clip(4 - np.abs(canvas.y - 0.33) / 0.032, 0, 1))
        out = side * x - 0.34
        for lift in (-0.5, 0.0, 0.5):
            crow = canvas.y - look.eye_y - lift * out
            canvas.darken(0.24 * canvas.stroke(crow, 0.012) * np.clip(2 - np.abs(out - 0.04) / 0.03, 0, 1))


def beard(canvas: Canvas, look: Look) -> None:
    """Moustache, chin and cheeks: stubble to full beard."""
    centre, _ = placed(look, 0.0, 1.05)
    x, y = canvas.x - centre * 0.8, canvas.y
    turned = canvas.x - 0.10 * look.yaw * np.maximum(y, 0)
    outline, _, _ = egg(turned, y, look.width + 0.015 * look.beard_long, 0.66, look.chin + 0.10 * look.beard_long, look.jaw)
    bare, _, _ = egg(x, y, look.width * look.beard_bare, 0.9, look.mouth_y - 0.10, 0.9)
    ragged = 0.02 * (wave(x * 9.3 + y * 3.1 + look.phase) - 0.5)
    alpha = canvas.fill(outline, 0.03) * canvas.fill(-(bare + ragged), 0.07) * canvas.fill(0.06 - y, 0.1)
    alpha *= np.maximum(bump(x, y - look.mouth_y - 0.12, 0.3, 0.36), 1 - look.goatee)
    x, y = canvas.x - centre, y - look.mouth_y
    alpha *= 1 - canvas.fill(lens(x, y, look.mouth * 1.12, look.lip_up + 0.02, look.lip_low + 0.035 + look.gape, look.bend), 0.03)
    y = y + 0.085 + look.lip_up * 0.4 + look.gape * 0.2
    tache = canvas.fill(lens(x, y, look.mouth * 1.08, 0.03, 0.035, -0.055 + look.bend * 0.7), 0.025)
    alpha = np.maximum(alpha * look.beard_cheeks, tache * look.tache)
    texture = 0.82 + 0.36 * wave(x * 11.0 + look.phase + 0.4 * wave(y * 6)) * wave(y * 5 + x * 2)
    canvas.paint(look.beard_colour * texture, alpha * look.beard)


def hair_shape(canvas: Canvas, look: Look) -> Array:
    """Distance to the outline of the whole hair, with its waves and curls."""
    swing = 0.07 * look.wavy * (wave(canvas.y * 1.7 + look.phase) - 0.5) * np.clip(3 * (canvas.y + 0.2), 0, 1)
    x = canvas.x + 0.05 * look.yaw + swing * np.where(canvas.x > 0, np.float32(1), np.float32(-1))
    shape, _, _ = egg(x, canvas.y, look.hair_width, look.hair_top, look.hair_bottom, look.hair_square, 0.4)
    turn = canvas.x / (np.abs(canvas.x) + np.abs(canvas.y + 0.1) + 0.05)
    curls = wave(turn * 3.5 + look.phase) + wave(canvas.y * 4.1 + turn * 2 + look.phase) - 0.6
    return shape - (0.004 + 0.036 * look.curly) * curls


def hair_colour(canvas: Canvas, look: Look) -> Array:
    """Strands that run from the crown, a band of light across them, curls as light and dark knots."""
    spread = 0.32 + np.clip(canvas.y + look.hair_top, 0, 1.1)
    q = (canvas.x - look.part * 0.3) / spread + 0.10 * look.wavy * wave(canvas.y * 1.7 + look.phase)
    strands = np.zeros_like(q)
    for share, pitch, shift in ((0.4, 3.1, 3), (0.5, 7.0, 1), (0.4, 17.0, 2)):  # strands too fine for the pixels turn to their mean
        seen = clip(1.6 - 4 * pitch * canvas.px / spread)
        strands = strands + share * (0.5 + seen * (wave(q * pitch + shift * look.phase) - 0.5))
    x = canvas.x * 4.6 + 0.7 * wave(canvas.y * 2.3 + look.phase)
    y = canvas.y * 4.6 + 0.7 * wave(canvas.x * 2.1 + 2 * look.phase)
    knots = wave(x) + wave(0.5 * x + 0.87 * y) + wave(0.5 * x - 0.87 * y)
    texture = mix(strands, 0.55 * knots - 0.2, look.curly)
    tilted = canvas.x - 0.25 * look.light_x
    band = bump(canvas.y + 0.52 - 0.55 * np.square(tilted), tilted, 0.22, 0.7)
    light = lit(np.clip(canvas.x * 1.1, -0.9, 0.9), np.clip(canvas.y * 0.75, -0.9, 0.9), look)
    tone = 0.56 + 0.30 * light + 0.36 * texture * (0.4 + 0.6 * light) + 0.28 * band * (0.4 + texture)
    return look.hair_colour * tone + 0.09 * band * texture


def hair_behind(canvas: Canvas, look: Look, outline: Array, colour: Array) -> None:
    """The part of long hair behind neck and shoulders, or a bun."""
    bun = np.sqrt(np.square(canvas.x + 0.2 * look.yaw) + np.square(canvas.y + look.hair_top + 0.05)) - 0.19
    alpha = canvas.fill(np.where(look.bun > 0, np.minimum(outline, bun), outline), 0.02)
    shade = 1 - 0.5 * bump(canvas.x, canvas.y - 0.6, 0.5, 0.6) - 0.3 * look.bun
    canvas.paint(colour * shade, alpha * np.maximum(look.long, look.bun))


def hair_front(canvas: Canvas, look: Look, outline: Array, colour: Array) -> None:
    """The hair round the face: the outline less the opening that shows the face."""
    x = canvas.x - 0.30 * look.yaw * look.width - look.part * 0.10
    jag = look.jag * (wave(canvas.x * 5.3 + look.phase) + 0.6 * wave(canvas.x * 12.1 + 2 * look.phase) - 0.8)
    y = canvas.y - 0.02 + jag + look.part * 0.30 * canvas.x
    high = look.hairline + look.recede * bump(np.abs(x) - 0.26, x * 0, 0.2, 1.0) - look.curtain * (0.14 - 0.5 * np.abs(x))
    above, h = np.minimum(y, 0) / high, x / look.opening
    k, vv = look.hair_front_square, above * above
    slope_x, slope_y = 2 * h / look.opening, 2 * above * (1 + k * np.maximum(2 * vv - 1, 0)) / high
    opening = (h * h - (1 - vv) * (1 + k * np.minimum(vv, 1))) / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1e-3)
    end = canvas.fill(canvas.y - look.sideburn - 0.03 * wave(canvas.x * 9 + look.phase), 0.08)
    fringe = look.bald * canvas.fill(0.76 * look.width - np.abs(canvas.x - 0.08 * look.yaw), 0.05) * canvas.fill(-0.33 - canvas.y, 0.12)
    alpha = canvas.fill(outline) * end * np.where(look.bald > 0, fringe, canvas.fill(-opening, 0.02))
    shadow = canvas.fill(-(opening + 0.05), 0.12) * canvas.fill(outline + 0.02, 0.05) * canvas.fill(canvas.y - 0.3, 0.4)
    canvas.darken(0.30 * shadow * end * (1 - look.bald))
    canvas.paint(colour, alpha)


def earrings(canvas: Canvas, look: Look) -> None:
    for side in (-1, 1):
        ring = canvas.window(side * look.width * look.yaw_cos * 1.06 - look.yaw * 0.12, 0.29, 0.1)
        away = np.sqrt(ring.x * ring.x + ring.y * ring.y)
        ring.paint(look.metal, ring.fill(away - 0.036))
        ring.lighten(0.7 * bump(ring.x + 0.01, ring.y + 0.012, 0.022, 0.022))


def arms(canvas: Canvas, look: Look) -> None:
    """The glasses' arms, from the lenses back to the ears, under the hair."""
    line = canvas.stroke(canvas.y - look.eye_y + 0.03, look.rim) * canvas.fill(np.abs(canvas.x) - look.width * 1.02)
    for side in (-1, 1):
        x, narrow = placed(look, side * look.eye_apart, 1.04)
        canvas.paint(look.frame * 0.8, line * canvas.fill((x - canvas.x) * side + look.lens_wide * narrow))


def glasses(canvas: Canvas, look: Look) -> None:
    """Two lenses with a glint, their frames and a bridge."""
    inner = []
    for side in (-1, 1):
        x, narrow = placed(look, side * look.eye_apart, 1.04)
        part = canvas.window(x, look.eye_y + 0.01, 0.36)
        wide, tall = look.lens_wide * narrow, look.lens_tall
        out = part.x * side
        y = part.y + look.cat * 0.22 * out
        qx, qy = np.abs(part.x) - wide + look.lens_round, np.abs(y) - tall + look.lens_round
        rim = np.sqrt(np.square(np.maximum(qx, 0)) + np.square(np.maximum(qy, 0))) + np.minimum(np.maximum(qx, qy), 0) - look.lens_round
        inside = part.fill(rim)
        part.paint(look.lens_colour, inside * look.tint * (0.8 - 0.5 * y / tall))
        glint = np.abs(part.x + 0.6 * y - 0.02 * side) - 0.035
        part.lighten(0.22 * inside * part.fill(glint, 0.03) * np.clip(0.6 - y / tall, 0, 1))
        part.darken(0.25 * part.stroke(rim - 0.025, 0.035))
        part.paint(look.frame, part.stroke(rim, look.rim))
        part.lighten(0.25 * part.stroke(rim, look.rim) * np.clip(-y / tall - 0.2, 0, 1))
        inner.append(x - side * wide)
    (left, right), y = inner, canvas.y - look.eye_y
    bridge = canvas.stroke(y + 0.035 - 0.8 * np.square(canvas.x - (left + right) / 2), look.rim)
    canvas.paint(look.frame, bridge * canvas.fill(left - canvas.x) * canvas.fill(canvas.x - right))


def hat(canvas: Canvas, look: Look) -> None:
    """A knitted cap with a turned-up rim and a bobble, or a cap with a peak, or a brimmed hat."""
    centre = 0.25 * look.yaw * look.width
    x, line = canvas.x - centre, look.hat_line
    knit, cap, brim = look.hat == 1, look.hat == 2, look.hat == 3
    curve = 0.16 * np.square(x)
    dome, h, v = egg(canvas.x, canvas.y + 0.25, look.hat_width, look.hat_high, 0.9, 0.5, 0.5)
    shape = np.maximum(dome, canvas.y - line + curve)
    rib = np.where(knit, 0.86 + 0.2 * wave(canvas.x * 7 / (0.6 + np.clip(canvas.y + 1, 0, 1))), 1)
    light = (0.62 + 0.5 * lit(h * 0.95, v * 0.8, look)) * rib
    shade = canvas.y - line + curve - 0.09
    canvas.darken(0.35 * canvas.fill(np.maximum(np.abs(x) - look.width, shade), 0.12) * canvas.fill(line - curve - canvas.y, 0.04))
    bobble = (
        np.sqrt(np.square(canvas.x) + np.square(canvas.y + 0.25 + look.hat_high + 0.05)) - 0.13 - 0.02 * wave(canvas.x * 14 + canvas.y * 9)
    )
    canvas.paint(look.hat_trim * (0.8 + 0.2 * light), canvas.fill(bobble) * knit)
    canvas.paint(look.hat_colour * light, canvas.fill(shape))
    band = canvas.y - line + curve + 0.08
    fold = np.maximum(np.abs(band) - 0.085, np.abs(canvas.x) - look.hat_width - 0.02)
    canvas.paint(np.where(knit, look.hat_colour * 0.9 + 0.06, look.hat_trim) * light, canvas.fill(np.where(cap, 1.0, fold), 0.03))
    peak = lens(x - 0.12 * look.yaw, canvas.y - line + 0.01, 0.40, 0.05, 0.10, -0.05)
    wide = lens(x, canvas.y - line - 0.02, look.hat_width + 0.34, 0.075, 0.075, -0.06)
    flat = np.where(cap, peak, np.where(brim, wide, 1.0))
    canvas.paint(np.where(cap, look.hat_trim, look.hat_colour) * (0.75 + 0.25 * light), canvas.fill(flat))
