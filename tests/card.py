"""A pretended card: tensors that say they lie on `card:0`, and that complain as CUDA does where one meets the CPU.

Every operation is really done, on the CPU, so results are exact; nothing is said about kernels, speed and memory."""

from contextlib import contextmanager
from threading import Thread

import torch
from bitsandbytes.nn import Params4bit
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "card"


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def is_bf16_supported(self):
        return True


if not hasattr(torch, NAME):
    _setup_privateuseone_for_python_backend(NAME, Backend())
CARD = torch.device(NAME, 0)
# What CUDA takes from both sides: copies, and index tensors of the CPU for a tensor of the card.
COPIES = {"_to_copy", "copy_", "copy", "set_"}
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


def is_card(device) -> bool:
    return device is not None and torch.device(device).type == NAME


class OnCard(torch.Tensor):
    """The tensor `held`, said to lie on the card."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, device=CARD)
        self.held = held
        return self

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):  # as `module.float()` does, and a 4-bit weight when it is packed
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def __repr__(self):
        return f"OnCard({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name.split("::")[1]
        if name == "_fused_sdp_choice":
            return 0  # the composite of plain products: the fused ones are other operations on each device
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        strangers = [t for t in tensors if not isinstance(t, cls) and t.dim()]
        if name in INDEXED and isinstance(args[0], cls):
            strangers = [t for t in strangers if any(t is value for value in tree_leaves(args[2:]))]
        if strangers and name not in COPIES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got some on card:0 and one of shape "
                f"{tuple(strangers[0].shape)} on cpu"
            )
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = "cpu"
        made = function(*real(args), **real(kwargs))
        if name.endswith("_") and not name.endswith("__"):  # in place: the same object
            assert all(t.shape == real(t).shape for t in tree_leaves(args[0])), f"{name} changes a shape in place"
            return args[0] if function._schema.returns else None
        if (wanted is not None and not is_card(wanted)) or (name == "copy" and not isinstance(args[0], cls)):
            return made
        return on_card(made)


def real(tree):
    return tree_map(lambda t: t.held if isinstance(t, OnCard) else t, tree)


def on_card(tree):
    return tree_map(lambda t: OnCard(t) if isinstance(t, torch.Tensor) and not isinstance(t, OnCard) else t, tree)


def made_on_card(function, *args, **kwargs):
    return OnCard(function(*args, **kwargs | {"device": "cpu"}))


FACTORIES = torch.library.Library("_", "IMPL")
FACTORIES.fallback(made_on_card, "PrivateUse1")


class Card(TorchFunctionMode):
    """Inside, a tensor of the card can be a list, and cannot be an array."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("tolist", "storage", "untyped_storage", "data_ptr") and isinstance(args[0], OnCard):
            return getattr(args[0].held, name)()
        if name == "numpy" and isinstance(args[0], OnCard):
            raise TypeError("can't convert card:0 device type tensor to numpy. Use Tensor.cpu()")
        kwargs = dict(kwargs or {})
        if name in ("__getitem__", "__setitem__"):  # else C++ would make tensors of them where it cannot be followed
            numbers = (torch.tensor(x, dtype=args[0].dtype) if isinstance(x, float) else x for x in args[2:])
            args = (args[0], as_tensors(args[1]), *numbers)
        if name != "to" and is_card(kwargs.get("device")):
            args = real(args) if function is torch.tensor else args  # of numbers that lie on the card
            return function(*args, **kwargs | {"device": "cpu"}).to(CARD)
        return function(*args, **kwargs)


def as_tensors(index):
    if isinstance(index, tuple):
        return tuple(map(as_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


class PackedOnCard(OnCard, Params4bit):
    """A packed weight on the card."""


PackedOnCard.__name__ = Params4bit.__name__  # PEFT asks for it


class AnyGenerator(torch.Generator):
    """Random numbers of any device are drawn on the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


@contextmanager
def card():
    """A card for the code inside. One thread does the backward passes: the others belong to real devices."""
    subclass, run = torch.Tensor._make_subclass, Thread.run

    def packed(cls, data, *args):
        return PackedOnCard(data.held) if isinstance(data, OnCard) else subclass(cls, data, *args)

    def run_with_card(thread):
        with Card():
            run(thread)

    torch.Generator, torch.Tensor._make_subclass = AnyGenerator, packed
    Thread.run = run_with_card  # `generate` streams from a thread of its own
    try:
        with torch.autograd.set_multithreading_enabled(False), Card():
            yield
    finally:
        torch.Generator, torch.Tensor._make_subclass = AnyGenerator.__base__, subclass
        Thread.run = run
