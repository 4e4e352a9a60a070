import torch

from tokenflow.generation.refinement import corrupted, with_guesses

SCALES = (1, 2, 4)
LENGTH = 21
TABLE = torch.arange(1, 33, dtype=torch.float32)[:, None].expand(-1, 3)


def guessed(probability: float, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.arange(LENGTH).repeat(len(seeds), 1)
    features = torch.zeros(len(seeds), LENGTH - 1, 3)
    changed = with_guesses(
        features,
        codes,
        lookup=lambda c: TABLE[c],
        scales=SCALES,
        codebook_size=32,
        probability=probability,
        seeds=seeds,
    )
    return codes, changed


def test_without_probability_nothing_is_touched():
    features = torch.randn(2, LENGTH - 1, 3)
    codes = torch.zeros(2, LENGTH, dtype=torch.int64)
    same = with_guesses(
        features, codes, lookup=lambda c: TABLE[c], scales=SCALES, codebook_size=32, probability=0.0, seeds=[1, 2]
    )
    assert same is features


def test_a_guess_fills_exactly_one_scale_with_vectors_of_codes():
    _, changed = guessed(1.0, list(range(40)))
    touched = changed[..., 0] != 0
    second, third = touched[:, :4], touched[:, 4:]
    assert torch.equal(second.all(1), ~third.any(1))
    assert torch.equal(third.all(1), ~second.any(1))
    assert second.any() and third.any()


def test_a_guess_is_a_function_of_the_samples_seed_whatever_the_batch():
    _, together = guessed(0.5, [5, 6, 7])
    for row, seed in enumerate([5, 6, 7]):
        _, alone = guessed(0.5, [seed])
        assert torch.equal(alone[0], together[row])


def test_the_share_of_samples_follows_the_probability():
    _, changed = guessed(0.3, list(range(1000)))
    share = (changed != 0).any(-1).any(-1).float().mean().item()
    assert abs(share - 0.3) < 0.05


def test_guesses_range_from_right_to_wrong_and_half_of_the_wrong_come_from_the_scale_itself():
    codes = torch.arange(64)
    rates, outside = [], []
    for seed in range(300):
        guess = corrupted(codes, codebook_size=10_000, generator=torch.Generator().manual_seed(seed))
        wrong = guess != codes
        rates.append(wrong.float().mean().item())
        if wrong.any():
            outside.append((guess[wrong] >= 64).float().mean().item())
    assert min(rates) < 0.1 and max(rates) > 0.9
    assert abs(sum(outside) / len(outside) - 0.5) < 0.05
