"""Build the streaming artifact (`artifact`, `step`) and run it (`runtime`, `call`).

Nothing is imported here, so that `moshijax.export.runtime` needs only numpy, jax, flatbuffers and safetensors.
"""
