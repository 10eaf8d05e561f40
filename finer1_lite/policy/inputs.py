"""From (image features, text) rows to the model's inputs, and from rows with answers to labels.

Every image is encoded once by the frozen vision tower (`VisionCache`); afterwards a row of text and
the stored features are enough. `mm_token_type_ids` and `image_grid_thw` are always passed: without
them the model silently falls back to one-dimensional positions.
"""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..images import as_rgb
from ..prompts import messages
from .batching import cut

IGNORE = -100
IMAGE_PAD = "<|image_pad|>"
PATCHES_AT_ONCE = 8192  # in the vision tower: eight images of 448x448


@dataclass(frozen=True)
class Seen:
    """What the vision tower made of one image: `tokens` (N, H) and `grid` (3,) in patches."""

    tokens: torch.Tensor
    grid: torch.Tensor


def prompt_ids(processor, text: str, seen: Seen | None) -> list[int]:
    """Token ids of a user turn up to the assistant's first token; the image is N placeholders."""
    rows = messages(text) if seen is not None else [{"role": "user", "content": text}]
    chat = processor.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    if seen is not None:
        chat = chat.replace(IMAGE_PAD, IMAGE_PAD * len(seen.tokens))
    return processor.tokenizer(chat, add_special_tokens=False)["input_ids"]


def answer_ids(processor, answer: str) -> list[int]:
    """Token ids of an assistant turn with its end-of-turn token, on which stopping is learnt."""
    return processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]


def pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    """Rows of different length as one (B, L) tensor, padded on the given side."""
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value, padding_side=side)


def home(model) -> torch.Tensor:
    """The token embedding: its device and dtype are the language model's. `model.device` would be the vision
    tower's, which may wait on the CPU, in fp32."""
    return model.get_input_embeddings().weight


def model_inputs(model, input_ids: torch.Tensor, attention_mask: torch.Tensor, seen: list[Seen | None]) -> dict:
    """Keyword arguments for `forward` or `generate`.

    input_ids, attention_mask: (B, L), one image at most in each row, in the order of `seen` (B).
    """
    device = home(model).device
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    images = [s for s in seen if s is not None]
    if images:
        tokens = tuple(s.tokens.to(device) for s in images)
        inputs["mm_token_type_ids"] = (input_ids == model.config.image_token_id).int().to(device)
        inputs["image_grid_thw"] = torch.stack([s.grid for s in images]).to(device)
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
    return inputs


def training_batch(model, processor, rows: list[tuple[str, Seen | None, str]]) -> tuple[dict, torch.Tensor]:
    """Right-padded inputs and labels (B, L) of (question, seen, answer) rows; only answers are labelled."""
    prompts = [prompt_ids(processor, text, seen) for text, seen, _ in rows]
    answers = [answer_ids(processor, answer) for *_, answer in rows]
    ids = pad([p + a for p, a in zip(prompts, answers)], processor.tokenizer.pad_token_id, "right")
    labels = pad([[IGNORE] * len(p) + a for p, a in zip(prompts, answers)], IGNORE, "right")
    mask = pad([[1] * (len(p) + len(a)) for p, a in zip(prompts, answers)], 0, "right")
    return model_inputs(model, ids, mask, [seen for _, seen, _ in rows]), labels.to(home(model).device)


@contextmanager
def tower_at_home(model):
    """Inside, the vision tower is where the language model is; outside it may wait on the CPU (`Profile.offload_tower`).

    `generate` needs it too: it puts what it makes where a model's first parameter is, which is the tower's.
    """
    qwen = model.get_base_model() if hasattr(model, "get_base_model") else model  # below an adapter
    waits = qwen.model.visual.device
    try:
        qwen.model.visual.to(home(qwen).device)
        yield
    finally:
        qwen.model.visual.to(waits)


class VisionCache:
    """Features of a data set's images, each encoded once, kept on the CPU up to `max_bytes`.

    `images` is anything that gives a PIL image for `images[i]`. Features are detached: with LoRA on
    the language model the tower is frozen, so they never change. Beyond `max_bytes` the features that were
    not asked for the longest are dropped, and encoded again when they are. A tower that waits on the CPU
    (`Profile.offload_tower`) goes to the model's device while it encodes.
    """

    def __init__(self, model, processor, images, batch_size: int = 32, max_bytes: int = 4 * 2**30):
        qwen = model.get_base_model() if hasattr(model, "get_base_model") else model  # below an adapter
        self.qwen, self.vision = qwen, qwen.model.visual
        self.processor, self.images, self.batch_size, self.max_bytes = processor, images, batch_size, max_bytes
        self.patches_encoded, self.bytes, self._seen, self._about = 0, 0, {}, {}

    def get(self, indices) -> list[Seen]:
        """Features of the images `indices`, in that order."""
        indices = [int(i) for i in indices]
        wanted = {i: self._seen[i] for i in dict.fromkeys(indices) if i in self._seen}
        missing = [i for i in dict.fromkeys(indices) if i not in wanted]
        if missing:
            with tower_at_home(self.qwen):
                for start in range(0, len(missing), self.batch_size):
                    wanted |= self._encode(missing[start : start + self.batch_size])
        self._keep(wanted)
        return [wanted[i] for i in indices]

    def about(self, i: int) -> tuple[tuple[int, int], bytes]:
        """Image i's size in pixels and a digest of its pixels; it is opened once for them."""
        if i not in self._about:
            image = self.images[i]
            self._about[i] = image.size, hashlib.sha256(image.tobytes()).digest()
        return self._about[i]

    def _keep(self, wanted: dict[int, Seen]) -> None:
        """Remember these as the newest, and forget the oldest beyond `max_bytes`."""
        for i, seen in wanted.items():
            self.bytes += 0 if self._seen.pop(i, None) else seen.tokens.nbytes
            self._seen[i] = seen
        while self.bytes > self.max_bytes and len(self._seen) > 1:
            self.bytes -= self._seen.pop(next(iter(self._seen))).tokens.nbytes

    @torch.no_grad()
    def _encode(self, indices: list[int]) -> dict[int, Seen]:
        pixels, grids, tokens = [], [], []
        for i in indices:  # one at a time: photographs are large until they are scaled down
            made = self.processor.image_processor(as_rgb(self.images[i]), return_tensors="pt")
            pixels.append(made["pixel_values"])
            grids.append(made["image_grid_thw"])
        grid = torch.cat(grids)
        patches = grid.prod(-1).tolist()
        for part in cut(patches, PATCHES_AT_ONCE, len(patches)):
            rows, sizes = torch.cat(pixels[part.start : part.stop]), grid[part.start : part.stop]
            rows, sizes = rows.to(self.vision.device, self.vision.dtype), sizes.to(self.vision.device)
            merged = self.vision(rows, sizes).pooler_output.to("cpu", home(self.qwen).dtype)
            tokens += merged.split([patches[i] // self.processor.image_processor.merge_size**2 for i in part])
        self.patches_encoded += sum(patches)
        made = {i: Seen(t.clone(), g) for i, t, g in zip(indices, tokens, grid)}
        broken = [i for i, seen in made.items() if not seen.tokens.isfinite().all()]
        if broken:
            width, height = self.images[broken[0]].size
            raise FloatingPointError(
                f"the features of image {broken[0]} ({width}x{height} pixels) overflow "
                f"{home(self.qwen).dtype}; lower max_pixels of the profile, or take a card with bfloat16"
            )
        return made
