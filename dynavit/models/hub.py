"""Saving a model as ``model.safetensors`` and ``config.json``, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor

from dynavit.errors import InputError
from dynavit.files import replacing, require_folder, write_text
from dynavit.models.card import write_card
from dynavit.models.rebuild import Origin, describes_a_source, find_origin, structure
from dynavit.models.same_outputs import check_own_code
from dynavit.parts import with_module
from dynavit.reducers import reducer_config
from dynavit.scorers import scorer_config
from dynavit.selectors.registry import selector_config

if TYPE_CHECKING:
    from dynavit.models.pruned_vit import PrunedViT

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def save_pretrained(
    model: PrunedViT,
    save_directory: str | Path,
    *,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    **push_to_hub_kwargs: Any,
) -> str | None:
    """Write a model into a folder, after making sure that the folder will rebuild it.

    The folder needs no other file: arguments that say where weights came from are not written. What an earlier
    save left there stays whole until replaced.

    Args:
        model: to save.
        save_directory: made if missing.
        repo_id: Hub repository to push to; the folder's name if None.
        push_to_hub: push it there as well.
        push_to_hub_kwargs: passed to :func:`push_to_hub`.

    Returns:
        Where it was pushed to, or None.

    Raises:
        InputError: the backbone cannot be rebuilt, and how it differs from timm's; an option is not plain data;
            or the folder cannot be written.
    """
    if not isinstance(save_directory, str | Path) or not str(save_directory):
        raise InputError(f"save_pretrained({save_directory!r}): give a folder.")
    folder = Path(save_directory)
    require_folder(folder)
    config = model_config(model)
    # tied weights are written for each name: the folder rebuilds them untied, and equal
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        state[name] = value.clone() if value.data_ptr() in seen else value.contiguous()
        seen.add(value.data_ptr())
    with replacing(folder / WEIGHTS) as partial:
        save_file(state, partial, metadata={"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_card(folder, config)
    return model.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs) if push_to_hub else None


def push_to_hub(
    model: PrunedViT,
    repo_id: str,
    *,
    commit_message: str = "Push model using huggingface_hub.",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    **upload: Any,
) -> str:
    """Save a model to a repository of the Hugging Face Hub, which is made if missing.

    Args:
        model: to save.
        repo_id: "user/name", or a name alone, of the user's own.
        commit_message: of the one commit.
        private: who sees a repository that is made; the owner's setting if None.
        token: the one of ``hf auth login`` if None.
        branch: to push to; "main" if None.
        upload: passed to ``HfApi.upload_folder``, such as ``create_pr`` or ``delete_patterns``.

    Returns:
        The address of the commit.

    Raises:
        InputError: as :func:`save_pretrained`, before anything is sent.
    """
    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=branch, **upload
        )


def model_config(model: PrunedViT) -> dict[str, Any]:
    """Return what rebuilds the model, as plain data, after rebuilding its backbone.

    Raises:
        InputError: the backbone cannot be rebuilt, an argument is not plain data, or hooks change the outputs; see
            :func:`~dynavit.models.rebuild.find_origin` and :func:`~dynavit.models.same_outputs.check_own_code`.
    """
    selector = with_module(selector_config(model.selector), model.selector)  # refused before anything is built
    origin = _origin(model)
    check_own_code(model)
    config = {
        "architecture": origin.architecture,
        "model_kwargs": origin.model_kwargs,
        "global_pool": model.backbone.global_pool,  # reset_classifier may have changed it
        "stages": list(model.stages),
        "keep_ratios": list(model.keep_ratios),
        "selector": selector,
        "scorer": _scorer_config(model),
        "reducer": reducer_config(model.reducer),
        "placement": model.placement,
        "count_rule": model.count_rule,
        "metadata": model.metadata,
    }
    if origin.preprocessing:
        config["preprocessing"] = origin.preprocessing
    if model.thresholds is not None:
        # JSON knows no infinity: "inf" and "-inf" are text
        config["thresholds"] = [str(value) if math.isinf(value) else value for value in model.thresholds]
    if model.neck is not None:
        config |= {"num_identities": model.neck.num_identities, "embedding": model.neck.embedding}
    if model.num_spectra > 1:
        config["spectra"] = model.num_spectra
    if model.side is not None:
        config["side"] = model.side.options()
    _require_plain(config)
    return config


def _scorer_config(model: PrunedViT) -> dict[str, Any]:
    if not model.scorers:
        return model.scorer_config
    scorer: Any = model.scorers[0]
    return with_module(scorer_config(scorer), scorer)


def _origin(model: PrunedViT) -> Origin:
    """Return how the backbone is made, found out once for each structure that it has."""
    if model.adapter.backbone is not model.backbone:
        raise InputError("model.backbone was replaced, but the model runs the old one: wrap the new one.")
    if len(model.scorers) not in (0, len(model.stages)):
        raise InputError(f"the model has {len(model.scorers)} scorers for {len(model.stages)} stages.")
    if not isinstance(model.metadata, dict):
        raise InputError(f"metadata={model.metadata!r}: give a mapping of plain data.")
    plain = {key: value for key, value in model.model_kwargs.items() if not describes_a_source(key)}
    _require_plain(plain)
    key = (model.architecture, json.dumps(plain), structure(model.backbone))
    if model.origin is None or model.origin[0] != key:
        model.origin = (key, find_origin(model.adapter, model.architecture, plain))
    return model.origin[1]


def _require_plain(config: dict[str, Any]) -> None:
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the model cannot be saved: its model_kwargs or metadata hold no plain data, or NaN or infinity ({error})."
        ) from None
