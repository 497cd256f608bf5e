"""The model's tokenizer and chat template: text to token ids and back. Blocking; called off the event loop."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import tokenizers  # type: ignore[import-untyped]  # published without types

from bulkhead.encoding import Json
from bulkhead.errors import ContextLengthError, InvalidRequestError, UnsupportedError
from bulkhead.models import ModelSource, read_file
from data_plane.engine.spec import read_json
from data_plane.engine.template import MAX_TEMPLATE_CHARS, ChatTemplate
from data_plane.inference.port import ChatMessage

__all__ = ["Tokenizer", "sound"]

MAX_TOKENIZER_BYTES: Final = 64 << 20  # a vocabulary of 262,144 with its merges takes 33 MB
MAX_CONFIG_BYTES: Final = 8 << 20  # some list each added token
SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")

# A pool of threads for a batch of one text would only take cores from the model's.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Reads tokenizer.json and the chat template of a Hugging Face model (untrusted).

    Args:
        source: the model's files; not kept.
        vocabulary: rows of the model's embedding; a tokenizer that yields higher ids is refused.
        context_tokens: the longest prompt; bounds the text that is tokenised at all.

    ``end_token`` is the one that tokenizer_config.json names as the end of a turn; None if it names none.

    Raises:
        InvalidRequestError: a file is missing, too long, malformed, or does not fit the model.
        SealedModelError: as :meth:`ModelSource.read_into`.
    """

    def __init__(self, *, source: ModelSource, vocabulary: int, context_tokens: int) -> None:
        self._tokenizer = _load(source)
        self._vocabulary = vocabulary
        entries: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        if not entries or max(entries.values()) >= vocabulary:
            raise InvalidRequestError("tokenizer.json yields token ids that the model has no embedding for")
        config = _config(source)
        self._template = _template(source, config)
        end = _token_text(config.get("eos_token"))
        self.end_token: int | None = None if end is None else entries.get(end)
        self._context_tokens = context_tokens
        # A token stands for at most as many bytes as its name has: byte-level names spell each byte with one
        # character or more, the others spell the text itself.
        self._max_bytes = context_tokens * max(len(name.encode()) for name in entries)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of ``text``; special tokens are recognised where the text spells them.

        None are added, except with ``special`` those that the tokenizer puts around a text.

        Raises:
            InvalidRequestError: a lone surrogate, so not Unicode text; or the tokenizer fails on the text.
            ContextLengthError: more bytes than any prompt that fits the context.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequestError("the prompt is not Unicode text: it has a lone surrogate") from error
        if size > self._max_bytes:
            raise ContextLengthError(
                f"a prompt of {size} bytes is longer than the context of {self._context_tokens} tokens",
                details={"prompt_bytes": str(size), "context_tokens": str(self._context_tokens)},
            )
        # A batch of one: `encode` holds Python's lock all the while, a second for a megabyte, and the engine with it.
        encoded = sound(lambda: self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0])
        ids: list[int] = encoded.ids
        if ids and max(ids) >= self._vocabulary:  # those that a post-processor adds are in no vocabulary
            raise InvalidRequestError("the model's tokenizer yields token ids that the model has no embedding for")
        return ids

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the prompt's ids for a conversation. Raises as :meth:`encode` and :meth:`ChatTemplate.render`.

        Raises:
            UnsupportedError: the model has no chat template.
        """
        if self._template is None:
            raise UnsupportedError("the model has no chat template: send the prompt as token ids")
        if sum(len(message.content) for message in messages) > self._max_bytes:  # a character has a byte or more
            raise ContextLengthError(
                f"the conversation is longer than the context of {self._context_tokens} tokens",
                details={"context_tokens": str(self._context_tokens)},
            )
        return self.encode(self._template.render(messages))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ``ids``, without special tokens unless asked for.

        Raises:
            InvalidRequestError: the tokenizer fails on them.
        """
        text: str = sound(lambda: self._tokenizer.decode(ids, skip_special_tokens=not special))
        return text

    def decode_long(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return what :meth:`decode` does; without Python's lock, which a batch of one is decoded without."""
        (text,) = sound(lambda: self._tokenizer.decode_batch([ids], skip_special_tokens=not special))
        return str(text)

    def spellings(self, word: str) -> list[list[int]]:
        """Return the token sequences that spell ``word`` at the start of a text and after a space, as vLLM does.

        Other cuts of the same text into tokens are not among them.
        """
        bare = word.lstrip()
        return [ids for ids in (self.encode(text) for text in (word, bare, f" {bare}")) if ids]

    def definition(self) -> str:
        """Return tokenizer.json as it is used here."""
        text: str = self._tokenizer.to_str()
        return text


def sound(call: Callable[[], Any]) -> Any:
    """Return what the tokenizer returns; whatever it raises is the model's defect and says nothing of the text.

    A tokenizer, or what is made of one, raises bare Exception for what it cannot parse, and its panics (a search that
    backtracks too often, a decoder that cuts more than there is) come as a BaseException that has no importable name.

    Raises:
        InvalidRequestError: it failed.
    """
    try:
        return call()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidRequestError("tokenizer.json is not a tokenizer that this engine can work with") from None


def _load(source: ModelSource) -> tokenizers.Tokenizer:
    data = read_file(source, "tokenizer.json", max_bytes=MAX_TOKENIZER_BYTES)
    tokenizer = sound(lambda: tokenizers.Tokenizer.from_buffer(data))
    tokenizer.no_truncation()  # a file may ask for a silent cut or for filling up; prompts are taken whole
    tokenizer.no_padding()
    return tokenizer


def _config(source: ModelSource) -> dict[str, Json]:
    if "tokenizer_config.json" not in source.files:
        return {}
    return read_json(source, "tokenizer_config.json", max_bytes=MAX_CONFIG_BYTES)


def _template(source: ModelSource, config: Mapping[str, Json]) -> ChatTemplate | None:
    template = _single(config.get("chat_template"))
    if "chat_template.jinja" in source.files:
        try:
            template = read_file(source, "chat_template.jinja", max_bytes=4 * MAX_TEMPLATE_CHARS).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError("chat_template.jinja cannot be read") from error
    if template is None:
        return None
    if not isinstance(template, str):
        raise UnsupportedError("the model has several chat templates, and none of them is named default")
    variables = {name: _token_text(config.get(name)) for name in SPECIAL_TOKENS}
    return ChatTemplate(source=template, variables={name: text for name, text in variables.items() if text is not None})


def _single(template: Json) -> Json:
    """Return the one of several named templates that is for conversations without tools or documents."""
    if not isinstance(template, list):
        return template
    named = [entry.get("template") for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
    return named[0] if named else template


def _token_text(value: Json) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
