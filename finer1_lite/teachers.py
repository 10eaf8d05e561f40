"""Who should write the chains? A teacher, or the student itself from a few chains by hand; several seeds.

`python -m finer1_lite.teachers` trains CoT SFT on the chains of each source and asks the student about the test
images. Every training has the same number of steps and the same setting. Writes `results/teachers.csv` and
`teachers_versions.json`. A killed run goes on where it was. Sources:

    teacher         the tiny teacher, told the label and the concepts (the paper's way): one chain for each seen species
    by hand         SEEDS chains only, written from the field guide as a person would
    self-taught N   the same, then what the student wrote in N rounds (see cot/selftaught.py)
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from .birds.species import ATTRIBUTES, all_species, by_name, describe
from .config import get_profile
from .cot.chains import Chain, chat_row, load_chains, names_label, read_chain, save_chains, to_completion
from .cot.concepts import split_concepts
from .cot.guide import guide_chain
from .cot.selftaught import self_teach
from .policy.load import Policy, load_policy
from .prompts import instructed
from .report import versions
from .sft import train_sft, write_csv
from .story import Seed, sampler_of, sft_rows, tasks_of

SEEDS, ROUNDS, TRIES = 8, 3, 4
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


def student(lab: Seed, rows: list[dict], steps: int) -> Policy:
    """A fresh adapter, trained on chat rows for about `steps` steps."""
    config = lab.profile.sft
    epochs = max(1, round(steps / -(-len(rows) // config.batch_size)))
    policy = load_policy(lab.profile, seed=lab.seed)
    train_sft(policy, sft_rows(rows, lab.cache), replace(config, epochs=epochs), lab.seed)
    return policy


def sources(lab: Seed) -> dict[str, list[dict]]:
    """Chat rows of each source; what was written before is read again."""
    found, paths = {"teacher": lab.chains()}, [lab.out / f"self_taught_{n}.jsonl" for n in range(ROUNDS + 1)]
    steps = lab.profile.sft.epochs * -(-len(found["teacher"]) // lab.profile.sft.batch_size)
    if not paths[-1].exists():
        seeds = by_hand(lab)
        save_chains(paths[0], seeds)

        def train(rows):
            return sampler_of(student(lab, rows, steps), lab.cache, lab.seed, TEMPERATURE)

        for done in self_teach(tasks_of(lab.labels, lab.seed), seeds, train, ROUNDS, TRIES, sorted(set(lab.labels))):
            save_chains(paths[done.number], done.rows)
    found["by hand"] = load_chains(paths[0])
    return found | {f"self-taught {n}": load_chains(paths[n]) for n in range(1, ROUNDS + 1)}


def chain_facts(rows: list[dict]) -> dict[str, float]:
    """How good a set of chains is: statements of the analysis true of the species, candidates, leaks."""
    chains: list[tuple[Chain, str]] = [(read_chain(r["messages"][1]["content"]), r["label"]) for r in rows]
    truths = [set(split_concepts(describe(by_name()[label].looks))) for _, label in chains]
    said = [split_concepts(chain.analysis) for chain, _ in chains]
    return {
        "chains": len(rows),
        "true_statements": np.mean([c in truth for own, truth in zip(said, truths) for c in own]),
        "candidates": np.mean([len(chain.options) for chain, _ in chains]),
        "leaks": np.mean([names_label(chain.analysis, label) for chain, label in chains]),
    }


def one_seed(seed: int, work: Path) -> list[dict]:
    """Every source of one seed: facts of its chains, accuracy of the student."""
    torch.set_num_threads(1)
    lab, made = Seed(get_profile("cpu"), seed, work / f"seed{seed}"), []
    all_sources = sources(lab)
    steps = lab.profile.sft.epochs * -(-len(all_sources["teacher"]) // lab.profile.sft.batch_size)
    for name, rows in all_sources.items():
        folder = lab.out / f"taught_by_{name.replace(' ', '_')}"
        if not (folder / "adapter_model.safetensors").exists():
            student(lab, rows, steps).save(folder)
        answers = lab.answers(folder.name, folder)
        figures = chain_facts(rows) | {
            split: np.mean([p.correct for p in answers if p.seen == (split == "seen")]) for split in ("seen", "unseen")
        }
        made.append({"source": name, "seed": seed} | {k: round(float(v), 4) for k, v in figures.items()})
        print(f"[seed {seed}] {made[-1]}", flush=True)
    return made


def main() -> None:
    """Command line: every source of every seed, two seeds at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="the story's folder: chains are shared")
    args = parser.parse_args()
    with get_context("spawn").Pool(2) as pool:
        rows = [row for rows in pool.imap(partial(one_seed, work=args.work), args.seeds) for row in rows]
    write_csv(args.out / "teachers.csv", rows)
    (args.out / "teachers_versions.json").write_text(json.dumps(versions(), indent=1) + "\n")


if __name__ == "__main__":
    main()
