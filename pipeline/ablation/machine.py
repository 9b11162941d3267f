"""What a measured number was measured on, in words for a document."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from stages.contract.params import cores


def describe_machine() -> str:
    """`two cores of an AMD EPYC 7763, 15 GiB memory, no GPU`, as far as the machine says."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores()} cores of {processor()}, {memory:.0f} GiB of memory, {graphics() or 'no GPU'}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def graphics() -> str:
    """The GPUs' names, or nothing."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = done.stdout.split("\n")[:-1] if done.returncode == 0 else []
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
