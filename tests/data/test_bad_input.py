"""Everything bad at once, from a folder and from a tar: each sample gets its handling and its line in the report."""

import io
import json
import tarfile

import pytest
from PIL import Image

from tests.data.made_shards import make
from tests.data.test_picture_check import animated, cmyk, encoded, grey_16_bit, noise, png_of_size, rgb_16_bit, rotated
from tokenflow.cli import main
from tokenflow.data.transforms import decode_image

JPEG = encoded(noise(96, 80), "JPEG")
GARBLED = bytearray(encoded(noise(96, 80, seed=1), "PNG"))
GARBLED[len(GARBLED) // 2] ^= 1

LEFT_OUT = {
    "corrupt": bytes(GARBLED),
    "truncated": JPEG[: len(JPEG) // 2],
    "empty": b"",
    "not_a_picture": b"<html>404 not found</html>",
    "bomb": png_of_size(60_000, 60_000),
}
"""Code in the report -> a picture that is left out."""
MENDED = {
    "cmyk": cmyk(),
    "16-bit": grey_16_bit(),
    "16-bit rgb": rgb_16_bit(),
    "animated": animated(),
    "rotated": rotated(),
    "alpha": encoded(noise(channels=4), "PNG"),
}
"""Code in the report -> a picture that is stored as training would see it."""
CAPTION = "ein schönes Café".encode("cp1252")


def samples():
    """(name, picture, code) of everything, a good one among them."""
    found = [("good", encoded(noise(seed=9), "PNG"), None)]
    for code, content in (LEFT_OUT | MENDED).items():
        found.append((code.replace("-", "_").replace(" ", "_"), content, code.split()[0]))
    return found


def write_folder(folder):
    folder.mkdir()
    for name, content, _ in samples():
        (folder / f"{name}.png").write_bytes(content)
        (folder / f"{name}.txt").write_bytes(CAPTION if name == "good" else b"a caption")
    return folder, "good"


def write_tar(folder):
    """Names in it would write outside of the folder that it is unpacked in."""
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for name, content, _ in samples():
            for ending, member in (("png", content), ("txt", CAPTION if name == "good" else b"a caption")):
                info = tarfile.TarInfo(f"../../etc/{name}.{ending}")
                info.size = len(member)
                archive.addfile(info, io.BytesIO(member))
    return folder, "etc/good"


@pytest.mark.parametrize("write", [write_folder, write_tar])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_input_gets_its_handling_and_its_line_in_the_report(tmp_path, write, workers, capsys):
    source, good = write(tmp_path / "in")
    report, found = make(source, tmp_path / "out", workers=workers)
    assert report["read"] == len(samples()) and report["dropped"] == dict.fromkeys(sorted(LEFT_OUT), 1)
    assert report["written"] == len(found) == 1 + len(MENDED)
    changed = {"cmyk": 1, "16-bit": 2, "animated": 1, "rotated": 1, "alpha": 1, "caption_recoded": 1}
    assert {code: report["changed"][code] for code in changed} == changed
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    said = {line["key"].rpartition("/")[2]: line for line in lines}
    for name, content, code in samples():
        line = said[name]
        if code in LEFT_OUT:
            assert line["dropped"] == code and line["detail"]
            continue
        assert (code or "caption_recoded") in line["changed"]
        sample = next(sample for key, sample in found.items() if key.rpartition("/")[2] == name)
        picture = next(sample[ending] for ending in ("jpg", "png") if ending in sample)
        stored = Image.open(io.BytesIO(picture))
        assert (
            stored.mode == "RGB" and stored.size == decode_image(content).size and getattr(stored, "n_frames", 1) == 1
        )
        # names cannot leave the folder any more
        assert not sample["__key__"].startswith(("/", ".")) and ".." not in sample["__key__"]
        if write is write_tar:
            assert "renamed" in line["changed"] and json.loads(sample["json"])["original_key"] == f"../../etc/{name}"
    assert found[good]["txt"].decode() == "ein schönes Café"
    # what comes out of it is as good as new
    assert main(["inspect-shards", str(tmp_path / "out"), "--image_size", "16", "--batch_size", "2"]) == 0
    assert "cannot be used" not in capsys.readouterr().out


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_inspecting_and_finding_faces_name_what_cannot_be_used(tmp_path, write, capsys):
    source, _ = write(tmp_path / "in")
    pytest.importorskip("skimage")
    assert main(["find-faces", str(source), "--json", "--workers", "1"]) == 0
    unknown = json.loads(capsys.readouterr().out)["unknown"]
    assert main(["inspect-shards", str(source), "--json", "--image_size", "16", "--batch_size", "2"]) == 0
    reasons = json.loads(capsys.readouterr().out)["unusable_by_reason"]
    assert reasons == unknown == dict.fromkeys(LEFT_OUT, 1)
