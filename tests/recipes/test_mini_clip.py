"""mini-clip's recipe: the tokenizer, the families of captions, the loss, and what it may not see."""

import subprocess
import sys

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from course_lib.recipes import mini_clip
from course_lib.recipes.recipe import Settings
from course_lib.world import BACKGROUNDS, MOTIONS, NOVEL_EMOJI, SUBJECTS, Scene, caption, part_of
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from course_lib.world.subjects import COLOURED_SHAPES, SEEN_EMOJI, looks_round

SMALL = Settings(steps=3, batch=16, lr=1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return mini_clip.build_tokenizer()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mini_clip.build().eval()


def test_every_known_word_is_one_token(tokenizer):
    words = {
        word for text in mini_clip.captions_to_read() for word in text.replace(",", " ,").split()
    }
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, word  # start, the word, end


def test_all_captions_fit_and_read_back(tokenizer):
    texts = [
        template.format(a_subject=f"an {subject}", motion=motion, background=background)
        for subject in SUBJECTS  # the novel ones too, letter by letter if need be
        for motion in MOTIONS[::4]
        for background in BACKGROUNDS[::3]
        for template in VIDEO_TEMPLATES + IMAGE_TEMPLATES
    ]
    texts = list(dict.fromkeys(texts))  # of pictures, no motion
    tokens = tokenizer(texts).input_ids
    assert max(map(len, tokens)) <= mini_clip.TOKENS
    assert len({tuple(row) for row in tokens}) == len(texts)
    plain = [
        tokenizer.decode(row, skip_special_tokens=True).replace(" ,", ",") for row in tokens[:200]
    ]
    assert plain == texts[:200]


def test_the_tokenizer_is_the_same_in_every_process_and_after_a_folder(tokenizer, tmp_path):
    """Ties between merges were once broken by the order of a hash map: other ids in every process."""
    code = "from course_lib.recipes.mini_clip import build_tokenizer; print(build_tokenizer().backend_tokenizer.to_str())"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert elsewhere == tokenizer.backend_tokenizer.to_str()
    assert all(mini_clip.build_tokenizer().get_vocab() == tokenizer.get_vocab() for _ in range(5))
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "A dog of unknown BREED, 7 ä, is moving up to a birthday cake"
    assert (
        again(text).input_ids == tokenizer(text).input_ids
        and again.get_vocab() == tokenizer.get_vocab()
    )
    assert again.model_max_length == mini_clip.TOKENS


def test_prompts_are_told_apart(model):
    """Without eos_token_id transformers pools the first token, and all prompts are one."""
    texts = ["a tiger on a sea background", "a tiger on a snow background", "a red star"]
    with torch.no_grad():
        vectors = model.get_text_features(mini_clip.tokenize(texts)).pooler_output
    assert (vectors[0] - vectors[1]).abs().max() > 1e-4 and (
        vectors[0] - vectors[2]
    ).abs().max() > 1e-4


def test_families_show_only_what_generators_may_see():
    scenes = [scene for number in range(40) for scene in mini_clip.families(number, 16)]
    assert {part_of(scene.subject, scene.motion) for scene in scenes} == {"seen"}
    assert not {scene.subject for scene in scenes} & set(NOVEL_EMOJI)
    assert all(scene.variant % 2 == 0 for scene in scenes), "odd variants are for testing"


def test_a_family_differs_in_one_word_at_a_time():
    shapes = 0
    for number in range(20):
        first, elsewhere, one, other = mini_clip.families(number, 4)
        assert elsewhere.subject == first.subject and elsewhere.background != first.background
        for relative in (one, other):
            assert relative.background == first.background and relative.motion == first.motion
            assert relative.subject != first.subject
        if first.subject in COLOURED_SHAPES:
            (colour, form), (same, another), (tint, likewise) = (
                s.subject.split() for s in (first, one, other)
            )
            assert colour == same and form != another
            assert colour != tint and form == likewise
            shapes += 1
    assert 0 < shapes < 20


def test_every_second_family_is_of_shapes():
    firsts = [mini_clip.families(number, 4)[0].subject for number in range(40)]
    assert all(subject in COLOURED_SHAPES for subject in firsts[1::2])
    assert any(subject in SEEN_EMOJI for subject in firsts[::2])


def test_every_scene_has_relatives_that_may_be_seen():
    for subject in (*SEEN_EMOJI, *COLOURED_SHAPES):
        for motion in (
            MOTIONS if not looks_round(subject) else [m for m in MOTIONS if m != "spinning"]
        ):
            for names in mini_clip.relatives(Scene(subject, motion, "sea", 2)):
                assert names and subject not in names
                assert {part_of(name, motion) for name in names} == {"seen"}


def test_batches_are_pure_and_name_equal_captions():
    one, again = mini_clip.batches(5, SMALL), mini_clip.batches(5, SMALL)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one["pixel_values"].shape == (16, 3, 64, 64) and one["input_ids"].shape == (
        16,
        mini_clip.TOKENS,
    )
    assert one["pixel_values"].abs().max() <= 1 + 1e-5


def test_the_loss_is_clips_where_all_meanings_differ():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        mini_clip.contrast(logits, torch.arange(6)), image_text_contrastive_loss(logits)
    )


def test_equal_captions_are_not_held_against_each_other():
    twins = torch.tensor([0, 0, 1])
    sure = torch.full((3, 3), -50.0)
    sure[:2, :2] = sure[2, 2] = 50.0
    assert mini_clip.contrast(sure, twins) == pytest.approx(
        torch.tensor(2.0).log().item() * 2 / 3, abs=1e-5
    )
    swapped = sure.clone()
    swapped[:2] = sure[[1, 0]]  # either twin is the right answer
    assert mini_clip.contrast(swapped, twins) == mini_clip.contrast(sure, twins)


def test_the_folder_is_one_that_transformers_knows(model, tmp_path):
    mini_clip.save(model, tmp_path)
    again = CLIPModel.from_pretrained(tmp_path).eval()
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(["a tiger"], return_tensors="pt")
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    pixels = processor(images=picture, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels[0], picture * 2 - 1)
    assert again(pixel_values=pixels, **tokens).logits_per_image.isfinite().all()
    assert not list(tmp_path.glob("*.bin"))


def test_pictures_for_retrieval_are_all_different():
    from course_lib.world import World

    pictures = mini_clip.distinct(World("test", frames=1, anytime=True), 64)
    assert (
        len({(scene.subject, scene.background) for scene in pictures.scenes}) == len(pictures) == 64
    )
    assert caption(Scene("tiger", "growing", "sea")) not in pictures.image_captions
