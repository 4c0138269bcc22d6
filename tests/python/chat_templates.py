"""Chat templates of our own, in the manner of the known families.

Each encloses what the assistant writes, to the token that ends its turn, in {% generation %}: `TAGGED`. `plain` takes
the tags out again: the text stays the same, and the tags tell what a mask has to cover.
"""

from __future__ import annotations

import re

QWEN = """\
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' -%}
<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif -%}
{%- set ns = namespace(last=messages | length - 1, seeking=true) -%}
{%- for m in messages[::-1] -%}
  {%- if ns.seeking and m.role == 'user' and m.content is string -%}
    {%- set ns.last = messages | length - 1 - loop.index0 -%}{%- set ns.seeking = false -%}
  {%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
  {%- set content = m.content if m.content is string else '' -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
<|im_start|>{{ m.role }}
{{ content }}{% if enable_thinking is defined and not enable_thinking %} /no_think{% endif %}<|im_end|>
{% elif m.role == 'assistant' -%}
    {%- set thought = '' -%}
    {%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
<|im_start|>assistant{{ '\\n' }}
    {%- generation -%}
      {%- if loop.index0 > ns.last and (loop.last or thought) -%}
        {{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
      {%- else -%}{{ content }}{%- endif -%}
      {%- for call in m.tool_calls or [] -%}
        {%- if (loop.first and content) or not loop.first -%}{{ '\\n' }}{%- endif -%}
        {%- set f = call.function or call -%}
        {{ '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' }}
        {{- f.arguments if f.arguments is string else f.arguments | tojson }}{{ '}\\n</tool_call>' }}
      {%- endfor -%}
<|im_end|>
    {%- endgeneration -%}{{ '\\n' }}
  {%- elif m.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
{{ '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

LLAMA3 = """\
{{- bos_token -}}
{%- if tools is not none and date is not defined -%}{%- set date = strftime_now('%d %b %Y') -%}{%- endif -%}
{%- if messages[0].role == 'system' -%}
  {%- set system = messages[0].content | trim -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
<|start_header_id|>system<|end_header_id|>

{% if tools is not none %}Environment: ipython
Today: {{ date }}
{% for t in tools %}{{ t | tojson(indent=4) }}
{% endfor %}{% endif %}{{ system }}<|eot_id|>
{%- for m in messages -%}
  {%- if m.tool_calls is defined and m.tool_calls -%}
    {%- if m.tool_calls | length != 1 -%}{{ raise_exception('one call at a time') }}{%- endif -%}
    {%- set call = m.tool_calls[0].function -%}
<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}
    {%- generation -%}
      {{ '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}<|eot_id|>
    {%- endgeneration -%}
  {%- elif m.role == 'assistant' -%}
<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}
    {%- generation -%}{{ m.content | trim }}<|eot_id|>{%- endgeneration -%}
  {%- elif m.role == 'tool' -%}
<|start_header_id|>ipython<|end_header_id|>{{ '\\n\\n' }}{{ m.content | tojson }}<|eot_id|>
  {%- else -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

LLAMA2 = """\
{%- if messages[0].role == 'system' -%}
  {%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{%- for m in messages -%}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
  {%- if m.role == 'user' -%}
{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}
  {%- else -%}
    {%- generation -%}{{ ' ' + m.content.strip() + ' ' + eos_token }}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
"""

MISTRAL = """\
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set system = messages[0].content -%}{%- set messages = messages[1:] -%}
{%- endif -%}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}
    {%- if tools is not none and m == users[-1] -%}
[AVAILABLE_TOOLS][
      {%- for t in tools -%}{{ t | tojson(separators=(',', ':')) }}{% if not loop.last %}, {% endif %}{%- endfor -%}
][/AVAILABLE_TOOLS]
    {%- endif -%}
[INST]{{ ' ' + (system + '\\n\\n' if loop.last and system else '') + m.content }}[/INST]
  {%- elif m.tool_calls is defined and m.tool_calls is not none -%}
    {%- generation -%}[TOOL_CALLS][
      {%- for call in m.tool_calls -%}{{ call.function | tojson }}{% if not loop.last %}, {% endif %}{%- endfor -%}
    ]{{ eos_token }}{%- endgeneration -%}
  {%- elif m.role == 'assistant' -%}
    {%- generation -%}{{ ' ' + m.content | trim + eos_token }}{%- endgeneration -%}
  {%- elif m.role == 'tool' -%}
[TOOL_RESULTS]{{ {'content': m.content, 'call_id': m.tool_call_id} | tojson(sort_keys=true) }}[/TOOL_RESULTS]
  {%- else -%}{{ raise_exception('no role ' + m.role) }}
  {%- endif -%}
{%- endfor -%}
"""

GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
  {%- set opening = messages[0].content + '\\n\\n' -%}{%- set talk = messages[1:] -%}
{%- else -%}{%- set opening = '' -%}{%- set talk = messages -%}{%- endif -%}
{%- for m in talk -%}
  {%- set role = 'model' if m.role == 'assistant' else m.role -%}
{{ '<start_of_turn>' + role + '\\n' + (opening if loop.first else '') }}
  {%- set text -%}
    {%- if m.content is string -%}{{ m.content | trim }}
    {%- elif m.content is iterable -%}{% for part in m.content %}{{ part.text | trim }}{% endfor %}
    {%- endif -%}
  {%- endset -%}
  {%- if m.role == 'assistant' -%}
    {%- generation -%}{{ text }}<end_of_turn>{%- endgeneration -%}{{ '\\n' }}
  {%- else -%}
{{ text }}<end_of_turn>{{ '\\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# The prompt opens a thought, which the history does not show.
DEEPSEEK = """\
{%- set ns = namespace(system='', tool=false) -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = ns.system + m.content -%}{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{%- set ns.tool = false -%}{{ '<|User|>' + m.content }}
  {%- elif m.role == 'assistant' and m.tool_calls -%}
    {%- if not ns.tool %}<|Assistant|>{% endif -%}{%- set ns.tool = false -%}
    {%- generation -%}
      {{ m.content or '' }}<|tool▁calls▁begin|>
      {%- for call in m.tool_calls -%}
        <|tool▁call▁begin|>{{ call.function.name }}<|tool▁sep|>{{ call.function.arguments | tojson }}<|tool▁call▁end|>
      {%- endfor -%}
      <|tool▁calls▁end|>{{ eos_token }}
    {%- endgeneration -%}
  {%- elif m.role == 'assistant' -%}
    {%- if not ns.tool %}<|Assistant|>{% endif -%}{%- set ns.tool = false -%}
    {%- generation -%}{{ (m.content or '').split('</think>')[-1] + eos_token }}{%- endgeneration -%}
  {%- elif m.role == 'tool' -%}
    {%- set ns.tool = true -%}<|tool▁output▁begin|>{{ m.content }}<|tool▁output▁end|>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.tool -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}
"""

# A conversation that is not a prompt ends with one more token.
PHI = """\
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
<|assistant|>{{ '\\n' }}
    {%- generation -%}{{ m.content }}<|end|>{%- endgeneration -%}{{ '\\n' }}
  {%- else -%}
{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}
"""

# Reasoning in a channel of its own, documents, and an early end of the loop.
CHANNELS = """\
{%- if documents is not none -%}
<|im_start|>documents
{% for d in documents %}{{ loop.index }}: {{ d.title | upper }} {{ d.text | tojson(ensure_ascii=true) }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages -%}
  {%- if m.role == 'stop' -%}{%- break -%}{%- endif -%}
  {%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
  {%- if m.role == 'assistant' -%}
<|im_start|>assistant{{ '\\n' }}
    {%- generation -%}
      {%- if m.thinking is defined -%}[thought]{{ m.thinking }}[/thought]{%- endif -%}
      {{- m.content or '' -}}
      {%- for c in m.tool_calls or [] -%}{{ c | tojson(indent=1, sort_keys=true) }}{%- endfor -%}
      <|im_end|>
    {%- endgeneration -%}{{ '\\n' }}
  {%- else -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

# Several channels in a turn; the last turn ends with a token of its own, and only it shows its thoughts.
HARMONY = """\
<|start|>system<|message|>Reasoning: {{ effort | default('low') }}<|end|>
{%- set ns = namespace(tool='') -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
<|start|>assistant
    {%- generation -%}
      {%- if m.thinking and (loop.last or m.tool_calls) -%}
        <|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant
      {%- endif -%}
      {%- if m.tool_calls -%}
        {%- set call = m.tool_calls[0].function -%}
        {{ ' to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson }}<|call|>
      {%- else -%}
        <|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}
      {%- endif -%}
    {%- endgeneration -%}
    {%- if m.tool_calls -%}{%- set ns.tool = m.tool_calls[0].function.name -%}{%- endif -%}
  {%- elif m.role == 'tool' -%}
{{ '<|start|>functions.' + ns.tool + ' to=assistant<|channel|>commentary<|message|>' }}{{ m.content | tojson }}<|end|>
  {%- else -%}
{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""

# Results of calls stand within the turn that calls.
INSIDE = """\
{%- set ns = namespace(open=false) -%}
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- if not ns.open -%}<start_of_turn>model{{ '\\n' }}{%- endif -%}
    {%- set ns.open = false -%}
    {%- generation -%}
      {%- if m.thinking and loop.last -%}<|channel|>{{ m.thinking }}<|message|>{%- endif -%}
      {%- for call in m.tool_calls or [] -%}[TOOL_CALLS]{{ call.function | tojson }}<|call|>{%- endfor -%}
    {%- endgeneration -%}
    {%- if m.tool_calls -%}
      {%- set results = namespace(on=true) -%}
      {%- for r in messages[loop.index0 + 1:] -%}
        {%- if r.role != 'tool' -%}{%- set results.on = false -%}{%- endif -%}
        {%- if results.on -%}{{ '<|start|>result: ' + r.content + '<|end|>' }}{%- set ns.open = true -%}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {%- generation -%}
      {{ (m.content or '') | trim }}{% if not ns.open or m.content %}<end_of_turn>{% endif %}
    {%- endgeneration -%}
    {%- if not ns.open or m.content %}{{ '\\n' }}{% set ns.open = false %}{%- endif -%}
  {%- elif m.role != 'tool' -%}
{{ '<start_of_turn>' + m.role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model{{ '\\n' }}{%- endif -%}
"""

# Knows no add_generation_prompt, and ends only the last turn with a token.
SIMPLE = """\
{%- for m in messages -%}
{{ '### ' + m.role | capitalize + ':\\n' }}
  {%- if m.role == 'assistant' -%}
    {%- generation -%}{{ m.content }}{{ eos_token if loop.last else '' }}{%- endgeneration -%}
    {{ '' if loop.last else '\\n' }}
  {%- else -%}
{{ m.content + '\\n' }}
  {%- endif -%}
{%- endfor -%}
"""

TAGGED = {"qwen": QWEN, "llama3": LLAMA3, "llama2": LLAMA2, "mistral": MISTRAL, "gemma": GEMMA, "deepseek": DEEPSEEK,
          "phi": PHI, "channels": CHANNELS, "harmony": HARMONY, "inside": INSIDE, "simple": SIMPLE}

# The same text as "channels" and "gemma" in parts, made by macros and `set`, with the tags inside them.
MACROS = """\
{%- macro call(c) -%}{{ c | tojson(indent=1, sort_keys=true) }}{%- endmacro -%}
{%- macro turn(m) -%}
  {%- set head -%}<|im_start|>{{ m.role }}{{ '\\n' }}{%- endset -%}
  {{- head -}}
  {%- if m.role == 'assistant' -%}
    {%- set answer -%}
      {%- generation -%}
        {%- if m.thinking is defined -%}[thought]{{ m.thinking }}[/thought]{%- endif -%}
        {{- m.content or '' -}}
        {%- for c in m.tool_calls or [] -%}{{ call(c) }}{%- endfor -%}
        <|im_end|>
      {%- endgeneration -%}
    {%- endset -%}
    {{- answer | trim -}}
  {%- else -%}{{ m.content }}<|im_end|>{%- endif -%}
{%- endmacro -%}
{%- if documents is not none -%}
<|im_start|>documents
{% for d in documents %}{{ loop.index }}: {{ d.title | upper }} {{ d.text | tojson(ensure_ascii=true) }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages if m.role != 'system' -%}
{{ turn(m) | trim + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


def plain(source: str) -> str:
    """Without the tags; a comment strips white space as they do."""
    return re.sub(r"\{%- (end)?generation -%\}", "{#- -#}", source)
