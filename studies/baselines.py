"""What else one could do with the same pictures: a CLIP-like model, plain classifiers, prompting, other training.

`python -m studies.baselines` asks every baseline the story's questions about its test pictures and writes
`baselines.csv`: accuracy (`value`) of each seed, baseline, protocol and split on `n` pictures, and what it had
`met` before. It trains three variants of `studies.ablations` where they are missing. Departure from the paper:
in-context examples are given in words, as the base describes their pictures, because a prompt holds one image.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from finer1_lite.evaluate.answers import METHODS, Prediction, judge
from finer1_lite.evaluate.siglip import ENSEMBLE
from finer1_lite.evaluate.statistics import result_rows
from studies import naming
from studies.ablations import run_variant
from studies.naming import EXAMPLES, Question, questions_of
from studies.study import Seed, run, seed_of
from studies.variants import VARIANTS

LOOKS = "looks of all species in pictures, without names"  # what the vision tower has learnt
BASE = f"{LOOKS}; texts on all species"  # what the base has learnt, and all that start from it
WEB = "names of all species beside pictures, with noise; the list of names"  # SigLIP's pre-training
SHOTS = "4 pictures of each seen species"
Way = Callable[[Seed, list[Question]], list[str]]
BASELINES: dict[str, tuple[str, Way | None]] = {  # what it has met; how it names, None for the other studies' methods
    "siglip": (WEB, naming.zero_shot),
    "siglip_ensemble": (WEB, partial(naming.zero_shot, templates=ENSEMBLE)),
    "siglip_probe": (f"{WEB}; {SHOTS}", partial(naming.linear_probe, encoder="siglip")),
    "tower_means": (f"{LOOKS}; {SHOTS}", naming.nearest_means),
    "tower_probe": (f"{LOOKS}; {SHOTS}", partial(naming.linear_probe, encoder="tower")),
    "base": (BASE, None),
    "cot_prompt": (BASE, partial(naming.answer, think=True)),
    "in_context": (f"{BASE}; {EXAMPLES} described pictures of seen species", naming.in_context),
    "guide_in_prompt": (f"{BASE}; the looks of the four options", naming.guide_in_prompt),
    "describe_then_name": (BASE, naming.describe_then_name),
    "sft_answers": (f"{BASE}; {SHOTS}", None),
    "cls_rl": (f"{BASE}; {SHOTS}", None),
    "no_think_rl": (f"{BASE}; {SHOTS}", None),
    "answers_rl": (f"{BASE}; {SHOTS}", None),
    "cot_sft": (f"{BASE}; 1 picture of each seen species, with a chain", None),
    "dapo": (f"{BASE}; {SHOTS}, one with a chain", None),
    "tapo": (f"{BASE}; {SHOTS}, one with a chain", None),
}


def answers_of(lab: Seed, name: str, protocol: str) -> list[Prediction]:
    """What a baseline answers about the judged pictures; trains what is missing."""
    if name in METHODS:
        return lab.answers(name, lab.adapter(name), protocol)
    if name in VARIANTS:
        return run_variant(lab, name, protocol=protocol)
    rows = zip(lab.judged["label"], lab.judged["seen"], BASELINES[name][1](lab, questions_of(lab, protocol)))
    return [judge(i, *row) for i, row in enumerate(rows)]


def one_seed(seed: int, work: Path) -> list[dict]:
    """Rows of one seed: every baseline, both protocols, seen and unseen classes."""
    lab, rows = seed_of(seed, work), []
    for name, protocol in itertools.product(BASELINES, ("open", "closed")):
        if (name, protocol) == ("guide_in_prompt", "open"):  # the guide of all classes is longer than the context
            continue
        for row in result_rows(answers_of(lab, name, protocol), name, protocol, seed):
            if row["metric"] == "accuracy":
                cells = {"protocol": protocol, "split": row["split"], "value": row["value"], "n": row["n"]}
                rows.append({"seed": seed, "baseline": name} | cells | {"met": BASELINES[name][0]})
        print(f"[seed {seed}] {name}, {protocol}", flush=True)
    return rows


if __name__ == "__main__":
    run("baselines", __doc__, one_seed)
