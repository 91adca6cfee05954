"""The command line and the benchmarks themselves, at a size that takes no time."""

import json
import multiprocessing
import os

import pytest

from course_lib.bench import __main__ as command
from course_lib.bench import convolution
from course_lib.bench import metrics as metrics_bench
from course_lib.bench import world as world_bench
from course_lib.bench.registry import BENCHMARKS
from course_lib.bench.timing import BenchmarkRow
from course_lib.runtime import data_dir

ROW = BenchmarkRow("fake", "case 1", "course", 12.0, "ms", "peer", 2.0, 1.5, 2.5, "a note")


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(command, "BENCHMARKS", {"one": lambda: [ROW], "two": lambda: [ROW, ROW]})


def test_writes_a_table_and_json(fakes, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    assert command.main(["--out", str(out)]) == 0
    line = "| case 1 | course | 12 ms | peer | 2.00 (1.50 to 2.50) | a note |"
    assert line in capsys.readouterr().out
    results = json.loads(out.read_text(encoding="utf-8"))
    assert [len(results[name]["rows"]) for name in ("one", "two")] == [1, 2]
    assert results["one"]["rows"][0]["contender"] == "course"
    assert results["one"]["rows"][0]["ratio"] == 2.0
    assert "CPU core" in results["one"]["machine"] and results["one"]["versions"]["torch"]


def test_only_what_is_named_runs_and_the_rest_of_the_file_stays(fakes, tmp_path):
    out = tmp_path / "bench.json"
    out.write_text(json.dumps({"one": "as it was"}), encoding="utf-8")
    command.main(["two", "--out", str(out)])
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results["one"] == "as it was" and len(results["two"]["rows"]) == 2


def test_results_go_to_the_data_folder_by_default(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    command.main(["one"])
    assert (tmp_path / "bench.json").exists()


def test_an_unknown_name_is_refused(fakes, capsys):
    with pytest.raises(SystemExit):
        command.main(["three"])
    assert "NAME: expected some of one, two; got three" in capsys.readouterr().err


def test_the_registry():
    assert set(BENCHMARKS) >= {"world", "convolution", "metrics", "sampling"}


def test_convolution_compares_every_layer_in_both_directions(monkeypatch):
    monkeypatch.setattr(convolution, "CASES", ((4, 2, 6), (4, 3, 6)))
    monkeypatch.setattr(convolution, "SECONDS_PER_CASE", 0.01)
    rows = convolution.bench_convolution()
    assert len(rows) == 2 * 2 * 7 + 2 * 2
    assert all(row.value > 0 and row.ratio_low <= row.ratio <= row.ratio_high for row in rows)
    assert all(row.ratio == 1 for row in rows if row.contender == "3D")
    assert {row.peer for row in rows} == {
        "3D",
        "torchvision Conv2Plus1D",
        "diffusers CogVideoXCausalConv3d",
    }
    assert "FLOPs predict 3.00" in next(row.note for row in rows if row.contender == "2D")


def test_world_reports_a_rate_against_its_target(monkeypatch):
    class Stub:
        batches = []
        video = None

        def __init__(self, split, size, num_frames):
            self.key = size, num_frames

        def batch(self, indices):
            self.batches.append((*self.key, tuple(indices)))
            return self

    monkeypatch.setattr(world_bench, "World", Stub)
    rows = world_bench.bench_world()
    assert rows[0].case == "32 clips of 16 frames, 64x64" and rows[0].unit == "frames/s"
    assert rows[0].ratio == pytest.approx(rows[0].value / 1500)
    assert len(Stub.batches) == len(set(Stub.batches)) > 3  # never the same batch twice


def test_metrics_agree_with_their_peers(monkeypatch):
    for name, value in (
        ("FEATURE_DIM", 12),
        ("NUM_SAMPLES", 40),
        ("NUM_FEW_SAMPLES", 5),
        ("VIDEO_SHAPE", (1, 3, 2, 16, 16)),
    ):
        monkeypatch.setattr(metrics_bench, name, value)
    rows = metrics_bench.bench_metrics()
    assert [(row.contender, row.peer) for row in rows] == [
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


# The file of results


def test_saving_the_shipped_file_again_gives_the_same_bytes(tmp_path):
    shipped = data_dir() / "bench.json"
    results = command.read_results(shipped)
    path = tmp_path / "bench.json"
    path.write_bytes(shipped.read_bytes())
    command.add_result("world", results["world"], path)
    assert path.read_bytes() == shipped.read_bytes()


def add_entries(first, path):
    for number in range(first, 40, 2):
        command.add_result(f"é{number}", {"rows": [number]}, path)


def test_two_processes_lose_none_of_each_others_results(tmp_path):
    path = tmp_path / "bench.json"
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    writers = [context.Process(target=add_entries, args=(first, path)) for first in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert command.read_results(path) == {f"é{n}": {"rows": [n]} for n in range(40)}


def test_a_failed_write_leaves_the_old_results(tmp_path, monkeypatch):
    path = tmp_path / "bench.json"
    command.add_result("one", {"rows": []}, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", mock_failure)
    with pytest.raises(OSError, match="disk full"):
        command.add_result("two", {"rows": []}, path)
    assert path.read_bytes() == before and not list(tmp_path.glob("*.part"))


def mock_failure(*_):
    raise OSError("disk full")


@pytest.mark.parametrize("content", [b'{"one": {', b"[]", b"\xff"])
def test_damaged_results_are_refused_before_anything_runs(fakes, tmp_path, capsys, content):
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as error:
        command.main(["--out", str(path)])
    assert error.value.code == 2
    assert f"--out: {path}: expected" in capsys.readouterr().err
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "value"), [("COURSE_PROFILE", "fast"), ("COURSE_DEVICE", "abacus")]
)
def test_a_wrong_environment_is_one_line(fakes, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        command.main(["one"])
    assert error.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert name in message and value in message
