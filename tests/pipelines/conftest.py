"""A small text-to-video pipeline for the tests of this folder."""

import pytest


@pytest.fixture(scope="module")
def system(untrained_diffusion):
    """An untrained image model."""
    return untrained_diffusion()


@pytest.fixture(scope="module")
def pipe(system):
    """A pipeline whose temporal layers change the result."""
    # Here and not above: what checks the types of course_lib must be there before it is imported
    from course_lib.papers.video_ldm import build_unet
    from tests.nn.inflated import randomize_temporal
    from tests.pipelines.small import build_pipeline

    return build_pipeline(system, randomize_temporal(build_unet(system.unet)))
