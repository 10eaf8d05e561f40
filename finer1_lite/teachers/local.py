"""A teacher on this machine: any image-text-to-text model of transformers, with its own `generate`.

    teacher = LocalTeacher.from_pretrained("Qwen/Qwen2.5-VL-32B-Instruct", data["image"], four_bit=True)
    choose = partial(choose_concepts, encode=sentence_encoder(download=True))
    build_chains(tasks, teacher, teacher, choose, questions=describe_questions("bird"), prompt=explained_prompt)

`policy.rollout` is faster, but reads Qwen-VL only. A model's own generation_config is not followed.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..policy.batching import halved_until_it_fits
from ..policy.load import quantization, suit_the_card
from ..policy.rollout import forbidden_ids
from .endpoint import bounded


class LocalTeacher:
    """A `cot.build.Sampler`: (image index, prompt) pairs to texts, `batch_size` at a time, halved if memory is short.

    images: PIL images by index. temperature 0 takes the most likely tokens. max_pixels: larger pictures are scaled
    down. Same seed and calls, same texts; other random draws stay as they were."""

    def __init__(
        self, model, processor, images: Sequence, seed: int = 0, temperature: float = 1.0, top_p: float = 1.0,
        max_new_tokens: int = 1024, max_pixels: int = 1280 * 28 * 28, batch_size: int = 8,
    ):  # fmt: skip
        self.model, self.processor, self.images = model.eval(), processor, images
        self.max_pixels, self.batch_size, self.seeds = max_pixels, batch_size, torch.Generator().manual_seed(seed)
        self.how = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0, "repetition_penalty": 1.0}
        self.how |= {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
        self.how["suppress_tokens"] = forbidden_ids(model) or None

    @classmethod
    def from_pretrained(cls, model_id: str | Path, images: Sequence, four_bit=False, dtype="auto", **settings):
        """The model of a folder or of the Hub. four_bit: NF4, but for the tower. dtype: "float16" on a T4."""
        suit_the_card("cuda" if torch.cuda.is_available() else "cpu")
        how = {"device_map": "auto", "quantization_config": quantization(four_bit, dtype), "use_safetensors": True}
        model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, **how)
        if model.dtype == torch.float16 and hasattr(getattr(model, "model", None), "visual"):  # Qwen's overflows fp16
            model.model.visual.float()
        return cls(model, AutoProcessor.from_pretrained(model_id), images, **settings)

    @torch.no_grad()
    def __call__(self, asked: Sequence[tuple[int, str]]) -> list[str]:
        texts, bar = [], tqdm(total=len(asked), desc="teacher")
        while len(texts) < len(asked):
            left, seed = asked[len(texts) :], int(torch.randint(2**62, (), generator=self.seeds))
            made, self.batch_size = halved_until_it_fits(
                lambda size: self._write(left[:size], seed), self.batch_size, "texts sampled at once (batch_size)"
            )
            texts += made
            bar.update(len(made))
        return texts

    def _write(self, asked: Sequence[tuple[int, str]], seed: int) -> list[str]:
        images = [{"type": "image", "image": bounded(self.images[i], self.max_pixels)} for i, _ in asked]
        texts = [{"type": "text", "text": prompt} for _, prompt in asked]
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": turn}] for turn in zip(images, texts)], add_generation_prompt=True,
            tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},  # every text begins right after its prompt
        ).to(self.model.device, self.model.dtype)  # fmt: skip
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)  # `generate` takes no generator
            made = self.model.generate(**inputs, **self.how)
        return self.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
