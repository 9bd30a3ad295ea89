"""Scripts of dialogues that a language model writes: prompts by family, generators, what becomes of their answers."""

from moshijax.data.scripts.families import Family, load_families
from moshijax.data.scripts.generators import ChatEndpoint, Generator, LocalModel
from moshijax.data.scripts.run import ScriptReport, write_scripts

__all__ = ["ChatEndpoint", "Family", "Generator", "LocalModel", "ScriptReport", "load_families", "write_scripts"]
