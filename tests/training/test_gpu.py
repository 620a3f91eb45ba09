"""What differs on a GPU; run with `pytest -m gpu` where there is one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dynavit
from dynavit.cli import main
from dynavit.config import Config, save_config
from dynavit.training.trainer import Trainer
from tests.training.test_trainer import kill_at

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_accelerate")]


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


def test_reidentification_is_trained_evaluated_and_searched(reid: Callable[..., Config]) -> None:
    config = reid("train.mixed_precision=bf16", "train.epochs=3")
    result = Trainer(config).fit()
    assert 0 <= result["val/map"] <= 100
    assert main(["evaluate", str(config.run_dir), "--device", "cuda"]) == 0
    assert (config.run_dir / "evaluation.json").exists()
    assert (config.run_dir / "ranked_lists.png").exists()


def test_a_run_of_the_gpu_is_evaluated_and_exported_there_and_read_on_the_cpu(tiny: Callable[..., Config]) -> None:
    config = tiny()
    Trainer(config).fit()
    run = str(config.run_dir)
    for device in ("cuda", "cpu"):
        assert main(["evaluate", run, "--device", device]) == 0
    assert main(["export", run]) == 0
    assert (config.run_dir / "model.onnx").exists()


def test_resuming_on_a_gpu_goes_on_where_it_was(tiny: Callable[..., Config]) -> None:
    whole, parts = (tiny("train.checkpoint_steps=1", folder=folder) for folder in ("whole", "parts"))
    Trainer(whole).fit()
    kill_at(Trainer(parts), 4)
    Trainer(parts, resume=True).fit()
    expected, found = (dynavit.load(config.run_dir).state_dict() for config in (whole, parts))
    for name, value in expected.items():  # kernels of a GPU may add in another order each time
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_a_plan_is_of_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "vit_tiny_patch16_224", "--keep-ratio", "0.7", "--rounds", "2", "--device", "cuda"]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out


def test_a_model_is_tuned_to_the_speed_of_the_gpu(tmp_path: Path, pictures: Path) -> None:
    dense = dynavit.create_model("vit_small_patch16_384", stages=(), num_classes=3)
    dense.save_pretrained(tmp_path / "dense")
    tune = ["tune", str(tmp_path / "dense"), "--images", str(pictures), "--speedup", "1.2", "--batch-size", "32"]
    assert main([*tune, "--limit", "36", "--rounds", "3", "--device", "cuda", "--output", str(tmp_path / "tuned")]) == 0
    assert dynavit.load(tmp_path / "tuned/model").keep_ratios


def test_a_suite_is_measured_in_every_mode(tmp_path: Path) -> None:
    small = "backbone: vit_tiny_patch16_224, batch_sizes: [2], dtypes: [bfloat16], rounds: 2"
    suite = f"- {{{small}, modes: [eager, compile, graphs], parts: true}}\n- {{{small}, training: true}}\n"
    (tmp_path / "suite.yaml").write_text(suite)
    rows = dynavit.benchmark_suite(tmp_path / "suite.yaml", tmp_path / "found", device="cuda")
    assert {row["mode"] for row in rows} == {"eager", "compile", "graphs"}
    assert all(("peak_bytes" in row) == (row["mode"] != "graphs") for row in rows if row["run"] == "inference")
