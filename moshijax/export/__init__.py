"""Build the streaming artifact: its programs (`step`), the directory (`artifact`) and what it is made from (`source`)."""
