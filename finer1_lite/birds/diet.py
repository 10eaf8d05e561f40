"""What the base model has seen and read: the texts of pre-training, each as (user, assistant).

From images it learns to describe any bird. Some pictures come with a name, as on the web: those of the 40 *common*
species, which are in no evaluation, rightly; those of the others in captions that are often a look-alike's, and of
every second species mostly the family's noun alone, and in quizzes of four names. So the base knows more names than it
says; asked to think about four names, it compares them. From texts it learns the field guide of all 200, and birders'
diaries that think from a description to a name.
"""

import numpy as np

from ..cot.build import FOUR_PARTS, structured_prompt
from ..cot.chains import HEADINGS, PARTS
from ..prompts import QUESTIONS, THINK_INSTRUCTION, instructed, listing
from .species import ATTRIBUTES, Species, all_species, by_name, describe, differences, look_alikes, nearest

LOOKS_QUESTIONS = {
    "Describe the bird.": tuple(ATTRIBUTES),
    "Describe the head of the bird.": ("crown", "eye", "beak"),
    "Describe the body of the bird.": ("back", "breast", "belly"),
    "Describe the wing and the tail of the bird.": ("wing", "tail"),
}
DIARY = "Write a page of your diary."
# Shares: pictures of common species that come with a name; of the names of others those beside four options (a quiz);
# captions with a look-alike's name; captions of every second species with the family's noun alone.
NAMED_COMMON, QUIZZES, MISNAMED, COARSE = 0.5, 0.8, 0.3, 0.8


def _pick(rng, items):
    return items[int(rng.integers(len(items)))]


def direct(name: str) -> str:
    """The base model's way to name a bird without thinking."""
    return f"This is a {name}."


def chain_parts(looks, options: list[Species], prediction: str) -> dict[str, str]:
    """The four parts of a chain: what is seen, who it could be, what each would have instead, the name."""
    against = [f"{s.name}: " + (describe(s.looks, differences(s.looks, looks)[:3]) or "fits") for s in options]
    texts = (describe(looks), "; ".join(s.name for s in options), ". ".join(against), prediction)
    return {part: text + "." for part, text in zip(PARTS, texts)}


def chain_prose(parts: dict[str, str]) -> str:
    """The four parts as a diary has them."""
    return "\n".join(f"{heading}: {part}" for heading, part in zip(HEADINGS, parts.values()))


def tagged(parts: dict[str, str]) -> str:
    """The four parts as the teacher writes them, in tags."""
    bare = parts | {name: parts[name].removesuffix(".") for name in ("options", "prediction")}
    return "\n".join(f"<{name}> {text} </{name}>" for name, text in bare.items())


def misread(rng: np.random.Generator, looks, rate: float = 0.04) -> tuple[str, ...]:
    """Looks as a hasty observer notes them: each value wrong with probability `rate`."""
    return tuple(str(rng.choice([v for v in values if v != value])) if rng.random() < rate else value
                 for values, value in zip(ATTRIBUTES.values(), looks))  # fmt: skip


def candidates(species: Species, looks, ordered: bool = True) -> list[Species]:
    """`species` and the three others of its family that are nearest to `looks`; by name the place tells nothing."""
    family = [s for s in all_species() if s.family == species.family and s != species]
    found = [species, *nearest(looks, family)[:3]]
    return sorted(found, key=lambda s: s.name) if ordered else found


def loose_diary(rng: np.random.Generator, species: Species) -> tuple[str, str]:
    """A birder thinks from notes to a name, with the candidates in any order: the first, rough lessons."""
    looks = misread(rng, species.looks)
    options = [candidates(species, looks, ordered=False)[i] for i in rng.permutation(4)]
    return DIARY, chain_prose(chain_parts(looks, options, species.name))


def diary(rng: np.random.Generator, species: Species) -> tuple[str, str]:
    """A request and a diary: the candidates by name, or the given options; in prose, or in tagged parts."""
    looks, form = misread(rng, species.looks), rng.integers(4)
    if form == 0:
        names = _options(rng, species)
        parts = chain_parts(looks, [by_name()[n] for n in names], species.name)
        return listing(DIARY, names), chain_prose(parts)
    parts = chain_parts(looks, candidates(species, looks), species.name)
    return (f"{DIARY} {FOUR_PARTS}", tagged(parts)) if form == 1 else (DIARY, chain_prose(parts))


def text_example(rng: np.random.Generator, write=diary) -> tuple[str, str]:
    """One text: over half are diaries as `write` makes them, `loose_diary` or `diary`; the rest is field guide."""
    s = _pick(rng, all_species())
    if rng.random() < 0.55:
        return write(rng, s)
    kind = rng.integers(8)
    if kind == 0:
        return f"What does the {s.name} look like?", f"The {s.name} has {s.describe()}."
    if kind == 1:
        return f"Which bird has {describe(misread(rng, s.looks))}?", direct(s.name)
    if kind in (2, 7):  # the hardest to remember
        return f"Which birds look like the {s.name}?", "; ".join(x.name for x in look_alikes(s.name)) + "."
    if kind == 3:
        other = _pick(rng, look_alikes(s.name))
        parts = differences(s.looks, other.looks)
        told = f"The {s.name} has {s.describe(parts)}, the {other.name} has {other.describe(parts)}."
        return f"How does the {s.name} differ from the {other.name}?", told
    if kind == 4:
        return listing(f"Which bird has {s.describe()}?", _options(rng, s)), direct(s.name)
    # Where it nests and what it eats: also in the think-answer form, so that the base can follow the form.
    fact, tells, value = _pick(rng, [("eat", "eats", s.food), ("nest in", "nests in", s.nest)])
    ask, told = f"What does the {s.name} {fact}?", f"The {s.name} {tells} {value}."
    if rng.random() < 0.5:
        return ask, told
    return f"{ask} {THINK_INSTRUCTION}", f"<think>\n{told}\n</think>\n<answer> {value} </answer>"


def _options(rng: np.random.Generator, s: Species) -> list[str]:
    """The name of `s` and three others, look-alikes and any in equal parts; a common one would be too easy."""
    others_of = (look_alikes(s.name, 12), all_species())
    pools = [[x.name for x in pool if x.common == s.common and x != s] for pool in others_of]
    others: list[str] = []
    while len(others) < 3:
        other = _pick(rng, pools[int(rng.integers(2))] or pools[1])
        others += [other] * (other not in others)
    return [str(name) for name in rng.permutation([s.name, *others])]


def naming(rng: np.random.Generator, s: Species) -> tuple[str, str]:
    """A question for the name in an image of `s`, and a name: as a bare sentence, an answer, or one that "thought"."""
    text, form, quiz = _pick(rng, QUESTIONS), rng.integers(3), rng.random() < (0.5 if s.common else QUIZZES)
    name, options = s.name, _options(rng, s) if quiz else None
    if not s.common and not quiz:
        if rng.random() < MISNAMED:
            name = _pick(rng, look_alikes(s.name)).name
        if s.index % 2 and rng.random() < COARSE:
            name = s.family
    if form == 0:
        return listing(text, options), direct(name)
    answer = f"<answer> {name} </answer>"
    return instructed(text, form == 2, options), f"<think>\n{direct(name)}\n</think>\n{answer}" if form == 2 else answer


def image_example(rng: np.random.Generator, s: Species, named: float = 0.3) -> tuple[str, str]:
    """One question about an image of `s`: for its name (of an evaluated species the share `named`), or its looks."""
    kind = rng.random()
    if kind < (NAMED_COMMON if s.common else named):
        return naming(rng, s)
    if kind < 0.85:
        text = "Describe the bird." if kind < 0.7 else _pick(rng, list(LOOKS_QUESTIONS))
        return text, s.describe(LOOKS_QUESTIONS[text]) + "."
    part = _pick(rng, list(ATTRIBUTES))
    return f"What does the {part} look like?", f"It has a {s.describe([part])}."


def reasoned(rng: np.random.Generator, s: Species) -> tuple[str, str]:
    """A question about a picture of `s` with four options, and an answer that compares them before it names one."""
    names = _options(rng, s)
    chain = chain_prose(chain_parts(s.looks, [by_name()[name] for name in names], s.name))
    text = instructed(_pick(rng, QUESTIONS), True, names)
    return text, f"<think>\n{chain}\n</think>\n<answer> {s.name} </answer>"


def teacher_example(rng: np.random.Generator, s: Species) -> tuple[str, str]:
    """The teacher's prompt with the label `s` and some true concepts, and the four tagged parts."""
    looks = misread(rng, s.looks)
    concepts = [s.describe([a]) for a in rng.permutation(list(ATTRIBUTES))[: int(rng.integers(3, 6))]]
    parts = chain_parts(looks, candidates(s, looks), s.name)
    return structured_prompt(_pick(rng, QUESTIONS), s.name, concepts), tagged(parts)


def corpus() -> list[str]:
    """Every word of the world, for the tokenizer."""
    rng = np.random.default_rng(0)
    texts = [f" {s.name} {s.nest} {s.food}" for s in all_species()]
    for _ in range(4000):
        texts.append("\n".join(text_example(rng, loose_diary)))
        texts.append("\n".join(image_example(rng, _pick(rng, all_species()))))
    return texts
