"""Makes the shipped assets: `python -m finer1_lite.birds.pretrain --out FOLDER`.

Stage A: the vision tower learns attributes. Stage B: the language model learns to describe and reads
the field guide. Stage C: a teacher, the base with an adapter that writes chains in four tagged parts
when it is told the label; it has seen images of common species only. Two cores, about an hour; the
same seed on the same machine gives the same bytes.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, set_seed

from ..config import ASSETS, SFTConfig, get_profile
from ..cot.teacher import structured_prompt
from ..policy.inputs import VisionCache
from ..policy.load import load_policy
from ..sft import train_sft
from .diet import corpus, teacher_example
from .eyes import render_pool, train_vision
from .model import build_config, build_processor, build_tokenizer
from .reading import look_at, train_language
from .render import draw
from .species import all_species

SEED, PICTURES, DRAW_SEED = 0, 160, 1
VISION_STEPS, LANGUAGE_STEPS, TEACHER_ROWS = 1100, 1200, 4000
TEACHER = SFTConfig(epochs=1, batch_size=32, lr=2e-3, warmup_steps=10, weight_decay=0.0)


def make_base(out: Path, vision_steps: int, language_steps: int, pictures: int, threads: int) -> dict:
    """Stages A and B; writes `out/base` in bfloat16 and returns what was measured."""
    torch.set_num_threads(threads)
    set_seed(SEED)
    processor = build_processor(build_tokenizer(corpus()))
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer))
    images, looks = render_pool(pictures, DRAW_SEED, threads)
    facts = {"attribute_accuracy": train_vision(model.model.visual, images, looks, vision_steps, SEED)}
    seen = look_at(model.model.visual, images)
    train_language(model, processor, seen, language_steps, SEED)
    model.to(torch.bfloat16).save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    return facts


def teacher_rows(rng: np.random.Generator, n: int, cache: VisionCache, pictures: list) -> list:
    """Half images of common species, half texts about any species, each with its structured prompt."""
    rows = []
    for _ in range(n):
        if rng.random() < 0.5:
            i = int(rng.integers(len(pictures)))
            species, seen = pictures[i], cache.get([i])[0]
        else:
            species, seen = all_species()[int(rng.integers(len(all_species())))], None
        text, answer = teacher_example(rng, species, structured_prompt)
        rows.append((text, seen, answer))
    return rows


def make_teacher(out: Path, rows: int, pictures: int) -> None:
    """Stage C: an adapter on the base in `out/base`; writes `out/teacher`."""
    profile = replace(get_profile("cpu"), model_id=str(out / "base"))
    policy = load_policy(profile, seed=SEED)
    common = [s for s in all_species() if s.common for _ in range(pictures)]
    images = [draw(s, i % pictures, DRAW_SEED) for i, s in enumerate(common)]
    cache = VisionCache(policy.model, policy.processor, images)
    examples = teacher_rows(np.random.default_rng(SEED), rows, cache, common)
    train_sft(policy, examples, TEACHER, SEED, micro_batch=TEACHER.batch_size)
    policy.save(out / "teacher")


def main() -> None:
    """Command line: everything, or one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--only", choices=("base", "teacher"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a trial")
    parser.add_argument("--threads", type=int, default=2, help="part of the recipe: another number, other bytes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only != "teacher":
        steps = [max(1, int(args.scale * n)) for n in (VISION_STEPS, LANGUAGE_STEPS, PICTURES)]
        facts = make_base(args.out, *steps, args.threads)
        (args.out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
    if args.only != "base":
        make_teacher(args.out, max(32, int(args.scale * TEACHER_ROWS)), 8)


if __name__ == "__main__":
    main()
