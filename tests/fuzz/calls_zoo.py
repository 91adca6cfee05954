"""Valid calls of course_lib.zoo."""

import torch

from course_lib import zoo
from course_lib.zoo import registry
from tests.fuzz.args import C, Dir
from tests.fuzz.harness import add


def save(folder):
    (folder / "config.json").write_text("{}", encoding="utf-8")


def stored_root(folder):
    """A folder of checkpoints with one in it."""
    root = folder / "checkpoints"
    zoo.store("tiny", save, {"evaluation": {"psnr": 1.0}, "seed": 0}, "# tiny\n", root)
    return root


def listed(root):
    """Names and sizes of all files of a root, without locks."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix == ".json")


NAME, ROOT = C("tiny"), Dir(stored_root)
add("zoo.registry.names", root=Dir(stored_root, allows="missing"))
for name in ("path", "verify", "card", "check_name"):
    add(f"zoo.registry.{name}", name=NAME, root=ROOT)
add(
    "zoo.registry.load",
    lambda **kwargs: type(zoo.load(**kwargs)),
    name=C("mini-vae"),
    dtype=torch.float32,
)
add("zoo.registry.load_cached", lambda name: type(registry.load_cached(name)), name=C("judge"))
add(
    "zoo.store.store",
    lambda name, root: (zoo.store(name, save, {"evaluation": {}}, "# x\n", root), listed(root)),
    name=C("new/tiny", allows="unknown"), root=Dir(stored_root, allows="missing", skips="None"),
)  # fmt: skip
add("zoo.checksums.verify_folder", name="tiny", folder=C("tiny"), root=ROOT)
add("zoo.checksums.check_no_pickles", label="tiny", folder=Dir(lambda f: stored_root(f) / "tiny"))
