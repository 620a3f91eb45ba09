"""A Hugging Face ViT or DINOv2 in, pruned, and out again as a transformers model.

It shows `dynavit.convert` on a folder that transformers saved, which gives a model that prunes and can be fine-tuned;
and the way back, for whoever serves with transformers: the weights get Hugging Face's names again, in a folder that
`from_pretrained` reads. Without pruning all three answer alike, which is asserted.

Needs `pip install -e ".[examples]"`. From the repository's root, seconds on a CPU, with a small untrained ViT or yours:

    python examples/huggingface_vit.py
    python examples/huggingface_vit.py --model FOLDER --keep-ratio 0.7 --output results/mine

FOLDER holds config.json and weights of `ViTForImageClassification`, or of `Dinov2Model`, of which the last hidden state
is compared. `--output` gets two folders: `dynavit`, for `dynavit.load`, and `transformers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import dynavit

# of each type that config.json may name: its class in transformers, and a timm model like it
KINDS = {
    "vit": (transformers.ViTForImageClassification, "vit_base_patch16_224"),
    "dinov2": (transformers.Dinov2Model, "vit_base_patch14_dinov2"),
}
ARGUMENTS = {  # of timm, and where a Hugging Face configuration says them
    "img_size": "image_size", "patch_size": "patch_size", "in_chans": "num_channels", "embed_dim": "hidden_size",
    "depth": "num_hidden_layers", "num_heads": "num_attention_heads", "qkv_bias": "qkv_bias",
}  # fmt: skip
NAMES = {  # of timm, and in Hugging Face's files
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings", "norm": "layernorm",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
}  # fmt: skip
VIT_NAMES = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
VIT_NAMES |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, save both ways, and compare what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder that transformers saved; a small untrained ViT if left out")
    parser.add_argument("--keep-ratio", type=float, default=0.7, help="patches left after each of two stages")
    parser.add_argument("--output", default="results/huggingface_vit", help="folder for both models")
    options = parser.parse_args(argv)
    output = Path(options.output)
    source = Path(options.model or draw_vit(output / "untrained"))
    if not (source / "config.json").is_file():
        parser.error(f"--model {source}: there is no config.json; give a folder that transformers saved.")
    config = transformers.AutoConfig.from_pretrained(source)
    if config.model_type not in KINDS or config.hidden_act != "gelu" or getattr(config, "use_swiglu_ffn", False):
        parser.error(f"--model {source} ({config.model_type}): this converts {' and '.join(KINDS)} with GELU alone.")
    kind, architecture = KINDS[config.model_type]
    kwargs: dict[str, Any] = {ours: getattr(config, theirs) for ours, theirs in ARGUMENTS.items()}
    kwargs["mlp_ratio"] = getattr(config, "mlp_ratio", None) or config.intermediate_size / config.hidden_size
    model = dynavit.convert(source, architecture, keep_ratio=options.keep_ratio, **kwargs)
    model.save_pretrained(output / "dynavit")  # fine-tune it before that: see own_training_loop.py
    state = to_hugging_face(model, config)
    kind.from_pretrained(None, config=config, state_dict=state).save_pretrained(output / "transformers")
    theirs, back = (kind.from_pretrained(folder) for folder in (source, output / "transformers"))
    compare(theirs, dynavit.load(output / "dynavit"), back)


def to_hugging_face(model: dynavit.PrunedViT, config: transformers.PretrainedConfig) -> dict[str, Tensor]:
    """Return the backbone's weights by the names of Hugging Face's files; scorers, if there are any, have no place."""
    is_vit = config.model_type == "vit"
    names, prefix = (NAMES | VIT_NAMES, "vit.") if is_vit else (NAMES, "")
    # DINOv2's mask token, which pre-training alone uses, is none of timm's weights
    state = {} if is_vit else {"embeddings.mask_token": torch.zeros(1, config.hidden_size)}
    for name, value in model.backbone.state_dict().items():
        start, part = prefix, name
        if name.startswith("blocks."):
            _, number, part = name.split(".", 2)
            start = f"{prefix}encoder.layer.{number}."
        module, _, kind = part.rpartition(".")
        if module == "attn.qkv":  # one matrix in timm
            for which, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"{start}attention.attention.{which}.{kind}"] = rows.clone()
        elif module == "head":
            state[f"classifier.{kind}"] = value
        else:
            state[start + (names.get(part) or f"{names.get(module, module)}.{kind}")] = value
    return state


@torch.inference_mode()
def compare(theirs: Any, model: dynavit.PrunedViT, back: Any) -> None:
    """Print how far the answers are apart; more than rounding is an error."""
    images = torch.randn(4, model.adapter.in_chans, *model.adapter.image_size)
    answers = [one(images) for one in (theirs, back)]
    wanted, returned = [answer.logits if "logits" in answer else answer.last_hidden_state for answer in answers]
    dense = dynavit.prune(model, stages=())
    ours = dense(images) if dense.num_classes else dense.forward_features(images)
    for what, found in (("in dynavit, without pruning", ours), ("back in transformers", returned)):
        print(f"{what}: largest difference {(found - wanted).abs().max():.1e}, values up to {wanted.abs().max():.1f}")
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    kept = [stage.shape[1] for stage in model(images, return_trace=True)[1].kept]
    print(f"pruned: patches left after the stages: {kept}")


def draw_vit(folder: Path) -> Path:
    """Save a small ViT with random weights, as transformers does."""
    shape = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 384}
    # timm's epsilon; beside the variance of a trained model's tokens Hugging Face's 1e-12 is the same
    config = transformers.ViTConfig(**shape, image_size=64, patch_size=8, initializer_range=0.1, layer_norm_eps=1e-6)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
