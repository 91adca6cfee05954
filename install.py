"""Set up the course: a virtual environment in .venv with the pinned versions.

    python3 install.py             set up
    python3 install.py lab         set up, then open JupyterLab on the first lesson
    python3 install.py test        set up, then run every check: style, tests, all notebooks
    python3 install.py test-fast   the same without running the notebooks
    python3 install.py lint        set up, then check style and format only

It uses only the standard library, and only syntax that old Pythons can read: a Python that is too
old prints a message. Nothing is installed when the environment is already up to date; an
interrupted run resumes.
"""

import glob
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time

OLDEST, TOO_NEW = (3, 11), (3, 14)  # kept in step with pyproject.toml by tests/test_install.py
EXTRAS = "lab,dev"
DISK_GB = 8  # the environment itself and pip's cache of what it downloaded
# While torch's threads wait for each other they spin, libgomp's for milliseconds, and starve each
# other when another program runs. This many spins are enough: docs/decisions.md
SPIN_COUNT = "3000"
LESSON = "notebooks/00_start_here.ipynb"
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
SCRIPTS = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
VENV_PYTHON = os.path.join(SCRIPTS, "python.exe" if os.name == "nt" else "python")
STAMP = os.path.join(VENV, "course-stamp")  # written last: what was installed, completely
HOME = os.path.join(
    VENV, "course-home"
)  # where the environment was made: it does not survive being moved


class Stop(Exception):
    """The set-up cannot go on; the message is one line for the reader."""


class Failed(Exception):
    """A command of .venv ended with an error, which it has printed."""

    def __init__(self, code):
        Exception.__init__(self, code)
        self.code = code


def say(line):
    sys.stdout.write("Set-up: " + line + "\n")
    sys.stdout.flush()


def short_version(version):
    return "%d.%d" % (version[0], version[1])


def supported(version):
    return OLDEST <= tuple(version[:2]) < TOO_NEW


def find_python():
    """The newest suitable interpreter on the PATH, or None. Each is run: some are only shims."""
    for minor in range(TOO_NEW[1] - 1, OLDEST[1] - 1, -1):
        names = [["python3.%d" % minor]]
        if os.name == "nt":
            names.append(["py", "-3.%d" % minor])
        for command in names:
            probe = command + ["-c", "import sys; sys.stdout.write(sys.executable)"]
            try:
                process = subprocess.Popen(probe, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            except OSError:
                continue
            executable = process.communicate()[0].decode()
            if process.returncode == 0 and executable:
                return executable
    return None


def fingerprint():
    """A hash of everything that decides what is installed, not of pytest's and ruff's settings."""
    import tomllib  # from Python 3.11 on

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        tables = tomllib.load(file)
    del tables["tool"]
    pins = read(os.path.join(ROOT, "constraints.txt"))
    everything = json.dumps([tables, pins, EXTRAS, ROOT, SPIN_COUNT])
    return hashlib.sha256(everything.encode("utf-8")).hexdigest()


def read(path):
    if not os.path.exists(path):
        return ""
    with io.open(path, encoding="utf-8") as file:
        return file.read().strip()


def write(path, text):
    with io.open(path + ".part", "w", encoding="utf-8", newline="\n") as file:
        file.write(text + "\n")
    os.replace(path + ".part", path)


def up_to_date():
    return os.path.exists(VENV_PYTHON) and read(STAMP) == fingerprint()


def folder_bytes(folder):
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                total += os.path.getsize(path)
    return total


def check_machine():
    """Raise Stop at once for what would otherwise fail after minutes of downloading."""
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise Stop(
            "PyTorch has no build for Macs with Intel processors, nor for a Python run by Rosetta."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = "python%s-venv" % short_version(sys.version_info)
        raise Stop(
            "Python's venv module is missing; on Debian or Ubuntu: sudo apt install " + package
        )
    if not os.path.exists(STAMP):
        free = shutil.disk_usage(ROOT).free + folder_bytes(VENV)
        if free < DISK_GB * 10**9:
            raise Stop(
                "about %d GB of free disk is needed; here there is %.1f GB." % (DISK_GB, free / 1e9)
            )


def make_environment():
    """A new .venv, unless one made here by a suitable Python is there already."""
    kept = read(HOME) == ROOT and os.path.exists(VENV_PYTHON)
    if kept:
        probe = [
            VENV_PYTHON,
            "-c",
            "import pip, sys; sys.stdout.write('%d %d' % sys.version_info[:2])",
        ]
        process = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        kept = process.returncode == 0 and supported([int(part) for part in process.stdout.split()])
    if kept:
        return
    say("making .venv with Python " + platform.python_version())
    if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
        raise Stop("`%s -m venv` failed; its message is above." % sys.executable)
    write(HOME, ROOT)


def pip(*arguments, **options):
    command = [
        VENV_PYTHON,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
    ]
    return subprocess.run(command + list(arguments), cwd=ROOT, **options)


def site_packages():
    folders = glob.glob(os.path.join(VENV, "lib", "python3*", "site-packages"))
    return folders or [os.path.join(VENV, "Lib", "site-packages")]


def remove_half_installed():
    """pip writes INSTALLER last, but would take a package without it for complete."""
    for site in site_packages():
        for folder in glob.glob(os.path.join(site, "*.dist-info")):
            if not os.path.exists(os.path.join(folder, "INSTALLER")):
                shutil.rmtree(folder)


def install():
    """Run pip. The small build tool goes first: it shows at once if there is no network."""
    first = pip("--retries", "1", "setuptools", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if first.returncode != 0:
        output = first.stdout.decode("utf-8", "replace").strip()
        if "from versions: none" in output or "connection" in output.lower():
            raise Stop("pip cannot reach its package index: the first set-up needs the network.")
        raise Stop("pip failed: " + (output.splitlines() or ["no output"])[-1])
    say("installing the pinned versions: minutes and gigabytes the first time")
    project = "%s[%s]" % (ROOT, EXTRAS)
    # Isolation would download an unpinned setuptools; the pinned one is already in .venv.
    if pip("--no-build-isolation", "-e", project).returncode != 0:
        raise Stop(
            "pip did not finish (its message is above); the same command carries on from here."
        )


def settle_jupyter():
    """JupyterLab opens the lesson without first asking whether it may fetch its news."""
    settings = {
        "@jupyterlab/apputils-extension:notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        }
    }
    folder = os.path.join(VENV, "share", "jupyter", "lab", "settings")
    os.makedirs(folder, exist_ok=True)
    write(os.path.join(folder, "overrides.json"), json.dumps(settings))


def settle_threads():
    """Every Python of .venv, notebook kernels included, sets the variable before torch starts.

    A value that the user has set stays.
    """
    line = "import os; os.environ.setdefault('GOMP_SPINCOUNT', '%s')" % SPIN_COUNT
    for site in site_packages():
        if os.path.isdir(site):
            write(os.path.join(site, "course-threads.pth"), line)


def how_to_open():
    return "python install.py lab" if os.name == "nt" else "make lab (or python3 install.py lab)"


def set_up():
    if up_to_date():
        say("up to date in .venv")
        return
    start = time.time()
    check_machine()
    current = fingerprint()
    make_environment()
    remove_half_installed()
    install()
    settle_jupyter()
    settle_threads()
    write(STAMP, current)
    size, minutes = folder_bytes(VENV) / 1e9, (time.time() - start) / 60
    say(
        "done in %.1f minutes; .venv takes %.1f GB. Open the course with: %s"
        % (minutes, size, how_to_open())
    )


def run(*arguments, **variables):
    """Run a module with the Python of .venv, in the course's folder."""
    command = [VENV_PYTHON, "-m"] + list(arguments)
    code = subprocess.call(command, cwd=ROOT, env=dict(os.environ, **variables))
    if code != 0:
        raise Failed(code)


def lint():
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


def test(paths):
    lint()
    workers = os.environ.get("WORKERS", "2")
    pytest = ["pytest", "-n", workers, "--dist", "loadfile"]
    run(*(pytest + paths), COURSE_PROFILE="ci", OMP_NUM_THREADS="1")


def lab_flags():
    """Serve the whole course, so that links to model cards and code answer; open lesson 00."""
    # a container often has no other user than root, for whom JupyterLab needs a flag
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [
        "--ServerApp.ip=localhost",
        "--ServerApp.root_dir=" + ROOT,
        "--LabApp.default_url=/lab/tree/" + LESSON,
    ] + ["--allow-root"] * is_root


def lab():
    run(*(["jupyter", "lab"] + lab_flags()))


COMMANDS = {
    "lab": lab,
    "lint": lint,
    "test": lambda: test(["notebooks", "tests"] + NBVAL),
    "test-fast": lambda: test(["tests"]),
}


def main(arguments=()):
    if not supported(sys.version_info):
        other = find_python()
        if other:
            return subprocess.call([other, os.path.join(ROOT, "install.py")] + list(arguments))
        versions = short_version(OLDEST) + "-" + short_version((TOO_NEW[0], TOO_NEW[1] - 1))
        say("Python %s is needed; this is %s." % (versions, short_version(sys.version_info)))
        return 1
    if len(arguments) > 1 or not set(arguments) <= set(COMMANDS):
        known = ", ".join(sorted(COMMANDS))
        say("expected nothing or one of %s; got %s." % (known, " ".join(arguments)))
        return 2
    try:
        set_up()
        for name in arguments:
            COMMANDS[name]()
    except Stop as stop:
        say(str(stop))
        return 1
    except Failed as failed:  # the command has printed why
        return failed.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
