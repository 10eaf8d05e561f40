"""The real size on a GPU: the 3B with random weights in NF4, TAPO steps (or TRL's), to `results/real_size.csv`.

    python -m tests.benchmarks.real_size h100 --new-tokens 400 --image-tokens 256 [--trl]
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from finer1_lite.birds.model import SPECIAL
from finer1_lite.config import PROFILES, Profile, get_profile, versions
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy, load_processor
from finer1_lite.prompts import QUESTIONS
from finer1_lite.tapo import Tapo

from .measure import RESULTS, add_rows
from .qwen import qwen_config
from .setting import Step, TheirSide, fixed_length, our_reward, sampler_of

PEAK_TFLOPS = {
    "Tesla T4": 65, "NVIDIA L4": 121, "NVIDIA A100": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756,
    "NVIDIA H200": 989,
}  # fmt: skip


def save_random(config, folder: Path, device: str) -> None:
    """A model of `config` with random weights in bfloat16, with the tiny tokenizer and its ids."""
    processor = load_processor(PROFILES["cpu"])
    ids = {t: processor.tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    config.text_config.eos_token_id, config.text_config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}
    processor.save_pretrained(folder)


def pictures(tokens: int, count: int) -> list[Image.Image]:
    """Noise of a size that makes `tokens` image tokens, as square as 28 x 28 pixels a token allow."""
    rows = max(n for n in range(1, int(tokens**0.5) + 1) if tokens % n == 0)
    shape, rng = (rows * 28, tokens // rows * 28, 3), np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def make_loop(profile: Profile, image_tokens: int) -> Tapo:
    """TAPO on noise of eight classes, with the profile's loss; every group is kept."""
    policy = load_policy(profile)
    labels = [name for name in "abcdefgh" for _ in range(2)]
    cache = VisionCache(policy.model, policy.processor, pictures(image_tokens, len(labels)))
    loss = replace(profile.loss, filter_rule="none")
    return Tapo(policy, cache, labels, sampler_of(labels, 0), profile.tapo, loss, 0, our_reward)


def now() -> float:
    """Seconds, after everything that was asked of a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def one_step(loop: Tapo) -> dict[str, float]:
    start = now()
    with fixed_length():
        groups, _ = loop.collect()
    sampled = now()
    loop.update(groups)
    return {"rollout_s": sampled - start, "update_s": now() - sampled}


def bound(profile: Profile, config, image_tokens: int, device_name: str) -> float:
    """Seconds that the arithmetic of a step takes at the card's peak: prompts, decoding, scoring; NaN if unknown.

    Decoding is taken at one forward pass for its tokens, training at three, and the negative at three more, or at one
    where no gradient goes through it; the vision tower not at all, because features are kept. config: the model's.
    """
    text = config.text_config
    hidden, heads = text.hidden_size, 2 * text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    linears = text.num_hidden_layers * hidden * (2 * hidden + heads + 3 * text.intermediate_size)  # of all layers
    token, logits = 2e-9 * linears, 2e-9 * hidden * text.vocab_size
    known = [p for name, p in PEAK_TFLOPS.items() if f"{device_name}-".startswith((f"{name} ", f"{name}-"))]
    peak = known[0] if known else np.nan
    c = profile.tapo
    rows, sides = c.questions * (c.num_anchor + c.num_positive), c.questions * (2 if c.num_positive else 1)
    prompts, completions = sides * (image_tokens + 60), rows * profile.max_new_tokens
    passes = 1 + 3 + (3 if profile.loss.negative_grad else 1)
    return (token * (prompts + completions) + logits * completions) * passes / peak / 1000


def trl_steps(profile: Profile, image_tokens: int, steps: int) -> list[float]:
    policy, c = load_policy(profile), profile.tapo
    n = c.num_anchor + c.num_positive
    step = Step(c.questions, n, profile.max_new_tokens, micro_batch=min(c.micro_batch, c.questions * n))
    asked = [[{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}] for i in range(c.questions * steps)]
    rows = Dataset.from_dict({"prompt": asked, "image": pictures(image_tokens, len(asked))})
    side = TheirSide(
        step, steps, policy, rows, use_cpu=profile.device == "cpu", bf16=profile.dtype == "bfloat16",
        fp16=profile.dtype == "float16", gradient_checkpointing=profile.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    clock = []

    @contextmanager
    def timed():
        start = now()
        yield
        clock.append(now() - start)

    side.take_all([timed() for _ in range(steps)])
    return clock


def measure(profile: Profile, image_tokens: int, steps: int, warm_up: int = 2, trl: bool = False) -> dict:
    name, c = torch.cuda.get_device_name() if profile.device == "cuda" else "cpu", profile.tapo
    if profile.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if trl:
        times, least = pd.Series({"rollout_s": np.nan, "update_s": np.nan}), np.nan
        total = float(np.median(trl_steps(profile, image_tokens, warm_up + steps)[warm_up:]))
    else:
        loop = make_loop(profile, image_tokens)
        loop.cache.get(range(len(loop.labels)))  # a run encodes each image once
        times = pd.DataFrame([one_step(loop) for _ in range(warm_up + steps)])[warm_up:].median()
        total, least = float(times.sum()), bound(profile, loop.policy.model.config, image_tokens, name)
    made = c.questions * (c.num_anchor + c.num_positive) * profile.max_new_tokens
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())  # 0 without a GPU
    return {
        "side": "trl" if trl else "tapo", "profile": profile.name, "card": name, "image_tokens": image_tokens,
        "new_tokens": profile.max_new_tokens, "step_s": total, **times,
        "decode_ms": 1000 * times.rollout_s / profile.max_new_tokens, "tokens_per_s": made / total,
        "allocated_gib": peaks[0] / 2**30, "reserved_gib": peaks[1] / 2**30, "bound_s": least,
        "over_bound": total / least,
    } | versions()  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", choices=[n for n in PROFILES if n != "cpu"])
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--trl", action="store_true", help="TRL's trainer instead of ours")
    parser.add_argument("--card-gib", type=float, help="use no more of the card's memory than this")
    args = parser.parse_args()
    profile = get_profile(args.profile)
    if args.card_gib:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(args.card_gib * 2**30 / whole)
    with tempfile.TemporaryDirectory() as folder:
        save_random(qwen_config("7B" if "7B" in profile.model_id else "3B"), Path(folder), "cuda")
        torch.cuda.empty_cache()
        pixels = args.image_tokens * 28 * 28
        profile = replace(profile, model_id=folder, max_new_tokens=args.new_tokens, max_pixels=pixels)
        row = measure(profile, args.image_tokens, args.steps, trl=args.trl)
    add_rows(RESULTS / "real_size.csv", [row])
    print(pd.Series(row).to_string())
