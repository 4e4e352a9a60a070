import re

import pytest
import torch

from tokenflow.evaluation.blank_pictures import constant_image_alarm


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((4, 3, 8, 8), -1.0), "constant .black"),
        (torch.full((4, 3, 8, 8), 1.0), "constant .white"),
        (torch.zeros(4, 3, 8, 8) + 0.01 * torch.randn(4, 3, 8, 8), "constant .grey"),
        (torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(2, 3, 8, 8), "constant .of one colour"),
        (torch.full((2, 3, 8, 8), float("nan")), "NaN"),
        (torch.randn(1, 3, 8, 8).expand(4, 3, 8, 8), "all pictures are the same"),
        (torch.randn(4, 3, 8, 8), None),
    ],
)
def test_the_alarm_tells_constant_pictures_from_pictures(images, message):
    alarm = constant_image_alarm(images)
    if message is None:
        assert alarm is None
    else:
        assert re.search(message, alarm)
        assert "Likely causes" in alarm
