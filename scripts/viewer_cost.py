"""What a viewer costs a run that trains: steps per second without one, with one, and with a client that moves.

    python scripts/viewer_cost.py [--steps 300] [--rounds 3]

The three take turns. The client is a program that speaks viser's protocol: it moves the camera 20 times a second and
throws the images away, because a browser on the same machine would take the training's cores for its own drawing.
"""

import argparse
import asyncio
import contextlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import viser
import websockets

ROOT = Path(__file__).resolve().parents[1]
PORT = 8790
JPEG = b"\xff\xd8\xff"  # the beginning of an image
SKIPPED = 100  # steps, while numba and the caches warm up
SETTINGS = [
    *("prompt=a red and white dotted mushroom", "prior=shapes", "machine=cpu", "backend=numba"),
    *("export.mesh=false", "export.turntable=false", "export.report=false", "train.tensorboard=false"),
    "train.preview_every=100000",
]
VIEWERS = {"no viewer": False, "a viewer without a client": True, "a client that moves": True}


async def move(address: str) -> None:
    """Circles the scene until the run ends; prints how many images came a second."""
    images, begin = 0, time.monotonic()
    protocol = websockets.Subprotocol(f"viser-v{viser.__version__}")
    async with websockets.connect(address, subprotocols=[protocol], max_size=None) as client:

        async def send() -> None:
            while True:
                await client.send(msgspec.msgpack.encode(camera(time.monotonic() - begin)))
                await asyncio.sleep(0.05)

        sending = asyncio.create_task(send())
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in client:
                images += isinstance(message, bytes) and JPEG in message
        sending.cancel()
        with contextlib.suppress(websockets.ConnectionClosed, asyncio.CancelledError):
            await sending
    print(f"images for the client: {images / (time.monotonic() - begin):.1f} a second", file=sys.stderr, flush=True)


def camera(seconds: float) -> dict[str, object]:
    """Viser's message about a camera that circles the scene once in ten seconds."""
    azimuth = 2 * math.pi * seconds / 10
    return {
        "type": "ViewerCameraMessage",
        "position": (2.5 * math.cos(azimuth), 2.5 * math.sin(azimuth), 0.8),
        "look_at": (0.0, 0.0, 0.0),
        "up_direction": (0.0, 0.0, 1.0),
        **{"wxyz": (1.0, 0.0, 0.0, 0.0), "fov": 0.8, "near": 0.1, "far": 100.0},
        **{"image_height": 700, "image_width": 900},
    }


def measure(name: str, steps: int, folder: Path) -> float:
    """Steps per second of a run, after the first ones."""
    viewer = [f"viewer=127.0.0.1:{PORT}"] if VIEWERS[name] else []
    command = [sys.executable, "-u", str(ROOT / "launch.py"), *SETTINGS, *viewer]
    command += [f"run_dir={folder}", f"train.steps={steps + SKIPPED}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if (found := re.search(r"viewer: http://(\S+)", line)) and "moves" in name:
                subprocess.Popen([sys.executable, str(Path(__file__)), "--client", f"ws://{found[1]}"])
        if process.wait():
            raise SystemExit(f"{name}: the run ended with exit code {process.returncode}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines}
    return steps / (seconds[steps + SKIPPED] - seconds[SKIPPED])


def main() -> None:
    """Prints a table of steps per second and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        asyncio.run(move(options.client))
        return
    found: dict[str, list[float]] = {name: [] for name in VIEWERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name in VIEWERS:
                found[name].append(measure(name, options.steps, Path(folder) / f"{number}-{name}"))
                print(f"round {number + 1}, {name}: {found[name][-1]:.2f} steps/s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"| {name} | {medians[name]:.2f} ({spread}) | {medians[name] / medians['no viewer']:.3f} |")


if __name__ == "__main__":
    main()
