"""Build the streaming artifact: its programs (`step`), the directory (`artifact`), and its inputs (`source`)."""
