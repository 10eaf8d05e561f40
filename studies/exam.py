"""What `studies.transfer` asks about birds, worse pictures of the birds, and how answers become rows."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageFilter

from finer1_lite.birds.diet import LOOKS_QUESTIONS
from finer1_lite.birds.species import ATTRIBUTES, FOODS, NESTS, all_species, by_name, describe
from finer1_lite.prompts import QUESTIONS
from studies.questions import Question, score

SHIFTS = {"noise": 100, "blur": 2}  # standard deviation in grey levels; radius in pixels
FACTS = (("nest in", "nest", NESTS), ("eat", "food", FOODS))
ONE_NAME = 1 / len(all_species())  # a guess among all names of the world


def pick(seen: Sequence[bool], n: int, seed: int) -> list[int]:
    """Rows of `n` pictures, half of seen and then half of unseen species."""
    rng, seen = np.random.default_rng(seed), np.asarray(seen)
    parts = [rng.permutation(np.flatnonzero(seen == known)) for known in (True, False)]
    return [int(i) for part in parts for i in sorted(part[: n // 2])]


def facts(labels: Sequence[str], splits: Sequence[str], picked: Sequence[int], seed: int) -> list[Question]:
    """Where it nests and what it eats, in turn, about the pictures `picked`; the five options in any order."""
    rng, made = np.random.default_rng(seed), []
    for place, i in enumerate(picked):
        verb, topic, values = FACTS[place % 2]
        options = tuple(str(v) for v in rng.permutation(values))
        answer = getattr(by_name()[labels[i]], topic)
        text = f"What does the bird in the picture {verb}?"
        made.append(Question(i, text, (answer,), options, splits[i], 1 / len(values)))
    return made


def looks(labels: Sequence[str], splits: Sequence[str], picked: Sequence[int]) -> list[Question]:
    """For each picture a description and one part, each in turn: `diet.LOOKS_QUESTIONS` and all attributes."""
    made = []
    for place, i in enumerate(picked):
        part = list(ATTRIBUTES)[place % len(ATTRIBUTES)]
        describing = list(LOOKS_QUESTIONS.items())[place % len(LOOKS_QUESTIONS)]
        for text, attributes in (describing, (f"What does the {part} look like?", [part])):
            answers = tuple(describe(by_name()[labels[i]].looks, [a]) for a in attributes)
            chance = float(np.mean([1 / len(ATTRIBUTES[a]) for a in attributes]))
            made.append(Question(i, text, answers, (), splits[i], chance))
    return made


def naming(
    labels: Sequence[str], splits: Sequence[str], picked: Sequence[int], options: Callable[[str], list] | None = None
) -> list[Question]:
    """Which bird it is, in all phrasings in turn. options: label -> what may be answered, to be listed."""
    made = []
    for place, i in enumerate(picked):
        listed, text = tuple(options(labels[i])) if options else (), QUESTIONS[place % len(QUESTIONS)]
        made.append(Question(i, text, (labels[i],), listed, splits[i], ONE_NAME))
    return made


def shifted(image: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> Image.Image:
    """The picture, RGB and of its own size, worse by `strength`."""
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    pixels = np.asarray(image, np.float32) + rng.normal(0, strength, (image.height, image.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def conditions(images: Sequence[Image.Image], seed: int, shifts=SHIFTS) -> dict[str, list]:
    """The same pictures as they are, and with each shift."""
    made = {"clean": list(images)}
    for kind, strength in shifts.items():
        rng = np.random.default_rng(seed)
        made[f"{kind} {strength}"] = [shifted(image, kind, strength, rng) for image in images]
    return made


def rows_of(task: str, measure: str, questions: Sequence[Question], values, listed: bool = False) -> list[dict]:
    """One row for each split: the mean of `values` (0-1, one for each question) and what a guess would give."""
    rows = []
    for split in dict.fromkeys(q.split for q in questions):
        part = [(q, float(v)) for q, v in zip(questions, values, strict=True) if q.split == split]
        chance = round(float(np.mean([1 / len(q.options) if listed else q.chance for q, _ in part])), 4)
        value = round(float(np.mean([v for _, v in part])), 4)
        cells = {"task": task, "split": split, "measure": measure, "value": value, "n": len(part), "chance": chance}
        rows.append(cells)
    return rows


def graded(task: str, measure: str, questions, texts, form: str = "think", listed: bool = False) -> list[dict]:
    """`rows_of` for right answers. Names are read as everywhere, in whatever form they were asked: form "think"."""
    return rows_of(task, measure, questions, [score(q, t, form) for q, t in zip(questions, texts)], listed)
