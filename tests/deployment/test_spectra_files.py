"""Models of several spectra in files: as two inputs, of which the second says which spectra there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dynavit
from dynavit.deployment.checked import write_checked
from dynavit.deployment.deployed import Deployed
from dynavit.deployment.judging import Judgement
from dynavit.deployment.target import Target
from dynavit.errors import InputError

M = 3


@pytest.fixture(scope="module")
def model() -> dynavit.PrunedViT:
    torch.manual_seed(0)
    return dynavit.create_model(
        "test_vit", img_size=(64, 32), num_identities=5, spectra=M, stages=(2, 4), keep_ratio=0.6,
        scorer={"name": "guided", "guides": M - 1, "weight": 5.0}, reducer="merge_nearest", side={"cameras": 3},
    ).eval()  # fmt: skip


def samples(batch: int) -> Tensor:
    return torch.randn(batch, M, 3, 64, 32, generator=torch.Generator().manual_seed(batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [Target("onnx"), Target("onnx", batch=2, with_tokens=True), Target("openvino", "int8"), Target("pt2", "bf16")],
    ids=str,
)
def test_files_are_told_which_spectra_there_are(target: Target, model: dynavit.PrunedViT, tmp_path: Path) -> None:
    path = tmp_path / f"model{ {'openvino': '.xml'}.get(target.format, '.' + target.format) }"
    calibration = [samples(4)] if target.precision == "int8" else []
    judged: list[Tensor] = []

    def judge(answer: Any, batch: int | None) -> Judgement:  # neighbours of noise tell nothing
        judged.append(answer(samples(batch or 4)))
        return Judgement({}, {}, "")

    found = write_checked(
        Deployed(model), path, samples(16), {"spectra": ["a", "b", "c"]}, target,
        answer="embedding", classifies=False, calibration=calibration, judge=judge,
    )  # fmt: skip
    assert min(found.same_tokens) >= 0.97
    assert judged[0].shape == (target.batch or 4, M * 64)
    exported = dynavit.open_exported(path)
    low = target.precision != "fp32"
    for batch in (1, 3) if target.batch is None else (2,):
        images, present = samples(batch), torch.rand(batch, M) < 0.5
        present[:, 0] = True
        cameras = model.unknown_cameras(batch)
        with torch.inference_mode():
            expected = model(images, present=present, **cameras)
            whole = model(images, **cameras)
        close = {"rtol": 0, "atol": 0.1 if low else 1e-4}
        torch.testing.assert_close(exported(images, present)[0], expected, **close)
        torch.testing.assert_close(exported(images)[0], whole, **close)
        blocks = exported(images, present)[0].view(batch, M, -1)
        assert torch.equal(blocks.norm(dim=2) > 0, present)
        with pytest.raises(InputError, match=r"takes present of shape \(\d, 3\) in bool, and was given"):
            exported(images, present.float())
        with pytest.raises(InputError, match=r"takes images of shape .*3, 3, 64, 32\) in float32"):
            exported(images[:, 0])


@pytest.mark.slow
def test_a_file_of_one_spectrum_is_told_of_none(tmp_path: Path) -> None:
    plain = dynavit.create_model(
        "test_vit", img_size=32, num_identities=3, side={"cameras": 2}, stages=(2,), keep_ratio=0.6
    )
    # "embedding" is also what torch would call a value of the camera embedding
    images, path = torch.randn(4, 3, 32, 32), tmp_path / "model.onnx"
    write_checked(Deployed(plain.eval()), path, images, {}, answer="embedding", classifies=False)
    with pytest.raises(InputError, match="takes one image a sample: leave present out"):
        dynavit.open_exported(path)(torch.randn(1, 3, 32, 32), torch.ones(1, 1, dtype=torch.bool))
