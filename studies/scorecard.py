"""What the paper and the first description of the project claim, beside what was measured in the bird world.

`python -m studies.page` works the card out of the committed tables and writes `scorecard.csv`. A claim is a
difference of two methods and the side of zero on which it should lie. It *holds* where the 95% t-interval over seeds
lies on that side alone, *does not hold* where it lies on the other, or within SAME points of zero; else it *cannot be
told*. Of a claim that nothing changes the interval has to lie within SAME points.
"""

from dataclasses import asdict, dataclass

import pandas as pd

from studies.figures import gap

SAME = 0.02  # differences below two points are none
PAPER, SEED = "paper", "description"  # who says so; the latter's figures are not the paper's


@dataclass(frozen=True)
class Claim:
    """`a` is better than `b` (side 1), worse (-1), or the same (0); points: by how much, as they say."""

    claim: str
    who: str
    points: float | None
    a: str
    b: str
    protocol: str
    split: str
    side: int = 1
    study: str = "story"


CLAIMS = (
    Claim("Fine-R1 names seen classes better than zero-shot", PAPER, 11.54, "tapo", "base", "closed", "seen"),
    Claim("Fine-R1 names unseen classes better than zero-shot", PAPER, 9.47, "tapo", "base", "closed", "unseen"),
    Claim("Fine-R1 names better without options, too", PAPER, 18.87, "tapo", "base", "open", "overall"),
    Claim("SFT on answers helps on seen classes", PAPER, 3.98, "sft_answers", "base", "closed", "seen"),
    Claim("SFT on answers makes unseen classes worse than zero-shot", PAPER, -6.12, "sft_answers", "base", "closed",
          "unseen", -1),
    Claim("Fine-R1 beats SFT on answers on unseen classes", PAPER, 15.59, "tapo", "sft_answers", "closed", "unseen"),
    Claim("RL with thinking, without SFT, is worse than zero-shot", PAPER, -3.36, "cls_rl", "base", "closed",
          "overall", -1),
    Claim("RL without thinking helps on seen classes", PAPER, 3.43, "no_think_rl", "base", "closed", "seen"),
    Claim("RL without thinking changes nothing on unseen classes", PAPER, -0.58, "no_think_rl", "base", "closed",
          "unseen", 0),
    Claim("To ask for a chain alone changes nothing", PAPER, 0.11, "cot_prompt", "base", "closed", "overall", 0),
    Claim("DAPO adds to CoT SFT", PAPER, 1.60, "dapo", "cot_sft", "open", "overall"),
    Claim("TAPO adds to DAPO", PAPER, 1.51, "tapo", "dapo", "open", "overall"),
    Claim("The intra-class half adds to DAPO", PAPER, 0.5, "intra", "dapo", "open", "overall", study="ablations"),
    Claim("The inter-class half adds to DAPO", PAPER, 0.5, "inter", "dapo", "open", "overall", study="ablations"),
    Claim("5:5 beats 10:0 on unseen classes", PAPER, 1.82, "tapo", "inter", "open", "unseen", study="ablations"),
    Claim("5:5 beats 0:10 on unseen classes", PAPER, 1.90, "tapo", "sides_0_10", "open", "unseen", study="ablations"),
    Claim("Fine-R1 beats SigLIP", PAPER, 0.75, "tapo", "siglip", "closed", "overall"),
    Claim("A linear probe sees no more than before", PAPER, 0.74, "tapo", "base", "probe", "last layer", 0, "why"),
    Claim("The text knowledge is as before", PAPER, None, "tapo", "base", "recognises", "looks to name, unseen", 0,
          "why"),
    Claim("Right names can be told from wrong ones only after training", PAPER, None, "tapo", "base", "separable",
          "look-alike", 1, "why"),
    Claim("Questions that need recognition gain", PAPER, 3.60, "tapo", "base", "facts, likeliest option", "unseen", 1,
          "transfer"),
    Claim("Standard RL beats SFT on seen classes", SEED, 5, "cls_rl", "sft_answers", "closed", "seen"),
    Claim("Standard RL is worse than SFT on unseen classes", SEED, -2, "cls_rl", "sft_answers", "closed", "unseen", -1),
    Claim("TAPO beats SFT on seen classes", SEED, 8, "tapo", "sft_answers", "closed", "seen"),
    Claim("Without the intra-class half unseen classes lose", SEED, -5, "inter", "tapo", "closed", "unseen", -1,
          "ablations"),
    Claim("Without the inter-class half unseen classes lose", SEED, -4, "intra", "tapo", "closed", "unseen", -1,
          "ablations"),
    Claim("Chains with a comparison beat generic ones", SEED, None, "tapo", "generic+tapo", "open", "unseen",
          study="ablations"),
    Claim("Four pictures of a class suffice: eight add nothing", SEED, None, "shots_8", "tapo", "open", "overall", 0,
          "ablations"),
)  # fmt: skip
CORE = {  # the claims of a first look
    "Fine-R1 names seen classes better than zero-shot", "Fine-R1 names unseen classes better than zero-shot",
    "SFT on answers makes unseen classes worse than zero-shot", "DAPO adds to CoT SFT",
    "TAPO adds to DAPO", "A linear probe sees no more than before",
}  # fmt: skip


def verdict(low: float, high: float, side: int) -> str:
    """What an interval says of a claim.

    >>> verdict(0.01, 0.05, 1), verdict(-0.01, 0.05, 1), verdict(-0.05, -0.01, 1), verdict(-0.01, 0.01, 0)
    ('holds', 'cannot be told', 'does not hold', 'holds')
    """
    within = -SAME < low and high < SAME
    if side == 0:
        return "holds" if within else "does not hold" if low > 0 or high < 0 else "cannot be told"
    low, high = (low, high) if side > 0 else (-high, -low)
    return "holds" if low > 0 else "does not hold" if high < 0 or within else "cannot be told"


def score(rows: pd.DataFrame) -> list[dict]:
    """The card, from rows of `figures.load`: every claim with the measured difference in points and the verdict."""
    card = []
    for claim in CLAIMS:
        found = gap(rows, claim.study, claim.a, claim.b, claim.protocol, claim.split)
        points = {key: round(100 * found[key], 2) for key in ("mean", "low", "high")}
        told = {"seeds": found["seeds"], "verdict": verdict(found["low"], found["high"], claim.side)}
        told["core"] = claim.claim in CORE
        card.append(asdict(claim) | points | told)
    return card
