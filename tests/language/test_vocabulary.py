import pytest
import torch

from tokenflow.language.vocabulary import VisualVocabulary, extend_rows


def test_ids_follow_the_released_model():
    vocabulary = VisualVocabulary(text_size=32000, codebook_size=32768)
    assert (vocabulary.pad_token, vocabulary.image_token_start, vocabulary.image_token_end) == (32000, 32001, 64768)
    assert vocabulary.size == 64769


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("initialisation", ["mean", "random"])
def test_known_rows_stay_and_new_ones_are_as_named(initialisation, dtype):
    table = (torch.randn(400, 16) * 0.3 + 1).to(dtype)
    extended = extend_rows(table, rows=1000, initialisation=initialisation, seed=1)
    assert extended.dtype == dtype and extended.shape == (1000, 16) and torch.equal(extended[:400], table)
    new = extended[400:].float()
    if initialisation == "mean":
        torch.testing.assert_close(new, table.float().mean(0).expand(600, -1), atol=1e-2, rtol=1e-2)
    else:
        assert abs(new.std() - table.float().std()) < 0.02 and abs(new.mean()) < 0.02
        assert torch.equal(extended, extend_rows(table, rows=1000, initialisation=initialisation, seed=1))
        assert not torch.equal(extended, extend_rows(table, rows=1000, initialisation=initialisation, seed=2))


def test_a_table_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="has 5 rows; expected at most 3"):
        extend_rows(torch.zeros(5, 2), rows=3)
    with pytest.raises(ValueError, match="must be 1 or more"):
        VisualVocabulary(text_size=0, codebook_size=4)
