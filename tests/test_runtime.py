"""runtime: profile, device, dtype, seeds, time and memory, the hub, the data folder."""

import http.server
import importlib
import inspect
import json
import os
import platform
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from course_lib import runtime


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("COURSE_PROFILE", "COURSE_DEVICE", "COURSE_DATA", "COURSE_HUB"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["cpu", "gpu", "ci"])
def test_profile_is_what_the_environment_says(monkeypatch, name):
    monkeypatch.setenv("COURSE_PROFILE", name)
    assert runtime.profile() == name
    assert runtime.by_profile(cpu="cpu", gpu="gpu", ci="ci") == name


def test_profile_defaults_to_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.profile() == "gpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.profile() == "cpu"


def test_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "tpu")
    with pytest.raises(ValueError, match="COURSE_PROFILE: expected one of cpu, gpu, ci; got 'tpu'"):
        runtime.by_profile(cpu=1, gpu=2, ci=3)


def test_by_profile_requires_every_profile():
    with pytest.raises(TypeError):
        runtime.by_profile(cpu=1, gpu=2)


def test_device_order(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.device() == torch.device("cuda")
    monkeypatch.setenv("COURSE_PROFILE", "ci")
    assert runtime.device() == torch.device("cpu")
    monkeypatch.setenv("COURSE_DEVICE", "cuda:1")
    assert runtime.device() == torch.device("cuda:1")
    monkeypatch.delenv("COURSE_PROFILE")
    monkeypatch.delenv("COURSE_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_dtype_on_cpu(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert runtime.dtype("cpu") == runtime.dtype(torch.device("cpu")) == expected


def test_dtype_elsewhere(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation
    )
    assert runtime.dtype("cuda:0") == torch.bfloat16
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation
    )
    assert runtime.dtype("cuda:0") == torch.float32
    assert runtime.dtype("mps") == torch.float32
    monkeypatch.setenv("COURSE_DEVICE", "mps")
    assert runtime.dtype() == torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_autocast_multiplies_in_the_dtype_of_the_device(monkeypatch, fast):
    monkeypatch.setattr(runtime, "dtype", lambda device: torch.bfloat16 if fast else torch.float32)
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with runtime.autocast("cpu"):
        assert layer(x).dtype == runtime.dtype("cpu")
    assert layer(x).dtype == layer.weight.dtype == torch.float32


def test_seeding_repeats_every_draw():
    def draws():
        generator = runtime.seed_everything(7)
        return (
            random.random(),
            np.random.rand(),
            torch.rand(()),
            torch.rand((), generator=generator),
        )

    first, second = draws(), draws()
    assert first == second
    assert first[2] == first[3]  # the generator carries the same seed
    assert runtime.seed_everything(8).initial_seed() == 8


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, float("nan"), "7", None])
def test_seed_out_of_range(seed):
    seed_everything = inspect.unwrap(runtime.seed_everything)  # without the tests' type checker
    with pytest.raises(ValueError, match=rf"seed: expected an integer from 0 to .*, got {seed!r}"):
        seed_everything(seed)


def test_a_numpy_integer_is_a_seed():
    seed_everything = inspect.unwrap(runtime.seed_everything)
    seed_everything(np.int64(7))
    first = random.random()
    seed_everything(7)
    assert random.random() == first


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "0", " cpu"])
def test_unknown_device_is_refused(monkeypatch, name):
    monkeypatch.setenv("COURSE_DEVICE", name)
    with pytest.raises(ValueError, match=f"COURSE_DEVICE: expected a device .* got {name!r}"):
        runtime.device()


def test_an_unknown_profile_does_not_lead_to_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("COURSE_PROFILE", "CPU")
    with pytest.raises(ValueError, match="COURSE_PROFILE: expected one of cpu, gpu, ci"):
        runtime.device()


def test_machine_summary_is_one_line_of_facts():
    text = runtime.machine_summary()
    assert "\n" not in text
    assert torch.__version__ in text and "CPU core" in text and "profile" in text


FAULTS = """
import resource, sys
import torch
from course_lib import runtime
if sys.argv[1] == "tuned":
    assert runtime.tune_glibc_malloc()
def rounds(count):
    for _ in range(count):
        torch.ones(8, 2**20), torch.ones(8, 2**20)  # 32 MB each
rounds(30)  # in the first ones the heap grows by one more tensor, in one run of four
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_reused():
    def page_faults(mode):
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode], capture_output=True, check=True
            ).stdout
        )

    assert (
        page_faults("tuned") < 100 < 20 * 15 < page_faults("default")
    )  # 64 MB a round: 16,384 pages, 32 where they have 2 MB


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: pytest.fail("opened the C library"))
    assert runtime.tune_glibc_malloc() is False


def test_measure_times_the_block(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    with runtime.measure("a nap") as cost:
        time.sleep(0.15)
    assert 0.15 <= cost.seconds < 1.5
    assert cost.peak_mb > 50  # torch alone is more
    line = capsys.readouterr().out
    assert line == f"{cost}\n"
    assert line.startswith("measured: a nap: ") and f"{runtime.cpu_cores()} CPU core" in line


PEAKS = """
import json, sys, time
import torch
from course_lib import runtime

with runtime.measure("nothing") as before:
    pass
if sys.argv[1] == "True":
    torch.ones(60_000_000)  # lifts the process's high-water mark above 100 MB
with runtime.measure("100 MB for a moment") as cost:
    x = torch.ones(25_000_000)
    time.sleep(0.1)
    del x
with runtime.measure("nothing again") as after:
    pass
print(json.dumps([part.peak_mb for part in (before, cost, after)]))
"""


@pytest.mark.parametrize("lived_larger", [False, True])
def test_measure_finds_a_peak_that_is_gone_at_the_end(lived_larger):
    """In a new process: one that has freed much memory may reuse 100 MB of it without growing."""
    run = subprocess.run(
        [sys.executable, "-c", PEAKS, str(lived_larger)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COURSE_DEVICE": "cpu"},
    )
    before, cost, after = json.loads(run.stdout.splitlines()[-1])
    assert 80 < cost - before < 160
    assert after < cost - 80  # an earlier block's peak is not this block's


def test_measure_prints_nothing_after_an_error_and_stops_polling(capsys):
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="boom"), runtime.measure("a crash"):
        raise RuntimeError("boom")
    assert capsys.readouterr().out == ""
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("seconds", "mb", "expected"),
    [
        (0.0123, 12.4, "12.3 ms, peak memory 12 MB"),
        (12.34, 1234.0, "12.3 s, peak memory 1.2 GB"),
        (99.96, 999.0, "1 min 40 s, peak memory 999 MB"),
        (3599.8, 12345.0, "60 min 0 s, peak memory 12 GB"),
    ],
)
def test_format_of_a_measurement(seconds, mb, expected):
    text = str(runtime.Measurement("x", seconds, mb, "2 CPU cores"))
    assert text == f"measured: x: {expected} (2 CPU cores)"


@pytest.fixture
def small_hub():
    """A server that answers HEAD / with 200 and HEAD /broken with 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(503 if "broken" in self.path else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_hub_needs_the_setting_and_an_answer(monkeypatch, small_hub):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", small_hub)
    assert not runtime.hub_available()  # not requested
    monkeypatch.setenv("COURSE_HUB", "1")
    assert runtime.hub_available()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not runtime.hub_available()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", small_hub + "broken")
    assert not runtime.hub_available()
    monkeypatch.setattr(
        constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # nothing listens on the discard port
    assert not runtime.hub_available()


def test_unknown_hub_setting_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_HUB", "yes")
    with pytest.raises(ValueError, match="COURSE_HUB: expected 0 or 1, got 'yes'"):
        runtime.hub_available()


def test_data_folder(monkeypatch, tmp_path):
    assert runtime.data_dir().name == "data"
    assert (runtime.data_dir().parent / "course_lib" / "runtime.py").is_file()
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert runtime.data_dir() == tmp_path


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_progress_bars_are_hidden_for_a_while_and_then_as_before(library):
    logging = importlib.import_module(f"{library}.utils.logging")
    with pytest.raises(KeyError), runtime.no_progress_bars():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with runtime.no_progress_bars():
        pass
    assert not logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
