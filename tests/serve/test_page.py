"""The page in a headless Chromium whose microphone plays a file, against a real server.

What answers is `support.echo`: an artifact that says what it hears, and a word wherever that begins to be loud.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshijax import lm
from moshijax.data.synthesis.espeak import Espeak
from moshijax.data.synthesis.voices import EspeakVoice
from moshijax.lm import policies
from moshijax.runtime import answers
from moshijax.serve.settings import Prompts
from moshijax.testing.tiny import LM, tiny_models
from tests.export.test_answer import build as build_answers
from tests.runtime import test_uses as uses
from tests.serve.support import browser as browsers
from tests.serve.support import echo
from tests.serve.support.running import serving

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parents[2] / "docs" / "images"
DESKTOP, PHONE = (1280, 800), (390, 844)
RATE = 24_000  # of recordings
TONE = 440.0

#: The page's sound at a rate of the test's choice; what it opens stays within reach of the test.
REACHABLE = """
window.AudioContext = class extends AudioContext {
  constructor(options) { super({ ...options, ...RATE }); window.context = this; }
};
const open = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
if (open) navigator.mediaDevices.getUserMedia = async (wanted) => (window.stream = await open(wanted));
"""


def reachable(rate: int | None = None) -> str:
    return REACHABLE.replace("RATE", "{}" if rate is None else f"{{ sampleRate: {rate} }}")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """What the microphone hears: 0.35 s of a tone, 0.3 s of nothing, and so on."""
    path = tmp_path_factory.mktemp("microphone") / "tone.wav"
    seconds = np.arange(31_200) / 48_000
    soundfile.write(path, np.where(seconds < 0.35, 0.4 * np.sin(2 * np.pi * TONE * seconds), 0.0), 48_000, "PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(sounds, tmp_path_factory):
    browsers.require()
    names = "--host-resolver-rules=MAP moshijax.test 127.0.0.1"
    browser = browsers.Browser(tmp_path_factory.mktemp("profile"), [*browsers.microphone(sounds), names])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return echo.build_echo(tmp_path_factory.mktemp("artifacts") / "echo", 2)


@pytest.fixture(scope="module")
def server(artifact):
    with serving(artifact, 2) as server:
        yield server


@contextlib.contextmanager
def opened(browser, server, *, port: int | None = None, rate: int | None = None, query: str = "", **look):
    """The page, which may use the microphone."""
    address = f"http://localhost:{port or server.port}/"
    with browser.page(address + query, before=reachable(rate), **look) as page:
        page.allow_microphone(address)
        yield page


def start(page, headphones: bool = True) -> None:
    """Begin a call, as a user does; the microphone as it is, or a tone would be taken for noise."""
    page.wait_for("document.querySelector('#model').textContent")
    if headphones:
        page.click("#headphones")
    page.click("#call")
    page.wait_for(ON_A_CALL)


ON_A_CALL = "document.querySelector('#status').dataset.phase === 'calling'"
SPEAKING = "document.querySelectorAll('#transcript span span').length >= 3"


def trouble(page) -> str:
    """What the page says is wrong, as soon as it says something."""
    page.wait_for("!document.querySelector('#trouble').hidden")
    return page.text("#trouble p")


def saved(page, folder: Path, kind: str = "wav") -> Path:
    """Save the call as a file."""
    page.wait_for("!document.querySelector('#save').hidden")
    return page.download(f"[data-save={kind}]", folder / kind)


def sides(wav: Path) -> tuple[np.ndarray, np.ndarray]:
    """The model's and the user's channel of a saved call."""
    sound, rate = soundfile.read(wav)
    assert rate == RATE
    model, user = sound.T
    return model, user


def loud(channel: np.ndarray) -> list[tuple[int, int]]:
    """Beginning and end of what is loud, in samples, to 5 ms."""
    step = RATE // 200
    flags = np.abs(channel[: len(channel) // step * step]).reshape(-1, step).max(axis=1) > 0.05
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(int)))
    return [(begin * step, end * step) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def pitch(channel: np.ndarray) -> float:
    """The frequency of the longest piece of sound, in Hz."""
    begin, end = max(loud(channel), key=lambda piece: piece[1] - piece[0])
    piece = channel[begin + RATE // 50 : end - RATE // 50]
    assert len(piece) > 0.2 * RATE, "the sound has gaps everywhere"
    spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 16 * RATE))
    return float(np.argmax(spectrum)) / 16


def test_a_call_is_heard_read_and_saved(browser, server, tmp_path) -> None:
    with opened(browser, server) as page:
        start(page)
        page.wait_for(SPEAKING)
        words = page.text("#transcript p span")
        assert "The red house stands".startswith(words) or words.startswith("The red house")
        levels = page.evaluate("[...document.querySelectorAll('.meter')].map((m) => Number(m.ariaValueNow))")
        assert len(levels) == 2 and all(-60 <= level <= 0 for level in levels)
        page.wait_for("document.querySelector('#roundtrip').textContent.endsWith(' ms')")
        page.click("#mute")
        assert page.evaluate("document.querySelector('#mute').ariaPressed") == "true"
        page.wait_for("document.querySelector('#spoken').textContent.startsWith('The red house')")
        page.click("#call")
        wav, transcript, html = (saved(page, tmp_path, kind) for kind in ("wav", "json", "html"))
        assert {address.split("/")[2] for address in page.requests()} == {f"localhost:{server.port}"}
        assert page.complaints() == []
    model, user = sides(wav)
    assert abs(pitch(model) - TONE) < 2 and abs(pitch(user) - TONE) < 2
    assert not loud(user[-RATE // 2 :]) and not loud(model[-RATE // 4 :]), "a second of silence, since it was muted"
    alignments = json.loads(transcript.read_text())["alignments"]
    assert [word for word, _, _ in alignments][:3] == ["The", "red", "house"]
    begins = np.array([begin / RATE for begin, _ in loud(model)])
    for word, (begin, _), speaker in alignments:
        assert speaker == "SPEAKER_MAIN" and np.abs(begins - begin).min() < 0.1, (word, begin, begins)
    with browser.page(html.as_uri()) as page:
        page.wait_for("player.readyState === 4")
        assert page.evaluate("player.duration") == pytest.approx(len(model) / RATE, abs=0.01)
        page.click("#player")
        page.evaluate("(player.muted = true, player.play())")
        page.wait_for("document.querySelector('#text .said')?.textContent === 'red'")
        for side in ("model", "user"):
            path = page.evaluate(f"document.querySelector('svg.{side} path').getAttribute('d')")
            assert path.count("M") == len(model) // 960
        assert page.evaluate("document.querySelectorAll('#timeline span').length") == len(alignments)
        schemes = {address.split(":")[0] for address in page.requests()}
        assert schemes <= {"file", "data", "blob"} and page.complaints() == []


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_tone_comes_back_as_it_was_at_any_rate_of_the_browser(browser, server, rate, tmp_path) -> None:
    """(At 48 kHz it is part of the test above.)"""
    with opened(browser, server, rate=rate) as page:
        start(page)
        assert page.evaluate("context.sampleRate") == rate
        page.wait_for(SPEAKING)
        page.click("#call")
        model, user = sides(saved(page, tmp_path))
        assert abs(pitch(model) - TONE) < 2 and abs(pitch(user) - TONE) < 2


def test_what_was_on_its_way_before_an_interruption_is_never_heard(browser, server, artifact, tmp_path) -> None:
    """A second of the model's voice is ahead of the ear, and more comes before the server knows."""
    ahead = """import("/audio.js").then(({ Audio }) => {
      const [play, kept] = [Audio.prototype.play, []];
      window.ahead = 24000;
      Audio.prototype.play = function (audio) {
        kept.push(...new Int16Array(audio));
        if (kept.length < window.ahead) return;
        window.ahead = 0;
        play.call(this, Int16Array.from(kept.splice(0)).buffer);
      };
    })"""
    buffered = "Number(document.querySelector('#buffered').textContent.split(' ')[0])"
    with opened(browser, server) as page:
        page.evaluate(ahead)
        start(page)
        page.wait_for(f"{buffered} > 700")
        page.evaluate(
            "window.ahead = Infinity; document.querySelector('#interrupt').click();"
            "new Promise((resolve) => setTimeout(resolve, 550)).then(() => document.querySelector('#call').click())"
        )
        model, user = sides(saved(page, tmp_path))
    # Nowhere is the tone silent for so long.
    assert loud(user[-2 * RATE // 5 :]) and not loud(model[-2 * RATE // 5 :])


def test_between_an_interruption_and_its_answer_nothing_is_heard(parts) -> None:
    heard = parts.evaluate("""
    import("/call.js").then(async ({ Call }) => {
      const heard = [];
      const real = WebSocket;
      window.WebSocket = class { readyState = real.OPEN; send() {} close() {} static OPEN = real.OPEN };
      const listener = { audio: (audio) => heard.push(audio), text: ({ text }) => heard.push(text) };
      const call = new Call({ address: () => "" }, listener);
      const say = (event) => call.socket.onmessage({ data: typeof event === "string" ? event : JSON.stringify(event) });
      const word = (delta) => say({ type: "response.text.delta", delta, start_ms: 0, end_ms: 80, at_ms: 0 });
      call.open({});
      word("before");
      call.interrupt();
      word("old");
      call.socket.onmessage({ data: "old sound".length });
      say({ type: "response.cancelled" });
      word("new");
      call.close();
      window.WebSocket = real;
      return heard;
    })""")
    assert heard == ["before", "new"]


def test_what_was_chosen_is_asked_for_and_stays_chosen(browser, server) -> None:
    chosen = "['seed', 'temperature'].map((id) => document.getElementById(id).value)"
    with opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        page.evaluate("(document.querySelector('#seed').value = 7, document.querySelector('#temperature').value = 0.3)")
        for _ in range(2):
            page.click("#call")
            page.wait_for(ON_A_CALL)
            (session,) = server.engine._calls
            assert session.options.seed == 7 and session.options.sampling["temperature"] == 0.3
            page.click("#call")
            assert page.evaluate(chosen) == ["7", "0.3"]
            while server.engine.callers:
                time.sleep(0.01)


def test_a_voice_can_be_chosen_that_the_call_begins_with(browser, loaded) -> None:
    """(A model with random weights: its words are random, too.)"""
    voice = (0.1 * np.random.RandomState(0).randn(2 * loaded.sample_rate // 5)).astype(np.float32)
    with serving(loaded, 1, prompts=Prompts({"anna": voice})) as server, opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        options = "[...document.querySelectorAll('#voice-prompt option')].map((option) => option.text)"
        assert page.evaluate(options) == ["None", "anna"]
        assert page.evaluate("document.querySelector('#role').parentElement.hidden"), (
            "there are no texts to choose from"
        )
        page.evaluate("document.querySelector('#voice-prompt').value = 'anna'")
        page.click("#call")
        page.wait_for(ON_A_CALL)
        (session,) = server.engine._calls
        assert session.options.prompt.length >= 5, "0.4 s are five frames"
        page.wait_for(SPEAKING)


@pytest.fixture(scope="module")
def pieces():
    return uses.tokenizer()


def test_a_synthesis_speaks_what_is_written(browser, pieces, tmp_path) -> None:
    made = echo.build(
        *tiny_models(lm_config=dataclasses.replace(LM, layout=lm.layouts.single_stream(3, acoustic_delay=1))),
        tmp_path / "artifact",
        policy=policies.Synthesis(audio_delay=2, max_padding=3, final_padding=1, max_pieces=8),
        tokenizer=pieces,
    )
    with serving(made, 1) as server, opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        assert page.text("#call") == "Speak" and page.evaluate("document.querySelector('.side.user').hidden")
        page.click("#call")
        assert page.evaluate("document.activeElement.id") == "text", "nothing to speak: the page asks for a text"
        page.evaluate("document.querySelector('#text').value = 'abc bcd cde'")
        page.click("#call")
        page.wait_for("!document.querySelector('#save').hidden")
        assert page.text("#transcript p span") == "abc bcd cde"
        assert page.evaluate("document.querySelector('#trouble').hidden")
        assert page.complaints() == []
        model, user = sides(saved(page, tmp_path))
        assert np.abs(model).max() > 0 and not user.any()


def test_a_recognition_shows_words_and_plays_nothing(browser, tmp_path) -> None:
    made = echo.build(
        *tiny_models(lm_config=dataclasses.replace(LM, layout=lm.layouts.recognition(3), depth=None)),
        tmp_path / "artifact",
        policy=policies.Recognition(text_delay=0.4, silence=0.16),
    )
    with serving(made, 1) as server, opened(browser, server) as page:
        start(page)
        assert page.evaluate("document.querySelector('.side.model').hidden")
        page.wait_for(SPEAKING)
        page.click("#call")
        assert json.loads(saved(page, tmp_path, "json").read_text())["alignments"][0][2] == "SPEAKER_USER"
        assert page.complaints() == []


# ---- what can go wrong ---------------------------------------------------------------------------------------------


def test_a_half_duplex_call_shows_whose_turn_it_is(browser, tmp_path) -> None:
    loaded = answers.load(build_answers(tmp_path / "answers"))
    with serving(loaded, 1, told=False) as server, opened(browser, server) as page:
        start(page)
        page.wait_for("document.querySelector('#status').textContent.startsWith('Half duplex: ')")
        for name, shown in (("done", True), ("temperature", False), ("text-temperature", True)):
            assert page.evaluate(f"document.querySelector('#{name}').offsetParent !== null") == shown, name
        # What the microphone plays is answered, again and again.
        page.wait_for("document.querySelector('#status').textContent.startsWith('Half duplex: speaking')")
        page.click("#interrupt")
        page.wait_for("document.querySelector('#status').textContent === 'Half duplex: listening to you'")
        page.click("#call")
        page.wait_for("document.querySelector('#status').textContent === 'Not on a call'")
        assert page.complaints() == []


def test_a_busy_server_says_how_many_call_and_answers_when_one_has_left(browser, server) -> None:
    with opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        callers = [server.engine.admit() for _ in range(2)]
        page.click("#call")
        assert trouble(page).startswith("All slots are taken: 2 calls are going on.")
        assert page.evaluate("window.stream === undefined"), "nobody is asked for a microphone in vain"
        callers[0].close("complete")
        page.click("#trouble button")
        page.wait_for(ON_A_CALL)
        with opened(browser, server) as another:
            assert trouble(another).startswith("All slots are taken: 2 calls") and another.text("#model").startswith(
                "echo"
            )
            callers[1].close("complete")
            another.wait_for("document.querySelector('#trouble').hidden")


def test_a_server_that_drains_or_still_loads_says_so(browser, server) -> None:
    with opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        server.server.draining = True
        page.click("#call")
        assert "takes no new calls" in trouble(page)
        server.server.draining, server.engine.ready = False, False
        page.click("#trouble button")
        page.wait_for("document.querySelector('#trouble p').textContent.startsWith('The server is still loading')")
        server.engine.ready = True
        page.click("#trouble button")
        page.wait_for(ON_A_CALL)


def test_the_longest_call_ends_with_a_sentence_and_can_be_saved(browser, artifact) -> None:
    with serving(artifact, 2, call_seconds=1.5) as server, opened(browser, server) as page:
        start(page)
        assert re.fullmatch(r"The call ended after \d seconds, which is .*allows\.", trouble(page))
        assert page.evaluate("!document.querySelector('#save').hidden")


def test_a_lost_connection_keeps_what_was_said_and_can_be_made_again(browser, server) -> None:
    relay = server.relay()
    with opened(browser, server, port=relay.port) as page:
        start(page)
        page.wait_for(SPEAKING)
        relay.cut()
        assert trouble(page).startswith("The connection was lost")
        assert "The red house" in page.text("#transcript") and page.evaluate("!document.querySelector('#save').hidden")
        assert page.evaluate("stream.getTracks().every((track) => track.readyState === 'ended')")
        assert page.text("#trouble button") == "Reconnect"
        page.click("#trouble button")
        page.wait_for(ON_A_CALL)
        page.wait_for(SPEAKING)


def test_a_proxy_without_upgrades_is_named_and_not_taken_for_a_busy_server(browser, server) -> None:
    relay = server.relay(upgrades=False)
    with opened(browser, server, port=relay.port) as page:
        page.wait_for("document.querySelector('#model').textContent")
        page.click("#call")
        assert "does not pass WebSocket upgrades on" in trouble(page)


def test_a_token_in_the_address_goes_along_and_without_it_the_reason_is_told(browser, artifact) -> None:
    with serving(artifact, 2, token="a long token") as server:
        with browser.page(f"http://localhost:{server.port}/") as page:
            assert trouble(page).startswith("This server needs its token")
        with opened(browser, server, query="?token=a%20long%20token") as page:
            start(page)


def test_without_a_secure_context_the_page_says_why_and_what_to_do(browser, server) -> None:
    with browser.page(f"http://moshijax.test:{server.port}/") as page:
        assert "from localhost" in trouble(page) and "moshijax serve --tls" in trouble(page)
        assert page.evaluate("document.querySelector('#call').disabled")
        assert page.complaints() == []


def test_a_refused_microphone_can_be_allowed_and_tried_again(browser, server) -> None:
    with opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        page.allow_microphone(f"http://localhost:{server.port}", False)
        page.click("#call")
        assert trouble(page).startswith("The microphone is not allowed.")
        page.allow_microphone(f"http://localhost:{server.port}")
        page.click("#trouble button")
        page.wait_for(ON_A_CALL)


def test_without_a_microphone_the_page_says_so(browser, server, tmp_path, monkeypatch) -> None:
    """A browser for which the machine has no sound at all."""
    monkeypatch.setenv("PULSE_SERVER", "unix:/nonexistent")
    monkeypatch.setenv("ALSA_CONFIG_PATH", "/dev/null")
    silent = browsers.Browser(tmp_path / "profile")
    try:
        with opened(silent, server) as page:
            page.wait_for("document.querySelector('#model').textContent")
            page.click("#call")
            assert trouble(page).startswith("There is no microphone. Connect one")
    finally:
        silent.close()


def test_sound_that_the_browser_pauses_can_be_resumed(browser, server) -> None:
    with opened(browser, server) as page:
        start(page)
        page.evaluate("context.suspend()")
        assert "paused the sound" in trouble(page)
        page.click("#trouble button")
        page.wait_for("context.state === 'running' && document.querySelector('#trouble').hidden")
        page.wait_for(SPEAKING)


def test_an_unplugged_microphone_is_replaced_by_another_or_missed(browser, server) -> None:
    ended = "stream.getTracks()[0].stop(), stream.getTracks()[0].dispatchEvent(new Event('ended'))"
    unplug = f"(window.gone = stream, {ended})"
    with opened(browser, server) as page:
        start(page)
        page.evaluate(unplug)
        page.wait_for("stream !== gone && document.querySelector('#status').textContent.includes('now using')")
        page.wait_for(SPEAKING)
        page.allow_microphone(f"http://localhost:{server.port}", False)
        page.evaluate(unplug)
        assert trouble(page).startswith("The microphone was unplugged")
        assert page.evaluate(ON_A_CALL), "the call goes on"
        page.allow_microphone(f"http://localhost:{server.port}")
        page.click("#trouble button")
        page.wait_for("stream !== gone && document.querySelector('#trouble').hidden")


def test_echo_is_cancelled_unless_the_user_wears_headphones(browser, server) -> None:
    for headphones in (False, True):
        with opened(browser, server) as page:
            start(page, headphones)
            assert page.evaluate("stream.getTracks()[0].getSettings().echoCancellation") is not headphones


# ---- how it looks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A browser into whose microphone somebody reads what the echo writes, word by word."""
    browsers.require()
    folder, rate = tmp_path_factory.mktemp("reader"), 22_050
    with contextlib.closing(Espeak(0)) as speaker:
        spoken = [speaker.speak(word, EspeakVoice(rate=150)) for word in echo.WORDS]
    pieces = [np.zeros(rate // 2)]
    for word, speech in zip(echo.WORDS, spoken, strict=True):
        assert speech.sample_rate == rate
        heard = np.flatnonzero(np.abs(speech.samples) > 0.02)
        pieces += [speech.samples[heard[0] : heard[-1]], np.zeros(int(rate * (1.7 if word[-1] in ".?" else 0.25)))]
    soundfile.write(folder / "words.wav", np.concatenate(pieces), rate, "PCM_16")
    browser = browsers.Browser(folder / "profile", browsers.microphone(folder / "words.wav"))
    yield browser
    browser.close()


@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_the_page_fits_its_window_by_day_and_by_night(reader, server, name, size, tmp_path) -> None:
    """With MOSHIJAX_UPDATE_GOLDEN the pictures of the documentation are taken, of a longer call."""
    golden = os.environ.get("MOSHIJAX_UPDATE_GOLDEN")
    with opened(reader, server, size=size) as page:
        start(page, headphones=False)
        page.wait_for(f"document.querySelector('#transcript').textContent.includes('{'tell' if golden else 'red'}')")
        for dark in (False, True):
            page.look(size, dark)
            page.evaluate("scrollTo(0, 0)")
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert page.evaluate("document.querySelector('#call').getBoundingClientRect().bottom") <= size[1]
            ink, paper = page.evaluate(
                "[['#transcript', 'color'], ['#words', 'backgroundColor']].map(([at, what]) =>"
                " getComputedStyle(document.querySelector(at))[what].match(/\\d+/g).slice(0, 3).map(Number))"
            )
            assert (np.mean(ink) > np.mean(paper)) == dark
            picture = tmp_path / f"{name}-{'dark' if dark else 'light'}.png"
            page.picture(picture)
            if golden and not dark:
                (PICTURES / f"serve-{name}.png").write_bytes(picture.read_bytes())
        page.evaluate("document.querySelector('#transcript').append('many words '.repeat(99))")
        below = page.evaluate(
            "document.querySelector('footer').getBoundingClientRect().top"
            " - document.querySelector('#transcript').getBoundingClientRect().bottom"
        )
        assert below > 0, "however much is said, the newest words are not behind the buttons"


def test_it_can_be_used_with_keys_and_a_screen_reader(browser, server) -> None:
    with opened(browser, server) as page:
        page.wait_for("document.querySelector('#model').textContent")
        page.call("Accessibility.enable")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        used = ("button", "textbox", "slider", "spinbutton", "combobox", "checkbox", "meter", "status", "group")
        roles = [(node["role"]["value"], node["name"]["value"]) for node in nodes if not node["ignored"]]
        nameless = [role for role, name in roles if role in used and role not in ("status", "group") and not name]
        assert not nameless, nameless
        assert {name for role, name in roles if role == "button"} >= {"Mute", "Start call", "Interrupt"}
        reached = []
        for _ in range(12):
            page.press("Tab", 9)
            reached.append(page.evaluate("document.activeElement.id"))
        assert {"transcript", "temperature", "seed", "microphone", "headphones", "call"} <= set(reached), reached
        page.evaluate("document.querySelector('#call').focus()")
        page.press("Enter", 13, "\r")
        page.wait_for(ON_A_CALL)


# ---- its parts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(browser, server):
    """A page in which modules can be imported."""
    with opened(browser, server) as page:
        yield page


RESAMPLE = """
import("/resample.js").then(({ Resampler }) => {
  const tone = Float32Array.from({ length: FROM }, (_, i) => Math.sin((2 * Math.PI * HERTZ * i) / FROM));
  const [resampler, output] = [new Resampler(FROM, TO), []];
  for (let at = 0; at < FROM; at += PIECE) {
    const input = tone.subarray(at, at + PIECE);
    const room = new Float32Array(resampler.available(input.length));
    resampler.process(input, room);
    output.push(...room);
  }
  return output;
})
"""


def resampled(page, source: int, target: int, hertz: float, piece: int = 1 << 20) -> np.ndarray:
    values = {"FROM": source, "TO": target, "HERTZ": hertz, "PIECE": piece}
    return np.array(page.evaluate(re.sub("FROM|TO|HERTZ|PIECE", lambda name: str(values[name[0]]), RESAMPLE)))


@pytest.mark.parametrize("other", [16_000, 44_100, 48_000, 96_000])
def test_resampling_keeps_the_band_and_lets_nothing_fold_into_it(parts, other) -> None:
    for source, target in ((other, RATE), (RATE, other)):
        lower = min(source, target) / 2
        for hertz in (440, 0.8 * lower):
            found = resampled(parts, source, target, hertz)
            expected = np.sin(2 * np.pi * hertz * np.arange(len(found)) / target)
            inside = slice(len(found) // 4, -len(found) // 4)
            assert np.abs(found - expected)[inside].max() < 2e-4, (source, target, hertz)
        if source > target:
            folded = resampled(parts, source, target, min(1.2 * lower, 0.45 * source))[RATE // 4 : -RATE // 4]
            assert np.abs(folded).max() < 1e-3, "60 dB down"


def test_resampling_does_not_depend_on_the_pieces(parts) -> None:
    whole = resampled(parts, 44_100, RATE, 1000)
    assert np.array_equal(whole, resampled(parts, 44_100, RATE, 1000, piece=128))
    assert len(whole) == pytest.approx(RATE, abs=64)


def test_pieces_become_words_and_words_are_announced_in_groups(parts) -> None:
    words, spoken = parts.evaluate("""
    Promise.all([import("/recording.js"), import("/transcript.js")]).then(([{ Recording }, { Transcript }]) => {
      const recording = new Recording({});
      const [shown, spoken] = [document.createElement("div"), document.createElement("p")];
      shown.append(document.createElement("p"));
      const transcript = new Transcript(shown, spoken);
      for (const [at, text] of [" hel", "lo", ",", " wor", "ld", ...Array(11).fill(" more")].entries())
        transcript.show(recording.addText(text, at, at + 1));
      return [recording.words.map(({ text, start, end }) => [text, start, end]), spoken.textContent];
    })""")
    assert words[:2] == [["hello,", 0, 3], ["world", 3, 5]]
    assert spoken == " ".join(["hello,", "world", *["more"] * 10]), "12 words at the latest, the others after a pause"


def jitter(page, script: str):
    return page.evaluate(
        "import('/jitter-buffer.js').then(({ JitterBuffer }) => { const buffer = new JitterBuffer(1000);"
        " const frame = (value) => new Float32Array(80).fill(value);"
        " const read = (count) => { const out = new Float32Array(count); buffer.read(out); return [...out]; };"
        f" {script} }})"
    )


def test_playback_begins_a_margin_late_and_is_complete(parts) -> None:
    sound = jitter(parts, "buffer.push(frame(1)); return [...read(40), ...read(80), ...read(20)]")
    assert not any(sound[:40]) and sound[46:120] == [1] * 74 and abs(sound[-1]) < 0.6


def test_after_a_gap_playback_waits_longer(parts) -> None:
    margins = jitter(
        parts,
        "const found = []; for (let n = 0; n < 20; n++) { buffer.push(frame(1)); read(400); found.push(buffer.margin) }"
        " return [found, buffer.underruns]",
    )
    assert np.allclose(margins[0][:3], [0.06, 0.08, 0.1]) and max(margins[0]) == 0.24 and margins[1] == 20


def test_delay_that_nothing_needs_is_cut_out(parts) -> None:
    """A burst of 560 ms, then frames in time: after two seconds only the margin and a frame are left."""
    waiting = jitter(
        parts,
        "for (let n = 0; n < 7; n++) buffer.push(frame(1)); const found = [];"
        " for (let n = 0; n < 60; n++) { found.push(buffer.buffered); read(80); buffer.push(frame(1)); }"
        " return [found, buffer.dropped]",
    )
    assert max(waiting[0][:20]) > 500 and max(waiting[0][-20:]) <= 40 + 40 + 80 and waiting[1] > 300


def test_no_more_than_two_seconds_wait(parts) -> None:
    assert jitter(parts, "for (let n = 0; n < 100; n++) buffer.push(frame(1)); return buffer.buffered") <= 2000


def test_marks_are_reached_with_their_sound_and_flushed_with_it(parts) -> None:
    reached = jitter(
        parts,
        "const at = [], out = new Float32Array(300);"
        "const hear = () => { for (const { name, offset } of buffer.read(out)) at.push([name, offset]) };"
        "buffer.push(frame(1)); buffer.mark('second'); buffer.push(frame(1)); buffer.mark('ahead', 40);"
        "buffer.push(frame(1)); hear(); buffer.push(frame(1)); buffer.mark('flushed'); buffer.push(frame(1));"
        "buffer.flush(); hear(); return at",
    )
    assert reached == [["second", 120], ["ahead", 240]]
