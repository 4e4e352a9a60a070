import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tokenflow.nn.rope import check_rope_scaling, inverse_frequencies, rotary_tables, rotate

WIDTH = 16
SCALINGS = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


def tables(positions, scaling=None, theta=10000.0):
    return rotary_tables(positions, inverse_frequencies(WIDTH, theta=theta, scaling=scaling, device="cpu"))


@pytest.mark.parametrize("name", SCALINGS)
def test_rotation_equals_that_of_transformers(name):
    scaling = SCALINGS[name]
    parameters = {"rope_theta": 5e5, **(scaling or {"rope_type": "default"})}
    config = LlamaConfig(
        hidden_size=WIDTH * 2, num_attention_heads=2, rope_parameters=parameters, max_position_embeddings=2048
    )
    positions = torch.stack([torch.arange(0, 900, 90), torch.arange(5, 15)])
    x = torch.randn(2, 10, 2, WIDTH)
    cosine, sine = LlamaRotaryEmbedding(config)(x, positions)
    expected, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cosine, sine)
    found = rotate(x, *tables(positions, scaling, theta=5e5))
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=2e-6, rtol=1e-6)


def test_pairs_are_turned_by_position_times_frequency():
    x = torch.zeros(1, 1, 1, WIDTH)
    x[..., 3] = 1.0
    found = rotate(x, *tables(torch.tensor([[7]])))[0, 0, 0]
    angle = 7 / 10000 ** (2 * 3 / WIDTH)
    assert found[3].item() == pytest.approx(math.cos(angle)) and found[3 + WIDTH // 2].item() == pytest.approx(
        math.sin(angle)
    )


def test_axes_take_turns_over_the_frequencies():
    rows, columns = torch.tensor([[3, 5]]), torch.tensor([[7, 2]])
    together, by_row, by_column = tables(torch.stack([rows, columns], -1)), tables(rows), tables(columns)
    for found, row, column in zip(together, by_row, by_column, strict=True):
        assert torch.equal(found[..., 0::2], row[..., 0::2]) and torch.equal(found[..., 1::2], column[..., 1::2])
    assert torch.equal(tables(torch.stack([rows, rows], -1))[0], by_row[0])


def test_products_depend_on_distances_alone():
    query, key = torch.randn(1, 1, 1, WIDTH), torch.randn(1, 1, 1, WIDTH)

    def product(i, j):
        q, k = (rotate(x, *tables(torch.tensor([[p]]))) for x, p in ((query, i), (key, j)))
        return (q * k).sum()

    torch.testing.assert_close(product(9, 4), product(105, 100), atol=1e-5, rtol=1e-5)


def test_angles_stay_fp32_for_bf16_queries():
    cosine, sine = tables(torch.tensor([[1023]]))
    assert cosine.dtype == sine.dtype == torch.float32
    x = torch.randn(1, 1, 1, WIDTH)
    found = rotate(x.bfloat16(), cosine, sine)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), rotate(x, cosine, sine), atol=4e-2, rtol=4e-2)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn"}, "rope_type 'yarn'; expected 'linear' or 'llama3'"),
        ({"rope_type": "linear"}, "lacks factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "lacks high_freq_factor"),
    ],
)
def test_unknown_or_incomplete_scaling_is_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        check_rope_scaling(scaling)
