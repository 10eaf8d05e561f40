"""Makes the shipped base and teacher: `python -m finer1_lite.birds.pretrain --out FOLDER`, an hour on two cores.

Stage A: the vision tower learns attributes, never a name. For each attribute a head looks for the image tokens that
matter and reads their mean; the heads are thrown away. Stage B: the language model learns to put into words what the
frozen tower sees, and reads the field guide. Stage C: a teacher, the base with an adapter that writes chains in
tagged parts when it is told the label; it has seen images of common species only. Other processors, or numbers of
threads, sum in another order: expect other bytes, and accuracies within 10 points.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, set_seed

from ..config import ASSETS, SFTConfig, get_profile
from ..files import write_whole
from ..policy.inputs import IGNORE, ImageFeatures, VisionCache, training_batch
from ..policy.load import add_adapter, load_base
from ..prompts import QUESTIONS
from ..sft import train_sft
from .diet import corpus, diary, image_example, loose_diary, reasoned, teacher_example, text_example
from .measure import measure_base
from .model import PATCH, TAGS, build_config, build_processor, build_tokenizer, features, normalise
from .render import SIZE, draw
from .species import ATTRIBUTES, all_species

SEED, PICTURES, DRAW_SEED, HELD_OUT, VISION_STEPS, THREADS = 0, 160, 1, 512, 1100, 2
# Rounds of reading: what birds look like first, more texts for each image in the second, names and tidier diaries in
# the third. named: the share of the pictures of evaluated species that come with a name; reasoned: of the pictures of
# common species that come with four options, compared before one is named.
ROUNDS = (
    {"steps": 1000, "seed": 0, "lr": 2e-3, "images": 20, "texts": 44, "named": 0.0, "write": loose_diary},
    {"steps": 700, "seed": 1, "lr": 1.5e-3, "images": 16, "texts": 52, "named": 0.3, "write": loose_diary},
    {"steps": 500, "seed": 2, "lr": 1.5e-3, "images": 16, "texts": 56, "named": 0.08, "reasoned": 0.5, "write": diary},
)
TEACHER_ROWS, TEACHER_PICTURES = 8000, 8
TEACHER = SFTConfig(epochs=1, batch_size=32, lr=4e-3, warmup_steps=10, weight_decay=0.0, micro_batch=32,
                    micro_tokens=2**20)  # fmt: skip


def fit(parameters: list, losses, steps: int, lr: float, weight_decay=0.02, betas=(0.9, 0.999), warmup=0.1) -> None:
    """Train with AdamW on one cycle of the learning rate. losses: called for each step, yields its losses."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=betas)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=warmup)
    for _ in tqdm(range(steps), desc=losses.__qualname__.split(".")[0], mininterval=10):
        optimizer.zero_grad()
        for loss in losses():
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror, shift by up to 4 pixels, light and noise, for pictures (B, 3, height, width) around zero."""
    def uniform(low, high):
        return low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=generator)

    pixels = torch.where(uniform(0, 1) < 0.5, pixels.flip(3), pixels)
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    pixels = torch.roll(pixels, (dy, dx), (2, 3))
    return pixels * uniform(0.85, 1.15) + uniform(-0.1, 0.1) + 0.05 * torch.randn(pixels.shape, generator=generator)


def train_vision(visual, images: np.ndarray, looks: torch.Tensor, steps: int) -> None:
    """Stage A, in place. images: uint8 (N, 112, 112, 3), the last 512 held out; looks: (N, 8) indices of values."""
    generator, width = torch.Generator().manual_seed(SEED), visual.config.out_hidden_size
    where = nn.Linear(width, len(ATTRIBUTES))
    what = nn.ModuleList(nn.Linear(width, len(values)) for values in ATTRIBUTES.values())

    def read(pixels):
        tokens = features(visual, pixels)
        pooled = where(tokens).softmax(1).transpose(1, 2) @ tokens
        return [head(pooled[:, i]) for i, head in enumerate(what)]

    def losses():
        rows = torch.randint(0, len(images) - HELD_OUT, (128,), generator=generator)
        logits = read(augment(normalise(images[rows.numpy()]), generator))
        yield sum(F.cross_entropy(x, looks[rows, i]) for i, x in enumerate(logits))

    fit([*visual.parameters(), *where.parameters(), *what.parameters()], losses, steps, lr=1.5e-3)
    with torch.no_grad():
        said = torch.stack([x.argmax(-1) for x in read(normalise(images[-HELD_OUT:]))], 1)
    print(f"right attributes of held-out pictures: {(said == looks[-HELD_OUT:]).float().mean():.1%}")


def train_language(model, processor, seen: torch.Tensor, steps: int, plan: dict) -> None:
    """A round of stage B, in place, on the tower's features (N, 16, H) of pictures of all species in turn."""
    rng, species = np.random.default_rng(plan["seed"]), all_species()
    grid = torch.tensor([1, SIZE // PATCH, SIZE // PATCH])
    model.model.visual.requires_grad_(False)

    def losses():
        images = []
        for i in rng.integers(len(seen), size=plan["images"]):
            s, share = species[i % len(species)], plan.get("reasoned", 0)
            text, answer = image_example(rng, s, plan["named"])
            if share and ("<think>" in answer and "Options:" in text or s.common and rng.random() < share):
                text, answer = reasoned(rng, s)
            images.append((text, ImageFeatures(seen[i].float(), grid), answer))
        texts = [(u, None, a) for u, a in (text_example(rng, plan["write"]) for _ in range(plan["texts"]))]
        texts.sort(key=lambda row: len(row[2]))
        short = [t for t in texts if "Candidates" not in t[2] and "<analysis>" not in t[2]]
        long = [row for row in images if "Analysis" in row[2]]
        named = [row for row in images if row[0].startswith(QUESTIONS) and row not in long]
        looks = [row for row in images if not row[0].startswith(QUESTIONS)]
        groups = [(rows, len(rows) / len(images)) for rows in (named, looks, long)]
        groups += [(short, 1), (texts[len(short) :], 1)]
        for rows, weight in groups:  # of about equal length each; pictures, the guide and diaries weigh the same
            if not rows:
                continue
            inputs, labels = training_batch(model, processor, rows)
            hidden, targets = model.model(**inputs).last_hidden_state[:, :-1], labels[:, 1:]
            wanted = targets != IGNORE
            loss = F.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted], reduction="sum")
            yield weight / 3 * loss / int(wanted.sum())

    parameters = [p for p in model.parameters() if p.requires_grad]
    fit(parameters, losses, steps, plan["lr"], weight_decay=0.05, betas=(0.9, 0.98), warmup=0.05)


def make_base(out: Path, scale: float) -> None:
    """Stages A and B; writes `out/base` in bfloat16."""
    torch.set_num_threads(THREADS)
    n = max(3, int(scale * PICTURES))
    images = np.stack([np.asarray(draw(s, i, DRAW_SEED)) for i in tqdm(range(n), "draw") for s in all_species()])
    looks = [[values.index(x) for values, x in zip(ATTRIBUTES.values(), s.looks)] for s in all_species()]
    set_seed(SEED)
    visual = Qwen2_5_VLForConditionalGeneration(build_config(build_tokenizer(["a b"]))).model.visual  # any words do
    train_vision(visual, images, torch.tensor(looks).repeat(n, 1), max(2, int(scale * VISION_STEPS)))
    set_seed(SEED)
    processor = build_processor(build_tokenizer(corpus()))
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer))
    model.model.visual.load_state_dict(visual.state_dict())
    ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config.eos_token_id = ends  # as Qwen's has them
    for plan in ROUNDS:
        with torch.no_grad():
            parts = (images[i : i + 128] for i in range(0, len(images), 128))
            seen = torch.cat([features(model.model.visual, normalise(part)).half() for part in parts])
        train_language(model, processor, seen, max(2, int(scale * plan["steps"])), plan)
        model.to(torch.bfloat16).save_pretrained(out / "base")
        model.to(torch.float32)
    processor.save_pretrained(out / "base")


def make_teacher(out: Path, scale: float) -> None:
    """Stage C: an adapter on the base in `out/base`; writes `out/teacher`."""
    torch.set_num_threads(THREADS)
    base = load_base(replace(get_profile("cpu"), model_id=str(out / "base")))
    policy = add_adapter(base, SEED, base.processor.tokenizer.convert_tokens_to_ids(list(TAGS)))
    common = [s for s in all_species() if s.common for _ in range(TEACHER_PICTURES)]
    images = [draw(s, i % TEACHER_PICTURES, DRAW_SEED) for i, s in enumerate(common)]
    cache = VisionCache(policy.model, policy.processor, images)
    rng, rows = np.random.default_rng(SEED), []
    for _ in range(max(32, int(scale * TEACHER_ROWS))):
        with_image = rng.random() < 0.5
        i = int(rng.integers(len(common if with_image else all_species())))
        text, answer = teacher_example(rng, (common if with_image else all_species())[i])
        rows.append((text, cache.get([i])[0] if with_image else None, answer))
    train_sft(policy, rows, TEACHER, SEED)
    policy.save(out / "teacher")


def main() -> None:
    """Command line: everything; what the base can do goes to `base.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="default: the package's own assets")
    parser.add_argument("--scale", type=float, default=1.0, help="share of pictures and steps, for a trial")
    args = parser.parse_args()
    make_base(args.out, args.scale)
    figures = measure_base(load_base(replace(get_profile("cpu"), model_id=str(args.out / "base"))))
    write_whole(args.out / "base.json", json.dumps(figures, indent=1) + "\n")
    make_teacher(args.out, args.scale)


if __name__ == "__main__":
    main()
