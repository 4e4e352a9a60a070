"""From shards to shards with new captions: nothing lost, nothing asked twice, whatever ends the process."""

import json
import multiprocessing
import os
import signal

import pytest

from tests.data.caption_server import CaptionServer, caption_of, completion, picture, picture_in, write_shards
from tokenflow.data import DataConfig, SampleReader, SourceConfig
from tokenflow.data.manifest import REPORT_NAME
from tokenflow.data.recaption_backend import CaptionAnswer, CaptionerGone, CaptionerUnusable
from tokenflow.data.recaption_check import CaptionCheck
from tokenflow.data.recaption_openai import OpenAICaptioner, ServerConfig
from tokenflow.data.recaption_prompts import Prompt
from tokenflow.data.recaption_shards import read_shard
from tokenflow.data.recaptioning import RecaptionConfig, Recaptioning
from tokenflow.data.shard_writer import ShardWriter

CONFIG = RecaptionConfig(model="tiny", prompt=Prompt(name="mine", text="Old: {caption}. New?"))


class Echo:
    """A captioner that answers what a function says of a request, and counts."""

    def __init__(self, say=lambda request: f"A new caption of number {request.key}."):
        self.say = say
        self.asked = []

    def answers(self, requests):
        for request in requests:
            self.asked.append(request.key)
            said = self.say(request)
            content = {"text": said} if isinstance(said, str) else said
            yield CaptionAnswer(position=request.position, key=request.key, **content)


FAILED = {"failure": "failed", "detail": "trouble"}


def contents(folder):
    """Every file that people see, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def samples(folder):
    return [sample for path in sorted(folder.glob("*.tar")) for sample in read_shard(str(path))]


def test_new_captions_stand_beside_old_ones_and_all_else_stays(tmp_path):
    source = write_shards(tmp_path / "in", [3, 2])
    report = Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(Echo())
    assert (report["complete"], report["read"], report["written"], report["recaptioned"]) == (True, 5, 5, 5)
    for number, sample in enumerate(samples(tmp_path / "out")):
        new, old = f"A new caption of number {number:04d}.", f"old caption {number}"
        assert sample.key == f"{number:04d}" and sample.members["png"] == picture(number)
        assert sample.members["txt"].decode() == new
        assert sample.record == {
            "source": "noise",
            "number": number,
            "caption": new,
            "captions": [new, old],
            "recaption": {"model": "tiny", "prompt": "mine"},
            "original_caption": old,
        }
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [shard["samples"] for shard in manifest["shards"]] == [3, 2]
    assert manifest["settings"]["prompt"]["text"] == CONFIG.prompt.text
    assert manifest["report"]["recaptioned"] == 5


def test_training_reads_the_new_captions_and_with_any_both(tmp_path):
    source = write_shards(tmp_path / "in", [4])
    Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(Echo())
    sources = (SourceConfig(path=str(tmp_path / "out")),)
    reader = SampleReader(DataConfig(sources=sources, image_size=16, captions="any"), seed=0)
    assert reader.read_in_order(2).caption == "A new caption of number 0002."
    seen = {reader.read(position)[0].caption.partition(" ")[0] for position in range(40)}
    assert seen == {"A", "old"}


def test_captions_of_captions_keep_the_first_original(tmp_path):
    source = write_shards(tmp_path / "in", [2])
    Recaptioning(str(source), tmp_path / "once", config=CONFIG).run(Echo(lambda request: "First."))
    Recaptioning(str(tmp_path / "once"), tmp_path / "twice", config=CONFIG).run(Echo(lambda request: "Second."))
    record = samples(tmp_path / "twice")[0].record
    assert record["original_caption"] == "old caption 0"
    assert record["captions"] == ["Second.", "First.", "old caption 0"]


def test_rejected_answers_are_counted_and_their_samples_stay_as_they_were(tmp_path):
    source = write_shards(tmp_path / "in", [6])
    said = ["", "I'm sorry, I can't help with that.", "a cat " * 30, "word " + "long" * 30, "A dog.", FAILED]
    check = CaptionCheck(max_characters=100)
    config = RecaptionConfig(model="tiny", prompt=CONFIG.prompt, check=check)
    report = Recaptioning(str(source), tmp_path / "out", config=config).run(Echo(lambda r: said[r.position]))
    assert report["kept"] == {"empty": 1, "failed": 1, "looping": 1, "refused": 1, "too_long": 1}
    assert report["recaptioned"] == 1
    before, after = samples(source), samples(tmp_path / "out")
    for number in (0, 1, 2, 3, 5):
        assert after[number].members == before[number].members
    lines = [json.loads(line) for line in (tmp_path / "out" / REPORT_NAME).read_text().splitlines()]
    assert [(line["key"], line["kept"]) for line in lines] == [
        ("0000", "empty"),
        ("0001", "refused"),
        ("0002", "looping"),
        ("0003", "too_long"),
        ("0005", "failed"),
    ]


def test_odd_samples_pass_through_and_are_counted(tmp_path):
    (tmp_path / "in").mkdir()
    with ShardWriter(tmp_path / "in" / "a.tar") as writer:
        writer.add("0", {"txt": b"no picture"})
        writer.add("1", {"jpg": b"not a picture", "txt": b"broken"})
        writer.add("2", {"png": picture(2), "json": b"{broken", "cls": b"7", "mask.png": b"kept"})
        writer.add("../../3", {"png": picture(3), "json": b'[1, {"a": 2}]', "txt": "caf\xe9".encode("latin-1")})
    report = Recaptioning(str(tmp_path / "in"), tmp_path / "out", config=CONFIG).run(
        Echo(lambda r: {"failure": "bad_picture", "detail": "broken"} if r.key == "1" else r.prompt)
    )
    assert report["kept"] == {"bad_picture": 1, "no_picture": 1}
    assert report["changed"] == {"metadata_dropped": 1} and report["recaptioned"] == 2
    zero, one, two, three = samples(tmp_path / "out")
    assert zero.members == {"txt": b"no picture"} and one.members == {"jpg": b"not a picture", "txt": b"broken"}
    assert two.members["cls"] == b"7" and two.members["mask.png"] == b"kept"
    assert two.caption == "Old: (none). New?" and two.record["original_caption"] == ""
    assert ".." not in three.key and three.caption == "Old: café. New?"
    assert three.record["value"] == [1, {"a": 2}] and three.record["original_caption"] == "café"


def test_a_truncated_shard_loses_only_what_it_lacks(tmp_path):
    source = write_shards(tmp_path / "in", [4])
    (shard,) = source.glob("*.tar")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 5 // 8])
    report = Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(Echo())
    assert report["complete"] and report["recaptioned"] >= 2
    assert [sample.key for sample in samples(tmp_path / "out")][:2] == ["0000", "0001"]


def test_parts_together_write_what_one_process_writes_and_touch_only_their_own(tmp_path):
    source = write_shards(tmp_path / "in", [2, 1, 3, 2, 1])
    Recaptioning(str(source), tmp_path / "one", config=CONFIG).run(Echo())
    written = set()
    for part in (2, 0, 1):
        making = Recaptioning(str(source), tmp_path / "many", config=CONFIG, part=part, parts=3)
        echo = Echo()
        report = making.run(echo)
        assert report["complete"] == (part == 1)
        names = {path.name for path in (tmp_path / "many").glob("*.tar")} - written
        assert names == {f"shard-{number:06d}.tar" for number in range(part, 5, 3)}
        written |= names
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_another_number_of_parts_continues(tmp_path):
    source = write_shards(tmp_path / "in", [2, 1, 3, 2])
    Recaptioning(str(source), tmp_path / "one", config=CONFIG).run(Echo())
    Recaptioning(str(source), tmp_path / "two", config=CONFIG, part=1, parts=2).run(Echo())
    rest = Echo()
    Recaptioning(str(source), tmp_path / "two", config=CONFIG).run(rest)
    assert len(rest.asked) == 2 + 3
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_finished_set_is_not_asked_for_again_and_a_lost_shard_is_made_of_its_journal(tmp_path):
    source = write_shards(tmp_path / "in", [3, 3])
    making = Recaptioning(str(source), tmp_path / "out", config=CONFIG)
    making.run(Echo())
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "shard-000001.tar").unlink()
    again = Echo()
    assert Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(again)["complete"]
    assert not again.asked and contents(tmp_path / "out") == before


def run_against(url, source, out):
    captioner = OpenAICaptioner("tiny", config=CONFIG.caption, server=ServerConfig(base_url=url, concurrency=3))
    Recaptioning(str(source), out, config=CONFIG).run(captioner)


def test_killed_at_any_moment_and_run_again_it_is_as_if_unbroken(tmp_path):
    """SIGKILL on the arrival of certain requests; a run loses no more than the requests in flight."""
    source = write_shards(tmp_path / "in", [7, 4, 6])
    with CaptionServer() as server:
        run_against(server.url, source, tmp_path / "unbroken")
        assert len(server.requests) == 17
    victims = []
    kills = {2, 5, 6, 11, 13, 16, 18, 19, 23, 27}

    def kill(number, body):
        if number in kills:
            os.kill(victims[-1].pid, signal.SIGKILL)
        return "good"

    with CaptionServer(kill) as server:
        while not victims or victims[-1].exitcode != 0:
            assert len(victims) <= len(kills), victims
            process = multiprocessing.get_context("fork").Process(
                target=run_against, args=(server.url, source, tmp_path / "killed")
            )
            victims.append(process)
            process.start()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
        assert len(victims) > 5
        assert 17 <= len(server.requests) <= 17 + 3 * (len(victims) - 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_a_server_in_trouble_gives_the_captions_of_one_that_is_well(tmp_path):
    source = write_shards(tmp_path / "in", [5, 6])
    troubles = [(500, {}), "close", (429, {"Retry-After": "3"}), b"{broken", (503, {}), completion("A")[:20]]
    with CaptionServer(lambda n, body: troubles[n % 12] if n % 12 < len(troubles) else "good") as server:
        captioner = OpenAICaptioner(
            "tiny",
            config=CONFIG.caption,
            server=ServerConfig(base_url=server.url, concurrency=4, tries=40),
            sleep=lambda seconds: None,
            clock=lambda: 0.0,
        )
        Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(captioner)
        captions = {caption_of(picture_in(body)) for body in server.requests}
    found = samples(tmp_path / "out")
    assert {sample.caption for sample in found} == captions and len(captions) == 11
    assert all(sample.record["original_caption"] == f"old caption {int(sample.key)}" for sample in found)


def test_a_model_that_goes_away_stops_the_run_and_costs_no_caption(tmp_path):
    source = write_shards(tmp_path / "in", [10])
    gone = Echo(lambda request: FAILED if request.position >= 4 else "A dog.")
    with pytest.raises(CaptionerGone, match=r"3 samples in a row.*trouble"):
        Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(gone, stop_after=3)
    assert len(gone.asked) == 7
    back = Echo(lambda request: "A dog.")
    report = Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(back, stop_after=3)
    assert back.asked == [f"{number:04d}" for number in range(4, 10)]
    assert report["recaptioned"] == 10 and not report["kept"]


def test_a_model_that_never_answers_leaves_no_shard_of_failures(tmp_path):
    source = write_shards(tmp_path / "in", [3])
    with pytest.raises(CaptionerGone):
        Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(Echo(lambda request: FAILED))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_single_failures_between_answers_do_not_stop_the_run(tmp_path):
    source = write_shards(tmp_path / "in", [9])
    echo = Echo(lambda request: FAILED if request.position % 3 else "A dog.")
    report = Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(echo, stop_after=3)
    assert report["kept"] == {"failed": 6} and report["recaptioned"] == 3


def test_a_server_that_refuses_the_key_stops_the_run(tmp_path):
    source = write_shards(tmp_path / "in", [9])
    with CaptionServer(lambda number, body: (401, {})) as server, pytest.raises(CaptionerUnusable, match="401"):
        run_against(server.url, source, tmp_path / "out")


def test_other_settings_or_another_input_are_not_mixed_in(tmp_path):
    source = write_shards(tmp_path / "in", [2])
    Recaptioning(str(source), tmp_path / "out", config=CONFIG).run(Echo())
    other = RecaptionConfig(model="large", prompt=CONFIG.prompt)
    with pytest.raises(ValueError, match="model is large, there tiny"):
        Recaptioning(str(source), tmp_path / "out", config=other)
    with pytest.raises(ValueError, match="input"):
        Recaptioning(str(write_shards(tmp_path / "in2", [2])), tmp_path / "out", config=CONFIG)


def test_what_cannot_be_input_or_output_is_said(tmp_path):
    source = write_shards(tmp_path / "in", [2])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(0))
    with pytest.raises(ValueError, match="make-shards"):
        Recaptioning(str(tmp_path / "pictures"), tmp_path / "out", config=CONFIG)
    with pytest.raises(ValueError, match="choose another"):
        Recaptioning(str(source), source, config=CONFIG)
    with pytest.raises(ValueError, match="other shards"):
        Recaptioning(str(source), write_shards(tmp_path / "else", [1]), config=CONFIG)
    with pytest.raises(ValueError, match="part is 2 of 2"):
        Recaptioning(str(source), tmp_path / "out", config=CONFIG, part=2, parts=2)
