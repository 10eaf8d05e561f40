"""Where a run of this kit differs from the authors' (paper arXiv 2602.07605; released scripts, commit 84cdc5c).

The switches of the loss are not here: `losses.LossConfig` names them, and its preset RELEASED takes the code's side.
"""

import pandas as pd

from .config import Profile
from .prompts import THINK_INSTRUCTION


def departures(profile: Profile) -> pd.DataFrame:
    """A row for each difference: what the authors did, what the profile does, and how to follow them, if one can."""
    p, sft, rl = profile, profile.sft, profile.tapo
    weights = f"LoRA, r {p.lora_r}, on {'NF4' if p.quantize else p.dtype}"
    rows = {
        "weights": ("all of the language model, in bf16", weights, "`a100_bf16` at least has no rounding to 4 bits"),
        "optimizer": ("AdamW in bf16 with Kahan sums", "AdamW in float32", "the adapter is small: no need"),
        "vision tower, stage 2": ("trained", "frozen: every picture is read once", "not with this kit"),
        "learning rates": ("5e-6 and 1e-6", f"{sft.lr:g} and {rl.lr:g}", "LoRA wants higher ones"),
        "batch, stage 1": ("64 chains, 10 epochs", f"{sft.batch_size} chains, {sft.epochs} epochs", "`profile.sft`"),
        "batch, stage 2": ("384 questions for three steps", f"{rl.questions} for one", "`questions`: time"),
        "length, stage 2": ("10 epochs", f"{rl.steps} steps", "`steps`: time"),
        "tries for a full batch": ("20 (code: no limit)", f"{rl.max_rounds}", "`max_rounds`: time"),
        "tokens of an answer": ("2,048", f"{p.max_new_tokens:,}", "`max_new_tokens`: memory and time"),
        "pixels, stage 1": ("589,824 at most", f"{p.max_pixels:,} at most", "`max_pixels`: memory"),
        "pixels, stage 2": ("200,704 to 1,003,520", f"{p.max_pixels:,} at most", "`max_pixels`: memory"),
        "pixels, evaluation": ("the processor's limits", f"{p.max_pixels:,} at most", "`max_pixels`: time"),
        "system turn": ("stage 1 an R1-like one, then the model's own", p.system or "the model's own",
                        "`formats.read_chats` gives it, `system` takes it"),
        "instruction": ("from their format-prompt file", THINK_INSTRUCTION, "`ask` of `Tapo`, prompts of `ask`"),
        "reward": ("0.9 for the name, 0.1 for the form", f"`{p.reward.__name__}`", "`reward`: `released_reward`"),
        "pictures, stage 2": ("other ones than in stage 1", "those of the 4 shots", "another `cache` and `labels`"),
    }  # fmt: skip
    return pd.DataFrame(rows, index=["authors", f"here ({p.name})", "to follow them"]).T
