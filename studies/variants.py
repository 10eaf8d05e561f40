"""The ways to train that the studies compare: METHODS of the paper's table, and what `studies.ablations` changes.

Not here, because they change nothing in this loop: clip-higher, dual clip and the ratio's clamp (one update for each
rollout batch, so the ratio is 1), and the released group filter (rewards of 0 and 1 give the same groups, as long as
one survives).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from finer1_lite.losses import GRPO, RELEASED, TAPO, LossConfig
from finer1_lite.reading import normalise
from finer1_lite.rewards import bare_reward, extract_answer, released_reward
from finer1_lite.samplers import ConfusionCounts


@dataclass(frozen=True)
class Variant:
    """One way to train. Default: TAPO from CoT SFT on one chain for each seen species, from four pictures of it.

    reward and lr: None for the profile's. steps: None for the profile's, else STEPS of the ablations.
    """

    label: str
    loss: LossConfig | None = RELEASED  # None: no second stage
    rollouts: tuple[int, int] = (5, 5)  # of the anchor and of the positive
    negative: str = "similar"
    start: str = "cot_sft"  # a method of the story, "base", or one of CHAINS
    think: bool = True
    reward: Callable | None = None
    shots: int = 4
    lr: float | None = None
    steps: int | None = 12  # the profile has 40: enough to see where each one goes


DAPO = replace(RELEASED, gamma=0.0, eta1=0.0, eta2=0.0)  # as `recipes.dapo_setting`


def released(label: str, **switches) -> Variant:
    """TAPO with the released code's switches but for those that are given."""
    return Variant(label, replace(RELEASED, **switches))


# Reinforcement without chains, in full length. The learning rates were chosen as the profile's (studies/tuning.py).
WITHOUT_SFT: dict[str, Variant] = {
    "cls_rl": Variant("CLS-RL (no SFT)", GRPO, (10, 0), start="base", lr=6e-4, steps=None),
    "no_think_rl": Variant("No-Thinking-RL (no SFT)", GRPO, (10, 0), start="base", think=False, reward=bare_reward,
                           lr=1.2e-3, steps=None),
}  # fmt: skip
CHAINS = {
    "chains_12": "12 chains", "chains_24": "24 chains", "chains_48": "48 chains",
    "generic": "generic chains: what is seen, then the name", "no_comparison": "chains without the comparison",
}  # fmt: skip
ABLATIONS: dict[str, Variant] = {
    "tapo": Variant("TAPO"),
    # the triplet's two halves
    "dapo": Variant("DAPO", DAPO, (10, 0)),
    "intra": Variant("DAPO + intra-class", DAPO),
    "inter": Variant("DAPO + inter-class (10:0)", rollouts=(10, 0)),
    # rollouts of anchor and positive
    "sides_8_2": Variant("8:2", rollouts=(8, 2)),
    "sides_2_8": Variant("2:8", rollouts=(2, 8)),
    "sides_0_10": Variant("0:10", rollouts=(0, 10)),
    # pictures of a class; one has no positive
    "shots_1": Variant("1 picture of each class (DAPO)", DAPO, (10, 0), shots=1),
    "shots_2": Variant("2 pictures of each class", shots=2),
    "shots_8": Variant("8 pictures of each class", shots=8),
    # which look-alike
    "random_negative": Variant("random negative", negative="random"),
    "online_negative": Variant("negative by own confusions", negative="online"),
    # entropies. Without a gradient through pi_neg eta2's term is constant: `tapo` has eta1's, `negative_grad` both.
    "no_entropy": released("no entropy term", eta1=0.0, eta2=0.0),
    "negative_entropy": released("H[pi_neg] alone", eta1=0.0, negative_grad=True),
    # paper against released code
    "anchor": released("update on the anchor", update_image="anchor", old_image="anchor"),
    "paper_kl": released("the paper's KL ratio", kl_form="paper"),
    "negative_grad": released("gradient through pi_neg", negative_grad=True),
    "paper": Variant("all of the paper's side", TAPO),
    "released_format": Variant("released format reward", reward=released_reward),
}
ABLATIONS |= {name: Variant(label, None, start=name) for name, label in CHAINS.items()}
ABLATIONS |= {f"{name}+tapo": Variant(CHAINS[name], start=name) for name in ("generic", "no_comparison")}
VARIANTS = ABLATIONS | WITHOUT_SFT
CLOSED = ("tapo", "intra", "inter")  # also asked closed-world, for the table of the seed
LABELS = {"base": "zero-shot", "sft_answers": "SFT on answers", "cot_sft": "CoT SFT alone"}
LABELS |= {name: variant.label for name, variant in VARIANTS.items()}

# What stands beside what; the last one of each is what the others are compared with.
TABLES: dict[str, tuple[str, ...]] = {
    "components": ("cot_sft", "dapo", "intra", "inter", "tapo"),
    "n1 : n2": ("inter", "sides_8_2", "sides_2_8", "sides_0_10", "tapo"),
    "shots": ("shots_1", "shots_2", "shots_8", "tapo"),
    "number of chains, Stage 1": ("chains_12", "chains_24", "chains_48", "cot_sft"),
    "kind of chain, Stage 1": ("generic", "no_comparison", "cot_sft"),
    "kind of chain, both stages": ("generic+tapo", "no_comparison+tapo", "tapo"),
    "negatives": ("random_negative", "online_negative", "tapo"),
    "entropies": ("no_entropy", "negative_entropy", "negative_grad", "tapo"),
    "switches": ("anchor", "paper_kl", "negative_grad", "paper", "released_format", "tapo"),
}


def watched(confusion: ConfusionCounts, reward: Callable) -> Callable[[str, str], dict[str, float]]:
    """`reward`, which also tells `confusion` what was taken for what."""
    spelt = {normalise(name): name for name in confusion.counts}

    def watching(completion: str, label: str) -> dict[str, float]:
        confusion.update(label, spelt.get(normalise(extract_answer(completion) or "")))
        return reward(completion, label)

    return watching
