import os

import pytest
import torch

from tokenflow.evaluation import partial
from tokenflow.evaluation.measure import write_json
from tokenflow.evaluation.partial import PartialFile, Saved

FINGERPRINT = {"tokenizer": "a", "sources": ["x"], "count": 8, "world_size": 2, "batch_size": 4}


def saved(batches):
    return Saved(batches=batches, evaluation={"sum": torch.arange(batches)}, skipped=[["k", "w", "r"]])


def test_what_a_rank_saves_it_reads_back(tmp_path):
    partial.begin(tmp_path, FINGERPRINT)
    file = PartialFile(tmp_path, fingerprint=FINGERPRINT, rank=1, every_seconds=0)
    assert file.load(torch.device("cpu")) is None
    for batches in (1, 3):
        assert file.save_if_due(lambda batches=batches: saved(batches))
    found = PartialFile(tmp_path, fingerprint=FINGERPRINT, rank=1, every_seconds=0).load(torch.device("cpu"))
    assert found.batches == 3 and found.evaluation["sum"].tolist() == [0, 1, 2] and found.skipped == [["k", "w", "r"]]
    assert PartialFile(tmp_path, fingerprint=FINGERPRINT, rank=0, every_seconds=0).load(torch.device("cpu")) is None


def test_a_rank_never_reads_the_sums_of_another_evaluation(tmp_path):
    PartialFile(tmp_path, fingerprint=FINGERPRINT, rank=1, every_seconds=0).save_if_due(lambda: saved(3))
    other = PartialFile(tmp_path, fingerprint=FINGERPRINT | {"tokenizer": "b"}, rank=1, every_seconds=0)
    assert other.load(torch.device("cpu")) is None
    other.remove()
    assert not other.path.exists()


def test_nothing_is_saved_before_it_is_due(tmp_path):
    file = PartialFile(tmp_path, fingerprint=FINGERPRINT, rank=0, every_seconds=1e9)
    assert not file.save_if_due(lambda: pytest.fail("not due"))
    assert not file.path.exists()


def test_what_a_killed_write_left_is_removed_and_never_read(tmp_path):
    partial.begin(tmp_path, FINGERPRINT)
    left = tmp_path / "partial" / ".rank_00000.pt.k3x"
    left.write_bytes(b"half")
    other = tmp_path / "partial" / ".rank_00001.pt.k3x"
    other.write_bytes(b"half")
    assert PartialFile(tmp_path, fingerprint=FINGERPRINT, rank=0, every_seconds=0).load(torch.device("cpu")) is None
    assert not left.exists() and other.exists()


def test_states_of_a_folder(tmp_path):
    assert partial.find_state(tmp_path / "missing", FINGERPRINT) == "new"
    partial.begin(tmp_path, FINGERPRINT)
    assert partial.find_state(tmp_path, FINGERPRINT) == "partial"
    write_json(tmp_path / "result.json", {"fingerprint": FINGERPRINT | {"count": 9}})
    # What was begun last counts, whatever lies there from before.
    assert partial.find_state(tmp_path, FINGERPRINT) == "partial"
    write_json(tmp_path / "result.json", {"fingerprint": FINGERPRINT})
    partial.discard(tmp_path)
    assert os.listdir(tmp_path) == ["result.json"]
    assert partial.find_state(tmp_path, FINGERPRINT | {"world_size": 1, "batch_size": 3}) == "finished"


@pytest.mark.parametrize("change", [{"world_size": 1}, {"batch_size": 2}, {"tokenizer": "b"}, {"new": 1}])
def test_sums_of_another_split_or_evaluation_are_refused(tmp_path, change):
    partial.begin(tmp_path, FINGERPRINT)
    (name,) = change
    with pytest.raises(ValueError, match=rf"unfinished evaluation \({name} was .*, is .*--resume none"):
        partial.find_state(tmp_path, FINGERPRINT | change)


def test_a_result_of_unknown_origin_is_refused(tmp_path):
    write_json(tmp_path / "result.json", {"metrics": {}})
    with pytest.raises(ValueError, match="tokenizer was not noted, is a"):
        partial.find_state(tmp_path, FINGERPRINT)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        partial.find_state(tmp_path, FINGERPRINT)
