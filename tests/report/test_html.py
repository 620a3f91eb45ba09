import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynavit import InputError
from dynavit.report import write_report
from dynavit.report.html import Section
from dynavit.report.table import Column

SPEED = {"images_per_second": 100.0, "speedup": 1.3}
TIMED = {"throughput": {"1": SPEED, "32": SPEED}}
DENSE = {"model": "dense", "gmacs": 4.6, "gmacs_ratio": 1.0, "top1": 80.0, **TIMED}
PRUNED = {
    "model": "pruned",
    "keep_ratio": 0.7,
    "tokens": [137, 96],
    "gmacs": 3.0,
    "gmacs_ratio": 1.53,
    **TIMED,
}
ROWS: list[dict[str, Any]] = [DENSE, {**PRUNED, "top1": 79.5, "delta_top1": -0.5}]


class Page(HTMLParser):
    """What a browser would find: tags in order, table rows, text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []  # everything was closed

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def page(tmp_path: Path) -> Page:
    picture = Image.fromarray(np.full((2, 3, 3), 7, dtype=np.uint8))
    picture.save(tmp_path / "photo.jpg")
    write_report(
        tmp_path / "report.html",
        "R&D <script>alert(1)</script>",
        ROWS,
        [
            Section("Classes", [Column("class <i>", ["-1 <b>4x"], left=True), Column("top-1", ["-1.5"], "x")], "n <u>"),
            Section("Pictures", images={"in memory": picture, "a file <b>": tmp_path / "photo.jpg"}),
        ],
        {"data": "<img src=x>", "model": {"stages": [3, 6, 9], "selector": {"name": "topk"}}, "notes": None},
    )
    return Page(tmp_path / "report.html")


def test_what_users_wrote_is_escaped(page: Page) -> None:
    assert "R&D <script>alert(1)</script>" in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert ["data", "<img src=x>"] in page.rows


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", page.source)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [source.split(",")[0] for source in sources if source] == [
        "data:image/png;base64",
        "data:image/jpeg;base64",
    ]
    for source in sources:
        assert source is not None
        embedded = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert embedded.size == (3, 2)


def test_table_and_headline(page: Page) -> None:
    assert "At keep ratio 0.7: 1.53\N{MULTIPLICATION SIGN} fewer MACs" in page.text
    assert "\N{MINUS SIGN}0.5 points top-1 against the dense model." in page.text
    assert page.rows[0] == [
        "model",
        "keep ratio",
        "tokens",
        "GMACs",
        "x fewer",
        "top-1",
        "delta",
        "batch 1",
        "batch 32",
    ]
    assert page.rows[1] == ["images/s", "speedup"] * 2
    none, times = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
    speeds = ["100", f"1.30{times}"] * 2
    assert page.rows[2] == ["dense", none, none, "4.60", f"1.00{times}", "80.00", none, *speeds]
    assert page.rows[3][:7] == [
        "pruned", "0.7", "137/96", "3.00", f"1.53{times}", "79.50", "\N{MINUS SIGN}0.50",
    ]  # fmt: skip
    marked = [attributes.get("class") for tag, attributes in page.tags if tag == "tr"]
    assert marked[:4] == [None, None, "dense", None]
    spans = [attributes.get("colspan") for tag, attributes in page.tags if attributes.get("class") == "group first"]
    assert spans == ["2", "2", "2", "2", "1"]  # results, what speed costs, and a section


def test_sections_have_their_table_note_and_pictures(page: Page) -> None:
    start = page.rows.index(["class <i>", "x"])
    assert page.rows[start + 1 : start + 3] == [["top-1"], ["-1 <b>4x", "\N{MINUS SIGN}1.5"]]
    assert "n <u>" in page.text
    assert page.text.index("Classes") < page.text.index("Pictures") < page.text.index("a file <b>")


def test_settings_are_flat(page: Page) -> None:
    assert page.rows[-4:] == [
        ["data", "<img src=x>"],
        ["model.stages", "3, 6, 9"],
        ["model.selector.name", "topk"],
        ["notes", "None"],
    ]


def test_without_speed_pictures_or_settings(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", "t", [{"model": "pruned", "keep_ratio": 0.5, "map": 61.0}], [], {}, metric="map")
    page = Page(tmp_path / "r.html")
    assert page.rows[0][5] == "mAP"
    assert len(page.rows) == 2
    assert "Pictures" not in page.text
    assert "Settings" not in page.text
    assert "starting model" not in page.text  # there is none


def test_bad_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (2, 2)).save(tmp_path / "picture.bmp")
    for name, reason in [
        ("broken.png", "cannot be read"),
        ("missing.png", "cannot be read"),
        ("picture.bmp", "use png"),
    ]:
        with pytest.raises(InputError, match=f"{name}.*{reason}"):
            write_report(tmp_path / "r.html", "t", ROWS, [Section("p", images={"c": tmp_path / name})], {})
    with pytest.raises(InputError, match="no row"):
        write_report(tmp_path / "r.html", "t", [], [], {})
    assert not (tmp_path / "r.html").exists()
