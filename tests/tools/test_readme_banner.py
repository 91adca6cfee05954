import numpy as np
from PIL import Image, ImageSequence
from skimage.feature import match_template

from course_lib.lab import postcard
from course_lib.lab.page_layout import resize
from course_lib.lab.inputs import checked_clips


def saved_frames():
    with Image.open(postcard.PICTURE) as picture:
        return np.stack(
            [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(picture)]
        )


def test_the_committed_picture_is_small_and_moves():
    assert postcard.PICTURE.stat().st_size <= 500_000
    frames = saved_frames()
    assert len(frames) == 16
    assert (np.abs(np.diff(frames, axis=0)).max((1, 2, 3)) > 50).all()


def test_the_committed_picture_shows_what_the_model_draws():
    """One of its eight clips, drawn again, is found in it; the others are as quick to draw as they are to trust."""
    frames, place = saved_frames(), 2
    clip = resize(checked_clips(postcard.film(place)), 2)[0].astype(float)  # 16 128 128 3
    likeness = match_template(frames[0], clip[0])[..., 0]
    top, left = np.unravel_index(likeness.argmax(), likeness.shape)
    column, columns = round(left / (frames.shape[2] / 4)), 4
    assert (column, top < frames.shape[1] / 4) == (place % columns, place < columns)
    part = frames[:, top : top + 128, left : left + 128]
    assert np.abs(part - clip).mean() < 6, "run `python -m tools.readme_banner`"
