"""Loading a saved model, from a folder or the Hugging Face Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from dynavit.errors import InputError
from dynavit.models.factory import create_model
from dynavit.models.hub import CONFIG, WEIGHTS
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.rebuild import describes_a_source
from dynavit.models.saved import checked_size, load_weights, read_config, usable_device

_BEFORE_PARTS = {"scorer": "mlp", "reducer": "drop"}
"""What a model that was saved before there were others has."""
_THRESHOLDS_ARE_OF = {
    *("keep_ratio", "keep_ratios", "stages", "scorer", "selector", "reducer", "placement", "count_rule"),
}


def load(
    path: str | Path,
    *,
    map_location: str = "cpu",
    strict: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **overrides: Any,
) -> PrunedViT:
    """Load a model saved with ``save_pretrained``: a folder, or a repository of the Hugging Face Hub.

    Args:
        path: folder or Hub repository id.
        map_location: device of the weights.
        strict: refuse weights that are missing or unknown.
        revision, cache_dir, token, force_download, local_files_only: of ``huggingface_hub.hf_hub_download``.
        overrides: replace saved settings (``keep_ratio=0.5``); with ``img_size``, position embeddings are resampled.

    Returns:
        The model in eval mode.

    Raises:
        InputError: no such folder or repository, or files that are missing, damaged or of another model.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"load({path!r}): give a folder, or a repository of the Hugging Face Hub.")
    locate = partial(
        _locate,
        path,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        force_download=force_download,
        local_files_only=local_files_only,
    )
    device, size = usable_device(map_location), overrides.pop("img_size", None)
    where = locate(CONFIG)
    config = read_config(where)
    look, metadata = config.pop("preprocessing", {}), config.pop("metadata", {})
    try:
        model = _built(config, overrides)
    except InputError as error:
        if overrides:
            raise
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:  # values that nobody wrote on purpose fail anywhere
        if overrides:
            raise
        raise InputError(f"{where} describes no model that can be built ({error}): save the model again.") from error
    if look:
        model.backbone.pretrained_cfg = model.backbone.default_cfg = {**model.backbone.pretrained_cfg, **look}
    model.metadata = metadata
    load_weights(model, locate(WEIGHTS), device, strict)
    if size is not None:
        pixels = checked_size(size, model)
        model.set_input_size(img_size=pixels)
        model.model_kwargs["img_size"] = list(pixels)
    return model.eval()


def _locate(path: str | Path, name: str, **options: Any) -> Path:
    """Return one of the two files of a model, downloaded if it is the Hub's."""
    folder = Path(path)
    if folder.is_dir():
        return folder / name
    try:
        if folder.exists() or str(folder).count("/") != 1:
            raise HFValidationError
        return Path(hf_hub_download(str(path), name, **options))
    except HFValidationError:
        reason = "and no name of a Hugging Face Hub repository"
    except OSError as error:
        reason = f"and the Hugging Face Hub did not give its {name} ({str(error).splitlines()[0]})"
    raise InputError(f"{folder} is no folder, {reason}; give the folder that a training run or save_pretrained wrote.")


def _built(config: dict[str, Any], overrides: dict[str, Any]) -> PrunedViT:
    """Make the model that ``config.json`` describes, with other settings where they are given."""
    kwargs = {key: value for key, value in config.pop("model_kwargs").items() if not describes_a_source(key)}
    pool, thresholds = config.pop("global_pool", None), config.pop("thresholds", None)
    if "keep_ratio" in overrides:
        del config["keep_ratios"]
    model = create_model(config.pop("architecture"), **{**_BEFORE_PARTS, **config, **kwargs, **overrides})
    if pool != model.backbone.global_pool and "global_pool" not in overrides and pool is not None:
        model.reset_classifier(model.num_classes, pool)  # as was done to the saved one
    if thresholds is not None and not overrides.keys() & _THRESHOLDS_ARE_OF:
        model.set_thresholds([float(threshold) for threshold in thresholds])
    return model
