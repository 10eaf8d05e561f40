"""All committed figures in one form, and the difference of two methods, seed by seed.

What both methods of a seed share, above all which species are seen, cancels in a difference; so intervals of
differences are narrower than those of accuracies.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from finer1_lite.evaluate.statistics import interval

KEY = ["study", "method", "protocol", "split"]
FILES = {"results": "story", "baselines": "story", "ablations": "ablations", "why": "why", "transfer": "transfer"}


def load(folder: Path) -> pd.DataFrame:
    """Rows study, method, protocol, split, seed, value (0-1) of the tables in `folder`; split "overall" where both are.

    "story" holds the methods and baselines of the story. Of `why` and `transfer` the protocol is what was measured.
    As in the paper, overall is the mean of seen and unseen.
    """
    found = []
    for name, study in FILES.items():
        if not (folder / f"{name}.csv").exists():
            continue
        rows = pd.read_csv(folder / f"{name}.csv")
        if "metric" in rows:
            rows = rows[rows.metric == "accuracy"]
        if name == "why":
            rows = rows.rename(columns={"part": "split"}).assign(protocol=rows.measure)
        if name == "transfer":
            rows = rows.assign(protocol=rows.task + ", " + rows.measure)
        found.append(rows.assign(study=study)[[*KEY, "seed", "value"]])
    rows = pd.concat(found)
    halves = rows[rows.split.isin(["seen", "unseen"])].groupby([*KEY[:3], "seed"]).value.agg(["mean", "size"])
    both = halves[halves["size"] == 2]["mean"].rename("value").reset_index().assign(split="overall")
    return pd.concat([rows, both], ignore_index=True)


def of_seeds(rows: pd.DataFrame, *key: str) -> pd.Series:
    """The figure of each seed: values by seed, of the row `key` (as KEY). KeyError where there is none."""
    found = rows[(rows[KEY] == list(key)).all(axis=1)].set_index("seed").value.sort_index()
    if found.empty:
        raise KeyError(key)
    return found


def paired(gaps: Sequence[float]) -> dict[str, float]:
    """Of each seed's difference: mean, 95% t-interval (low, high), the t-test's p; nan where seeds cannot tell."""
    p = float(ttest_1samp(gaps, 0).pvalue) if len(set(gaps)) > 1 else float("nan")
    return dict(zip(("mean", "low", "high", "p"), (*interval(gaps), p)))


def gap(rows: pd.DataFrame, study: str, a: str, b: str, protocol: str, split: str) -> dict:
    """`a` minus `b` on the seeds that both have: see `paired`; `seeds`, how many, and `each_seed`."""
    both = pd.concat([of_seeds(rows, study, method, protocol, split) for method in (a, b)], axis=1, join="inner")
    gaps = list(both.iloc[:, 0] - both.iloc[:, 1])
    each = " ".join(f"{value:+.4f}" for value in gaps)
    return {"difference": f"{a} - {b}"} | paired(np.round(gaps, 9)) | {"seeds": len(gaps), "each_seed": each}
