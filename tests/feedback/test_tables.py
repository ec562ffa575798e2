import csv
import gzip
import hashlib

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.formats import tables

BOM = b"\xef\xbb\xbf"


def read(path, **limits):
    return [(row.number, row.value if row.value is not None else row.reason) for row in tables.rows(path, **limits)]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.jsonl", [b'{"a": "1"}', b'{"a": "\xc3\xa9"}']),
        ("a.json", [b'{"a": "1"}', b'{"a": "\xc3\xa9"}']),
        ("a.json", [b'[{"a": "1"},', b'{"a": "\xc3\xa9"}]']),
        ("a.csv", [b"a", b"1", b"\xc3\xa9"]),
        ("a", [b'{"a": "1"}', b'{"a": "\xc3\xa9"}']),
    ],
)
def test_every_kind_of_file(write, name, lines, end, start, zipped):
    content = start + end.join(lines) + end
    path = write(name + ".gz" * zipped, gzip.compress(content) if zipped else content)
    assert [value for _, value in read(path)] == [{"a": "1"}, {"a": "é"}]
    assert tables.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_gzip_is_known_by_content_not_by_name(write):
    assert read(write("a.jsonl", gzip.compress(b'{"a": 1}'))) == [(1, {"a": 1})]
    assert read(write("b.jsonl.gz", b'{"a": 1}')) == [(1, {"a": 1})]


def test_bad_lines_are_dropped_and_numbered(write):
    lines = [
        b'{"a": 1}',
        b"",
        b'{"a": ',
        b"[1, 2]",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": "' + b"x" * 100 + b'"}',
        b"[" * 100_000,
        b'{"a": 2}',
    ]
    found = dict(read(write("a.jsonl", b"\n".join(lines)), max_line=200_000))
    assert found[7] == {"a": "x" * 100} and found[8] == "broken_json" and found[9] == {"a": 2}
    found = read(write("b.jsonl", b"\n".join(lines)), max_line=50)
    assert found == [
        (1, {"a": 1}),
        (3, "broken_json"),
        (4, "not_an_object"),
        (5, "not_utf8"),
        (6, "lone_surrogate"),
        (7, "line_too_long"),
        (8, "line_too_long"),
        (9, {"a": 2}),
    ]


@pytest.mark.parametrize("length", [9, 10, 11, 19, 20, 21, 30])
def test_a_line_just_at_the_limit(write, length):
    line = b'{"a":' + b" " * (length - 7) + b"1}"
    assert len(line) == length
    found = read(write("a.jsonl", line + b"\n" + b'{"a":2}\n'), max_line=20)
    assert found == [(1, {"a": 1} if length <= 19 else "line_too_long"), (2, {"a": 2})]


def test_a_pretty_printed_object_is_one_row(write):
    assert read(write("a.json", '{\n  "a": {\n    "b": 1\n  }\n}\n')) == [(1, {"a": {"b": 1}})]
    found = read(write("b.json", '{"a": 1\n{"a": 2}\n'))
    assert found == [(1, "broken_json"), (2, {"a": 2})]


def test_items_of_an_array_that_are_no_objects(write):
    found = read(write("a.json", '[{"a": 1}, 3, null, [], "x", {"a": "\\udc00"}, {"a": 2}]'))
    assert found == [
        (1, {"a": 1}),
        (2, "not_an_object"),
        (3, "not_an_object"),
        (4, "not_an_object"),
        (5, "not_an_object"),
        (6, "lone_surrogate"),
        (7, {"a": 2}),
    ]


def test_csv_rows(write):
    text = 'a,b\n1,2\n"x, ""y""\nz",3\n\n1\n1,2,3\n"un"closed,4\n5,\xff\n6,7\n'
    found = read(write("a.csv", text.encode("latin-1")))
    assert found == [
        (2, {"a": "1", "b": "2"}),
        (3, {"a": 'x, "y"\nz', "b": "3"}),
        (6, "wrong_number_of_columns"),
        (7, "wrong_number_of_columns"),
        (8, "broken_csv"),
        (9, "not_utf8"),
        (10, {"a": "6", "b": "7"}),
    ]


@pytest.mark.parametrize("rows", [1, 2, 49, 4999])
@pytest.mark.parametrize("bad", [0, 30, 49])
def test_a_quote_that_is_never_closed_costs_its_own_row_alone(write, rows, bad):
    lines = [f"p{row},r{row}" for row in range(rows)]
    lines[min(bad, rows - 1)] = 'p,"r'
    found = {row.number: row for row in tables.rows(write("a.csv", "\n".join(["a,b", *lines]) + "\n"))}
    assert list(found) == list(range(2, rows + 2)), "each once, in order"
    broken = found.pop(min(bad, rows - 1) + 2)
    assert broken.reason == "broken_csv"
    assert all(row.value == {"a": f"p{row.number - 2}", "b": f"r{row.number - 2}"} for row in found.values())
    if bad < rows - 1:
        told = f"{rows - bad} lines, to line {rows + 1}; read on from line {bad + 3}"
        assert broken.detail == told


def test_lines_that_are_not_read_again_are_counted_one_by_one(write, monkeypatch):
    monkeypatch.setattr(tables, "REREAD", 20)
    text = 'a,b\n1,2\n"3,4\n5,6\n7,8\n"x"y,0\n"9,0\n1,2\n1,2\n'
    found = read(write("a.csv", text))
    assert [number for number, _ in found] == list(range(2, 10)), "every line is in a count, once"
    assert found[1:6] == [
        (3, "broken_csv"),
        (4, {"a": "5", "b": "6"}),
        (5, {"a": "7", "b": "8"}),
        (6, "broken_csv"),
        (7, "broken_csv"),
    ]
    assert found[6:] == [(8, "inside_broken_csv"), (9, "inside_broken_csv")]


def test_reading_again_has_an_end(write, monkeypatch):
    """Every line leaves a quote open, read from its beginning as from within: none is read more than a few times."""
    read_lines = 0

    def counting(*given, inner=tables._lines):
        nonlocal read_lines
        for line in inner(*given):
            read_lines += 1
            yield line

    class Counting(tables.deque):
        def popleft(self):
            nonlocal read_lines
            read_lines += 1
            return super().popleft()

    monkeypatch.setattr(tables, "_lines", counting)
    monkeypatch.setattr(tables, "deque", Counting)
    monkeypatch.setattr(tables, "REREAD", 20_000)
    path = write("a.csv", "a,b\n" + 'a","\n' * 1000)
    assert [row.reason for row in tables.rows(path)].count("") == 0
    assert sorted(row.number for row in tables.rows(path)) == list(range(2, 1002))
    assert read_lines < 2 * (1001 + 20_000 / 5 + 1)


def test_many_lines_that_a_stray_pair_of_quotes_swallows(write):
    """Both quotes are there, rows lie between them: a record that is too long to be one is read again, or told."""
    lines = [f"p{row},r{row}" for row in range(300)]
    path = write("a.csv", "\n".join(["a,b", '"p,r', *lines, 'p",r,s', "p,r"]) + "\n")
    found = list(tables.rows(path))
    assert [row.reason for row in found] == ["wrong_number_of_columns", *[""] * 300, "wrong_number_of_columns", ""]
    assert found[0].detail == "302 lines, to line 303; read on from line 3"
    found = list(tables.rows(write("b.csv", "\n".join(["a,b", '"p,r', *lines, 'p",r', "p,r"]) + "\n")))
    assert [(row.number, row.reason, row.detail) for row in found] == [(2, "", "302 lines, to line 303"), (304, "", "")]
    found = list(tables.rows(write("c.csv", 'a,b\n"p\nq",r,s\n1,2\n')))
    assert [(row.reason, row.detail) for row in found] == [("wrong_number_of_columns", "2 lines, to line 3"), ("", "")]


def test_a_record_of_many_lines_is_held_up_to_the_limit_only(write):
    path = write("a.csv", 'a,b\n1,"2\n' + 'x","\n' * 20 + "3,4\n")
    assert next(tables.rows(path, max_line=50)).detail.startswith("11 lines, to line 12;")
    found = read(path, max_line=50)
    assert found[0] == (2, "broken_csv") and found[-1] == (23, {"a": "3", "b": "4"})
    assert [number for number, _ in found] == list(range(2, 24))


def test_a_line_too_long_inside_a_broken_record_is_told_once(write):
    found = read(write("a.csv", 'a,b\n"1,2\n' + "x" * 60 + "\n3,4\n"), max_line=50)
    assert found == [(2, "broken_csv"), (3, "line_too_long"), (4, {"a": "3", "b": "4"})]


def test_csv_fields_may_be_longer_than_the_module_allows_by_itself(write):
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert read(write("a.csv", f"a,b\n{long},1\n")) == [(2, {"a": long, "b": "1"})]
    assert csv.field_size_limit() == before
    assert read(write("b.csv", f"a,b\n{long},1\n2,3\n"), max_line=100) == [
        (2, "line_too_long"),
        (3, {"a": "2", "b": "3"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'[{"a": 1}, {"a": ', "not valid JSON at line 1, column 18"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8 at byte 8"),
        ("a.json", b"[" * 100_000, "not JSON that can be read"),
        ("a.jsonl", b"\xff\xfe{\x00", "is UTF-16; save it as UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 10_000)[:-20], "truncated or damaged gzip"),
        ("a.jsonl.gz", b"\x1f\x8b" + b"\x00" * 40, "truncated or damaged gzip"),
        ("a.csv", b"a,a\n1,2\n", "name each column once"),
        ("a.parquet", b"PAR1", "cannot tell what kind of file"),
        (
            "a.txt",
            b"Why is the sky blue?\n",
            r'JSON array .*with a header .*; a prompt is the line {"prompt": "Why\?"}',
        ),
    ],
)
def test_files_that_cannot_be_read_are_refused(write, name, content, words):
    path = write(name, content)
    with pytest.raises(UserError, match=words) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_array_too_large_to_read_whole_is_refused(write):
    with pytest.raises(UserError, match="write it as JSON lines"):
        read(write("a.json", '[{"a": 1}]'), max_array=5)


@pytest.mark.parametrize("name", ["missing.jsonl", "", "a\0b"])
def test_files_that_are_not_there(tmp_path, name):
    with pytest.raises(UserError, match="no file|is a folder|cannot open"):
        read(tmp_path / name)
