"""Run by test_processes.py, alone or under torchrun: writes down what training and evaluation compute."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dynavit.config import load_config
from dynavit.data.samplers import PKSampler
from dynavit.selectors import GumbelSigmoid, Selection, register_selector
from dynavit.training.trainer import Trainer


class Quiet(GumbelSigmoid):
    """Soft gates without their noise, which would differ between processes."""

    def sample(self, logits, request):
        probs = logits.sigmoid() * request.alive
        return Selection((logits > 0) & request.alive, probs, probs)


def main() -> None:
    register_selector("quiet")(Quiet)
    if "ORDER" in os.environ:  # so that one process and two see the same images in a step
        order = [int(index) for index in os.environ["ORDER"].split(",")]
        PKSampler.__iter__ = lambda sampler: iter(order)
        PKSampler.__len__ = lambda sampler: len(order)
    trainer = Trainer(load_config(sys.argv[1], sys.argv[3:]), resume="RESUME" in os.environ)
    gradients: dict[str, list[float]] = {}
    take_step = trainer.optimizer.step

    def record() -> None:
        if trainer.accelerator.sync_gradients and not gradients:
            model = trainer.accelerator.unwrap_model(trainer.model)
            gradients.update(
                {name: p.grad.flatten().tolist() for name, p in model.named_parameters() if p.grad is not None}
            )
        take_step()
        if trainer.progress.step + 1 == int(os.environ.get("DIE_AT", 0)):
            os._exit(1)

    trainer.optimizer.step = record
    accuracy = trainer.fit()
    if trainer.accelerator.is_main_process:
        result = {"processes": trainer.accelerator.num_processes, "gradients": gradients, "accuracy": accuracy}
        Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
