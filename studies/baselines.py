"""What else one could do with the same pictures: a CLIP-like model, plain classifiers, prompting, other training.

`python -m studies.baselines` goes on from the story's folder (`--work`), asks every baseline about the
test pictures of each seed, and writes `baselines.csv`: one row for each seed, baseline, protocol and split, with
accuracy (`value`), pictures (`n`) and what the method had `met` before. Closed-world questions hold the options of
the story, so figures can be compared; every answer is kept in `<seed>/baseline_<name>_<protocol>.jsonl`.

How to read it:

- SigLIP has met all species by name in its pre-training (`birds.clip`), as one trained on the web's alt-texts has; ours
  is a small stand-in and says nothing of SigLIP-L. Open-world it picks among the names of the 160 test classes, which
  no policy is given.
- A classifier of seen species cannot name another: 0 on unseen ones. Among the options it picks the best that it
  has weights for, so an unseen look-alike never tempts it; that flatters it on seen species.
- `describe_then_name` asks twice: for the looks, then, without the picture, which bird has them. The base has read
  just such questions (`birds.diet`), so in this world two calls need no training at all; whether a 3B can look up a
  description of its own is not shown here.

Departures from the paper: in-context examples are given in words, as the base describes their pictures; one image to
a prompt is what the kit's inputs hold. Its DeepPerception and 7B rows have no counterpart here.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from finer1_lite.birds.dataset import PER_CLASS, load_birds
from finer1_lite.birds.diet import LOOKS_QUESTIONS
from finer1_lite.birds.species import by_name
from finer1_lite.config import ASSETS
from finer1_lite.evaluate.answers import METHODS, WITHOUT_CHAIN, Prediction, judge, load_predictions, save_predictions
from finer1_lite.evaluate.siglip import ENSEMBLE, ONE, Siglip, choose, choose_probe
from finer1_lite.evaluate.statistics import result_rows
from finer1_lite.policy.inputs import ImageFeatures, VisionCache
from finer1_lite.policy.rollout import rollout
from finer1_lite.prompts import bare_question, instructed, make_options
from finer1_lite.recipes import look_alike_classes, one_per_class
from studies.ablations import VARIANTS, run_variant
from studies.seeds import command, lab_of
from studies.story import Seed

EXAMPLES = 4
LOOKS_QUESTION = next(iter(LOOKS_QUESTIONS))
Question = tuple[str, list[str] | None]  # a bare question, and the options of a closed-world one


@cache
def questions_of(lab: Seed, protocol: str) -> list[Question]:
    """The question about each judged picture, as `evaluate.prompts_for` draws them for this seed."""
    rng, labels = np.random.default_rng(lab.seed), lab.judged["label"]
    nearest = look_alike_classes(lab.judged_cache, labels) if protocol == "closed" else None
    asked = []
    for label in labels:
        options = make_options(label, nearest, rng) if nearest else None
        asked.append((bare_question(rng), options))
    return asked


# ---- SigLIP and plain classifiers


@cache
def siglip() -> Siglip:
    """The bird world's own."""
    return Siglip()


@cache
def pictures_of(lab: Seed) -> dict[str, tuple[list[str], VisionCache]]:
    """Labels and pictures: the training ones, validation ones of the seen species (two of each), the judged ones."""
    data = load_birds(lab.seed, {"val": PER_CLASS["val"] | {False: 0}, "test": {True: 0, False: 0}})["val"]
    val = VisionCache(lab.base.model, lab.base.processor, data["image"])
    judged = (list(lab.judged["label"]), lab.judged_cache)
    return {"train": (lab.labels, lab.cache), "val": (list(data["label"]), val), "judged": judged}


@cache
def siglip_rows(lab: Seed) -> dict[str, torch.Tensor]:
    """SigLIP's unit rows (N, D) of each part of `pictures_of`."""
    return {part: siglip().images(features.images) for part, (_, features) in pictures_of(lab).items()}


@cache
def tower_rows(lab: Seed) -> dict[str, torch.Tensor]:
    """The mean (N, H) of the policy's own image tokens. Side by side they do worse: 2048 numbers, four pictures."""
    return {
        part: torch.stack([s.tokens.float().mean(0) for s in features.get(range(len(labels)))])
        for part, (labels, features) in pictures_of(lab).items()
    }


def zero_shot(lab: Seed, asked: list[Question], templates=ONE) -> list[str]:
    """SigLIP's choice among the options, or among the names of all judged classes."""
    names = sorted(set(lab.judged["label"]))
    return choose(siglip_rows(lab)["judged"] @ siglip().classes(names, templates).T, names, given(asked))


def given(asked: list[Question], known: Iterable[str] | None = None) -> list[list[str]] | None:
    """The options of each question, those of them that are `known`; None for open-world questions."""
    if asked[0][1] is None:
        return None
    return [[o for o in options if known is None or o in known] for _, options in asked]


def class_means(rows: torch.Tensor, labels: list[str], judged: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Cosine (N, C) of judged rows and class means, both seen from the mean of the training rows; and the classes."""
    classes, centre = sorted(set(labels)), rows.mean(0)
    means = torch.stack([rows[[i for i, label in enumerate(labels) if label == c]].mean(0) for c in classes])
    return torch.cosine_similarity((judged - centre)[:, None], means - centre, dim=-1), classes


def few_shot(lab: Seed, asked: list[Question], rows_of: Callable, linear: bool = True) -> list[str]:
    """A linear probe, or nearest class means, on four pictures of each seen species."""
    rows, (val_labels, _) = rows_of(lab), pictures_of(lab)["val"]
    if linear:
        probe = choose_probe(rows["train"], lab.labels, rows["val"], val_labels)
        scores, classes = probe.scores(rows["judged"]), probe.classes
    else:
        scores, classes = class_means(rows["train"], lab.labels, rows["judged"])
    return choose(scores, classes, given(asked, set(classes)))


# ---- prompting


def ask_base(lab: Seed, prompts: list[str], seen: list[ImageFeatures | None]) -> list[str]:
    """What the base says, greedy."""
    return rollout(lab.base, list(zip(prompts, seen)), 1, generator=None, temperature=0).texts


def looks_of(lab: Seed, seen: list[ImageFeatures]) -> list[str]:
    """How the base describes pictures: "red crown, brown back, ..."."""
    return [text.strip().rstrip(".") for text in ask_base(lab, [LOOKS_QUESTION] * len(seen), seen)]


def answer(lab: Seed, asked: list[Question], before=lambda options: "", think: bool = False) -> list[str]:
    """What the base answers to the questions, each with the words `before(options)` in front."""
    prompts = [f"{before(options)}{instructed(text, think, options)}" for text, options in asked]
    return ask_base(lab, prompts, lab.judged_cache.get(range(len(asked))))


def in_context(lab: Seed, asked: list[Question]) -> list[str]:
    """Solved examples in front: EXAMPLES seen species, as the base describes one picture of each, with the name."""
    rows = np.random.default_rng(lab.seed).choice(one_per_class(lab.labels), EXAMPLES, replace=False)
    looks = looks_of(lab, lab.cache.get(rows))
    solved = "".join(f"A bird with {text}: <answer> {lab.labels[int(i)]} </answer>. " for text, i in zip(looks, rows))
    return answer(lab, asked, lambda _: solved)


def guide_in_prompt(lab: Seed, asked: list[Question]) -> list[str]:
    """The field guide's line of each option in front."""
    return answer(lab, asked, lambda options: "".join(f"The {o} has {by_name()[o].describe()}. " for o in options))


def describe_then_name(lab: Seed, asked: list[Question]) -> list[str]:
    """Two calls: the looks of the picture; then, in words alone, which bird has them."""
    looks = looks_of(lab, lab.judged_cache.get(range(len(asked))))
    listed = [f" Options: {'; '.join(options)}." if options else "" for _, options in asked]
    return ask_base(lab, [f"Which bird has {text}?{end}" for text, end in zip(looks, listed)], [None] * len(asked))


# ---- the table

LOOKS = "looks of all species in pictures, without names"  # what the vision tower has learnt
BASE = f"{LOOKS}; texts on all species"  # what the base has learnt, and all that start from it
WEB = "names of all species beside pictures, with noise; the list of names"  # SigLIP's pre-training
SHOTS = "4 pictures of each seen species"
MET = {
    "siglip": WEB,
    "siglip_ensemble": WEB,
    "siglip_probe": f"{WEB}; {SHOTS}",
    "tower_means": f"{LOOKS}; {SHOTS}",
    "tower_probe": f"{LOOKS}; {SHOTS}",
    "base": BASE,
    "cot_prompt": BASE,
    "in_context": f"{BASE}; {EXAMPLES} described pictures of seen species",
    "guide_in_prompt": f"{BASE}; the looks of the four options",
    "describe_then_name": BASE,
    "sft_answers": f"{BASE}; {SHOTS}",
    "cls_rl": f"{BASE}; {SHOTS}",
    "no_think_rl": f"{BASE}; {SHOTS}",
    "answers_rl": f"{BASE}; {SHOTS}",
    "cot_sft": f"{BASE}; 1 picture of each seen species, with a chain",
    "dapo": f"{BASE}; {SHOTS}, one with a chain",
    "tapo": f"{BASE}; {SHOTS}, one with a chain",
}
OWN: dict[str, Callable[[Seed, list[Question]], list[str]]] = {
    "siglip": zero_shot,
    "siglip_ensemble": partial(zero_shot, templates=ENSEMBLE),
    "siglip_probe": partial(few_shot, rows_of=siglip_rows),
    "tower_means": partial(few_shot, rows_of=tower_rows, linear=False),
    "tower_probe": partial(few_shot, rows_of=tower_rows),
    "cot_prompt": partial(answer, think=True),
    "in_context": in_context,
    "guide_in_prompt": guide_in_prompt,
    "describe_then_name": describe_then_name,
}


def answers_of(lab: Seed, name: str, protocol: str) -> list[Prediction]:
    """What a baseline answers about the judged pictures; trains what is missing, and keeps the answers in a file."""
    if name in METHODS:
        return lab.answers(name, lab.adapter(name), protocol, name not in WITHOUT_CHAIN)
    if name not in OWN:  # a method of the ablations
        opened, run = run_variant(lab, name), f"ablation_{name}"
        return opened if protocol == "open" else lab.answers(run, lab.out / run, protocol, VARIANTS[name].think)
    path, models = lab.out / f"baseline_{name}_{protocol}.jsonl", shipped_models()
    if not path.exists():
        texts = OWN[name](lab, questions_of(lab, protocol))
        rows = zip(lab.judged["label"], lab.judged["seen"], texts)
        save_predictions(path, [judge(i, *row, asked=models) for i, row in enumerate(rows)])
    made = load_predictions(path)
    if {p.asked for p in made} != {models}:
        raise ValueError(f"{path} holds answers of other models than the shipped ones; move it away to ask again")
    return made


@cache
def shipped_models() -> str:
    """A digest of the weights that the baselines ask."""
    weights = [ASSETS / name / "model.safetensors" for name in ("base", "siglip")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()[:16]


def one_seed(seed: int, work: Path) -> list[dict]:
    """Rows of one seed: every baseline, both protocols, seen and unseen classes."""
    lab, rows = lab_of(seed, work), []
    for name, protocol in itertools.product(MET, ("open", "closed")):
        if (name, protocol) == ("guide_in_prompt", "open"):  # the guide of all classes is longer than the context
            continue
        for row in result_rows(answers_of(lab, name, protocol), name, protocol, seed):
            if row["metric"] == "accuracy":
                cells = {column: row[column] for column in ("protocol", "split", "value", "n")}
                rows.append({"seed": seed, "baseline": name} | cells | {"met": MET[name]})
        print(f"[seed {seed}] {name}, {protocol}", flush=True)
    return rows


if __name__ == "__main__":
    command("baselines", one_seed, __doc__.splitlines()[0])
