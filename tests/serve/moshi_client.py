"""The command-line client of the PyTorch package `moshi`, unchanged, with sound devices of our own.

    python tests/serve/moshi_client.py PORT FRAMES OUT.npy

The microphone gives noise for a number of frames of 80 ms, in real time; what the loudspeaker gets is written to a
file.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
import types

import numpy as np

port, frames, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
played: list[np.ndarray] = []


class Stream:
    """A device that calls back every block; the loudspeaker ends the process when the call has been long enough."""

    def __init__(self, samplerate, channels, blocksize, callback):
        self.shape, self.seconds, self.callback = (blocksize, channels), blocksize / samplerate, callback
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def _run(self):
        random = np.random.RandomState(0)
        for _ in range(frames):
            block = np.zeros(self.shape, np.float32)
            if isinstance(self, Microphone):
                block = (random.randn(*self.shape) * 0.1).astype(np.float32)
            self.callback(block, len(block), None, None)
            if isinstance(self, Loudspeaker):
                played.append(block[:, 0].copy())
            time.sleep(self.seconds)
        if isinstance(self, Loudspeaker):
            np.save(out, np.concatenate(played))
            sys.stdout.flush()
            os._exit(0)


class Microphone(Stream):
    pass


class Loudspeaker(Stream):
    pass


devices = types.ModuleType("sounddevice")
devices.InputStream, devices.OutputStream = Microphone, Loudspeaker
sys.modules["sounddevice"] = devices
sys.argv = ["moshi.client", "--host", "127.0.0.1", "--port", port]
runpy.run_module("moshi.client", run_name="__main__")
