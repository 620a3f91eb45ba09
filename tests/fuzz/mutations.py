"""Damage to files: cut, flipped, retyped, renamed, nested, swapped, or of another format altogether."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import math
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from values import WEIRD

Mutation = Callable[[random.Random, Path], str]  # changes the file and says how; "KEY: ..." where that is one key's

_JSON = [
    *(None, True, "abc", "", "a\nb", "\x1b[1m", "ünïcödé ☃", "x" * 3000, -1, 0, 1.5, 1e308, 10**30, -(10**30)),
    *(math.nan, math.inf, -math.inf, [], [1], [[]], ["abc"], [None], {}, {"a": 1}, {"name": "nope"}, "../x", "/"),
]
_KWARGS = [
    *({"checkpoint_path": "notes.txt"}, {"checkpoint_path": "/nonexistent"}, {"pretrained_cfg": "nope"}),
    *({"pretrained_cfg_overlay": {"file": "hacked.pth"}}, {"pretrained_cfg": {"file": "hacked.pth"}}, {"nope": 1}),
    *({"cache_dir": 3}, {"embed_layer": "nope"}, {"norm_layer": "os.system"}, {"block_fn": "abc"}, {"stages": [1]}),
    *({"features_only": True}, {"scriptable": True}, {"pretrained": 1}, {"weight_init": "nope"}, {"dtype": "abc"}),
    *({"device": "nope"}, {"device": "cuda:7"}, {"in_chans": 1}, {"patch_size": 7}, {"depth": 2}, {"fc_norm": "abc"}),
]
_FOREIGN = [
    *(b"", b"\0" * 64, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"\xff\xfe{\0}\0"),
    *(b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04" + b"\0" * 40, b"null", b"[]", b"\x89PNG\r\n\x1a\n", b"abc"),
]


class Executes:
    """What a pickle must not be able to do."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


class Unknown:
    """A class of somebody's own program."""


def malicious(rng: random.Random) -> Executes:
    """Return what creates the file HACKED when it is unpickled."""
    return rng.choice((Executes(os.system, "touch HACKED"), Executes(open, "HACKED", "w")))


def bytes_of(rng: random.Random, path: Path) -> str:
    """Cut, flip or replace what any file consists of."""
    content, kind = bytearray(path.read_bytes()), rng.randrange(6)
    position = rng.randrange(max(len(content), 1))
    if kind == 0:
        path.write_bytes(content[:position])
        return f"cut at {position}"
    if kind == 1 and content:
        content[position] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return f"a bit flipped at {position}"
    if kind == 2:
        path.write_bytes(content[:position] + rng.randbytes(16) + content[position:])
        return f"16 bytes put in at {position}"
    if kind == 3:
        path.unlink()
        path.mkdir()
        return "a folder in its place"
    if kind == 4:
        path.unlink()
        path.symlink_to(path.name)
        return "a link to itself in its place"
    foreign = rng.choice(_FOREIGN)
    path.write_bytes(foreign)
    return f"replaced by {foreign[:20]!r}"


def json_of(rng: random.Random, path: Path) -> str:
    """Change what a JSON file says."""
    config = json.loads(path.read_text())
    places = list(_places(config))
    node, key = rng.choice(places)
    value, shown = rng.choice(_JSON), f"{str(node[key])[:60]}"
    kind = rng.choice(
        ("retype", "retype", "retype", "delete", "rename", "swap", "wrap", "add", "kwargs", "text", "bytes")
    )
    if kind == "bytes":
        return bytes_of(rng, path)
    if kind == "text":
        return _json_text(rng, path)
    if kind == "retype":
        node[key] = value
        shown = f"{str(value)[:30]!r}"
    elif kind == "delete":
        del node[key]
    elif kind == "rename":
        node[f"{key}_"] = node.pop(key)
    elif kind == "swap":
        other, name = rng.choice(places)
        shown = f"with {name}"
        node[key], other[name] = other[name], node[key]
    elif kind == "wrap":
        node[key] = rng.choice(([node[key]], {key: node[key]}, str(node[key])))
    elif kind == "add":
        key = "nope"
        node[key] = value
    elif "model_kwargs" in config and isinstance(config["model_kwargs"], dict):
        added = rng.choice(_KWARGS)
        config["model_kwargs"] |= added
        (key, shown), *_ = added.items()
    path.write_text(json.dumps(config))
    return f"{key}: {kind} {shown}"


def _places(node: Any) -> Any:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield node, key
        yield from _places(value)


def _json_text(rng: random.Random, path: Path) -> str:
    text = path.read_text()
    deep = 100_000
    how, content = rng.choice(
        (
            ("UTF-16", text.encode("utf-16")),
            ("byte order mark", b"\xef\xbb\xbf" + text.encode()),
            ("Latin-1", text.replace('"architecture"', '"ärchitecture"').encode("latin-1")),
            ("keys twice", text.replace("{", '{"stages": [9], "keep_ratios": "abc",', 1).encode()),
            ("deep lists", b"[" * deep + b"]" * deep),
            ("deep value", text.replace("{", '{"metadata": ' + '{"a": ' * deep + "1" + "}" * deep + ",", 1).encode()),
            ("a number of 5,000 digits", text.replace("{", '{"stages": ' + "1" * 5000 + ",", 1).encode()),
            ("a list around it", f"[{text}]".encode()),
            ("single quotes", text.replace('"', "'").encode()),
        )
    )
    path.write_bytes(content)
    return how


def safetensors_of(rng: random.Random, path: Path) -> str:
    """Change header, names, shapes, types or numbers of a safetensors file."""
    kind = rng.randrange(4)
    if kind == 0:
        return bytes_of(rng, path)
    if kind == 1:
        content = path.read_bytes()
        length = rng.choice(
            (0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(content), int.from_bytes(content[:8], "little") + 1)
        )
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        return f"header of length {length}"
    if kind == 2:  # the header alone: numbers, types, names
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        position = rng.choice([match.start() for match in re.finditer(rb"[\dF:,\[]", content[8:end])]) + 8
        path.write_bytes(content[:position] + rng.choice((b"9", b"-", b"]", b"B")) + content[position + 1 :])
        return f"another character at {position} of the header"
    state, how = weights_of(rng, load_file(path))
    save_file({str(name): value.contiguous() for name, value in state.items()}, path)
    return how


def weights_of(rng: random.Random, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Change names, shapes, types or numbers of a state dict."""
    state = dict(state)
    name, other = rng.sample(sorted(state), 2)
    value = state[name]
    changes: dict[str, Callable[[], dict[str, Tensor]]] = {
        "missing": lambda: {key: tensor for key, tensor in state.items() if key != name},
        "renamed": lambda: {key + ("_" if key == name else ""): tensor for key, tensor in state.items()},
        "prefixed": lambda: {rng.choice(("module.", "model.", "a.b.")) + key: tensor for key, tensor in state.items()},
        "half prefixed": lambda: {("net." if key < name else "") + key: tensor for key, tensor in state.items()},
        "swapped": lambda: {**state, name: state[other].clone(), other: value.clone()},
        "NaN": lambda: {**state, name: torch.full_like(value, math.nan)},
        "infinite": lambda: {**state, name: torch.full_like(value, math.inf)},
        "huge": lambda: {**state, name: value * 1e38},
        "flat": lambda: {**state, name: value.reshape(-1)},
        "longer": lambda: {**state, name: torch.cat([value, value])},
        "empty": lambda: {**state, name: torch.empty(0)},
        "a number": lambda: {**state, name: torch.tensor(1.0)},
        "of another type": lambda: {**state, name: value.to(rng.choice((torch.int64, torch.bool, torch.complex64)))},
        "in half precision": lambda: {key: tensor.to(torch.bfloat16) for key, tensor in state.items()},
        "additional": lambda: {**state, "nope": value.clone()},
        "odd name": lambda: {**state, rng.choice(("", "ünï ☃", "x" * 3000, "a\nb", "head.", ".")): value.clone()},
        "nothing": lambda: {},
    }
    how = rng.choice(sorted(changes))
    return changes[how](), f"{name}: {how}"


def pickle_of(rng: random.Random, path: Path) -> str:
    """Write the backbone of the model beside it into a pickle, as people do, or as an attacker does."""
    saved = load_file(path.with_suffix(".safetensors"))
    state = {name[9:]: value for name, value in saved.items() if name.startswith("backbone.")}
    kind = rng.choice(("bytes", "weights", "wrapped", "beside", "leaf", "whole", "malicious", "format"))
    if kind == "bytes":
        torch.save({"model": state}, path)
        return bytes_of(rng, path)
    if kind == "weights":
        changed, how = weights_of(rng, state)
        torch.save(rng.choice((changed, {"model": changed})), path)
        return how
    name = rng.choice(sorted(state))
    odd: dict[str, Any] = {
        "Namespace": argparse.Namespace(lr=1, path=Path("x")),
        "Path": Path("x"),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "numpy scalar": np.float64(3),
        "numpy array": np.ones(3),
        "date": datetime.datetime(2026, 1, 1),
        "own class": Unknown(),
        "function": len,
        "module": nn.Linear(2, 2),
        "text": "ünï",
        "list": [1, {"a": None}],
        "number": 3,
        "None": None,
        "sparse": torch.ones(3).to_sparse(),
        "meta": torch.ones(3, device="meta"),
    }
    how = rng.choice(sorted(odd))
    content: Any = state
    if kind == "wrapped":
        how = " in ".join(rng.choices(("state_dict", "model", "net", "model_state_dict", "module", "nope", "ema"), k=3))
        for wrapper in how.split(" in "):
            content = {wrapper: content, "epoch": 3}
    elif kind == "beside":
        content = {"state_dict": state, rng.choice(("args", "state_dict_ema", "model", "optimizer")): odd[how]}
    elif kind == "leaf":
        content = {**state, rng.choice((name, 3, None, (1, 2), "")): odd[how]}
    elif kind == "whole":
        content = odd[how]
    elif kind == "malicious":
        content, how = (
            rng.choice(({**state, name: malicious(rng)}, {"model": state, "args": malicious(rng)}, malicious(rng))),
            "",
        )
    form = rng.choice(("zip", "legacy", "pickle"))
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=rng.randrange(6)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    if kind == "format":
        how = rng.choice(("script", "safetensors", "cyclic"))
        content = {"model": state}
        content["self"] = content
        if how == "script":
            torch.jit.script(nn.Linear(2, 2)).save(str(path))
        elif how == "cyclic":
            torch.save(content, path)
        else:
            save_file(state, path)
    return f"{kind} {how} ({form})"


def yaml_of(rng: random.Random, path: Path) -> str:
    """Change a line of a YAML file."""
    lines = path.read_text().splitlines()
    kind, line = rng.randrange(5), rng.randrange(len(lines))
    if kind == 0:
        return bytes_of(rng, path)
    before = lines[line]
    if kind == 1:
        del lines[line]
    elif kind == 2:
        lines.insert(line, lines[line])
    else:
        lines[line] = f"{lines[line].partition(':')[0]}: {rng.choice(WEIRD)}"
    path.write_text("\n".join(lines) + "\n")
    return f"line {before!r} is {lines[line][:60] if line < len(lines) else ''!r}"


def rows_of(rng: random.Random, path: Path) -> str:
    """Change a file of one JSON object a line."""
    row = json.loads(path.read_text().splitlines()[0])
    wrong = [*({**row, "step": value} for value in _JSON), {}, [], 3, None, "abc", {**row, "epoch": None}]
    kind = rng.randrange(4)
    if kind == 0:
        return bytes_of(rng, path)
    added = json.dumps(rng.choice(wrong))
    path.write_text(f"{added}\n" if kind == 1 else f"{path.read_text()}{added}\n")
    return f"a row {added[:80]}"


def state_of(rng: random.Random, path: Path) -> str:
    """Change a file of a run's state."""
    kind = rng.randrange(4)
    if path.suffix == ".json" and kind:
        return json_of(rng, path)
    if path.suffix == ".safetensors" and kind:
        return safetensors_of(rng, path)
    if kind == 1:
        path.unlink()
        return "removed"
    if kind in (2, 3) and path.suffix in (".bin", ".pkl", ".pt", ".pth"):
        content = rng.choice((malicious(rng), {"state": malicious(rng)}, {}, [], None, {"epoch": malicious(rng)}))
        torch.save(content, path) if rng.random() < 0.5 else path.write_bytes(pickle.dumps(content))
        return f"replaced by a pickle of {content}"
    return bytes_of(rng, path)
