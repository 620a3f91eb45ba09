"""Damaged files: each is read, or refused by one line that names it; nothing in it is executed."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mutations
import torch
from outcomes import Outcome, attempt, fingerprint, form_faults, report
from PIL import Image
from runs import fill, train
from values import CLASSIFY

import dynavit
from dynavit.config import Config, ModelConfig, load_config
from dynavit.runs.build import build_start
from dynavit.runs.open import open_run

SEED = int(os.environ.get("FUZZ_SEED", "0"))
ONLY = [int(number) for number in os.environ.get("FUZZ_FILE", "").split(",") if number]


@dataclass(frozen=True)
class Damage:
    """A file below a copied run, how it is damaged, and how it is read."""

    file: str
    mutate: mutations.Mutation
    way: str


def _damages() -> Iterator[Damage]:
    """Yield 300 of them."""
    for number in range(90):
        yield Damage("config.json", mutations.json_of, ("load", "run", "start")[number % 3])
    for number in range(70):
        yield Damage(
            "model.safetensors", mutations.safetensors_of, ("load", "run", "start", "file", "resume")[number % 5]
        )
    for number in range(70):
        yield Damage("model.pth", mutations.pickle_of, ("file", "convert")[number % 2])
    for number in range(20):
        yield Damage("config.yaml", mutations.yaml_of, ("run", "resume")[number % 2])
    for _ in range(15):
        yield Damage("metrics.jsonl", mutations.rows_of, "resume")
    for number in range(35):
        yield Damage(f"state/{number}", mutations.state_of, "resume")


def test_damaged_files_are_read_or_refused_by_name(paths: dict[str, str], place: Callable[[str], Path]) -> None:
    given, model = Path(paths["given"]), Path(paths["model"])
    given_settings = [f"{key}={fill(text, paths)}" for key, text in CLASSIFY.items() if key != "output_dir"]
    config = load_config(given.parent / "model.yaml", given_settings)  # of the given model, as a user has it
    damages = list(_damages())
    assert len(damages) >= 300
    before, faults, outcomes = fingerprint(given), [], []
    for number in ONLY or range(len(damages)):
        damage, rng, folder = damages[number], random.Random(f"{SEED} {number}"), place(str(number))
        run = folder / "run"
        shutil.copytree(model, run)
        (folder / "notes.txt").write_text("notes\n")
        torch.save({"head.bias": mutations.malicious(rng)}, folder / "hacked.pth")
        file = run / damage.file
        if file.parent.name == "state":
            files = sorted(file.parent.iterdir())
            file = files[int(file.name) % len(files)]
        what = damage.mutate(rng, file)
        damaged = fingerprint(folder)
        outcome = attempt(partial(_read, damage.way, file, run, deepcopy(config)))
        found = _faults(outcome, file, what)
        if (after := fingerprint(given)) != before or (damage.way != "resume" and fingerprint(folder) != damaged):
            found.append("files changed")
            before = after
        if (folder / "HACKED").exists():
            found.append("something was executed")
        outcomes.append(outcome.kind)
        shutil.rmtree(folder)
        where = f"FUZZ_SEED={SEED} FUZZ_FILE={number}: {file.relative_to(run)} by {damage.way}, {what}"
        faults += [(fault, where) for fault in found]
    print({kind: outcomes.count(kind) for kind in set(outcomes)})
    assert not faults, report(faults)


def _read(way: str, file: Path, run: Path, config: Config) -> None:
    if way == "load":
        dynavit.load(run)
    elif way == "run":
        opened = open_run(run, device="cpu")
        opened.answer(opened.transform(Image.new("RGB", (40, 40)))[None])
    elif way == "convert":
        dynavit.convert(file, config.model.architecture, **config.model.kwargs)
    elif way == "resume":
        train(replace(config, output_dir=str(run), train=replace(config.train, epochs=2)), resume=True)
    elif way == "file":
        build_start(replace(config, model=replace(config.model, checkpoint=str(file))), ("green", "red"))
    else:
        build_start(replace(config, model=ModelConfig(checkpoint=str(run))), None)


def _faults(outcome: Outcome, file: Path, what: str) -> list[str]:
    if outcome.kind == "fault":
        return [outcome.message]
    if outcome.kind != "refused":
        return []
    faults = form_faults(outcome.message)
    named = str(file) in outcome.message or str(file.parent) in outcome.message
    if file.suffix == ".json":
        named |= what.partition(":")[0] in outcome.message
    return faults if named else [*faults, f"the file is not named: {outcome.message[:300]}"]
