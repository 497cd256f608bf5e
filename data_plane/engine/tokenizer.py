"""The model's tokenizer and chat template: text to token ids and back. Blocking; called off the event loop."""

from collections.abc import Sequence
from typing import Final

import tokenizers  # type: ignore[import-untyped]  # published without types

from bulkhead.encoding import Json
from bulkhead.errors import ContextLengthError, InvalidRequestError, UnsupportedError
from bulkhead.models import ModelSource, read_file
from data_plane.engine.port import ChatMessage
from data_plane.engine.spec import read_json
from data_plane.engine.template import MAX_TEMPLATE_CHARS, ChatTemplate

__all__ = ["Tokenizer"]

MAX_TOKENIZER_BYTES: Final = 64 << 20  # a vocabulary of 262,144 with its merges takes 33 MB
MAX_CONFIG_BYTES: Final = 8 << 20  # some list each added token
SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """Reads tokenizer.json and the chat template of a Hugging Face model (untrusted).

    Args:
        source: the model's files; not kept.
        vocabulary: rows of the model's embedding; a tokenizer that yields higher ids is refused.
        context_tokens: the longest prompt; bounds the text that is tokenised at all.

    Raises:
        InvalidRequestError: a file is missing, too long, malformed, or does not fit the model.
        SealedModelError: as :meth:`ModelSource.read_into`.
    """

    def __init__(self, *, source: ModelSource, vocabulary: int, context_tokens: int) -> None:
        self._tokenizer = _load(source)
        entries = self._tokenizer.get_vocab(with_added_tokens=True)
        if not entries or max(entries.values()) >= vocabulary:
            raise InvalidRequestError("tokenizer.json yields token ids that the model has no embedding for")
        self._template = _template(source)
        self._context_tokens = context_tokens
        # A token stands for at most as many bytes as its name has: byte-level names spell each byte with one
        # character or more, the others spell the text itself.
        self._max_bytes = context_tokens * max(len(name.encode()) for name in entries)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of ``text``; special tokens are recognised where the text spells them.

        None are added, except with ``special`` those that the tokenizer puts around a text.

        Raises:
            InvalidRequestError: a lone surrogate, so not Unicode text.
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
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
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
        """Return the text of ``ids``, without special tokens unless asked for."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special)
        return text

    def spellings(self, word: str) -> list[list[int]]:
        """Return the token sequences that spell ``word`` at the start of a text and after a space, as vLLM does."""
        alone, spaced = self.encode(word), self.encode(f" {word.lstrip()}")
        return [ids for ids in (alone, spaced) if ids]

    def definition(self) -> str:
        """Return tokenizer.json as it is used here."""
        text: str = self._tokenizer.to_str()
        return text


def _load(source: ModelSource) -> tokenizers.Tokenizer:
    data = read_file(source, "tokenizer.json", max_bytes=MAX_TOKENIZER_BYTES)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises bare Exception for what it cannot parse
        raise InvalidRequestError("tokenizer.json is not a tokenizer that this engine can read") from error
    tokenizer.no_truncation()  # a file may ask for a silent cut or for filling up; prompts are taken whole
    tokenizer.no_padding()
    return tokenizer


def _template(source: ModelSource) -> ChatTemplate | None:
    config: dict[str, Json] = {}
    if "tokenizer_config.json" in source.files:
        config = read_json(source, "tokenizer_config.json", max_bytes=MAX_CONFIG_BYTES)
    template = config.get("chat_template")
    if "chat_template.jinja" in source.files:
        try:
            template = read_file(source, "chat_template.jinja", max_bytes=4 * MAX_TEMPLATE_CHARS).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError("chat_template.jinja cannot be read") from error
    if template is None:
        return None
    if not isinstance(template, str):
        raise UnsupportedError("the model has several chat templates; the native engine reads a single one")
    variables = {name: _token_text(config.get(name)) for name in SPECIAL_TOKENS}
    return ChatTemplate(source=template, variables={name: text for name, text in variables.items() if text is not None})


def _token_text(value: Json) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
