"""Memory of a process, as the system counts it in /proc.

The peak that ``getrusage`` tells of a child may be that of its parent, from before it began.
"""

from pathlib import Path


def memory(name):
    """A line of /proc/self/status in bytes: ``VmRSS`` now, ``VmHWM`` at its peak, ``VmData``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def forget_peak():
    """Let ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
