"""How fast a step is: our loop beside TRL's `GRPOTrainer`, on one thread of a CPU.

    python -m tests.benchmarks step    # step times in alternating pairs, and exact counts: about 8 minutes
    python -m tests.benchmarks exact   # the counts alone

Run it from the root of the repository, with nothing beside it. It writes to `tests/benchmarks/results`:

- `step.csv`: every timed step of either side; what other machines left there stays.
- `ratios.csv`: for each machine, our seconds over theirs, the median and the range over the pairs; also in CPU time,
  which something running beside it moves less.
- `exact.csv`: what no noise can touch: patches encoded, floating-point operations, bytes alive at the peak.

What is made equal for both sides, and what is not, is said in `setting.py`.
"""
