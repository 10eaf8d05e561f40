"""The 3B at its real size on a CPU: the bytes of each phase's tensors, to `results/real_memory.csv`.

    python -m tests.benchmarks.real_memory t4 --image-tokens 1280 --new-tokens 400    # 18 GiB of memory, 1.5 hours
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from bitsandbytes.nn import Linear4bit

from finer1_lite.config import PROFILES, Profile
from finer1_lite.policy import rollout as rollout_module
from finer1_lite.policy.inputs import PATCHES_AT_ONCE, answer_ids
from finer1_lite.policy.load import Policy
from finer1_lite.sft import answer_loss

from .measure import RESULTS, PeakMemory, add_rows, facts
from .qwen import qwen_config
from .real_size import make_loop, save_random
from .setting import fixed_length


def standing(policy: Policy) -> int:
    model, moments = policy.model, sum(2 * p.nbytes for p in policy.trainable())
    tensors = [*model.parameters(), *model.buffers()]
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            tensors += [state.absmax, state.code, state.state2.absmax, state.state2.code]
    return moments + sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(profile: Profile, tokens: int, chain: int = 1400, path: Path = RESULTS / "real_memory.csv") -> None:
    """A row for each phase of `profile`, whose model_id is a folder, its images and SFT answers of so many tokens."""
    loop = make_loop(profile, tokens)
    policy, visual, read = loop.policy, loop.policy.backbone.visual, rollout_module.read_prompts
    memory, start = PeakMemory(), 0.0
    if profile.name == "t4":
        visual.float()
    lasting = standing(policy)

    def note(phase: str) -> None:
        what = {"profile": profile.name, "image_tokens": tokens, "new_tokens": profile.max_new_tokens, "phase": phase}
        figures = {"counted_gib": (lasting + memory.peak) / 2**30, "cpu_seconds": time.perf_counter() - start}
        add_rows(path, [what | figures | facts(0)], replaces=list(what))
        print(f"{phase}: {figures['counted_gib']:.2f} GiB counted, {figures['cpu_seconds']:.0f} s", flush=True)

    def run(phase: str, work):
        nonlocal memory, start
        memory, start = PeakMemory(), time.perf_counter()
        with memory:
            made = work()
        note(phase)
        return made

    def watched(*args):
        made = read(*args)
        note("prefill")
        return made

    run("encode", lambda: loop.cache.get(range(min(max(1, PATCHES_AT_ONCE // (4 * tokens)), len(loop.labels)))))
    visual.to(torch.bfloat16)
    loop.cache.get(range(len(loop.labels)))
    with fixed_length(), patch.object(rollout_module, "read_prompts", watched):
        groups, _ = run("decode", loop.collect)
    run("update", lambda: loop.update(groups[:1]))

    text = " bird" * ((chain - 1) // (len(answer_ids(policy.processor, " bird")) - 1))
    n = max(1, min(profile.sft.micro_batch, profile.sft.micro_tokens // (tokens + 100 + chain)))  # 100 of a prompt
    rows = [(groups[0].question, seen, text) for seen in loop.cache.get(range(n))]
    policy.scoring_mode()
    run("SFT", lambda: answer_loss(policy, rows)[0].backward())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", choices=["t4", "l4"])
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_random(qwen_config("3B"), Path(folder), "cpu")
        measure(replace(
            PROFILES[args.profile], device="cpu", dtype="bfloat16", model_id=folder, max_new_tokens=args.new_tokens,
            max_pixels=args.image_tokens * 28 * 28,
        ), args.image_tokens)  # fmt: skip
