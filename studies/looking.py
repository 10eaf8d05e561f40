"""Pictures changed on purpose: does a model look at the bird, and at the right place?

The pixels that tell a species from its look-alike are those that differ when the same picture is drawn with the
other's looks. They are hidden under a grey *box*: a grey spot in the form of a forked tail would still show one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, Species, look_alikes

GREY = 127
VIEWS = ("picture", "redrawn", "marks hidden", "elsewhere hidden")
Box = tuple[int, int, int, int]  # top, left, bottom, right, in pixels; bottom and right are outside


def changed_pixels(species: Species, looks: Sequence[str], number: int) -> np.ndarray:
    """Pixels (S, S), bool, of picture `number` that differ when the bird has other looks; all else stays."""
    there, other = (np.asarray(draw(s, number)) for s in (species, replace(species, looks=tuple(looks))))
    return (there != other).any(-1)


def bird_pixels(species: Species, number: int) -> np.ndarray:
    """Pixels (S, S), bool, that change when all eight attributes do: the bird, and where longer parts would be."""
    values, found = list(ATTRIBUTES.values()), False
    for shift in (1, 2):
        looks = [v[(v.index(look) + shift) % len(v)] for v, look in zip(values, species.looks)]
        found = found | changed_pixels(species, looks, number)
    return found


def box_around(mask: np.ndarray) -> Box:
    """The smallest box that holds all true pixels of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def box_elsewhere(box: Box, bird: np.ndarray) -> Box | None:
    """Where, beside `box`, a box of its size lies most on the bird (H, W), with at least half of it; or None."""
    top, left, bottom, right = box
    height, width = bottom - top, right - left
    counts = np.lib.stride_tricks.sliding_window_view(bird, (height, width)).sum((2, 3)).astype(float)
    counts[max(0, top - height + 1) : bottom, max(0, left - width + 1) : right] = -1  # these overlap the box
    y, x = np.unravel_index(counts.argmax(), counts.shape)
    return (int(y), int(x), int(y) + height, int(x) + width) if counts[y, x] >= height * width / 2 else None


def hide(image: Image.Image, box: Box) -> Image.Image:
    """The image with a grey box."""
    pixels = np.array(image)
    pixels[box[0] : box[2], box[1] : box[3]] = GREY
    return Image.fromarray(pixels)


def views(species: Species, number: int) -> tuple[Species, dict[str, Image.Image]] | None:
    """The look-alike, and picture `number` in the VIEWS; None where no second box of that size fits on the bird.

    redrawn: with the marks of the nearest look-alike that no base was taught to name, nothing else changed. marks
    hidden: a box over what differs between the two; elsewhere hidden: as large a box beside it.
    """
    other, image = next(s for s in look_alikes(species.name, 20) if not s.common), draw(species, number)
    marks = changed_pixels(species, other.looks, number)
    if not marks.any():  # under the leaf
        return None
    box = box_around(marks)
    beside = box_elsewhere(box, bird_pixels(species, number))
    if beside is None:
        return None
    redrawn = draw(replace(species, looks=other.looks), number)
    return other, dict(zip(VIEWS, (image, redrawn, hide(image, box), hide(image, beside))))
