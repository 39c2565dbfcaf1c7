"""A Python that is warm: torch and gpt2lab are imported already, and the programs that tests start are forked from it.

:func:`warm_python` gives the path of an executable. What it runs is a process of its own, with its own arguments,
environment, folder, standard streams, session and exit code; only the seconds that the imports take are saved. A signal
to the executable reaches the program, and killing it kills the program. What differs from a fresh Python is that more
is imported when the program begins, so tests of every command start ``sys.executable`` once, too.

A test starts the *client* (the executable), which asks the *server*, which has imported everything, to fork. For each
program a *guardian*, forked too, waits and tells the client how it ended.
"""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
LIBRARIES = ["matplotlib.backends.backend_svg", "scipy.stats", "torch._dynamo"]
LIBRARIES += ["torch.distributed.fsdp", "torch.distributed.run", "gpt2lab.serving.api"]


@functools.cache
def warm_python() -> str:
    """Path of the executable. The first call starts the server, which ends with the process that called."""
    import atexit
    import shlex
    import subprocess
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    executable = folder / "python"
    client = shlex.join([sys.executable, "-IS", __file__, "client", f"{folder}/socket"])
    executable.write_text(f'#!/bin/sh\nexec {client} "$@"\n', encoding="utf-8")
    executable.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, "server", f"{folder}/socket"],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "250"},
        start_new_session=True,
    )
    atexit.register(server.communicate)
    assert server.stdout is not None
    assert server.stdout.readline() == b"warm\n"
    return str(executable)


def client(address: Path, arguments: list[str]) -> None:
    """Have a program run, pass signals on to it, and end as it ends."""
    options = [argument for argument in arguments[:1] if argument == "-u"]
    if arguments[len(options) :][:1] in ([], ["-c"]):
        os.execv(sys.executable, [sys.executable, *arguments])
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(str(address))
        request = {"arguments": arguments[len(options) :], "environment": dict(os.environ), "folder": str(Path.cwd())}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        pid = int(server.recv(20))

        def pass_on(number: int, _: object) -> None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended, and its code is on the way
                os.kill(pid, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        code = int(server.recv(20))
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def server(address: Path) -> list[str]:
    """Import everything, and fork whenever a client asks; returns, in the program, its arguments."""
    import gc
    import importlib
    import pkgutil

    import gpt2lab

    modules = [module.name for module in pkgutil.walk_packages(gpt2lab.__path__, "gpt2lab.")]
    for name in (*modules, *LIBRARIES):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1  # a process with threads cannot be forked safely
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(address))
    listener.listen(100)
    gc.freeze()  # collecting garbage touches every object, and a touched page is copied
    print("warm", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for guardians
    while 0 not in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return guardian(connection, address)
        connection.close()
    for file in (address, address.with_name("python")):  # what warm_python() made, and nothing else
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        address.parent.rmdir()
    os._exit(0)


def guardian(connection: socket.socket, address: Path) -> list[str]:
    """Fork the program and tell the client how it ended; returns, in the program, its arguments."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        request = json.loads(message)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.setsid()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.executable = str(address.with_name("python"))  # for what the program itself starts
        arguments: list[str] = request["arguments"]
        return arguments
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    connection.send(str(pid).encode())
    if ended not in select.select([connection, ended], [], [])[0]:  # the client was killed
        os.kill(pid, signal.SIGKILL)
        os._exit(0)
    connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def run(arguments: list[str]) -> None:
    """Run a script, or a module after ``-m``, as Python does, and end without the seconds of taking torch apart."""
    import atexit
    import runpy
    import threading

    is_module = arguments[0] == "-m"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = map(str, [Path.cwd() if is_module else Path(arguments[0]).resolve().parent, *filter(None, paths)])
    sys.argv = arguments[is_module:]
    code: object = 0
    try:
        if is_module:
            if not hasattr(sys.modules.get(arguments[1]), "__path__"):
                sys.modules.pop(arguments[1], None)  # no package, which is imported before its __main__
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(code, int):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client(Path(sys.argv[2]), sys.argv[3:])
    run(server(Path(sys.argv[2])))
