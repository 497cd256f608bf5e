import random
from collections.abc import Sequence

import pytest
import tokenizers

from data_plane.engine.text import MAX_WINDOW, REPLACEMENT, Detokeniser, StopFinder, TextStream
from tests.simulator.tiny_model import make_tiny_model

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve café — Ω\n\tend"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    directory = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


def pieces(detokeniser: Detokeniser, ids: Sequence[int]) -> list[str]:
    return [*(detokeniser.push(token) for token in ids), detokeniser.flush()]


def test_no_piece_breaks_a_character(tokenizer: tokenizers.Tokenizer) -> None:
    """With a token per byte, every piece is whole characters and the pieces join to the text."""
    found = pieces(Detokeniser(tokenizer.decode), tokenizer.encode(TEXT).ids)
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert max(map(len, found)) == 1


def test_random_bytes_join_to_what_the_tokenizer_decodes_at_once(tokenizer: tokenizers.Tokenizer) -> None:
    """Whatever the model produces, invalid UTF-8 included, the stream shows what decoding it whole would."""
    source = random.Random(3)
    for _ in range(50):
        ids = [source.randrange(259) for _ in range(40)]
        assert "".join(pieces(Detokeniser(tokenizer.decode), ids)) == tokenizer.decode(ids)


@pytest.fixture(scope="module")
def fallback() -> tokenizers.Tokenizer:
    """A tokenizer of the Llama 2 kind: bytes are tokens, and one that fits none spoils all of its neighbours."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256, "▁b": 257}
    found = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = (
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
        tokenizers.decoders.Strip(" ", 1, 0),
    )
    found.decoder = tokenizers.decoders.Sequence(list(steps))
    return found


def decoded(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> tuple[list[str], int]:
    """Return the pieces of a stream, and how many tokens were decoded for them in all."""
    count = 0

    def decode(some: Sequence[int]) -> str:
        nonlocal count
        count += len(some)
        return str(tokenizer.decode(some))

    return pieces(Detokeniser(decode), ids), count


FIRST_BYTE = 3  # behind the special tokens
ENDLESS = {
    "one byte": [0x80] * 600,
    "unfinished characters": [0xF0, 0x9F, 0x98] * 200,
    "beginnings": [0xF0] * 600,
    "any": random.Random(5).choices(range(0x80, 0x100), k=600),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_bytes_that_are_no_text_come_out_as_they_come(tokenizer: tokenizers.Tokenizer, name: str) -> None:
    """An answer of invalid UTF-8 is not held to its end, costs no more a token, and is what decoding it whole gives."""
    ids = [FIRST_BYTE + byte for byte in ENDLESS[name]]
    found, cost = decoded(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)
    assert cost <= 3 * MAX_WINDOW * len(ids)
    assert all(any(found[at : at + MAX_WINDOW + 1]) for at in range(len(ids) - MAX_WINDOW))


def test_bytes_that_are_no_text_come_out_of_a_tokenizer_that_spoils_their_neighbours(
    fallback: tokenizers.Tokenizer,
) -> None:
    """Byte fallback shows each byte of such a run as replaced; the stream does the same, at the same cost a token."""
    ids = [0x80] * 600
    found, cost = decoded(fallback, ids)
    assert "".join(found) == fallback.decode(ids) == REPLACEMENT * 600
    assert all(found[MAX_WINDOW + 1 :])
    assert cost <= 3 * MAX_WINDOW * len(ids)


def test_a_bad_byte_spoils_what_is_near_it_and_no_more(fallback: tokenizers.Tokenizer) -> None:
    """Where decoding the whole run would show nothing of it, what came before stays and what comes later is shown."""
    face = list("😀".encode())
    assert "".join(decoded(fallback, [256, *face, 0xF0, 257])[0]) == f"a😀{REPLACEMENT} b"
    found = "".join(decoded(fallback, [256, *face, 0x80, *[0x61] * 40, *face, 257])[0])
    assert found.startswith(f"a😀{REPLACEMENT}")
    assert found.endswith("a" * 20 + "😀 b")
    assert len(found) == 2 + 1 + 40 + 1 + 2


def test_characters_that_no_token_ends_with_come_out_whole() -> None:
    """Valid text whose tokens all end inside a character is neither held to its end nor broken."""
    ends = {0: b"x\xe2", 1: b"\x82\xac\xe2", 2: b"\x82", 3: b"\xac"}

    def decode(ids: Sequence[int]) -> str:
        return b"".join(ends[token] for token in ids).decode(errors="replace")

    found = pieces(Detokeniser(decode), [0, *[1] * 200, 2, 3])
    assert "".join(found) == "x" + "€" * 201
    assert all(found[MAX_WINDOW : 1 + 200])


def test_a_character_that_tokens_without_text_cut_is_given_up_at_last(tokenizer: tokenizers.Tokenizer) -> None:
    """Special tokens may lie between its bytes; so many that a character cannot be meant replace it."""
    first, *rest = (FIRST_BYTE + byte for byte in "€".encode())
    assert "".join(decoded(tokenizer, [first, 0, 1, *rest])[0]) == "€"
    found, cost = decoded(tokenizer, [first, *[0] * 300, FIRST_BYTE + 0x78])
    assert "".join(found) == f"{REPLACEMENT}x"
    assert any(found[:-2])
    assert cost <= 3 * MAX_WINDOW * 302


def test_leading_spaces_survive_in_the_middle_of_a_text() -> None:
    """A tokenizer of the SentencePiece kind drops the first space of what it decodes; the stream keeps the others."""
    words = ["▁Hello", "▁wide", "▁world", "!"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pieces(Detokeniser(decode), [0, 1, 2, 3]) == ["Hello", " wide", " world", "!", ""]


def test_an_answer_keeps_the_space_between_it_and_its_prompt(tokenizer: tokenizers.Tokenizer) -> None:
    """Decoded after the end of its prompt, as vLLM does it, and only if that is whole characters."""
    words = ["▁Hello", "▁wide", "▁world", "!"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pieces(Detokeniser(decode, before=[0]), [1, 2, 3]) == [" wide", " world", "!", ""]
    euro = tokenizer.encode("x€").ids
    for cut in range(1, len(euro)):
        found = "".join(pieces(Detokeniser(tokenizer.decode, before=euro[:cut]), [*euro[cut:], euro[0]]))
        assert found == tokenizer.decode([*euro[cut:], euro[0]])


def test_an_unfinished_character_at_the_end_is_shown_as_replaced(tokenizer: tokenizers.Tokenizer) -> None:
    """An answer cut inside a character ends with the replacement character, not with lost text."""
    ids = tokenizer.encode("ab€").ids[:-1]
    assert pieces(Detokeniser(tokenizer.decode), ids) == ["a", "b", "", "", "\ufffd"]


@pytest.mark.parametrize(
    ("stops", "given", "expected"),
    [
        (("END",), ["aE", "N", "Db"], ["a", "", ""]),
        (("END",), ["aE", "NX", "END"], ["a", "ENX", ""]),
        (("aab",), ["a", "a", "a", "b"], ["", "", "a", ""]),
        (("xyz", "y"), ["wx", "yz"], ["w", ""]),
        (("\n\n",), ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
    ],
)
def test_a_stop_string_is_never_shown_in_whatever_pieces_it_comes(
    stops: tuple[str, ...], given: list[str], expected: list[str]
) -> None:
    """What may be the start of a stop string is held back, set free when it is not, and cut off when it is."""
    finder = StopFinder(stops)
    results = [finder.push(text) for text in given]
    assert [text for text, _ in results] == expected
    assert [stopped is not None for _, stopped in results] == [False] * (len(given) - 1) + [True]


def test_held_back_text_comes_out_at_the_end(tokenizer: tokenizers.Tokenizer) -> None:
    """An answer that ends inside a possible stop string keeps that text."""
    stream = TextStream(decode=tokenizer.decode, stops=("END",))
    shown = [stream.push(token) for token in tokenizer.encode("so EN").ids]
    assert "".join(text for text, _ in shown) == "so "
    assert stream.flush() == ("EN", None)


def test_a_stop_string_completed_by_the_flush_is_found() -> None:
    """A stop string that ends with replaced bytes is found when the last of them are decoded."""
    stream = TextStream(decode=lambda ids: "x" * (len(ids) - 1) + "\ufffd" if ids else "", stops=("\ufffd",))
    assert stream.push(1) == ("", None)
    assert stream.push(2) == ("", None)
    assert stream.flush() == ("x", "\ufffd")


def test_a_stop_string_can_stay_in_the_text() -> None:
    """include_stop_str_in_output ends the text behind the stop string; of two the one that begins first counts."""
    finder = StopFinder(("cd", "bcde"), keep=True)
    assert finder.push("abcdef") == ("abcde", "bcde")


def test_text_before_the_least_length_ends_nothing(tokenizer: tokenizers.Tokenizer) -> None:
    """Without looking, a stop string passes and none begins in what passed."""
    stream = TextStream(decode=lambda ids: "".join("EN" if token == 1 else "D!" for token in ids), stops=("END",))
    assert stream.push(1, look=False) == ("EN", None)
    assert stream.push(2) == ("D!", None)
