"""Who should write the chains? A teacher, or the student itself from a few chains by hand; several seeds.

`python -m studies.teachers` trains CoT SFT on the chains of each source and asks the student about the test
images. Every training has about the same number of steps and the same setting. Writes `results/teachers.csv` and
`teachers_versions.json`. A killed run goes on where it was. Sources:

    teacher         the tiny teacher, told the label and the concepts (the paper's way): one chain for each seen species
    by hand         SEEDS chains only, written from the field guide as a person would
    self-taught N   the same, then what the student wrote in N rounds (see cot/selftaught.py)
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from finer1_lite.birds.species import ATTRIBUTES, all_species, bird_truth, describe
from finer1_lite.cot.build import Sampler
from finer1_lite.cot.chains import chat_row, save_chains, to_completion
from finer1_lite.cot.quality import chain_frame, read_row
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import instructed
from finer1_lite.recipes import sft_rows, tasks_of
from finer1_lite.sft import train_sft
from finer1_lite.teachers.guide import guide_chain
from finer1_lite.teachers.policy import sampler_of
from finer1_lite.teachers.selftaught import self_teach
from studies.seeds import command, lab_of
from studies.story import Seed

SEEDS, ROUNDS, TRIES = 8, 3, 4
MEASURES = ("true_attributes", "coverage", "similar_analyses", "label_leak")
TEMPERATURE = 0.6  # a student of eight chains is unsure of every word: at 1 most of its chains break


def field_guide() -> dict[str, list[str]]:
    """What every species of the bird world looks like, in phrases."""
    return {s.name: [describe(s.looks, [a]) for a in ATTRIBUTES] for s in all_species()}


def by_hand(lab: Seed) -> list[dict]:
    """Chat rows for SEEDS species, evenly spread over the alphabet."""
    tasks, guide = tasks_of(lab.labels, lab.seed), field_guide()
    picked = [tasks[i] for i in np.linspace(0, len(tasks) - 1, SEEDS).astype(int)]
    return [
        chat_row(t.image_index, t.label, instructed(t.question), to_completion(guide_chain(guide, t.label)))
        for t in picked
    ]


def student(lab: Seed, name: str, rows: list[dict], steps: int) -> Policy:
    """A fresh adapter, trained on chat rows for about `steps` steps; kept as `name` in the seed's folder."""
    folder, config = lab.out / name, lab.profile.sft
    if (folder / "adapter_model.safetensors").exists():
        return load_policy(lab.profile, folder)
    epochs = max(1, round(steps / -(-len(rows) // config.batch_size)))
    policy = load_policy(lab.profile, seed=lab.seed)
    train_sft(policy, sft_rows(rows, lab.cache), replace(config, epochs=epochs), lab.seed)
    policy.save(folder)
    return policy


def one_seed(seed: int, work: Path) -> list[dict]:
    """Every source of one seed: facts of its chains, accuracy of the student."""
    lab = lab_of(seed, work)
    chains, config = {"teacher": lab.chains(), "by hand": by_hand(lab)}, lab.profile.sft
    steps = config.epochs * -(-len(chains["teacher"]) // config.batch_size)

    def taught(source: str) -> Policy:
        return student(lab, f"taught_{source.replace(' ', '_')}", chains[source], steps)

    def train(_rows) -> Sampler:  # the rows that came last; their student is judged below too
        return sampler_of(taught(list(chains)[-1]), lab.cache, lab.seed, TEMPERATURE)

    for done in self_teach(tasks_of(lab.labels, seed), chains["by hand"], train, ROUNDS, TRIES, sorted(set(lab.labels))):
        chains[f"self-taught {done.number}"] = done.rows
        save_chains(lab.out / f"self_taught_{done.number}.jsonl", done.rows)
    made = []
    for source, rows in chains.items():
        taught(source)
        name = f"taught_{source.replace(' ', '_')}"
        answers = lab.answers(name, lab.out / name)
        figures = chain_facts(rows) | {
            split: np.mean([p.correct for p in answers if p.seen == (split == "seen")]) for split in ("seen", "unseen")
        }
        made.append({"source": source, "seed": seed} | {k: round(float(v), 4) for k, v in figures.items()})
        print(f"[seed {seed}] {made[-1]}", flush=True)
    return made


def chain_facts(rows: list[dict]) -> dict[str, float]:
    """How good a set of chains is: how many, and the means of some measures of `cot.quality`."""
    judged = [read_row(row["messages"][1]["content"], row["label"]) for row in rows]
    return {"chains": len(rows)} | chain_frame(judged, bird_truth(judged))[list(MEASURES)].mean().to_dict()


if __name__ == "__main__":
    command("teachers", one_seed, __doc__.splitlines()[0], seeds=(0, 1, 2))
