import numpy as np
import pytest

from tokenflow.evaluation.grid import difference, reconstruction_grid


def test_equal_pictures_have_a_grey_difference_and_errors_are_amplified():
    picture = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert (difference(picture, picture) == 128).all()
    assert (difference(picture, picture + 10, amplification=4) == 168).all()
    assert (difference(picture, picture - 90, amplification=4) == 0).all()


def test_bands_are_original_reconstruction_difference():
    originals = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    reconstructions = np.full((3, 64, 64, 3), 200, dtype=np.uint8)
    grid = reconstruction_grid(originals, reconstructions, columns=2, gap=4)
    assert grid.shape == (6 * 68 + 4, 2 * 68 + 4, 3)
    assert [int(grid[4 + row * 68, 4, 0]) for row in range(6)] == [0, 200, 255, 0, 200, 255]
    assert (grid[3 * 68 + 4 :, 72:] == 255).all()


def test_tiny_pictures_are_enlarged_by_a_whole_factor():
    originals = np.zeros((1, 30, 30, 3), dtype=np.uint8)
    assert reconstruction_grid(originals, originals, gap=0).shape == (270, 90, 3)


def test_unequal_sets_are_named():
    with pytest.raises(ValueError, match="expected equal"):
        reconstruction_grid(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8))
