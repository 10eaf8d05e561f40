"""For decoding: every NF4 + LoRA linear as one plain matrix, built once for a rollout, and put back after it.

A decoding step is a few small products, and unpacking weights and adding adapters costs more than the
products. The sum is the same up to rounding; the packed weights and the adapter are not touched.
"""

from contextlib import contextmanager

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from .load import Policy


def plain_linear(layer: nn.Module) -> nn.Linear:
    """A linear of weight (out, in) = unpacked base weight + the active adapter's scaled B A, if there is one."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    weight = dequantize_module_weight(base).detach().clone()
    if isinstance(layer, LoraLayer) and not layer.disable_adapters:
        for name in layer.active_adapters:
            weight += layer.get_delta_weight(name).to(weight.dtype)
    linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if base.bias is not None:
        linear.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
    return linear


@contextmanager
def dense(policy: Policy):
    """Inside, the policy decodes with plain matrices (in the profile's dtype: the whole model's size again)."""
    swapped = []
    with torch.no_grad():
        for parent in [m for m in policy.model.modules() if not isinstance(m, LoraLayer)]:
            for name, child in list(parent.named_children()):
                inner = child.get_base_layer() if isinstance(child, LoraLayer) else child
                if isinstance(inner, Linear4bit) or (inner is not child and isinstance(inner, nn.Linear)):
                    swapped.append((parent, name, child))
                    setattr(parent, name, plain_linear(child))
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)
