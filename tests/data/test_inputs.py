"""Tables as input of make-shards."""

import csv
import importlib
import json
import os
import pickle
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.made_shards import CAPTIONS, make, png
from tokenflow.cli import main
from tokenflow.data.inputs import open_input
from tokenflow.data.picture_check import BadPicture
from tokenflow.data.samples import BadSample
from tokenflow.data.shard_making import MakeShardsConfig, ShardMaking
from tokenflow.data.table_rows import CsvRows
from tokenflow.data.tables import TableConfig

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def pictures(tmp_path):
    """Five pictures in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def write_csv(path, rows, *, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


ROWS = [["path", "caption", "id_of_author"], *([f"{n}.png", CAPTIONS[n], f"a{n}"] for n in range(5))]


@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_csv_names_files_beside_it_and_their_captions(tmp_path, pictures, ending, delimiter, workers):
    table = write_csv(pictures / f"table{ending}", ROWS, delimiter=delimiter)
    report, found = make(table, tmp_path / "out", workers=workers)
    assert report["written"] == 5 and list(found) == ["0", "1", "2", "3", "4"]
    for number, (key, sample) in enumerate(found.items()):
        assert sample["png"] == png(int(key)) and sample["txt"].decode() == CAPTIONS[number]
        record = json.loads(sample["json"])
        assert record["id_of_author"] == f"a{number}" and record["caption"] == CAPTIONS[number]
        assert "path" not in record


def test_paths_are_relative_to_the_folder_of_images_if_one_is_given(tmp_path, pictures):
    (tmp_path / "tables").mkdir()
    table = write_csv(tmp_path / "tables" / "t.csv", ROWS)
    report, _ = make(table, tmp_path / "out", "--images", pictures)
    assert report["written"] == 5
    absolute = write_csv(tmp_path / "tables" / "u.csv", [ROWS[0], [str(pictures / "3.png"), "x", "y"]])
    _, found = make(absolute, tmp_path / "absolute")
    # an absolute name is made safe
    ((key, sample),) = found.items()
    assert not key.startswith("/")
    assert json.loads(sample["json"])["original_key"] == f"{pictures}/3" and sample["png"] == png(3)
    assert "missing" in make_nothing(table, tmp_path / "missing", "--caption_column", "caption")


def make_nothing(path, out, *options):
    """What is counted as dropped where no sample can be used."""
    assert main(["make-shards", str(path), "--out", str(out), *options]) == 1
    return json.loads((out / "manifest.json").read_text())["report"]["dropped"]


def test_what_is_not_there_is_counted_and_named(tmp_path, pictures):
    rows = [
        *ROWS,
        ["gone.png", "a caption", "x"],
        ["", "no path", "x"],
        ["http://example.org/a.png", "an address", "x"],
        ["too", "few"],
        ["0.png", "one", "field", "more"],
        [".", "a folder", "x"],
        ["nul\0.png", "nul", "x"],
    ]
    table = write_csv(pictures / "t.csv", rows)
    report, _ = make(table, tmp_path / "out")
    expected = {"missing": 2, "no_picture": 1, "not_downloaded": 1, "unreadable": 3}
    assert report["written"] == 5 and report["dropped"] == expected
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert any("gone.png" in line["detail"] for line in lines)
    assert any("row 9 has 2 fields, the header 3" in line["detail"] for line in lines)


def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path, pictures, capsys):
    table = write_csv(pictures / "t.csv", [["where", "what"], ["0.png", "x"]])
    for options, message in (
        ([], "has the columns where, what; none of them has a usual name. Give one of them as --image_column"),
        (["--image_column", "file"], "none is called 'file'. Give one of them as --image_column"),
        (
            ["--image_column", "where", "--caption_column", "text"],
            "the columns where, what; none is called 'text'. Give one of them as --caption_column",
        ),
    ):
        assert main(["make-shards", str(table), "--out", str(tmp_path / "out"), *options]) == 2
        assert message in capsys.readouterr().err
    _, found = make(table, tmp_path / "out", "--image_column", "where", "--caption_column", "what")
    assert found["0"]["txt"] == b"x"
    # another column is another input
    assert main(["make-shards", str(table), "--out", str(tmp_path / "out"), "--image_column", "where"]) == 2
    assert "begun with other settings" in capsys.readouterr().err
    assert main(["make-shards", str(pictures), "--out", str(tmp_path / "o"), "--caption_column", "x"]) == 2
    assert "is no table" in capsys.readouterr().err
    assert main(["make-shards", str(table), "--out", str(tmp_path / "o"), "--split", "x"]) == 2
    assert "no Hugging Face data set" in capsys.readouterr().err


def test_tables_that_are_none_are_refused(tmp_path, capsys):
    for name, content, message in (
        ("empty.csv", b"", "is empty; expected a first line"),
        ("wide.csv", "path,caption\n".encode("utf-16"), "is UTF-16; expected UTF-8"),
        ("twice.csv", b"path,path\na,b\n", "columns of the same name: 'path'"),
        ("quote.csv", b'path,caption\na,"never closed' + b"x" * (1 << 25), "Does a quote not close?"),
        ("header.csv", b"path,caption\n", "holds no samples"),
        ("not.parquet", b"PAR1 nothing", "expected a Parquet file"),
    ):
        (tmp_path / name).write_bytes(content)
        assert main(["make-shards", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert main(["make-shards", str(tmp_path / "no*.csv"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_captions_of_other_encodings_are_read_like_those_of_files(tmp_path, pictures):
    content = b'\xef\xbb\xbf"path",caption\r\n0.png,caf\xe9\r\n1.png,"one\rtwo\x00"\r\n2.png,ein sch\xc3\xb6nes Bild'
    (pictures / "t.csv").write_bytes(content)
    report, found = make(pictures / "t.csv", tmp_path / "out")
    assert [sample["txt"].decode() for sample in found.values()] == ["café", "one two", "ein schönes Bild"]
    assert report["changed"] == {"caption_recoded": 1}


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.text(max_size=12).map(lambda text: text + "|")).map(list),
        min_size=1,
        max_size=6,
    )
)
def test_any_row_of_a_csv_is_found_again(tmp_path_factory, rows):
    clean = [[field.replace("\r", " ").replace("\0", " ") for field in row] for row in rows]
    path = write_csv(tmp_path_factory.mktemp("rows") / "t.csv", [["path", "caption"], *clean])
    table = pickle.loads(pickle.dumps(CsvRows(str(path))))
    assert table.shard_sizes == [len(rows)]
    for index in reversed(range(len(rows))):
        assert [value.decode() for value in table.row(index).values()] == clean[index]


def table_of(**columns):
    return pa.table(columns)


def test_a_parquet_holds_pictures_or_names_them(tmp_path, pictures):
    when = [datetime(2026, 1, n + 1) for n in range(5)]
    table = table_of(
        image=[png(n) for n in range(5)], text=CAPTIONS, width=[1, 2, 3, 4, None], score=[0.5, float("nan"), 1, 2, 3],
        when=when, tags=[["a", "b"]] * 5, blob=[b"\xff\xfe"] * 5,
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "bytes.parquet", row_group_size=2)
    report, found = make(tmp_path / "bytes.parquet", tmp_path / "out", workers=2)
    assert report["written"] == 5 and list(found) == [f"bytes-{number:09d}" for number in range(5)]
    records = [json.loads(sample["json"]) for sample in found.values()]
    assert [record["caption"] for record in records] == CAPTIONS
    assert records[1]["score"] is None and records[0]["score"] == 0.5 and records[0]["tags"] == ["a", "b"]
    assert records[2]["when"] == "2026-01-03T00:00:00" and "blob" not in records[0] and "image" not in records[0]

    table = table_of(file_name=[f"{n}.png" for n in range(5)], uid=[f"u{n}" for n in range(5)], Caption=CAPTIONS)
    parquet.write_table(table, pictures / "paths.parquet")
    _, found = make(pictures / "paths.parquet", tmp_path / "paths")
    assert list(found) == [f"u{n}" for n in range(5)] and found["u3"]["png"] == png(3)
    assert found["u1"]["txt"].decode() == CAPTIONS[1]


def test_several_tables_are_one_input(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for part in range(3):
        table = table_of(jpg=[png(2 * part), png(2 * part + 1)], caption=["a", "b"])
        parquet.write_table(table, folder / f"{part:05d}.parquet")
        (folder / f"{part:05d}_stats.json").write_text("{}")
    everything = make(folder, tmp_path / "all")[1]
    assert len(everything) == 6
    assert make(folder / "*.parquet", tmp_path / "glob")[1].keys() == everything.keys()
    assert len(make(f"{folder}/{{00000..00001}}.parquet", tmp_path / "two")[1]) == 4
    source = open_input(str(folder))
    assert source.describe(5) == ("00002-000000001", str(folder / "00002.parquet")) and source.shard_sizes == [2, 2, 2]


def test_a_row_that_cannot_be_read_costs_itself_alone(tmp_path):
    broken = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"image": [png(0), b"", None], "caption": broken, "other": broken})
    parquet.write_table(table, tmp_path / "t.parquet")
    source = open_input(str(tmp_path / "t.parquet"))
    assert source.read(0).image == png(0) and source.read(0).text == b"fine"
    for index in (1, 2):
        with pytest.raises(BadPicture, match="is empty"):
            source.read(index)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[10:60] = bytes(50)
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(BadSample, match="row group 0 cannot be read"):
        open_input(str(tmp_path / "t.parquet")).read(0)


@pytest.mark.parametrize("name", ["pyarrow", "datasets"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, capsys):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setattr(importlib, "import_module", missing)
    path = tmp_path / "t.parquet" if name == "pyarrow" else "hf:some/name"
    with pytest.raises(ValueError, match=rf"needs {name}.*\.\[data\]"):
        open_input(str(path))


def test_a_table_continues_after_a_stop_as_if_unbroken(tmp_path, pictures):
    table = write_csv(pictures / "t.csv", ROWS)
    source = open_input(str(table), TableConfig())

    def making(out):
        return ShardMaking(source, out, path=str(table), config=MakeShardsConfig(samples_per_shard=2))

    def stop(position):
        if position == 4:
            raise KeyboardInterrupt

    whole = making(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        making(tmp_path / "out").run(progress=stop)
    assert making(tmp_path / "out").run() == whole and len(os.listdir(tmp_path / "out")) == 5
