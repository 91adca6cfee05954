"""Valid calls of course_lib.world."""

import functools
import io

import numpy as np
import torch

from course_lib.world import Scene, World, corruption, defects, film, rendering, scenes
from tests.fuzz.args import A, C, Dir, F, G, N, P, R, X, Y
from tests.fuzz.harness import add

VIDEO = "b c f h w"
LARGE = {"h": 16, "w": 16}


@functools.cache
def clips():
    return World(size=32, num_frames=4).batch(range(3))


def encoded(**kwargs):
    target = io.BytesIO()
    film.encode_h264(target, **kwargs)
    return target.getvalue()


LEVELS = (np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3) % 251).astype(np.uint8)
SCENES = X(lambda: [Scene("tiger", "moving left", "sea"), Scene("red circle", "moving up", "snow")])
scene = X(lambda: Scene("tiger", "moving left", "sea"))
size, frames, fps = N(16, low=8), N(3), R(8.0, 1e-9)

for name in ("caption", "image_caption"):
    add(f"world.captions.{name}", scene=scene, paraphrase=N(1, low=0))
add(
    "world.captions.parse_caption",
    text=C("a tiger moving left on a sea background", allows="unknown empty"),
)
add("world.control.canny_edges", video=F(VIDEO, b=2, **LARGE), sigma=R(1.0, 1e-9))

video = F(VIDEO, b=2, **LARGE)
add("world.corruption.blur", video=video, sigma=R(1.0, 0))
add("world.corruption.noise", video=video, std=R(0.1, 0), generator=G())
add(
    "world.corruption.remove_top",
    lambda part: corruption.remove_top(clips(), part), part=R(0.4, 1e-9, 1),
)  # fmt: skip
add("world.corruption.shift_hue", video=video, hue=R(0.1, -0.5, 0.5))
add("world.corruption.jpeg", video=video, quality=N(50, high=100))
add("world.corruption.h264", video=video, crf=N(30, low=0, high=51))
add(
    "world.corruption.elastic_distortion",
    video=video, rms_px=R(1.0, 0), generator=G(), consistent=Y(),
)  # fmt: skip
for name in ("freeze", "reverse", "swap_halves", "hard_cut"):
    add(f"world.corruption.{name}", video=F(VIDEO, b=4))
add("world.corruption.shuffle", video=F(VIDEO), generator=G())

add(
    "world.defects.inject_defects",
    lambda **kwargs: defects.inject_defects(clips(), **kwargs),
    defects=P(words=("static", "blur", "noise")), generator=G(),
)  # fmt: skip
add(
    "world.defects.inject_random_defects",
    clips=X(clips), fraction=R(0.7, 0, 1), generator=G(),
)  # fmt: skip
add("world.defects.is_static", clip=F("3 f h w"))

add(
    "world.film.load_video",
    source=Dir(lambda folder: saved_video(folder / "v.mp4")), start=R(0.25, 0, 0.9),
    num_frames=N(3), fps=R(4.0, 1e-9), size=N(16, low=2),
)  # fmt: skip
add(
    "world.film.save_video",
    lambda path, **kwargs: (film.save_video(path, **kwargs), path.stat().st_size),
    path=Dir(lambda folder: folder / "new.mp4", allows="missing"), video=F("3 f h w", **LARGE),
    fps=R(8.0, 1e-9),
)  # fmt: skip
add(
    "world.film.encode_h264", encoded, video=F("3 f h w", **LARGE), fps=R(8.0, 1e-9, 1000),
    crf=N(20, low=0, high=51),
)  # fmt: skip
add("world.film.from_uint8", frames=A(LEVELS, allows="first_axis_of_1 no_rows"))


def saved_video(path):
    film.save_video(path, torch.zeros(3, 8, 32, 32), 8)
    return path


add("world.motions.check_timing", num_frames=frames, fps=fps)
for name in (
    "background_only", "chimera", "double", "smear", "scramble", "unknown_shape",
    "unknown_background", "split_background", "static_noise",
):  # fmt: skip
    add(f"world.ood.{name}", clips=X(clips), generator=G())
add(
    "world.ood.make_ood_clips",
    clips=X(clips), kinds=P(words=("double", "smear", "scramble")), generator=G(),
)  # fmt: skip

add(
    "world.rendering.render",
    scenes=SCENES, size=size, num_frames=frames, fps=fps, static_sprites=Y(),
    random_time_offset=Y(False),
)  # fmt: skip
add(
    "world.rendering.World",
    lambda **kwargs: World(**kwargs)[0],
    split=C("train"), subset=C("base"), seed=N(0, low=0), size=size, num_frames=frames, fps=fps,
    static_sprites=Y(), random_time_offset=Y(), length=N(8),
)  # fmt: skip
add(
    "world.rendering.World",
    lambda **kwargs: World(size=16, num_frames=2, **kwargs)[0]["caption"],
    subjects=P(1, words=("tiger",)), motions=P(1, words=("spinning",)),
    backgrounds=P(1, words=("snow",)),
)  # fmt: skip
add(
    "world.rendering.World.batch",
    lambda indices: World(size=16, num_frames=2).batch(indices),
    indices=X(lambda: [0, 5]),
)
add(
    "world.rendering.Clips.select",
    lambda indices: clips().select(indices).video, indices=X(lambda: [0, 2]),
)  # fmt: skip
add(
    "world.rendering.Clips.concat",
    lambda batches: rendering.Clips.concat(batches),
    batches=X(lambda: [clips(), clips()]),
)
add(
    "world.rendering.place_sprites",
    sprites=F("b f c h w", b=1, f=2, c=4, h=64, w=64), positions=F("b f k", b=1, f=2, k=4),
    size=N(16, low=8),
)  # fmt: skip
add("world.scenes.subset_of", subject=C("tiger"), motion=C("spinning"))
add(
    "world.scenes.Sampler",
    lambda index=3, **kwargs: scenes.Sampler(**kwargs)(index),
    split=C("train"), subset=C("base"), seed=N(0, low=0), index=N(3, low=0),
)  # fmt: skip
add(
    "world.scenes.Scene",
    subject=C("tiger"), motion=C("spinning"), background=C("snow"), variant=N(3, low=0),
)  # fmt: skip
for name in ("pixel_art", "ink"):
    add(f"world.styles.{name}", video=video)
