"""Renders a conversation with the model's chat template, a Jinja program that nobody vouches for.

The program runs in Jinja's immutable sandbox, which keeps it from Python's internals and from changing its arguments.
That alone bounds neither time nor memory, so here in addition:

- every text that the program builds is at most ``MAX_TEXT_CHARS`` long: concatenation, block sets, macros, ``+``,
  ``replace`` and ``join`` check before they build; ``*`` and ``%`` on text and ``**`` are refused;
- only the string methods and filters that published templates use are there; those that take a width are not;
- only plain values become text, so a nested list cannot unfold exponentially;
- lines executed and processor time are counted while it runs.

The environment is the one of transformers' ``apply_chat_template``, except that ``strftime_now`` is absent: a prompt is
a function of its messages alone. https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import compiler, nodes, sandbox

from bulkhead.errors import InvalidRequestError
from data_plane.engine.port import ChatMessage

__all__ = ["ChatTemplate"]

MAX_TEMPLATE_CHARS: Final = 1 << 16  # the longest published ones, with tools, have about 20,000
MAX_TEXT_CHARS: Final = 1 << 23  # no supported context holds as much
MAX_LIST_ITEMS: Final = 1 << 16
MAX_LINES: Final = 500_000  # 1,024 messages through the longest published template stay below 50,000
MAX_CPU_S: Final = 2.0
MAX_INTEGER: Final = 1 << 63
MAX_JSON_NODES: Final = 1 << 16

# fmt: off
_METHODS: Final = frozenset((
    "append", "capitalize", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isdigit", "isspace",
    "items", "keys", "lower", "lstrip", "replace", "rfind", "rstrip", "split", "rsplit", "splitlines", "startswith",
    "strip", "title", "upper", "values",
))
_FILTERS: Final = frozenset((
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "select",
    "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
))
# fmt: on


class _BombError(Exception):
    """The program asks for more than any template needs."""


class _CodeGenerator(compiler.CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: compiler.Frame) -> None:  # noqa: N802 - Jinja's name
        """Compile ``~`` to the bounded join."""
        self.write("environment.join_text((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise _BombError("a text or list of more than the largest prompt")


def _concat(parts: Iterable[str]) -> str:
    pieces: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        _check(size, MAX_TEXT_CHARS)
        pieces.append(part)
    return "".join(pieces)


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(_concat)
    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_plain,
            optimized=False,
        )
        kept = {name: function for name, function in self.filters.items() if name in _FILTERS}
        self.filters = kept | {"join": _join, "replace": _replace, "string": _text, "tojson": _to_json}
        self.globals = {
            name: value for name, value in self.globals.items() if name in {"range", "dict", "namespace"}
        } | {"raise_exception": _raise_exception}

    @staticmethod
    def join_text(parts: Iterable[Any]) -> str:
        return _concat(_text(part) for part in parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and not isinstance(obj, nodes.Node) and isinstance(obj, str | bytes | list | tuple | dict):
            return attr in _METHODS and super().is_safe_attribute(obj, attr, value)
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "__name__", "") == "replace" and isinstance(getattr(function, "__self__", None), str):
            return _replace(function.__self__, *args, **kwargs)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator in "%*" and not numbers):
            raise _BombError(f"{operator} on anything but numbers, or a power")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            limit = MAX_TEXT_CHARS if isinstance(left, str) else MAX_LIST_ITEMS
            _check(len(left) + len(right), limit)
        if numbers and max(abs(left), abs(right)) >= MAX_INTEGER:
            raise _BombError("a huge number")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled template.

    Args:
        source: the Jinja program (untrusted).
        variables: special tokens by their names in tokenizer_config.json, e.g. ``bos_token``.

    Raises:
        InvalidRequestError: too long, or not a Jinja program.
    """

    def __init__(self, *, source: str, variables: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise InvalidRequestError(f"the model's chat template is longer than {MAX_TEMPLATE_CHARS} characters")
        try:
            self._template = _Environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise InvalidRequestError(
                f"the model's chat template is not a Jinja program: {type(error).__name__}"
            ) from error
        self._variables = dict(variables)

    def render(self, messages: Iterable[ChatMessage]) -> str:
        """Return the prompt for ``messages``, ready for the assistant's turn. Blocks: call it off the event loop.

        Raises:
            InvalidRequestError: the template refuses the conversation, fails, or exceeds a bound.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return _metered(
                lambda: self._template.render(messages=turns, add_generation_prompt=True, **self._variables)
            )
        except _RefusedError as error:
            raise InvalidRequestError(f"the model's chat template refuses the conversation: {error}") from error
        except _BombError as error:
            raise InvalidRequestError(f"the model's chat template exceeds its bounds: {error}") from error
        except (
            jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
            MemoryError,
        ) as error:  # fmt: skip
            raise InvalidRequestError(f"the model's chat template failed: {type(error).__name__}") from error


class _RefusedError(Exception):
    """The template called ``raise_exception``."""


def _metered(render: Callable[[], str]) -> str:
    """Run ``render`` on this thread with its lines and processor time counted."""
    lines, deadline = 0, time.thread_time() + MAX_CPU_S

    def on_line(_frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        if lines > MAX_LINES or time.thread_time() > deadline:
            raise _BombError("too much work")
        return on_line

    def on_call(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        return on_line if frame.f_code.co_filename == "<template>" else None

    previous = sys.gettrace()
    sys.settrace(on_call)
    try:
        return render()
    finally:
        sys.settrace(previous)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | float | jinja2.Undefined):
        return value
    if isinstance(value, int) and abs(value) < MAX_INTEGER:
        return value
    raise _BombError(f"a {type(value).__name__} as text")


def _text(value: Any) -> str:
    return str(_plain(value))


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    pieces: list[str] = []
    for value in values:
        pieces.extend((separator, _text(value[attribute] if attribute is not None else value)))
    return _concat(pieces[1:])


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old) if count < 0 else min(count, text.count(old))
    _check(len(text) + found * len(new), MAX_TEXT_CHARS)
    return text.replace(old, new, count)


def _to_json(value: Any, indent: int | None = None) -> str:
    pending, seen = [value], 0
    while pending:
        item = pending.pop()
        seen += 1
        _check(seen, MAX_JSON_NODES)
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
    text = json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, 8))
    _check(len(text), MAX_TEXT_CHARS)
    return text


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(_text(message)[:200])
