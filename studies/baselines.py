"""What else one could do with the same pictures: a CLIP-like model, a linear probe, prompting, RL without chains.

`python -m studies.baselines` asks every baseline the story's questions about its test pictures and writes
`baselines.csv`: rows as in `results.csv`. What each had met before differs, see `MET`. Departure from the paper:
in-context examples are given in words, as the base describes their pictures, because a prompt holds one image.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from finer1_lite.evaluate.answers import Prediction, judge
from finer1_lite.evaluate.siglip import ENSEMBLE
from finer1_lite.evaluate.statistics import result_rows
from studies import naming
from studies.ablations import ask
from studies.command import run
from studies.naming import Question, questions_of
from studies.study import Seed, seed_of
from studies.variants import WITHOUT_SFT

BASE = "looks of all species in pictures, names with some of them; texts on all species"
WEB = "names of all species beside pictures, with noise; the list of names"
MET = {  # before it is asked
    "base": BASE, "cot_prompt": BASE, "describe_then_name": BASE, "in_context": f"{BASE}; four described examples",
    "siglip": WEB, "siglip_ensemble": WEB, "tower_probe": "looks; 4 pictures of each seen species",
    "sft_answers": f"{BASE}; 4 pictures of each seen species", "cls_rl": f"{BASE}; 4 pictures of each seen species",
    "no_think_rl": f"{BASE}; 4 pictures of each seen species",
    "cot_sft": f"{BASE}; 1 picture of each seen species, with a chain",
    "dapo": f"{BASE}; 4 pictures of each seen species, one with a chain",
    "tapo": f"{BASE}; 4 pictures of each seen species, one with a chain",
}  # fmt: skip
Way = Callable[[Seed, list[Question]], list[str]]
WAYS: dict[str, Way] = {
    "cot_prompt": partial(naming.answer, think=True),
    "in_context": naming.in_context,
    "describe_then_name": naming.describe_then_name,
    "siglip": naming.zero_shot,
    "siglip_ensemble": partial(naming.zero_shot, templates=ENSEMBLE),
    "tower_probe": naming.linear_probe,
}
BASELINES = (*WAYS, *WITHOUT_SFT)


def answers_of(lab: Seed, name: str, protocol: str) -> list[Prediction]:
    """What a baseline answers about the judged pictures; trains what is missing."""
    if name in WITHOUT_SFT:
        return ask(lab, name, protocol)
    asked = questions_of(lab, protocol)
    rows = zip(lab.judged["label"], lab.judged["seen"], WAYS[name](lab, asked))
    return [judge(i, *row) for i, row in enumerate(rows)]


def one_seed(seed: int, work: Path) -> list[dict]:
    """Rows of one seed: every baseline, both protocols, seen and unseen classes."""
    lab, rows = seed_of(seed, work), []
    for name, protocol in itertools.product(BASELINES, ("open", "closed")):
        rows += result_rows(answers_of(lab, name, protocol), name, protocol, seed)
        print(f"[seed {seed}] {name}, {protocol}", flush=True)
    return [row for row in rows if row["metric"] == "accuracy" or row["method"] in WITHOUT_SFT]


if __name__ == "__main__":
    run("baselines", __doc__, one_seed)
