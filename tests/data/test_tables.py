"""Tests of CSV, TSV and JSONL files: no dialect silently loses a record."""

import csv
import io
import json
import random

import pytest

from simple_multimodal.data.tables import is_table, read_records, read_table
from simple_multimodal.errors import InputError


@pytest.fixture
def read(tmp_path):
    """Return a function that writes a table and reads the line and cells of each record, without the header."""

    def read(content: str | bytes, name: str = "a.csv") -> list[tuple[int, list[str]]]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_table(path))[1:]

    return read


@pytest.mark.parametrize(
    ("line_end", "quoting"),
    [("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL), ("\r", csv.QUOTE_ALL)],
)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_the_output_of_the_csv_module_is_read(read, line_end, quoting, bom):
    generator = random.Random(0)
    pieces = ["a dog", ",", '"', '""', "\n", " ", "é", "|", "barks. ", "\t", "'", "5"]
    rows = [
        [
            f"clips/{n}.mp4",
            *("".join(generator.choices(pieces, k=generator.randrange(6))) for _ in range(2)),
            str(n / 2),
        ]
        for n in range(200)
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting, lineterminator=line_end)
    writer.writerows([["video", "caption", "note", "score"], *rows])
    found = read((bom + text.getvalue()).encode())
    assert [cells for _, cells in found] == rows
    lines = [2]
    for row in rows:
        lines.append(lines[-1] + 1 + sum(cell.count("\n") for cell in row))
    assert [line for line, _ in found] == lines[:-1]


def test_cells_of_tsv(read):
    rows = [
        ("a.mp4", '"oh no, he shouts'),
        ("b.mp4", "a dog barks"),
        ("c.mp4", 'and she says wait"'),
        ("d.mp4", '"Hello", he says'),
        ("e.mp4", 'she says "hello"'),
        ("f.mp4", '"'),
        ("g.mp4", '"a ""b'),
    ]
    text = "video\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows)
    text += 'h.mp4\t"a ""quoted"" cell"\ni.mp4\t"one\tcell"\n"j.mp4"\t" spaces "\n'
    rows += [("h.mp4", 'a "quoted" cell'), ("i.mp4", "one\tcell"), ("j.mp4", " spaces ")]
    assert read(text, "a.tsv") == [(line, list(row)) for line, row in enumerate(rows, start=2)]
    three = 'video\tcaption\tlabel\na.mp4\t"he says\tb"\n'
    assert read(three, "a.tsv") == [(2, ["a.mp4", '"he says', 'b"'])]
    with pytest.raises(ValueError, match="a.tsv, line 3: 1 cells, but the header has 2.*only CSV has cells with line"):
        read('video\tcaption\na.mp4\t"two\nlines"\n', "a.tsv")


@pytest.mark.parametrize(
    ("content", "cells"),
    [
        ('video,caption\na.mp4, "a dog, barking"\n', ["a.mp4", "a dog, barking"]),
        ('video,caption\n "a.mp4" ,  "a ""dog"""  \n', ["a.mp4", 'a "dog"']),
        ('video,caption\na.mp4,a "dog"\n', ["a.mp4", 'a "dog"']),
        ('video,caption\na.mp4,""\n', ["a.mp4", ""]),
        ('video,caption\na.mp4,"It is a dog.\n\nIt runs, barks, and sleeps.\nHowever, it is 5.5, too."\n', None),
        ('caption,video\n"It is a dog.\nIt runs, and barks",a.mp4\n', None),
        ('video,caption,note\na.mp4,"1,\n2, 3","x\ny"\n', None),
        ('id,caption\n1,"a dog\n, running"\n', None),
        ('"video","cap\ntion"\na.mp4,b\n', ["a.mp4", "b"]),
    ],
)
def test_cells_of_csv(read, content, cells):
    expected = next(row for row in list(csv.reader(io.StringIO(content)))[1:]) if cells is None else cells
    ((_, found),) = read(content)
    assert found == expected


@pytest.mark.parametrize(
    ("content", "line", "other"),
    [
        ('video,caption\na.mp4,"oh no he shouts\nb.mp4,a dog barks\nc.mp4,and she says wait"\nd.mp4,x\n', 2, 3),
        ('video,caption\na.mp4,"oh no, he shouts\nb.mp4,a dog, barks\nc.mp4,and she says wait"\n', 2, 3),
        ('video,caption\na.mp4,"oh\nc.mp4,wait"\n', 2, 3),
        ('video,caption\na.mp4,"oh\nb.mp4,"two, three"\nc.mp4,wait\n', 2, 3),
        ('caption,video\n"oh no,a.mp4\na dog,b.mp4\nwait",c.mp4\n', 2, 3),
        ('id,caption,video\nx1,"oh no,a.mp4\nx2,a dog,b.mp4\nx3,wait",c.mp4\n', 2, 3),
        ('id,caption\n1,"oh no\n2,wait"\n', 2, 3),
        ('name,caption\ndQw4w9WgX,"oh no\n3fb7,wait"\n', 2, 3),
        ('name,caption\ncat,"oh no\ndog,wait"\n', 2, 3),
        ('id,video,caption\n,a.mp4,"oh\n7,b.MP4,wait"\n', 2, 3),
        ('audio,caption\n,"oh\nb.wav,wait"\n', 2, 3),
        ('caption\n"oh no\na dog barks\nwait"\n', 2, 3),
        ('video,caption\nz.mp4,ok\n\na.mp4,"oh\nc.mp4,wait"\n', 4, 5),
    ],
)
def test_quotation_marks_in_csv_do_not_swallow_records(read, content, line, other):
    with pytest.raises(
        ValueError, match=rf"a.csv, line {line}: a quotation mark begins.*such as line {other}\. .*TSV"
    ):
        read(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('video,caption\na.mp4,"oh no\nx\n', "line 2: a quotation mark begins a cell, but none ends it"),
        ('video,caption\na.mp4,"oh no" he shouts\n', "line 2: a quoted cell must be followed by a separator, got"),
        ('video,caption\na.mp4,x\nb.mp4, "b" c\n', "line 3: a quoted cell must be followed by a separator"),
        ("video,caption\na.mp4,b, c\n", "line 2: 3 cells, but the header has 2. .*quoted as a whole"),
    ],
)
def test_other_quotation_marks_are_refused_with_their_line(read, content, message):
    with pytest.raises(ValueError, match=f"a.csv, {message}"):
        read(content)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("line", [1, 2, 700])
def test_another_encoding_is_named_with_its_line(tmp_path, name, line):
    good, bad = {
        "a.csv": ("a.mp4,x", "é.mp4,x"),
        "a.tsv": ("a.mp4\tx", "é.mp4\tx"),
        "a.jsonl": ('{"video": "a.mp4"}', '{"video": "é.mp4"}'),
    }[name]
    path = tmp_path / name
    path.write_text("\n".join([good] * (line - 1) + [bad, good]), encoding="cp1252")
    with pytest.raises(
        InputError, match=rf"{name}, line {line}: is not UTF-8 text.*0xe9.*iconv -f WINDOWS-1252 -t UTF"
    ):
        list(read_records(path))
    path.write_text(f"{bad}\n{good}", encoding="utf-16")
    with pytest.raises(InputError, match="line 1: is not UTF-8 text.*0xf[ef].*iconv -f UTF-16"):
        list(read_records(path))


@pytest.mark.parametrize("target", ["blob", "blob.txt", "blob.csv", "blob.jsonl"])
def test_the_name_determines_the_format(tmp_path, target):
    contents = {
        "a.csv": "video,caption\na.mp4,b\tc\n",
        "a.TSV": "video\tcaption\na.mp4\tb,c\n",
        "a.jsonl": '{"video": "a.mp4", "caption": "b"}\n',
    }
    for name, content in contents.items():
        (tmp_path / target).write_text(content)
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
        ((_, record),) = read_records(tmp_path / name)
        assert record["video"] == "a.mp4" and len(record) == 2 and is_table(tmp_path / name)


def test_unicode_line_breaks_do_not_end_a_line(tmp_path):
    text = "a\u2028b\u0085c\x0bd"
    (tmp_path / "a.csv").write_text(f"video,caption\na.mp4,{text}\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": text}, ensure_ascii=False), encoding="utf-8")
    for name in ("a.csv", "a.jsonl"):
        ((_, record),) = read_records(tmp_path / name)
        assert record["caption"] == text


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "video;caption\na.mp4;x, y\n"), ("a.csv", "video\tcaption\n"), ("a.tsv", "video,caption\n")],
)
def test_another_separator_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="line 1: the separator seems to be"):
        list(read_table(tmp_path / name))
