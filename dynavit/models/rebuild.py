"""Whether a description rebuilds the very backbone that it describes, found out by rebuilding it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import timm
import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn

from dynavit.adapters import BackboneAdapter
from dynavit.errors import InputError
from dynavit.models.backbone import create_backbone
from dynavit.models.conventions import head_classes
from dynavit.models.same_outputs import close, evaluating, noise_image, own_code
from dynavit.text import listed

_INERT = (nn.Identity, nn.Dropout, DropPath, PatchDropout)  # in eval
# notes that modules keep, or of which weights and shapes tell more
_NO_MATTER = {"training", "grad_checkpointing", "fused_attn", "inplace", "num_classes", "in_chans", "init_values"}
_LOOK = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
_ATTEMPTS = 2  # one argument may hide behind another

# timm's arguments that can be read off a model
_READERS: dict[str, Callable[[Any], Any]] = {
    "embed_dim": lambda backbone: int(backbone.embed_dim),
    "depth": lambda backbone: len(backbone.blocks),
    "num_heads": lambda backbone: int(backbone.blocks[0].attn.num_heads),
    "mlp_ratio": lambda backbone: backbone.blocks[0].mlp.fc1.out_features / backbone.embed_dim,
    "qkv_bias": lambda backbone: backbone.blocks[0].attn.qkv.bias is not None,
    "qk_norm": lambda backbone: not isinstance(backbone.blocks[0].attn.q_norm, nn.Identity),
    # a value to start from, which the weights replace
    "init_values": lambda backbone: getattr(_layer_scale(backbone), "init_values", 1e-5),
    "class_token": lambda backbone: backbone.cls_token is not None,
    "reg_tokens": lambda backbone: int(backbone.num_reg_tokens),
    "no_embed_class": lambda backbone: bool(backbone.no_embed_class),
    "pre_norm": lambda backbone: not isinstance(backbone.norm_pre, nn.Identity),
    "fc_norm": lambda backbone: not isinstance(backbone.fc_norm, nn.Identity),
    "dynamic_img_size": lambda backbone: bool(backbone.dynamic_img_size),
}


def _layer_scale(backbone: Any) -> Any:
    scale = backbone.blocks[0].ls1
    if isinstance(scale, nn.Identity):
        raise AttributeError("no layer scale")
    return scale


@dataclass(frozen=True)
class Origin:
    """How a backbone is made.

    Attributes:
        architecture: its timm name.
        model_kwargs: what timm needs beside it, as plain data.
        preprocessing: what its weights expect of pictures, where that is not what the name says.
    """

    architecture: str
    model_kwargs: dict[str, Any]
    preprocessing: dict[str, Any]


def describes_a_source(key: str) -> bool:
    """Whether an argument of timm says where weights are from, which a model that has its weights does not need."""
    return key.startswith("pretrained") or key in ("checkpoint_path", "cache_dir")


def find_origin(
    adapter: BackboneAdapter, architecture: str | None, model_kwargs: Mapping[str, Any], run: bool = True
) -> Origin:
    """Return how a backbone can be made again, after making it.

    Where the description does not fit, arguments are read off the backbone: number of classes, sizes, depth, width
    and so on. Nothing is taken on trust: names and shapes of all weights, the modules' settings, and the outputs on a
    fixed input have to be the same.

    Args:
        adapter: around the backbone, which stays as it is.
        architecture: its timm name; what timm wrote into ``pretrained_cfg`` if None.
        model_kwargs: what timm made it with, as far as known.
        run: also compare outputs; without, nothing is computed and no memory is needed.

    Raises:
        InputError: it is not known where the backbone is from, or it cannot be made again; what differs is named.
    """
    backbone = adapter.backbone
    name = architecture if architecture is not None and ":" not in architecture else _name_of(backbone)
    if name is None:
        raise InputError(
            "this model wraps a backbone whose origin is unknown, so it could not be rebuilt: create "
            "it with dynavit.create_model, or pass architecture='timm_name' (and model_kwargs=) to "
            "dynavit.prune."
        )
    kwargs = {key: value for key, value in model_kwargs.items() if not describes_a_source(key)}
    kwargs["num_classes"] = head_classes(backbone)
    if backbone.global_pool == "map":  # reset_classifier cannot add such a pooling
        kwargs["global_pool"] = "map"
    # set_input_size may have changed the first two; only overlapping patches have a stride
    for key, attribute in (("img_size", "img_size"), ("patch_size", "patch_size"), ("patch_stride", "stride")):
        size = getattr(adapter.stem, attribute, None)
        if size is not None:
            kwargs[key] = list(size)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            rebuilt = _build(name, kwargs, backbone)
            different = _differences(backbone, rebuilt, name)
            for _ in range(_ATTEMPTS):
                if not different:
                    break
                kwargs = kwargs | _read_off(adapter, rebuilt)
                try:
                    rebuilt = _build(name, kwargs, backbone)
                except InputError:  # not all architectures have all arguments
                    break
                different = _differences(backbone, rebuilt, name)
        if different:
            _refuse(name, kwargs, different)
        if run and not _same_outputs(adapter, _build(name, kwargs, backbone)):
            _refuse(name, kwargs, ["the outputs for the same input, so some module computes something else"])
    return Origin(name, kwargs, _preprocessing(backbone, rebuilt))


def structure(backbone: nn.Module) -> tuple[Any, ...]:
    """Return names and shapes of all weights and settings of all modules, to see whether anything was changed."""
    shapes = tuple((name, tuple(value.shape)) for name, value in backbone.state_dict().items())
    modules = tuple(
        (name, type(module), tuple(_settings(module).items()), own_code(module))
        for name, module in backbone.named_modules()
    )
    return shapes, modules


def _name_of(backbone: Any) -> str | None:
    about = getattr(backbone, "pretrained_cfg", None) or {}
    name, tag = about.get("architecture"), about.get("tag")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    default = timm.get_pretrained_cfg(name)
    if not tag or default is None or default.tag == tag:
        return name
    try:  # another tag may have another normalisation
        timm.get_pretrained_cfg(f"{name}.{tag}")
    except RuntimeError:  # a tag of somebody's own
        return name
    return f"{name}.{tag}"


def _build(architecture: str, kwargs: Mapping[str, Any], like: Any) -> Any:
    rebuilt: Any = create_backbone(architecture, **kwargs)
    if rebuilt.global_pool != like.global_pool:  # as reset_classifier does, and loading again
        rebuilt.reset_classifier(kwargs["num_classes"], like.global_pool)
    return rebuilt


def _differences(backbone: nn.Module, rebuilt: nn.Module, name: str) -> list[str]:
    ours, theirs = backbone.state_dict(), rebuilt.state_dict()
    differences = [
        f"backbone.{key} is {tuple(value.shape)}, {name} has {tuple(theirs[key].shape)}"
        for key, value in ours.items()
        if key in theirs and theirs[key].shape != value.shape
    ]
    for keys, where in ((ours.keys() - theirs.keys(), "the backbone"), (theirs.keys() - ours.keys(), name)):
        if keys:
            differences.append(f"only {where} has {listed(sorted(keys), 3)}")
    if differences:
        return differences
    modules, others = dict(backbone.named_modules()), dict(rebuilt.named_modules())
    for key in modules.keys() | others.keys():
        module, other = modules.get(key, _INERT[0]()), others.get(key, _INERT[0]())
        inert = isinstance(module, _INERT) and isinstance(other, _INERT)
        place = f"backbone.{key}" if key else "backbone"
        if type(module) is not type(other) and not inert:
            differences.append(f"{place} is a {type(module).__name__}, that of {name} a {type(other).__name__}")
        settings = _settings(other)
        for setting, value in _settings(module).items():
            if setting in settings and settings[setting] != value:
                differences.append(f"{place}.{setting} is {value}, that of {name} {settings[setting]}")
    return sorted(differences)


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return what a module was told, as far as it is plain and matters to outputs."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _NO_MATTER and "drop" not in name and _is_plain(value)
        if not isinstance(module, _INERT)
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or (
        isinstance(value, list | tuple) and all(isinstance(entry, bool | int | float | str) for entry in value)
    )


def _read_off(adapter: BackboneAdapter, rebuilt: Any) -> dict[str, Any]:
    """Return timm's arguments by which a backbone seems to differ from another."""
    arguments: dict[str, Any] = {}
    for key, read in _READERS.items():
        value = _read(read, adapter.backbone)
        if value is not None and value != _read(read, rebuilt):
            arguments[key] = value
    if {"class_token", "fc_norm"} & arguments.keys():  # which the default of pooling depends on
        arguments["global_pool"] = adapter.backbone.global_pool
    if adapter.in_chans != type(adapter)(rebuilt).in_chans:
        arguments["in_chans"] = adapter.in_chans
    return arguments


def _read(read: Callable[[Any], Any], backbone: Any) -> Any:
    try:
        return read(backbone)
    except (AttributeError, TypeError):  # this family has no such part
        return None


@torch.no_grad()
def _same_outputs(adapter: BackboneAdapter, rebuilt: nn.Module) -> bool:
    backbone = adapter.backbone
    first, images = next(backbone.parameters()), noise_image(adapter)
    # on the device and in the precision of the model, with its very weights: no second copy of them stays
    rebuilt = rebuilt.to(first.device, first.dtype).eval()
    rebuilt.load_state_dict(backbone.state_dict(), assign=True)
    with evaluating(backbone), torch.autocast(first.device.type, enabled=False):
        try:
            outputs = _outputs(backbone, images)
        except (RuntimeError, NotImplementedError):  # half precision that this device cannot compute in
            return True
        return all(map(close, outputs, _outputs(rebuilt, images)))


def _outputs(backbone: Any, images: Tensor) -> list[Tensor]:
    outputs = [backbone.forward_features(images), backbone(images)]
    return [output for output in outputs if isinstance(output, Tensor)]


def _preprocessing(backbone: Any, rebuilt: Any) -> dict[str, Any]:
    ours, theirs = (getattr(each, "pretrained_cfg", None) or {} for each in (backbone, rebuilt))
    differing = {key: ours[key] for key in _LOOK if key in ours and ours[key] != theirs.get(key)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in differing.items()}


def _refuse(name: str, kwargs: Mapping[str, Any], different: list[str]) -> NoReturn:
    hint = "use timm's own parts, or pass dynavit.prune the architecture= and model_kwargs= that timm made it with."
    if any("lora" in line.lower() or "base_layer" in line for line in different):
        hint = "merge adapters such as LoRA into the weights they belong to first."
    elif all("head" in line.partition(",")[0] for line in different):
        hint = "replace the head with backbone.reset_classifier(NUMBER_OF_CLASSES), which timm can make again."
    elif any("outputs" in line for line in different):
        hint = "use timm's own modules, or put what is yours around the pruned model."
    shown = {key: value for key, value in kwargs.items() if key in ("num_classes", "img_size")}
    raise InputError(
        f"the model could not be rebuilt from {name} with {', '.join(f'{k}={v}' for k, v in shown.items())}, so it "
        f"cannot be saved. What differs: {'; '.join(different[:3])}. To save it, {hint}"
    )
