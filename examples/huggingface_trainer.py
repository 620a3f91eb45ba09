"""Hugging Face's `Trainer` trains a model that removes tokens.

It shows the thin wrapper that the Trainer needs, which takes `pixel_values` and `labels` and gives loss and logits; and
that the model inside is saved with `save_pretrained` and loaded again with `dynavit.load`, to the same accuracy.

Needs `pip install -e ".[train,examples]"`. From the repository's root, half a minute on a CPU:

    python examples/huggingface_trainer.py
    torchrun --nproc-per-node 2 examples/huggingface_trainer.py --steps 400 --output checkpoints/my_digits

For your own data replace `digits` by any data set of (image, label), and `--model` by your own dense model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

import dynavit
from dynavit.data.quickstart import ClutteredDigits
from dynavit.data.transforms import create_transforms


class ForTrainer(nn.Module):
    """Takes and gives what the Trainer expects; the model is its attribute `model`."""

    def __init__(self, model: dynavit.PrunedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Classify images ``(B, C, H, W)``; with labels ``(B,)`` the loss as well."""
        logits = self.model(pixel_values)
        loss = None if labels is None else cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train, save, load, and return the accuracy in percent before, after, and of the loaded model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/quickstart-dense", help="folder of a dense model")
    parser.add_argument("--keep-ratio", type=float, default=0.3, help="patches left after each of two stages")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--validation-images", type=int, default=500)
    parser.add_argument("--output", default="results/huggingface_trainer", help="folder for the trained model")
    options = parser.parse_args(argv)

    dense = dynavit.load(options.model)
    model = dynavit.prune(dense, keep_ratio=options.keep_ratio)
    arguments = TrainingArguments(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.lr,
        use_cpu=not torch.cuda.is_available(),
        lr_scheduler_type="cosine",
        logging_steps=20,
        save_strategy="no",  # the model is saved below, as dynavit reads it
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )

    def judge(judged: dynavit.PrunedViT, when: str) -> float:
        # by a Trainer of its own: one that has evaluated trains without DDP afterwards, on several processes
        answers = create_trainer(judged, arguments, options.validation_images).evaluate()
        print(f"keep ratio {options.keep_ratio:g}, {when}: {answers['eval_accuracy']:.1f} %")
        return answers["eval_accuracy"]

    found, trainer = [judge(model, "before training")], create_trainer(model, arguments, options.validation_images)
    trainer.train()
    found.append(judge(model, "after training"))
    if trainer.is_world_process_zero():
        model.save_pretrained(options.output)
    trainer.accelerator.wait_for_everyone()
    return [*found, judge(dynavit.load(options.output), f"loaded from {options.output}")]


def create_trainer(model: dynavit.PrunedViT, arguments: TrainingArguments, validation_images: int) -> Trainer:
    """Return the Trainer of a model, with the digits to train on and those to judge by."""
    return Trainer(
        model=ForTrainer(model),
        args=arguments,
        data_collator=collate,
        train_dataset=digits(model, train=True),
        eval_dataset=digits(model, train=False, size=validation_images),
        compute_metrics=accuracy,
    )


def digits(model: dynavit.PrunedViT, train: bool, size: int | None = None) -> ClutteredDigits:
    """Return (image, label) as the model was trained to see them; training images are drawn as they are asked for."""
    return ClutteredDigits(train, size, transform=create_transforms(**model.metadata["preprocessing"])[1])


def collate(samples: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Make a batch, by the names of the wrapper's arguments."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(answers: EvalPrediction) -> dict[str, float]:
    """Return the top-1 accuracy in percent."""
    return {"accuracy": 100 * float(np.mean(answers.predictions.argmax(axis=1) == answers.label_ids))}


if __name__ == "__main__":
    main()
