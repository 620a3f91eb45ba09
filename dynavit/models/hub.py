"""Saving and loading: ``model.safetensors`` and ``config.json``, locally or on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol, cast

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.files import replacing, require_folder, write_text
from dynavit.models.probe import check_own_code
from dynavit.models.rebuild import Origin, describes_a_source, find_origin, structure
from dynavit.models.saved import checked_size, load_weights, read_config, usable_device
from dynavit.parts import with_module
from dynavit.reducers import reducer_config
from dynavit.scorers import scorer_config
from dynavit.selectors.registry import selector_config

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_THRESHOLDS_ARE_OF = {
    *("keep_ratio", "keep_ratios", "stages", "scorer", "selector", "reducer", "placement", "count_rule"),
}


_CARD = """---
library_name: dynavit
pipeline_tag: {task}
---

# {architecture}, token-pruned

Load with `dynavit.load("FOLDER_OR_HUB_NAME")`; any keep ratio: `dynavit.load(..., keep_ratio=0.5)`.
"""


class _Savable(Protocol):
    """What saving reads of a model."""

    backbone: Any
    adapter: Any
    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    selector: Any
    scorers: Any
    scorer_config: dict[str, Any]
    reducer: Any
    placement: Any
    count_rule: Any
    thresholds: tuple[float, ...] | None
    neck: Any
    side: Any
    architecture: str | None
    model_kwargs: dict[str, Any]
    metadata: dict[str, Any]
    _origin: tuple[Any, Origin] | None


class HubMixin(PyTorchModelHubMixin, library_name="dynavit", tags=["image-classification"]):
    """Adds ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Attributes:
        architecture: timm name from which the backbone can be rebuilt; None if unknown.
        scorer_config: what :func:`dynavit.create_model` was asked for, for models that have no scorers at present.
        model_kwargs: what timm needs beside it.
        metadata: plain data saved along: class names, preprocessing, whatever else serves users.
    """

    architecture: str | None = None
    scorer_config: dict[str, Any]
    model_kwargs: dict[str, Any]
    metadata: dict[str, Any]
    _origin: tuple[Any, Origin] | None = None

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write the model into a folder, after making sure that the folder will rebuild it.

        The folder needs no other file: arguments that say where weights came from are not written. What an earlier
        save left there stays whole until replaced.

        Args:
            save_directory: made if missing.
            config: ignored: the model describes itself.
            repo_id: Hub repository to push to; the folder's name if None.
            push_to_hub: push it there as well.
            push_to_hub_kwargs: passed to ``push_to_hub``.

        Returns:
            Where it was pushed to, or None.

        Raises:
            InputError: the backbone cannot be rebuilt, and how it differs from timm's; an option is not plain data;
                or the folder cannot be written.
        """
        # not huggingface_hub's, which deletes config.json before anything else
        if not isinstance(save_directory, str | Path) or not str(save_directory):
            raise InputError(f"save_pretrained({save_directory!r}): give a folder.")
        folder = Path(save_directory)
        require_folder(folder)
        self._save_pretrained(folder)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = model_config(cast(_Savable, self))
        # tied weights are written for each name: the folder rebuilds them untied, and equal
        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, value in cast(nn.Module, self).state_dict().items():
            state[name] = value.clone() if value.data_ptr() in seen else value.contiguous()
            seen.add(value.data_ptr())
        with replacing(save_directory / WEIGHTS) as partial:
            save_file(state, partial, metadata={"format": "pt"})
        write_text(save_directory / CONFIG, json.dumps(config, indent=2) + "\n")
        if not (save_directory / "README.md").exists():
            task = "image-classification" if cast(_Savable, self).neck is None else "image-feature-extraction"
            write_text(save_directory / "README.md", _CARD.format(architecture=config["architecture"], task=task))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str = "cpu",
        strict: bool = True,
        **overrides: Any,
    ) -> Any:
        """Load what ``save_pretrained`` wrote; see :func:`dynavit.load`."""
        # not huggingface_hub's, which reads config.json itself and knows no InputError
        from dynavit.models.factory import create_model  # the factory builds this class

        folder = Path(pretrained_model_name_or_path)

        def locate(name: str) -> Path:
            if folder.is_dir():
                return folder / name
            try:
                if folder.exists() or str(folder).count("/") != 1:
                    raise HFValidationError
                return Path(
                    hf_hub_download(
                        str(pretrained_model_name_or_path),
                        name,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        token=token,
                    )
                )
            except HFValidationError:
                reason = "and no name of a Hugging Face Hub repository"
            except OSError as error:
                reason = f"and the Hugging Face Hub did not give its {name} ({str(error).splitlines()[0]})"
            raise InputError(
                f"{folder} is no folder, {reason}; give the folder that a training run or save_pretrained wrote."
            )

        torch_device = usable_device(map_location)
        where = locate(CONFIG)
        config = read_config(where)
        metadata = config.pop("metadata", {})
        kwargs = {key: value for key, value in config.pop("model_kwargs").items() if not describes_a_source(key)}
        pool, thresholds = config.pop("global_pool", None), config.pop("thresholds", None)
        look, size = config.pop("preprocessing", {}), overrides.pop("img_size", None)
        if "keep_ratio" in overrides:
            del config["keep_ratios"]
        try:
            model = create_model(config.pop("architecture"), **{**config, **kwargs, **overrides})
            if pool != model.backbone.global_pool and "global_pool" not in overrides and pool is not None:
                model.reset_classifier(model.num_classes, pool)  # as was done to the saved one
            if thresholds is not None and not overrides.keys() & _THRESHOLDS_ARE_OF:
                model.set_thresholds([float(threshold) for threshold in thresholds])
        except InputError as error:
            if overrides:
                raise
            raise type(error)(f"{where}: {error}") from error
        except Exception as error:  # values that nobody wrote on purpose fail anywhere
            if overrides:
                raise
            raise InputError(
                f"{where} describes no model that can be built ({error}): save the model again."
            ) from error
        if look:
            model.backbone.pretrained_cfg = model.backbone.default_cfg = {**model.backbone.pretrained_cfg, **look}
        model.metadata = metadata
        load_weights(model, locate(WEIGHTS), torch_device, strict)
        if size is not None:
            pixels = checked_size(size, model)
            model.set_input_size(img_size=pixels)
            model.model_kwargs["img_size"] = list(pixels)
        return model.eval()


def model_config(model: _Savable) -> dict[str, Any]:
    """Return what rebuilds the model, as plain data, after rebuilding its backbone.

    Raises:
        InputError: the backbone cannot be rebuilt, an argument is not plain data, or hooks change the outputs; see
            :func:`~dynavit.models.rebuild.find_origin` and :func:`~dynavit.models.probe.check_own_code`.
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
    if model.side is not None:
        config["side"] = model.side.options()
    _require_plain(config)
    return config


def _scorer_config(model: _Savable) -> dict[str, Any]:
    if not model.scorers:
        return model.scorer_config
    return with_module(scorer_config(model.scorers[0]), model.scorers[0])


def _origin(model: _Savable) -> Origin:
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
    if model._origin is None or model._origin[0] != key:
        model._origin = (key, find_origin(model.adapter, model.architecture, plain))
    return model._origin[1]


def _require_plain(config: dict[str, Any]) -> None:
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the model cannot be saved: its model_kwargs or metadata hold no plain data, or NaN or infinity ({error})."
        ) from None
