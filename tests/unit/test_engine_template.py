import resource
import time

import pytest

from bulkhead.errors import InvalidRequestError
from data_plane.engine.template import MAX_TEMPLATE_CHARS, ChatTemplate
from data_plane.inference.port import ChatMessage
from tests.simulator.tiny_model import CHAT_TEMPLATE

CONVERSATION = (
    ChatMessage(role="system", content="  Be brief.\n"),
    ChatMessage(role="user", content='<b>What\'s "this"?</b> {{ 7 * 7 }} ünï'),
    ChatMessage(role="assistant", content="<think>hm</think>\nAn answer."),
    ChatMessage(role="user", content="Go on."),
)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
        "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}{% set content = system_message + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "macros, namespaces and trimmed blocks": (
        "{%- macro turn(message) -%}\n<{{ message.role | upper }}>{{ message.content | trim }}\n{%- endmacro -%}\n"
        "{%- set ns = namespace(last=-1) %}\n{%- for message in messages %}\n"
        "    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n    {%- if '</think>' in message.content and loop.index0 < ns.last %}\n"
        "        {{- message.content.split('</think>')[-1].lstrip('\\n') ~ loop.index }}\n"
        "    {%- else %}{{ turn(message) }}{% endif %}\n"
        "{%- endfor %}\n{{ messages | map(attribute='role') | join(',') }}{{ messages[0] | tojson }}"
        "{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}"
    ),
    "neither tools nor documents": (
        "{% if tools is not none %}{{ tools | length }}{% endif %}{% if documents is not none %}D{% endif %}"
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    ),
    "a trainer's marks": (
        "{%- for message in messages %}\n{%- if message.role == 'assistant' %}\n{%- generation %}\n"
        "{% set content = message.content | trim %}<a>{{ content }}\n{%- endgeneration %}\n"
        "{%- else %}{{ message.content }}{{ content }}{% endif %}\n{%- endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_transformers_renders_them(name: str) -> None:
    """Published idioms give the very text of transformers' apply_chat_template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": message.role, "content": message.content} for message in CONVERSATION]
    rendered, _ = render_jinja_template(
        [messages], chat_template=TEMPLATES[name], add_generation_prompt=True, **VARIABLES
    )
    assert ChatTemplate(source=TEMPLATES[name], variables=VARIABLES).render(CONVERSATION) == rendered[0]


def test_a_template_that_cannot_do_without_the_date_is_told_apart() -> None:
    """A prompt is a function of its messages: a template that asks for the date has its own, or fails saying so."""
    asks = "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26 Jul 2024{% endif %}"
    assert ChatTemplate(source=asks, variables={}).render(CONVERSATION) == "26 Jul 2024"
    with pytest.raises(InvalidRequestError, match="date"):
        ChatTemplate(source="{{ strftime_now('%d') }}", variables={}).render(CONVERSATION)


def test_a_conversation_that_the_template_refuses_is_the_callers_error() -> None:
    """raise_exception in a template becomes InvalidRequestError with the template's words."""
    template = ChatTemplate(source=TEMPLATES["llama 2"], variables=VARIABLES)
    with pytest.raises(InvalidRequestError, match="roles alternate"):
        template.render((ChatMessage(role="assistant", content="x"),))


def grown(expression: str, *, start: str = "'aaaaaaaa'") -> str:
    """Return a template that replaces ``ns.x`` by the expression 60 times: 2^60 of what it started with."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {expression} %}}{{% endfor %}}"
    )


# A text of 6 MiB, which alone is within the bound.
GROWN = "{% set ns = namespace(x='aa ') %}{% for i in range(21) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
GROWN += "{% set x = ns.x %}"
BOMBS = {
    "endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}",
    "text times number": "{{ 'a' * 10000000000 }}",
    "list times number": "{{ ([1] * 10000000000) | length }}",
    "doubling by +": grown("ns.x + ns.x"),
    "doubling by ~": grown("ns.x ~ ns.x"),
    "doubling by block set": (
        "{% set ns = namespace(x='aaaaaaaa') %}"
        "{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}"
    ),
    "doubling by macro": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}" + grown("d(ns.x)"),
    "doubling by join": grown("[ns.x, ns.x] | join"),
    "doubling by replace filter": grown("ns.x | replace('a', 'aa')"),
    "doubling by replace method": grown("ns.x.replace('a', 'aa')"),
    "doubling a list": grown("ns.x + ns.x", start="[1]"),
    "nested list as text": grown("[ns.x, ns.x]", start="[]") + "{{ ns.x }}",
    "nested lists compared": (
        "{% set ns = namespace(x=[], y=[]) %}"
        "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = {1: ns.y, 2: ns.y} %}{% endfor %}"
        "{{ ns.x == ns.y }}"
    ),
    "nested by arguments": "{% macro f() %}{% set ns.x = varargs %}{% endmacro %}" + grown("f(ns.x, ns.x)"),
    "namespaces in each other": (
        "{% set ns = namespace(x=namespace(a=1)) %}"
        "{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    "nested list as JSON": grown("[ns.x, ns.x]", start="[]") + "{{ ns.x | tojson }}",
    "nested list joined": grown("[ns.x, ns.x]", start="[]") + "{{ [ns.x] | join }}",
    "nested list as string": grown("[ns.x, ns.x]", start="[]") + "{{ ns.x | string }}",
    "nested list lowered": grown("[ns.x, ns.x]", start="[]") + "{{ ns.x | lower }}",
    "width by method": "{{ 'a'.ljust(10000000000) }}",
    "width by filter": "{{ 'a' | center(10000000000) }}",
    "width by format": "{{ '{:10000000000}'.format(1) }}",
    "width by percent": "{{ '%10000000000d' % 1 }}",
    "many texts": GROWN + "".join(f"{{% set a{i} = x ~ 'a' %}}" for i in range(1500)),
    "many slices": GROWN + "".join(f"{{% set a{i} = x[{i + 1}:] %}}" for i in range(1500)),
    "many lists of words": GROWN + "".join(f"{{% set a{i} = x.split() %}}" for i in range(60)),
    "many lists of letters": GROWN + "".join(f"{{% set a{i} = x | list %}}" for i in range(200)),
    "many capitals": GROWN + "".join(f"{{% set a{i} = x | upper %}}" for i in range(1000)),
    "texts that recursion holds": GROWN
    + (
        "{% macro f(x, n) %}{% set y = x ~ 'a' %}{% if n %}{{ f(y, n - 1) | length }}{% endif %}{% endmacro %}"
        "{{ f(x, 150) }}"
    ),
    "huge power": "{{ 10 ** 10 ** 10 }}",
    "huge product": grown("ns.x * ns.x", start="99"),
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_bounded_time_and_memory(name: str) -> None:
    """A template that asks for endless work or memory is a typed error within seconds and megabytes."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InvalidRequestError):
        ChatTemplate(source=BOMBS[name], variables={}).render(CONVERSATION)
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ cycler('a') }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% if %}",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.split() }}",
        "(" * 10 + "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        " " * (MAX_TEMPLATE_CHARS + 1),
    ],
)
def test_escapes_and_broken_programs_are_refused(source: str) -> None:
    """What reaches for Python's internals, changes its input, or is no program at all is a typed error."""
    with pytest.raises(InvalidRequestError):
        ChatTemplate(source=source, variables={}).render(CONVERSATION)
