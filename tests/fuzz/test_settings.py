"""Settings drawn at random: each run trains, or is refused by one line that names the setting and its value."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from draws import KEYS, Draw, draw, names_setting
from outcomes import Outcome, attempt, fingerprint, form_faults, report
from runs import fill, train

from dynavit.config import Config, load_config

SEED = int(os.environ.get("FUZZ_SEED", "0"))
DRAWS = 500
# the one draw to repeat, such as FUZZ_SEED=0 FUZZ_DRAW=17
ONLY = [int(number) for number in os.environ.get("FUZZ_DRAW", "").split(",") if number]


def test_settings_train_or_are_refused_by_name(paths: dict[str, str], place: Callable[[str], Path]) -> None:
    given = Path(paths["given"])
    before, faults, drawn, outcomes = fingerprint(given), [], Counter[str](), Counter[str]()
    for number in ONLY or range(DRAWS):
        drawing = draw(SEED, number)
        folder = place(str(number))
        outcome = attempt(lambda: _run(drawing, paths, folder))  # noqa: B023
        drawn.update(drawing.settings.keys())
        outcomes[str(outcome.value) if outcome.kind == "success" else outcome.kind] += 1
        found = _faults(drawing, outcome, paths | {"fresh": str(folder)})
        if (after := fingerprint(given)) != before:
            changed = sorted({name for name, _ in before.items() ^ after.items()})
            found.append(f"foreign files changed: {', '.join(changed[:5])}")
            before = after
        if (folder / "HACKED").exists():
            found.append("a setting was executed")
        shutil.rmtree(folder)
        faults += [(fault, str(drawing)) for fault in found]
    print(dict(outcomes))
    assert not faults, report(faults)
    if not ONLY:
        assert min(drawn[key] for key in KEYS) >= 5, drawn
        assert outcomes["trained"] >= 0.4 * DRAWS, outcomes


def _run(drawing: Draw, paths: dict[str, str], folder: Path) -> str:
    known = paths | {"fresh": str(folder)}
    file = folder / "drawn.yaml"
    file.write_text(fill(drawing.file, known), encoding="utf-8")
    config = load_config(file, [fill(override, known) for override in drawing.overrides])
    if _is_long(config):
        return "accepted"
    trainer = train(config)
    assert trainer.progress.step >= 1, "no step was made"
    return "trained"


def _is_long(config: Config) -> bool:
    """Whether a run takes more than a moment: those are only read, and do not count as trained."""
    settings = config.train
    return (
        settings.compile  # half a minute on a CPU
        or config.model.pretrained  # has to download
        or config.loss.keep_ratio_measure == "latency"  # measures for more than ten seconds
        or settings.epochs > 3
        or (settings.steps_per_epoch or 0) > 100
        or config.data.workers > 2
        or config.loss.reward_samples > 8
    )


def _faults(drawing: Draw, outcome: Outcome, paths: dict[str, str]) -> list[str]:
    if outcome.kind == "fault":
        return [outcome.message]
    if outcome.kind != "refused":
        return []
    message = outcome.message
    settings = [(key, fill(text, paths)) for key, text in drawing.settings.items()]
    # a long value may make a long message
    faults = form_faults(message if max(map(len, drawing.settings.values())) < 500 else message[:900])
    # combined at random, any of the others can be in the way; in the first one's place it must be named in full
    first, *others = settings
    named = names_setting(message, *first) or any(
        (key in message or not drawing.wrong) and names_setting(message, key, text) for key, text in others
    )
    named |= message.partition("=")[0] in KEYS  # one that was not drawn
    if "is not valid YAML" in message and not drawing.overrides:  # cannot say more than where
        lines = drawing.file.splitlines()
        line = next(n for n, text in enumerate(lines, 1) if text.strip().startswith(f"{first[0].rpartition('.')[2]}:"))
        named = any(f"line {number}," in message for number in range(line, len(lines) + 2))
    return faults if named else [*faults, f"the key or its value is not named: {message[:300]}"]
