"""mini-sd in an environment with torch, diffusers and transformers, and without the course."""

import importlib.metadata
import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_lib import zoo
from course_lib.metrics import PromptAccuracy

PROMPT = "a poodle on a sea background"
CHILD = """
import importlib.util, socket, sys

def refuse(*arguments):
    raise OSError("the network is switched off")

socket.socket.connect = refuse
assert importlib.util.find_spec("course_lib") is None
assert importlib.util.find_spec("torchvision") is None
import numpy as np
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
images = []
for seed in range(4):
    generator = torch.Generator().manual_seed(seed)
    images += pipeline(sys.argv[2], generator=generator, num_inference_steps=25).images
np.save(sys.argv[3], np.stack([np.asarray(image) for image in images]))
"""


def needed(names):
    """The distributions of these names and all that they require on this machine, recursively."""
    distributions = {}
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in distributions:
            continue
        distributions[name] = importlib.metadata.distribution(name)
        for line in distributions[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return distributions


def plain_environment(folder):
    """A virtual environment with only these: links to the installed packages."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in needed(["torch", "diffusers", "transformers"]).values():
        tops = {
            file.parts[0]
            for file in distribution.files
            if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            source, link = Path(distribution.locate_file(top)), site / top
            if source.exists() and not link.exists():
                link.symlink_to(source)
    return folder / "bin" / "python"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_it_generates_what_the_prompt_names_in_plain_diffusers(tmp_path):
    python = plain_environment(tmp_path / "plain")
    target = tmp_path / "images.npy"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "COURSE"))
    }
    subprocess.run(
        [python, "-I", "-c", CHILD, zoo.default_root() / "mini-sd", PROMPT, target],
        check=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    images = torch.from_numpy(np.load(target)).permute(0, 3, 1, 2) / 127.5 - 1  # (b, c, h, w)
    assert images.shape == (4, 3, 64, 64)
    accuracy = PromptAccuracy(zoo.load("judge"), "judge")
    accuracy.update(images[:, :, None], [PROMPT] * 4)
    assert accuracy.compute()["all"].value >= 0.75
