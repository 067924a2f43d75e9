"""Python objects as short texts that are equal where the objects do the same, in this process and after a restart.

Nodes make their patches anew whenever they run, so that no patch is the object that it was in the run before. Functions are
compared by their code and by what it reads: closure cells, defaults, global values. Other objects are compared by their class and
attributes, tensors by their numbers. What shows none of these (a file, a generator) is a thing of its own while it lives.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import hashlib
import itertools
import json
import logging
import pathlib
import re
import types
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

#: functions of this package have no changing globals that matter
OURS = __name__.partition(".host.")[0]
#: numbers of a tensor that are read at most: of a picture or mask that a patch uses, and of a weight
READ, SAMPLED = 1 << 22, 64
#: a tensor of so few numbers is read whole in any case
SMALL = 4096
#: parts of one object that are looked at; one with more is a thing of its own
MOST_PARTS = 200_000
#: under which a function of ours that stands around another one keeps that one
AROUND = "dreammatcher_around"
#: attributes of the host's layers that say where their weights are and not what they are
PLACES = ("comfy_", "prev_comfy_", "weight_function", "bias_function", "training", "device", "model_loaded_weight_memory",
          "lowvram_patch_counter", "model_lowvram", "current_weight_patches_uuid", "model_offload_buffer_memory")

_PLAIN = (bool, int, float, str, complex, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, range, slice,
          pathlib.PurePath, np.generic, np.dtype, uuid.UUID, type(Ellipsis), type(NotImplemented))
_VALUES = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, torch.Tensor, np.ndarray, type(None))
_BUILTIN = (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodWrapperType, types.MethodDescriptorType,
            types.GetSetDescriptorType, types.MemberDescriptorType)

#: classes of C that keep nothing beside their attributes
_OPEN = (object, types.SimpleNamespace)
#: what a caller has to say about some objects: their parts, or NotImplemented
Special = Callable[[Any], Any]
_PROCESS = uuid.uuid4().hex
_numbers = itertools.count()
_lone: dict[int, tuple[weakref.ref, str]] = {}  # id of an object that shows nothing -> itself and its name, while it lives


class TooLarge(Exception):
    """An object has more parts than can be looked at."""


def digest(*values: object, known: Mapping[int, str] | None = None, special: Special | None = None, most: int = READ) -> str:
    """64 hexadecimal digits that change with what ``values`` do. Of a tensor at most ``most`` numbers are read.

    ``known`` names objects by their id, which are not looked into. An object with a method ``content_identity`` says itself what
    there is to compare; records and stores say nothing.
    """
    reader = Reader(known or {}, special, most)
    try:
        parts = [reader.read(value) for value in values]
    except (TooLarge, RecursionError):
        parts = [name_of(value) for value in values]
    return hashlib.sha256(json.dumps([parts, read_numbers(reader.tensors)]).encode()).hexdigest()


def standing_around(previous: Callable, function: Callable) -> Callable:
    """``function``, marked as ours and as standing around ``previous``, which alone counts: see :func:`inside`."""
    setattr(function, AROUND, previous)
    return function


def inside(function: Any) -> Any:
    """The function that stands inside of all functions of ours around it."""
    while isinstance(function, types.FunctionType) and hasattr(function, AROUND):
        function = getattr(function, AROUND)
    return function


def name_of(value: object) -> str:
    """A name that no other object has in this process or another. It is the object's for as long as it lives."""
    known = _lone.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    number, name = id(value), f"{type(value).__qualname__} {_PROCESS} {next(_numbers)}"
    with contextlib.suppress(TypeError):  # of some there is no telling whether they are the same later on
        _lone[number] = weakref.ref(value, lambda _: _lone.pop(number, None)), name
    return name


def few(value: torch.Tensor, most: int = SAMPLED) -> torch.Tensor:
    """At most ``most`` numbers of a tensor from all over it, float32 [N]; small ones whole."""
    if value.is_sparse or value.is_quantized:
        value = value.to_dense() if value.is_sparse else value.dequantize()
    flat = value.detach().flatten()
    flat = flat if flat.numel() <= max(SMALL, most) else flat[:: -(-flat.numel() // most)]
    return torch.view_as_real(flat).flatten().float() if flat.is_complex() else flat.float()


def read_numbers(tensors: list[torch.Tensor]) -> list[str]:
    """A hash of each float32 tensor. Small ones of one device are transferred together; large ones would be in memory twice."""
    places: dict[torch.device, list[int]] = {}
    read = [""] * len(tensors)
    for place, one in enumerate(tensors):
        if one.numel() > SMALL:
            read[place] = _hash(one.cpu().numpy())
        else:
            places.setdefault(one.device, []).append(place)
    for chosen in places.values():
        together = torch.cat([tensors[place] for place in chosen]).cpu().numpy()
        ends = np.cumsum([tensors[place].numel() for place in chosen])
        for place, numbers in zip(chosen, np.split(together, ends[:-1])):
            read[place] = _hash(numbers)
    return read


def _hash(numbers: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers).data).hexdigest()


class Reader:
    """Turns objects into nested lists of text; tensors are gathered, to be read together."""

    def __init__(self, known: Mapping[int, str], special: Special | None, most: int):
        self.known, self.special = known, special
        self.seen: dict[int, int] = {}
        self.held: list[object] = []  # no id is given twice
        self.tensors: list[torch.Tensor] = []
        self.most = most

    def read(self, value: Any) -> Any:
        """The parts of ``value`` that are compared."""
        if isinstance(value, enum.Enum):
            return [_named(type(value)), value.name]
        if isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, (bytes, bytearray, memoryview)):
            return ["bytes", hashlib.sha256(bytes(value)).hexdigest()]
        if isinstance(value, type):
            return ["class", self._class(value)]
        if isinstance(value, (types.ModuleType, logging.Logger)):
            return [type(value).__name__, getattr(value, "__name__", "") or value.name]
        if id(value) in self.known:
            return ["known", self.known[id(value)]]
        if id(value) in self.seen:
            return ["again", self.seen[id(value)]]
        self.seen[id(value)] = len(self.seen)
        self.held.append(value)
        if len(self.seen) > MOST_PARTS:
            raise TooLarge
        return self._parts(value)

    def _parts(self, value: Any) -> Any:
        if hasattr(type(value), "content_identity"):
            return [_named(type(value)), self.read(value.content_identity())]
        if self.special is not None and (parts := self.special(value)) is not NotImplemented:
            return [_named(type(value)), self.read(parts)]
        if torch.is_tensor(value):
            return self._tensor(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return ["array", str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        if isinstance(value, Image.Image):
            return ["picture", value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()]
        if isinstance(value, Mapping):
            return ["mapping", sorted(([self.read(key), self.read(one)] for key, one in value.items()), key=json.dumps)]
        if isinstance(value, (set, frozenset)):
            return ["set", sorted((self.read(one) for one in value), key=json.dumps)]
        if isinstance(value, (list, tuple, collections.deque)):
            return [type(value).__name__, [self.read(one) for one in value]]
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        return self._callable(value)

    def _callable(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return ["method", self.read(value.__func__), self.read(value.__self__)]
        if isinstance(value, functools.partial):
            return ["partial", self.read(value.func), self.read(value.args), self.read(value.keywords)]
        if isinstance(value, _BUILTIN):
            owner = getattr(value, "__self__", None)
            return ["builtin", value.__qualname__, None if isinstance(owner, types.ModuleType) else self.read(owner)]
        if isinstance(value, (staticmethod, classmethod)):
            return ["static", self.read(value.__func__)]
        if isinstance(value, property):
            return ["property", self.read((value.fget, value.fset))]
        if isinstance(value, weakref.ref):
            return ["reference", self.read(value())]
        if isinstance(value, re.Pattern):
            return ["pattern", value.pattern, value.flags]
        if isinstance(value, torch.Generator):
            return ["generator", self.read(value.get_state())]
        return self._object(value)

    def _tensor(self, value: torch.Tensor) -> Any:
        if value.is_meta:
            return ["tensor", list(value.shape)]
        if type(value) not in (torch.Tensor, torch.nn.Parameter) and vars(value):  # packed: a host's or a pack's own kind
            return ["tensor", _named(type(value)), list(value.shape), self.read(dict(vars(value)))]
        self.tensors.append(few(value, self.most))
        return ["tensor", list(value.shape), len(self.tensors)]

    def _module(self, value: torch.nn.Module) -> Any:
        if hasattr(value, "_orig_mod"):  # torch.compile computes what it was given
            return self.read(value._orig_mod)
        before, self.most = self.most, SAMPLED
        attributes = {name: one for name, one in vars(value).items()
                      if not (name.startswith(PLACES) or name.startswith("_") and name in _MODULE_FIELDS)}
        hooks = [*value._forward_pre_hooks.values(), *value._forward_hooks.values()]
        parts = [self._class(type(value)), self.read(attributes), self.read(dict(value._parameters)),
                 self.read(dict(value._buffers)), self.read(hooks), self.read(dict(value._modules))]
        self.most = before
        return ["module", parts]

    def _function(self, value: types.FunctionType) -> Any:
        cells = [self._cell(cell) for cell in value.__closure__ or ()]
        ours = (value.__module__ or "").startswith(OURS)
        used = [] if ours else [name for name in _names(value.__code__) if name in value.__globals__]
        used_globals = {name: value.__globals__[name] for name in used}
        matter = {name: one for name, one in used_globals.items() if isinstance(one, _VALUES) or (
            isinstance(one, types.FunctionType) and one.__module__ == value.__module__)}
        attributes = {name: one for name, one in vars(value).items() if name != AROUND}
        return ["function", value.__module__, value.__qualname__, _code(value.__code__), self.read(value.__defaults__),
                self.read(value.__kwdefaults__), cells, self.read(matter), self.read(attributes)]

    def _cell(self, cell: types.CellType) -> Any:
        try:
            return self.read(cell.cell_contents)
        except ValueError:
            return "empty"

    def _class(self, kind: type) -> Any:
        """A class by the names of its ancestry; classes that were made inside of functions also by their code."""
        described = []
        for one in kind.__mro__:
            if one in (object, torch.nn.Module):
                continue
            local = "<locals>" in one.__qualname__ and id(one) not in self.seen
            if local:
                self.seen[id(one)] = len(self.seen)
            described.append([_named(one), self.read({name: part for name, part in vars(one).items()
                                                      if not name.startswith("__") or name in ("__init__", "__call__")})
                              if local else None])
        return described

    def _object(self, value: Any) -> Any:
        kind = type(value)
        shown = all(base in _OPEN or base.__flags__ & 1 << 9 for base in kind.__mro__)  # classes of Python, not of C
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        if not shown or not (hasattr(value, "__dict__") or slots):
            return ["alone", name_of(value)]
        attributes = {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}
        return ["object", self._class(kind), self.read(attributes)]


_MODULE_FIELDS = frozenset(vars(torch.nn.Module()))


def _named(kind: type) -> list[str]:
    return [kind.__module__, kind.__qualname__]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if name not in ("__dict__", "__weakref__"))


def _names(code: types.CodeType) -> list[str]:
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _code(code: types.CodeType) -> str:
    """A hash of what a function's code does; where it stands in a file does not count."""
    constants = [_code(one) if isinstance(one, types.CodeType) else
                 sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one) for one in code.co_consts]
    said = [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
