"""One state dict out of whatever a checkpoint holds: which set of weights, without which prefix, and what is left."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from dynavit.checkpoints.files import read_checkpoint
from dynavit.errors import InputError, did_you_mean
from dynavit.text import first_line, listed

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "averaged_model", "teacher")
PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "backbone", "encoder", "student")
_ORDER = (*AVERAGED, *PLAIN)
_DEPTH = 3  # of mappings in mappings that weights are looked for in


@dataclass(frozen=True)
class StateDict:
    """A set of weights, and what else was there.

    Attributes:
        where: the file, for messages.
        tensors: by name.
        entry: what the set is called in the file; empty for a file that is one plain state dict.
        prefix: what was taken off all names.
        others: names of other sets, and starts of names of equal fit.
        left_out: what the file holds beside the set, in words or names.
    """

    where: str
    tensors: dict[str, Tensor]
    entry: str = ""
    prefix: str = ""
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def note(self) -> str | None:
        """Return in one line what was taken of the file; None where that is all of it, as it is."""
        if not (self.entry or self.prefix or self.left_out):
            return None
        parts = [f"weights taken from {self.entry!r}"] if self.entry else []
        if self.others:
            parts.append(f"also there: {', '.join(map(repr, self.others))} (choose with entry)")
        if self.prefix:
            parts.append(f"{self.prefix!r} taken off the names")
        if self.left_out:
            parts.append(f"left out: {listed(self.left_out, 8)}")
        return f"{self.where}: {'; '.join(parts)}."

    def tell(self) -> None:
        """Warn with the note, in the name of the code outside of this package that asked for the weights."""
        note = self.note()
        if note is None:
            return
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "dynavit":
            level, frame = level + 1, frame.f_back
        warnings.warn(note, stacklevel=level)


def read_state(checkpoint: str | Path | Mapping[str, Any], entry: str | None = None) -> StateDict:
    """Read a checkpoint and choose one set of weights in it.

    A file may be one state dict, or hold some by name, in mappings inside mappings too (``"model.state_dict"``).
    Of several sets, the averaged ones (``state_dict_ema``, ``model_ema``, ``ema``, ``teacher`` ...) come before the
    plain ones, as in timm, and those (``state_dict``, ``model_state_dict``, ``model``, ``net``, ``network``,
    ``module`` ... ``student``) before sets by other names, of which there must be one.

    Args:
        checkpoint: see :func:`~dynavit.checkpoints.files.read_checkpoint`; or what one holds.
        entry: name of the set to take, in place of that rule; or the start of the names to take.

    Raises:
        InputError: an unreadable file, one without weights, an entry that it has not, or several sets between which
            the rule does not choose.
    """
    if isinstance(checkpoint, str | Path):
        where, content = str(checkpoint), read_checkpoint(checkpoint)
    else:
        where, content = "the checkpoint", checkpoint
    _refuse_numbered(content, where)
    sets = dict(_sets(content))
    if not sets:
        raise InputError(f"{where} holds no state dict: expected a mapping of names to tensors{_instead(content)}.")
    chosen, start = _choose(sets, entry, where)
    mapping = sets[chosen]
    tensors = {name: value for name, value in mapping.items() if isinstance(value, Tensor) and name.startswith(start)}
    beside = [name for name in mapping if name not in tensors and not name.startswith(f"{chosen}.")]
    if chosen:
        beside += _beside(content, sets)
    others = tuple(name for name in sets if name != chosen)
    return StateDict(where, tensors, chosen or "", "", others, tuple(dict.fromkeys(map(str, beside))))


def fit_names(state: StateDict, own: Collection[str], rename: Callable[[str], str | None]) -> StateDict:
    """Take off the names the one prefix, of all that they begin with, with which most of them fit.

    What does not begin with it belongs to other parts of a larger model and is left out. Of prefixes that fit equally
    well, averaged weights (``teacher.``) come before plain ones, and the others are told; the rule does not choose
    between prefixes that it does not know.

    Args:
        state: names as in the file.
        own: the names wanted.
        rename: turns a name of the file's format into one of ``own``, or returns None.

    Raises:
        InputError: several prefixes fit equally well, and none of them is known.
    """
    fits: Counter[str] = Counter()
    for name in state.tensors:
        for prefix in _prefixes(name):
            if rename(name[len(prefix) :]) in own:
                fits[prefix] += 1
    if not fits:
        return state
    most = max(fits.values())
    equal = sorted((p for p, count in fits.items() if count == most), key=lambda p: (_rank(p.rstrip(".")), len(p)))
    prefix = equal[0]
    inside = {name[len(prefix) :]: value for name, value in state.tensors.items() if name.startswith(prefix)}
    outside = [name for name in state.tensors if not name.startswith(prefix)]
    rivals = [other.rstrip(".") for other in equal[1:] if not other.startswith(prefix) and not prefix.startswith(other)]
    if rivals and _rank(prefix.rstrip(".")) == len(_ORDER):
        _refuse_several(state.where, [prefix.rstrip("."), *rivals])
    groups = dict.fromkeys(_group(name) for name in outside if not name.startswith(tuple(f"{r}." for r in rivals)))
    return StateDict(state.where, inside, state.entry, prefix, (*state.others, *rivals), (*state.left_out, *groups))


def check_numbers(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse weights that are no finite floating-point numbers.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, value in tensors.items():
        shown = f"{where}: the weights {first_line(name)!r}"
        if value.is_meta:
            raise InputError(f"{shown} hold no numbers: they were saved from a model on the meta device.")
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            kind = str(value.layout if value.layout != torch.strided else value.dtype)
            raise InputError(f"{shown} are {kind}: plain floating-point numbers are wanted.")
        if value.is_floating_point() and not torch.isfinite(value.float() if value.itemsize < 2 else value).all():
            kind = "NaN" if torch.isnan(value.float()).any() else "infinite values"
            raise InputError(
                f"{shown} hold {kind}, so every output would be meaningless: training diverged before it was saved, or "
                f"the file is damaged; take an earlier checkpoint."
            )


def in_full_precision(state: StateDict, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in fp32 where the model has floating-point numbers.

    Raises:
        InputError: they are none, or not finite.
    """
    check_numbers(state.tensors, state.where)
    for name, value in state.tensors.items():
        if name in own and own[name].is_floating_point() and not value.is_floating_point():
            raise InputError(
                f"{state.where}: {first_line(name)!r} holds {value.dtype}; floating-point numbers are wanted, not "
                f"quantised or counted ones."
            )
    full = {name: value.float() if value.is_floating_point() else value for name, value in state.tensors.items()}
    check_numbers(full, state.where)  # fp64 may be too large for fp32
    return full


def _refuse_numbered(content: Any, where: str) -> None:
    if isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values()):
        key = next((key for key in content if not isinstance(key, str)), None)
        if key is not None:
            raise InputError(
                f"{where}: its tensors are kept by {type(key).__name__} ({first_line(key)}), not by name: save "
                f"model.state_dict()."
            )


def _sets(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield mappings of names to tensors by their place, the outermost first."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    named = all(isinstance(name, str) for name in content)
    if named and any(isinstance(value, Tensor) and value.ndim > 1 for value in content.values()):
        yield path, content
        return
    for key, value in content.items():
        if isinstance(key, str) and not key.startswith(("optim", "lr_sched", "scheduler")):
            yield from _sets(value, f"{path}.{key}" if path else key, depth + 1)


def _choose(sets: Mapping[str, Mapping[str, Any]], entry: str | None, where: str) -> tuple[str, str]:
    """Return the name of the set to take, and how the names to take of it begin."""
    if entry is not None:
        if entry in sets:
            return entry, ""
        for name, mapping in sets.items():
            start = entry.removeprefix(f"{name}.") if name else entry
            if start and any(key.startswith(f"{start}.") for key in mapping):
                return name, f"{start}."
        if list(sets) == [""]:
            raise InputError(f"entry={entry!r}: {where} is one plain state dict; leave entry out.")
        have = " or ".join(map(repr, sets))
        raise InputError(f"entry={entry!r}: {where} has no such weights; it has {have}.{did_you_mean(entry, sets)}")
    ranked = sorted(sets, key=_rank)
    if len(sets) > 1 and _rank(ranked[0]) == len(_ORDER):
        _refuse_several(where, sets)
    return ranked[0], ""


def _refuse_several(where: str, names: Iterable[str]) -> NoReturn:
    raise InputError(f"{where} holds several sets of weights: choose with entry={' or '.join(map(repr, names))}.")


def _rank(name: str) -> int:
    return min((_ORDER.index(part) for part in name.split(".") if part in _ORDER), default=len(_ORDER))


def _beside(content: Mapping[str, Any], sets: Mapping[str, Any]) -> list[str]:
    """Return what else stands in a file, but for other sets of weights."""
    return [str(key) for key in content if not any(name == key or name.startswith(f"{key}.") for name in sets)]


def _instead(content: Any) -> str:
    if isinstance(content, Mapping):
        return f", found {listed(map(str, content), 5)}" if content else ", found an empty one"
    return f", found {type(content).__name__}"


def _prefixes(name: str) -> Iterator[str]:
    yield ""
    for place, sign in enumerate(name):
        if sign == ".":
            yield name[: place + 1]


def _group(name: str) -> str:
    """Write a name by the part of a model that it belongs to."""
    parts = name.split(".")
    return f"{parts[0]}.*" if len(parts) > 1 else name
