"""What the course computes on: the device and why it was taken, the sizes that follow, installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from utils.files import ROOT, expect

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """What the course computes on. `memory_gb`: GPU memory, or RAM on a CPU."""

    kind: str  # cuda, mps, cpu
    name: str
    memory_gb: float
    cores: int
    reason: str


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def detect_device() -> Device:
    """Find the fastest device torch can use here, and say why it was taken."""
    import psutil
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        reason = f"torch sees {torch.cuda.device_count()} CUDA GPU(s)"
        return Device("cuda", properties.name, memory, cores(), reason)
    memory = psutil.virtual_memory().total / 2**30
    if torch.backends.mps.is_available():
        return Device("mps", "Apple GPU", memory, cores(), "torch sees Apple's Metal")
    return Device("cpu", platform.machine(), memory, cores(), "torch sees no GPU")


def bf16_is_faster(kind: str) -> tuple[bool, str]:
    """Whether bfloat16 is 1.15 times as fast or faster, and the reason: a feed-forward layer, forward and
    backward, a moment in float32 and one in bfloat16 autocast."""
    import torch

    if kind == "mps" or (kind == "cuda" and not torch.cuda.is_bf16_supported()):
        return False, f"this {kind} device has no fast bfloat16"
    layer = torch.nn.Sequential(torch.nn.Linear(384, 1536), torch.nn.GELU(), torch.nn.Linear(1536, 384))
    layer.to(kind)
    tokens = 256 if kind == "cpu" else 2048  # a CPU without bfloat16 needs many seconds for 2048
    x = torch.randn(tokens, 384, device=kind, requires_grad=True)
    speed = {bf16: _passes(layer, x, bf16) for bf16 in (False, True)}
    ratio = speed[True] / speed[False]
    return ratio > 1.15, f"bfloat16 ran {ratio:.2g} × as fast as float32 in a probe of this {kind}"


def _passes(layer: torch.nn.Module, x: torch.Tensor, bf16: bool, seconds: float = 0.2) -> float:
    import torch

    done, started = -1, time.perf_counter()  # the first pass warms up
    while done < 1 or time.perf_counter() - started < seconds:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            layer(x).sum().backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
        started = time.perf_counter() if done == 0 else started
    return done / (time.perf_counter() - started)


@dataclass(frozen=True)
class Profile:
    """The sizes that follow from the one dial. Tokens are those of the base model."""

    name: str
    passages: int  # passages that questions are written for, at most
    candidates: int  # questions written per passage, before ranking
    keep: int  # questions kept per passage, at most
    train_rows: int  # training rows, at most
    epochs: int
    max_tokens: int  # longest passage in training, mining, evaluation and export
    reason: str = ""


PROFILES = {
    "smoke": Profile("smoke", 24, 1, 1, 96, 1, 128),
    "cpu": Profile("cpu", 600, 4, 2, 6000, 2, 256),
    "gpu": Profile("gpu", 5000, 4, 2, 50_000, 3, 512),
    "full": Profile("full", 100_000, 8, 4, 1_000_000, 3, 512),
}


def choose_profile(profile: str, device: Device) -> Profile:
    """The profile of that name; `auto` follows the device (full from 60 GB of GPU memory, gpu from 12).

    `NAME:size=number,…` sets single sizes of it, as in "cpu:candidates=4,keep=1".
    Raises CourseError for an unknown name or size, and for a size that is no whole number of 1 or more.
    """
    expect(isinstance(profile, str), f"PROFILE = {profile!r}: give a name in quotes, such as 'auto'.")
    asked, _, sizes = profile.partition(":")
    expect(
        asked in {"auto", *PROFILES},
        f"PROFILE = {profile!r} is unknown. Choose one of: auto, {', '.join(PROFILES)}.",
    )
    name, why = asked, "set by PROFILE"
    if asked == "auto":
        name, why = "cpu", f"{device.reason}, so sizes are those of a laptop"
        if device.kind == "cuda" and device.memory_gb >= 12:
            name = "full" if device.memory_gb >= 60 else "gpu"
            why = f"{device.name} has {device.memory_gb:.0f} GB"
    given = _sizes(profile, sizes)
    why += f", but {', '.join(f'{size} {n:,}' for size, n in given.items())}" if given else ""
    return Profile(**asdict(PROFILES[name]) | given | {"reason": why})


def _sizes(profile: str, text: str) -> dict[str, int]:
    """The sizes of `size=number,…`."""
    known = [field.name for field in fields(Profile) if field.type == "int"]
    given = {}
    for part in filter(None, text.split(",")):
        size, _, number = (piece.strip() for piece in part.partition("="))
        expect(
            size in known and number.isdecimal() and int(number) >= 1,
            f"PROFILE = {profile!r}: {part.strip()!r} sets nothing. Write size=number with a number of 1 or "
            f"more, as in cpu:candidates=4,keep=1. Sizes: {', '.join(known)}.",
        )
        given[size] = int(number)
    return given


def package_versions() -> dict[str, str]:
    """Installed versions of the packages named in requirements.txt."""
    names = re.findall(r"^([A-Za-z0-9_.-]+)", (ROOT / "requirements.txt").read_text(), flags=re.M)
    installed = {}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed
