"""The 3B at its real size on a CPU: the tensors of each phase counted as they live and die, beside the estimate.

    python -m tests.benchmarks.real_memory t4 --image-tokens 1280 --new-tokens 400

Qwen2.5-VL-3B from its configuration with random weights, saved, loaded in NF4 by the package's own `load_policy`; then
the phases of both stages by the package's own code at the profile's own sizes: all rollouts of a step to their full
length, the update of one question (as much as a micro-batch holds), SFT on the longest chains. At the end the adapter
is saved and loaded into the base again.

A tensor has as many bytes here as on a GPU. What is not seen is the allocator's share and CUDA itself. Everything is
in bfloat16; a T4 has fp16, of the same width, and its tower is in fp32, here too. Random weights say nothing about
accuracy, and the seconds nothing about a GPU.

It takes 18 GiB of memory, 10 GiB of disk, and an hour and a half on two cores that know bfloat16. A row for each phase goes
to `tests/benchmarks/results/real_memory.csv` as soon as it is measured.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from bitsandbytes.nn import Linear4bit
from finer1_lite.memory import GIB, Plan, encode, generate, image_tokens, prompt_tokens, train, update_passes

from finer1_lite.config import PROFILES, Profile
from finer1_lite.policy import rollout as rollout_module
from finer1_lite.policy.inputs import PATCHES_AT_ONCE, answer_ids
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.policy.rollout import Rollouts
from finer1_lite.sft import answer_loss
from finer1_lite.tapo import Group, Tapo
from tests.benchmarks.qwen import qwen_config

from .measure import PeakMemory, facts
from .real_size import make_loop, save_random
from .setting import fixed_length

RESULTS = Path(__file__).parent / "results" / "real_memory.csv"


def standing(loop: Tapo, tower: bool) -> int:
    """Bytes that lie in memory for a whole phase: the model, with its tower or without, and Adam's moments."""
    model = loop.policy.model
    tensors = [t for n, t in [*model.named_parameters(), *model.named_buffers()] if tower or ".visual." not in n]
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            tensors += [state.absmax, state.code, state.state2.absmax, state.state2.code]
    tensors += [v for s in loop.stepper.optimizer.state.values() for v in s.values() if v.dim()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def with_moments(loop: Tapo) -> Tapo:
    """As after a first step: Adam's moments exist. Their step is of size 0."""
    optimizer = loop.stepper.optimizer
    rate, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    for p in loop.stepper.parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = rate
    return loop


class Phases:
    """Runs phases one by one; a row for each goes to `path` at once."""

    def __init__(self, loop: Tapo, new_tokens: int, path: Path):
        self.loop, self.path, self.new_tokens = loop, path, new_tokens

    def run(self, name: str, work: Callable, estimated: dict[str, float], tower: bool = False):
        """`work()`, counted. estimated: what `finer1_lite.memory` says of it, item by item."""
        start = time.perf_counter()
        with PeakMemory() as watch:
            made = work()
        self.note(name, watch.peak, time.perf_counter() - start, estimated, tower)
        return made

    def note(self, name: str, peak: int, seconds: float, estimated: dict[str, float], tower: bool = False) -> None:
        """One row."""
        profile, alive = self.loop.policy.profile, standing(self.loop, tower) + peak
        row = {
            "profile": profile.name, "image_tokens": image_tokens(profile, self.loop.policy.model.config),
            "new_tokens": self.new_tokens, "phase": name, "counted_gib": alive / GIB,
            "estimated_gib": sum(estimated.values()) / GIB, "estimated_over_counted": sum(estimated.values()) / alive,
            "cpu_seconds": seconds,
        } | facts(0)  # fmt: skip
        old = pd.read_csv(self.path).to_dict("records") if self.path.exists() else []
        same = ("profile", "image_tokens", "new_tokens", "phase")
        old = [r for r in old if any(r[key] != row[key] for key in same)]
        pd.DataFrame(old + [row]).to_csv(self.path, index=False, float_format="%.6g")
        print(f"{name}: {row['counted_gib']:.2f} GiB counted, {row['estimated_gib']:.2f} estimated, {seconds:.0f} s", flush=True)


def chain_of(policy: Policy, tokens: int) -> str:
    """A text that makes an answer of `tokens` tokens, its end included."""
    word = " bird"
    text = word * (tokens // len(policy.processor.tokenizer(word)["input_ids"]))
    while len(answer_ids(policy.processor, text)) > tokens:
        text = text[: -len(word)]
    return text


def made_up(loop: Tapo) -> Group:
    """A question's group of random completions of full length."""
    c, length, rng = loop.config, loop.policy.profile.max_new_tokens, torch.Generator().manual_seed(0)
    sides = []
    for n in (c.num_anchor, c.num_positive):
        ids = torch.randint(20, 1000, (n, length), generator=rng)
        sides.append(Rollouts(ids, torch.ones_like(ids), [f"{i}" * (1 + i % 2) for i in range(n)]))
    return loop._group(loop.sampler.next(1)[0], loop.ask(loop.rng), tuple(sides))


def roll_out(phases: Phases) -> Group:
    """All rollouts of a step; two rows. Returns one group."""
    loop, profile = phases.loop, phases.loop.policy.profile
    c, read = profile.tapo, rollout_module.read_prompts
    expected, prefill = generate(profile, loop.policy.model.config, 2 * c.questions, c.num_anchor), {}
    with PeakMemory() as watch, fixed_length():

        def watched(*args):
            made = read(*args)
            prefill.update(peak=watch.peak, seconds=time.perf_counter() - start)
            return made

        start = time.perf_counter()
        with patch.object(rollout_module, "read_prompts", watched):
            groups, _ = loop.collect()
    seconds = time.perf_counter() - start
    phases.note("prefill", prefill["peak"], prefill["seconds"], expected["prefill"])
    phases.note("decode", watch.peak, seconds - prefill["seconds"], expected["decode"])
    return groups[0]


def measure(profile: Profile, tokens: int, rollouts: bool = True, path: Path = RESULTS) -> int:
    """All phases of `profile`, whose model_id is a folder; or all but the rollouts.

    Returns how many matrices of the adapter came back the same from the disk.
    """
    loop = with_moments(make_loop(profile, tokens))
    policy, config, plan = loop.policy, loop.policy.model.config, Plan(**vars(profile))
    phases, visual = Phases(loop, profile.max_new_tokens, path), policy.backbone.visual
    half = profile.name == "t4"
    if half:
        visual.float()
    at_once = min(max(1, PATCHES_AT_ONCE // (4 * tokens)), len(loop.labels))  # images
    phases.run(
        "encode", lambda: loop.cache.get(range(at_once)),
        encode(replace(plan, dtype="float16" if half else plan.dtype), config), tower=True,
    )  # fmt: skip
    visual.to(torch.bfloat16)
    loop.cache.get(range(len(loop.labels)))

    group, one = roll_out(phases) if rollouts else made_up(loop), replace(plan, tapo=replace(plan.tapo, questions=1))
    phases.run(
        "update", lambda: loop.update([group]),
        train(plan, config, *update_passes(one, config, profile.max_new_tokens)),
    )  # fmt: skip

    length = prompt_tokens(plan, config) + plan.chain_tokens
    n = max(1, min(plan.sft.micro_batch, plan.sft.micro_tokens // length))
    answer, asked = chain_of(policy, plan.chain_tokens), group.question
    rows = [(asked, seen, answer) for seen in loop.cache.get(range(n))]
    policy.scoring_mode()
    phases.run("SFT", lambda: answer_loss(policy, rows)[0].backward(), train(plan, config, [(n, length)], n * plan.chain_tokens))

    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        again = dict(load_policy(profile, folder).model.named_parameters())
    kept = [torch.equal(p, again[name]) for name, p in policy.model.named_parameters() if "lora" in name]
    assert all(kept), "an adapter that was saved and loaded is another one"
    print(f"adapter: {len(kept)} matrices saved and loaded, all the same", flush=True)
    return len(kept)


def main() -> None:
    """Command line: one profile at one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", choices=["t4", "l4"])
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--no-rollouts", action="store_true", help="leave out what takes longest; the update is of random texts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_random(qwen_config("3B"), Path(folder), "cpu")
        measure(replace(
            PROFILES[args.profile], device="cpu", dtype="bfloat16", model_id=folder, max_new_tokens=args.new_tokens,
            max_pixels=args.image_tokens * 28 * 28,
        ), args.image_tokens, not args.no_rollouts)  # fmt: skip


if __name__ == "__main__":
    main()
