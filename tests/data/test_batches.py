"""Memory that batches share is used again and again, and no batch sees another's pictures."""

import pickle

import numpy as np
import pytest
import torch

from tokenflow.data import DataConfig, Loader, SourceConfig, write_shapes
from tokenflow.data.batches import SharedBatches, Stack, present, stack
from tokenflow.data.sources import Sample
from tokenflow.data.transforms import to_tensor


def samples(count, *, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Sample(pixels=pixels[n], caption=f"{n}", key=f"{n}", seed=n + (1 << 62), record=None) for n in range(count)]


def test_a_batch_holds_its_samples_pictures_flipped_ones_too():
    some = samples(3)
    some[1] = Sample(**{**vars(some[1]), "pixels": some[1].pixels[:, ::-1]})
    batch = present(*stack(some))
    expected = to_tensor(torch.from_numpy(np.stack([sample.pixels for sample in some])))
    assert torch.equal(batch["images"], expected) and batch["images"].is_contiguous()
    assert batch["sample_seed"].tolist() == [sample.seed for sample in some]
    assert batch["captions"] == ["0", "1", "2"] and "records" not in batch


def test_shared_memory_gives_the_same_batch_and_is_used_again():
    stacking = Stack(SharedBatches((3, 3, 8, 8), count=2))
    for number in range(5):
        some = samples(3, seed=number)
        stored, batch = stacking(some, number)
        assert stored == number
        assert torch.equal(present(stacking.find(stored), batch)["images"], present(*stack(some))["images"])
    assert stacking.find(4).data_ptr() == stacking.find(0).data_ptr() != stacking.find(1).data_ptr()


def test_pictures_of_another_size_are_not_squeezed_into_shared_memory():
    with pytest.raises(ValueError):
        Stack(SharedBatches((3, 3, 16, 16), count=2))(samples(3), 0)


def test_codes_are_sent_as_they_are():
    some = [Sample(pixels=None, caption="", key="", seed=0, record={"a": 1}, codes=np.arange(5)) for _ in range(2)]
    stored, batch = Stack(None)(some, 7)
    batch = present(*pickle.loads(pickle.dumps((stored, batch))))
    assert batch["codes"].tolist() == [[0, 1, 2, 3, 4]] * 2 and batch["records"] == [{"a": 1}] * 2


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (3, 2)])
def test_pictures_kept_from_many_batches_are_still_their_own(tmp_path, workers, prefetch):
    write_shapes(tmp_path, num_samples=40, image_size=16, seed=0)

    def read(**options):
        config = DataConfig(
            sources=(SourceConfig(path=str(tmp_path)),), image_size=16, crop="random", flip_probability=0.5, **options
        )
        loader = Loader(config, global_batch_size=4, micro_batch_size=2, seed=0)
        try:
            return [next(loader)[0] for _ in range(60)]
        finally:
            loader.close()

    for found, expected in zip(read(num_workers=workers, prefetch_batches=prefetch), read(), strict=True):
        assert found["keys"] == expected["keys"] and torch.equal(found["images"], expected["images"])
        assert torch.equal(found["sample_seed"], expected["sample_seed"])
