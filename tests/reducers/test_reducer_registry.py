"""Reducers by name: lists, options, errors that help, and saving."""

from __future__ import annotations

import pytest

from dynavit.errors import InputError
from dynavit.reducers import (
    Aggregate,
    Drop,
    Merge,
    MergeNearest,
    Reducer,
    create_reducer,
    list_reducers,
    reducer_config,
)


def test_list() -> None:
    found = list_reducers()
    assert list(found) == ["aggregate", "drop", "fuse", "merge", "merge_nearest", "squeeze"]
    for line in found.values():
        assert len(line) > 10
        assert "\n" not in line


def test_names_and_attributes_say_what_the_caller_must_do() -> None:
    reducers = {name: create_reducer(name, 20) for name in list_reducers()}
    assert all(reducer.name == name for name, reducer in reducers.items())

    def which(attribute: str) -> set[str]:
        return {name for name, reducer in reducers.items() if getattr(reducer, attribute)}

    assert which("makes") == {"aggregate", "fuse"}
    assert which("masks") == {"drop", "fuse", "merge_nearest", "squeeze"}
    assert which("last_only") == {"aggregate"}
    assert which("tracks_sizes") == {"merge", "merge_nearest"}
    assert not which("trains_scorer")
    assert create_reducer("merge_nearest", 20, weighted=True).trains_scorer
    del reducers["merge"]  # which drops nothing
    assert which("reads_dropped") == {"aggregate", "fuse", "merge_nearest", "squeeze"}
    assert which("keeps_places") == {"drop", "fuse", "merge_nearest", "squeeze"}


def test_only_those_that_need_a_width_get_it() -> None:
    reducer = create_reducer("aggregate", 40, tokens=5)
    assert isinstance(reducer, Aggregate)
    assert (reducer.mlp[1].in_features, reducer.mlp[1].out_features, reducer.mlp[3].out_features) == (40, 8, 5)
    assert not list(create_reducer("merge", 40).parameters())
    assert not create_reducer("merge_nearest", 40).state_dict()


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown reducer 'fused'\. Did you mean 'fuse'\? Known: aggregate, drop"):
        create_reducer("fused", 8)


def test_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'fuse' has no option 'normalise'\. Did you mean 'normalize'"):
        create_reducer("fuse", 8, normalise=True)
    with pytest.raises(InputError, match=r"'drop' has no option 'x'\. Its options: none"):
        create_reducer("drop", 8, x=1)
    with pytest.raises(InputError, match=r"'aggregate' has no option 'heads'\. Its options: tokens"):
        create_reducer("aggregate", 8, heads=1)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "drop"},
        {"name": "squeeze"},
        {"name": "merge_nearest", "weighted": False},
        {"name": "merge_nearest", "weighted": True},
        {"name": "fuse", "normalize": False},
        {"name": "aggregate", "tokens": 7},
        {"name": "merge", "proportional": False},
    ],
)
def test_config_round_trip(config: dict[str, object]) -> None:
    reducer = create_reducer(dim=12, **config)  # type: ignore[arg-type]
    assert reducer_config(reducer) == config
    again = create_reducer(dim=12, **reducer_config(reducer))
    assert type(again) is type(reducer)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in reducer.state_dict().items()}


def test_config_of_a_stranger_is_refused() -> None:
    class Mine(Drop):
        pass

    class Nameless(Reducer):
        pass

    for reducer in (Mine(), Nameless()):
        with pytest.raises(InputError, match="is none of dynavit's reducers"):
            reducer_config(reducer)


@pytest.mark.parametrize("value", ["no", 0])
def test_proportional_and_weighted_are_bools(value: object) -> None:
    with pytest.raises(InputError, match=f"'merge': proportional={value!r}; choose true or false"):
        Merge(value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"'merge_nearest': weighted={value!r}; choose true or false"):
        MergeNearest(value)  # type: ignore[arg-type]
