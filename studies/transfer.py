"""What else changes when a model learns to name birds: `python -m studies.transfer`.

Five seeds, each of the story's five methods, greedy answers, PICTURES test pictures (half of seen, half of unseen
species). Writes `transfer.csv`: seed, method, task, split, measure, value (0-1), n, chance. The tasks:

    facts    "What does the bird in the picture eat?": like ImageWikiQA, recognition and then recall of the field guide
    looks    describe the bird, or one part of it, in the questions of pre-training
    recall   the field guide without pictures
    common   the 40 common species, which the base can name
    fish     another drawn world, of which no training has spoken: its looks, and its names
    shift    naming when pictures are noisy, blurred, dark, small or compressed
    options  naming among 4 to 32 look-alikes, and with none listed

"in form" beside a share of right answers: how many answers are what was asked for (`questions.in_form`).

Departures from the paper, which asks ImageWikiQA, MME, MMBench and SEED-Bench: the bird world's base has never met a
question about a fact together with a picture, and no method learns it. So facts are asked in three ways: in one step;
as the likeliest option behind the policy's own thoughts; in two steps, where its own open-world answer goes into a
text question. Counting, a task of MME, is left out: nothing in the base's pre-training counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from finer1_lite.birds import fish
from finer1_lite.birds.dataset import FIRST
from finer1_lite.birds.diet import LOOKS_QUESTIONS
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import (
    ATTRIBUTES,
    FOODS,
    NESTS,
    Species,
    all_species,
    by_name,
    describe,
    differences,
    look_alikes,
)  # fmt: skip
from finer1_lite.evaluate.answers import METHODS, WITHOUT_CHAIN
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import QUESTIONS, make_options, questions_for
from finer1_lite.recipes import look_alike_classes
from finer1_lite.rewards import names_in
from studies.questions import FORMS, Question, about, ask, choose, in_form, score
from studies.seeds import command, lab_of
from studies.story import Seed

PICTURES = 160
OTHERS = (2, 3)  # pictures of each common species and of each fish
FIRST_NEW = 5000  # picture number of what no other study draws
OPTIONS = (4, 8, 16, 32)
SHIFTS = {"noise": (40, 100), "blur": (1, 2), "dark": (0.4, 0.7), "small": (1, 3), "jpeg": (90, 98)}
FACTS = (("nest in", "nest", NESTS), ("eat", "food", FOODS))
FISH_PARTS = {"back": "back", "belly": "belly", "tail": "tail", "side": "breast"}  # of a fish: of a bird
ONE_NAME = 1 / len(all_species())  # a guess among all names of the world


def own_form(method: str) -> str:
    """How the story asks a method for a name."""
    return "answer" if method in WITHOUT_CHAIN else "think"


def pick(seen: Sequence[bool], n: int, seed: int) -> list[int]:
    """Rows of `n` pictures, half of seen and then half of unseen species. ValueError where there are too few."""
    rng, seen = np.random.default_rng(seed), np.asarray(seen)
    parts = [rng.permutation(np.flatnonzero(seen == known)) for known in (True, False)]
    if min(map(len, parts)) < n // 2:
        raise ValueError(f"{n} pictures need {n // 2} of seen and of unseen species; there are {list(map(len, parts))}")
    return [int(i) for part in parts for i in sorted(part[: n // 2])]


def split_of(known: bool) -> str:
    """The name of a split."""
    return "seen" if known else "unseen"


# ---- questions of the bird world


def facts(labels: Sequence[str], seen: Sequence[bool], picked: Sequence[int], seed: int) -> list[Question]:
    """Where it nests and what it eats, in turn, about the pictures `picked`; the five options in any order."""
    rng, made = np.random.default_rng(seed), []
    for place, i in enumerate(picked):
        verb, topic, values = FACTS[place % 2]
        options = tuple(str(v) for v in rng.permutation(values))
        answer = getattr(by_name()[labels[i]], topic)
        text = f"What does the bird in the picture {verb}?"
        made.append(Question(i, text, (answer,), options, topic, split_of(seen[i]), 1 / len(values)))
    return made


def _phrases(looks, attributes) -> tuple[tuple[str, ...], float]:
    """Attribute phrases like "red crown", and the share of them that a guess at each value gives."""
    chance = np.mean([1 / len(ATTRIBUTES[a]) for a in attributes])
    return tuple(describe(looks, [a]) for a in attributes), float(chance)


def looks(labels: Sequence[str], seen: Sequence[bool], picked: Sequence[int]) -> list[Question]:
    """For each picture a description and one part, each in turn: `diet.LOOKS_QUESTIONS` and all attributes."""
    made = []
    for place, i in enumerate(picked):
        part = list(ATTRIBUTES)[place % len(ATTRIBUTES)]
        describing = list(LOOKS_QUESTIONS.items())[place % len(LOOKS_QUESTIONS)]
        asked = {"describe": describing, "part": (f"What does the {part} look like?", [part])}
        for topic, (text, attributes) in asked.items():
            answers, chance = _phrases(by_name()[labels[i]].looks, attributes)
            made.append(Question(i, text, answers, (), topic, split_of(seen[i]), chance))
    return made


def recall(species: Sequence[Species], split: str) -> list[Question]:
    """Six questions of the field guide about each species, in the words of pre-training (`diet._guide`)."""
    made = []
    for s in species:
        other, everything = look_alikes(s.name)[0], tuple(ATTRIBUTES)
        apart = differences(s.looks, other.looks)
        own, chance = _phrases(s.looks, everything)
        marks, guess = _phrases(s.looks, apart)
        marks += _phrases(other.looks, apart)[0]
        alike = tuple(x.name for x in look_alikes(s.name))
        asked = {
            "looks": (f"What does the {s.name} look like?", own, chance),
            "name": (f"Which bird has {s.describe()}?", (s.name,), ONE_NAME),
            "look-alikes": (f"Which birds look like the {s.name}?", alike, len(alike) * ONE_NAME),
            "differences": (f"How does the {s.name} differ from the {other.name}?", marks, guess),
        }
        made += [Question(None, text, answers, (), topic, split, p) for topic, (text, answers, p) in asked.items()]
        for verb, topic, values in FACTS:
            text, answers = f"What does the {s.name} {verb}?", (getattr(s, topic),)
            made.append(Question(None, text, answers, values, topic, split, 1 / len(values)))
    return made


def naming(labels: Sequence[str], splits: Sequence[str], picked: Sequence[int], options=None) -> list[Question]:
    """Which bird it is, in all phrasings in turn. options: label -> what may be answered, to be listed."""
    made = []
    for place, i in enumerate(picked):
        listed, text = tuple(options(labels[i])) if options else (), QUESTIONS[place % len(QUESTIONS)]
        made.append(Question(i, text, (labels[i],), listed, "", splits[i], ONE_NAME))
    return made


def fish_questions(pictures: Sequence[fish.Fish]) -> tuple[list[Question], list[Question], list[Question]]:
    """About pictures of fish: four parts of each in words for birds; its name among its family's; that with a guide."""
    parts, names, guided, ways = [], [], [], questions_for("fish")
    for i, one in enumerate(pictures):
        for part, word in FISH_PARTS.items():
            text, answers = f"What does the {word} look like?", (f"{one.looks[part]} {word}",)
            parts.append(Question(i, text, answers, (), part, "fish", 1 / len(fish.ATTRIBUTES[part])))
        family = [f for f in fish.all_fish() if f.family == one.family]
        family = [family[(k + i) % len(family)] for k in range(len(family))]  # each stands first as often
        guide = " ".join(f"The {f.name} has {', '.join(f.concepts())}." for f in family)
        name = Question(i, ways[i % len(ways)], (one.name,), tuple(f.name for f in family), "", "fish")
        names.append(name)
        guided.append(replace(name, text=f"{guide} {name.text}"))
    return parts, names, guided


# ---- other pictures of the same birds


def shifted(image: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> Image.Image:
    """The picture, RGB and of its own size, worse by `strength`; 0 leaves it as it is. ValueError for another kind.

    noise: standard deviation in grey levels of 255. blur: radius in pixels. dark: share of the light that is taken
    away. small: reduced by 1 + strength and enlarged again. jpeg: 100 - quality.
    """
    if kind not in SHIFTS:
        raise ValueError(f"unknown shift {kind!r}; choose one of: {', '.join(SHIFTS)}")
    if strength == 0:
        return image
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    if kind == "small":
        less = [max(1, round(side / (1 + strength))) for side in image.size]
        return image.resize(less, Image.BOX).resize(image.size, Image.BICUBIC)
    if kind == "jpeg":
        file = BytesIO()
        image.save(file, "JPEG", quality=round(100 - strength))
        return Image.open(file).convert("RGB")
    pixels = np.asarray(image, np.float32)
    pixels = pixels * (1 - strength) if kind == "dark" else pixels + rng.normal(0, strength, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def conditions(images: Sequence[Image.Image], labels: Sequence[str], seed: int, shifts=SHIFTS) -> dict[str, list]:
    """The same birds as they are, drawn anew (no shift: it says what chance does), and with each shift."""
    anew = [draw(by_name()[name], FIRST_NEW + i, seed) for i, name in enumerate(labels)]
    made = {"clean": list(images), "drawn anew": anew}
    for kind, strengths in shifts.items():
        for strength in strengths:
            rng = np.random.default_rng([seed, round(100 * strength)])
            made[f"{kind} {strength}"] = [shifted(image, kind, strength, rng) for image in images]
    return made


# ---- the study


class Exam:
    """One seed's questions and pictures, and the answers of its methods, which are kept in `lab.out`/transfer.

    n: test pictures; others: pictures of each common species and of each fish. Rows of a task hold task, split,
    measure, value, n, chance; `run` adds seed and method.
    """

    def __init__(self, lab: Seed, n: int = PICTURES, shifts=SHIFTS, others: tuple[int, int] = OTHERS):
        self.lab, self.seed, self.cache = lab, lab.seed, lab.judged_cache
        self.labels, self.seen = list(lab.judged["label"]), list(lab.judged["seen"])
        self.splits, self.picked = [split_of(known) for known in self.seen], pick(self.seen, n, lab.seed)
        self.common = [s for s in all_species() if s.common for _ in range(others[0])]
        self.fish = [f for f in fish.all_fish() for _ in range(others[1])]
        self.common_cache = self._cache([draw(s, FIRST["test"] + i % others[0]) for i, s in enumerate(self.common)])
        self.fish_cache = self._cache([fish.draw(f, i % others[1], lab.seed) for i, f in enumerate(self.fish)])
        images, names = [lab.judged[i]["image"] for i in self.picked], [self.labels[i] for i in self.picked]
        self.conditions = conditions(images, names, lab.seed, shifts)
        self.caches = {name: self._cache(pictures) for name, pictures in self.conditions.items()}
        self.nearest = look_alike_classes(self.cache, self.labels)

    def _cache(self, images) -> VisionCache:
        return VisionCache(self.lab.base.model, self.lab.base.processor, images)

    def taker(self, method: str, adapter: Path | None) -> "Taker":
        """The method with its adapter (None: the base) and its own names for the test pictures."""
        own = [p.answer for p in self.lab.answers(method, adapter, "open", own_form(method) == "think")]
        policy = self.lab.base if adapter is None else load_policy(self.lab.profile, adapter, trainable=False)
        return Taker(self.lab.out / "transfer", method, policy, own)

    def run(self, method: str, adapter: Path | None) -> list[dict]:
        """All tasks of one method."""
        taker = self.taker(method, adapter)
        return [{"seed": self.seed, "method": method} | row for task in TASKS for row in task(self, taker)]


@dataclass(frozen=True)
class Taker:
    """A method that sits the exam. own: its open-world answers to all test pictures; folder: where answers are kept."""

    folder: Path
    method: str
    policy: Policy
    own: list[str]

    @property
    def form(self) -> str:
        """How it is asked for names."""
        return own_form(self.method)

    def ask(self, name: str, cache, questions, form: str, listed: bool = False) -> list[str]:
        """`questions.ask`, kept in a file."""
        file = self.folder / f"{self.method}_{name.replace(' ', '_')}_{form}_{'listed' if listed else 'free'}.jsonl"
        return ask(self.policy, cache, questions, form, listed, file)


def rows_of(task: str, measure: str, questions, values, listed: bool = False, keep=None) -> list[dict]:
    """One row for each split: the mean of `values` (0-1, one for each question) and what a guess would give.

    keep: which questions count; a split without any has no row.
    """
    keep = [True] * len(questions) if keep is None else keep
    rows = []
    for split in dict.fromkeys(q.split for q in questions):
        part = [(q, float(v)) for q, v, kept in zip(questions, values, keep, strict=True) if kept and q.split == split]
        if part:
            chance = np.mean([1 / len(q.options) if listed else q.chance for q, _ in part])
            value = np.mean([v for _, v in part])
            cells = {"task": task, "split": split, "measure": measure, "value": value, "n": len(part), "chance": chance}
            rows.append(cells | {key: round(float(cells[key]), 4) for key in ("value", "chance")})
    return rows


def graded(task: str, measure: str, questions, texts, form: str, listed: bool = False) -> list[dict]:
    """`rows_of` for right answers, and for answers in form."""
    right = rows_of(task, measure, questions, [score(q, t, form) for q, t in zip(questions, texts)], listed)
    kept = rows_of(task, f"{measure}, in form", questions, [in_form(q, t, form) for q, t in zip(questions, texts)])
    return right + [row | {"chance": float("nan")} for row in kept]


def named(task: str, measure: str, questions, texts, listed: bool = False) -> list[dict]:
    """`rows_of` for right names. In whatever form they were asked, they are read as everywhere: `evaluate.judge`."""
    return rows_of(task, measure, questions, [score(q, t, "think") for q, t in zip(questions, texts)], listed)


def facts_task(exam: Exam, taker: Taker) -> list[dict]:
    """Facts in one step, as the likeliest option, in two steps; also where the policy's own name is right."""
    questions, rows = facts(exam.labels, exam.seen, exam.picked, exam.seed), []
    known = [exam.labels[q.image] in names_in(taker.own[q.image], by_name()) for q in questions]
    values = {}
    for form in ("plain", "think"):
        for listed in (False, True):
            texts = taker.ask("facts", exam.cache, questions, form, listed)
            measure = f"one step, {form}, {'options' if listed else 'free'}"
            rows += graded("facts", measure, questions, texts, form, listed)
            values[measure] = [score(q, t, form) for q, t in zip(questions, texts)]
            if (form, listed) == ("think", False):
                chosen = choose(taker.policy, exam.cache, questions, texts, listed)
    values["likeliest option"] = [option == q.answers[0] for option, q in zip(chosen, questions)]
    second = [about(q, taker.own[q.image] or "bird") for q in questions]
    texts = taker.ask("facts two steps", None, second, "plain")
    values["two steps"] = [score(q, t, "plain") for q, t in zip(second, texts)]
    for measure in ("likeliest option", "two steps"):
        rows += rows_of("facts", measure, questions, values[measure])
    rows += rows_of("facts", "own name right", [replace(q, chance=ONE_NAME) for q in questions], known)
    for measure, found in values.items():
        rows += rows_of("facts", f"{measure}, own name right", questions, found, keep=known)
    return rows


def looks_task(exam: Exam, taker: Taker) -> list[dict]:
    """Share of right attributes in descriptions and in answers about one part."""
    questions, rows = looks(exam.labels, exam.seen, exam.picked), []
    texts = taker.ask("looks", exam.cache, questions, "plain")
    for topic in ("describe", "part"):
        part = [(q, t) for q, t in zip(questions, texts) if q.topic == topic]
        rows += graded("looks", topic, *zip(*part), "plain")
    return rows


def recall_task(exam: Exam, taker: Taker) -> list[dict]:
    """The field guide in text: of each split half as many species as pictures, drawn with the seed."""
    rows, names = [], dict.fromkeys(zip(exam.labels, exam.splits))
    questions = []
    for split in ("seen", "unseen"):
        species = [by_name()[name] for name, own in names if own == split]
        order = np.random.default_rng(exam.seed).permutation(len(species))[: len(exam.picked) // 4]
        questions += recall([species[i] for i in order], split)
    for form, topics in (("plain", dict.fromkeys(q.topic for q in questions)), ("think", ("nest", "food"))):
        for topic in topics:
            part = [q for q in questions if q.topic == topic]
            texts = taker.ask(f"recall {topic}", None, part, form)
            measure = topic if form == "plain" else f"{topic}, think"
            if topic == "name":
                rows += named("recall", measure, part, texts)
            else:
                rows += graded("recall", measure, part, texts, form)
    return rows


def common_task(exam: Exam, taker: Taker) -> list[dict]:
    """Names of the common species in every form in which the base has learnt to give them."""
    names = [s.name for s in exam.common]
    alike = {s.name: [x.name for x in look_alikes(s.name)] for s in exam.common}
    rng = np.random.default_rng(exam.seed)
    questions = naming(names, ["common"] * len(names), range(len(names)), lambda name: make_options(name, alike, rng))
    free, rows = [replace(q, options=()) for q in questions], []
    asked_as = [(form, free, False) for form in FORMS] + [("think", questions, True)]
    for form, asked, listed in asked_as:
        texts = taker.ask("common", exam.common_cache, asked, form, listed)
        rows += named("common", f"{form}{', options' if listed else ''}", asked, texts, listed)
    return rows


def fish_task(exam: Exam, taker: Taker) -> list[dict]:
    """Looks of fish in words for birds; names: free, among the family's four, and with a guide in the prompt."""
    parts, names, guided = fish_questions(exam.fish)
    rows = graded("fish", "part", parts, taker.ask("fish part", exam.fish_cache, parts, "plain"), "plain")
    asked = (("name, free", names, False), ("name, options", names, True), ("name, guide and options", guided, True))
    for measure, questions, listed in asked:
        texts = taker.ask(f"fish {measure.replace(',', '')}", exam.fish_cache, questions, "think", listed)
        rows += graded("fish", measure, questions, texts, "think", listed)
    chosen = choose(taker.policy, exam.fish_cache, guided, texts)
    right = [option == q.answers[0] for option, q in zip(chosen, guided)]
    return rows + rows_of("fish", "name, guide, likeliest option", guided, right, True)


def shift_task(exam: Exam, taker: Taker) -> list[dict]:
    """Open-world naming under each condition."""
    rows, labels, splits = [], [exam.labels[i] for i in exam.picked], [exam.splits[i] for i in exam.picked]
    questions = naming(labels, splits, range(len(labels)))
    for condition, cache in exam.caches.items():
        texts = taker.ask(f"shift {condition}", cache, questions, taker.form)
        rows += named("shift", condition, questions, texts)
    return rows


def options_task(exam: Exam, taker: Taker) -> list[dict]:
    """Closed-world naming as the number of look-alikes grows."""
    rows = []
    for k in OPTIONS:
        rng = np.random.default_rng(exam.seed)
        asked = naming(exam.labels, exam.splits, exam.picked, lambda name: make_options(name, exam.nearest, rng, k))
        texts = taker.ask(f"options {k}", exam.cache, asked, taker.form, True)
        rows += named("options", str(k), asked, texts, True)
    return rows


TASKS = (facts_task, looks_task, recall_task, common_task, fish_task, shift_task, options_task)


def one_seed(seed: int, work: Path, n: int = PICTURES) -> list[dict]:
    """The exam of one seed's five methods."""
    lab = lab_of(seed, work)
    exam = Exam(lab, n)
    return [row for method in METHODS for row in exam.run(method, lab.adapter(method))]


if __name__ == "__main__":
    command("transfer", one_seed, __doc__.splitlines()[0])
