"""What `moshijax.data.widener.AudioSR` runs in the environment of AudioSR, which needs another numpy than JAX.

It reads a JSON object per line, {"read": WAV file, "write": WAV file}, and answers each with {} or {"error": text}.
The first line that it writes says what it is: {"version": text, "sha256": of the weights}, or {"error": text}.
"""

import hashlib
import importlib.metadata
import json
import os
import sys


def main(name: str, device: str, steps: int, guidance: float, seed: int) -> None:
    """Serve requests until there are no more; what AudioSR prints goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        import audiosr
        import soundfile
        from audiosr.utils import download_checkpoint

        state = hashlib.sha256()
        with open(download_checkpoint(name), "rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
        model = audiosr.build_model(model_name=name, device=device)
        answer({"version": f"audiosr {importlib.metadata.version('audiosr')}", "sha256": state.hexdigest()})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            made = audiosr.super_resolution(
                model, request["read"], seed=seed, ddim_steps=steps, guidance_scale=guidance, latent_t_per_second=12.8
            )
            soundfile.write(request["write"], made[0, 0], 48000, "FLOAT", format="WAV")
            answer({})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
