"""Flow colours are torchvision's."""

import pytest
import torch
from torchvision.utils import flow_to_image

from course_lib.lab.flow import flow_colours


@pytest.mark.parametrize("seed", range(3))
def test_colours_equal_torchvisions(seed):
    flow = torch.randn(3, 2, 17, 23, generator=torch.Generator().manual_seed(seed)) * 6
    torch.testing.assert_close(flow_colours(flow), flow_to_image(flow))


def test_no_motion_is_white_and_direction_is_hue():
    assert (flow_colours(torch.zeros(1, 2, 3, 3)) == 255).all()
    right = flow_colours(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).flatten().tolist()
    assert right[0] == 255 and max(right[1:]) < 60  # the wheel's red


def test_largest_sets_the_scale():
    flow = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(flow_colours(flow, 3), flow_colours(flow))
    assert flow_colours(flow, 30).float().mean() > flow_colours(flow, 3).float().mean()  # paler
    torch.testing.assert_close(
        flow_colours(10 * flow, 3), flow_colours(flow, 3)
    )  # beyond: full, not wrapped
