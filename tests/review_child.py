"""A reviewer without an end, for `test_review`: prints each decision as soon as it is acknowledged."""

import itertools
import json
import random
import sys

from finer1_lite.cot.chains import load_chains
from finer1_lite.cot.review import Review


def main() -> None:
    chains, path, seed = sys.argv[1:]
    rng, review = random.Random(seed), Review(load_chains(chains), path, "ada")
    for number in itertools.count():
        if review.at is None:
            review.move(1)
        decision = rng.choice(["accept", "reject", "edit", "undo"])
        if decision == "undo":
            if not review.undo():
                continue
        elif decision == "edit":
            seen = f"Analysis: größer, {seed}-{number}, "
            review.decide("edit", review.completion(review.at).replace("Analysis: ", seen), insist=True)
        else:
            review.decide(decision)
        event = review.log.events[-1]
        print(json.dumps([event["row"], event["decision"], event["text"]]), flush=True)


if __name__ == "__main__":
    main()
