"""Valid calls of the rooms of one file: runtime, validation, files and evaluation."""

import functools
from pathlib import Path

from course_lib import files, runtime, validation
from course_lib.world import World
from tests.fuzz.args import C, Dir, F, G, N, P, R, S, X
from tests.fuzz.harness import add

VIDEO = F("b c f h w")

add(
    "runtime.seed_everything",
    lambda seed: runtime.seed_everything(seed),
    seed=N(3, low=0, high=2**32 - 1),
)
add("runtime.dtype", device=C("cpu", allows="number"))
add("runtime.autocast", device=C("cpu", allows="number"))
add("runtime.by_profile", cpu=1, gpu=2, ci=3)


def measured(label):
    with runtime.measure(label):
        pass


add("runtime.measure", measured, label=S("x"))

add(
    "validation.check_video",
    lambda **k: validation.check_video("video", **k),
    video=VIDEO,
    min_frames=N(2, low=0, high=4),
)
add(
    "validation.check_images",
    lambda images: validation.check_images("images", images),
    images=F("b c h w"),
)
add(
    "validation.check_pair", lambda a, b: validation.check_pair(("a", "b"), a, b),
    a=VIDEO, b=F("b c f h w", scale=0.5),
)  # fmt: skip
add("validation.check_tensor", lambda x: validation.check_tensor("x", x, "(n, d)"), x=F("n d"))
add(
    "validation.check_float",
    lambda x: validation.check_float("x", x, "(n, d)"),
    x=F("n d", allows="NaN_inside infinity_inside"),
)
add(
    "validation.check_number",
    lambda x: validation.check_number("x", x, at_least=0, below=2),
    x=R(0.5, 0, 1.999),
)
add("validation.check_int", lambda x: validation.check_int("x", x, 1, 5), x=N(3, high=5))
add("validation.check_choice", lambda x: validation.check_choice("x", x, ("a", "b")), x=C("a"))
add("validation.check_generator", validation.check_generator, generator=G())
add(
    "validation.check_same_shape", lambda x, y: validation.check_same_shape("x", x, "y", y),
    x=F("n d"), y=F("n d"),
)  # fmt: skip
add("validation.check_count", lambda x: validation.check_count("x", x, 2), x=N(3, low=2))
add(
    "validation.check_prompts",
    lambda prompts: validation.check_prompts("prompts", prompts, 3),
    prompts=P(),
)
add("validation.to_uint8", values=F("n d"))
add("validation.clips_to_uint8", video=F("b c f h w", allows="no_first_axis"))
add("validation.images_to_uint8", images=F("b c h w"))
add("validation.to_numpy", lambda x: validation.to_numpy(x, "x"), x=F("n d"))


def file_in(folder):
    (folder / "x.json").write_text('{"a": 1}', encoding="utf-8")
    return folder / "x.json"


def sums_in(folder):
    """A folder with a file and the list of checksums."""
    root = folder / "sums"
    root.mkdir()
    (root / "x.json").write_text("1", encoding="utf-8")
    files.write_checksums({"x.json": files.sha256(root / "x.json")}, root)
    return root


def written(path):
    files.write_json(path, {"a": 1})
    return path.read_text(encoding="utf-8")


add("files.read_json", path=Dir(file_in))
add("files.read_text", path=Dir(file_in))
add("files.sha256", path=Dir(file_in))
add("files.read_checksums", root=Dir(sums_in, allows="missing"))
add(
    "files.verify_checksum",
    lambda path, root: files.verify_checksum(path, root),
    path=Dir(lambda folder: sums_in(folder) / "x.json"), root=X(lambda: Path("sums").resolve()),
)  # fmt: skip
add("files.write_json", written, path=Dir(lambda folder: folder / "new.json", allows="missing"))
add(
    "files.write_text",
    lambda path, text: (files.write_text(path, text), path.read_text(encoding="utf-8")),
    path=Dir(lambda folder: folder / "new.txt", allows="missing"),
    text=X(lambda: "a"),
)


@functools.cache
def clips():
    return World(size=64, num_frames=16).batch(range(1))


CLIPS = {"b": 1, "f": 16, "h": 64, "w": 64}
WORDS = ("a tiger moving left on a sea background", "a penguin spinning")
add("evaluation.prompt_accuracy", video=F("b 3 f h w", **CLIPS), prompts=P(1, words=WORDS))
add("evaluation.motion_accuracy", video=F("b 3 f h w", **CLIPS), clips=X(clips))
add(
    "evaluation.rendering_report",
    video=F("b 3 f h w", b=1, f=2, h=32, w=32),
    prompts=P(1, words=("a red circle, snow background",)),
    max_frames=N(4, low=2),
)  # fmt: skip
add("evaluation.extract_features", name=C("features/video"), video=F("b 3 f h w", **CLIPS))
