"""The U-Nets of lessons 03, 06 and 07 are lesson 02's figure with a layer added."""

from xml.etree import ElementTree

import pytest

from course_lib import zoo
from tools import write_unet_figures as tool

BASE = (tool.IMAGES / "unet.svg").read_text(encoding="utf-8")


def test_the_committed_figures_are_those_of_the_tool(capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("figure", tool.FIGURES.values(), ids=tool.FIGURES)
def test_every_block_has_the_layer(figure):
    svg = tool.draw(BASE, figure)
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter() if text.text]
    assert texts.count(figure.label) == 5 + 1  # blocks and legend
    assert not any(name in svg for name in ("down-3", "16 × 16", "noisy image"))


def test_sizes_are_those_of_the_models():
    vdm, mini_sd = zoo.load("vdm"), zoo.load("mini-sd").unet
    width = vdm.config.block_out_channels
    assert tool.FIGURES["unet_vdm"].sizes == (
        f"8 × 8 tokens, {width[0]} channels",
        f"4 × 4, {width[1]} channels",
    )
    assert 32 // vdm.config.patch_size == 8
    side, width = mini_sd.config.sample_size, mini_sd.config.block_out_channels
    expected = tuple(f"{side >> k} × {side >> k}, {width[k]} channels" for k in (0, 1))
    for name in ("unet_text", "unet_inflated"):
        assert tool.FIGURES[name].sizes == expected


def test_a_figure_that_lacks_a_text_is_refused():
    with pytest.raises(ValueError, match=r"unet\.svg must contain '>noisy<'"):
        tool.draw(BASE.replace(">noisy<", ">loud<"), tool.FIGURES["unet_vdm"])
