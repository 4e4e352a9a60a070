import pytest
import torch

from tokenflow.evaluation import weights
from tokenflow.evaluation.measure import NotMeasured


@pytest.fixture
def empty_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def random_lpips():
    lpips = pytest.importorskip("lpips")
    return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()


def torchvision_names(network) -> dict[str, torch.Tensor]:
    trunk = {key: value for key, value in network.state_dict().items() if key.startswith("net.")}
    return {"features." + ".".join(key.split(".")[2:]): value for key, value in trunk.items()}


def test_measures_without_weights_say_where_to_put_them(empty_hub):
    for loaded, file_name in (
        (weights.load_lpips(), weights.VGG16_FILE),
        (weights.load_inception(), weights.INCEPTION_FILE),
    ):
        assert isinstance(loaded, NotMeasured)
        assert file_name in loaded.reason and str(empty_hub) in loaded.reason and "https://" in loaded.reason


def test_a_given_path_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not found"):
        weights.load_lpips(tmp_path / "absent.pth")


def test_lpips_from_torchvision_weights_in_the_cache_equals_the_package(empty_hub, random_lpips):
    empty_hub.mkdir(parents=True)
    torch.save(torchvision_names(random_lpips), empty_hub / weights.VGG16_FILE)
    distance = weights.load_lpips()
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    expected = random_lpips(a, b).flatten()
    assert torch.allclose(distance(a, b), expected, atol=1e-6)
    assert distance(a, b).shape == (2,)


def test_lpips_weights_of_another_network_are_named(tmp_path, random_lpips):
    torch.save({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lack .*features\.2\.weight"):
        weights.load_lpips(tmp_path / "other.pth")


def test_a_file_that_needs_unpickling_is_refused(tmp_path):
    torch.save({"weights": torch.nn.Linear(2, 2)}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="never unpickled"):
        weights.load_lpips(tmp_path / "pickle.pth")


@pytest.mark.slow
def test_inception_from_a_file_gives_pool_features(tmp_path):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        """The library's network with its construction-time download answered by its own initial values."""

        def load_state_dict(self, state, **kwargs):
            return super().load_state_dict(self.state_dict() | state)

    empty = tmp_path / "empty.pth"
    torch.save({}, empty)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))
    path = tmp_path / "inception.pth"
    torch.save(network.state_dict(), path)
    features = weights.load_inception(path)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(features(images), network(images)[0])
    assert features(images).shape == (2, 2048)
