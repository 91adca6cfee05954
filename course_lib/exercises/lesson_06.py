"""Exercises of lesson 06, CLIP and latent diffusion: checks, hints and reference solutions.

The references are transformers' CLIP and diffusers' attention and autoencoder. The checks of 6.2
and 6.3 are in `lesson_06_latents.py`.
"""

import inspect
import math

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from course_lib.exercises.lesson_06_latents import verify_latents, verify_sample_posterior
from course_lib.lab.checks import (
    Exercise,
    Mistake,
    as_tensor,
    call,
    call_on_copies,
    cfg_order_mistakes,
    describe_value,
    diagnose,
    diagnose_number,
    diagnose_order,
    randn,
    require,
)

# 6.1 ----------------------------------------------------------------------------------------------


def contrastive_loss(image_features, text_features, logit_scale):
    """CLIP's symmetric cross-entropy of pairs (n, d); logit_scale is the logarithm of the scale."""
    images = F.normalize(image_features, dim=1)
    texts = F.normalize(text_features, dim=1)
    logits = logit_scale.exp() * images @ texts.T  # (n, n): a row per image, a column per text
    pairs = torch.arange(len(logits))  # image i belongs to text i
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def _symmetric(logits: Tensor, target: Tensor) -> Tensor:
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _norm_mistakes(images: Tensor, texts: Tensor, scale: Tensor) -> list[Mistake]:
    unit = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    length = (
        "are not of length one: a long vector is close to everything. Divide each row by its norm."
    )
    features = [
        (images, texts, f"The features {length}"),
        (images, unit[1], f"The image features {length}"),
        (unit[0], texts, f"The text features {length}"),
        (F.normalize(images, dim=0), F.normalize(texts, dim=0),
         "You divided by norms over the batch (dim=0). Each row is a vector, and needs its own "
         "norm, dim=1."),
        (images / images.norm(), texts / texts.norm(),
         "x.norm() is one number, the length of the entire table. Each row needs its own norm: "
         "dim=1, keepdim=True."),
        (images / images.square().sum(1, True), texts / texts.square().sum(1, True),
         "You divided by the squared norm: a root is missing."),
        (images.softmax(1), texts.softmax(1),
         "A softmax makes a row sum to one. CLIP uses a length of one."),
    ]  # fmt: skip
    return [(image_text_contrastive_loss(scale.exp() * a @ b.T), text) for a, b, text in features]


def _loss_mistakes(cosine: Tensor, scale: Tensor) -> list[Mistake]:
    logits, n, loss = scale.exp() * cosine, len(cosine), image_text_contrastive_loss
    pairs, right = torch.arange(n), loss(logits)
    exp = "The scale is logit_scale.exp(): "
    return [
        (loss(scale * cosine), f"{exp}the parameter is its logarithm, so that the scale stays "
                               "positive."),
        (loss(cosine / scale.exp()), f"{exp}you divide by it. It is one over the temperature: "
                                     "multiply."),
        (loss(cosine / scale), f"{exp}you divide by its logarithm, as if that were the "
                               "temperature."),
        (loss(cosine), f"{exp}it is missing. Cosines differ by 2 at most, a very soft softmax."),
        (loss(scale.exp() * logits), f"{exp}it is in the logits twice."),
        (F.cross_entropy(logits, pairs), "That is half of it: every image finds its text. Every "
                                         "text must find its image too: logits.T."),
        (F.cross_entropy(logits.T, pairs), "That is half of it: every text finds its image. "
                                           "Every image must find its text too: logits.T."),
        (2 * right, "Twice too much: the mean of the two directions, not their sum."),
        (n * right, "You sum over the pairs. The loss is their mean."),
        (2 * n * right, "You sum over the pairs and over the two directions. The loss is a mean "
                        "of both."),
        (right / n, "Too small by a factor n: a mean over all n² entries, where only the n pairs "
                    "count."),
        (-right, "The sign is flipped: minus the logarithm of the right pair's probability."),
        (_symmetric(logits, 0 * pairs), "Every image has the first text as its label: image i, "
                                        "text i."),
        (_symmetric(logits, pairs.flip(0)), "Your labels run backwards: image i belongs to text "
                                            "i."),
        (_symmetric(logits, (pairs + 1) % n),
         "Your labels are off by one: image i belongs to text i."),
        ((F.cross_entropy(logits.softmax(1), pairs)
          + F.cross_entropy(logits.T.softmax(1), pairs)) / 2,
         "cross_entropy takes logits and does the softmax itself: you gave it probabilities."),
        (-logits.flatten().log_softmax(0).reshape(n, n).diagonal().mean(),
         "You took one softmax over all n² pairs. There is one in every row, and one in every "
         "column."),
        (F.binary_cross_entropy_with_logits(logits, torch.eye(n).to(logits)),
         "That is a yes or no for every pair (SigLIP's loss is of that kind). In CLIP the texts "
         "compete for an image: a softmax."),
        (-logits.diagonal().mean(), "Only the right pairs enter: nothing pushes the wrong ones "
                                    "apart."),
    ]  # fmt: skip


def _verify_contrastive_loss(attempt):
    scale = torch.tensor(1.25).double()
    for n, seed in ((5, 70), (8, 72)):
        images = randn(seed, n, 3) * torch.linspace(0.5, 3, n)[:, None]
        texts = randn(seed + 1, n, 3) * 1.7 + images.roll(1, dims=1)
        cosine = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
        mistakes = _loss_mistakes(cosine, scale) + _norm_mistakes(images, texts, scale)
        result = call_on_copies(
            attempt, image_features=images, text_features=texts, logit_scale=scale
        )
        case = f"{n} images and {n} texts, d = 3, scale e^1.25"
        require(
            not (isinstance(result, Tensor) and result.shape in ((n, n), (n,))),
            f"{case}: you returned a {describe_value(result)}. The loss is one number.",
        )
        diagnose_number(
            result, image_text_contrastive_loss(scale.exp() * cosine).item(), mistakes, case
        )
    yield "the loss of CLIP's own code, for features of any length"
    ones = torch.ones(4, 3).double()
    diagnose_number(
        call(attempt, ones, ones.clone(), scale.clone()),
        math.log(4),
        [],
        "4 images and texts, all alike",
    )
    yield "features that distinguish nothing cost log n, a guess among n"
    _check_large_scale(attempt)
    yield "finite in float32 at a scale of 100, even where a pair is opposed"


def _check_large_scale(attempt):
    """Checks where a softmax by hand overflows, and a logarithm by hand meets zero."""
    images = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    texts, scale = images.flip(0), torch.tensor(math.log(100.0))
    logits = scale.exp() * images @ texts.T
    overflow = (
        "exp(100) is too large for float32, and exp(-200) is 0 in float32, whose logarithm is "
        "minus infinity. F.cross_entropy and log_softmax subtract the largest logit first."
    )
    cut = (
        "A constant inside the logarithm, or a clamp, hides how wrong the worst pairs are. "
        "F.cross_entropy needs none."
    )
    right = logits.softmax(1).diagonal()
    mistakes = [(value, overflow) for value in (math.nan, math.inf, -math.inf)]
    mistakes += [(-(right + 10.0**-k).log().mean(), cut) for k in range(4, 21)]
    diagnose_number(
        call(attempt, images.clone(), texts.clone(), scale.clone()),
        image_text_contrastive_loss(logits).item(),
        mistakes,
        "3 images and 3 texts in float32, two pairs opposed, scale 100, the largest that CLIP "
        "allows",
    )


# 6.2 ----------------------------------------------------------------------------------------------


def encode_to_latents(vae, images, generator):
    """Images to latents as the diffusion model uses them: a sample of the posterior, scaled."""
    return vae.encode(images).latent_dist.sample(generator) * vae.config.scaling_factor


def decode_latents(vae, latents):
    """Latents back to the VAE's own scale, and those to images."""
    return vae.decode(latents / vae.config.scaling_factor).sample


# 6.3 ----------------------------------------------------------------------------------------------


def sample_posterior(moments, noise):
    """A sample (b, c, h, w) of N(mean, exp(logvar)), and its KL divergence from N(0, 1), (b,).

    The mistake, exp(logvar), was reported in https://github.com/rachtsingh/ibp_vae/issues/3, and
    it was kept in an example of https://github.com/keras-team/keras/pull/9972, since a network
    that is trained with it adapts.
    """
    mean, logvar = moments.chunk(2, dim=1)
    std = (logvar / 2).exp()  # the variance is exp(logvar), std is its root
    sample = mean + std * noise
    kl = 0.5 * (mean**2 + std**2 - 1 - logvar).sum(dim=(1, 2, 3))
    return sample, kl


# 6.4 ----------------------------------------------------------------------------------------------


def attention_map(query, key, num_heads):
    """How n pixels attend to l tokens, (n, l), mean over heads; query (n, h·d), key (l, h·d)."""
    d = query.shape[1] // num_heads
    query = query.reshape(-1, num_heads, d).transpose(0, 1)  # (heads, n, d)
    key = key.reshape(-1, num_heads, d).transpose(0, 1)  # (heads, l, d)
    logits = query @ key.transpose(1, 2) / d**0.5  # (heads, n, l)
    # The softmax runs over the tokens, because every pixel shares its attention among them
    return logits.softmax(dim=2).mean(dim=0)


def _diffusers_maps(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    with torch.device("meta"):  # its weights are not needed, nor random numbers for them
        attention = Attention(query.shape[1], heads=num_heads, dim_head=query.shape[1] // num_heads)
    heads = (attention.head_to_batch_dim(x[None]) for x in (query, key))
    return attention.get_attention_scores(*heads)


def _map_mistakes(query: Tensor, key: Tensor, num_heads: int, maps: Tensor) -> list[Mistake]:
    h, d = num_heads, query.shape[1] // num_heads
    turned = [x.reshape(len(x), d, h).permute(2, 0, 1) for x in (query, key)]
    cut = [x.reshape(h, len(x), d) for x in (query, key)]
    split = [x.reshape(len(x), h, d).transpose(0, 1) for x in (query, key)]
    raw, wide = split[0] @ split[1].mT, query @ key.T
    logits = raw / d**0.5
    scale = f"The products of vectors of d = {d} numbers are divided by √d"
    one_head = "That is one head as wide as all: split the width first."
    mean = "The result is the mean over all heads."
    return [
        (logits.softmax(1).mean(0), "Your columns sum to 1: the softmax runs over the pixels, so "
                                    "they share a word. Every pixel shares its attention among "
                                    "the tokens: dim=-1."),
        (logits.softmax(0).mean(0), f"Every value is 1/{h}: the softmax runs over the heads."),
        (raw.softmax(2).mean(0), f"{scale}: that is missing, and the maps come out too sharp."),
        ((raw / (h * d) ** 0.5).softmax(2).mean(0),
         f"{scale}, the width of one head. You took the root of num_heads · d = {h * d}."),
        ((raw / d).softmax(2).mean(0), f"{scale}; you divided by d."),
        ((raw * d**0.5).softmax(2).mean(0), f"{scale}; you multiplied."),
        ((turned[0] @ turned[1].mT / d**0.5).softmax(2).mean(0),
         "You split the width into (d, num_heads). A head's d numbers stand together: "
         "(num_heads, d)."),
        ((cut[0] @ cut[1].mT / d**0.5).softmax(2).mean(0),
         "reshape(num_heads, n, d) has the right shape, but cuts the table across the pixels. "
         "First (n, num_heads, d), then transpose(0, 1)."),
        (logits.mean(0).softmax(1), "You averaged the heads before the softmax. Each head has a "
                                    "softmax of its own; average what comes out."),
        ((wide / (h * d) ** 0.5).softmax(1), one_head),
        ((wide / d**0.5).softmax(1), one_head),
        (maps, f"That is every head's map, (num_heads, n, l). {mean}"),
        (maps.transpose(0, 1), f"That is every head's map, (n, num_heads, l). {mean}"),
        (maps.sum(0), f"Rows sum to {h}: you summed the heads. {mean}"),
        (maps.mean(2), "You averaged over the tokens, and the mean of a row is always 1 / l. "
                       "Average over the heads."),
        (maps.mean(1), "You averaged over the pixels: that is no map any more. Average over the "
                       "heads."),
        (maps[0], f"That is only the first head. {mean}"),
        (maps[-1], f"That is only the last head. {mean}"),
        (maps.amax(0), f"That is the largest of the heads. {mean}"),
        (logits.mean(0), "These are logits: the softmax is missing."),
        (maps.mean(0).T, "That is (tokens, pixels). The result is (pixels, tokens), so that a "
                         "column is a word's map."),
    ]  # fmt: skip


def _verify_attention_map(attempt):
    for num_heads, d, n, l, seed in ((3, 4, 6, 5, 80), (1, 5, 4, 7, 82)):  # noqa: E741
        query, key = 1.5 * randn(seed, n, num_heads * d), randn(seed + 1, l, num_heads * d)
        maps = _diffusers_maps(query, key, num_heads)
        case = f"{n} pixels, {l} tokens, {num_heads} head{'s' * (num_heads > 1)} of width {d}"
        diagnose(
            call_on_copies(attempt, query=query, key=key, num_heads=num_heads),
            maps.mean(0),
            _map_mistakes(query, key, num_heads, maps),
            case,
        )
        yield f"{case}: the map of diffusers' own attention"
    query, key = torch.tensor([[20.0, 0, 0, 20]]).double(), torch.eye(4).double()[[0, 1, 3]]
    diagnose(
        call(attempt, query, key, 2),
        torch.tensor([[0.5, 0, 0.5]]),
        [],
        "a pixel whose first head attends to the first token, and whose second head to the last",
    )
    yield "two heads that attend to different words share the map between them"


# 6.5 ----------------------------------------------------------------------------------------------


def cfg_text_batch(prompt_embeds, uncond_embeds, num_images_per_prompt):
    """The U-Net's text for k images per prompt: (2·p·k, l, d), the empty prompts first."""
    # repeat_interleave, because images of one prompt stand together, as the noise rows do
    cond = prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
    return torch.cat([uncond_embeds.expand(len(cond), -1, -1), cond])


def _order_mistakes(p: int, k: int) -> dict[str, str]:
    names = "ABCDEF"[:p]
    each, every_image = "".join(name * k for name in names), "Every image needs its own."
    return cfg_order_mistakes("∅" * p, names, k) | {
        "∅" + each: f"The empty prompt is there once. {every_image}",
        "∅" * p + each: f"One empty prompt per prompt. {every_image}",
        "∅" * k + each: "The empty prompt is there k times. Every image of every prompt needs its "
                        "own, p · k.",
        "∅" * p + names: "num_images_per_prompt does not enter.",
    }  # fmt: skip


def _verify_cfg_text_batch(attempt):
    for p, k in ((3, 2), (2, 3), (2, 1)):
        prompts, empty, names = randn(90 + p, p, 4, 5), randn(95, 1, 4, 5), "ABC"[:p]
        case = f"{p} prompts ({names}), {k} image{'s' * (k > 1)} per prompt, ∅ is empty"
        result = as_tensor(
            call_on_copies(
                attempt, prompt_embeds=prompts, uncond_embeds=empty, num_images_per_prompt=k
            )
        )
        shape = getattr(result, "shape", ())
        require(
            shape != (2, p * k, 4, 5),
            f"{case}: you stacked two batches, {describe_value(result)}. It is one, joined with "
            "cat: (2·p·k, l, d).",
        )
        require(
            shape != (p * k, 8, 5),
            f"{case}: prompt and empty prompt became one text of 8 tokens. Join them along dim=0.",
        )
        if shape[1:] == (4, 5):
            diagnose_order(
                result,
                {"∅": empty[0]} | dict(zip(names, prompts, strict=True)),
                "∅" * (p * k) + "".join(name * k for name in names),
                _order_mistakes(p, k),
                case,
                "none of the prompts: it has tokens in another order. Repeat along dim=0, the "
                "prompts, and leave the tokens where they are.",
            )
        cond = torch.stack([prompt for prompt in prompts for _ in range(k)])
        diagnose(result, torch.cat([empty.repeat(p * k, 1, 1), cond]), [], case)
    yield "first the empty prompt for every image, then the prompts"
    yield "images of one prompt stand together, as in StableDiffusionPipeline"


EXERCISES = (
    Exercise(
        "6.1", "The contrastive loss", 10, 2, _verify_contrastive_loss,
        ("Three steps: vectors of length one, a table of n x n scaled cosines, and twice a choice "
         "among n.",
         "F.normalize(x, dim=1) makes rows of length one; logits = logit_scale.exp() * images @ "
         "texts.T.",
         "Row i is a question with n answers, and answer i is right: F.cross_entropy(logits, "
         "torch.arange(n)).",
         "Columns ask the other way: the same with logits.T. Return the mean of the two."),
        contrastive_loss,
    ),
    Exercise(
        "6.2", "The scaling factor of latents", 10, 2, verify_latents,
        ("vae.encode(images) has a .latent_dist, a Gaussian for every latent; vae.decode(z) has a "
         ".sample.",
         "The posterior's .sample(generator) samples from it. Its .mode() would be the mean.",
         "The VAE's own numbers times vae.config.scaling_factor are latents; before decoding, "
         "divide again."),
        inspect.getsource(encode_to_latents) + "\n\n" + inspect.getsource(decode_latents),
    ),
    Exercise(
        "6.3", "Find the bug", 5, 2, verify_sample_posterior,
        ("A KL divergence is never below 0. Try mean 0 and a log-variance of -0.5.",
         "Take many samples with mean 0 and log-variance log(9): how far should they spread, and "
         "how far do they?",
         "logvar is the logarithm of the variance. What is the logarithm of its root?",
         "std = exp(logvar / 2). One line is wrong; two results depend on it."),
        sample_posterior,
    ),
    Exercise(
        "6.4", "Which pixels attend to the word?", 15, 3, _verify_attention_map,
        ("The width is num_heads · d, head after head. Begin with d = query.shape[1] // num_heads.",
         "query.reshape(n, num_heads, d).transpose(0, 1) is (num_heads, n, d): now a batch of "
         "heads. The same for key.",
         "query @ key.transpose(1, 2) is (num_heads, n, l). Divide by d**0.5; softmax over the "
         "last axis, the tokens.",
         "At the very end .mean(dim=0): the mean of probabilities, not of logits."),
        attention_map,
    ),
    Exercise(
        "6.5", "Several images per prompt", 5, 2, _verify_cfg_text_batch,
        ("Write the rows down for prompts A and B and three images each: ∅∅∅∅∅∅AAABBB.",
         "x.repeat(3, 1, 1) gives ABABAB; x.repeat_interleave(3, dim=0) gives AAABBB.",
         "uncond_embeds.expand(n, -1, -1) is n times the empty prompt; torch.cat([…, …]) joins "
         "along dim=0."),
        cfg_text_batch,
    ),
)  # fmt: skip
