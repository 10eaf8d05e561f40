"""The command line: see the package."""

import argparse
import warnings

import pandas as pd
import torch

from . import trl_step
from .measure import RESULTS, add_rows
from .setting import Step

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("what", choices=("step", "exact"))
parser.add_argument("--pairs", type=int, default=5, help="timed rounds for each precision")
args = parser.parse_args()
torch.set_num_threads(1)
warnings.simplefilter("ignore")
if args.what == "step":
    steps = [row for nf4 in (True, False) for row in trl_step.timed_steps(Step(quantize=nf4), args.pairs)]
    found = trl_step.ratios(add_rows(RESULTS / "step.csv", steps, replaces=["machine"]))
    found.to_csv(RESULTS / "ratios.csv", index=False, float_format="%.6g")
    print(found.round(3).to_string(index=False))
exact = pd.DataFrame(trl_step.exact_counts(Step(quantize=False)))
exact.to_csv(RESULTS / "exact.csv", index=False, float_format="%.6g")
print(exact[["side", "distinct_images", "image_encodings", "gflop", "peak_mb"]].to_string(index=False))
