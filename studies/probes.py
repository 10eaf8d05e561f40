"""What a model sees, knows and uses, as numbers: the paper's three probes, for any policy.

Departures from the paper: a probe's regularisation is chosen on validation pictures; the third probe is a number.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from finer1_lite.birds.diet import direct
from finer1_lite.birds.species import ATTRIBUTES, Species, by_name, look_alikes
from finer1_lite.evaluate.answers import Prediction, judge
from finer1_lite.evaluate.siglip import fit_linear
from finer1_lite.policy.inputs import answer_ids, pad
from finer1_lite.policy.load import Policy
from finer1_lite.policy.rollout import rollout
from finer1_lite.policy.scoring import completion_logps

L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # weights of the penalty that a probe chooses from
Split = tuple[torch.Tensor, torch.Tensor]  # features (N, H), class numbers (N)


def linear_probe(train: Split, val: Split, test: Split, l2: Sequence[float] = L2) -> float:
    """Test accuracy of a linear probe: fitted on `train`, its penalty chosen on `val` (the larger one in a tie)."""
    mean, scale = train[0].mean(0), train[0].std(0) + 1e-6
    (x, y), *others = [((features - mean) / scale, labels) for features, labels in (train, val, test)]
    classes, found = int(max(labels.max() for _, labels in (train, val, test))) + 1, []
    for penalty in l2:
        weight = fit_linear(x, y, classes, penalty)
        scores = [((z @ weight[:-1] + weight[-1]).argmax(1) == labels).double().mean().item() for z, labels in others]
        found.append((scores[0], penalty, scores[1]))
    return max(found)[2]


def folds_of(groups: dict[str, str], k: int, seed: int) -> dict[str, int]:
    """A fold 0..k-1 for each class of `groups` (class -> group); a group stays together."""
    names = sorted(set(groups.values()))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[i]: place % k for place, i in enumerate(order)}
    return {label: fold[group] for label, group in groups.items()}


def separability(right: torch.Tensor, wrong: torch.Tensor, fold: torch.Tensor, l2: Sequence[float] = L2) -> float:
    """Cross-validated accuracy of a linear probe that tells right (N, H) from wrong (N, H); chance is 0.5."""
    k, scores = int(fold.max()) + 1, []

    def split(mask: torch.Tensor) -> Split:
        halves = (right[mask], wrong[mask])
        return torch.cat(halves), torch.cat([torch.full((len(h),), i) for i, h in enumerate(halves)])

    for test in range(k):
        val = (test + 1) % k
        parts = ((fold != test) & (fold != val), fold == val, fold == test)
        scores.append(linear_probe(*map(split, parts), l2) * (fold == test).sum().item())
    return sum(scores) / len(fold)


def stated_looks(text: str) -> dict[str, str]:
    """{attribute: value}, the first mention of each attribute in a text, as "<one word> <attribute>"."""
    pairs = re.findall(rf"(\w+) ({'|'.join(ATTRIBUTES)})\b", text)
    return {part: value for value, part in reversed(pairs)}


def all_right(species: Species, text: str) -> bool:
    """Whether a text states all eight attributes of a species rightly."""
    stated = stated_looks(text)
    return all(stated.get(part) == value for part, value in zip(ATTRIBUTES, species.looks))


def described(policy: Policy, images: Sequence, species: Sequence[Species]) -> list[bool]:
    """Whether the greedy description of each picture (its features) is `all_right`."""
    texts = rollout(policy, [("Describe the bird.", s) for s in images], 1, generator=None, temperature=0).texts
    return [all_right(s, text) for s, text in zip(species, texts)]


def recalled(policy: Policy, species: Sequence[Species]) -> list[bool]:
    """Whether the policy, told the looks of each species without a picture, writes its name."""
    asked = [(f"Which bird has {s.describe()}?", None) for s in species]
    texts = rollout(policy, asked, 1, generator=None, temperature=0).texts
    return [judge(0, s.name, False, text).correct for s, text in zip(species, texts)]


@torch.no_grad()
def recognised(policy: Policy, species: Sequence[Species]) -> list[bool]:
    """Whether the field guide's sentence about each species is likelier than those that name its three look-alikes."""
    policy.model.eval()
    asked = [(s, (f"Which bird has {s.describe()}?", None)) for s in species]
    pairs = [(prompt, direct(other.name)) for s, prompt in asked for other in (s, *look_alikes(s.name))]
    made, size = [], policy.profile.eval_batch
    for start in range(0, len(pairs), size):
        prompts, answers = zip(*pairs[start : start + size])
        ids = [answer_ids(policy.processor, answer) for answer in answers]
        mask = pad([[1] * len(i) for i in ids], 0, "right")
        padded = pad(ids, policy.processor.tokenizer.pad_token_id, "right")
        made.append(completion_logps(policy, list(prompts), padded, mask).sum(1).float().cpu())
    return (torch.cat(made).view(len(species), -1).argmax(1) == 0).tolist()


def analysis_right(predictions: Iterable[Prediction]) -> list[bool]:
    """Of each answer: whether its chain's analysis states what the label looks like."""
    # Not `read_chain`: a policy may rename another heading, which its reward does not see, and still look rightly.
    return [all_right(by_name()[p.label], p.text.partition("Analysis:")[2].partition("\n")[0]) for p in predictions]
