"""Names and configs of the published checkpoint formats; each is a view of the tensors of the PyTorch package."""
