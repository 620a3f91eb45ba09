"""Your own training loop, with Accelerate, around a model that removes tokens while it trains.

It shows `dynavit.prune` around the backbone of a dense model, your own optimiser and schedule, and a loss of the
labels plus distillation from the dense model. What comes out is a folder that `dynavit.load` and every tool reads.

Needs `pip install -e ".[train]"`. From the repository's root, half a minute on a CPU:

    python examples/own_training_loop.py
    torchrun --nproc-per-node 2 examples/own_training_loop.py --steps 400 --output checkpoints/my_digits

For your own data replace `digits` by any data set of (image, label), and `--model` by your own dense model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import dynavit
from dynavit.data.quickstart import ClutteredDigits
from dynavit.data.transforms import create_transforms
from dynavit.losses import logit_distillation


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    """Train, save, and return the accuracy in percent before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/quickstart-dense", help="folder of a dense model")
    parser.add_argument("--keep-ratio", type=float, default=0.3, help="patches left after each of two stages")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64, help="images a step and process")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--validation-images", type=int, default=500)
    parser.add_argument("--output", default="results/own_training_loop", help="folder for the trained model")
    options = parser.parse_args(argv)

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(0, device_specific=True)
    teacher = dynavit.load(options.model)
    # a copy, because prune() shares the model that it is given, and the teacher is to stay as it is
    student = dynavit.prune(deepcopy(teacher), keep_ratio=options.keep_ratio)

    train_data = digits(teacher, train=True, size=options.steps * options.batch_size * accelerator.num_processes)
    val_data = digits(teacher, train=False, size=options.validation_images)
    optimizer = torch.optim.AdamW(student.parameters(), lr=options.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    student, optimizer, train_loader, val_loader = accelerator.prepare(
        student,
        optimizer,
        DataLoader(train_data, options.batch_size, shuffle=True),
        DataLoader(val_data, options.batch_size),
    )
    teacher = teacher.to(accelerator.device)

    before = accuracy(accelerator, student, val_loader)
    accelerator.print(f"keep ratio {options.keep_ratio:g}, before training: {before:.1f} %")
    student.train()  # tokens are removed in training, too: a step costs less than a dense one
    for step, (images, labels) in enumerate(train_loader, start=1):
        with torch.no_grad():
            wanted = teacher(images)
        logits = student(images)
        loss = 0.5 * cross_entropy(logits, labels) + 0.5 * logit_distillation(logits, wanted)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == options.steps:
            accelerator.print(f"step {step} of {options.steps}: loss {loss.item():.3f}")
    after = accuracy(accelerator, student, val_loader)
    dense = accuracy(accelerator, teacher, val_loader)
    accelerator.print(f"keep ratio {options.keep_ratio:g}, after training: {after:.1f} %; dense: {dense:.1f} %")
    if accelerator.is_main_process:
        accelerator.unwrap_model(student).save_pretrained(options.output)
    return before, after


def digits(model: dynavit.PrunedViT, train: bool, size: int) -> ClutteredDigits:
    """Return (image, label) as the model was trained to see them; training images are drawn as they are asked for."""
    to_tensor = create_transforms(**model.metadata["preprocessing"])[1]
    return ClutteredDigits(train, size, transform=to_tensor)


@torch.inference_mode()
def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """Return the top-1 accuracy in percent over all processes."""
    model.eval()
    right = [accelerator.gather_for_metrics(model(images).argmax(dim=1) == labels) for images, labels in loader]
    return 100 * torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
