"""Draws a bird from its attributes: pictures of a species differ in pose, light, background, clutter and noise; those
of two species in their attributes alone."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .species import ATTRIBUTES, Species

SIZE, SUPERSAMPLE = 112, 2
CROWN = {"black": (25, 25, 30), "red": (205, 35, 35), "yellow": (240, 205, 40), "white": (245, 245, 245)}
BACK = {"brown": (125, 82, 45), "gray": (125, 128, 135), "green": (65, 130, 60), "blue": (55, 90, 180)}
BELLY = {"white": (238, 236, 230), "yellow": (238, 215, 80), "orange": (232, 135, 45), "gray": (165, 165, 170)}
DARK, PALE, HORN = (40, 32, 30), (250, 248, 240), (228, 160, 45)
TAILS = {
    "short": [(-0.5, -0.14), (-0.9, -0.02), (-0.9, 0.28), (-0.5, 0.22)],
    "long": [(-0.5, -0.1), (-1.6, 0.06), (-1.6, 0.3), (-0.5, 0.2)],
    "forked": [(-0.5, -0.1), (-1.4, -0.4), (-0.95, 0.1), (-1.4, 0.62), (-0.5, 0.22)],
}
BEAKS = {  # from the middle of the head
    "thin": [(0.3, -0.05), (0.62, 0.01), (0.3, 0.07)],
    "thick": [(0.2, -0.24), (0.7, 0.04), (0.2, 0.28)],
    "hooked": [(0.25, -0.14), (0.58, -0.12), (0.66, 0.34), (0.46, 0.1), (0.25, 0.12)],
    "long": [(0.28, -0.06), (1.1, 0.08), (0.28, 0.09)],
}
SPOTS = [(0.34, 0.14), (0.52, 0.08), (0.16, 0.28), (0.36, 0.34), (0.54, 0.24), (0.2, 0.46), (-0.02, 0.4)]


class Canvas:
    """An image with an affine frame: bird coordinates (about -1..1, beak to the right) to pixels."""

    def __init__(self, image, centre, scale, tilt, flip):
        self.draw = ImageDraw.Draw(image)
        c, s = np.cos(tilt), np.sin(tilt)
        self.matrix = scale * np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
        self.centre, self.scale = np.asarray(centre), scale

    def points(self, xy):
        return [tuple(p) for p in np.asarray(xy, float) @ self.matrix.T + self.centre]

    def polygon(self, xy, fill):
        self.draw.polygon(self.points(xy), fill=fill)

    def line(self, xy, fill, width):
        self.draw.line(self.points(xy), fill=fill, width=max(1, round(width * self.scale)))

    def ellipse(self, x, y, rx, ry, fill, angle=0.0, start=0.0, stop=2 * np.pi):
        t, c, s = np.linspace(start, stop, 28), np.cos(angle), np.sin(angle)
        u, v = rx * np.cos(t), ry * np.sin(t)
        self.polygon(np.stack([x + c * u - s * v, y + s * u + c * v], 1), fill)


def shade(color, factor):
    return tuple(int(np.clip(c * factor, 0, 255)) for c in color)


def scene(rng, wander: float, offset, scale, tilt: float) -> tuple[Image.Image, Canvas]:
    """A random background and a canvas on it of random place, size, tilt, side. Lengths in shares of the picture."""
    size, top, bottom = SIZE * SUPERSAMPLE, rng.uniform(90, 225, 3), rng.uniform(60, 200, 3)
    ramp = np.linspace(0, 1, size)[:, None, None]
    image = Image.fromarray(np.broadcast_to(top * (1 - ramp) + bottom * ramp, (size, size, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 9)):
        x, y, r = *rng.uniform(0, size, 2), rng.uniform(0.04, 0.16) * size
        draw.ellipse([x - r, y - r * 0.7, x + r, y + r * 0.7], fill=tuple(rng.integers(50, 215, 3).tolist()))
    for _ in range(rng.integers(1, 4)):
        a, b = rng.uniform(0, size, 2), rng.uniform(0, size, 2)
        draw.line([tuple(a), tuple(b)], fill=tuple(rng.integers(50, 120, 3).tolist()), width=int(rng.integers(2, 7)))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    centre = size * (0.5 + rng.uniform(-wander, wander, 2)) + size * np.array(offset)
    return image, Canvas(image, centre, size * rng.uniform(*scale), rng.uniform(-tilt, tilt), rng.random() < 0.5)


def photograph(image: Image.Image, rng, darkest: float) -> Image.Image:
    """What a camera makes of a drawn scene: often a leaf in front; 112x112, with light, colour cast and noise."""
    if rng.random() < 0.35:
        size = image.width
        x, y = rng.uniform(0.2, 0.8, 2) * size
        leaf = Image.new("RGBA", image.size, (0, 0, 0, 0))
        rx, ry = rng.uniform(0.05, 0.11) * size, rng.uniform(0.03, 0.06) * size
        color = tuple(int(c) for c in (rng.uniform(30, 110), rng.uniform(80, 150), rng.uniform(20, 80)))
        ImageDraw.Draw(leaf).ellipse([x - rx, y - ry, x + rx, y + ry], fill=(*color, 255))
        leaf = leaf.rotate(rng.uniform(0, 180), center=(x, y))
        image.paste(leaf, (0, 0), leaf)
    image = image.resize((SIZE, SIZE), Image.BOX)
    light, cast = rng.uniform(darkest, 1.2), rng.uniform(0.93, 1.07, 3)
    pixels = np.asarray(image, np.float32) * light * cast + rng.normal(0, rng.uniform(2, 9), (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw(species: Species, index: int, seed: int = 0) -> Image.Image:
    """One picture of `species`: RGB, 112x112, the same for the same `(seed, species, index)`."""
    rng = np.random.default_rng([seed, species.index, index])
    image, canvas = scene(rng, 0.07, (0, 0.02), (0.28, 0.35), 0.3)
    looks = dict(zip(ATTRIBUTES, species.looks))
    back, belly = shade(BACK[looks["back"]], rng.uniform(0.9, 1.1)), BELLY[looks["belly"]]
    hx, hy = 0.55 + rng.uniform(-0.05, 0.05), -0.44 + rng.uniform(-0.07, 0.05)
    for x in (-0.02, 0.12):  # all parts, from the back to the front
        canvas.line([(x, 0.4), (x + 0.04, 0.78)], (90, 70, 50), 0.04)
    canvas.polygon(TAILS[looks["tail"]], shade(back, 0.8))
    canvas.ellipse(0.0, 0.05, 0.68, 0.45, back, angle=-0.25)
    canvas.ellipse(0.14, 0.2, 0.5, 0.32, belly, angle=-0.35)
    if looks["breast"] == "spotted":
        for x, y in SPOTS:
            canvas.ellipse(x, y, 0.065, 0.065, DARK)
    elif looks["breast"] == "streaked":
        for x in np.linspace(-0.05, 0.53, 4):
            top = 0.05 if x > 0.2 else 0.2
            canvas.line([(x, top), (x - 0.06, top + 0.4)], DARK, 0.06)
    elif looks["breast"] == "banded":
        canvas.line([(0.02, 0.26), (0.34, 0.24), (0.62, 0.06)], DARK, 0.17)
    canvas.ellipse(-0.24, -0.08, 0.48, 0.25, shade(back, 0.72), angle=0.12)
    if looks["wing"] == "single":
        canvas.line([(-0.24, -0.31), (-0.16, 0.14)], PALE, 0.11)
    elif looks["wing"] == "double":
        for x in (-0.42, -0.06):
            canvas.line([(x - 0.04, -0.28), (x + 0.04, 0.12)], PALE, 0.1)
    elif looks["wing"] == "patched":
        canvas.ellipse(-0.22, -0.07, 0.25, 0.16, PALE, angle=0.12)
    canvas.ellipse(hx, hy, 0.36, 0.34, back)
    canvas.ellipse(hx, hy - 0.04, 0.365, 0.34, CROWN[looks["crown"]], start=np.pi * 1.02, stop=np.pi * 1.98)
    canvas.polygon(np.array(BEAKS[looks["beak"]]) + (hx, hy), HORN)
    x, y = hx + 0.1, hy + 0.06
    if looks["eye"] == "masked":
        canvas.line([(hx - 0.3, y + 0.02), (hx + 0.34, y)], DARK, 0.19)
    if looks["eye"] == "ringed":
        canvas.ellipse(x, y, 0.17, 0.17, (255, 255, 255))
        canvas.ellipse(x, y, 0.11, 0.11, (170, 30, 30))
    radius, color = (0.05, (230, 200, 60)) if looks["eye"] == "masked" else (0.06, (15, 15, 15))
    canvas.ellipse(x, y, radius, radius, color)
    return photograph(image, rng, 0.72)
