"""The README's banner is what mini-video generates."""

import numpy as np
from PIL import Image, ImageSequence
from skimage.feature import match_template

from course_lib.lab.page_layout import resize
from course_lib.validation import clips_to_uint8
from tools import readme_banner


def saved_frames():
    with Image.open(readme_banner.BANNER_FILE) as image:
        return np.stack(
            [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(image)]
        )


def test_the_committed_banner_is_small_and_moves():
    assert readme_banner.BANNER_FILE.stat().st_size <= 500_000
    frames = saved_frames()
    assert len(frames) == 16
    assert (np.abs(np.diff(frames, axis=0)).max((1, 2, 3)) > 50).all()


def test_the_committed_banner_shows_what_the_model_generates():
    """One of its eight clips, generated again, is in it."""
    frames = saved_frames()
    index = 2
    clip = resize(clips_to_uint8(readme_banner.generate_clip(index)), 2)[0].astype(
        float
    )  # 16 128 128 3
    similarity = match_template(frames[0], clip[0])[..., 0]
    top, left = np.unravel_index(similarity.argmax(), similarity.shape)
    columns = 4
    column = round(left / (frames.shape[2] / columns))
    assert (column, top < frames.shape[1] / 4) == (index % columns, index < columns)
    window = frames[:, top : top + 128, left : left + 128]
    assert np.abs(window - clip).mean() < 6, "run `python -m tools.readme_banner`"
