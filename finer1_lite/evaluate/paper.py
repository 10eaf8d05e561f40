"""The paper's figures as a table (`paper.csv`), and apart from them the figures that only circulate.

One row for each figure: table, method ("tapo" is Fine-R1), model, protocol, split, metric, value (percent where the
note does not say otherwise), source, note. The paper is He, Geng, Peng: Fine-R1, ICLR 2026, arXiv 2602.07605.
"""

from pathlib import Path

import pandas as pd

SOURCE = "arXiv 2602.07605"
FIGURES = pd.read_csv(Path(__file__).with_name("paper.csv"), keep_default_na=False, dtype={"value": float})


def paper_figures() -> pd.DataFrame:
    """The paper's own figures, and no others."""
    return FIGURES[FIGURES.source == SOURCE].reset_index(drop=True)


def other_figures() -> pd.DataFrame:
    """Figures about Fine-R1 that are not the paper's: `source` says whose, `note` what the paper has instead."""
    return FIGURES[FIGURES.source != SOURCE].reset_index(drop=True)
