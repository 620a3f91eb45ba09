"""Saving and loading: ``model.safetensors`` and ``config.json``, locally or on the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, cast

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dynavit.errors import InputError
from dynavit.selectors.registry import selector_config

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


class _Savable(Protocol):
    """What saving reads of a model."""

    backbone: Any
    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    selector: Any
    reducer: Any
    architecture: str | None
    model_kwargs: dict[str, Any]
    metadata: dict[str, Any]


class HubMixin(PyTorchModelHubMixin, library_name="dynavit", tags=["image-classification"]):
    """Adds ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Attributes:
        architecture: timm name from which the backbone can be rebuilt; None if unknown.
        model_kwargs: what timm needs beside it.
        metadata: plain data saved along: class names, preprocessing, whatever else serves users.
    """

    architecture: str | None = None
    model_kwargs: dict[str, Any]
    metadata: dict[str, Any]

    def _save_pretrained(self, save_directory: Path) -> None:
        config = json.dumps(model_config(cast(_Savable, self)), indent=2) + "\n"
        state = {name: value.contiguous() for name, value in cast(nn.Module, self).state_dict().items()}
        # written aside and renamed, so that an interrupted save leaves the previous files whole
        partial = save_directory / (WEIGHTS + ".partial")
        save_file(state, partial, metadata={"format": "pt"})
        partial.replace(save_directory / WEIGHTS)
        (save_directory / (CONFIG + ".partial")).write_text(config)
        (save_directory / (CONFIG + ".partial")).replace(save_directory / CONFIG)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        strict: bool = True,
        **overrides: Any,
    ) -> Any:
        from dynavit.models.factory import create_model  # the factory builds this class

        def locate(name: str) -> Path:
            if Path(model_id).is_dir():
                return Path(model_id) / name
            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        config = _read_config(locate(CONFIG))
        metadata = config.pop("metadata", {})
        kwargs = config.pop("model_kwargs")
        model = create_model(config.pop("architecture"), **{**config, **kwargs, **overrides})
        model.metadata = metadata
        path = locate(WEIGHTS)
        try:
            model.load_state_dict(load_file(path, device=map_location), strict=strict)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: the folder holds no trained model.") from None
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()
            raise InputError(
                f"{path} cannot be loaded into {model.architecture}: {' '.join(reason[:3])} "
                f"The file is truncated or belongs to another model."
            ) from error
        return model.eval()


def model_config(model: _Savable) -> dict[str, Any]:
    """Return what rebuilds the model, as plain data.

    Raises:
        InputError: it is not known how the backbone was made, or an argument is not plain data.
    """
    if model.architecture is None:
        raise InputError(
            "this model wraps a backbone whose origin is unknown, so it could not be rebuilt: create "
            "it with dynavit.create_model, or pass architecture='timm_name' (and model_kwargs=) to "
            "dynavit.prune."
        )
    kwargs = {**model.model_kwargs, "num_classes": model.backbone.num_classes}
    size = getattr(model.backbone.patch_embed, "img_size", None)
    if size is not None:
        kwargs["img_size"] = list(size)
    config = {
        "architecture": model.architecture,
        "model_kwargs": kwargs,
        "stages": list(model.stages),
        "keep_ratios": list(model.keep_ratios),
        "selector": selector_config(model.selector),
        "reducer": {"name": model.reducer.name},
        "metadata": model.metadata,
    }
    try:
        json.dumps(config)
    except TypeError as error:
        raise InputError(
            f"the model cannot be saved: its model_kwargs hold no plain data ({error})."
        ) from None
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
        missing = {"architecture", "model_kwargs", "stages", "selector"} - config.keys()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {path.parent} is no dynavit model folder.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}): save the model again.") from None
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by dynavit.")
    return config
