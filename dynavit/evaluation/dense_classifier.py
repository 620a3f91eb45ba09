"""What methods are compared on: a dense classifier, and its images for training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.data import IterableDataset, Subset
from tqdm import tqdm

from dynavit.config import Config, DataConfig, ModelConfig
from dynavit.data.transforms import create_transforms
from dynavit.errors import InputError, did_you_mean
from dynavit.evaluation.linear_head import dense_features, fit_linear_head, set_linear_head
from dynavit.evaluation.rivals import smaller_images
from dynavit.evaluation.variants import Variant
from dynavit.models import PrunedViT, load, prune
from dynavit.runs.build import build_outline, build_start, resolve_preprocessing
from dynavit.runs.loading import make_loader, random_subset
from dynavit.runs.open import Run, open_run
from dynavit.tasks.classification import ClassificationTask

_BATCH = 64  # of features for a new classifier


@dataclass(frozen=True)
class DenseClassifier:
    """A dense model and its data.

    Attributes:
        model: knows the classes; in eval mode, on its device.
        task: with the configuration that the data and the model are of.
        data: that the task opened, without augmentation; ``train`` and ``validation`` are in random order that is
            always the same.
        origin: where the model is from, and how its classifier came about, in words.
        preprocessing: how images are prepared for it.
        limit: number of training and of validation images, at most.
        fitted: the classifier was fitted on its features.
    """

    model: PrunedViT
    task: ClassificationTask
    data: Any
    origin: str
    preprocessing: dict[str, Any]
    limit: int | None
    fitted: bool

    def smaller(self, height: int) -> tuple[Variant, ClassificationTask, Any]:
        """Return the model on smaller images, with the task and the data that these are of, the same ones as its own.

        Where its classifier was fitted, the smaller images get one that is fitted on them.

        Args:
            height: in pixels; see :func:`~dynavit.evaluation.rivals.smaller_images`.
        """
        rival = smaller_images(self.model, self.preprocessing, height)
        task = ClassificationTask(self.task.config)
        assert rival.preprocessing is not None
        data = task.open_data(rival.preprocessing)
        training = _shuffled(data.train, self.limit)
        data = replace(data, train=training, validation=_shuffled(data.validation, self.limit))
        if self.fitted:
            _fit_classifier(rival.model, training, len(data.class_names), self.task.config.data.workers)
        return rival, task, data


def open_dense_classifier(
    checkpoint: str,
    device: torch.device,
    output: Path,
    *,
    architecture: str | None = None,
    root: str | None = None,
    img_size: int | None = None,
    limit: int | None = None,
    log: Callable[[str], None] = print,
) -> DenseClassifier:
    """Open a dense model and its data; where it does not know their classes, fit a classifier on its features.

    A classifier that was fitted is kept in ``output/dense``, and used again for the same backbone and images.

    Args:
        checkpoint: a folder that dynavit wrote, a state dict, or a timm name (with timm's weights).
        device: where the model goes.
        output: folder for results.
        architecture: timm name, needed for a state dict.
        root: folder of images, ``root/train/CLASS`` and ``root/val/CLASS``; the data that the checkpoint's own
            run was trained on if None.
        img_size: side in pixels, for state dicts and timm names; the architecture's own if None.
        limit: use this many training and this many validation images; all if None.
        log: receives lines about what is done.

    Raises:
        InputError: something does not exist or does not fit.
    """
    if limit is not None and limit < 2:
        raise InputError(f"--limit {limit}: at least 2 images.")
    config, preprocessing = _describe(checkpoint, architecture, root, img_size)
    if preprocessing is None:
        preprocessing = resolve_preprocessing(config.data, build_outline(config).backbone)
    task = ClassificationTask(config)
    data = task.open_data(preprocessing)
    for note in data.notes:
        log(note)
    training = _shuffled(data.train, limit)
    data = replace(data, train=training, validation=_shuffled(data.validation, limit))
    start = build_start(config, data.class_names)
    dense = start.dense.to(device)
    dense.architecture, dense.model_kwargs = start.model.architecture, start.model.model_kwargs
    dense.metadata = {"preprocessing": preprocessing, "class_names": list(data.class_names)}
    if start.dense_is_trained:
        origin = f"{checkpoint}, with its own classifier"
        return DenseClassifier(dense, task, data, origin, preprocessing, limit, fitted=False)
    made_from = {
        "backbone": _fingerprint(dense),
        "data": [config.data.name, config.data.root, config.data.train_split],
        # by which a part may have been kept for validation
        **({"options": config.data.options, "seed": config.seed} if config.data.options else {}),
        "images": len(training),
    }
    folder = output / "dense"
    saved = _saved(folder, {**dense.metadata, "linear_head": made_from}, log)
    if saved is not None:
        log(f"Using the classifier in {folder} again: it was fitted on the same features.")
        origin = f"{checkpoint}, with the classifier in {folder}"
        return DenseClassifier(saved.to(device), task, data, origin, preprocessing, limit, fitted=True)
    labels, right = _fit_classifier(dense, training, len(data.class_names), config.data.workers)
    dense.metadata["linear_head"] = made_from
    dense.save_pretrained(folder)
    log(
        f"{checkpoint} has no classifier for these {len(data.class_names)} classes: fitted one by logistic regression "
        f"on its features of {labels} training images, and it gets {100 * right:.2f} % of them right; saved in "
        f"{folder}."
    )
    origin = f"{checkpoint}, with a classifier fitted on its features of {labels} training images"
    return DenseClassifier(dense, task, data, origin, preprocessing, limit, fitted=True)


def _fit_classifier(dense: PrunedViT, training: Any, num_classes: int, workers: int) -> tuple[int, float]:
    """Give a model a classifier fitted on its features; return of how many images, and the share it gets right."""
    device, loader = next(dense.parameters()).device, make_loader(training, _BATCH, workers)
    features, labels = dense_features(dense, tqdm(loader, desc="features", leave=False, disable=None), device)
    weight, bias = fit_linear_head(features, labels, num_classes)
    set_linear_head(dense.backbone, weight, bias)
    dense.to(device).requires_grad_(False)
    return len(labels), float(((features @ weight.T + bias).argmax(dim=1) == labels).double().mean())


def open_dense(
    checkpoint: str, device: torch.device, *, architecture: str | None = None, img_size: int | None = None
) -> Run:
    """Open a model with all its tokens and its own classifier, if it has one; of a pruned run, its weights.

    Args:
        checkpoint, device, architecture, img_size: as for :func:`open_dense_classifier`.

    Raises:
        InputError: something does not exist or does not fit.
    """
    if Path(checkpoint).is_dir():
        for name, value in (("architecture", architecture), ("img-size", img_size)):
            if value is not None:
                raise InputError(f"--{name} {value}: {checkpoint} already says how its model is built; leave it out.")
        run = open_run(checkpoint, device=str(device))
        run.require_one_spectrum()
        return replace(run, model=prune(run.model, stages=()).eval())
    config, _ = _describe(checkpoint, architecture, "", img_size)
    start = build_start(config, None)
    start.dense.architecture, start.dense.model_kwargs = start.model.architecture, start.model.model_kwargs
    preprocessing = resolve_preprocessing(config.data, start.dense.backbone)
    start.dense.metadata = {"preprocessing": preprocessing}
    names = tuple(str(number) for number in range(start.dense.num_classes))
    preparation = create_transforms(**preprocessing)[1]
    return Run(Path(checkpoint), start.dense.to(device), None, preprocessing, preparation, names, device)


def _describe(
    checkpoint: str, architecture: str | None, root: str | None, img_size: int | None
) -> tuple[Config, dict[str, Any] | None]:
    """Return what to build, and the preprocessing where the checkpoint knows it."""
    path, config, preprocessing = Path(checkpoint), Config(), None
    kwargs = {} if img_size is None else {"img_size": img_size}
    if path.is_dir():
        if img_size is not None:
            raise InputError(f"--img-size {img_size}: {path} already says how its model is built; leave it out.")
        run = open_run(path, device="cpu")
        preprocessing = run.preprocessing
        if root is None and run.config is not None and run.config.task == "classify":
            config.data, config.seed = deepcopy(run.config.data), run.config.seed
        elif root is None:
            raise InputError(f"--root is missing: {path} has no config.yaml that names classification data.")
        config.model = ModelConfig(architecture, checkpoint=checkpoint, stages=[])
    elif path.exists():
        config.model = ModelConfig(architecture, checkpoint=checkpoint, kwargs=kwargs, stages=[])
    elif not timm.is_model(checkpoint.partition(".")[0]):
        raise InputError(
            f"--checkpoint {checkpoint}: no such folder or state dict, and no timm model."
            f"{did_you_mean(checkpoint, timm.list_models())}"
        )
    elif architecture not in (None, checkpoint):
        raise InputError(f"--architecture {architecture}: {checkpoint} is a timm name already; leave it out.")
    else:
        config.model = ModelConfig(checkpoint, pretrained=True, kwargs=kwargs, stages=[])
    if root is not None:
        config.data = DataConfig(root=root)
    elif not path.is_dir():
        raise InputError(f"--root is missing: {checkpoint} does not tell which images to use.")
    config.data.augmentation = None
    return config, preprocessing


def _shuffled(dataset: Any, limit: int | None) -> Subset[Any]:
    if isinstance(dataset, IterableDataset):
        raise InputError("methods are compared on images that can be shuffled; this data set can only be streamed.")
    return random_subset(dataset, limit)


def _fingerprint(model: PrunedViT) -> str:
    """Return a digest of all weights but the classifier's."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.state_dict().items()):
        if not name.startswith("head"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _saved(folder: Path, metadata: dict[str, Any], log: Callable[[str], None]) -> PrunedViT | None:
    """Return the model saved there, if it is the same in all that the classifier was fitted from."""
    if not folder.exists():
        return None
    try:
        model = load(folder)
    except InputError as error:
        log(f"{folder} cannot be used, so a classifier is fitted again: {error}")
        return None
    differs = [key for key, value in metadata.items() if not _same(model.metadata.get(key), value)]
    if differs:
        log(f"{folder} is of another backbone or other images ({', '.join(differs)}): a classifier is fitted again.")
        return None
    return model.requires_grad_(False)


def _same(saved: Any, value: Any) -> bool:
    if isinstance(value, dict) and isinstance(saved, dict):
        return saved.keys() == value.keys() and all(_same(saved[key], value[key]) for key in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return saved is not None and list(saved) == list(value)
    return bool(saved == value)
