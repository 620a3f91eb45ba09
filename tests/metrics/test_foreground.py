import numpy as np
import pytest
import torch

from dynavit import InputError
from dynavit.metrics import foreground_recall, patch_mask


def test_recall_is_out_of_what_could_be_kept() -> None:
    foreground = torch.tensor([[1, 1, 1, 0, 0, 0]]).bool().expand(4, -1)
    kept = torch.tensor(
        [
            [1, 1, 0, 0, 0, 0],  # two kept, both foreground: could not be better
            [1, 0, 0, 0, 0, 1],  # two kept, one foreground
            [1, 1, 1, 1, 1, 0],  # all foreground, and more
            [1, 0, 0, 1, 1, 1],  # four kept, one of three foreground
        ]
    ).bool()
    recall = foreground_recall(kept, foreground)
    assert recall.dtype == torch.float32
    torch.testing.assert_close(recall, torch.tensor([1, 0.5, 1, 1 / 3]))


def test_images_without_foreground_do_not_count() -> None:
    foreground = torch.tensor([[0, 0], [1, 0]]).bool()
    recall = foreground_recall(torch.ones(2, 2).bool(), foreground)
    assert recall[0].isnan()
    assert recall.nanmean() == 1


def test_keeping_nothing_finds_nothing() -> None:
    assert foreground_recall(torch.zeros(1, 3).bool(), torch.ones(1, 3).bool()).tolist() == [0.0]


def test_patches_are_ordered_as_tokens() -> None:
    mask = np.zeros((4, 12), dtype=bool)
    mask[3, 4] = True  # second row of patches, second column of three: token 4
    assert patch_mask(mask, (2, 3)).nonzero()[0].tolist() == [4]
    # as a convolution with the patch as its kernel orders them
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(mask).float()[None], (2, 4))
    assert patch_mask(mask, (2, 3)).tolist() == pooled.flatten().bool().tolist()


def test_least_fraction() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[0, :10] = True  # exactly a tenth of the left patch
    mask[0, 10:19] = True  # less than a tenth of the right one
    assert patch_mask(mask, (1, 2)).tolist() == [True, False]
    assert patch_mask(mask, (1, 2), min_fraction=0.09).tolist() == [True, True]
    assert patch_mask(mask, (1, 2), min_fraction=0.11).tolist() == [False, False]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="does not divide into 3 x 4"):
        patch_mask(np.zeros((8, 8), dtype=bool), (3, 4))
    with pytest.raises(InputError, match="min_fraction=0"):
        patch_mask(np.zeros((8, 8), dtype=bool), (2, 2), min_fraction=0)
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        foreground_recall(torch.zeros(2, 3), torch.zeros(2, 4))
