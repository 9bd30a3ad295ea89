"""The host side of a synthesis: which words it offers to a step, and how many it looks at for that."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moshijax.runtime.hosting import ScriptWord, Synthesis

OFFERED = 4


class Counted(list):
    """A list that counts what is read of it."""

    read = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.read += len(found) if isinstance(place, slice) else 1
        return found


def offered(words: list[ScriptWord], look_ahead: int, taken: int = 0, done: bool = False):
    """Return the inputs of a step, and how many words were looked at."""
    policy = {"max_pieces": 2, "look_ahead": look_ahead}
    use = Synthesis(SimpleNamespace(path="artifact", streams=[{"card": 100}], policy=policy))
    for start in range(0, len(words), 3):
        use.say(words[start : start + 3], done)
    use.words, use.taken = Counted(use.words), taken
    inputs = {
        "word": np.zeros((1, OFFERED, 2), int),
        "word_ahead": np.zeros((1, OFFERED, 2), int),
        "word_padding": np.zeros((1, OFFERED), int),
        "word_waiting": np.zeros((1, OFFERED), bool),
        "word_number": np.zeros(1, int),
        "text_done": np.zeros(1, bool),
    }
    use.fill(inputs, 0, True)
    return inputs, use.words.read, use.total


@pytest.mark.parametrize("look_ahead", [0, 2])
def test_the_words_of_an_hour_cost_a_step_no_more_than_a_few(look_ahead) -> None:
    words = [ScriptWord(str(n), (n % 90 + 1,)) for n in range(9000)]
    inputs, read, total = offered(words, look_ahead, taken=10)
    assert inputs["word"][0, :, 0].tolist() == [11, 12, 13, 14] and inputs["word_waiting"].all()
    assert inputs["word_ahead"][0, :, 0].tolist() == ([13, 14, 15, 16] if look_ahead else [0] * 4)
    assert read <= OFFERED * (1 + look_ahead) and total == 9000


def test_pauses_are_not_looked_ahead_at_and_the_last_words_wait_for_more() -> None:
    words = [ScriptWord("a", (1,)), ScriptWord("", (), 5), ScriptWord("b", (2,)), ScriptWord("c", (3,))]
    inputs, _, total = offered(words, 2)
    assert total == 3 and inputs["word_padding"][0].tolist() == [0, 5, 0, 0]
    assert inputs["word_ahead"][0, :, 0].tolist() == [3, 3, 0, 0]
    assert inputs["word_waiting"][0].tolist() == [True, True, False, False]
    assert offered(words, 2, done=True)[0]["word_waiting"].all()
