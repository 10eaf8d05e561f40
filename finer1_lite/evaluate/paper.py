"""The paper's figures as a table, and a run of yours beside them; apart from them, figures that only circulate.

`paper.csv` has one row for each figure: table, method, model, protocol, split, metric, value (percent where the note
does not say otherwise), source, note. Methods are called as in this kit where it has them ("tapo" is Fine-R1). The
paper is He, Geng, Peng: Fine-R1, ICLR 2026, arXiv 2602.07605; a table is called by what it is of, not by its number.
"""

from functools import cache
from pathlib import Path

import pandas as pd

SOURCE = "arXiv 2602.07605"
MODEL = "Qwen2.5-VL-3B"
KEY = ["method", "protocol", "split", "metric"]
METRICS = {("closed", "accuracy"): "accuracy", ("open", "accuracy"): "inclusion", ("open", "similarity"): "similarity"}


@cache
def _figures() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name("paper.csv"), keep_default_na=False, dtype={"value": float})


def paper_figures() -> pd.DataFrame:
    """The paper's own figures, and no others."""
    rows = _figures()
    return rows[rows.source == SOURCE].reset_index(drop=True)


def other_figures() -> pd.DataFrame:
    """Figures about Fine-R1 that are not the paper's: `source` says whose, `note` what the paper has instead."""
    rows = _figures()
    return rows[rows.source != SOURCE].reset_index(drop=True)


def beside(results: pd.DataFrame, model: str = MODEL) -> pd.DataFrame:
    """The paper's accuracies with your run: table, method, protocol, split, metric, paper, yours, note; percent.

    results: columns method, protocol, split, metric and value (0 to 1), as `evaluate.result_rows` makes them; several
    seeds are averaged. Open-world accuracy stands beside the paper's text inclusion; where there is similarity as a
    metric, beside its similarity. "overall" is the mean of seen and unseen, as in the paper. model: whose rows of the
    paper; models of other families (SigLIP) are always there. What you have not run is nan. Only the order of methods
    can be compared: other images, and perhaps another model. ValueError for missing columns and for percent.
    """
    if missing := {*KEY, "value"} - set(results.columns):
        raise ValueError(f"the results lack {', '.join(sorted(missing))}; give rows of evaluate.result_rows")
    mine = results.assign(metric=[METRICS.get(pair) for pair in zip(results.protocol, results.metric)])
    mine = mine.dropna(subset="metric").groupby(KEY, as_index=False).value.mean()
    if (mine.value > 1).any():
        raise ValueError("a value is above 1; accuracies go from 0 to 1 here")
    halves = mine[mine.split.isin(["seen", "unseen"])].groupby(["method", "protocol", "metric"], as_index=False)
    both = halves.agg(value=("value", "mean"), n=("value", "size"))
    overall = both[both.n == 2].assign(split="overall")
    mine = pd.concat([mine[mine.split != "overall"], overall])[[*KEY, "value"]]
    mine = mine.assign(yours=100 * mine.pop("value"))
    rows = paper_figures().rename(columns={"value": "paper"})
    rows = rows[rows.protocol.isin(["open", "closed"]) & ((rows.model == model) | ~rows.model.str.startswith("Qwen"))]
    return rows.merge(mine, how="left", on=KEY)[["table", *KEY, "paper", "yours", "note"]]
