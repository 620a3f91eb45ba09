"""What a trained model says of one's own images, as functions: predict, embed, visualize."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dynavit.commands.settings import require_counts, require_suffix
from dynavit.errors import InputError
from dynavit.files import replacing, require_folder, require_writable
from dynavit.tables import Row
from dynavit.text import printable

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[[Sequence[str]], None]
"""Receives a line for each picture that cannot be read."""

_PAGE = 8  # images in a picture


def _warn(problems: Sequence[str]) -> None:
    """Warn of each picture that cannot be read."""
    for problem in problems:
        warnings.warn(problem, stacklevel=3)


def predict(
    run_dir: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    *,
    top: int = 1,
    gallery: str | Path | None = None,
    tokens: str | Path | None = None,
    keep_ratio: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
    report: Report = _warn,
) -> list[Row]:
    """Label images; or, with a re-identification model, find for each those most like it.

    Args:
        run_dir: folder of the model.
        images: folder with images, or one image.
        output: file to write the rows to, ``.csv`` or ``.json``.
        top: how many classes, or images, to name for each image.
        gallery: folder with images to find them among, with a re-identification model; ``images`` if None.
        tokens: ``.json`` file for what became of the tokens of each image; docs/images.md says what it holds.
        keep_ratio: in place of the one trained with.
        batch_size: images at a time.
        workers: processes that read images ahead; 0 reads them in this one. A script needs ``if __name__ ==
            "__main__":`` for others where Python starts processes anew, as on macOS and Windows.
        device: name for torch; CUDA if there is one and None is given.
        report: receives a line for each image that cannot be read.

    Returns:
        A row for each image: ``image``, ``label`` and ``probability``; or ``image``, ``nearest`` and ``similarity``,
        the cosine of their embeddings. What comes next is ``label_2``, ``probability_2`` and so on. No image finds
        itself; None stands where an image that cannot be read would have been needed.

    Raises:
        InputError: no such model, not one image that can be read, more asked for than there is, a gallery for a
            classifier, tokens of a dense model, or a file that cannot be written.
    """
    from dynavit.deployment.predict import check_top, embed_images, label_images, nearest_images, readable, write_rows
    from dynavit.deployment.token_file import token_file
    from dynavit.runs.images import list_images
    from dynavit.runs.open import open_run

    require_counts(top=top, batch_size=batch_size)
    require_counts(0, workers=workers)
    if output is not None:
        if Path(output).suffix.lower() not in (".csv", ".json"):
            raise InputError(f"--output {output}: the name must end in .csv or .json, or in .npz for arrays.")
        require_writable(Path(output))
    if tokens is not None:
        if output is not None and Path(tokens).resolve() == Path(output).resolve():
            raise InputError(f"--tokens {tokens}: --output goes to this file; give another name.")
        require_suffix(Path(tokens), ".json", option="--tokens")
        require_writable(Path(tokens))
    run = open_run(run_dir, keep_ratio, device)
    if gallery is not None and not run.is_reid:
        raise InputError(
            f"--gallery {gallery}: {run.path} is a classifier; only a re-identification model looks for images in a "
            f"gallery. Leave it out."
        )
    paths = list_images(images)
    among = paths if gallery is None else list_images(gallery, "--gallery")
    if run.is_reid:
        check_top(top, paths, among)
    with nullcontext() if tokens is None else token_file(tokens, run) as written:
        batches = readable(run, paths, batch_size, workers, report)
        if run.is_reid:
            found = searched = embed_images(run, batches, written)
            if gallery is not None:
                searched = embed_images(run, readable(run, among, batch_size, workers, report))
            rows = nearest_images(found, searched, top)
        else:
            rows = label_images(run, batches, top, written)
        if output is not None:
            write_rows(Path(output), rows)
    return rows


def embed(
    run_dir: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    *,
    keep_ratio: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
    report: Report = _warn,
) -> tuple[list[str], Tensor]:
    """Embed images: with a re-identification model, or as the features that a classifier decides by.

    Args:
        run_dir: folder of the model.
        images: folder with images, or one image.
        output: file that ends in ``.npz``, to which arrays are written: ``images`` ``(M,)`` and ``embeddings``
            ``(M, D)``; of a classifier ``images``, ``probabilities`` ``(M, C)``, ``class_names`` ``(C,)`` and
            ``features`` ``(M, D)``.
        keep_ratio: in place of the one trained with.
        batch_size: images at a time.
        workers: as for :func:`predict`.
        device: name for torch; CUDA if there is one and None is given.
        report: receives a line for each image that cannot be read.

    Returns:
        The paths of M images, and ``(M, D)`` fp32: their embeddings, of length 1; of a classifier their pooled features
        before its head, timm's ``forward_head(..., pre_logits=True)``.

    Raises:
        InputError: no such model, one without a classifier, not one image that can be read, or a file that cannot be
            written.
    """
    from dynavit.deployment.predict import describe_images, embed_images, readable, write_arrays
    from dynavit.runs.images import list_images
    from dynavit.runs.open import open_run

    require_counts(batch_size=batch_size)
    require_counts(0, workers=workers)
    if output is not None:
        require_suffix(Path(output), ".npz")
        require_writable(Path(output))
    run = open_run(run_dir, keep_ratio, device)
    batches = readable(run, list_images(images), batch_size, workers, report)
    arrays: dict[str, Sequence[str] | Tensor]
    if run.is_reid:
        names, features = embed_images(run, batches)
        arrays = {"embeddings": features}
    else:
        names, features, probabilities = describe_images(run, batches)
        arrays = {"probabilities": probabilities, "class_names": run.class_names, "features": features}
    if output is not None:
        write_arrays(Path(output), {"images": names, **arrays})
    return names, features


def visualize(
    run_dir: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    *,
    keep_ratio: float | None = None,
    device: str | None = None,
    report: Report = _warn,
) -> list[Path]:
    """Draw which tokens a trained model keeps after each stage, or merges, eight images to a picture.

    Args:
        run_dir: folder of the model.
        images: folder with images, or one image.
        output: folder for the pictures; ``run_dir/kept_tokens`` if None.
        keep_ratio: in place of the one trained with.
        device: name for torch; CUDA if there is one and None is given.
        report: receives a line for each image that cannot be read.

    Returns:
        The pictures written.

    Raises:
        InputError: no such model, one without stages, or not one image that can be read.
    """
    from dynavit.deployment.predict import readable
    from dynavit.evaluation.drawings import draw_kept_tokens
    from dynavit.runs.images import list_images
    from dynavit.runs.open import open_run

    folder = Path(output or Path(run_dir) / "kept_tokens")
    if output is not None or Path(run_dir).is_dir():
        require_folder(folder)
    run = open_run(run_dir, keep_ratio, device)
    if not run.model.stages:
        raise InputError(f"{run.path} holds a dense model: every token is kept, so there is nothing to draw.")
    pages: list[Path] = []
    for paths, batch in readable(run, list_images(images), _PAGE, 0, report):
        picture = draw_kept_tokens(run, batch, [printable(path.name) for path in paths])
        pages.append(folder / f"kept_tokens_{len(pages) + 1:03}.png")
        with replacing(pages[-1]) as partial:
            picture.save(partial)
    return pages
