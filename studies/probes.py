"""What a model sees, knows and uses, as numbers: the paper's three probes, and where training changed the model.

The paper's claim: training adds neither perception (H1) nor knowledge (H2); the model learns to use what it has (H3).
Pure functions of features, and the few that fetch features from a policy. They take any policy and any data with
the columns image, label and seen; only the field-guide questions belong to the bird world.

Departures from the paper: the regularisation of a probe is chosen on validation pictures, never on test ones (its
best figure on the test pictures stands beside it); H3 is a cross-validated number, where the paper has a PCA picture;
names get a permutation test of their families instead of a t-test. New here: CKA, and how far each linear moved.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch.nn.functional import normalize

from finer1_lite.birds.diet import direct
from finer1_lite.birds.species import ATTRIBUTES, Species, look_alikes
from finer1_lite.evaluate.answers import judge
from finer1_lite.evaluate.siglip import fit_linear
from finer1_lite.policy.inputs import ImageFeatures, Prompt, VisionCache, answer_ids, model_inputs, pad, prompt_ids
from finer1_lite.policy.load import Policy
from finer1_lite.policy.lora import decoding
from finer1_lite.policy.rollout import rollout
from finer1_lite.policy.scoring import completion_logps
from finer1_lite.prompts import THINK_INSTRUCTION
from studies.budget import stated_looks

L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # weights of the penalty that a probe chooses from
IS_IT = "Is the bird species {}?"  # the paper's question for H3


# ---- hidden states


@torch.no_grad()
def _states(policy: Policy, prompts: Sequence[Prompt]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For batches of prompts: token ids (B, P), lengths (B), hidden states (L + 1, B, P, H).

    States[0] is what enters the first layer, the last one is what the head reads (after the final norm).
    """
    policy.model.eval()
    tokenizer, size = policy.processor.tokenizer, policy.profile.eval_batch
    with decoding(policy):
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            rows = [prompt_ids(policy.processor, text, seen) for text, seen in part]
            ids, mask = pad(rows, tokenizer.pad_token_id, "right"), pad([[1] * len(r) for r in rows], 0, "right")
            inputs = model_inputs(policy.model, ids, mask, [seen for _, seen in part])
            made = policy.backbone(**inputs, output_hidden_states=True, use_cache=False).hidden_states
            yield ids, mask.sum(1), torch.stack([h.float().cpu() for h in made])


def layer_states(policy: Policy, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each layer, the mean over a prompt's image tokens and the state before the answer: two (L + 1, N, H).

    An image stands before the question, so its tokens have not read it: the first is the same for every question.
    ValueError for a prompt without an image.
    """
    if any(seen is None for _, seen in prompts):
        raise ValueError("a prompt has no image, so there are no image tokens: use name_states for text")
    image, last = [], []
    for ids, lengths, states in _states(policy, prompts):
        mine = (ids == policy.model.config.image_token_id).float()[..., None]  # (B, P, 1)
        image.append((states * mine).sum(2) / mine.sum(1))
        last.append(states[:, torch.arange(len(ids)), lengths - 1])
    return torch.cat(image, 1), torch.cat(last, 1)


def image_token_features(policy: Policy, cache: VisionCache, rows: Sequence[int], prompt: str) -> torch.Tensor:
    """Mean over the image tokens of the last layer (N, H), of the images `rows`, asked `prompt` (the paper's H1)."""
    return layer_states(policy, [(prompt, seen) for seen in cache.get(rows)])[0][-1]


def name_states(policy: Policy, names: Sequence[str], sentence: str = "The {}") -> torch.Tensor:
    """Last layer's state (N, H) of each name's last token, in a sentence that says nothing and ends with it."""
    end, made = policy.processor.tokenizer.eos_token_id, []
    for ids, _, states in _states(policy, [(sentence.format(name), None) for name in names]):
        ends = ((ids == end) * torch.arange(ids.shape[1])).argmax(1)  # the user's turn ends right behind the name
        made.append(states[-1, torch.arange(len(ids)), ends - 1])
    return torch.cat(made)


# ---- linear probes (H1, H3)


Split = tuple[torch.Tensor, torch.Tensor]  # features (N, H), class numbers (N)


def linear_probe(train: Split, val: Split, test: Split, l2: Sequence[float] = L2) -> dict[str, float]:
    """Test accuracy of a linear probe: fitted on `train`, its penalty chosen on `val` (the larger one in a tie).

    Keys: test, val, l2, and best_on_test, what one reports who chooses the penalty on the test pictures.
    """
    mean, scale = train[0].mean(0), train[0].std(0) + 1e-6
    (x, y), *others = [((features - mean) / scale, labels) for features, labels in (train, val, test)]
    classes, found = int(max(labels.max() for _, labels in (train, val, test))) + 1, []
    for penalty in l2:
        weight = fit_linear(x, y, classes, penalty)
        scores = [((z @ weight[:-1] + weight[-1]).argmax(1) == labels).double().mean().item() for z, labels in others]
        found.append((scores[0], penalty, scores[1]))
    best = max(found)
    return {"test": best[2], "val": best[0], "l2": best[1], "best_on_test": max(test for *_, test in found)}


def folds_of(groups: dict[str, str], k: int, seed: int) -> dict[str, int]:
    """A fold 0..k-1 for each class of `groups` (class -> group); a group stays together. ValueError: fewer than k."""
    names = sorted(set(groups.values()))
    if len(names) < k:
        raise ValueError(f"{k} folds need {k} groups, there are {len(names)}: take fewer folds or more classes")
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[i]: place % k for place, i in enumerate(order)}
    return {label: fold[group] for label, group in groups.items()}


def wrong_names(labels: Sequence[str], fold: dict[str, int], nearest: dict[str, list[str]], seed: int):
    """For each label its most similar class and a random one, (N) each, both of the label's own fold.

    So no class, neither shown nor asked about, is in two folds.
    """
    rng, alike, random = np.random.default_rng(seed), [], []
    for label in labels:
        others = [name for name in nearest[label] if fold[name] == fold[label]]
        alike.append(others[0])
        random.append(others[int(rng.integers(len(others)))])
    return alike, random


def separability(right: torch.Tensor, wrong: torch.Tensor, fold: torch.Tensor, l2: Sequence[float] = L2) -> float:
    """Cross-validated accuracy of a linear probe that tells right (N, H) from wrong (N, H); chance is 0.5.

    fold: (N) of each pair. Each fold is tested once; the next one chooses the penalty; the others fit.
    """
    k, scores = int(fold.max()) + 1, []

    def split(mask: torch.Tensor) -> Split:
        sides = (right[mask], wrong[mask])
        return torch.cat(sides), torch.cat([torch.full((len(s),), i) for i, s in enumerate(sides)])

    for test in range(k):
        val = (test + 1) % k
        parts = ((fold != test) & (fold != val), fold == val, fold == test)
        scores.append(linear_probe(*map(split, parts), l2)["test"] * (fold == test).sum().item())
    return sum(scores) / len(fold)


def same_direction(right: torch.Tensor, wrong: torch.Tensor, fold: torch.Tensor) -> float:
    """Share of pairs whose difference right - wrong (N, H) points along the other folds' mean one; chance is 0.5.

    What is the same in both, the picture above all, cancels; a probe has to see past it.
    """
    gap, hits = right - wrong, 0
    for test in fold.unique():
        direction = gap[fold != test].mean(0)
        hits += ((gap[fold == test] @ direction) > 0).sum().item()
    return hits / len(fold)


def principal(x: torch.Tensor, k: int = 2) -> torch.Tensor:
    """The first k principal components (N, k) of x (N, H)."""
    centred = x - x.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:k].T


# ---- names and the field guide (H2)


def cosines(x: torch.Tensor) -> torch.Tensor:
    """Cosine similarity (N, N) of rows."""
    unit = normalize(x, dim=1)
    return unit @ unit.T


def group_gap(similarity: torch.Tensor, groups: Sequence[str]) -> float:
    """Mean similarity (N, N) of two members of one group minus that of two of different groups.

    ValueError where there are no two of one group, or none of different groups.
    """
    numbers = torch.from_numpy(np.unique(np.asarray(groups), return_inverse=True)[1])
    same = numbers[:, None] == numbers
    pairs = ~torch.eye(len(numbers), dtype=torch.bool)
    if not (same & pairs).any() or same.all():
        found = f"{len(groups)} names of {len(set(groups))} groups"
        raise ValueError(f"{found}: a gap needs two names of one group, and two groups")
    return (similarity[same & pairs].mean() - similarity[~same].mean()).item()


def permutation_test(similarity: torch.Tensor, groups: Sequence[str], draws: int, seed: int) -> tuple[float, float]:
    """`group_gap` and its two-sided p: how often groups dealt anew reach a gap as far from 0.

    Of a difference of two similarity matrices it tests whether the change goes with the groups.
    """
    rng, groups = np.random.default_rng(seed), np.asarray(groups)
    gap = group_gap(similarity, groups)
    dealt = [group_gap(similarity, rng.permutation(groups)) for _ in range(draws)]
    return gap, (1 + sum(abs(d) >= abs(gap) for d in dealt)) / (1 + draws)


def described(policy: Policy, seen: list[ImageFeatures], species: Sequence[Species]) -> tuple[list[float], list[str]]:
    """Share of the eight attributes that a greedy description of each picture states rightly, and the descriptions."""
    texts = rollout(policy, [("Describe the bird.", s) for s in seen], 1, generator=None, temperature=0).texts
    return [_looks(s, text) for s, text in zip(species, texts)], texts


def named_by_text(policy: Policy, looks: Sequence[str], species: Sequence[Species]) -> list[float]:
    """Whether "Which bird has <looks>?" is answered with each species' name, without a picture.

    With the policy's own descriptions it is what it could name if it put what it sees and what it knows together.
    """
    asked = [(f"Which bird has {text.strip().rstrip('.')}?", None) for text in looks]
    texts = rollout(policy, asked, 1, generator=None, temperature=0).texts
    return [float(judge(0, s.name, False, text).correct) for s, text in zip(species, texts)]


def _holds(value: Callable[[Species], str]) -> Callable[[Species, str], float]:
    return lambda s, text: float(judge(0, value(s), False, text).correct)


def _looks(s: Species, text: str) -> float:
    stated = stated_looks(text)
    return float(np.mean([stated.get(part) == value for part, value in zip(ATTRIBUTES, s.looks)]))


# Kind -> (question, how right a text answers it, 0-1). {0}: the name, {1}: the looks.
GUIDE_QUESTIONS: dict[str, tuple[str, Callable[[Species, str], float]]] = {
    "name to looks": ("What does the {0} look like?", _looks),
    "looks to name": ("Which bird has {1}?", _holds(lambda s: s.name)),
    "nest": ("What does the {0} nest in?", _holds(lambda s: s.nest)),
    "food": ("What does the {0} eat?", _holds(lambda s: s.food)),
    "nest, told to think": (f"What does the {{0}} nest in? {THINK_INSTRUCTION}", _holds(lambda s: s.nest)),
    "food, told to think": (f"What does the {{0}} eat? {THINK_INSTRUCTION}", _holds(lambda s: s.food)),
}  # fmt: skip


def recalled(policy: Policy, species: Sequence[Species], kind: str) -> tuple[list[float], list[str]]:
    """How right the policy answers a question of GUIDE_QUESTIONS about each species (0-1), and its greedy answers."""
    form, score = GUIDE_QUESTIONS[kind]
    asked = [(form.format(s.name, s.describe()), None) for s in species]
    texts = rollout(policy, asked, 1, generator=None, temperature=0).texts
    return [score(s, text) for s, text in zip(species, texts)], texts


@torch.no_grad()
def answer_logps(policy: Policy, prompts: Sequence[Prompt], answers: Sequence[str]) -> torch.Tensor:
    """Log-probability (N) of each answer, end of turn included, under its own prompt."""
    policy.model.eval()
    made, size = [], policy.profile.eval_batch
    for start in range(0, len(prompts), size):
        ids = [answer_ids(policy.processor, answer) for answer in answers[start : start + size]]
        mask = pad([[1] * len(i) for i in ids], 0, "right")
        padded = pad(ids, policy.processor.tokenizer.pad_token_id, "right")
        made.append(completion_logps(policy, prompts[start : start + size], padded, mask).sum(1).float().cpu())
    return torch.cat(made)


def recognised(policy: Policy, species: Sequence[Species]) -> dict[str, list[bool]]:
    """Whether the field guide's own sentence about each species is likelier than those about its three look-alikes.

    Asks what is known without asking for a form: a model that has learnt to answer everything with a chain may still
    prefer the true sentence. Guessing is right for one in four.
    """
    kinds = {
        "looks to name": lambda s, other: (f"Which bird has {s.describe()}?", direct(other.name)),
        "name to looks": lambda s, other: (
            f"What does the {s.name} look like?", f"The {s.name} has {other.describe()}."),
    }  # fmt: skip
    found = {}
    for kind, ask in kinds.items():
        pairs = [ask(s, other) for s in species for other in (s, *look_alikes(s.name))]
        logps = answer_logps(policy, [(text, None) for text, _ in pairs], [answer for _, answer in pairs])
        found[kind] = (logps.view(len(species), -1).argmax(1) == 0).tolist()
    return found


# ---- where training changed the model


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Debiased linear CKA of two sets of features of the same N inputs, (N, H) and (N, K).

    1: the same but for rotation and scale; about 0: unrelated (it may be slightly negative). Kornblith et al. 2019,
    with the unbiased HSIC of Song et al. 2012. ValueError for fewer than 4 inputs.
    """
    if len(x) < 4:
        raise ValueError(f"debiased CKA needs at least 4 inputs, got {len(x)}")
    a, b = (z.double() @ z.double().T for z in (x - x.mean(0), y - y.mean(0)))
    return (_hsic(a, b) / (_hsic(a, a) * _hsic(b, b)).sqrt()).item()


def _hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Unbiased HSIC, without its common factor 1 / (n (n - 3)), of two kernels (N, N)."""
    n, (a, b) = len(a), (k - k.diag().diag() for k in (a, b))
    return (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))


@torch.no_grad()
def lora_moves(policy: Policy) -> dict[str, float]:
    """Relative size of the adapter's change, |dW| / |W| (Frobenius, W unpacked), for each linear: "0 q_proj" -> share.

    ValueError for a policy without an adapter.
    """
    moves = {}
    for name, layer in policy.model.named_modules():
        if isinstance(layer, LoraLayer) and layer.active_adapters:
            delta = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            parts = name.split(".")
            number = parts[parts.index("layers") + 1]
            weight = dequantize_module_weight(layer.get_base_layer())
            moves[f"{number} {parts[-1]}"] = (delta.norm() / weight.norm()).item()
    if not moves:
        raise ValueError("this policy has no adapter, so nothing has moved: load one with load_policy")
    return moves
