"""Output of img2dataset and Hugging Face data sets, as input of make-shards."""

import json

import pytest

from tests.data.made_shards import CAPTIONS, make, png
from tokenflow.cli import main
from tokenflow.data.shape_shards import write_shard

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def img2dataset_record(number):
    """The metadata that img2dataset writes beside each picture."""
    return {
        "url": f"http://example.org/{number}", "caption": f"picture {number}", "key": f"{number:09d}",
        "status": "success", "error_message": None, "width": 12, "height": 10, "original_width": 12,
        "original_height": 10, "exif": "{}", "sha256": "0" * 64,
    }  # fmt: skip


def check_img2dataset(report, found):
    assert report["written"] == len(found) == 4
    for number, (key, sample) in enumerate(found.items()):
        record = json.loads(sample["json"])
        assert key.endswith(f"{number:09d}") and sample["txt"].decode() == f"picture {number}"
        assert record["url"].endswith(f"/{number}") and record["original_width"] == 12
        assert len(record["sha256"]) == 64 and record["sha256"] != "0" * 64


def write_metadata(folder, *, pictures=None):
    """The .parquet and _stats.json of a part, with one address that could not be downloaded."""
    failed = {**img2dataset_record(4), "status": "failed_to_download", "error_message": "HTTP Error 404"}
    rows = [*(img2dataset_record(number) for number in range(4)), failed]
    if pictures:
        rows = [{**row, "jpg": picture} for row, picture in zip(rows, [*pictures, None], strict=True)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 5, "successes": 4}')


def test_img2datasets_webdataset_output_is_read(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [
        {
            "__key__": f"{n:09d}", "jpg": png(n), "txt": f"picture {n}".encode(),
            "json": json.dumps(img2dataset_record(n)).encode(),
        }
        for n in range(4)
    ]  # fmt: skip
    write_shard(folder / "00000.tar", rows)
    write_metadata(folder)
    check_img2dataset(*make(folder, tmp_path / "out"))


def test_img2datasets_files_output_is_read(tmp_path):
    folder = tmp_path / "in" / "00000"
    folder.mkdir(parents=True)
    for number in range(4):
        stem = folder / f"{number:09d}"
        stem.with_suffix(".jpg").write_bytes(png(number))
        stem.with_suffix(".txt").write_text(f"picture {number}")
        stem.with_suffix(".json").write_text(json.dumps(img2dataset_record(number)))
    write_metadata(tmp_path / "in")
    check_img2dataset(*make(tmp_path / "in", tmp_path / "out"))


def test_img2datasets_parquet_output_is_read_and_failures_are_counted(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_metadata(folder, pictures=[png(number) for number in range(4)])
    report, found = make(folder, tmp_path / "out")
    check_img2dataset(report, found)
    assert report["dropped"] == {"no_picture": 1}
    assert "failed_to_download" in (tmp_path / "out" / "report.jsonl").read_text()


@pytest.fixture
def dataset():
    """A Hugging Face data set of five pictures."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "picture": [{"bytes": png(n), "path": None} for n in range(5)],
        "sentences": [[caption, "another"] for caption in CAPTIONS],
        "author": list("abcde"),
    }
    features = datasets.Features(
        picture=datasets.Image(), sentences=datasets.List(datasets.Value("string")), author=datasets.Value("string")
    )
    return datasets.Dataset.from_dict(rows, features=features)


def check_dataset(report, found):
    assert report["written"] == 5
    for number, sample in enumerate(found.values()):
        record = json.loads(sample["json"])
        assert sample["png"] == png(number) and record["author"] == "abcde"[number]
        assert record["caption"] == CAPTIONS[number] and record["captions"] == [CAPTIONS[number], "another"]


def test_a_saved_data_set_is_read(tmp_path, dataset, capsys):
    dataset.save_to_disk(str(tmp_path / "one"))
    check_dataset(*make(tmp_path / "one", tmp_path / "out", workers=2))
    import datasets

    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(str(tmp_path / "two"))
    check_dataset(*make(tmp_path / "two", tmp_path / "train", "--split", "train"))
    for options in ([], ["--split", "validation"]):
        assert main(["make-shards", str(tmp_path / "two"), "--out", str(tmp_path / "x"), *options]) == 2
        assert "has the splits train, test" in capsys.readouterr().err
    assert main(["make-shards", str(tmp_path / "one"), "--out", str(tmp_path / "x"), "--image_column", "pic"]) == 2
    assert "has the columns picture, sentences, author; none is called 'pic'" in capsys.readouterr().err


def test_a_data_set_is_found_by_its_name(tmp_path, dataset, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "named"
    folder.mkdir()
    dataset.to_parquet(str(folder / "train.parquet"))
    check_dataset(*make(f"hf:{folder}", tmp_path / "out"))
