"""Valid calls of course_lib.metrics."""

import functools
from pathlib import Path

import torch
from torchvision.models.optical_flow import raft_small

from course_lib.metrics import (
    consistency,
    distribution,
    features,
    frechet,
    image,
    motion,
    nearest,
    prompt_accuracy,
    rendering,
    text,
    trajectory,
)
from course_lib.world import World
from tests.fuzz.args import B, C, Dir, F, I, N, P, R, S, X, Y
from tests.fuzz.harness import add

VIDEO = "b c f h w"
LARGE = {"h": 16, "w": 16}
FLOW = "b 2 3 h w"  # of a video of 4 frames
REAL, GENERATED = "n d", "m d"
ANY_ROWS = {"n": 12, "m": 10, "d": 4}


def video_net(video):
    """A feature net: every colour's mean and spread, and the last pixel."""
    flat = video.flatten(3)
    return torch.cat([flat.mean((2, 3)), flat.std((2, 3)), flat[..., -1, -1]], dim=1)


def image_net(images):
    return torch.cat([images.mean((2, 3)), images[:, :, 0, 0] + 2], dim=1)


def judge(video):
    """Logits of the world's classes."""
    sizes = {key: len(classes) for key, classes in prompt_accuracy.CLASSES.items()}
    mean = video.mean((1, 2, 3, 4))[:, None]
    return {key: mean * torch.arange(size) for key, size in sizes.items()}


class Encoder:
    """A text and image encoder of three dimensions."""

    def image(self, images):
        return images.mean((2, 3)) + torch.tensor([1.0, 0.5, 0.2])

    def text(self, prompts):
        return torch.tensor([[1.0, len(prompt), 3.0] for prompt in prompts])


@functools.cache
def clips():
    return World(size=16, num_frames=4).batch(range(3))


def updated(make, read=lambda metric: metric.compute(), before=None):
    """A call of `update` on a new metric, which returns what `read` makes of it."""

    def call(**kwargs):
        metric = make()
        if before:
            before(metric)
        metric.update(**kwargs)
        return read(metric)

    return call


def both_sides(make):
    """A call with real and generated videos."""

    def call(real, generated):
        metric = make()
        metric.update(real, real=True)
        metric.update(generated, real=False)
        return metric.compute()

    return call


VIDEOS = {
    "names": {"real": "video", "generated": "video"},
    "real": F("n c f h w", n=8, scale=0.9),
    "generated": F("m c_2 f_2 h_2 w_2", m=7),
}
names = VIDEOS.pop("names")

add(
    "metrics.clipwise.mean_score",
    name=S("x"),
    values=F("n", allows="NaN_inside no_rows"),
    unit=S(""),
)
add("metrics.clipwise.proportion_score", name=S("x"), hits=N(3, low=0, high=5), n=N(5, low=3))
add("metrics.consistency.frame_consistency", frames=F("b f d"))
add(
    "metrics.consistency.FrameConsistency",
    updated(lambda: consistency.FrameConsistency(image_net, "x")),
    video=F(VIDEO),
)
add(
    "metrics.distribution.kernel_distance",
    real=F(REAL, **ANY_ROWS), generated=F(GENERATED, **ANY_ROWS), degree=N(3), coef=R(1.0),
    gamma=R(0.5, 1e-9), unbiased=Y(),
)  # fmt: skip
add(
    "metrics.distribution.kernel_distance_subsets",
    real=F(REAL, **ANY_ROWS), generated=F(GENERATED, **ANY_ROWS), num_subsets=N(4),
    subset_size=N(5, low=2, high=10), seed=N(0, low=0),
)  # fmt: skip
add(
    "metrics.distribution.precision_recall",
    real=F(REAL, **ANY_ROWS), generated=F(GENERATED, **ANY_ROWS), k=N(3, high=9),
)  # fmt: skip
add("metrics.distribution.inception_score", logits=F("n k", n=8), num_splits=N(2), seed=N(0, low=0))
add(
    "metrics.distribution.InceptionScore",
    lambda video, num_splits, seed: updated(
        lambda: distribution.InceptionScore(video_net, "x", num_splits=num_splits, seed=seed)
    )(video=video),
    video=F("b c f h w", b=6), num_splits=N(2), seed=N(0, low=0),
)  # fmt: skip
for cls in (distribution.KernelDistance, distribution.PrecisionRecall, features.FeatureBank):
    add(
        f"{cls.__module__.removeprefix('course_lib.')}.{cls.__name__}",
        both_sides(lambda cls=cls: cls(video_net, "x")), names, **VIDEOS,
    )  # fmt: skip
add(
    "metrics.distribution.DistributionScores",
    both_sides(lambda: distribution.DistributionScores(video_net, "x")), names, **VIDEOS,
)  # fmt: skip
add(
    "metrics.frechet.FrechetDistance",
    lambda ddof, **sides: both_sides(
        lambda: frechet.FrechetDistance(video_net, "x", ddof=ddof)
    )(**sides),
    names, ddof=N(1, low=0, high=1), **VIDEOS,
)  # fmt: skip
add(
    "metrics.features.RealVsGenerated",
    updated(lambda: features.FeatureBank(video_net, "x"), lambda m: [m.real, m.generated]),
    video=F(VIDEO), real=Y(),
)  # fmt: skip
for name in ("frame_features", "mean_frame_features"):
    add(
        f"metrics.features.{name}",
        lambda video, name=name: getattr(features, name)(image_net)(video),
        video=F(VIDEO),
    )  # fmt: skip
add("metrics.features.extract_features", net=video_net, video=F(VIDEO))
add("metrics.features.cat_rows", rows=X(lambda: [torch.ones(2, 3), torch.zeros(1, 3)]))

add("metrics.flow.estimate_flow", video=F("b c 2 h w", b=2, **LARGE), method=C("ilk"))
add("metrics.flow.bidirectional_flow", video=F("b c 2 h w", b=2, **LARGE))
add("metrics.flow.raft_flow", weights=Dir(lambda folder: raft_file(folder / "raft.pth")))
add("metrics.flow.ground_truth_flow", clips=X(clips))
add("metrics.flow.check_flow", name="flow", flow=F(FLOW), video=F(VIDEO))
add("metrics.flow.warp", frames=F("b c 3 h w"), flow=F(FLOW, scale=2))
add("metrics.flow.non_occluded_mask", forward=F(FLOW), backward=F(FLOW, scale=-1))

add("metrics.frechet.gaussian", features=F("n d", n=10, d=4), ddof=N(1, low=0, high=9))
add(
    "metrics.frechet.frechet_from_moments",
    mean_1=F("d"), cov_1=F("d d", value=torch.eye(6)), mean_2=F("d", scale=0.5),
    cov_2=F("d d", value=torch.eye(6) / 2),
)  # fmt: skip
add(
    "metrics.frechet.frechet_between_gaussians",
    first=X(lambda: frechet.gaussian(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)))),
    second=X(
        lambda: frechet.gaussian(torch.rand(9, 3, generator=torch.Generator().manual_seed(1)))
    ),
)
add(
    "metrics.frechet.frechet_distance",
    real=F(REAL, **ANY_ROWS), generated=F(GENERATED, **ANY_ROWS), ddof=N(1, low=0, high=1),
)  # fmt: skip
add(
    "metrics.frechet.frechet_infinity",
    real=F(REAL, n=40, m=40, d=2),
    generated=F(GENERATED, n=40, m=40, d=2),
    ddof=N(1, low=0, high=1),
    jackknife_groups=N(4, low=0, high=40),
    seed=N(0, low=0),
)

PAIR = {"video": F(VIDEO, **LARGE), "reference": F(VIDEO, scale=0.8, **LARGE)}
for name in ("psnr", "ssim"):
    add(f"metrics.image.{name}", **PAIR)
add(
    "metrics.image.ssim_map",
    images=F("b c h w", **LARGE),
    reference=F("b c h w", scale=0.8, **LARGE),
)
add(
    "metrics.image.PSNR",
    lambda cap, **pair: updated(lambda: image.PSNR(cap))(**pair), cap=R(50.0, 1e-9), **PAIR,
)  # fmt: skip
add("metrics.image.SSIM", updated(image.SSIM), **PAIR)
add(
    "metrics.image.perceptual_distance",
    lambda features, reference: image.perceptual_distance([features], [reference]),
    features=F("b c h w"), reference=F("b c h w", scale=0.5),
)  # fmt: skip
add(
    "metrics.image.PerceptualDistance",
    updated(lambda: image.PerceptualDistance(lambda x: [x, x[..., ::2]], "x")), **PAIR,
)  # fmt: skip
add("metrics.intervals.mean_interval", x=F("n"), confidence=R(0.95, 1e-9, 1 - 1e-9))

FLOWS = {"forward": F(FLOW, **LARGE), "backward": F(FLOW, scale=-1, **LARGE)}
add("metrics.motion.warping_error", video=F(VIDEO, **LARGE), **FLOWS)
add(
    "metrics.motion.WarpingError",
    lambda video, forward, backward: updated(lambda: motion.WarpingError("exact"))(
        video=video, flows=(forward, backward)
    ),
    {"forward": "flows", "backward": "flows"}, video=F(VIDEO, **LARGE), **FLOWS,
)  # fmt: skip
add("metrics.motion.Flicker", updated(motion.Flicker), video=F(VIDEO))
add("metrics.motion.Smoothness", updated(motion.Smoothness), video=F(VIDEO))
add(
    "metrics.motion.dynamic_degree",
    flow=F(FLOW, scale=5), fps=R(8.0, 1e-9), min_speed=R(1.0, 0),
)  # fmt: skip
add(
    "metrics.motion.DynamicDegree",
    lambda video, flow, **kwargs: updated(lambda: motion.DynamicDegree("exact", **kwargs))(
        video=video, flow=flow
    ),
    video=F(VIDEO), flow=F(FLOW, scale=5), fps=R(8.0, 1e-9), min_speed=R(1.0, 0),
)  # fmt: skip

PROMPTS = (
    "a tiger moving left on grass",
    "a red circle on a snow background",
    "a penguin spinning",
)
JUDGED = {"video": F(VIDEO), "prompts": P(words=PROMPTS)}
add(
    "metrics.prompt_accuracy.parse_targets",
    prompts=P(words=PROMPTS, allows="no_rows one_row_fewer one_row_more"),
)
add("metrics.prompt_accuracy.subset_of_prompt", prompt=C(PROMPTS[0]))
make_accuracy = functools.partial(prompt_accuracy.PromptAccuracy, judge, "x")
add("metrics.prompt_accuracy.PromptAccuracy", updated(make_accuracy), **JUDGED)


def after_update(method):
    def call(**kwargs):
        metric = make_accuracy()
        metric.update(JUDGED["video"].make(Path()), list(PROMPTS))
        return getattr(metric, method)(**kwargs)

    return call


add(
    "metrics.prompt_accuracy.PromptAccuracy.breakdown",
    after_update("breakdown"),
    groups=P(allows="numbers"),
)
add(
    "metrics.prompt_accuracy.PromptAccuracy.confusions",
    after_update("confusions"), attribute=C("subject"), top_k=N(2, low=0),
)  # fmt: skip
add(
    "metrics.prompt_accuracy.expected_calibration_error",
    probabilities=F("n k", value=[[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]]), labels=I("n", [1, 1, 0]),
    bins=N(5),
)  # fmt: skip
add("metrics.prompt_accuracy.auroc", values=F("n"), positive=B("n", [True, False, True, False]))

encoder = X(Encoder)
add("metrics.text.encode_frames", encode=X(lambda: image_net), name="video", video=F(VIDEO))
add(
    "metrics.text.encode_prompts",
    encoder=encoder, name="prompts", prompts=P(), num_prompts=N(3, high=3),
)  # fmt: skip
add("metrics.text.clip_similarity", encoder=encoder, video=F(VIDEO), prompts=P())
add(
    "metrics.text.TextAlignment",
    updated(lambda: text.TextAlignment(Encoder(), "x")), video=F(VIDEO), prompts=P(),
)  # fmt: skip
EDIT = {"edited": F(VIDEO, scale=0.7), "source_prompts": P(), "target_prompts": P(words=PROMPTS)}
add(
    "metrics.text.DirectionalSimilarity",
    updated(lambda: text.DirectionalSimilarity(Encoder(), "x")), source=F(VIDEO), **EDIT,
)  # fmt: skip
add("metrics.text.FrameAccuracy", updated(lambda: text.FrameAccuracy(Encoder(), "x")), **EDIT)

add("metrics.trajectory.subject_masks", video=F(VIDEO, b=2, **LARGE))
add("metrics.trajectory.subject_centres", video=F(VIDEO, b=2, **LARGE))
add("metrics.trajectory.centres", masks=B("b 1 f h w"))
add(
    "metrics.trajectory.TrajectoryError",
    updated(lambda: trajectory.TrajectoryError("given")),
    video=F(VIDEO), path=F("b f 2"), masks=B("b 1 f h w"),
)  # fmt: skip


SMALL = {"b": 1, "c": 3, "f": 2, "h": 32, "w": 32}
CIRCLE = P(1, words=("a red circle moving left on a mint background",))


@functools.cache
def nearest_of_noise():
    return nearest.nearest_renderings(torch.zeros(1, 3, 2, 32, 32), CIRCLE.make(None))


add("metrics.nearest.nearest_renderings", video=F(VIDEO, **SMALL), prompts=CIRCLE)
add(
    "metrics.rendering.morphing",
    lambda video: rendering.morphing(video, nearest_of_noise()),
    video=F(VIDEO, **SMALL),
)
add(
    "metrics.rendering.path_error",
    pose=F("f d", f=4, d=4), motion=C("moving left"), fps=R(8, low=1e-9),
)  # fmt: skip
add(
    "metrics.rendering.RenderingDistance",
    updated(rendering.RenderingDistance),
    video=F(VIDEO, **SMALL), prompts=CIRCLE,
)  # fmt: skip


@functools.cache
def raft():
    return raft_small(weights=None)


def raft_file(path):
    torch.save(raft().state_dict(), path)
    return path
