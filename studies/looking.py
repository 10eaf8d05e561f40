"""Does the model look at the picture, and at the right place? Pictures changed on purpose, and occlusion maps.

The bird world's renderer is deterministic, so the pixels that tell a species from its look-alike are known exactly:
those that differ when the same picture is drawn with the other's looks. They are hidden under a grey *box*, not pixel
by pixel, because a grey spot in the form of a forked tail would still show a forked tail.

The paper does not test this. Any model can be asked with `answers_to`; `views` needs the bird world.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, Species, look_alikes
from finer1_lite.evaluate.answers import Prediction, predict
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy
from studies.probes import answer_logps

GREY = 127
Box = tuple[int, int, int, int]  # top, left, bottom, right, in pixels; bottom and right are outside


# ---- which pixels tell two species apart


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
    """The smallest box that holds all true pixels of a mask (H, W). ValueError where there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask is empty: the two looks are the same, or a leaf covers what differs")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def box_elsewhere(box: Box, bird: np.ndarray) -> Box | None:
    """The place beside `box` where a box of its size covers most of the bird (H, W); None if there is none.

    At least half of it must lie on the bird.
    """
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


# ---- changed pictures

VIEWS = ("picture", "another bird", "redrawn", "blank", "marks hidden", "elsewhere hidden")


@dataclass(frozen=True)
class Viewed:
    """One bird in the VIEWS, by name; `other` is its look-alike, `marks` and `bird` are masks (S, S)."""

    species: Species
    other: Species
    images: Mapping[str, Image.Image]
    marks: np.ndarray
    bird: np.ndarray


def nearest_evaluated(species: Species) -> Species:
    """The look-alike that differs in the fewest attributes, of those that no base was taught to name."""
    return next(s for s in look_alikes(species.name, 20) if not s.common)


def views(species: Species, number: int) -> Viewed | None:
    """Picture `number` and its changed forms; None where no box of the same size fits elsewhere on the bird.

    another bird: a picture of the look-alike, as TAPO's negative. redrawn: this picture with the look-alike's
    marks, nothing else changed. marks hidden: a box over what differs; elsewhere hidden: as large a box beside it.
    """
    other, image = nearest_evaluated(species), draw(species, number)
    marks = changed_pixels(species, other.looks, number)
    if not marks.any():  # under the leaf
        return None
    box, bird = box_around(marks), bird_pixels(species, number)
    beside = box_elsewhere(box, bird)
    if beside is None:
        return None
    redrawn = draw(replace(species, looks=other.looks), number)
    images = {
        "picture": image, "another bird": draw(other, number), "redrawn": redrawn,
        "blank": hide(image, (0, 0, *image.size[::-1])), "marks hidden": hide(image, box),
        "elsewhere hidden": hide(image, beside),
    }  # fmt: skip
    return Viewed(species, other, images, marks, bird)


def answers_to(
    policy: Policy, images: Mapping[str, Sequence], labels: Sequence[str], think: bool, seed: int
) -> dict[str, list[Prediction]]:
    """Greedy answers to each view: view -> a prediction for each of `labels`, judged by the first picture's label.

    images: view -> one image for each label. All views are asked the same questions.
    """
    asked, made = {"label": labels, "seen": [True] * len(labels)}, {}
    for view, shown in images.items():
        cache = VisionCache(policy.model, policy.processor, shown)
        made[view] = predict(policy, cache, asked, think, seed, progress=view)
    return made


def look_measures(made: Mapping[str, Sequence[Prediction]], others: Sequence[str]) -> dict[tuple[str, str], float]:
    """(measure, view) -> share: answers that are the label, that are the look-alike, that the view changed."""
    found, first = {}, next(iter(made.values()))
    for view, answers in made.items():
        found["says the label", view] = np.mean([p.correct for p in answers])
        found["says the look-alike", view] = np.mean([other in p.answer for p, other in zip(answers, others)])
        found["answer changed", view] = np.mean([p.answer != q.answer for p, q in zip(answers, first)])
    return {key: float(value) for key, value in found.items()}


# ---- occlusion maps


def answer_scorer(policy: Policy, question: str, answer: str, instead: str) -> Callable[[list], torch.Tensor]:
    """A function of images: log p(answer) - log p(instead), both to `question` about each of them, as (N).

    With what the model itself says of a bird and of its redrawn look-alike, the difference is what it sees of the
    marks; all that it would say of both cancels.
    """

    def score(images: list[Image.Image]) -> torch.Tensor:
        seen = VisionCache(policy.model, policy.processor, images).get(range(len(images)))
        made = answer_logps(policy, [(question, s) for s in seen] * 2, [answer] * len(seen) + [instead] * len(seen))
        return made[: len(seen)] - made[len(seen) :]

    return score


def occlusion_map(score: Callable[[list], torch.Tensor], image: Image.Image, parts: int = 8) -> np.ndarray:
    """How much of the score a grey square takes away, at each pixel (H, W): the mean over the squares that cover it.

    The square is two `parts`-ths of the shorter side wide and moves by one. Positive: the score falls (nats, if it is
    a log-probability). Pixels that no square covers, at most at the right and lower edge, are 0.
    """
    width, height = image.size
    step = min(width, height) // parts
    boxes = [(y, x, y + 2 * step, x + 2 * step)
             for y in range(0, height - 2 * step + 1, step) for x in range(0, width - 2 * step + 1, step)]  # fmt: skip
    whole, *hidden = score([image, *(hide(image, box) for box in boxes)]).tolist()
    total, covered = np.zeros((height, width)), np.zeros((height, width))
    for (top, left, bottom, right), value in zip(boxes, hidden):
        total[top:bottom, left:right] += whole - value
        covered[top:bottom, left:right] += 1
    return total / np.maximum(covered, 1)


def mass_on(drops: np.ndarray, marks: np.ndarray, bird: np.ndarray) -> tuple[float, float]:
    """Share of a map's falls on the bird that lies on its marks, and the marks' share of the bird's area (all (H, W)).

    The second is what a map that is even over the bird would have. nan where nothing falls.
    """
    falls, bird = np.maximum(drops, 0), bird | marks
    total = falls[bird].sum()
    return float(falls[marks].sum() / total) if total else float("nan"), float(marks.sum() / bird.sum())
