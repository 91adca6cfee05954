"""An alias: a model that is also a part of a pipeline is kept there only."""

import pytest
import torch
from diffusers import AutoencoderKL

from course_lib import zoo

VAE = dict(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)


def vae():
    torch.manual_seed(0)
    return AutoencoderKL(**VAE)


def store(root, name, model=None, save=None):
    """A checkpoint as a recipe would store it."""
    save = save or (lambda folder: model.half().save_pretrained(folder))
    return zoo.store(name, save, {"evaluation": {"psnr": 31.5}, "seed": 0}, f"# {name}\n", root)


def other_vae():
    torch.manual_seed(1)
    return AutoencoderKL(**VAE)


@pytest.fixture
def shared(tmp_path):
    store(tmp_path, "mini-vae", vae())
    store(tmp_path, "features/video", other_vae())
    return tmp_path


def pipeline(root, vae):
    """A checkpoint with an autoencoder and something else in it, as diffusers would write it."""

    def save(folder):
        vae.half().save_pretrained(folder / "vae")
        (folder / "model_index.json").write_text("{}", encoding="utf-8")

    return store(root, "mini-sd", save=save)


@pytest.mark.parametrize("last", ["the part", "the pipeline"])
def test_the_same_model_is_kept_once(shared, last):
    pipeline(shared, vae())
    if last == "the part":
        store(shared, "mini-vae", vae())
    assert sorted(file.name for file in (shared / "mini-vae").iterdir()) == [
        "README.md",
        "evaluation.json",
    ]
    assert zoo.path("mini-vae", shared) == shared / "mini-sd" / "vae"
    assert (
        zoo.card("mini-vae", shared).evaluation == {"psnr": 31.5}
        and zoo.card("mini-vae", shared).text == "# mini-vae\n"
    )
    for loaded, stored in zip(
        zoo.load("mini-vae", root=shared).parameters(), vae().half().parameters(), strict=True
    ):
        assert torch.equal(loaded, stored.float())
    assert (shared / "features" / "video" / "config.json").exists()  # another model
    listed = {
        line[66:] for line in (shared / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    }
    found = {file.relative_to(shared).as_posix() for file in shared.rglob("*") if file.is_file()}
    assert listed == {file for file in found if not file.endswith(("README.md", "SHA256SUMS"))}


def test_a_pipeline_with_another_part_than_the_stored_one_is_refused(shared):
    with pytest.raises(ValueError, match="save: expected mini-sd/vae to be the stored mini-vae"):
        pipeline(shared, other_vae())
    assert zoo.names(shared) == ["features/video", "mini-vae"]
    assert zoo.path("mini-vae", shared) == shared / "mini-vae"
    zoo.verify("mini-vae", shared)


def test_a_retrained_part_has_its_own_folder_and_the_pipeline_stays(shared):
    pipeline(shared, vae())
    store(shared, "mini-vae", other_vae())
    assert zoo.path("mini-vae", shared) == shared / "mini-vae"
    zoo.verify("mini-sd", shared)
    pipeline(shared, other_vae())
    assert zoo.path("mini-vae", shared) == shared / "mini-sd" / "vae"


def test_a_pipeline_may_be_stored_again_but_not_with_another_part(shared):
    pipeline(shared, vae())
    pipeline(shared, vae())
    zoo.verify("mini-vae", shared)
    before = (shared / "SHA256SUMS").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="save: expected mini-sd/vae to be the stored mini-vae"):
        pipeline(shared, other_vae())
    assert (shared / "SHA256SUMS").read_text(encoding="utf-8") == before and not list(
        shared.glob(".*")
    )
    zoo.verify("mini-vae", shared)


def test_what_is_wrong_with_the_pipeline_is_wrong_with_its_part(shared):
    pipeline(shared, vae())
    weights = shared / "mini-sd" / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"?")
    with pytest.raises(
        ValueError, match="checkpoint mini-vae: corrupt mini-sd/vae/diffusion_pytorch_model"
    ):
        zoo.verify("mini-vae", shared)
    weights.unlink()
    with pytest.raises(
        FileNotFoundError, match="checkpoint mini-vae: missing mini-sd/vae/diffusion_pytorch_model"
    ):
        zoo.load("mini-vae", root=shared)
    lines = (shared / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    (shared / "SHA256SUMS").write_text(
        "".join(f"{line}\n" for line in lines if "mini-sd" not in line), encoding="utf-8"
    )
    with pytest.raises(
        FileNotFoundError, match="checkpoint mini-vae: missing mini-sd/vae; restore it"
    ):
        zoo.verify("mini-vae", shared)
