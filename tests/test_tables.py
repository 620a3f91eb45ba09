"""Tables that spreadsheets do not run and that read back as they were; names that a terminal does not obey."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynavit
from dynavit.tables import csv_text, read_csv, write_csv
from dynavit.text import printable

_AWKWARD = "'=+-@|\t\r\n\", ;\\udc9005cU\udce9\ud800\x1b\u202e\u2028\U000e0001\ufeff\uff1d"
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=())) | st.text(st.sampled_from(_AWKWARD))


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_text_reads_back(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    table = [dict(zip("ab", row, strict=True)) for row in rows]
    write_csv(table, folder / "file.csv")
    assert read_csv(folder / "file.csv") == table
    shown = csv_text(table, terminal=True)
    assert [printable(line) for line in shown.splitlines()] == shown.splitlines()
    assert shown.count("\n") == 1 + len(table)
    (folder / "shown.csv").write_text(shown, encoding="utf-8", newline="")
    assert read_csv(folder / "shown.csv") == table


@pytest.mark.parametrize("text", ["=1+1", "+1.jpg", "-1", "@SUM(1)", "\t=1", "\r=1", "'=1", "''+1", " =1", "\uff1d1+1"])
def test_formulas_are_text(text: str, tmp_path: Path) -> None:
    write_csv([{text: text, "change": -0.5, "count": -3, "none": None}], tmp_path / "x.csv")
    content = (tmp_path / "x.csv").read_bytes()
    assert content.endswith(b",-0.5,-3,\n")  # numbers stay numbers
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        names, cells = csv.reader(file)
    assert (names[0], cells[0]) == (f"'{text}", f"'{text}")
    assert read_csv(tmp_path / "x.csv") == [{text: text, "change": "-0.5", "count": "-3", "none": ""}]


def test_plain_names_are_as_they_were_and_lines_end_alike(tmp_path: Path) -> None:
    write_csv([{"image": "a b's, é 漢字.jpg"}, {"other": 1.5}], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes().decode() == 'image,other\n"a b\'s, é 漢字.jpg",\n,1.5\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a,b\n1\n", "line 2: 1 cells, and 2"), (b"a\n\xff\n", "cannot be read"), (b'a\n"b\n', "no table")],
)
def test_other_files_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(dynavit.InputError, match=said):
        read_csv(tmp_path / "x.csv")


def test_nothing_printable_commands_a_terminal() -> None:
    assert printable("\x1b[31m\r\n\x9b1A\u202eb\ud800") == r"\x1b[31m\r\n\x9b1A\u202eb\ud800"
    assert printable("é 漢字 🙂 क्\u200dष") == "é 漢字 🙂 क्\u200dष"
