"""Who should write the chains? A teacher, or the student itself from a few chains by hand.

`python -m studies.teachers` trains CoT SFT on the chains of each source, for about the same number of steps, and asks
the student about the test images. Writes `teachers.csv`: how good the chains are (`cot.quality`), and accuracy on
seen and unseen species. Sources:

    teacher         the tiny teacher, told the label and the concepts as in the paper: one chain for each seen species
    by hand         BY_HAND chains only, written from the field guide as a person would
    self-taught N   the same, then what the student wrote in N rounds (see `finer1_lite/teachers/selftaught.py`)
"""

from pathlib import Path

import numpy as np

from finer1_lite.birds.species import ATTRIBUTES, all_species, describe
from finer1_lite.cot.build import Sampler
from finer1_lite.cot.chains import chat_row, save_chains, to_completion
from finer1_lite.cot.quality import chain_frame, read_row
from finer1_lite.policy.load import load_policy
from finer1_lite.prompts import instructed
from finer1_lite.recipes import tasks_of
from finer1_lite.teachers.guide import guide_chain
from finer1_lite.teachers.policy import sampler_of
from finer1_lite.teachers.selftaught import self_teach
from studies.command import run
from studies.study import Seed, seed_of

BY_HAND, ROUNDS, TRIES = 8, 3, 4
MEASURES = ("true_attributes", "coverage", "similar_analyses", "label_leak")
TEMPERATURE = 0.6  # a student of eight chains is unsure of every word: at 1 most of its chains break


def field_guide() -> dict[str, list[str]]:
    """What every species of the bird world looks like, in phrases."""
    return {s.name: [describe(s.looks, [a]) for a in ATTRIBUTES] for s in all_species()}


def by_hand(lab: Seed) -> list[dict]:
    """Chat rows for BY_HAND species, evenly spread over the alphabet."""
    tasks, guide = tasks_of(lab.labels, lab.seed), field_guide()
    picked = [tasks[i] for i in np.linspace(0, len(tasks) - 1, BY_HAND).astype(int)]
    return [
        chat_row(t.image_index, t.label, instructed(t.question), to_completion(guide_chain(guide, t.label)))
        for t in picked
    ]


def chain_facts(rows: list[dict]) -> dict[str, float]:
    """How good a set of chains is: how many, and the means of some measures of `cot.quality`."""
    guide, judged = field_guide(), [read_row(row["messages"][1]["content"], row["label"]) for row in rows]
    found = chain_frame(judged, [guide[row["label"]] for row in rows])
    return {"chains": len(rows)} | found[list(MEASURES)].mean().to_dict()


def one_seed(seed: int, work: Path) -> list[dict]:
    """Every source of one seed: facts of its chains, accuracy of the student."""
    lab = seed_of(seed, work)
    chains = {"teacher": lab.chains(), "by hand": by_hand(lab)}

    def taught(source: str) -> Path:
        rows = chains[source]
        return lab.sft("cot_sft", f"taught_{source.replace(' ', '_')}", rows, epochs=lab.same_steps(rows))

    def train(_rows) -> Sampler:  # the rows that came last; their student is judged below too
        return sampler_of(load_policy(lab.profile, taught(list(chains)[-1])), lab.cache, seed, TEMPERATURE)

    tasks, names = tasks_of(lab.labels, seed), sorted(set(lab.labels))
    for done in self_teach(tasks, chains["by hand"], train, ROUNDS, TRIES, names):
        chains[f"self-taught {done.number}"] = done.rows
        save_chains(lab.out / f"self_taught_{done.number}.jsonl", done.rows)
    made = []
    for source, rows in chains.items():
        answers = lab.answers(taught(source).name, taught(source))
        figures = chain_facts(rows)
        for split in ("seen", "unseen"):
            figures[split] = np.mean([p.correct for p in answers if p.seen == (split == "seen")])
        made.append({"source": source, "seed": seed} | {k: round(float(v), 4) for k, v in figures.items()})
        print(f"[seed {seed}] {made[-1]}", flush=True)
    return made


if __name__ == "__main__":
    run("teachers", __doc__, one_seed, seeds=(0, 1, 2))
