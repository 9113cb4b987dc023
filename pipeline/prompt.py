"""Messages <-> tokens with the model's own chat template; knows a task's text, nothing of policies or sandboxes.

Append-only: the prompt of turn t+1 is the prompt of turn t, the sampled ids as they were sampled, and the ids of the
observation. Nothing that the policy sampled is ever tokenised a second time, and no template rewrites earlier turns.
Text of others (issues, files, command output) cannot forge a turn: names of special tokens in it stay plain text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tasks import Task

from .action import REQUIRED, WITH_USER, ActionFormat, FormatError, Tools, parse
from .brief import brief_of
from .config_user import UserConfig
from .types import Completion, ToolCall

_FENCED_SYSTEM = """You fix a bug in the repository in /testbed.
In each turn think briefly, then write exactly ONE fenced block. Its tag is the tool.
Show a file, or one function, or lines 10-40 of it:
```view
pkg/mod.py
parse
```
Replace text that occurs exactly once in the file:
```edit
pkg/mod.py
<<<<<<<
    return a - b
=======
    return a + b
>>>>>>>
```
Run a command:
```bash
python -m pytest -q
```
Finish:
```submit
```"""

_JSON_SYSTEM = """You fix a bug in the repository in /testbed. In each turn think briefly, then make exactly ONE tool call:
<tool_call>
{"name": "view", "arguments": {"path": "pkg/mod.py", "name": "parse"}}
</tool_call>
Tools: view (path; name of a function, or lines "10-40"), edit (path, old, new: old must occur exactly once), bash (command), submit ()."""

_FENCED_QUESTION = """Ask the user, who may know more than the report says:
```ask_user
What should it return for an empty list?
```
"""
_JSON_QUESTION = " The report may leave things out: ask_user (question) asks the user, who knows more."


class Template(Protocol):
    """Text <-> ids, for one tokenizer and chat template."""

    @property
    def turn_end(self) -> int:
        """The id that ends a turn."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id at which sampling stops."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Plain text: what looks like a special token is not one."""
        ...

    def start(self, system: str, user: str) -> list[int]:
        """A conversation up to the head of the first answer."""
        ...

    def reply(self, text: str) -> list[int]:
        """From the end of an answer (the first id is turn_end) over the user's text to the head of the next answer."""
        ...

    @property
    def head(self) -> list[int]:
        """From the end of a user's text to the head of the answer: what every prompt ends with."""
        ...


@dataclass(frozen=True, slots=True)
class Chat:
    """What the model sees and how its answers are read."""

    template: Template
    action_format: ActionFormat = "fenced"
    demonstrate: Callable[[Task], str] | None = None
    """The worked example that a task's prompt begins with (demonstration.py), "": none fits; None: none at all."""
    user: UserConfig | None = None
    """Interactive tasks: what the issue leaves out, and whether there is someone to ask."""

    @property
    def tools(self) -> Tools:
        """What can be called."""
        return WITH_USER if self.user is not None and self.user.ask else REQUIRED

    @property
    def system(self) -> str:
        """The system prompt of this format."""
        asks = "ask_user" in self.tools
        if self.action_format == "fenced":
            return _FENCED_SYSTEM.replace("Finish:\n", f"{_FENCED_QUESTION}Finish:\n") if asks else _FENCED_SYSTEM
        return _JSON_SYSTEM + _JSON_QUESTION if asks else _JSON_SYSTEM

    def start_prompt(self, task: Task) -> list[int]:
        """System prompt, a demonstration where there is one, and the issue."""
        example = self.demonstrate(task) if self.demonstrate else ""
        statement = task.problem_statement if self.user is None else brief_of(task, self.user).statement
        return self.template.start(self.system + example, statement.strip())

    def plain_start(self, task: Task) -> tuple[int, ...]:
        """The same without the demonstration; () where there is none."""
        shown = self.demonstrate is not None and self.demonstrate(task)
        return tuple(replace(self, demonstrate=None).start_prompt(task)) if shown else ()

    def extend(self, prompt: Sequence[int], completion: Completion, observation: str) -> list[int]:
        """The next prompt: prompt + sampled ids + observation; an end of turn that was not sampled is added."""
        suffix = self.template.reply(observation.strip("\n"))
        ended = bool(completion.ids) and completion.ids[-1] == self.template.turn_end
        return [*prompt, *completion.ids, *(suffix[1:] if ended else suffix)]

    def append(self, prompt: Sequence[int], text: str) -> list[int]:
        """The prompt with more text at the end of its last message, right before the answer; its other ids stay as they are."""
        head = self.template.head
        if list(prompt[-len(head) :]) != head:
            raise ValueError("the prompt does not end with the head of an answer")
        return [*prompt[: -len(head)], *self.template.encode(text), *head]

    def parse(self, text: str) -> ToolCall | FormatError:
        """The action of an answer."""
        return parse(text, self.action_format, self.tools)

    def write(self, text: str) -> list[int]:
        """The ids of an answer that a scripted agent gives, with the end of turn; tokenised once, here."""
        return [*self.template.encode(text), self.template.turn_end]

    def count_turns(self, task: Task, prompt: Sequence[int]) -> int:
        """How many turns a prompt holds after the task's start; each adds two ends of turn."""
        return list(prompt[len(self.start_prompt(task)) :]).count(self.template.turn_end) // 2


@dataclass(frozen=True)
class ModelTemplate:
    """A Hugging Face tokenizer and its chat template: the template's own pieces around plain text."""

    tokenizer: Any

    def __post_init__(self) -> None:
        if self.turn_end not in self.tokenizer.all_special_ids:
            raise ValueError("the chat template does not end an assistant's turn with a special token; such a model cannot be used here")

    @cached_property
    def turn_end(self) -> int:
        """The first id after an answer."""
        return self._pieces[2][0]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """End of turn, and end of text where that is another id."""
        return tuple(dict.fromkeys([self.turn_end, self.tokenizer.eos_token_id]))

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; spaces are left as they are."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """Names of special tokens are split like other text. Whether it is too long is for others to say (verbose)."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])

    def start(self, system: str, user: str) -> list[int]:
        """Template pieces are tokenised with special tokens, texts without."""
        before, between, _, _, after = self._pieces
        return [*before, *self.encode(system), *between, *self.encode(user), *after]

    def reply(self, text: str) -> list[int]:
        """The template's text between an answer and the next one, with the user's text in it."""
        _, _, end, _, after = self._pieces
        return [*end, *self.encode(text), *after]

    @property
    def head(self) -> list[int]:
        """The template's last piece."""
        return self._pieces[4]

    @cached_property
    def _pieces(self) -> tuple[list[int], ...]:
        """Ids of the template around its contents: before the system text, before the user's, after an answer, and the head of one."""
        marks = ["SYSTEMTEXT", "USERTEXT", "ANSWERTEXT", "NEXTTEXT"]
        roles = ["system", "user", "assistant", "user"]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        rest = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        pieces = []
        for mark in marks:
            piece, found, rest = rest.partition(mark)
            if not found:
                raise ValueError("the chat template drops or moves messages (no system role?); such a model cannot be used here")
            pieces.append(piece)
        before, between, head, end = pieces
        return tuple(list(self.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in (before, between, end, head, rest))


@dataclass(frozen=True, slots=True)
class ByteTemplate:
    """One id per byte and a few special ids: for scripted policies where no model is at hand."""

    turn_end: int = 256
    stop_ids: tuple[int, ...] = (256,)

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes as text; special ids are left out."""
        return bytes(value for value in ids if value < 256).decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """UTF-8; what cannot be encoded becomes a question mark."""
        return list(text.encode("utf-8", "replace"))

    def start(self, system: str, user: str) -> list[int]:
        """257 opens every message."""
        return [257, *self.encode(system), 256, 257, *self.encode(user), 256, 257]

    def reply(self, text: str) -> list[int]:
        """End of the answer, the text, head of the next answer."""
        return [256, 257, *self.encode(text), 256, 257]

    @property
    def head(self) -> list[int]:
        """End of the message, and 257."""
        return [256, 257]


def load_chat(folder: Path, action_format: ActionFormat = "fenced") -> Chat:
    """The chat of a model folder (tokenizer.json and a chat template)."""
    from transformers import AutoTokenizer  # heavy

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: the tokenizer has no chat template; use an instruction-tuned model")
    return Chat(ModelTemplate(tokenizer), action_format)
