"""Pictures of what a run does: the tokens it keeps, and for re-identification what it finds first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from dynavit.data.reid import ReidData
from dynavit.metrics.retrieval import rank_gallery
from dynavit.report.ranked_lists import ranked_list_figure
from dynavit.report.tokens import trace_grid
from dynavit.runs.loading import first_images
from dynavit.runs.open import Run
from dynavit.tasks import Predicted
from dynavit.tasks.reid import Searchable, sample_inputs
from dynavit.text import printable

_EXAMPLES = 4
_QUERIES, _MATCHES = 6, 8


def example_images(data: Any, predicted: Predicted | None) -> tuple[Tensor, list[str] | None]:
    """Return a few validation images ``(B, 3, H, W)``, of different classes where there are any, and their captions.

    Args:
        data: opened by a task.
        predicted: of all images that can be read, where they have classes.
    """
    if predicted is None or isinstance(data.validation, IterableDataset):
        return torch.stack(first_images(data.validation, _EXAMPLES)), None
    places = spread_over_classes(predicted, _EXAMPLES)
    images = [data.validation[index][0] for index in predicted.indices[places].tolist()]
    return torch.stack(images), [printable(data.class_names[label]) for label in predicted.labels[places].tolist()]


def spread_over_classes(predicted: Predicted, count: int) -> list[int]:
    """Return places among V images of ``count`` at most, of classes that lie far apart in the order of labels."""
    classes = predicted.labels.unique()
    chosen = classes[torch.linspace(0, len(classes) - 1, min(count, len(classes))).long()]
    each = [torch.nonzero(predicted.labels == label).flatten().tolist() for label in chosen]
    taken_in_turn = [place for row in zip_longest(*each) for place in row if place is not None]
    return taken_in_turn[:count]


@torch.inference_mode()
def draw_kept_tokens(run: Run, images: Tensor, captions: Sequence[str] | None = None) -> Image.Image:
    """Draw images ``(B, 3, H, W)`` with the tokens that the model keeps after each stage, or merges.

    Of samples ``(B, M, 3, H, W)`` each spectrum is drawn as an image, under the caption of its sample.
    """
    _, trace = run.answer(images.to(run.device), return_trace=True)
    pixels = [run.pixels(image) for image in images.flatten(0, -4)]
    if captions is not None:
        captions = [caption for caption in captions for _ in range(run.model.num_spectra)]
    return trace_grid(pixels, trace, run.model.adapter.grid_size, captions=captions)


@torch.inference_mode()
def draw_ranked_lists(run: Run, data: ReidData, searched: Searchable) -> Image.Image:
    """Draw some queries with what the model finds first, at its present keep ratio.

    The queries are spread over all that have a match, none picked by hand; dropped patches are faded.

    Args:
        run: whose model gave the embeddings.
        data: that they are of.
        searched: the embeddings.
    """
    usable = torch.nonzero(data.has_match[searched.query]).flatten()
    chosen = usable[torch.linspace(0, len(usable) - 1, min(_QUERIES, len(usable))).long().unique()]
    labels = searched.labels(chosen)
    query, gallery = searched.query_features[chosen], searched.gallery_features
    nearest = rank_gallery(query, gallery, **labels, metric="cosine", top=_MATCHES)
    pictures: dict[int, Any] = {}
    kept: dict[int, Any] = defaultdict(lambda: None)
    rows = [
        (int(searched.query[number]), [int(searched.gallery[match]) for match in matches.tolist() if match >= 0])
        for number, matches in zip(chosen.tolist(), nearest, strict=True)
    ]
    needed = sorted({index for query, matches in rows for index in (query, *matches)})
    for index in needed:
        sample = data.validation[index]
        assert sample is not None  # it has been read before
        batch = sample[0][None]
        pictures[index] = np.concatenate([run.pixels(image) for image in batch.flatten(0, -4)], axis=1)  # side by side
        _, trace = run.model(
            batch.to(run.device), return_trace=True, **sample_inputs(run.model, data, torch.tensor([index]))
        )
        if trace.stages:
            grids = trace.stages[-1].kept.unflatten(1, run.model.adapter.grid_size)
            kept[index] = torch.cat([*grids], dim=1).flatten().cpu().numpy()
    prunes = bool(run.model.scorers)  # merging drops nothing
    rows_of_patches, columns = run.model.adapter.grid_size

    def caption(index: int) -> str:
        camera = int(data.cameras[index])
        name = f"id {int(data.identities[index])}"
        return name if camera < 0 else f"{name}\ncamera {data.camera_names[camera]}"

    return ranked_list_figure(
        [pictures[query] for query, _ in rows],
        [[pictures[match] for match in matches] for _, matches in rows],
        [[bool(data.identities[match] == data.identities[query]) for match in matches] for query, matches in rows],
        query_captions=[caption(query) for query, _ in rows],
        result_captions=[[caption(match) for match in matches] for _, matches in rows],
        query_kept=[kept[query] for query, _ in rows] if prunes else None,
        result_kept=[[kept[match] for match in matches] for _, matches in rows] if prunes else None,
        grid_size=(rows_of_patches, columns * run.model.num_spectra) if prunes else None,
    )
