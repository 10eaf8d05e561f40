"""For decoding: lighter linears than PEFT's over NF4, put in place for a rollout, and put back after it.

A decoding step is a few hundred small products, so what surrounds them costs more than they do. `dense` makes a plain
matrix of the unpacked weight: fastest, but the whole model in memory once more. In fp32 the adapter is added to it; in
16 bits the rounding of that sum would make another policy than the one that is scored, so there, as without `dense`, it
stays two products in the model's own precision. The packed weights and the adapter are not touched.
"""

from contextlib import contextmanager

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from .load import Policy


def plain_linear(layer: nn.Module) -> nn.Module:
    """What gives the layer's output from a plain weight (out, in): unpacked, and with the active adapter in it, or,
    in 16 bits, beside it."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    weight = dequantize_module_weight(base).detach().clone()
    exact = weight.dtype == torch.float32
    if exact and isinstance(layer, LoraLayer) and not layer.disable_adapters:
        for name in layer.active_adapters:
            weight += layer.get_delta_weight(name).to(weight.dtype)
    linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if base.bias is not None:
        linear.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
    return LeanLinear(layer, linear) if isinstance(layer, LoraLayer) and not exact else linear


class LeanLinear(nn.Module):
    """A LoRA layer as its base's product and two small ones; PEFT casts, clones and checks around them."""

    def __init__(self, layer: LoraLayer, base: nn.Module | None = None):
        super().__init__()
        self.base, self.sides = base or layer.get_base_layer(), []
        dtype = self.base.compute_dtype if isinstance(self.base, Linear4bit) else self.base.weight.dtype
        for name in () if layer.disable_adapters else layer.active_adapters:
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
            self.sides.append((down.T.to(dtype), up.T.to(dtype)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.base(x)
        for down, up in self.sides:
            made = made + x @ down @ up
        return made


@contextmanager
def decoding(policy: Policy):
    """Inside, the policy decodes with plain matrices (`Profile.dense_rollout`) or with lean adapters; no gradients."""
    swapped, dense = [], policy.profile.dense_rollout
    try:  # from the first swap on: memory may run out, or Ctrl-C come, in the middle
        with torch.no_grad():
            for parent in [m for m in policy.model.modules() if not isinstance(m, LoraLayer)]:
                for name, child in list(parent.named_children()):
                    inner = child.get_base_layer() if isinstance(child, LoraLayer) else child
                    adapted = inner is not child and isinstance(inner, nn.Linear)
                    if adapted or (dense and isinstance(inner, Linear4bit)):
                        swapped.append((parent, name, child))
                        setattr(parent, name, plain_linear(child) if dense else LeanLinear(child))
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)
