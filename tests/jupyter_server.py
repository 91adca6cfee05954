"""JupyterLab as `make lab` starts it, for tests."""

import http.client
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60


@contextmanager
def served(folder, *options, **variables):
    """JupyterLab with the flags of `make lab`; yields its port, its token and its log.

    Args:
        folder: for its log and settings, which are nobody's own.
        *options: replace flags of the same name.
        **variables: of the environment.
    """
    spec = importlib.util.spec_from_file_location("install_flags", ROOT / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(16), folder / "log.txt"
    flags = [*install.lab_flags(), "--no-browser", f"--ServerApp.port={port}"]
    flags += [f"--IdentityProvider.token={token}", "--ServerApp.port_retries=0"]
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    names = {option.partition("=")[0] for option in options}
    flags = [flag for flag in flags if flag.partition("=")[0] not in names] + list(options)
    env = {**os.environ, **{name: str(folder / name.lower()) for name in places}, **variables}
    command = [sys.executable, "-m", "jupyter", "lab", *flags]
    with open(log, "w", encoding="utf-8") as file:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_SECONDS
        while status(port, token, "api/status") != 200:
            said = log.read_text(encoding="utf-8", errors="replace")
            assert server.poll() is None and time.monotonic() < deadline, said[-2000:]
            time.sleep(0.3)
        yield port, token, log
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def status(port, token, path):
    """The answer to GET; None if nobody listens yet."""
    connection = http.client.HTTPConnection("localhost", port, timeout=20)
    try:
        connection.request("GET", "/" + quote(path), headers={"Authorization": f"token {token}"})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
