"""Flow colours are torchvision's, on a given scale."""

import pytest
import torch
from torchvision.utils import flow_to_image

from course_lib.lab.flow import flow_to_rgb


@pytest.mark.parametrize("seed", range(3))
def test_colours_equal_torchvisions(seed):
    flow = torch.randn(3, 2, 17, 23, generator=torch.Generator().manual_seed(seed)) * 6
    torch.testing.assert_close(flow_to_rgb(flow), flow_to_image(flow))


def test_no_motion_is_white_and_direction_is_hue():
    assert (flow_to_rgb(torch.zeros(1, 2, 3, 3)) == 255).all()
    right = flow_to_rgb(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).flatten().tolist()
    assert right[0] == 255 and max(right[1:]) < 60  # the wheel's red


def test_max_flow_sets_the_scale():
    flow = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(flow_to_rgb(flow, 3), flow_to_rgb(flow))
    assert flow_to_rgb(flow, 30).float().mean() > flow_to_rgb(flow, 3).float().mean()  # paler
    torch.testing.assert_close(
        flow_to_rgb(10 * flow, 3), flow_to_rgb(flow, 3)
    )  # beyond: full, not wrapped
