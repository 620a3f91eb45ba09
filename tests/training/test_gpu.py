"""What differs on a GPU; run with `pytest -m gpu` where there is one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dynavit
from dynavit.config import Config, save_config
from dynavit.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("selector", ["topk", "gumbel_sigmoid", "ste"])
def test_training_in_every_precision_with_averaged_weights(
    tiny: Callable[..., Config], selector: str, precision: str
) -> None:
    config = tiny(
        f"model.selector.name={selector}", f"train.mixed_precision={precision}", "train.ema_decay=0.9", "train.epochs=3"
    )
    trainer = Trainer(config)
    assert trainer.accelerator.device.type == "cuda"
    trainer.fit()
    assert all(torch.isfinite(value).all() for value in dynavit.load(config.run_dir).state_dict().values())


def test_a_frozen_backbone_trains_its_scorers(tiny: Callable[..., Config]) -> None:
    """Only the attention mask needs a gradient here, which crashes CUDA's memory-efficient kernel."""
    Trainer(tiny("train.freeze=backbone")).fit()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_executions_agree(model_of: Callable[..., dynavit.PrunedViT], dtype: torch.dtype) -> None:
    model = model_of("vit").cuda().to(dtype)
    images = torch.randn(8, 3, *model.backbone.patch_embed.img_size, device="cuda", dtype=dtype)
    with torch.no_grad():
        _, trace = model(images, return_trace=True)
        model.selector = dynavit.create_selector("fixed")
        model.selector.decisions = [stage.kept for stage in trace.stages]
        outputs = []
        for execution in ("gather", "mask"):
            model.execution = execution  # type: ignore[assignment]
            outputs.append(model.eval()(images).float())
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance * float(outputs[0].std()))


def test_accelerate_launches_the_one_gpu_configuration(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny()
    save_config(config, tmp_path / "run.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/one_gpu.yaml")]
    train = [str(ROOT / "tools/train.py"), "--config", str(tmp_path / "run.yaml")]
    subprocess.run([sys.executable, *launcher, *train], check=True, timeout=300)
    assert (config.run_dir / "model.safetensors").exists()
