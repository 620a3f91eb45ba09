"""Re-identification through the trainer and the tools, on small pictures in the layout of Market-1501."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import dynavit
from dynavit.cli import main
from dynavit.config import Config
from dynavit.evaluation.sweep import evaluate_run
from dynavit.runs.build import build_start
from dynavit.runs.loading import make_loader
from dynavit.runs.open import open_run
from dynavit.tasks import create_task
from dynavit.tasks.reid import sample_inputs
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


def test_a_run_learns_and_writes_an_embedding_model(reid: Make) -> None:
    config = reid("train.epochs=12")
    result = Trainer(config).fit()
    assert {"val/map", "val/minp", "val/rank1", "val/rank5", "val/rank10"} <= result.keys()
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/identity"] < 0.8 * rows[0]["train/identity"]
    assert rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/identity"] + rows[-1]["train/metric"], rel=1e-4)
    assert all("metric/" not in name for name in rows[-1])  # those are for TensorBoard
    model = dynavit.load(config.run_dir)
    embedding = model(torch.randn(3, 3, 32, 16))
    assert embedding.shape == (3, 24)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert model.metadata["class_names"] == ["0001", "0002", "0003", "0004", "0005", "0006"]


def test_the_metrics_are_those_of_a_plain_loop(reid: Make) -> None:
    """Every query ranks the gallery; its own identity by its own camera does not count."""
    config = reid("train.epochs=1")
    Trainer(config).fit()
    run = open_run(config.run_dir)
    task = create_task(config)
    data = task.open_data(run.preprocessing, train=False)
    samples = [data.validation[i] for i in range(len(data.validation))]
    features = torch.cat([run.model(image[None]) for image, _, _ in samples]).detach()
    precisions, hits = [], []
    for q in range(data.num_query):
        ranked = []
        for g in range(data.num_query, len(samples)):
            same = data.identities[g] == data.identities[q]
            if not (same and data.cameras[g] == data.cameras[q]):
                ranked.append((1 - float(features[q] @ features[g]), bool(same)))
        ranked.sort()
        found = [number for number, (_, same) in enumerate(ranked, start=1) if same]
        precisions.append(np.mean([(i + 1) / rank for i, rank in enumerate(found)]))
        hits.append(found[0] == 1)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(make_loader(data.validation, 4, 0))
    ((metrics, *_),) = task.evaluate([run.model], loader, accelerator, data)
    assert metrics["map"] == pytest.approx(100 * np.mean(precisions), abs=1e-3)
    assert metrics["rank1"] == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize("selector", ["topk", "ste", "gumbel_sigmoid", "gumbel_topk", "score_function"])
def test_interrupted_training_resumes_to_the_same_result(reid: Make, selector: str) -> None:
    overrides = [f"model.selector.name={selector}", "train.checkpoint_steps=1"]
    overrides += ["loss.reward=rank1"] * (selector == "score_function")
    whole, broken = (reid(*overrides, folder=folder) for folder in ("whole", "broken"))
    Trainer(whole).fit()
    trainer = Trainer(broken)
    take_step = trainer._step

    class Killed(Exception):
        pass

    def dying(*args: torch.Tensor) -> object:
        if trainer.progress.step == 3:
            raise Killed
        return take_step(*args)

    trainer._step = dying
    with pytest.raises(Killed):
        trainer.fit()
    Trainer(broken, resume=True).fit()
    assert (whole.run_dir / "metrics.jsonl").read_text() == (broken.run_dir / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "metric",
    [
        "{name: triplet, margin: 0.3}",
        "{name: triplet, distance: cosine, soft_margin: true}",
        "{name: circle}",
        "{name: arcface}",
        "{name: center}",
        "{name: multi_similarity}",
    ],
)
def test_metric_losses_by_name(reid: Make, metric: str) -> None:
    """Those with parameters of their own are optimised and saved with the state."""
    config = reid(f"loss.metric={metric}", "train.epochs=1")
    trainer = Trainer(config)
    module = trainer.setup.objective.module
    assert (module is not None) == ("arcface" in metric or "center" in metric)
    before = [p.detach().clone() for p in module.parameters()] if module is not None else []
    trainer.fit()
    if module is not None:
        assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
        resumed = Trainer(reid(f"loss.metric={metric}", "train.epochs=2"), resume=True)
        resumed.fit()
    row = trainer.metrics.rows()[-1]
    assert np.isfinite(row["train/metric"])


def test_the_sweep_compares_with_the_dense_start(reid: Make, tmp_path: Path) -> None:
    dense = reid("model.stages=[]", "train.epochs=6", folder="dense")
    Trainer(dense).fit()
    config = reid("train.epochs=1", "loss.token_distillation_weight=0.5", folder="pruned")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    Trainer(config).fit()
    rows = evaluate_run(open_run(config.run_dir), output=tmp_path / "out")
    assert [row["model"] for row in rows] == ["dense", "pruned", "pruned"]
    assert rows[0]["map"] == pytest.approx(
        json.loads((dense.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["val/map"]
    )
    for row in rows[1:]:
        assert row["delta_map"] == pytest.approx(row["map"] - rows[0]["map"])
        assert row["delta_map_low"] <= row["delta_map"] + 1e-9
        assert row["delta_map"] <= row["delta_map_high"] + 1e-9
    for name in ("report.html", "pareto.png", "kept_tokens.png", "ranked_lists.png", "evaluation.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 300
    assert "mAP" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_camera_embedding(reid: Make, tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = reid("model.side={scale: 3.0}", "train.epochs=2")
    trainer = Trainer(config)
    table = trainer.model.side.table.detach().clone()
    assert table.shape[0] == 2
    trainer.fit()
    assert not torch.equal(trainer.model.side.table, table)
    evaluate_run(open_run(config.run_dir), [0.5], [2], tmp_path / "out")
    # the tools know no camera of one's own images
    arguments = ["--images", str(people / "query")]
    assert main(["predict", str(config.run_dir), *arguments]) == 0
    assert main(["visualize", str(config.run_dir), *arguments]) == 0


def test_predict_finds_the_most_alike(
    reid: Make, tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = reid("train.epochs=1")
    Trainer(config).fit()
    capsys.readouterr()
    images = str(people / "bounding_box_test")
    assert main(["predict", str(config.run_dir), "--images", images]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "image,nearest,similarity"
    assert len(lines) == 17
    for line in lines[1:]:
        image, nearest, similarity = line.split(",")
        assert image != nearest
        assert -1 <= float(similarity) <= 1.0001
    assert main(["predict", str(config.run_dir), "--images", images, "--output", str(tmp_path / "e.npz")]) == 0
    written = np.load(tmp_path / "e.npz")
    assert written["embeddings"].shape == (16, 24)
    with Image.open(written["images"][3]) as image:
        expected = open_run(config.run_dir).model(open_run(config.run_dir).transform(image)[None])
    np.testing.assert_allclose(written["embeddings"][3], expected[0].detach().numpy(), atol=1e-5)
    # and as in evaluation, pixel by pixel
    run = open_run(config.run_dir)
    data = create_task(config).open_data(run.preprocessing, train=False)
    with Image.open(people / "query" / sorted(p.name for p in (people / "query").iterdir())[0]) as image:
        torch.testing.assert_close(run.transform(image), data.validation[0][0])


@pytest.mark.slow
def test_export_gives_the_same_search(reid: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    config = reid("train.epochs=1")
    Trainer(config).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["export", str(config.run_dir), "--no-timing"]) == 0
    out = capsys.readouterr().out
    searched = out.partition("Searching with its embeddings: ")[2]
    assert searched.split(" on ")[0] == searched.partition("the original: ")[2].strip().rstrip(".")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(config.run_dir / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["embedding"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.images_per_identity=3", r"data.batch_size=8, data.images_per_identity=3: .*multiple"),
        ("data.images_per_identity=1", r"data.images_per_identity=1: that is 8 identities a batch"),
        ("data.batch_size=2", r"1 identities a batch"),
        ("model.side={scle: 3.0}", r"scle"),
        ("data.augmentation={flop: 0.5}", r"data.augmentation=.*flop.*flip, pad and erase"),
        ("loss.metric={name: triplett}", r"triplett"),
        ("loss.metric={name: triplet, margn: 0.3}", r"margn"),
        ("loss.logit_distillation_weight=1.0", r"token_distillation"),
        ("data.name=market", r"market.*market1501"),
        ("data.root=nowhere", r"nowhere"),
        ("loss.reward=rank2", r"loss.reward=rank2: nothing here learns from a reward"),
        ("model.embedding=between", r"model.embedding='between': choose one of after, before"),
    ],
)
def test_bad_settings_are_one_clear_sentence(reid: Make, override: str, message: str) -> None:
    with pytest.raises(dynavit.InputError, match=message):
        Trainer(reid(override))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (("data.batch_size=32",), 12),
        (("data.batch_size=64", "data.images_per_identity=4"), 24),
        (("data.batch_size=64", "train.accumulation_steps=3"), 8),
        (("data.batch_size=64", "train.accumulation_steps=3", "train.steps_per_epoch=3"), 12),
        (("data.batch_size=8",), 8),
    ],
)
def test_batches_are_lowered_to_fewer_identities(
    reid: Make, settings: tuple[str, ...], size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = reid(*settings, "train.epochs=1")
    trainer = Trainer(config)
    assert trainer.batches.batch_size == size
    trainer.fit()
    said = f"data.batch_size={config.data.batch_size} is lowered to {size}: " in capsys.readouterr().out
    assert said == (size < config.data.batch_size)


def test_the_embedding_may_be_taken_before_the_batch_norm(reid: Make) -> None:
    config = reid("model.embedding=before", "train.epochs=1")
    Trainer(config).fit()
    model = dynavit.load(config.run_dir)
    images = torch.randn(2, 3, 32, 16)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model(images), torch.nn.functional.normalize(features, dim=1))


def test_a_centre_loss_beside_the_triplet(reid: Make) -> None:
    trainer = Trainer(reid("loss.center_weight=0.01", "train.epochs=1"))
    trainer.fit()
    row = trainer.metrics.rows()[-1]
    expected = row["train/identity"] + row["train/metric"] + 0.01 * row["train/center"]
    assert row["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_cameras_are_known_by_name_and_strangers_are_unknown(reid: Make, people: Path, tmp_path: Path) -> None:
    """Another set of cameras at evaluation must not move each camera to another's vector."""
    config = reid("model.side={scale: 3.0}", "train.epochs=1")
    trainer = Trainer(config)
    trainer.fit()
    model = dynavit.load(config.run_dir)
    assert model.metadata["camera_names"] == ["1", "2"]
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "moved" / folder).mkdir(parents=True)
        for path in (people / folder).iterdir():
            name = path.name.replace("_c1s", "_c5s")  # the first camera is gone, a new one has come
            shutil.copy(path, tmp_path / "moved" / folder / name)
    other = create_task(reid(f"data.root={tmp_path / 'moved'}"))
    data = other.open_data(trainer.setup.preprocessing, train=False)
    found = sample_inputs(model, data, torch.arange(len(data.validation)))["cameras"]
    names = [data.camera_names[number] for number in data.cameras.tolist()]
    assert set(names) == {"2", "5"}
    assert found.tolist() == [1 if name == "2" else -1 for name in names]


@pytest.mark.slow
def test_the_dense_start_keeps_its_own_cameras(reid: Make, tmp_path: Path) -> None:
    dense = reid("model.side={scale: 3.0}", "model.stages=[]", "train.epochs=1", folder="dense")
    Trainer(dense).fit()
    config = reid("model.side={scale: 3.0}", folder="pruned")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    start = build_start(config, [f"{n:04}" for n in range(1, 7)], {"side": {"cameras": 2, "views": 1, "scale": 3.0}})
    assert start.dense_is_trained
    torch.testing.assert_close(start.dense.side.table, dynavit.load(dense.run_dir).side.table)
    config.train.epochs = 1
    Trainer(config).fit()
    rows = evaluate_run(open_run(config.run_dir), [0.5], [2], tmp_path / "out")  # each row told its cameras
    last = json.loads((dense.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows[0]["model"] == "dense"
    assert rows[0]["map"] == pytest.approx(last["val/map"])
    config.model.side = None
    with pytest.raises(dynavit.InputError, match=r"trained with a camera embedding.*model.side.scale"):
        build_start(config, [f"{n:04}" for n in range(1, 7)])
    config = reid("model.side={scale: 3.0}", "loss.token_distillation_weight=0.5", folder="taught")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    with pytest.raises(dynavit.InputError, match="teacher was trained with a camera embedding"):
        Trainer(config)


@pytest.mark.slow
def test_cameras_may_be_new_where_the_dense_start_had_none(reid: Make, tmp_path: Path) -> None:
    """The dense row is timed and searched without what only the pruned model knows."""
    dense = reid("model.stages=[]", "train.epochs=1", folder="dense")
    Trainer(dense).fit()
    config = reid("model.side={scale: 3.0}", "train.epochs=1", folder="pruned")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    Trainer(config).fit()
    rows = evaluate_run(open_run(config.run_dir), [0.5], [2], tmp_path / "out")
    assert [row["model"] for row in rows] == ["dense", "pruned"]


def test_a_start_with_other_cameras_is_refused(reid: Make, tmp_path: Path) -> None:
    dense = reid("model.side={scale: 3.0}", "model.stages=[]", "train.epochs=1", folder="dense")
    Trainer(dense).fit()
    saved = json.loads((dense.run_dir / "config.json").read_text())
    saved["metadata"]["camera_names"] = ["1", "9"]
    (dense.run_dir / "config.json").write_text(json.dumps(saved))
    config = reid("model.side={scale: 3.0}", folder="pruned")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    with pytest.raises(dynavit.InputError, match=r"camera_names \['1', '9'\], the data have \['1', '2'\]"):
        Trainer(config)


def test_drop_rates_may_change_on_the_way_from_dense_to_pruned(reid: Make) -> None:
    dense = reid("model.stages=[]", "train.epochs=1", folder="dense")
    Trainer(dense).fit()
    config = reid("train.epochs=1", folder="pruned")
    config.model.checkpoint, config.model.architecture = str(dense.run_dir), None
    config.model.kwargs = {"drop_path_rate": 0.2}
    trainer = Trainer(config)
    assert trainer.model.backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    trainer.fit()


def test_one_query_identity_has_no_interval(reid: Make, people: Path, tmp_path: Path) -> None:
    root = tmp_path / "one"
    shutil.copytree(people, root)
    for path in [*(root / "query").iterdir(), *(root / "bounding_box_test").iterdir()]:
        if not path.name.startswith("0007"):
            path.unlink()
    (root / "bounding_box_test" / "0000_c1s1_000000_00.jpg").write_bytes(
        (people / "bounding_box_train" / "0001_c1s1_000000_00.jpg").read_bytes()
    )
    config = reid(f"data.root={root}", "train.epochs=1")
    Trainer(config).fit()
    rows = evaluate_run(open_run(config.run_dir), [1.0, 0.5], [], tmp_path / "out")
    assert "delta_map_low" not in rows[1]


@pytest.mark.parametrize("override", ["data.mixup=0.8", "data.crop_pct=0.9"])
def test_settings_of_the_other_task_are_refused(reid: Make, override: str) -> None:
    with pytest.raises(dynavit.InputError, match=r"does nothing with task=reid"):
        reid(override)


@pytest.mark.parametrize("name", ["quickstart-reid-dense"])
def test_committed_models_see_what_evaluation_sees(name: str) -> None:
    run = open_run(Path(__file__).parents[2] / "checkpoints" / name)
    assert run.config is not None
    data = create_task(run.config).open_data(run.preprocessing, train=False)
    picture, _ = data.validation.dataset[3]
    torch.testing.assert_close(run.transform(picture), data.validation[3][0])
