"""mini-clip's recipe: tokenizer, groups of hard negatives, loss, and its base subset."""

import subprocess
import sys

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from course_lib.recipes import mini_clip
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import (
    BACKGROUNDS,
    BASE_EMOJI,
    COLOURED_SHAPES,
    MOTIONS,
    NOVEL_EMOJI,
    SUBJECTS,
    Scene,
    World,
    caption,
    subset_of,
)
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from course_lib.world.subjects import is_rotation_symmetric

SMALL = TrainConfig(num_steps=3, batch_size=16, lr=1e-3, eval_samples=64)


@pytest.fixture(scope="module")
def tokenizer():
    return mini_clip.build_tokenizer()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mini_clip.build_model().eval()


def test_every_word_of_the_world_is_one_token(tokenizer):
    texts = mini_clip.vocabulary_captions()
    words = {word for text in texts for word in text.replace(",", " ,").split()}
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, word  # start, the word, end


def test_all_captions_fit_and_can_be_decoded(tokenizer):
    texts = [
        template.format(a_subject=f"an {subject}", motion=motion, background=background)
        for subject in SUBJECTS  # the novel ones too, letter by letter if need be
        for motion in MOTIONS[::4]
        for background in BACKGROUNDS[::3]
        for template in VIDEO_TEMPLATES + IMAGE_TEMPLATES
    ]
    texts = list(dict.fromkeys(texts))  # image captions have no motion
    tokens = tokenizer(texts).input_ids
    assert max(map(len, tokens)) <= mini_clip.MAX_TOKENS
    assert len({tuple(row) for row in tokens}) == len(texts)
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens[:200]]
    assert [text.replace(" ,", ",") for text in decoded] == texts[:200]


def test_the_tokenizer_is_the_same_in_every_process_and_after_saving(tokenizer, tmp_path):
    """Ties between merges were once broken by the order of a hash map: new ids in every process."""
    code = (
        "from course_lib.recipes.mini_clip import build_tokenizer; "
        "print(build_tokenizer().backend_tokenizer.to_str())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == tokenizer.backend_tokenizer.to_str()
    assert all(mini_clip.build_tokenizer().get_vocab() == tokenizer.get_vocab() for _ in range(5))
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "A dog of unknown BREED, 7 ä, is moving up to a birthday cake"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == mini_clip.MAX_TOKENS


def test_prompts_have_different_embeddings(model):
    """Without eos_token_id transformers pools the first token, and all prompts are equal."""
    texts = ["a tiger on a sea background", "a tiger on a snow background", "a red star"]
    with torch.no_grad():
        vectors = model.get_text_features(mini_clip.tokenize(texts)).pooler_output
    assert (vectors[0] - vectors[1]).abs().max() > 1e-4
    assert (vectors[0] - vectors[2]).abs().max() > 1e-4


def test_groups_are_of_the_base_subset():
    groups = [mini_clip.hard_negative_groups(number, 16) for number in range(40)]
    scenes = [scene for group in groups for scene in group]
    assert {subset_of(scene.subject, scene.motion) for scene in scenes} == {"base"}
    assert not {scene.subject for scene in scenes} & set(NOVEL_EMOJI)
    assert all(scene.variant % 2 == 0 for scene in scenes), "odd variants are for testing"


def test_scenes_of_a_group_differ_in_one_word_at_a_time():
    num_shapes = 0
    for number in range(20):
        first, other_background, *negatives = mini_clip.hard_negative_groups(number, 4)
        assert other_background.subject == first.subject
        assert other_background.background != first.background
        for negative in negatives:
            assert (negative.background, negative.motion) == (first.background, first.motion)
            assert negative.subject != first.subject
        if first.subject in COLOURED_SHAPES:
            (colour, shape), (colour_1, shape_1), (colour_2, shape_2) = (
                scene.subject.split() for scene in (first, *negatives)
            )
            assert colour == colour_1 and shape != shape_1
            assert colour != colour_2 and shape == shape_2
            num_shapes += 1
    assert 0 < num_shapes < 20


def test_every_second_group_is_of_shapes():
    firsts = [mini_clip.hard_negative_groups(number, 4)[0].subject for number in range(40)]
    assert all(subject in COLOURED_SHAPES for subject in firsts[1::2])
    assert any(subject in BASE_EMOJI for subject in firsts[::2])


def test_every_scene_has_hard_negatives_of_the_base_subset():
    for subject in (*BASE_EMOJI, *COLOURED_SHAPES):
        symmetric = is_rotation_symmetric(subject)
        for motion in [m for m in MOTIONS if not (symmetric and m == "spinning")]:
            for names in mini_clip.hard_negatives(Scene(subject, motion, "sea", 2)):
                assert names and subject not in names
                assert {subset_of(name, motion) for name in names} == {"base"}


def test_batches_are_pure_and_in_range():
    batch, again = mini_clip.make_batch(5, SMALL), mini_clip.make_batch(5, SMALL)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["pixel_values"].shape == (16, 3, 64, 64)
    assert batch["input_ids"].shape == (16, mini_clip.MAX_TOKENS)
    assert batch["pixel_values"].abs().max() <= 1 + 1e-5


def test_without_shared_positives_the_loss_is_clips():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    loss = mini_clip.multi_positive_clip_loss(logits, torch.arange(6))
    torch.testing.assert_close(loss, image_text_contrastive_loss(logits))


def test_rows_with_equal_ids_are_positives_of_each_other():
    positive_ids = torch.tensor([0, 0, 1])
    logits = torch.full((3, 3), -50.0)
    logits[:2, :2] = logits[2, 2] = 50.0
    loss = mini_clip.multi_positive_clip_loss(logits, positive_ids)
    assert loss == pytest.approx(torch.tensor(2.0).log().item() * 2 / 3, abs=1e-5)
    swapped = logits.clone()
    swapped[:2] = logits[[1, 0]]  # either of the two is right
    assert mini_clip.multi_positive_clip_loss(swapped, positive_ids) == loss


def test_transformers_loads_the_folder(model, tmp_path):
    mini_clip.save(model, tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path).eval()
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(["a tiger"], return_tensors="pt")
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    pixels = processor(images=image, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels[0], image * 2 - 1)
    assert loaded(pixel_values=pixels, **tokens).logits_per_image.isfinite().all()
    assert not list(tmp_path.glob("*.bin"))


def test_images_for_retrieval_are_all_different():
    world = World("test", num_frames=1, random_time_offset=True)
    images = mini_clip.distinct_scenes(world, 64)
    pairs = {(scene.subject, scene.background) for scene in images.scenes}
    assert len(pairs) == len(images) == 64
    assert caption(Scene("tiger", "growing", "sea")) not in images.image_captions


def test_every_target_is_measured(model):
    metrics = mini_clip.evaluate(model, SMALL)
    assert set(mini_clip.RECIPE.targets) <= set(metrics)
    assert all(0 <= value <= 1 for value in metrics.values())
