from typing import Any

import pytest

from dynavit import InputError
from dynavit.report import format_table, headline
from dynavit.report.rows import accuracy_base
from dynavit.report.summary import explain
from dynavit.report.table import markdown_table, signed, significant


def row(model: str = "pruned", **values: Any) -> dict[str, Any]:
    return {"model": model, **values}


DENSE = row("dense", keep_ratio=1.0, tokens=[], gmacs=0.0451, gmacs_ratio=1.0, top1=79.85, delta_top1=0.0)
PRUNED = row(keep_ratio=0.7, tokens=[137, 96, 67], gmacs=0.0293, gmacs_ratio=1.539, top1=79.45, delta_top1=-0.4)


def timed(values: dict[str, Any], **speedups: float) -> dict[str, Any]:
    throughput = {
        size.removeprefix("b"): {"images_per_second": 100.0 * s, "speedup": s} for size, s in speedups.items()
    }
    return {**values, "throughput": throughput}


def test_table_lines_up() -> None:
    rows = [timed(DENSE, b1=1.0, b32=1.0), timed(PRUNED, b1=0.93, b32=1.3)]
    lines = format_table(rows).splitlines()
    assert lines[1].split("  ")[0] == "model"
    assert [len(line) for line in lines[1:]] == [len(lines[1])] * 4
    assert lines[3].split() == [
        "dense",
        "-",
        "-",
        "0.0451",
        "1.00x",
        "79.85",
        "-",
        "100",
        "1.00x",
        "100",
        "1.00x",
    ]
    assert lines[4].split() == [
        "pruned", "0.7", "137/96/67", "0.0293", "1.54x", "79.45", "-0.40", "93.0", "0.93x", "130", "1.30x",
    ]  # fmt: skip
    # a batch size stands over its own columns
    end = lines[0].index("batch 32") + len("batch 32")
    assert lines[1][:end].endswith("images/s")
    assert lines[4][:end].endswith("130")


def test_table_without_speed_or_with_gaps() -> None:
    both = [row("dense", map=60.95), row(keep_ratio=(0.7, 0.5), map=61.2, delta_map=0.25)]
    lines = format_table(both, metric="map").splitlines()
    assert lines[0].split() == ["model", "keep", "ratio", "tokens", "GMACs", "x", "fewer", "mAP", "delta"]
    assert lines[3].split() == ["pruned", "0.7/0.5", "-", "-", "-", "61.20", "+0.25"]
    gaps = format_table([timed(DENSE, b1=1.0, b8=1.0), timed(PRUNED, b8=1.5)]).splitlines()
    assert gaps[-1].split()[-4:] == ["-", "-", "150", "1.50x"]


def test_batch_sizes_are_sorted_as_numbers() -> None:
    first = format_table([timed(DENSE, b32=1.0, b8=1.0, b128=1.0)]).splitlines()[0]
    assert first.split() == ["batch", "8", "batch", "32", "batch", "128"]
    assert format_table([{**DENSE, "throughput": {8: {"images_per_second": 3.0, "speedup": 1.0}}}])


def test_headline() -> None:
    rows = [timed(DENSE, b1=1.0, b32=1.0), timed(PRUNED, b1=0.93, b32=1.3)]
    start, end = "At keep ratio 0.7: 1.54x fewer MACs, ", " points top-1 against the dense model."
    assert headline(rows) == f"{start}speed 0.93x at batch 1 and 1.30x at batch 32, -0.4{end}"
    slower = [DENSE, timed({**PRUNED, "delta_top1": 0.21}, b1=0.8)]
    assert headline(slower) == f"{start}speed 0.80x at batch 1, +0.2{end}"


def test_headline_takes_the_ratio_nearest_to_the_default() -> None:
    rows = [DENSE, *({**PRUNED, "keep_ratio": ratio} for ratio in (1.0, 0.8, 0.66, 0.5))]
    assert headline(rows).startswith("At keep ratio 0.66:")
    assert headline([DENSE, {**PRUNED, "keep_ratio": [0.9, 0.6]}]).startswith("At keep ratio 0.9/0.6:")


def test_headline_does_not_claim_a_dense_model_that_is_not_there() -> None:
    rows = [{**PRUNED, "keep_ratio": 1.0}, PRUNED]
    assert headline(rows).endswith("-0.4 points top-1 against keep ratio 1.0.")
    assert headline([row(keep_ratio=0.5, top1=71.25)]) == "At keep ratio 0.5: 71.2 % top-1."
    assert headline([DENSE]) == "The dense model: 0.0451 GMACs, 79.8 % top-1."
    assert headline([row(keep_ratio=0.5)]) == "At keep ratio 0.5: nothing was measured."


def test_deltas_are_against_the_dense_model_or_all_tokens_kept_and_never_the_first_row() -> None:
    untrained = {key: value for key, value in DENSE.items() if "top1" not in key}
    full, half = ({**PRUNED, "keep_ratio": ratio, "images": 1234} for ratio in (1.0, 0.5))
    adaptive = {**half, "model": "adaptive", "keep_ratio": 1.0}
    assert accuracy_base([DENSE, half, full], "top1") == 0
    assert accuracy_base([untrained, half, adaptive, full], "top1") == 3
    assert accuracy_base([untrained], "top1") == 0
    rows = [untrained, half, full]
    assert headline(rows).endswith("-0.4 points top-1 against keep ratio 1.0.")
    deltas = [line.split()[-1] for line in format_table(rows).splitlines()[2:]]
    assert deltas == ["-", "-0.40", "-"]
    assert explain(rows) == (
        "top-1 on 1,234 images. Fewer MACs and speedup: against the dense model; delta in points, against keep ratio "
        "1.0, where all tokens are kept. No dense model of these classes was found, so that row has no accuracy."
    )
    assert explain([{**DENSE, "images": 5}, half]) == (
        "top-1 on 5 images. Fewer MACs, speedup and delta (points): against the dense model."
    )


def test_the_interval_stands_behind_its_number() -> None:
    lines = format_table([{**DENSE, "top1_low": 78.71, "top1_high": 80.92}, PRUNED]).splitlines()
    assert lines[0].split()[-5:] == ["top-1", "95", "%", "interval", "delta"]
    assert lines[2].split()[-5:] == ["79.85", "78.7", "to", "80.9", "-"]
    assert lines[3].split()[-3:] == ["79.45", "-", "-0.40"]


def test_no_rows_are_refused() -> None:
    for function in (format_table, headline, explain):
        with pytest.raises(InputError, match="no row"):
            function([])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04231, "0.0423"),
        (4.599, "4.60"),
        (17.56, "17.6"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0, "0"),
        (1, "1.00"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_signs() -> None:
    assert [signed(x, 2) for x in (0.004, -0.004, 0.005001, -1.5)] == ["0.00", "0.00", "+0.01", "-1.50"]


def test_reid_shows_rank1_and_how_sure_the_difference_is() -> None:
    dense = {"model": "dense", "map": 60.0, "rank1": 70.0}
    pruned = row(map=59.0, rank1=71.5, delta_map=-1.0, delta_map_low=-2.346, delta_map_high=0.4)
    lines = format_table([dense, pruned], metric="map").splitlines()
    assert lines[0].split()[-5:] == ["delta", "95", "%", "interval", "rank-1"]
    assert lines[2].split()[-3:] == ["-", "-", "70.00"]
    assert lines[3].split()[-5:] == ["-1.00", "-2.35", "to", "+0.40", "71.50"]


def test_adaptive_rows_show_mean_tokens_and_p95() -> None:
    adaptive = {**PRUNED, "model": "adaptive", "tokens": [137.25, 95.96, 67.0], "tokens_p95": 81, "top1": 79.6}
    lines = format_table([DENSE, PRUNED, adaptive]).splitlines()
    assert lines[0].split() == ["model", "keep", "ratio", "tokens", "p95", "GMACs", "x", "fewer", "top-1", "delta"]
    assert lines[2].split()[2:4] == ["-", "-"]
    assert lines[3].split()[2:4] == ["137/96/67", "-"]
    assert lines[4].split()[:4] == ["adaptive", "0.7", "137.2/96.0/67.0", "81"]
    assert "p95" not in format_table([DENSE, PRUNED])
    assert headline([DENSE, PRUNED, adaptive]) == headline([DENSE, PRUNED])


def test_methods_stand_below_their_budgets() -> None:
    dense = {**DENSE, "method": "dense"}
    cheap, dear = (
        {**PRUNED, "method": "a|b", "keep_ratio": 0.65, "budget_ratio": ratio, "budget_gmacs": gmacs}
        for ratio, gmacs in ((0.5, 0.0201), (0.7, 0.0299))
    )
    adaptive = {**cheap, "model": "adaptive", "method": "mine", "tokens": [64.0, 32.25], "tokens_p95": 40}
    lines = format_table([dense, dear, cheap, adaptive]).splitlines()
    assert lines[0].split("  ")[0] == "method"
    assert lines[2].split() == ["dense", "-", "-", "0.0451", "1.00x", "79.85", "-"]
    assert lines[3:5] == ["", "as dropping at keep ratio 0.7: 0.0299 GMACs"]
    assert lines[5].split() == ["a|b", "0.650", "67", "0.0293", "1.54x", "79.45", "-0.40"]
    assert lines[6:8] == ["", "as dropping at keep ratio 0.5: 0.0201 GMACs"]
    assert lines[9].split()[:5] == ["mine", "0.650", "32.2", "(p95", "40)"]
    rows = markdown_table([dense, dear, cheap, adaptive]).splitlines()
    assert len(rows) == 2 + 4 + 2
    assert {row.replace("\\|", "").count("|") for row in rows} == {8}
    assert rows[3].startswith("| *as dropping at keep ratio 0.7: 0.0299 GMACs* |")
    assert rows[4].startswith("| a\\|b | 0.650 | 67 |")
