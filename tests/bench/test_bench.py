"""The command line and the benchmarks themselves, at a size that takes no time."""

import json

import pytest

from course_lib.bench import __main__ as command
from course_lib.bench import convolution
from course_lib.bench import metrics as metrics_bench
from course_lib.bench import world as world_bench
from course_lib.bench.registry import BENCHMARKS
from course_lib.bench.timing import Row

ROW = Row("fake", "case 1", "ours", 12.0, "ms", "theirs", 2.0, 1.5, 2.5, "a note")


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(command, "BENCHMARKS", {"one": lambda: [ROW], "two": lambda: [ROW, ROW]})


def test_writes_a_table_and_json(fakes, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    assert command.main(["--out", str(out)]) == 0
    assert (
        "| case 1 | ours | 12 ms | theirs | 2.00 (1.50 to 2.50) | a note |"
        in capsys.readouterr().out
    )
    found = json.loads(out.read_text())
    assert [len(found[name]["rows"]) for name in ("one", "two")] == [1, 2]
    assert found["one"]["rows"][0]["ratio"] == 2.0
    assert "CPU core" in found["one"]["machine"] and found["one"]["versions"]["torch"]


def test_only_what_is_named_runs_and_the_rest_of_the_file_stays(fakes, tmp_path):
    out = tmp_path / "bench.json"
    out.write_text(json.dumps({"one": "as it was"}))
    command.main(["two", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["one"] == "as it was" and len(found["two"]["rows"]) == 2


def test_results_go_to_the_data_folder_unless_told_otherwise(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    command.main(["one"])
    assert (tmp_path / "bench.json").exists()


def test_an_unknown_name_is_refused(fakes, capsys):
    with pytest.raises(SystemExit):
        command.main(["three"])
    assert "unknown: three; expected some of: one, two" in capsys.readouterr().err


def test_the_registry():
    assert set(BENCHMARKS) >= {"world", "convolution", "metrics", "sampling"}


def test_convolution_compares_every_way_in_both_directions(monkeypatch):
    monkeypatch.setattr(convolution, "CASES", ((4, 2, 6), (4, 3, 6)))
    monkeypatch.setattr(convolution, "SECONDS_A_CASE", 0.01)
    rows = convolution.bench_convolution()
    assert len(rows) == 2 * 2 * 7 + 2 * 2
    assert all(row.value > 0 and row.low <= row.ratio <= row.high for row in rows)
    assert all(row.ratio == 1 for row in rows if row.subject == "3D")
    assert {row.peer for row in rows} == {
        "3D",
        "torchvision Conv2Plus1D",
        "diffusers CogVideoXCausalConv3d",
    }
    assert "FLOPs promise 3.00" in next(row.note for row in rows if row.subject == "2D")


def test_world_reports_a_rate_against_its_target(monkeypatch):
    class Stub:
        drawn = []

        def __init__(self, **how):
            self.how, self.video = how, None

        def batch(self, indices):
            self.drawn.append((self.how["size"], self.how["frames"], tuple(indices)))
            return self

    monkeypatch.setattr(world_bench, "World", Stub)
    rows = world_bench.bench_world()
    assert rows[0].case == "32 clips of 16 frames, 64x64" and rows[0].unit == "frames/s"
    assert rows[0].ratio == pytest.approx(rows[0].value / 1500)
    assert len(Stub.drawn) == len(set(Stub.drawn)) > 3  # never the same batch twice


def test_metrics_agree_with_their_peers(monkeypatch):
    for name, value in (
        ("WIDTH", 12),
        ("SAMPLES", 40),
        ("FEW", 5),
        ("CLIPS", 1),
        ("FRAMES", 2),
        ("PIXELS", 16),
    ):
        monkeypatch.setattr(metrics_bench, name, value)
    rows = metrics_bench.bench_metrics()
    assert [(row.subject, row.peer) for row in rows] == [
        ("ssim", "scikit-image"),
        ("ssim", "torchmetrics"),
        ("psnr", "scikit-image"),
        ("psnr", "torchmetrics"),
        ("frechet_distance", "scipy sqrtm"),
        ("frechet_distance", "torchmetrics"),
        ("frechet_distance", "torchmetrics"),
    ]
    assert rows[-1].case == "5 features of width 12"
    differences = [float(row.note.removeprefix("relative difference ")) for row in rows]
    assert max(differences) < 1e-6  # torchmetrics keeps the range of PSNR in float32
    assert differences[4] < 1e-8
