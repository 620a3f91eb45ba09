"""Batches of P identities with K images: whole, distinct, fair, reproducible, on any number of processes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from dynavit.data.samplers import PKSampler
from dynavit.errors import InputError


def labels_of(*counts: int) -> list[int]:
    """Return labels with so many images each, mixed."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))].tolist()


def batches(sampler: PKSampler) -> list[list[list[int]]]:
    """Return batches of visits of images."""
    p, k = sampler.identities_per_batch, sampler.images_per_identity
    indices = torch.tensor(list(sampler))
    assert len(indices) == len(sampler)
    return indices.view(-1, p, k).tolist()


def most_batches(visits: list[int], size: int) -> int:
    """Always take the identities with the most visits left, which is known to give the most batches."""
    left, count = sorted(visits), 0
    while len(left) >= size and left[-size] > 0:
        left[-size:] = [visit - 1 for visit in left[-size:]]
        left.sort()
        count += 1
    return count


COUNTS = [
    (4, 4, 4, 4, 4, 4),
    (1, 2, 3, 4, 5, 6, 7, 8, 9),
    (100, 2, 2, 2, 2),
    (30, 30, 30, 1, 1),
    (1, 1, 1),
    (17, 3, 64, 8, 8, 5, 2, 1, 40, 12),
]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("p", "k"), [(2, 2), (3, 4), (3, 2), (2, 5)])
def test_every_batch_is_p_identities_with_k_images(counts: tuple[int, ...], p: int, k: int) -> None:
    labels = labels_of(*counts)
    sampler = PKSampler(labels, p, k)
    visits = [max(1, count // k) for count in counts]
    assert sampler.num_batches == most_batches(visits, p)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen: Counter[int] = Counter()
        visited: Counter[int] = Counter()
        for batch in batches(sampler):
            identities = [{labels[image] for image in visit} for visit in batch]
            assert all(len(identity) == 1 for identity in identities)
            who = [identity.pop() for identity in identities]
            assert len(set(who)) == p
            visited.update(who)
            for identity, visit in zip(who, batch, strict=True):
                times = Counter(visit)
                assert len(times) == min(k, counts[identity])  # all images before any is repeated
                assert max(times.values()) - min(times.values()) <= 1
                seen.update(times)
        assert all(times == 1 for image, times in seen.items() if counts[labels[image]] >= k)
        assert all(visited[identity] <= visits[identity] for identity in range(len(counts)))


def test_what_is_left_out_comes_from_those_visited_most() -> None:
    sampler = PKSampler(labels_of(100, 8, 8, 8, 4), 2, 4)  # 25, 2, 2, 2, 1 visits: 7 batches, all with the first
    visited = Counter(labels_of(100, 8, 8, 8, 4)[visit[0]] for batch in batches(sampler) for visit in batch)
    assert visited == {0: 7, 1: 2, 2: 2, 3: 2, 4: 1}
    labels = labels_of(8, 8, 4)  # 2, 2, 1 visits: 2 batches, one visit is left out, but never the only one
    sampler = PKSampler(labels, 2, 4)
    for epoch in range(10):
        sampler.set_epoch(epoch)
        visited = Counter(labels[visit[0]] for batch in batches(sampler) for visit in batch)
        assert visited[2] == 1
        assert sorted(visited.values()) == [1, 1, 2]
    even = PKSampler(labels_of(*[8] * 5), 4, 2)  # 20 visits, 5 batches, nothing is left out
    assert set(Counter(labels_of(*[8] * 5)[visit[0]] for batch in batches(even) for visit in batch).values()) == {4}


def test_the_images_left_out_change() -> None:
    sampler = PKSampler(labels_of(7, 7, 7), 3, 4)  # one visit each, with 4 of 7 images
    seen = set()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        seen.update(sampler)
    assert len(seen) == 21


def test_who_meets_whom_changes() -> None:
    labels = labels_of(*[4] * 6)
    sampler = PKSampler(labels, 2, 4)
    pairs = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        pairs |= {frozenset(labels[visit[0]] for visit in batch) for batch in batches(sampler)}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(range(6), 2)}


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    labels = labels_of(*[8] * 6)

    def order(seed: int, epoch: int) -> list[int]:
        sampler = PKSampler(torch.tensor(labels), 3, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = order(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("number", [1, 3, 50])
def test_a_given_number_of_batches_visits_all_equally(number: int) -> None:
    counts = (1, 3, 6, 40, 40)
    labels = labels_of(*counts)
    sampler = PKSampler(labels, 4, 4, batches_per_epoch=number)
    made = batches(sampler)
    assert len(made) == number
    visited = Counter(labels[visit[0]] for batch in made for visit in batch)
    assert max(visited.values()) - min(visited[identity] for identity in range(5)) <= 1
    for batch in made:
        assert len({labels[visit[0]] for visit in batch}) == 4
        for visit in batch:
            assert len(set(visit)) == min(4, counts[labels[visit[0]]])
    if number == 50:  # 40 visits of an identity use its images equally often
        times = Counter(image for batch in made for visit in batch for image in visit if labels[visit[0]] == 3)
        assert len(times) == 40
        assert max(times.values()) - min(times.values()) <= 1


def test_the_number_of_batches_suits_the_processes() -> None:
    labels = labels_of(*[8] * 7)  # 14 visits
    assert [PKSampler(labels, 2, 4, num_processes=n).num_batches for n in (1, 2, 3, 4, 7)] == [7, 6, 6, 4, 7]
    assert len(batches(PKSampler(labels, 2, 4, num_processes=3))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identities_per_batch": 1}, "identities_per_batch must be at least 2, or a triplet has no negative; got 1"),
        ({"images_per_identity": 1}, "images_per_identity must be at least 2, or a triplet has no positive; got 1"),
        ({"identities_per_batch": 5}, "identities_per_batch=5, but there are only 4 training identities"),
        ({"num_processes": 9}, "16 images of 4 identities do not make one batch of 2 x 2 for each of 9 processes"),
        ({"batches_per_epoch": 5, "num_processes": 2}, "batches_per_epoch=5 must be a multiple of the 2 processes"),
        ({"batches_per_epoch": 0}, "batches_per_epoch=0"),
    ],
)
def test_numbers_that_cannot_work(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PKSampler(labels_of(4, 4, 4, 4), **{"identities_per_batch": 2, "images_per_identity": 2, **arguments})


@pytest.mark.slow
def test_two_processes_get_whole_and_different_batches_in_every_epoch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, __file__, str(tmp_path)], env=environment, check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    labels = labels_of(*[9] * 11)
    epochs = []
    for epoch in range(3):
        mine, theirs = (rank["epochs"][epoch] for rank in ranks)
        assert len(mine) == len(theirs) == 3  # 22 visits make 7 batches of 3 identities, 6 for two processes
        for batch in mine + theirs:
            assert sorted(Counter(labels[image] for image in batch).values()) == [4, 4, 4]
        everything = [image for batch in mine + theirs for image in batch]
        assert len(set(everything)) == len(everything) == 72
        epochs.append(mine)
        alone = PKSampler(labels, 3, 4, seed=5, num_processes=2)
        alone.set_epoch(epoch)
        assert sorted(everything) == sorted(alone)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def write_batches(folder: Path) -> None:
    """Run on every process: write down the batches of three epochs."""
    labels = labels_of(*[9] * 11)
    accelerator = Accelerator(cpu=True)
    sampler = PKSampler(labels, 3, 4, seed=5, num_processes=accelerator.num_processes)
    loader = accelerator.prepare(DataLoader(range(len(labels)), batch_size=12, sampler=sampler, drop_last=True))
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append([batch.tolist() for batch in loader])
    result = {"processes": accelerator.num_processes, "epochs": epochs}
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    write_batches(Path(sys.argv[1]))
