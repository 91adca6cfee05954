import io

import numpy as np
from PIL import Image, ImageSequence

from course_lib.lab import postcard


def frames(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.stack([np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(picture)])


def test_the_committed_picture_is_what_the_code_draws():
    saved = postcard.PICTURE.read_bytes()
    assert len(saved) <= 400_000
    drawn = frames(postcard.draw())
    assert drawn.shape[0] == 16
    assert frames(saved).shape == drawn.shape
    assert np.abs(frames(saved) - drawn).mean() < 1, "run `python -m course_lib.lab.postcard`"
    assert (np.abs(np.diff(drawn, axis=0)).max((1, 2, 3)) > 50).all(), "it moves"
