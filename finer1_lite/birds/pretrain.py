"""Makes the shipped assets: `python -m finer1_lite.birds.pretrain --out FOLDER`.

Stage A: the vision tower learns attributes. Stage B: the language model learns to describe and reads
the field guide, in three rounds. Stage C: a teacher, the base with an adapter that writes chains in four
tagged parts when it is told the label; it has seen images of common species only. About an hour on two
cores; the number of threads of each stage is part of the recipe, as it changes the order of sums. Another
processor rounds differently: expect other bytes and accuracies within 10 points (results/base_elsewhere.json).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, set_seed

from ..config import ASSETS, SFTConfig, get_profile
from ..cot.build import structured_prompt
from ..policy.inputs import VisionCache
from ..policy.load import add_adapter, load_base
from ..sft import train_sft
from .diet import corpus, diary, loose_diary, teacher_example
from .eyes import render_pool, train_vision
from .measure import measure_base
from .model import TAGS, build_config, build_processor, build_tokenizer
from .reading import look_at, train_language
from .render import draw
from .species import all_species

SEED, PICTURES, DRAW_SEED = 0, 160, 1
VISION_STEPS, VISION_THREADS = 1100, 2
# Rounds of reading: more texts for each image in the second, tidier diaries in the third.
ROUNDS = (
    {"steps": 1000, "seed": 0, "lr": 2e-3, "n_images": 20, "n_texts": 44, "write": loose_diary, "threads": 2},
    {"steps": 700, "seed": 1, "lr": 1.5e-3, "n_images": 12, "n_texts": 56, "write": loose_diary, "threads": 1},
    {"steps": 380, "seed": 2, "lr": 1.5e-3, "n_images": 8, "n_texts": 56, "write": diary, "threads": 2},
)
TEACHER_ROWS, TEACHER_PICTURES, TEACHER_THREADS = 4000, 8, 2
TEACHER = SFTConfig(
    epochs=1, batch_size=32, lr=4e-3, warmup_steps=10, weight_decay=0.0, micro_batch=32, micro_tokens=2**20,
)  # fmt: skip


def make_eyes(scale: float):
    """Stage A: a trained vision tower, what its heads read on held-out pictures, and the pictures."""
    torch.set_num_threads(VISION_THREADS)
    images, looks = render_pool(max(3, int(scale * PICTURES)), DRAW_SEED, processes=2)
    set_seed(SEED)
    # The tower does not depend on the words, so any tokenizer will do here.
    visual = Qwen2_5_VLForConditionalGeneration(build_config(build_tokenizer(["a b"]))).model.visual
    return visual, train_vision(visual, images, looks, max(2, int(scale * VISION_STEPS)), SEED), images


def make_base(out: Path, scale: float) -> None:
    """Stages A and B; writes `out/base` in bfloat16."""
    visual, _, images = make_eyes(scale)
    set_seed(SEED)
    processor = build_processor(build_tokenizer(corpus()))
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer))
    model.model.visual.load_state_dict(visual.state_dict())
    for plan in ROUNDS:
        torch.set_num_threads(plan["threads"])
        seen = look_at(model.model.visual, images)
        steps, rest = max(2, int(scale * plan["steps"])), {k: v for k, v in plan.items() if k not in ("steps", "threads")}
        train_language(model, processor, seen, steps, **rest)
        model.to(torch.bfloat16).save_pretrained(out / "base")
        model.to(torch.float32)
    processor.save_pretrained(out / "base")


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


def make_teacher(out: Path, scale: float) -> None:
    """Stage C: an adapter on the base in `out/base`; writes `out/teacher`."""
    torch.set_num_threads(TEACHER_THREADS)
    base = load_base(replace(get_profile("cpu"), model_id=str(out / "base")))
    policy = add_adapter(base, SEED, base.processor.tokenizer.convert_tokens_to_ids(list(TAGS)))
    common = [s for s in all_species() if s.common for _ in range(TEACHER_PICTURES)]
    images = [draw(s, i % TEACHER_PICTURES, DRAW_SEED) for i, s in enumerate(common)]
    cache = VisionCache(policy.model, policy.processor, images)
    rows = teacher_rows(np.random.default_rng(SEED), max(32, int(scale * TEACHER_ROWS)), cache, common)
    train_sft(policy, rows, TEACHER, SEED)
    policy.save(out / "teacher")


def main() -> None:
    """Command line: everything, or one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="default: the package's own assets")
    parser.add_argument("--only", choices=("base", "teacher"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of pictures and steps, for a trial")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only != "teacher":
        make_base(args.out, args.scale)
        figures = measure_base(load_base(replace(get_profile("cpu"), model_id=str(args.out / "base"))))
        (args.out / "base.json").write_text(json.dumps(figures, indent=1) + "\n")
    if args.only != "base":
        make_teacher(args.out, args.scale)


if __name__ == "__main__":
    main()
