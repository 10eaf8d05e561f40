"""What else one could do with the same pictures: a CLIP-like model, plain classifiers, prompting, other training.

`python -m studies.baselines` asks every baseline about the story's test pictures, with the story's options, and writes
`baselines.csv`: accuracy (`value`) on `n` pictures of each seed, baseline, protocol and split, and what the method had `met`
before. It trains three variants of `studies.ablations` where they are missing. How to read it:

- SigLIP has met all species by name in its pre-training (`birds.clip`), as one trained on the web's alt-texts has; ours
  is a small stand-in and says nothing of SigLIP-L. Open-world it picks among the names of the 160 test classes, which
  no policy is given.
- A classifier of seen species cannot name another: 0 on unseen ones. Among the options it picks the best that it
  has weights for, so an unseen look-alike never tempts it; that flatters it on seen species.
- `describe_then_name` asks twice: for the looks, then, without the picture, which bird has them. The base has read
  just such questions (`birds.diet`); whether a 3B can look up a description of its own is not shown here.

Departure from the paper: in-context examples are given in words, as the base describes their pictures, because a prompt
holds one image.
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
WAYS: dict[str, Callable[[Seed, list[Question]], list[str]]] = {
    "siglip": naming.zero_shot,
    "siglip_ensemble": partial(naming.zero_shot, templates=ENSEMBLE),
    "siglip_probe": partial(naming.linear_probe, rows_of=naming.siglip_rows),
    "tower_means": naming.nearest_means,
    "tower_probe": partial(naming.linear_probe, rows_of=naming.tower_rows),
    "cot_prompt": partial(naming.answer, think=True),
    "in_context": naming.in_context,
    "guide_in_prompt": naming.guide_in_prompt,
    "describe_then_name": naming.describe_then_name,
}


def answers_of(lab: Seed, name: str, protocol: str) -> list[Prediction]:
    """What a baseline answers about the judged pictures; trains what is missing."""
    if name in METHODS:
        return lab.answers(name, lab.adapter(name), protocol)
    if name not in WAYS:
        return run_variant(lab, name, protocol=protocol)
    rows = zip(lab.judged["label"], lab.judged["seen"], WAYS[name](lab, questions_of(lab, protocol)))
    return [judge(i, *row) for i, row in enumerate(rows)]


def one_seed(seed: int, work: Path) -> list[dict]:
    """Rows of one seed: every baseline, both protocols, seen and unseen classes."""
    lab, rows = seed_of(seed, work), []
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
    run("baselines", __doc__, one_seed)
