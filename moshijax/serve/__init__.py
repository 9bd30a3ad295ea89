"""Real-time calls on the runtime: an engine that ticks, sessions of callers, and the protocols that they speak."""
