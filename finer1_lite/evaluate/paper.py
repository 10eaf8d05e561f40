"""The paper's figures as a table: He, Geng, Peng: Fine-R1, ICLR 2026, arXiv 2602.07605.

One row for each figure: table, method ("tapo" is Fine-R1), model, protocol, split, metric, value (percent where the
note does not say otherwise), source, note.
"""

from pathlib import Path

import pandas as pd


def paper_figures() -> pd.DataFrame:
    """All figures of `paper.csv`."""
    return pd.read_csv(Path(__file__).with_name("paper.csv"), keep_default_na=False, dtype={"value": float})
