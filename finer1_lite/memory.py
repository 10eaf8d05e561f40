"""How much GPU memory a profile needs, phase by phase, before the hours are spent.

`python -m finer1_lite.memory t4 --image-tokens 1280 --new-tokens 400` prints the estimate for
Qwen2.5-VL-3B and, where it does not fit, what to lower. It needs no GPU and no download.

Counted are the tensors that are alive at the worst moment of each phase. The comments name them; the
tests compare the sums with what is alive in the real loops of a small model, in 16 bits on a CPU. Not
counted: a second model beside the policy, and scratch memory inside a kernel.
"""

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from operator import attrgetter

import torch

from .config import PROFILES, Profile
from .policy.inputs import PATCHES_AT_ONCE
from .policy.prefix import ROOM
from .policy.qwen import qwen_config
from .steps import cut_groups

GIB = 2**30
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight: 4 bits, scales of 64, scales of these
TEXT_TOKENS = 100  # of a prompt beside its image: chat template, question, instruction, four options
CHUNK = 256  # rows of logits that `chunked_logps` makes at once
OVERHEAD = 0.2  # the allocator's blocks are larger than the tensors in them, and free ones lie between others
CONTEXT = 0.35 * GIB  # outside of PyTorch's memory: CUDA itself, the loaded kernels

# GiB that CUDA reports for the smallest card that a profile is meant for; a little less than its name says.
CARDS = {"t4": 14.56, "l4": 22.0, "a100": 39.4, "h100": 79.1}

# What to set (None: to half, and so on), in this order. First what costs time only: transfers, slower
# decoding, another forward pass, smaller batches. Then what changes the result.
LEVERS = (
    ("offload_tower", True), ("dense_rollout", False), ("checkpointing", True),
    ("tapo.micro_tokens", None), ("sft.micro_tokens", None), ("rollout_batch", None), ("eval_batch", None),
    ("max_new_tokens", None), ("max_pixels", None),
)  # fmt: skip

Items = dict[str, float]  # bytes by what takes them


@dataclass(frozen=True)
class Plan(Profile):
    """A profile, and a size that lies elsewhere."""

    chain_tokens: int = 1400  # of the longest SFT answer; the paper's chains have 826 words on average


def linear_shapes(config) -> list[tuple[int, int]]:
    """(in, out) of the seven linears of one layer of the language model."""
    text = config.text_config
    hidden, mlp, head = text.hidden_size, text.intermediate_size, text.hidden_size // text.num_attention_heads
    kv = (hidden, text.num_key_value_heads * head)
    return [(hidden, hidden), kv, kv, (hidden, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden)]


def sizes(config, lora_r: int) -> dict[str, int]:
    """Parameters by part. linears, other (norms, biases): of the language model; head: 0 where it is tied."""
    text, vision, shapes = config.text_config, config.vision_config, linear_shapes(config)
    layers, hidden, biases = text.num_hidden_layers, text.hidden_size, sum(out for _, out in shapes[:3])
    width, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    mlp = 3 * width * vision.intermediate_size + 2 * vision.intermediate_size + width
    block = 4 * width * (width + 1) + mlp + 2 * width  # attention, MLP, norms
    merger = width + merged * (merged + 1) + vision.out_hidden_size * (merged + 1)
    return {
        "linears": layers * sum(a * b for a, b in shapes), "embedding": text.vocab_size * hidden,
        "head": 0 if config.tie_word_embeddings else text.vocab_size * hidden,
        "other": layers * (biases + 2 * hidden) + hidden,
        "vision": patch_values(config) * width + vision.depth * block + merger,
        "lora": lora_r * layers * sum(a + b for a, b in shapes),
    }  # fmt: skip


def patch_values(config) -> int:
    """Numbers in one image patch."""
    vision = config.vision_config
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


def image_tokens(profile: Profile, config) -> int:
    """Tokens of the largest image."""
    vision = config.vision_config
    return profile.max_pixels // (vision.patch_size * vision.spatial_merge_size) ** 2


def prompt_tokens(profile: Profile, config) -> int:
    """Tokens of a prompt with the largest image."""
    return image_tokens(profile, config) + TEXT_TOKENS


def width_of(profile: Profile, tower: bool = False) -> int:
    """Bytes of a number in the model; in the tower 4 where the model has fp16, which overflows there."""
    return 4 if tower and profile.dtype == "float16" else getattr(torch, profile.dtype).itemsize


def weights(profile: Profile, config, tower: bool, gradients: bool = False) -> Items:
    """What lies on the card for the whole phase. Adam's moments stay between updates, gradients do not."""
    n, item = sizes(config, profile.lora_r), width_of(profile)
    made = {
        "language model": n["linears"] * (NF4 if profile.quantize else item) + n["other"] * item,
        "embedding, head": (n["embedding"] + n["head"]) * item, "LoRA": n["lora"] * 4, "Adam": n["lora"] * 8,
    }  # fmt: skip
    if gradients:
        made["gradients of LoRA"] = n["lora"] * 4
    if tower:
        made["vision tower"] = n["vision"] * width_of(profile, tower=True)
    return made


def matrix(profile: Profile, config) -> Items:
    """The largest NF4 linear, unpacked for its product."""
    largest = max(a * b for a, b in linear_shapes(config))
    return {"a matrix": largest * width_of(profile) if profile.quantize else 0}


def encode(plan: Plan, config) -> Items:
    """The vision tower on as many images as it reads at once, or on one larger than that."""
    vision, item = config.vision_config, width_of(plan, tower=True)
    patches = max(PATCHES_AT_ONCE, plan.max_pixels // vision.patch_size**2)
    # Queries and keys in fp32, turned and half turned; q, k, v and two inputs; the angles. Or, in the MLP:
    # input, its norm, residual; gate, up, product.
    rotary = (24 + 5 * item) * vision.hidden_size + 8 * vision.hidden_size // vision.num_heads
    mlp = 3 * item * (vision.hidden_size + vision.intermediate_size)
    return weights(plan, config, tower=True) | {
        "pixels": patches * patch_values(config) * item, "a layer": patches * max(rotary, mlp),
    }  # fmt: skip


def generate(profile: Profile, config, prompts: int, num_generations: int) -> dict[str, Items]:
    """Reading `prompts` prompts, and the last decoding step of `num_generations` completions of each."""
    text, item = config.text_config, width_of(profile)
    n, tokens, rows = sizes(config, profile.lora_r), prompt_tokens(profile, config), prompts * num_generations
    always = weights(profile, config, not profile.offload_tower) | matrix(profile, config)
    dense = profile.dense_rollout
    always["LoRA, 16 bits"] = n["lora"] * item
    if dense:
        always["plain matrices"] = n["linears"] * item
    cached = 2 * text.num_hidden_layers * linear_shapes(config)[1][1] * item  # keys and values of a token
    # Of a layer: act(gate), up, its adapter, their sum; the hidden state in a few forms.
    layer = item * (4 * text.intermediate_size + 6 * text.hidden_size)
    whole = rows * (tokens + profile.max_new_tokens + ROOM) * cached
    prefill = {
        "a layer": prompts * tokens * layer, "masks": prompts * tokens**2 * (1 + item),
        "KV cache": prompts * tokens * cached,
    }  # fmt: skip
    # The cache grows, ROOM tokens at a time, by copying one layer's keys, then its values. Sampling: logits; then
    # in fp32 the probabilities, their sums and those more likely than the drawn one, with a mask.
    decode = {
        "KV cache": whole, "KV copy": whole / (2 * text.num_hidden_layers),
        "logits": rows * text.vocab_size * (item + 13),
    }  # fmt: skip
    return {"prefill": always | prefill, "decode": always | decode}


def train(profile: Profile, config, passes: list[tuple[float, int]], answers: float) -> Items:
    """Scoring with gradients and the backward pass.

    passes: (rows, length), padding included, of the forward passes whose graphs wait for one backward pass.
    answers: how many of all their tokens get a log-prob.
    """
    text, item, shapes = config.text_config, width_of(profile), linear_shapes(config)
    layers, hidden, mlp = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    tokens, squares = [[rows * length**power for rows, length in passes] for power in (1, 2)]
    # A layer keeps, for each token: the fp32 inputs of two norms, and what comes out of them; gate, act(gate), up and
    # their product; queries, repeated keys and values, output and its copy; what lies between A and B. On the way back
    # come a gradient of the MLP's width, and some of the hidden state's.
    kept = 8 * hidden + item * (4 * mlp + 7 * hidden)
    kept += item * len(shapes) * profile.lora_r + 4 * text.num_attention_heads
    back = item * mlp + 12 * hidden
    if profile.checkpointing:  # one layer at a time is made again
        stored, layer = sum(tokens) * layers * item * hidden, max(tokens) * (kept + back)
    else:  # a prompt's keys and values are there once more for its completions
        stored, layer = sum(tokens) * layers * (kept + 2 * item * hidden), max(tokens) * back
    # One mask for each pass, and one in the model's precision for each layer that is alive.
    masks = sum(squares) + item * (max(squares) if profile.checkpointing else layers * sum(squares))
    logits = 16 * CHUNK * text.vocab_size  # fp32: logits, and three on the way to their gradient
    return weights(profile, config, not profile.offload_tower, gradients=True) | matrix(profile, config) | {
        "inputs of layers" if profile.checkpointing else "activations": stored,
        "last hidden states": (sum(tokens) * (4 + item) + answers * item) * hidden,
        "a layer" if layer > logits else "logits": max(layer, logits), "masks": masks,
    }  # fmt: skip


def update_passes(profile: Profile, config, new: int) -> tuple[list[tuple[int, int]], int]:
    """`passes` and `answers` of an update's heaviest micro-batch, if every completion has `new` tokens."""
    tapo, loss = profile.tapo, profile.loss
    image, prompt = image_tokens(profile, config), prompt_tokens(profile, config)
    group = tapo.num_anchor + tapo.num_positive
    own = [(i // group, i % group >= tapo.num_anchor) for i in range(tapo.questions * group)]
    costs = [new + image * (i == 0 or own[i] != own[i - 1]) for i in range(len(own))]  # as `Rows.costs`

    def packed(prompts: list) -> tuple[int, int]:
        shared = Counter(prompts)
        return len(shared), prompt + new * max(shared.values())

    found = []
    for part in cut_groups(costs, group, tapo.micro_tokens, tapo.micro_batch):
        sources = own[part.start : part.stop]
        asked = [question for question, _ in sources]
        passes = [packed(asked if loss.update_image == "anchor" else sources)]
        if (loss.gamma or loss.eta2) and loss.negative_grad:
            passes.append(packed(asked))
        found.append((passes, new * len(sources) * len(passes)))
    return max(found, key=lambda made: sum(rows * length for rows, length in made[0]))


def estimate(plan: Plan, config) -> dict[str, Items]:
    """Phase -> item -> bytes, for a model in 16 bits. config: its Qwen2_5_VLConfig."""
    n, sft = max(plan.tapo.num_anchor, plan.tapo.num_positive), plan.sft
    length = prompt_tokens(plan, config) + plan.chain_tokens
    rows = max(1, min(sft.micro_batch, sft.micro_tokens / length))  # a fraction: shorter rows fill the rest
    # Of shorter completions more go into a micro-batch, and it can be the heavier one.
    shorter = {plan.max_new_tokens * i // 8 for i in range(1, 9)}
    updates = [train(plan, config, *update_passes(plan, config, new)) for new in shorter]
    return {
        "encode": encode(plan, config),
        "SFT": train(plan, config, [(rows, length)], rows * plan.chain_tokens),
        **generate(plan, config, max(1, plan.rollout_batch // n), n), "update": max(updates, key=reserved),
        "evaluate": max(generate(plan, config, plan.eval_batch, 1).values(), key=reserved),
    }  # fmt: skip


def reserved(items: Items) -> float:
    """Bytes that PyTorch takes from the card for these tensors."""
    return sum(items.values()) * (1 + OVERHEAD)


def lacks(phases: dict[str, Items], card_gib: float) -> dict[str, float]:
    """Bytes that each phase lacks on the card; 0 where it fits."""
    return {name: max(0.0, reserved(items) + CONTEXT - card_gib * GIB) for name, items in phases.items()}


def changed(thing, path: str, value):
    """A copy of a dataclass with another value at the dotted `path`.

    >>> changed(PROFILES["t4"], "tapo.steps", 7).tapo.steps
    7
    """
    name, _, rest = path.partition(".")
    return replace(thing, **{name: changed(getattr(thing, name), rest, value) if rest else value})


def advise(plan: Plan, config, card_gib: float) -> list[tuple[str, Plan]]:
    """What to lower until all phases fit or nothing helps any more: (field, the plan from there on)."""

    def lack(plan: Plan) -> float:
        return sum(lacks(estimate(plan, config), card_gib).values())

    steps = []
    for field, value in LEVERS:
        if not lack(plan):
            break
        old = attrgetter(field)(plan)
        values = [old >> i for i in range(1, old.bit_length())] if value is None else [value]
        # The first of equals: no change where none helps, else the largest value that helps most.
        best = min([plan, *(changed(plan, field, v) for v in values)], key=lack)
        if best is not plan:
            plan = best
            steps.append((field, plan))
    return steps


def card_memory(profile: Profile) -> float:
    """GiB of this machine's card, or of the one that the profile is meant for."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / GIB
    if profile.name not in CARDS:
        raise ValueError(f"no card is known for profile {profile.name!r}: give card_gib, its memory in GiB")
    return CARDS[profile.name]


def advice(plan: Plan, config, card_gib: float) -> list[str]:
    """`advise` in words, with the phase that gains most of what it lacks, after the changes above."""
    lines, now = ["Lower in this order:"], estimate(plan, config)
    for field, lower in advise(plan, config, card_gib):
        then, old, new = estimate(lower, config), *(attrgetter(field)(p) for p in (plan, lower))
        before, after = lacks(now, card_gib), lacks(then, card_gib)
        phase = max(now, key=lambda name: before[name] - after[name])
        ends = " -> ".join(f"{reserved(made[phase]) / GIB:.1f}" for made in (now, then))
        lines.append(f"  {field} from {old} to {new}: {phase} {ends} GiB")
        plan, now = lower, then
    fits = not any(lacks(now, card_gib).values())
    return lines + ["Then it fits." if fits else "Even then it does not fit: take a larger card."]


def report(profile: Profile, config, card_gib: float | None = None, **elsewhere: int) -> tuple[str, bool]:
    """The estimate as a table in GiB, with the verdict and what to lower; and whether it fits.

    card_gib: default: this machine's card, or the one the profile is meant for. elsewhere: fields of `Plan`.
    """
    plan = Plan(**vars(profile) | elsewhere)
    phases, card = estimate(plan, config), card_gib or card_memory(profile)
    tapo = plan.tapo

    def row(name: str, values) -> str:
        return f"{name:<20}" + "".join(f"{v / GIB:>10.2f}" if v else f"{'-':>10}" for v in values)

    lines = [
        f"{plan.name}: {tapo.questions} questions x {tapo.num_anchor + tapo.num_positive} rollouts x "
        f"{plan.max_new_tokens} tokens, images of {image_tokens(plan, config)} tokens, LoRA r={plan.lora_r}, "
        f"{plan.dtype}",
        f"{'GiB':<20}" + "".join(f"{name:>10}" for name in phases),
    ]
    names = dict.fromkeys(item for made in phases.values() for item in made)
    lines += [row(item, [made.get(item, 0) for made in phases.values()]) for item in names]
    lines.append(row("all tensors", [sum(made.values()) for made in phases.values()]))
    lines.append(row(f"reserved: +{OVERHEAD:.0%}", [reserved(made) for made in phases.values()]))
    worst, fits = max(phases, key=lambda name: reserved(phases[name])), not any(lacks(phases, card).values())
    lines.append(
        f"{'Fits' if fits else 'Does not fit'}: {worst} reserves {reserved(phases[worst]) / GIB:.1f} GiB, "
        f"CUDA itself takes {CONTEXT / GIB:.2f}, and the card has {card:.1f}."
    )
    return "\n".join(lines + ([] if fits else advice(plan, config, card))), fits


def check(profile: Profile, config, card_gib: float | None = None, **elsewhere: int) -> None:
    """MemoryError with the report if the profile does not fit."""
    text, fits = report(profile, config, card_gib, **elsewhere)
    if not fits:
        raise MemoryError(text)


def main() -> None:
    """Command line: print the report; exit with 1 where it does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", choices=list(CARDS))
    parser.add_argument("--image-tokens", type=int, help="of the largest image; 448x448 pixels are 256")
    parser.add_argument("--new-tokens", type=int, help="of the longest completion")
    parser.add_argument("--card-gib", type=float, help="default: this machine's card or the profile's")
    args = parser.parse_args()
    profile = PROFILES[args.profile]  # get_profile would want the card itself
    if args.image_tokens:
        profile = replace(profile, max_pixels=args.image_tokens * 28**2)
    if args.new_tokens:
        profile = replace(profile, max_new_tokens=args.new_tokens)
    text, fits = report(profile, qwen_config("3B"), args.card_gib)
    print(text)
    raise SystemExit(not fits)


if __name__ == "__main__":
    main()
