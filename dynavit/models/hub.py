"""Saving and loading: ``model.safetensors`` and ``config.json``, locally or on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol, cast

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dynavit.errors import InputError
from dynavit.reducers import reducer_config
from dynavit.scorers import scorer_config
from dynavit.selectors.registry import selector_config

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_REQUIRED = {"architecture", "model_kwargs", "stages", "keep_ratios", "selector"}
_OPTIONAL = {
    *("reducer", "scorer", "placement", "count_rule", "thresholds"),
    *("global_pool", "metadata", "num_identities", "embedding", "side"),
}

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
    predictors: Any
    scorer: dict[str, Any]
    reducer: Any
    placement: Any
    count_rule: Any
    thresholds: tuple[float, ...] | None
    neck: Any
    side: Any
    architecture: str | None
    model_kwargs: dict[str, Any]
    metadata: dict[str, Any]


class HubMixin(PyTorchModelHubMixin, library_name="dynavit", tags=["image-classification"]):
    """Adds ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Attributes:
        architecture: timm name from which the backbone can be rebuilt; None if unknown.
        scorer: what :func:`dynavit.create_model` was asked for, for models that have no predictors at present.
        model_kwargs: what timm needs beside it.
        metadata: plain data saved along: class names, preprocessing, whatever else serves users.
    """

    architecture: str | None = None
    scorer: dict[str, Any]
    model_kwargs: dict[str, Any]
    metadata: dict[str, Any]

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write the model into a folder. What an earlier save left there stays whole until replaced.

        Args:
            save_directory: made if missing.
            config: ignored: the model describes itself.
            repo_id: Hub repository to push to; the folder's name if None.
            push_to_hub: push it there as well.
            push_to_hub_kwargs: passed to ``push_to_hub``.

        Returns:
            Where it was pushed to, or None.

        Raises:
            InputError: it is not known how the backbone was made, or an option is not plain data.
        """
        # not huggingface_hub's, which deletes config.json before anything else
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = json.dumps(model_config(cast(_Savable, self)), indent=2) + "\n"
        state = {name: value.contiguous() for name, value in cast(nn.Module, self).state_dict().items()}
        # written aside and renamed, so that an interrupted save leaves the previous files whole
        partial = save_directory / (WEIGHTS + ".partial")
        save_file(state, partial, metadata={"format": "pt"})
        partial.replace(save_directory / WEIGHTS)
        (save_directory / (CONFIG + ".partial")).write_text(config)
        (save_directory / (CONFIG + ".partial")).replace(save_directory / CONFIG)
        if not (save_directory / "README.md").exists():
            task = "image-classification" if cast(_Savable, self).neck is None else "image-feature-extraction"
            card = _CARD.format(architecture=self.architecture, task=task)
            (save_directory / "README.md").write_text(card)

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

        config = _read_config(locate(CONFIG))
        metadata = config.pop("metadata", {})
        kwargs = config.pop("model_kwargs")
        pool, thresholds = config.pop("global_pool", None), config.pop("thresholds", None)
        if "keep_ratio" in overrides:
            del config["keep_ratios"]
        model = create_model(config.pop("architecture"), **{**config, **kwargs, **overrides})
        if pool != model.backbone.global_pool and "global_pool" not in overrides and pool is not None:
            model.reset_classifier(model.num_classes, pool)  # as was done to the saved one
        if thresholds is not None and not overrides.keys() & _THRESHOLDS_ARE_OF:
            model.set_thresholds([float(threshold) for threshold in thresholds])
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
    # set_input_size may have changed the first two; only overlapping patches have a stride
    for key, attribute in (("img_size", "img_size"), ("patch_size", "patch_size"), ("patch_stride", "stride")):
        size = getattr(model.adapter.stem, attribute, None)
        if size is not None:
            kwargs[key] = list(size)
    config = {
        "architecture": model.architecture,
        "model_kwargs": kwargs,
        "global_pool": model.backbone.global_pool,  # reset_classifier may have changed it
        "stages": list(model.stages),
        "keep_ratios": list(model.keep_ratios),
        "selector": selector_config(model.selector),
        "scorer": scorer_config(model.predictors[0]) if model.predictors else model.scorer,
        "reducer": reducer_config(model.reducer),
        "placement": model.placement,
        "count_rule": model.count_rule,
        "metadata": model.metadata,
    }
    if model.thresholds is not None:
        # JSON knows no infinity: "inf" and "-inf" are text
        config["thresholds"] = [str(value) if math.isinf(value) else value for value in model.thresholds]
    if model.neck is not None:
        config |= {"num_identities": model.neck.num_identities, "embedding": model.neck.embedding}
    if model.side is not None:
        config["side"] = model.side.options()
    try:
        json.dumps(config)
    except TypeError as error:
        raise InputError(f"the model cannot be saved: its model_kwargs hold no plain data ({error}).") from None
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {path.parent} is no dynavit model folder.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): save the model again.") from None
    keys = config.keys() if isinstance(config, dict) else set()
    missing, unknown = _REQUIRED - keys, keys - _REQUIRED - _OPTIONAL
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by dynavit.")
    if unknown:
        raise InputError(f"{path} holds {', '.join(sorted(unknown))}, which this dynavit does not know.")
    return config
