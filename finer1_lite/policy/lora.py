"""LoRA in fewer operations than PEFT's, for training, and lighter still for decoding.

With `Profile.dense_rollout` each packed weight becomes a plain matrix: faster, but the model in memory once more.
In fp32 the adapter is added to it; in 16 bits that sum would be rounded and be another policy than the scored one.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch.nn import Identity, Linear, Module
from torch.nn.functional import linear, rms_norm


def with_lean_forward(model: PeftModel) -> PeftModel:
    """`model`, in place, with `lora_forward` on its linears; ValueError for DoRA, biases, dropout."""
    for layer in adapted_linears(model):
        dropout = any(not isinstance(d, Identity) for d in layer.lora_dropout.values())
        if layer.lora_variant or any(layer.lora_bias.values()) or dropout:
            raise ValueError("this adapter is not plain LoRA (DoRA, a bias or dropout): it would be computed wrongly")
        layer.forward = partial(lora_forward, layer)
    return model


def adapted_linears(model: Module) -> list[LoraLayer]:
    """The linears that have a LoRA adapter."""
    return [m for m in model.modules() if isinstance(m, LoraLayer) and isinstance(m.get_base_layer(), Linear)]


def lora_forward(layer: LoraLayer, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """(..., in) -> (..., out): what PEFT's forward gives, in fewer passes; in fp32 bit for bit, else as autocast."""
    if layer.disable_adapters or layer.merged or args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)
    return add_products(layer.get_base_layer(), matrices(layer), x)


def matrices(layer: LoraLayer) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """A (r, in), B (out, r) and alpha / r of each active adapter, in the precision that the layer computes in."""
    base, names = layer.get_base_layer(), [] if layer.disable_adapters else layer.active_adapters
    dtype = base.compute_dtype if isinstance(base, Linear4bit) else base.weight.dtype
    down, up, scaling = layer.lora_A, layer.lora_B, layer.scaling
    return [(down[n].weight.to(dtype), up[n].weight.to(dtype), scaling[n]) for n in names]


def add_products(base: Callable, adapters: list[tuple[torch.Tensor, torch.Tensor, float]], x: torch.Tensor):
    """base(x) + scaling x A' B' for each (A, B, scaling), summed in place; x (..., in) -> (..., out)."""
    made = base(x)
    for down, up, scaling in adapters:
        narrow = linear(x.to(made.dtype), down)
        side = linear(narrow if scaling == 1 else narrow * scaling, up)
        made = made + side if made._is_view() else made.add_(side)  # older PyTorch gives a view where there is a bias
    return made


def decoding_forward(module: Module, dense: bool) -> Callable | None:
    """What computes `module`'s output faster while no gradient is needed; None: the module itself."""
    if type(module).__name__.endswith("RMSNorm") and module.weight.dtype == torch.float32:  # same bits, in one call
        weight = module.weight
        return partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.variance_epsilon)
    adapted = isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), Linear)
    if not adapted and not (dense and isinstance(module, Linear4bit)):
        return None
    base = module.get_base_layer() if adapted else module
    adapters = [(down, up * scaling, 1) for down, up, scaling in matrices(module)] if adapted else []
    if dense:
        weight = dequantize_module_weight(base)
        if adapters and weight.dtype == torch.float32:
            weight, adapters = sum(map(module.get_delta_weight, module.active_adapters), weight), []
        base = partial(linear, weight=weight, bias=base.bias)
    return base if dense and not adapters else partial(add_products, base, adapters)


@contextmanager
def decoding(policy):
    """Inside, the policy decodes with plain matrices (`Profile.dense_rollout`) or lean adapters; no gradients."""
    adapted, swapped = adapted_linears(policy.model), []
    inner = {layer.get_base_layer() for layer in adapted}
    try:  # from the first swap on: memory may run out, or Ctrl-C come, in the middle
        with torch.no_grad():
            for module in policy.model.modules():
                forward = None if module in inner else decoding_forward(module, policy.profile.dense_rollout)
                if forward is not None:
                    swapped.append((module, vars(module).get("forward")))
                    module.forward = forward
        yield
    finally:
        for module, forward in swapped:
            vars(module).pop("forward", None)
            if forward:
                module.forward = forward
