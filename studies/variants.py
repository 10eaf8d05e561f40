"""The ways to train that `studies.ablations` compares: one thing changed at a time, at equal cost in rollouts.

Not here, because they change nothing in this loop: clip-higher, dual clip and the ratio's clamp (one update for each
rollout batch, so the ratio is 1), the released group filter (rewards of 0 and 1 give the same groups), strict rewards
(no TAPO answer to the 5,440 test images holds the label and more).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from finer1_lite.config import RELEASED_SWITCHES
from finer1_lite.losses import DAPO, GRPO, TAPO, LossConfig
from finer1_lite.reading import normalise
from finer1_lite.rewards import extract_answer, released_reward
from finer1_lite.samplers import ConfusionCounts


@dataclass(frozen=True)
class Variant:
    """One way to train. Default: TAPO from CoT SFT on one chain for each seen species."""

    label: str
    loss: LossConfig | None = RELEASED_SWITCHES  # None: no second stage
    rollouts: tuple[int, int] = (5, 5)  # of the anchor and of the positive
    negative: str = "similar"
    start: str = "cot_sft"  # a method of the story, "base", or one of CHAINS
    think: bool = True


def released(label: str, **switches) -> Variant:
    """TAPO with the released code's switches but for those that are given."""
    return Variant(label, replace(RELEASED_SWITCHES, **switches))


CHAINS = {
    "chains_12": "12 chains", "chains_24": "24 chains", "chains_48": "48 chains",
    "unstructured": "chains without comparison", "all_concepts": "all concepts told",
}  # fmt: skip
VARIANTS: dict[str, Variant] = {
    "tapo": Variant("TAPO"),
    # the triplet's two halves
    "dapo": Variant("DAPO", DAPO, (10, 0)),
    "intra": released("DAPO + intra-class", gamma=0.0, eta1=0.0, eta2=0.0),
    "inter": Variant("DAPO + inter-class (10:0)", rollouts=(10, 0)),
    # methods without chains
    "cls_rl": Variant("CLS-RL (no SFT)", GRPO, (10, 0), start="base"),
    "no_think_rl": Variant("No-Thinking-RL (no SFT)", GRPO, (10, 0), start="base", think=False),
    "answers_rl": Variant("No-Thinking-RL after SFT on answers", GRPO, (10, 0), start="sft_answers", think=False),
    # rollouts of anchor and positive
    "sides_8_2": Variant("8:2", rollouts=(8, 2)),
    "sides_2_8": Variant("2:8", rollouts=(2, 8)),
    "sides_0_10": Variant("0:10", rollouts=(0, 10)),
    # which look-alike
    "random_negative": Variant("random negative", negative="random"),
    "online_negative": Variant("negative by own confusions", negative="online"),
    # entropies. Without a gradient through pi_neg eta2's term is constant: `tapo` has eta1's, `negative_grad` both.
    "no_entropy": released("no entropy term", eta1=0.0, eta2=0.0),
    "negative_entropy": released("H[pi_neg] alone", eta1=0.0, negative_grad=True),
    # weight of the inter-class KL
    "gamma_0": released("KL weight 0", gamma=0.0),
    "gamma_0.03": released("KL weight 0.03", gamma=0.03),
    "gamma_0.1": released("KL weight 0.1", gamma=0.1),
    # paper against released code
    "anchor": released("update on the anchor", update_image="anchor", old_image="anchor"),
    "paper_kl": released("the paper's KL ratio", kl_form="paper"),
    "negative_grad": released("gradient through pi_neg", negative_grad=True),
    "printed_entropy": released("H as printed", entropy_sign="printed"),
    "micro_batch": released("mean per micro-batch of 4", aggregation="micro_batch"),
    "paper": Variant("all of the paper's side", TAPO),
}
VARIANTS |= {name: Variant(label, None, start=name) for name, label in CHAINS.items()}
VARIANTS |= {f"{name}+tapo": Variant(label, start=name) for name, label in CHAINS.items()}
LABELS = {"base": "base", "sft_answers": "SFT on answers", "cot_sft": "CoT SFT alone"}
LABELS |= {name: variant.label for name, variant in VARIANTS.items()}

# What stands beside what; the last one of each is what the others are compared with.
TABLES: dict[str, tuple[str, ...]] = {
    "methods": ("base", "sft_answers", "cls_rl", "no_think_rl", "answers_rl", "cot_sft", "tapo"),
    "components": ("cot_sft", "dapo", "intra", "inter", "tapo"),
    "sides": ("inter", "sides_8_2", "sides_2_8", "sides_0_10", "tapo"),
    "chains, Stage 1": ("chains_12", "chains_24", "chains_48", "cot_sft"),
    "chains, both stages": ("chains_12+tapo", "chains_24+tapo", "chains_48+tapo", "tapo"),
    "kind of chain, Stage 1": ("unstructured", "all_concepts", "cot_sft"),
    "kind of chain, both stages": ("unstructured+tapo", "all_concepts+tapo", "tapo"),
    "negatives": ("random_negative", "online_negative", "tapo"),
    "entropies": ("no_entropy", "negative_entropy", "negative_grad", "tapo"),
    "KL weight": ("gamma_0", "gamma_0.03", "gamma_0.1", "tapo"),
    "switches": ("anchor", "paper_kl", "negative_grad", "printed_entropy", "micro_batch", "paper", "tapo"),
}


def watched(confusion: ConfusionCounts) -> Callable[[str, str], dict[str, float]]:
    """The released reward, which also tells `confusion` what was taken for what."""
    spelt = {normalise(name): name for name in confusion.counts}

    def reward(completion: str, label: str) -> dict[str, float]:
        confusion.update(label, spelt.get(normalise(extract_answer(completion) or "")))
        return released_reward(completion, label)

    return reward
