"""Run an exported artifact where there is no model code: numpy, jax, flatbuffers and safetensors are enough."""
