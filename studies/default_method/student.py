"""A small dense ViT, made from nothing but the training images and what a large one says about them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from studies.default_method.finetune import normalise
from studies.default_method.teacher import Views

ARCHITECTURE = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4}
EPOCHS = 30
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARMUP = 0.05
TEMPERATURE = 2.0
SHIFT = 6  # pixels
CUTMIX = 0.5  # probability


def train_student(views: Views, labels: Tensor, seed: int, state: Path, epochs: int = EPOCHS) -> Any:
    """Train and return the student, in eval mode.

    Args:
        views: of the training images.
        labels: ``(M,)`` int64.
        seed: of weights, order and augmentation.
        state: file to which every epoch is written, and from which training goes on.
        epochs: passes over the images, each in one of its views.
    """
    torch.manual_seed(seed)
    num_classes = views.logits.shape[-1]
    student: Any = timm.create_model(ARCHITECTURE, num_classes=num_classes, drop_path_rate=0.05, **SHAPE)
    imitate = nn.Linear(student.num_features, views.features.shape[-1])
    model = nn.ModuleDict({"student": student, "imitate": imitate})
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / (steps * epochs)))
    begin = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        begin = saved["epoch"]
    for epoch in range(begin, epochs):
        torch.manual_seed(1000 * seed + epoch)
        model.train()
        bar = tqdm(torch.randperm(len(labels))[: steps * BATCH].split(BATCH), desc=f"epoch {epoch + 1}", disable=None)
        for index in bar:
            loss = _loss(student, imitate, views, labels, index)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
        begun = state.with_suffix(".part")
        torch.save({"epoch": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, begun)
        begun.replace(state)
    return student.eval()


def _loss(student: Any, imitate: nn.Module, views: Views, labels: Tensor, index: Tensor) -> Tensor:
    """Cross-entropy with the label, divergence from the teacher's logits and distance from its features."""
    view = torch.randint(len(views.pixels), index.shape)
    images = _augment(normalise(views.pixels[view, index]))
    targets = F.one_hot(labels[index], views.logits.shape[-1]).float()
    taught = (views.logits[view, index] / TEMPERATURE).softmax(dim=-1)
    features = F.normalize(views.features[view, index].float(), dim=-1)
    if torch.rand(()) < CUTMIX:
        images, share = _cutmix(images)
        targets, taught, features = (share * one + (1 - share) * one.flip(0) for one in (targets, taught, features))
    pooled = student.forward_head(student.forward_features(images), pre_logits=True)
    logits = student.head(pooled)
    told = F.cross_entropy(logits, targets)
    divergence = F.cross_entropy(logits / TEMPERATURE, taught) * TEMPERATURE**2
    return told + divergence + 2 * (1 - F.cosine_similarity(imitate(pooled), features, dim=-1).mean())


def _augment(images: Tensor) -> Tensor:
    """Mirror half of the images, and move the batch by some pixels."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    padded = F.pad(mirrored, [SHIFT] * 4, mode="reflect")
    top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    size = images.shape[-1]
    return padded[:, :, top : top + size, left : left + size]


def _cutmix(images: Tensor) -> tuple[Tensor, float]:
    """Paste a square of each image's partner, the batch backwards, and return the share that is left of its own."""
    size = images.shape[-1]
    side = int(size * math.sqrt(float(torch.rand(()))))
    top, left = torch.randint(size - side + 1, (2,)).tolist()
    mixed = images.clone()
    mixed[:, :, top : top + side, left : left + side] = images.flip(0)[:, :, top : top + side, left : left + side]
    return mixed, 1 - (side / size) ** 2


def _rate(progress: float) -> float:
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
