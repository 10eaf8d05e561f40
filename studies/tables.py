"""The paper's main table in miniature, and the table of the project's first description, from the committed figures."""

import pandas as pd

from finer1_lite.evaluate.paper import paper_figures
from finer1_lite.evaluate.statistics import interval
from studies.baselines import MET
from studies.figures import gap, of_seeds
from studies.formatting import rounded

ROWS = {  # of the main table: ours -> what it is called, and what the paper's table calls it
    "base": ("zero-shot", "base"), "cot_prompt": ("CoT prompting", "cot_prompting"),
    "in_context": ("in-context examples", "in_context"), "sft_answers": ("SFT on answers", "sft_answers"),
    "cls_rl": ("CLS-RL", "cls_rl"), "no_think_rl": ("No-Thinking-RL", "no_think_rl"), "cot_sft": ("CoT SFT", None),
    "dapo": ("CoT SFT, DAPO", None), "tapo": ("CoT SFT, TAPO", "tapo"),
    "describe_then_name": ("describe, then name (two calls)", None), "siglip": ("SigLIP", "siglip"),
    "siglip_ensemble": ("SigLIP, several templates", "siglip_ensemble"), "tower_probe": ("linear probe", None),
}  # fmt: skip
SPLITS = ("seen", "unseen", "overall")


def share(rows: pd.DataFrame, *key: str) -> str:
    """One figure as a `rounded` cell; "" where it was not measured."""
    try:
        return rounded(*interval(of_seeds(rows, *key)))
    except KeyError:
        return ""


def main_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Our accuracies with the paper's figure beside each."""
    theirs, lines = paper_figures(), []
    theirs = theirs[theirs.model.isin(["Qwen2.5-VL-3B", "SigLIP-L"]) & theirs.metric.isin(["accuracy", "inclusion"])]
    for ours, (called, name) in ROWS.items():
        line = {"method": called}
        for protocol in ("closed", "open"):
            for split in SPLITS:
                line[f"{protocol}, {split}"] = share(rows, "story", ours, protocol, split)
                cell = theirs[(theirs.method == name) & (theirs.protocol == protocol) & (theirs.split == split)].value
                line[f"paper's {protocol}, {split}"] = f"{cell.iloc[0]:.1f}" if len(cell) else ""
        lines.append(line | {"had met": MET[ours]})
    table = pd.DataFrame(lines)
    return table.loc[:, (table != "").any()]


def descriptions_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The ablation table of the project's first description: points against SFT on answers, closed-world."""
    ours = {
        "+ Standard RL (CLS-RL)": ("cls_rl", "story", "+5", "-2"), "+ TAPO (full)": ("tapo", "story", "+8", "+13"),
        "without intra-class, against TAPO": ("inter", "ablations", "-3", "-5"),
        "without inter-class, against TAPO": ("intra", "ablations", "-2", "-4"),
    }  # fmt: skip
    lines = []
    for called, (name, study, *theirs) in ours.items():
        line, against = {"configuration": called}, "sft_answers" if study == "story" else "tapo"
        for split, said in zip(SPLITS, theirs):
            found = gap(rows, study, name, against, "closed", split)
            line |= {split: rounded(found["mean"], found["low"], found["high"], sign=True), f"it says, {split}": said}
        lines.append(line)
    return pd.DataFrame(lines)
