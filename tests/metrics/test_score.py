"""A score reads as a number and as one line, and passes through torchmetrics unharmed."""

import pytest
import torch
from torchmetrics import Metric

from course_lib.metrics import Score


def test_it_is_a_number_and_a_line():
    score = Score("psnr_pooled", 31.4159, 64, unit="dB")
    assert float(score) == 31.4159
    assert str(score) == "psnr_pooled 31.42 dB (n = 64)"
    assert (
        str(Score("accuracy[judge]", 0.5, 8, (0.25, 0.75)))
        == "accuracy[judge] 0.5 [0.25, 0.75] (n = 8)"
    )
    assert str(Score("kid", -0.000123456, 9)) == "kid -0.0001235 (n = 9)"


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Score("a", 1.0, 1).value = 2.0


def test_compute_may_return_it_alone_and_in_a_dict():
    class Fixed(Metric):
        def update(self):
            """Nothing to add."""

        def compute(self):
            return {"a": Score("a", 1.5, 3, (1.0, 2.0)), "b": Score("b", torch.pi, 4, unit="px")}

    metric = Fixed()
    metric.update()
    assert metric.compute() == {
        "a": Score("a", 1.5, 3, (1.0, 2.0)),
        "b": Score("b", torch.pi, 4, unit="px"),
    }
    assert isinstance(metric.compute()["a"], Score)
