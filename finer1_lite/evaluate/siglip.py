"""A CLIP-like model beside the policy: SigLIP from the Hub, or the bird world's own (`birds.clip`), by the same code.

Zero-shot is the cosine of a picture and "a photo of a {class}", among the options of a closed-world question or among
all names. Few-shot is a linear probe on the features of any encoder. Neither can say a name that it was not given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from ..config import ASSETS
from ..images import as_rgb

SHIPPED = ASSETS / "siglip"
ONE = ("a photo of a {}",)
ENSEMBLE = (
    *ONE, "a picture of a {}", "a close-up of a {}", "a {}", "a small {}", "my photo of a {}", "a {} in the wild",
)  # fmt: skip
STRENGTHS = tuple(10.0**e for e in range(-5, 2))  # of the probe's regularisation


class Siglip:
    """A SigLIP, frozen, with its processor. name: a Hub id ("google/siglip2-large-patch16-256"), or a folder."""

    def __init__(self, name: str | Path = SHIPPED, device: str = "cpu"):
        self.processor = AutoProcessor.from_pretrained(name)
        model = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        self.model, self.device = model.eval().requires_grad_(False).to(device), device

    @torch.no_grad()
    def images(self, images, batch: int = 64) -> torch.Tensor:
        """Unit rows (N, D) of PIL images, on the CPU."""
        rows = []
        for start in range(0, len(images), batch):
            part = [as_rgb(images[i]) for i in range(start, min(start + batch, len(images)))]
            pixels = self.processor.image_processor(part, return_tensors="pt").pixel_values.to(self.device)
            rows.append(self.model.get_image_features(pixel_values=pixels).pooler_output)
        return F.normalize(torch.cat(rows).float().cpu(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str], batch: int = 256) -> torch.Tensor:
        """Unit rows (N, D) of texts, on the CPU; each is padded to, or cut at, the length SigLIP was trained with."""
        length = self.model.config.text_config.max_position_embeddings
        how, rows = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}, []
        for start in range(0, len(texts), batch):
            ids = self.processor.tokenizer(texts[start : start + batch], **how).input_ids.to(self.device)
            rows.append(self.model.get_text_features(input_ids=ids).pooler_output)
        return F.normalize(torch.cat(rows).float().cpu(), dim=-1)

    def classes(self, names: Sequence[str], templates: Sequence[str] = ONE) -> torch.Tensor:
        """Unit rows (C, D) of class names: the mean of the unit rows of all templates ("a photo of a {}")."""
        rows = self.texts([template.format(name) for name in names for template in templates])
        return F.normalize(rows.view(len(names), len(templates), -1).mean(1), dim=-1)


def choose(scores: torch.Tensor, names: Sequence[str], options: Sequence[Sequence[str]] | None = None) -> list[str]:
    """The name with the highest score in each row of scores (N, C), or of the row's `options` ("" of none).

    >>> choose(torch.tensor([[0.1, 0.9, 0.5]]), ["wren", "finch", "tit"], [["wren", "tit"]])
    ['tit']
    """
    if options is None:
        return [names[i] for i in scores.argmax(-1).tolist()]
    place = {name: i for i, name in enumerate(names)}
    return [max(own, key=lambda name: row[place[name]], default="") for row, own in zip(scores.tolist(), options)]


def fit_linear(x: torch.Tensor, y: torch.Tensor, classes: int, l2: float, max_iter: int = 100) -> torch.Tensor:
    """Weights (H + 1, K), bias last, of a logistic regression of x (N, H), class numbers y (N,), l2 / 2 |W|^2."""
    weight = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=max_iter, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight[:-1] + weight[-1], y) + l2 / 2 * weight[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features (N, D): centred, scaled, `weight` (D, C), `bias` (C), L2 `strength`."""

    classes: list[str]
    centre: torch.Tensor
    scale: float
    weight: torch.Tensor
    bias: torch.Tensor
    strength: float

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C)."""
        return (features.double() - self.centre) / self.scale @ self.weight + self.bias


def fit_probe(features: torch.Tensor, labels: Sequence[str], strength: float) -> Probe:
    """Logistic regression of features (N, D): mean cross-entropy + strength / 2 |weight|^2, by L-BFGS from zero."""
    classes = sorted(set(labels))
    x, y = features.double(), torch.tensor([classes.index(label) for label in labels])
    centre = x.mean(0)
    scale = float((x - centre).norm(dim=-1).mean())  # features of any size are regularised alike
    w = fit_linear((x - centre) / scale, y, len(classes), strength, max_iter=300)
    return Probe(classes, centre, scale, w[:-1], w[-1], strength)


def choose_probe(
    features: torch.Tensor, labels: Sequence[str], val_features: torch.Tensor, val_labels: Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:  # fmt: skip
    """The probe of the training rows whose strength does best on the validation rows; the strongest of equals."""
    probes = [fit_probe(features, labels, strength) for strength in sorted(strengths, reverse=True)]
    answers = [choose(probe.scores(val_features), probe.classes) for probe in probes]
    right = [sum(a == b for a, b in zip(said, val_labels)) for said in answers]
    return probes[right.index(max(right))]
