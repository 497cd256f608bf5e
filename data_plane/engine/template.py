"""Renders a conversation with the model's chat template, a Jinja program that nobody vouches for.

The program runs in Jinja's immutable sandbox, which keeps it from Python's internals and from changing its arguments.
That alone bounds neither time nor memory, so here in addition:

- every text and every list that the program builds is measured with all that it holds: concatenation, block sets,
  macros, literals, slices, ``+``, what methods and filters return; ``*`` and ``%`` on text, ``**``, ``varargs`` and
  ``kwargs`` are refused;
- what it builds is added up, so that many things below the bound are bounded too;
- only the string methods and filters that published templates use are there; those that take a width are not;
- lines executed and processor time are counted while it runs.

The environment is the one of transformers' ``apply_chat_template``, except that ``strftime_now`` is absent: a prompt is
a function of its messages alone. https://huggingface.co/docs/transformers/chat_templating_writing
"""

import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import ext, nodes, sandbox, utils
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from bulkhead.errors import InvalidRequestError
from data_plane.inference.port import ChatMessage

__all__ = ["ChatTemplate"]

MAX_TEMPLATE_CHARS: Final = 1 << 16  # the longest published ones, with tools, have about 20,000
MAX_TEXT_CHARS: Final = 1 << 23  # no supported context holds as much
ITEM_WEIGHT: Final = 32  # of a place in a list, in characters: handling it costs as much
MAX_BUILT_CHARS: Final = 1 << 26  # all texts and lists of one rendering; a template that copies once per turn fits
MAX_INDENTED: Final = 1 << 16
MAX_DEPTH: Final = 32
MAX_LINES: Final = 500_000  # 1,024 messages through the longest published template stay below 50,000
MAX_CPU_S: Final = 2.0
MAX_INTEGER: Final = 1 << 63

# fmt: off
_METHODS: Final = frozenset((
    "capitalize", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isdigit", "isspace", "items",
    "keys", "lower", "lstrip", "replace", "rfind", "rstrip", "split", "rsplit", "splitlines", "startswith", "strip",
    "title", "upper", "values",
))
_FILTERS: Final = frozenset((
    "abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "list", "map",
    "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique",
))
# fmt: on
_TEXT_FILTERS: Final = frozenset(("capitalize", "lower", "title", "trim", "upper"))


class _BombError(Exception):
    """The program asks for more than any template needs."""


class _RefusedError(Exception):
    """The program called ``raise_exception``."""


def _measure(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return what ``value`` weighs when unfolded, in characters, and how deep it is nested."""
    if isinstance(value, str):
        return 1 + len(value), 0
    if isinstance(value, utils.Namespace):
        raise _BombError("a namespace as text or in a list")
    if not isinstance(value, list | tuple | dict):
        return 1, 0
    if ITEM_WEIGHT * len(value) > MAX_TEXT_CHARS:
        raise _BombError("a list of more places than the largest prompt has characters for")
    if id(value) not in known:
        parts = [part for item in value.items() for part in item] if isinstance(value, dict) else value
        measures = [_measure(part, known) for part in parts]
        weight = ITEM_WEIGHT * (1 + len(measures)) + sum(weight for weight, _ in measures)
        known[id(value)] = weight, 1 + max((depth for _, depth in measures), default=0)
    return known[id(value)]


def _checked(value: Any) -> Any:
    """Return ``value``, a text or something that becomes text, if it is small enough."""
    weight, depth = _measure(value, {})
    if weight > MAX_TEXT_CHARS or depth > MAX_DEPTH:
        raise _BombError("a text or list of more than the largest prompt")
    return value


_built = threading.local()  # ``left``: how much the rendering on this thread may still build, in characters


def _count(size: int) -> None:
    _built.left -= size
    if _built.left < 0:
        raise _BombError("all texts and lists together")


def _made(value: Any) -> Any:
    """Measure and count what was just built: a text, or a list's own places."""
    if isinstance(value, str | list | tuple | dict):
        _checked(value)
        _count(len(value) if isinstance(value, str) else ITEM_WEIGHT * len(value))
    return value


def _text(value: Any) -> str:
    return str(_checked(value))


def _concat(parts: Iterable[str]) -> str:
    pieces: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        if size > MAX_TEXT_CHARS:
            raise _BombError("a text of more than the largest prompt")
        pieces.append(part)
    _count(size)
    return "".join(pieces)


class _Measured(NodeTransformer):
    """Puts literals, slices and ``~`` through the environment's filters that measure."""

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802 - Jinja's name
        return self._through("made", self.generic_visit(node))

    visit_Dict = visit_List  # noqa: N815 - Jinja's name

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - Jinja's name
        inside = self.generic_visit(node)
        return inside if node.ctx == "store" else self._through("made", inside)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - Jinja's name
        inside = self.generic_visit(node)
        return self._through("made", inside) if isinstance(node.arg, nodes.Slice) else inside

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        return self._through("join_text", nodes.List(node.nodes, lineno=node.lineno))

    @staticmethod
    def _through(name: str, node: nodes.Node) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(ext.Extension):
    """``{% generation %}``: marks for a trainer what the assistant says; here its body stands as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own type

    def parse(self, parser: Parser) -> nodes.Node:
        block = nodes.Scope(lineno=next(parser.stream).lineno)
        block.body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return block


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    concat = staticmethod(_concat)
    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_checked,
            optimized=False,
        )
        filters = {name: _measured(self.filters[name]) for name in _FILTERS}
        filters |= {name: _on_text(self.filters[name]) for name in _TEXT_FILTERS}
        measured = {"made": _made, "join_text": _join, "join": _join, "replace": _replace, "string": _text}
        self.filters = filters | measured | {"tojson": _to_json}
        self.globals = {
            "range": self.globals["range"],
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
        }

    def wrap_str_format(self, value: Any) -> None:
        """Leave ``str.format`` to :meth:`is_safe_attribute`, which refuses it: it takes widths."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and isinstance(obj, str | bytes | list | tuple | dict) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and function.__name__ == "replace":
            return _replace(owner, *args, **kwargs)
        return _made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator in "%*" and not numbers):
            raise _BombError(f"{operator} on anything but numbers, or a power")
        if numbers and max(abs(left), abs(right)) >= MAX_INTEGER:
            raise _BombError("a huge number")
        if isinstance(left, str) and isinstance(right, str):
            return _concat((left, right))
        return _made(super().call_binop(context, operator, left, right))


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
            environment = _Environment()
            program = environment.parse(source)
            named = {name.name for name in program.find_all(nodes.Name)}
            self._template = environment.from_string(_Measured().visit(program).set_environment(environment))
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise InvalidRequestError(
                f"the model's chat template is not a Jinja program: {type(error).__name__}"
            ) from error
        if named & {"varargs", "kwargs"}:
            raise InvalidRequestError("the model's chat template takes macro arguments that it does not name")
        self._dated = "strftime_now" in named
        self._variables = dict(variables)

    def render(self, messages: Iterable[ChatMessage]) -> str:
        """Return the prompt for ``messages``, ready for the assistant's turn. Blocks: call it off the event loop.

        Raises:
            InvalidRequestError: the template refuses the conversation, fails, or exceeds a bound.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return _metered(
                lambda: self._template.render(
                    messages=turns, tools=None, documents=None, add_generation_prompt=True, **self._variables
                )
            )
        except _RefusedError as error:
            raise InvalidRequestError(f"the model's chat template refuses the conversation: {error}") from error
        except _BombError as error:
            raise InvalidRequestError(f"the model's chat template exceeds its bounds: {error}") from error
        except (
            jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
            MemoryError,
        ) as error:  # fmt: skip
            dated = " (it asks for the date, which prompts here have none of)" if self._dated else ""
            raise InvalidRequestError(f"the model's chat template failed: {type(error).__name__}{dated}") from error


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
    _built.left = MAX_BUILT_CHARS
    try:
        return render()
    finally:
        sys.settrace(previous)


def _on_text(function: Callable[..., str]) -> Callable[..., str]:
    return lambda value, *args: str(_made(function(_text(value), *args)))


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # with it what Jinja is to pass to it
    def measured(*args: Any, **kwargs: Any) -> Any:
        return _made(function(*args, **kwargs))

    return measured


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    pieces: list[str] = []
    for value in values:
        pieces.extend((separator, _text(value if attribute is None else value[attribute])))
    return _concat(pieces[1:])


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old) if count < 0 else min(count, text.count(old))
    if len(text) + found * len(new) > MAX_TEXT_CHARS:
        raise _BombError("a text of more than the largest prompt")
    return str(_made(text.replace(old, new, count)))


def _to_json(value: Any, indent: int | None = None) -> str:
    if indent is not None and _measure(value, {})[0] > MAX_INDENTED:
        raise _BombError("a large object as indented JSON")
    return json.dumps(_checked(value), ensure_ascii=False, indent=None if indent is None else min(indent, 8))


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(_text(message)[:200])
