"""The weight rule and the pictures are the ones the golden values were made with."""

import gzip
import json

import pytest
import torch

from tests.parity.fixtures import (
    KEYS_FILE,
    SLICES,
    SLICES_FOLDER,
    TOKENIZERS,
    fill,
    goldens,
    images,
    key_manifest,
    shared_json,
    to_input,
    weight,
)


def test_weight_rule_gives_probed_values():
    torch.testing.assert_close(
        weight("encoder.conv_in.weight", (128, 3, 3, 3)).flatten()[:4],
        torch.tensor([-0.05121306702494621, 0.0880952924489975, 0.09489051252603531, 0.0930538922548294]),
        atol=1e-7,
        rtol=0,
    )
    torch.testing.assert_close(
        weight("encoder.conv_in.weight", (128, 3, 3, 3), offset=1).flatten()[:4],
        torch.tensor([0.2886941730976105, -0.07520116865634918, -0.07503034174442291, -0.17604385316371918]),
        atol=1e-7,
        rtol=0,
    )


def test_weight_rule_gives_every_probed_tensor():
    for key, probe in (shared_json("weight_probe.json") or {}).items():
        for offset in (0, 1):
            if f"offset{offset}" in probe:
                made = weight(key, tuple(probe["shape"]), offset=offset)
                # Not the sums: three keys name tensors of another shape in another tokenizer.
                assert made.flatten()[:4].tolist() == pytest.approx(probe[f"offset{offset}"]["first4"], abs=1e-6), key


def test_constants_and_integers_stay():
    state = {"bn.running_var": torch.ones(3), "bn.num_batches_tracked": torch.tensor(7), "bn.weight": torch.zeros(3)}
    filled = fill(state)
    assert filled["bn.running_var"].tolist() == [1, 1, 1]
    assert filled["bn.num_batches_tracked"].item() == 7
    assert filled["bn.weight"].sub(1).abs().max() < 0.2


@pytest.mark.parametrize(
    "golden", [*goldens("patchgan"), *(p for p in goldens("clip_teacher_target") if p.values[0].whole)]
)
def test_picture_formula_gives_stored_pictures(golden):
    stored = golden.array("image_u8")
    seeds = [seed for seed in range(32) if torch.equal(images(len(stored), stored.shape[1], seed), stored)]
    assert len(seeds) == 1
    assert to_input(stored).shape == (len(stored), 3, *stored.shape[1:3])
    assert to_input(stored).abs().max() <= 1


def test_kept_files_stay_small():
    assert sum(path.stat().st_size for path in SLICES_FOLDER.iterdir()) < 2**20


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_cut_from_the_whole_arrays(name):
    found = {golden.whole: golden for golden in (p.values[0] for p in goldens(name)) if golden.offset == 0}
    assert False in found, f"{name} is not kept; run python -m tests.parity.fixtures"
    for key, where in SLICES[name].items():
        kept = found[False].array(key)
        if True in found:
            whole = found[True].array(key)
            assert torch.equal(kept, whole[where] if whole.ndim else whole), key


@pytest.mark.parametrize("name", TOKENIZERS)
def test_kept_key_manifests_are_the_whole_sets(name):
    kept = json.loads(gzip.decompress(KEYS_FILE.read_bytes()))[name]
    whole = shared_json(f"keys_tokenizer_{name}.json")
    assert list(kept.items()) == list(key_manifest(name).items())
    assert whole is None or list(kept.items()) == list(whole.items())
