"""The examples do what they say: each is run, and what comes out is judged."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dynavit
from dynavit.data.quickstart import ClutteredDigits
from dynavit.data.transforms import create_transforms

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FILES = [*sorted(EXAMPLES.glob("*.py")), *sorted(EXAMPLES.glob("*/*.py"))]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "tools")  # as the service's command says


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_new_process(*arguments: str, path: tuple[Path, ...] = (ROOT,)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_examples_are_short_listed_and_say_how_to_run_them() -> None:
    assert len(FILES) == 6
    table = (EXAMPLES / "README.md").read_text()
    for file in FILES:
        text, name = file.read_text(), str(file.relative_to(ROOT))
        assert len(text.splitlines()) < 120, name
        docstring = re.match(r'"""(.+?)"""', text, flags=re.DOTALL)
        assert docstring is not None
        assert re.search(rf"^    (\w+=\w+ )?python {re.escape(name)}", docstring[1], flags=re.MULTILINE), name
        (command,) = re.findall(
            rf"\]\({re.escape(str(file.relative_to(EXAMPLES)))}\).*`([^`]+)` \|$", table, re.MULTILINE
        )
        assert f"    {command}\n" in docstring[1], command
    for extra in re.findall(r"\.\[(.+?)\]", "".join(file.read_text() for file in FILES) + table):
        assert set(extra.split(",")) <= set(re.findall(r'(?m)^    "(\w+)": \[', (ROOT / "setup.py").read_text()))


SHORT = ["--steps", "20", "--batch-size", "32", "--validation-images", "200"]


@pytest.mark.slow
@pytest.mark.usefixtures("own_accelerate")
@pytest.mark.parametrize("name", ["own_training_loop", "huggingface_trainer"])
def test_training_raises_the_accuracy_and_saves_the_model(name: str, tmp_path: Path) -> None:
    before, after, *loaded = load_example(name).main([*SHORT, "--output", str(tmp_path)])
    assert 40 < before < 70
    assert after > before + 8
    model = dynavit.load(tmp_path)
    assert model.keep_ratios == pytest.approx((0.3, 0.09))
    samples = digits(200)
    right = [model(images).argmax(dim=1) == labels for images, labels in torch.utils.data.DataLoader(samples, 100)]
    assert 100 * torch.cat(right).float().mean().item() == pytest.approx(after, abs=0.6)  # one image in 200
    assert loaded == ([] if name == "own_training_loop" else [pytest.approx(after)])


def digits(size: int) -> ClutteredDigits:
    preprocessing = dynavit.load("checkpoints/quickstart-dense").metadata["preprocessing"]
    return ClutteredDigits(train=False, size=size, transform=create_transforms(**preprocessing)[1])


@pytest.mark.slow
def test_the_selector_is_found_where_its_package_is_installed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(EXAMPLES / "own_selector", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    installed = in_new_process(*pip, "--target", str(target), str(source))
    assert installed.returncode == 0, installed.stderr
    create = "import dynavit; model = dynavit.create_model('test_vit', selector='explore_topk'); "
    saved = str(tmp_path / "model")
    reload = f"model.save_pretrained({saved!r}); print(dynavit.load({saved!r}).selector); "
    main = "import explore_topk; explore_topk.main()"
    found = in_new_process("-c", create + reload + main, path=(ROOT, target))
    said = "ExploreTopK() keeps its promises and is found by name: The k largest logits"
    assert found.stdout.startswith(f"ExploreTopK()\n{said}"), found.stderr
    elsewhere = in_new_process("-c", create)
    assert "unknown selector 'explore_topk'" in elsewhere.stderr


def test_the_selector_tries_tokens_only_while_training() -> None:
    selector_class = load_example("own_selector/explore_topk").ExploreTopK
    for explore in (0.0, 0.1, 1.0):
        dynavit.check_selector(selector_class(explore))
    logits = torch.linspace(3, -3, 20).expand(2000, 20)
    alive = torch.ones_like(logits, dtype=torch.bool)

    def share(explore: float, training: bool) -> float:
        """How often the worst token is among the best 5 of 20."""
        generator = torch.Generator().manual_seed(0)
        chosen = selector_class(explore).train(training)(logits, alive, 5, generator=generator)
        return chosen.keep[:, -1].float().mean().item()

    assert share(0.1, training=True) == pytest.approx(0.1, abs=0.03)  # hardly ever are more than 5 tried
    assert share(0.1, training=False) == share(0.0, training=True) == 0
    with pytest.raises(dynavit.InputError, match=r"explore=1\.5"):
        selector_class(1.5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    small = {"data.options.validation_size": 16}
    dynavit.export(ROOT / "checkpoints/quickstart-pruned", path, rounds=None, overrides=small)
    return str(path)


def encoded(image: Image.Image, format: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.mark.slow
def test_the_service_answers_as_the_model_does(exported: str) -> None:
    from fastapi.testclient import TestClient

    client = TestClient(load_example("onnx_service").create_app(exported))
    assert client.get("/health").json() == {"model": "model.onnx", "classes": 10, "image_size": [64, 64]}
    model = dynavit.load("checkpoints/quickstart-pruned")
    drawn, samples = ClutteredDigits(train=False, size=6), digits(6)
    for number in range(6):
        reply = client.post("/predict", content=encoded(drawn[number][0]))
        assert reply.status_code == 200
        best = model(samples[number][0][None]).softmax(dim=1)[0].topk(5)
        assert [row["label"] for row in reply.json()] == [str(digit) for digit in best.indices.tolist()]
        assert [row["probability"] for row in reply.json()] == pytest.approx(best.values.tolist(), abs=2e-3)


@pytest.mark.slow
def test_the_service_refuses_bad_uploads(exported: str) -> None:
    from fastapi.testclient import TestClient

    service = load_example("onnx_service")
    client = TestClient(service.create_app(exported))
    picture = encoded(Image.effect_noise((64, 64), 50).convert("RGB"))
    for status, upload, said in (
        (400, b"", "body is empty"),
        (400, b"no picture", "no image of a format"),
        (400, picture[: len(picture) // 2], "cannot be read"),
        (400, encoded(Image.new("RGB", (4, 200))), "4 x 200 pixels is too narrow"),
        (400, encoded(Image.new("F", (64, 64)), "tiff"), "range is not known"),
        (413, encoded(Image.new("1", (10_000, 6_000))), "60,000,000 pixels"),
        (413, bytes(service.MAX_BYTES + 1), "larger than 10,485,760 bytes"),
        (200, picture, "label"),
    ):
        reply = client.post("/predict", content=upload)
        assert (reply.status_code, said in reply.text) == (status, True), reply.text
        assert "0x" not in reply.text
    with pytest.raises(SystemExit):
        service.create_app("missing.onnx")


@pytest.mark.slow
def test_the_service_needs_no_torch() -> None:
    code = "import onnx_service, sys; print({'torch', 'timm', 'dynavit'} & sys.modules.keys())"
    done = in_new_process("-c", code, path=(EXAMPLES, ROOT / "tools"))
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
def test_the_search_ranks_by_cosine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = load_example("search_with_faiss").main
    output = ["--output", str(tmp_path), "--top", "240"]
    found = search(output)
    (query,) = re.findall(r"nearest to (.+):", capsys.readouterr().out)
    assert Path(query).parent.name == Path(found[0][0]).parent.name == "person07"
    names, gallery = dynavit.embed(tmp_path / "model", tmp_path / "people/gallery")
    _, embedding = dynavit.embed(tmp_path / "model", query)
    cosines = torch.nn.functional.cosine_similarity(embedding, gallery)
    assert [cosine for _, cosine in found] == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=1e-5)
    assert dict(found) == pytest.approx(dict(zip(names, cosines.tolist(), strict=True)), abs=1e-5)
    assert dynavit.load(tmp_path / "model").keep_ratios == pytest.approx((0.7, 0.49))

    assert search([*output, "--query", query]) == found  # the index as it was saved
    for arguments, said in (
        (["--gallery", str(tmp_path)], "give --query as well"),
        (["--query", query, "--output", str(tmp_path / "elsewhere")], "give --gallery once"),
    ):
        with pytest.raises(SystemExit) as stopped:
            search(arguments)
        assert (stopped.value.code, said in capsys.readouterr().err) == (2, True)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_hugging_face_there_and_back(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    example = load_example("huggingface_vit")
    source = tmp_path / "source"
    if kind == "vit":
        example.draw_vit(source)
    else:
        shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 56}
        config = transformers.Dinov2Config(**shape, patch_size=14, initializer_range=0.1)
        transformers.Dinov2Model(config).save_pretrained(source)
    example.main(["--model", str(source), "--keep-ratio", "0.5", "--output", str(tmp_path / "output")])
    differences = re.findall(r"largest difference (\S+),", capsys.readouterr().out)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-4

    theirs, _ = example.KINDS[kind]
    back, report = theirs.from_pretrained(tmp_path / "output/transformers", output_loading_info=True)
    assert not any(report.values())  # no weight is missing or left over
    original, model = theirs.from_pretrained(source), dynavit.load(tmp_path / "output/dynavit")
    expected, found = original.state_dict(), back.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected if "mask_token" not in name)
    assert model.keep_ratios == (0.5, 0.25)
    found[next(name for name in found if name.endswith("1.mlp.fc1.weight"))] *= 1.1
    with pytest.raises(AssertionError, match="not close"):
        example.compare(original, model, back)


@pytest.mark.slow
def test_what_cannot_be_converted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    example = load_example("huggingface_vit")
    transformers.SiglipVisionConfig().save_pretrained(tmp_path / "siglip")
    for folder, said in (("siglip", "siglip_vision_model"), ("missing", "there is no config.json")):
        with pytest.raises(SystemExit) as stopped:
            example.main(["--model", str(tmp_path / folder), "--output", str(tmp_path / "output")])
        assert (stopped.value.code, said in capsys.readouterr().err) == (2, True)
