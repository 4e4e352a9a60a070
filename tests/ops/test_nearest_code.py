from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.threads import torch_threads
from tokenflow.ops import nearest_code as module
from tokenflow.ops.nearest_code import full_precision_matmul, nearest_code


def problem(num_tokens, codebook_size, widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(num_tokens, width, generator=generator) for width in widths]
    codebooks = [torch.randn(codebook_size, width, generator=generator) for width in widths]
    return features, codebooks


def naive(features, codebooks, weights):
    total = 0
    for feature, codebook, weight in zip(features, codebooks, weights, strict=True):
        difference = F.normalize(feature.double(), dim=1)[:, None] - F.normalize(codebook.double(), dim=1)[None]
        total = total + weight * difference.pow(2).sum(2)
    return total


def assert_nearest(indices, features, codebooks, weights):
    distances = naive(features, codebooks, weights)
    assert indices.dtype == torch.int64
    chosen = distances.gather(1, indices[:, None])[:, 0]
    assert (chosen - distances.min(1).values).max() < 1e-5 * sum(weights)


@settings(max_examples=40)
@given(
    num_tokens=st.integers(1, 40),
    codebook_size=st.integers(1, 300),
    branches=st.lists(st.tuples(st.integers(2, 33), st.floats(0.1, 4.0)), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_result_is_the_naive_argmin(num_tokens, codebook_size, branches, seed):
    widths, weights = zip(*branches, strict=True)
    features, codebooks = problem(num_tokens, codebook_size, widths, seed)
    assert_nearest(nearest_code(features, codebooks, weights=weights), features, codebooks, weights)
    assert_nearest(nearest_code(features, codebooks, weights=weights, backend="dense"), features, codebooks, weights)


@settings(max_examples=20)
@given(rows=st.integers(1, 70), columns=st.integers(1, 400))
def test_result_does_not_depend_on_block_sizes(rows, columns):
    features, codebooks = problem(65, 333, (8, 4))
    queries = module._packed(features, (1.0, 1.0))
    expected = nearest_code(features, codebooks, weights=(1.0, 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CPU_ROWS", rows)
        patch.setattr(module, "_CPU_SCORES", rows * columns)
        assert torch.equal(module._search_blocked(queries, codebooks, (1.0, 1.0)), expected)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_ties_go_to_the_lowest_index_across_blocks_and_threads(backend, num_threads):
    # Signed axes: every cosine is exactly -1, 0 or 1, and each code comes many times.
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    codebook = axes.repeat(5000, 1)
    with torch_threads(num_threads):
        assert nearest_code([axes], [codebook], weights=(1.0,), backend=backend).tolist() == list(range(8))


def test_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(module, "_CPU_MAX_COLUMNS", 128)
    features, codebooks = problem(50, 1000, (8, 4))
    expected = nearest_code(features, codebooks, weights=(1.0, 1.0), backend="dense")
    for number in (1, 2, 3, 7, 20):
        with torch_threads(number):
            assert torch.equal(nearest_code(features, codebooks, weights=(1.0, 1.0)), expected)


def test_number_of_threads_is_restored_after_searches_side_by_side_and_after_an_error(monkeypatch):
    monkeypatch.setattr(module, "_CPU_MAX_COLUMNS", 128)
    features, codebooks = problem(50, 1000, (8,))
    expected = nearest_code(features, codebooks, weights=(1.0,))
    with torch_threads(3):
        with ThreadPoolExecutor(4) as pool:
            searches = [pool.submit(nearest_code, features, codebooks, weights=(1.0,)) for _ in range(8)]
            assert all(torch.equal(search.result(), expected) for search in searches)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(module, "_update_few", None)
        with pytest.raises(TypeError):
            nearest_code(features, codebooks, weights=(1.0,))
        assert torch.get_num_threads() == 3


def test_search_on_several_threads_builds_no_graph(monkeypatch):
    monkeypatch.setattr(module, "_CPU_MAX_COLUMNS", 128)
    features, codebooks = problem(50, 1000, (8,))
    codebooks[0].requires_grad_()
    with torch_threads(2):
        assert not nearest_code(features, codebooks, weights=(1.0,)).requires_grad


def test_update_without_host_synchronisation_gives_the_same_result(monkeypatch):
    features, codebooks = problem(50, 3000, (8, 4))
    expected = nearest_code(features, codebooks, weights=(1.0, 2.0))
    monkeypatch.setattr(module, "_update_few", module._update_all)  # what an accelerator runs
    monkeypatch.setattr(module, "_CPU_MAX_COLUMNS", 256)
    assert torch.equal(nearest_code(features, codebooks, weights=(1.0, 2.0)), expected)


def test_scale_of_features_and_codes_is_irrelevant():
    features, codebooks = problem(30, 100, (8, 4))
    expected = nearest_code(features, codebooks, weights=(1.0, 1.0))
    # Powers of two, so that the normalised values are the same bits.
    scaled = nearest_code([f * 8 for f in features], [e * 0.25 for e in codebooks], weights=(1.0, 1.0))
    assert torch.equal(scaled, expected)


def test_weights_choose_between_branches():
    features = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    codebooks = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    assert nearest_code(features, codebooks, weights=(2.0, 1.0)).item() == 0
    assert nearest_code(features, codebooks, weights=(1.0, 2.0)).item() == 1
    assert nearest_code(features, codebooks, weights=(0.0, 1.0)).item() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_searched_in_fp32(dtype):
    features, codebooks = problem(200, 4096, (32, 8))
    features, codebooks = [f.to(dtype) for f in features], [e.to(dtype) for e in codebooks]
    expected = nearest_code([f.float() for f in features], [e.float() for e in codebooks], weights=(1.0, 1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(features, codebooks, weights=(1.0, 1.0)), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matmul_precision_of_the_process_is_ignored_and_kept(precision):
    features, codebooks = problem(200, 4096, (32, 8))
    expected = nearest_code(features, codebooks, weights=(1.0, 1.0))
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(nearest_code(features, codebooks, weights=(1.0, 1.0)), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_matmul_precision_is_restored_after_an_error():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="inside"), full_precision_matmul():
        raise RuntimeError("inside")
    assert torch.get_float32_matmul_precision() == before


def test_no_tokens_give_no_indices():
    features, codebooks = problem(0, 10, (4,))
    assert nearest_code(features, codebooks, weights=(1.0,)).shape == (0,)


def test_non_finite_features_give_an_index_in_range():
    features, codebooks = problem(3, 2000, (4,))
    features[0][1] = torch.nan
    indices = nearest_code(features, codebooks, weights=(1.0,))
    assert ((indices >= 0) & (indices < 2000)).all()


@pytest.mark.parametrize(
    ("features", "codebooks", "weights", "message"),
    [
        ([], [], (), "at least one"),
        ([(3, 4)], [(5, 4)], (1.0, 1.0), "same number"),
        ([(3, 4)], [(5, 3)], (1.0,), "Fix code_widths"),
        ([(3, 4), (3, 2)], [(5, 4), (6, 2)], (1.0, 1.0), "same size"),
        ([(3, 4)], [(5, 4)], (-1.0,), "Fix distance_weights"),
        ([(3, 4)], [(5, 4)], (0.0,), "Fix distance_weights"),
    ],
)
def test_disagreeing_inputs_are_refused(features, codebooks, weights, message):
    with pytest.raises(ValueError, match=message):
        nearest_code([torch.ones(s) for s in features], [torch.ones(s) for s in codebooks], weights=weights)


def test_unknown_backend_is_refused():
    features, codebooks = problem(3, 5, (4,))
    with pytest.raises((ValueError, TypeError), match="'blocked'"):  # TypeError where annotations are checked
        nearest_code(features, codebooks, weights=(1.0,), backend="fused")
