"""Stands in for ssh where no network is wanted: runs the remote command here, if asked to with a delay.

To be named in PACKNBACK_SSH. ``LOOPBACK_DELAY_S`` holds every byte back for so long in each direction, whatever the
rate; ``LOOPBACK_PID_FILE`` gets the number of the process that serves.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time


def relay(source: int, target: int, delay_s: float) -> None:
    """Pass bytes on, each so many seconds after it came."""
    held: queue.Queue[tuple[float, bytes]] = queue.Queue()

    def deliver() -> None:
        while True:
            due, data = held.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                os.close(target)
                return
            while data:
                data = data[os.write(target, data) :]

    threading.Thread(target=deliver, daemon=True).start()
    while data := os.read(source, 1 << 20):
        held.put((time.monotonic() + delay_s, data))
    held.put((time.monotonic() + delay_s, b""))


def main() -> int:
    """Run the last argument as a command of the shell."""
    command = ["sh", "-c", "exec " + sys.argv[-1]]
    delay_s = float(os.environ.get("LOOPBACK_DELAY_S", "0"))
    pid_file = os.environ.get("LOOPBACK_PID_FILE")
    if not delay_s:
        if pid_file:
            with open(pid_file, "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        os.execvp(command[0], command)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    up = threading.Thread(target=relay, args=(0, os.dup(process.stdin.fileno()), delay_s), daemon=True)
    process.stdin.close()
    up.start()
    relay(process.stdout.fileno(), 1, delay_s)
    status = process.wait()
    time.sleep(2 * delay_s)
    return status


if __name__ == "__main__":
    sys.exit(main())
