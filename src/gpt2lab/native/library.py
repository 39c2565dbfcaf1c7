"""The native steps' libraries: built once on a machine, by its own C++ compiler, and kept in the cache folder."""

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from gpt2lab.errors import InputError
from gpt2lab.files import locked_folder
from gpt2lab.manifests import MANIFEST, replace_files, verify_files

Name = Literal["writing", "training"]  # of a native step, and of its source

TRAINS_ON = "linux"  # nobody has tried the native training step elsewhere

HERE = Path(__file__).parent
# A training waits for its library, which takes the compiler half as long so, and is as fast.
OPTIMISED: dict[Name, str] = {"writing": "-O3", "training": "-O2"}
# Not -ffast-math: linked with it, a library makes torch flush small numbers to 0, and it would not see a NaN.
FLAGS = [
    *("-std=c++20", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native",
    *("-fPIC", "-shared", "-pthread"),
]
LIBRARY = "native.so"


def compiler() -> list[str]:
    """The C++ compiler's command, which is looked for where torch.compile looks for it.

    Raises:
        InputError: there is none.
    """
    asked = shlex.split(os.environ.get("CXX", "")) or ["clang++" if sys.platform == "darwin" else "g++"]
    if shutil.which(asked[0]) is None:
        raise InputError(f"there is no C++ compiler {asked[0]!r}; install one (on Debian and Ubuntu: apt install g++)")
    return asked


@cache
def default_folder(name: Name) -> Path:
    """Where this machine's library is kept: under a hash of its source, the flags and the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.findall(r"^(?:model name|flags|Features)\s*:.*", cpuinfo.read_text() if cpuinfo.exists() else "", re.M)
    processor = (platform.system(), platform.machine(), platform.processor(), *sorted(set(found)))
    sources = [(HERE / source).read_text(encoding="utf-8") for source in (f"{name}.cpp", "vectors.h")]
    key = hashlib.sha256("\0".join((*sources, OPTIMISED[name], *FLAGS, *processor)).encode()).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "gpt2lab" / f"native-{name}-{key[:16]}"


def read(folder: Path) -> ctypes.CDLL | None:
    """The library of a folder; None if it is absent, half-built or damaged.

    Raises:
        InputError: others than this user could have written it, so it is not executed; or the system is Windows.
    """
    if sys.platform == "win32":
        raise InputError("the native step has not been tried on Windows")
    path = folder / LIBRARY
    with contextlib.suppress(OSError):
        for each in (folder, path):
            about = each.stat()
            if about.st_uid != os.getuid() or about.st_mode & 0o022:
                raise InputError(f"others can write to {each}, so it is not executed; delete it, or change its rights")
        with contextlib.suppress(InputError):  # of what is damaged
            if verify_files(folder, [LIBRARY]):
                return ctypes.CDLL(str(path))
    return None


def build(name: Name, folder: Path) -> None:
    """Compile the library into a folder, unless another process does it now or has done it.

    Raises:
        InputError: there is no compiler, it fails, or the folder cannot be written.
    """
    command = compiler()

    def compiled(path: Path) -> None:
        arguments = [*command, OPTIMISED[name], *FLAGS, str(HERE / f"{name}.cpp"), "-o", str(path)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=600, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise InputError(f"{command[0]} cannot compile it: {lines[-1].strip()}")
        path.chmod(0o700)

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked_folder(folder, wait=True):
            if read(folder) is None:
                (folder / MANIFEST).unlink(missing_ok=True)  # which may be damaged as well
                replace_files(folder, {LIBRARY: compiled})
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"it cannot be built in {folder}: {error}") from None


class Library:
    """The library of a folder, which is built when it is first asked for.

    Args:
        name: of the step.
        folder: where it is, or will be.
    """

    def __init__(self, name: Name, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._loaded: ctypes.CDLL | None = None
        self._failed: str | None = None
        self._building: threading.Thread | None = None
        self._said = ""  # by the process that built it

    def now(self) -> ctypes.CDLL | None:
        """The library, if it is there; else a process of its own builds it, and goes on if this one ends.

        Warns:
            UserWarning: once that it is built, and once if it cannot be.
        """
        if self._loaded is None and self._failed is None and not (self._building and self._building.is_alive()):
            try:
                if self.there() is None:
                    if self._building is None:
                        warnings.warn(
                            f"{compiler()[0]} compiles the native step for this machine, once; until it is there, the "
                            "eager step writes, which is slower",
                            stacklevel=2,
                        )
                    self._begin()
            except InputError as error:
                self._failed = str(error)
            if self._failed is not None:
                warnings.warn(f"the eager step writes, which is slower: {self._failed}", stacklevel=2)
        return self._loaded

    def prepare(self) -> None:
        """Let a process of its own build it, if it is not there, so that :meth:`wait` need not wait as long."""
        with contextlib.suppress(InputError):
            compiler()
            if self.there() is None:
                self._begin()

    def wait(self) -> ctypes.CDLL:
        """The library; it is built first if need be.

        Raises:
            InputError: it cannot be had here.
        """
        if self.there() is None:
            build(self.name, self.folder)
        if (loaded := self.there()) is None:
            raise InputError(f"the library in {self.folder} cannot be loaded")
        return loaded

    def there(self) -> ctypes.CDLL | None:
        """The library, if it was built before.

        Raises:
            InputError: it cannot be used here, or others can write to it.
        """
        if self._loaded is None:
            self._loaded = read(self.folder)
        return self._loaded

    def _begin(self) -> None:
        if self._building is not None:
            raise InputError(self._said or f"the library in {self.folder} cannot be loaded")
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.name, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

        def watch() -> None:
            self._said = process.communicate()[1].decode(errors="replace").strip()

        self._building = threading.Thread(target=watch, daemon=True)
        self._building.start()


def prepare_training(step: str | None) -> None:
    """Begin to build the library of a training that may want it, so that it is there when torch is imported.

    Args:
        step: which step was asked for; None: nobody did.
    """
    if sys.platform == TRAINS_ON and step != "eager":
        library("training").prepare()


@cache
def library(name: Name) -> Library:
    """The one of this machine."""
    return Library(name, default_folder(name))


if __name__ == "__main__":
    try:
        (asked,) = (name for name in get_args(Name) if name == sys.argv[1])
        build(asked, Path(sys.argv[2]))
    except InputError as reason:
        sys.exit(str(reason))
