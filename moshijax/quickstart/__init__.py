"""The main job end to end on the embedded default: data, codec, language model, artifact, held-out calls, report."""
