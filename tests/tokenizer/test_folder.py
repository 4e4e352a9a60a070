"""Model folders: one file or shards, whole or refused, mapped and never written through."""

import hashlib
import json
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tokenizer.killed_saves import constant, outcome
from tokenflow import TokenFlowTokenizer
from tokenflow.nn.folder import INDEX_FILE, WEIGHTS_FILE, read_weights, save_folder
from tokenflow.tokenizer.presets import preset, teacher_preset

SHARD = "1MB"
"""Cuts the nano tokenizer's 3.7 MB into four files."""


@pytest.fixture(scope="module")
def tokenizer():
    return TokenFlowTokenizer(preset("tokenflow-nano")).eval()


@pytest.fixture
def sharded(tokenizer, tmp_path):
    return tokenizer.save_pretrained(tmp_path / "sharded", max_shard_size=SHARD)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def test_shards_have_hugging_faces_names_and_index_and_load_the_same(tokenizer, sharded):
    assert files(sharded) == [
        "README.md",
        "config.json",
        *(f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)),
        "model.safetensors.index.json",
    ]
    index = json.loads((sharded / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tokenizer.state_dict().values())
    assert set(index["weight_map"]) == set(tokenizer.state_dict())
    assert all((sharded / name).stat().st_size < 1.05e6 for name in set(index["weight_map"].values()))
    assert equal(TokenFlowTokenizer.from_pretrained(sharded), tokenizer)


def test_weights_may_be_read_by_whoever_may_read_the_configuration(sharded):
    assert len({path.stat().st_mode for path in sharded.iterdir()}) == 1


def test_transformers_reads_the_same_tensors_from_the_shards(tokenizer, sharded):
    from huggingface_hub import load_state_dict_from_file
    from transformers.utils.hub import get_checkpoint_shard_files

    shards, index = get_checkpoint_shard_files(str(sharded), str(sharded / INDEX_FILE))
    state = {name: value for shard in shards for name, value in load_state_dict_from_file(shard).items()}
    assert sorted(state) == sorted(index["all_checkpoint_keys"])
    assert all(torch.equal(state[name], value) for name, value in tokenizer.state_dict().items())


@pytest.mark.parametrize(("before", "after"), [(SHARD, "5GB"), ("5GB", SHARD), ("500KB", SHARD), (SHARD, 2_000_000)])
def test_a_save_leaves_nothing_of_the_one_before(tokenizer, tmp_path, before, after):
    constant(0.0).save_pretrained(tmp_path / "folder", max_shard_size=before)
    tokenizer.save_pretrained(tmp_path / "folder", max_shard_size=after)
    tokenizer.save_pretrained(tmp_path / "fresh", max_shard_size=after)
    assert files(tmp_path / "folder") == files(tmp_path / "fresh")
    assert digests(tmp_path / "folder") == digests(tmp_path / "fresh")
    assert equal(TokenFlowTokenizer.from_pretrained(tmp_path / "folder"), tokenizer)


def test_a_save_killed_at_any_step_leaves_the_old_the_new_or_a_clear_error(tmp_path):
    sizes = ["5GB:5GB", "5GB:1MB", "1MB:1MB", "1MB:5GB"]
    command = [sys.executable, "-m", "tests.tokenizer.killed_saves", str(tmp_path / "folder"), *sizes]
    outcomes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for counts in outcomes.values():
        assert set(counts) <= {"old", "new", "refused"}
        assert counts["old"] >= 1 and counts["new"] >= 1
    # Training writes one file over one file: there a model survives whatever happens.
    assert "refused" not in outcomes["5GB:5GB"]


def test_a_reader_never_mixes_two_saves(tmp_path):
    models = [constant(0.0), constant(1.0)]
    models[0].save_pretrained(tmp_path, max_shard_size=SHARD)
    done = threading.Event()

    def write():
        for number in range(1, 25):
            models[number % 2].save_pretrained(tmp_path, max_shard_size=SHARD)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(outcome(tmp_path))
    writer.join()
    assert seen <= {"old", "new", "refused"}
    assert outcome(tmp_path) == "old"  # the last number is even


MEASURE = """
import sys, torch
from tokenflow import TokenFlowTokenizer

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

TokenFlowTokenizer.from_pretrained(sys.argv[1])  # imports and small allocations are not the model's
anonymous, peak = kilobytes("RssAnon"), kilobytes("VmHWM")
tokenizer = TokenFlowTokenizer.from_pretrained(sys.argv[2])
print((kilobytes("RssAnon") - anonymous) / 1024)
total = sum(value.sum() for value in tokenizer.parameters())
print((kilobytes("RssAnon") - anonymous) / 1024, (kilobytes("VmHWM") - peak) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", ["5GB", "200MB"])
def test_loading_maps_the_files_and_does_not_double_memory(tmp_path, size):
    small = TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path / "small")
    large = preset("tokenflow-nano", codebook_size=4_000_000)
    folder = TokenFlowTokenizer(large).save_pretrained(tmp_path / "large", max_shard_size=size)
    megabytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    assert megabytes > 300 and (folder / INDEX_FILE).exists() == (size != "5GB")
    command = [sys.executable, "-c", MEASURE, str(small), str(folder)]
    loaded, read, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    # Anonymous memory is what a copy would need; the mapped pages are the files' own.
    assert loaded < 0.05 * megabytes and read < 0.05 * megabytes, (loaded, read, megabytes)
    assert peak < 1.1 * megabytes, (peak, megabytes)


@pytest.mark.parametrize("size", ["5GB", SHARD])
def test_training_a_loaded_tokenizer_changes_its_weights_and_not_the_files(tokenizer, tmp_path, size):
    folder = tokenizer.save_pretrained(tmp_path, max_shard_size=size)
    before = digests(folder)
    loaded = TokenFlowTokenizer.from_pretrained(folder).train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    output = loaded(torch.rand(2, 3, 32, 32) * 2 - 1)
    (output.reconstruction.square().mean() + output.codebook_loss).backward()
    optimizer.step()
    with torch.no_grad():
        loaded.quantizer.quantizer.codebook_0.add_(1.0)
    assert not torch.equal(loaded.quantizer.quantizer.codebook_0, tokenizer.quantizer.quantizer.codebook_0)
    assert digests(folder) == before
    assert equal(TokenFlowTokenizer.from_pretrained(folder), tokenizer)


def test_a_tokenizer_may_be_saved_over_the_folder_it_is_mapped_from(tokenizer, sharded):
    loaded = TokenFlowTokenizer.from_pretrained(sharded)
    with torch.no_grad():
        loaded.quantizer.quantizer.codebook_0.mul_(2.0)
    loaded.save_pretrained(sharded, max_shard_size="2MB")
    again = TokenFlowTokenizer.from_pretrained(sharded)
    assert equal(again, loaded)
    assert torch.equal(again.quantizer.quantizer.codebook_0, tokenizer.quantizer.quantizer.codebook_0 * 2)


def test_the_device_is_where_the_weights_go(sharded):
    loaded = TokenFlowTokenizer.from_pretrained(sharded, device="cpu")
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}
    if torch.cuda.is_available():
        loaded = TokenFlowTokenizer.from_pretrained(sharded, device="cuda")
        assert {value.device.type for value in loaded.state_dict().values()} == {"cuda"}


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00004\.safetensors is missing"):
        TokenFlowTokenizer.from_pretrained(sharded)


def test_an_index_that_names_other_tensors_is_refused(sharded):
    index = json.loads((sharded / INDEX_FILE).read_text())
    for name, places in (
        ("absent.weight", index["weight_map"] | {"absent.weight": "model-00001-of-00004.safetensors"}),
        ("codebook_0", {key: place for key, place in index["weight_map"].items() if not key.endswith("codebook_0")}),
    ):
        (sharded / INDEX_FILE).write_text(json.dumps(index | {"weight_map": places}))
        with pytest.raises(ValueError, match=rf"does not hold what {INDEX_FILE} says.*{name}"):
            TokenFlowTokenizer.from_pretrained(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(sharded, text):
    (sharded / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is not an index"):
        TokenFlowTokenizer.from_pretrained(sharded)


def test_an_index_cannot_reach_out_of_its_folder(sharded):
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="of its own folder"):
        TokenFlowTokenizer.from_pretrained(sharded)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"version https://git-lfs.github.com/spec/v1\noid"])
def test_a_wrong_weight_file_is_named(tokenizer, tmp_path, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors \(\d+ bytes\) is damaged or not safetensors") as raised:
        TokenFlowTokenizer.from_pretrained(tmp_path)
    assert ("git lfs pull" in str(raised.value)) == content.startswith(b"version")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_weight_file_is_named(tokenizer, sharded, share):
    path = sharded / "model-00003-of-00004.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model-00003-of-00004\.safetensors .* is damaged"):
        TokenFlowTokenizer.from_pretrained(sharded)


def test_weights_of_another_configuration_are_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    state = dict(tokenizer.state_dict())
    name = "quantizer.quantizer.codebook_0"
    save_file(state | {name: torch.zeros(3, 16)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"codebook_0 has shape \(3, 16\).*says \(1024, 16\)"):
        TokenFlowTokenizer.from_pretrained(tmp_path)
    del state[name]
    save_file(state | {"more": torch.zeros(1)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"1 tensors missing .*codebook_0.*1 unexpected \['more'\]"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


def test_a_folder_without_weights_says_so(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", ['{"model_type": "llama"}', "[1]", "{not json"])
def test_a_folder_of_something_else_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config\.json (has no key 'tokenizer', but|is not JSON)"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"library": "tokenflow", "generator": {}}, "a model that paints: `tokenflow generate`"),
        ({"library": "tokenflow", "multimodal": {}}, "a model that sees: `tokenflow chat`"),
        ({"model_type": "llama"}, "a llama of transformers: `--language`"),
    ],
)
def test_another_kind_of_our_folders_is_called_by_its_name(tmp_path, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        TokenFlowTokenizer.from_pretrained(tmp_path)


def test_a_teacher_is_not_taken_for_a_save_that_was_interrupted(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"It is a teacher, which `model\.pretrained`"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


def test_half_precision_is_told_and_computed_with_in_full(tokenizer, tmp_path, caplog):
    tokenizer.save_pretrained(tmp_path)
    state = {name: value.half() for name, value in load_file(tmp_path / WEIGHTS_FILE).items()}
    save_file(state, tmp_path / WEIGHTS_FILE)
    found = TokenFlowTokenizer.from_pretrained(tmp_path)
    assert "holds float16 weights, used as float32" in caplog.text
    assert {value.dtype for value in found.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_an_absent_folder_of_the_demo_leads_to_that_of_a_quick_one(tmp_path):
    there = tmp_path / "demo" / "quick" / "tokenizer" / "model"
    with pytest.raises(FileNotFoundError, match=r"`make demo` wrote\.$"):
        TokenFlowTokenizer.from_pretrained(tmp_path / "demo" / "tokenizer" / "model")
    there.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"Did you mean {there}"):
        TokenFlowTokenizer.from_pretrained(tmp_path / "demo" / "tokenizer" / "model")


def test_a_revision_is_for_the_hub_only(sharded):
    with pytest.raises(ValueError, match="local folder and has no revision 'main'"):
        TokenFlowTokenizer.from_pretrained(sharded, revision="main")


def test_bf16_weights_and_integers_survive(tmp_path):
    state = {"a": torch.randn(3, 4).bfloat16(), "b": torch.arange(5), "c": torch.randn(6, 2).T}
    save_folder(tmp_path, state=state, description={"thing": 1}, card="", max_shard_size=30)
    loaded = read_weights(tmp_path)
    assert {name: value.dtype for name, value in loaded.items()} == {name: v.dtype for name, v in state.items()}
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_the_model_card_says_what_it_is_and_how_to_load_it(tmp_path):
    model = TokenFlowTokenizer(preset("tokenflow-nano"))
    model.teacher = teacher_preset("nano", pretrained="runs/teacher")
    card = (model.save_pretrained(tmp_path, metrics={"PSNR": 21.34567}) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: tokenflow\n")
    count = sum(parameter.numel() for parameter in model.parameters())
    for fact in ("tokenflow-nano", "32 x 32 pixels", "85, scales 1, 2, 4, 8", "1,024 entries", f"{count:,}"):
        assert fact in card
    for fact in ("runs/teacher", "from_pretrained", "arxiv.org/abs/2412.03069", "Apache", "| PSNR | 21.346 |"):
        assert fact in card
