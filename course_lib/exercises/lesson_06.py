"""Exercises of lesson 06, CLIP and latent diffusion: their checks, hints and reference solutions.

The oracles are transformers' CLIP and diffusers' attention and autoencoder. A mistake is known by the numbers it leads
to on the check's own input. The checks of 6.2 and 6.3 are in `lesson_06_latents.py`.
"""

import inspect
import math

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from course_lib.lab.checks.compare import Wrong, brief, same
from course_lib.lab.checks.engine import Exercise, call
from course_lib.exercises.lesson_06_latents import verify_latents, verify_posterior
from course_lib.lab.checks.mistakes import as_tensor, judge, judge_number, normal

# 6.1 ------------------------------------------------------------------------------------------------------------------


def contrastive_loss(image_features, text_features, logit_scale):
    """CLIP's symmetric cross-entropy; features (n, d), pair by pair; logit_scale is the logarithm of the scale."""
    images = F.normalize(image_features, dim=1)
    texts = F.normalize(text_features, dim=1)
    logits = (
        logit_scale.exp() * images @ texts.T
    )  # (n, n): a row for every image, a column for every text
    pairs = torch.arange(len(logits))  # image i belongs to text i
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def _two_ways(logits: Tensor, target: Tensor) -> Tensor:
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _unit_mistakes(images: Tensor, texts: Tensor, scale: Tensor) -> list[tuple[Tensor, str]]:
    """What features of a wrong length lead to."""
    unit = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    length = (
        "are not of length one: a long vector is close to everything. Divide each row by its norm."
    )
    both = [
        (images, texts, f"The features {length}"),
        (images, unit[1], f"The image features {length}"),
        (unit[0], texts, f"The text features {length}"),
        (F.normalize(images, dim=0), F.normalize(texts, dim=0), "You divided by norms over the batch (dim=0). Each row "
         "is a vector, and needs its own norm, dim=1."),
        (images / images.norm(), texts / texts.norm(), "x.norm() is one number, the length of the whole table. Each "
         "row needs its own norm: dim=1, keepdim=True."),
        (images / images.square().sum(1, True), texts / texts.square().sum(1, True), "You divided by the squared "
         "norm: a root is missing."),
        (images.softmax(1), texts.softmax(1), "A softmax makes a row sum to one. Asked for: a length of one."),
    ]  # fmt: skip
    return [(image_text_contrastive_loss(scale.exp() * a @ b.T), message) for a, b, message in both]


def _loss_mistakes(cosine: Tensor, scale: Tensor) -> list[tuple[Tensor, str]]:
    """What a wrong scale, a wrong direction or wrong labels lead to."""
    logits, n = scale.exp() * cosine, len(cosine)
    pairs, loss = torch.arange(n), image_text_contrastive_loss
    rows, columns, right = (
        F.cross_entropy(logits, pairs),
        F.cross_entropy(logits.T, pairs),
        loss(logits),
    )
    sharp = "The scale is logit_scale.exp(): "
    return [
        (loss(scale * cosine), sharp + "the parameter is its logarithm, so that the scale stays positive."),
        (loss(cosine / scale.exp()), sharp + "you divide by it. It is one over the temperature: multiply."),
        (loss(cosine / scale), sharp + "you divide by its logarithm, as if that were the temperature."),
        (loss(cosine), sharp + "it is missing. Cosines alone differ by 2 at most, a very soft softmax."),
        (loss(scale.exp() * logits), sharp + "it is in the logits twice."),
        (rows, "That is half of it: every image finds its text. Every text must find its image too: logits.T."),
        (columns, "That is half of it: every text finds its image. Every image must find its text too: logits.T."),
        (2 * right, "Twice too much: the mean of the two directions, not their sum."),
        (n * right, "You sum over the pairs. Asked for: their mean."),
        (2 * n * right, "You sum over the pairs and over the two directions. Asked for: means."),
        (right / n, "Too small by a factor n: a mean over all n² entries, where only the n pairs count."),
        (-right, "The sign is flipped: minus the logarithm of the right pair's probability."),
        (_two_ways(logits, torch.zeros_like(pairs)), "Every image has the first text as its label: image i, text i."),
        (_two_ways(logits, pairs.flip(0)), "Your labels run backwards: image i belongs to text i."),
        (_two_ways(logits, (pairs + 1) % n), "Your labels are off by one: image i belongs to text i."),
        ((F.cross_entropy(logits.softmax(1), pairs) + F.cross_entropy(logits.T.softmax(1), pairs)) / 2,
         "cross_entropy takes logits and does the softmax itself: you gave it probabilities."),
        (-logits.flatten().log_softmax(0).reshape(n, n).diagonal().mean(), "You took one softmax over all n² pairs. "
         "Asked for: one in every row, and one in every column."),
        (F.binary_cross_entropy_with_logits(logits, torch.eye(n).to(logits)), "That is a yes or no for every pair "
         "(SigLIP's loss is of that kind). In CLIP the texts compete for an image: a softmax."),
        (-logits.diagonal().mean(), "Only the right pairs enter: nothing pushes the wrong ones apart."),
    ]  # fmt: skip


def _verify_contrastive_loss(attempt):
    scale = torch.tensor(1.25).double()
    for n, seed in ((5, 70), (8, 72)):
        images = normal(seed, n, 3) * torch.linspace(0.5, 3, n)[:, None]
        texts = normal(seed + 1, n, 3) * 1.7 + images.roll(1, dims=1)
        cosine = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
        expected = image_text_contrastive_loss(scale.exp() * cosine).item()
        mistakes = _loss_mistakes(cosine, scale) + _unit_mistakes(images, texts, scale)
        got, told = (
            call(attempt, images.clone(), texts.clone(), scale.clone()),
            f"{n} images and {n} texts, d = 3",
        )
        if isinstance(got, Tensor) and got.shape in ((n, n), (n,)):
            raise Wrong(f"{told}: you returned a {brief(got)}. Asked for: the loss, one number.")
        judge_number(got, expected, mistakes, f"{told}, scale e^1.25")
    yield "the loss of CLIP's own code, for features of any length"
    alike = torch.ones(4, 3).double()
    judge_number(
        call(attempt, alike, alike.clone(), scale.clone()),
        math.log(4),
        [],
        "4 images and texts, all alike",
    )
    yield "features that tell nothing apart cost log n, a guess among n"
    _judge_large_scale(attempt)
    yield "finite in float32 at a scale of 100, even where a pair is opposed"


def _judge_large_scale(attempt):
    """Where a hand-made softmax overflows, and a hand-made logarithm meets zero."""
    images = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    texts, scale = images.flip(0), torch.tensor(math.log(100.0))
    logits = scale.exp() * images @ texts.T
    overflow = ("exp(100) is too large for float32, and exp(-200) is 0 there, whose logarithm is minus infinity. "
                "F.cross_entropy and log_softmax subtract the largest logit first.")  # fmt: skip
    cut = "A constant inside the logarithm, or a clamp, hides how wrong the worst pairs are. F.cross_entropy needs none."
    mistakes = [(value, overflow) for value in (math.nan, math.inf, -math.inf)]
    right = logits.softmax(1).diagonal()
    mistakes += [(-(right + 10.0**-k).log().mean(), cut) for k in range(4, 21)]
    told = "3 images and 3 texts in float32, two pairs opposed, scale 100, the largest that CLIP allows"
    got = call(attempt, images.clone(), texts.clone(), scale.clone())
    judge_number(got, image_text_contrastive_loss(logits).item(), mistakes, told)


# 6.2 ------------------------------------------------------------------------------------------------------------------


def latents_of(vae, images, generator):
    """Images to latents in the unit of the diffusion model: a draw from the posterior, times the scaling factor."""
    return vae.encode(images).latent_dist.sample(generator) * vae.config.scaling_factor


def images_of(vae, latents):
    """Latents back to the VAE's own numbers, and those to images."""
    return vae.decode(latents / vae.config.scaling_factor).sample


# 6.3 ------------------------------------------------------------------------------------------------------------------


def posterior_of(moments, noise):
    """A draw (b, c, h, w) from N(mean, exp(logvar)), and its KL divergence from N(0, 1), one number per image (b,).

    The mistake, exp(logvar), was reported in https://github.com/rachtsingh/ibp_vae/issues/3, and it was kept in an
    example of https://github.com/keras-team/keras/pull/9972, since a network that is trained with it adapts.
    """
    mean, logvar = moments.chunk(2, dim=1)
    std = (logvar / 2).exp()  # the variance is exp(logvar), std is its root
    sample = mean + std * noise
    kl = 0.5 * (mean**2 + std**2 - 1 - logvar).sum(dim=(1, 2, 3))
    return sample, kl


# 6.4 ------------------------------------------------------------------------------------------------------------------


def attention_map(query, key, heads):
    """Where each of n pixels looks among l tokens, (n, l), mean over heads; query (n, heads·d), key (l, heads·d)."""
    d = query.shape[1] // heads
    query = query.reshape(-1, heads, d).transpose(0, 1)  # (heads, n, d)
    key = key.reshape(-1, heads, d).transpose(0, 1)  # (heads, l, d)
    logits = query @ key.transpose(1, 2) / d**0.5  # (heads, n, l)
    return logits.softmax(dim=2).mean(dim=0)


def _library_maps(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Every head's map (heads, n, l), by diffusers' own attention."""
    with torch.device("meta"):  # its weights are not needed, nor random numbers for them
        attention = Attention(query.shape[1], heads=heads, dim_head=query.shape[1] // heads)
    return attention.get_attention_scores(
        *(attention.head_to_batch_dim(x[None]) for x in (query, key))
    )


def _map_mistakes(query: Tensor, key: Tensor, heads: int, maps: Tensor) -> list[tuple[Tensor, str]]:
    d = query.shape[1] // heads
    turned = [x.reshape(len(x), d, heads).permute(2, 0, 1) for x in (query, key)]
    cut = [x.reshape(heads, len(x), d) for x in (query, key)]
    split = [x.reshape(len(x), heads, d).transpose(0, 1) for x in (query, key)]
    raw, whole = split[0] @ split[1].mT, query @ key.T
    scale = f"The products of vectors of d = {d} numbers are divided by √d"
    return [
        ((raw / d**0.5).softmax(1).mean(0), "Your columns sum to 1: the softmax runs over the pixels, so they share a "
         "word. Asked for: every pixel shares itself among the tokens, dim=-1."),
        ((raw / d**0.5).softmax(0).mean(0), f"Every value is 1/{heads}: the softmax runs over the heads."),
        (raw.softmax(2).mean(0), f"{scale}: that is missing, and the maps come out too sharp."),
        ((raw / (heads * d) ** 0.5).softmax(2).mean(0), f"{scale}, the width of one head. You took the root of "
         f"heads · d = {heads * d}."),
        ((raw / d).softmax(2).mean(0), f"{scale}; you divided by d."),
        ((raw * d**0.5).softmax(2).mean(0), f"{scale}; you multiplied."),
        ((turned[0] @ turned[1].mT / d**0.5).softmax(2).mean(0), "You split the width into (d, heads). A head's d "
         "numbers stand together: (heads, d)."),
        ((cut[0] @ cut[1].mT / d**0.5).softmax(2).mean(0), "reshape(heads, n, d) has the right shape, but cuts the "
         "table across the pixels. First (n, heads, d), then transpose(0, 1)."),
        ((raw / d**0.5).mean(0).softmax(1), "You averaged the heads before the softmax. Each head has a softmax of its "
         "own; average what comes out."),
        ((whole / (heads * d) ** 0.5).softmax(1), "That is one head as wide as all: split the width first."),
        ((whole / d**0.5).softmax(1), "That is one head as wide as all: split the width first."),
        (maps, f"That is every head's map, (heads, n, l). Asked for: their mean over the {heads} heads."),
        (maps.transpose(0, 1), "Every head's map, (n, heads, l). Asked for: their mean over the heads."),
        (maps.sum(0), f"Rows sum to {heads}: you summed the heads. Asked for: their mean."),
        (maps.mean(2), "You averaged over the tokens, and the mean of a row is always 1 / l. Average over the heads."),
        (maps.mean(1), "You averaged over the pixels: that is no map any more. Average over the heads."),
        (maps[0], "That is the first head alone. Asked for: the mean over all."),
        (maps[-1], "That is the last head alone. Asked for: the mean over all."),
        (maps.amax(0), "That is the largest of the heads. Asked for: their mean."),
        ((raw / d**0.5).mean(0), "These are logits: the softmax is missing."),
        (maps.mean(0).T, "That is (tokens, pixels). Asked for: (pixels, tokens), so that a column is a word's map."),
    ]  # fmt: skip


def _verify_attention_map(attempt):
    for heads, d, n, l, seed in ((3, 4, 6, 5, 80), (1, 5, 4, 7, 82)):  # noqa: E741
        query, key = 1.5 * normal(seed, n, heads * d), normal(seed + 1, l, heads * d)
        maps = _library_maps(query, key, heads)
        told = f"{n} pixels, {l} tokens, {heads} head{'s' * (heads > 1)} of width {d}"
        mistakes = _map_mistakes(query, key, heads, maps)
        judge(call(attempt, query.clone(), key.clone(), heads), maps.mean(0), mistakes, told)
        yield f"{told}: the map of diffusers' own attention"
    query, key = torch.tensor([[20.0, 0, 0, 20]]).double(), torch.eye(4).double()[[0, 1, 3]]
    shared = torch.tensor([[0.5, 0, 0.5]]).double()
    got = call(attempt, query, key, 2)
    judge(
        got,
        shared,
        [],
        "a pixel whose first head looks at the first token, and whose second head at the last",
    )
    yield "two heads that look at different words share the map between them"


# 6.5 ------------------------------------------------------------------------------------------------------------------


def guided_batch(embeddings, empty, images_per_prompt):
    """The U-Net's text for k images per prompt: p·k times the empty prompt, then each prompt k times, (2·p·k, l, d)."""
    conditional = embeddings.repeat_interleave(images_per_prompt, dim=0)
    return torch.cat([empty.expand(len(conditional), -1, -1), conditional])


def _named(rows: Tensor, embeddings: Tensor, empty: Tensor) -> str:
    """Which prompt stands in each row: ∅ for the empty one, A, B, … for the others, ? for none of them."""
    known = dict(zip("∅ABCDEF", [empty[0], *embeddings], strict=False))
    return "".join(
        next((name for name, row in known.items() if torch.allclose(mine, row)), "?")
        for mine in rows
    )


def _order_message(found: str, p: int, k: int) -> str:
    names, n = "ABCDEF"[:p], p * k
    each, tiled, nothing = "".join(name * k for name in names), names * k, "∅" * n
    known = {
        nothing
        + tiled: "That is `repeat`, which tiles. Images of one prompt stand together: repeat_interleave.",
        each
        + nothing: "The halves are swapped: the pipeline takes the first half for the empty prompt, and would "
        "guide away from the words.",
        tiled + nothing: "The halves are swapped, and the prompts are tiled: repeat_interleave.",
        "∅" + each: "The empty prompt is there once. Every image needs its own.",
        "∅" * p + each: "One empty prompt a prompt. Every image needs its own.",
        "∅" * k
        + each: "The empty prompt is there k times. Every image of every prompt needs its own, p · k.",
        "∅" * p + names: "images_per_prompt does not enter.",
        "".join(
            "∅" + name for name in each
        ): "An empty prompt stands before every image. The pipeline cuts the batch "
        "in two halves: first all the empty ones.",
        "".join(
            "∅" + name for name in tiled
        ): "Empty prompts and prompts take turns. First all the empty ones.",
        "".join(
            "∅" * k + name * k for name in names
        ): "Each prompt follows its own empty ones. The pipeline cuts the "
        "batch in two halves: first all the empty ones.",
        ("∅" * p + names)
        * k: "You repeated the finished batch. First all the empty ones, then the prompts.",
        each: "The empty prompts are missing.",
        tiled: "The empty prompts are missing, and the prompts are tiled: repeat_interleave.",
    }
    if "?" in found:
        return (f"Row {found.index('?')} is none of the prompts: it has tokens in another order. Repeat along dim=0, "
                "the prompts, and leave the tokens alone.")  # fmt: skip
    return known.get(found, "First all the empty ones, then every prompt k times.")


def _verify_guided_batch(attempt):
    for p, k in ((3, 2), (2, 3), (2, 1)):
        embeddings, empty = normal(90 + p, p, 4, 5), normal(95, 1, 4, 5)
        expected = torch.cat(
            [empty.repeat(p * k, 1, 1), torch.stack([e for e in embeddings for _ in range(k)])]
        )
        got = call(attempt, embeddings.clone(), empty.clone(), k)
        mine, told = (
            as_tensor(got),
            f"{p} prompts (A … {'ABC'[p - 1]}), {k} image{'s' * (k > 1)} a prompt",
        )
        if not isinstance(mine, Tensor):
            same(got, expected, told)
        if mine.shape == (2, p * k, 4, 5):
            raise Wrong(
                f"{told}: you stacked two batches, {brief(mine)}. Asked for one, with cat: (2·p·k, l, d)."
            )
        if mine.shape == (p * k, 8, 5):
            raise Wrong(
                f"{told}: prompt and empty prompt became one text of 8 tokens. Join them along dim=0."
            )
        if mine.ndim == 3 and mine.shape[1:] == (4, 5):
            found, right = (_named(rows, embeddings, empty) for rows in (mine, expected))
            if found != right:
                message = _order_message(found, p, k)
                raise Wrong(
                    f"{told}: you returned {found or 'no rows'}, expected {right} (∅ is empty). {message}"
                )
        judge(got, expected, [], told)
    yield "first the empty prompt for every image, then the prompts"
    yield "images of one prompt stand together, as in StableDiffusionPipeline"


EXERCISES = (
    Exercise(
        "6.1", "The contrastive loss", 10, 2, _verify_contrastive_loss,
        ("Three steps: vectors of length one, a table of n x n scaled cosines, and twice a choice among n.",
         "F.normalize(x, dim=1) makes rows of length one; logits = logit_scale.exp() * images @ texts.T.",
         "Row i is a question with n answers, and answer i is right: F.cross_entropy(logits, torch.arange(n)).",
         "Columns ask the other way: the same with logits.T. Return the mean of the two."),
        contrastive_loss,
    ),
    Exercise(
        "6.2", "The latents' unit", 10, 2, verify_latents,
        ("vae.encode(images) has a .latent_dist, a Gaussian for every latent; vae.decode(z) has a .sample.",
         "The posterior's .sample(generator) draws from it. Its .mode() would be the mean.",
         "The VAE's own numbers times vae.config.scaling_factor are latents; before decoding, divide again."),
        inspect.getsource(latents_of) + "\n\n" + inspect.getsource(images_of),
    ),
    Exercise(
        "6.3", "Find the bug", 5, 2, verify_posterior,
        ("A KL divergence is never below 0. Try mean 0 and a log-variance of -0.5.",
         "Draw many samples with mean 0 and log-variance log(9): how far should they spread, and how far do they?",
         "logvar is the logarithm of the variance. What is the logarithm of its root?",
         "std = exp(logvar / 2). One line is wrong; two results depend on it."),
        posterior_of,
    ),
    Exercise(
        "6.4", "Where does the word look?", 15, 3, _verify_attention_map,
        ("The width is heads · d, head after head. Begin with d = query.shape[1] // heads.",
         "query.reshape(n, heads, d).transpose(0, 1) is (heads, n, d): now a batch of heads. The same for key.",
         "query @ key.transpose(1, 2) is (heads, n, l). Divide by d**0.5; softmax over the last axis, the tokens.",
         "At the very end .mean(dim=0): the mean of probabilities, not of logits."),
        attention_map,
    ),
    Exercise(
        "6.5", "Several pictures per prompt", 5, 2, _verify_guided_batch,
        ("Write the rows down for prompts A and B and three images each: ∅∅∅∅∅∅AAABBB.",
         "x.repeat(3, 1, 1) gives ABABAB; x.repeat_interleave(3, dim=0) gives AAABBB.",
         "empty.expand(n, -1, -1) is n times the empty prompt; torch.cat([…, …]) joins along dim=0."),
        guided_batch,
    ),
)  # fmt: skip
