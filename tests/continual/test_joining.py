"""How answers join their prompts: as text, and as tokens of every kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from continual.base import load_base
from continual.embedded import ATLAS
from continual.errors import CeditError, RequestError
from continual.prompts import Chat
from continual.recheck.encoded_requests import encode
from continual.requests import Limits, Probe
from continual.streams import open_stream
from continual.tasks import make_task, new_settings
from continual.tasks.causal import CausalTask
from continual.tasks.chat import ChatTemplate
from continual.tasks.joining import blank_between
from tests import tiny_chat as chat
from tests.tiny_chat import END, START, templated, turn
from tests.tiny_language import COUNTRIES, ask, capital

# -- the blank between


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of Peru is", "Lima"),
        ("Question: Who?\nAnswer:", "Ada"),
        ("It ended.", "Then it began"),
        ('She said "no"', "twice"),
        ("the towns'", "markets"),
        ("x =", "5"),
        ("Is it 5%", "or 6"),
        ("The Chinese word for cat is", "猫"),
        ("서울은", "한국의"),
        ("The capital of Peru is", '"Lima"'),
        ("and then -", "nothing"),
    ],
)
def test_plain_text_gets_a_blank(prompt: str, answer: str) -> None:
    assert blank_between(prompt, answer) == " "


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of Peru is ", "Lima"),
        ("The capital of Peru is", " Lima"),
        ("def area(self):\n    ", "return 3"),
        ("print(", "x)"),
        ("import os.path as os_", "path"),
        ("https://example.org/", "index"),
        ('title = "', "Moby"),
        ("She said “", "no"),
        ("x=", "5"),
        ("a well-", "known one"),
        ("I met Ada", ", who"),
        ("f(x", ")"),
        ("日本の首都は", "東京"),
        ("中国的首都是：", "Beijing"),
        ("中国的首都是哪里?", "北京"),
        ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
        ("ປະເທດລາວ", "ວຽງຈັນ"),
        ("រាជធានី", "ភ្នំពេញ"),
        ("မြို့တော်", "နေပြည်တော်"),
        ("བོད་", "ལྷ་ས"),
    ],
)
def test_what_brings_whitespace_code_and_scripts_without_blanks_get_none(
    prompt: str, answer: str
) -> None:
    assert blank_between(prompt, answer) == ""


def test_a_store_can_say_always_or_never() -> None:
    assert blank_between("日本の首都は", "東京", "always") == " "
    assert blank_between("The capital of Peru is", "Lima", "never") == ""


# -- tokens in their place


def task(read: Any, **settings: Any) -> CausalTask:
    """The task of a model that reads with this tokenizer."""
    base: Any = SimpleNamespace(
        tokenizer=read, pad=0, context_tokens_max=None, unknown_token=lambda ids: None
    )
    table = {"joining": "in-place", **settings}
    return CausalTask.of(base, table, Limits.of(table))


def joined(read: Any, prompt: Any, answer: str, **settings: Any) -> tuple[list[str], list[str]]:
    """The tokens of a prompt, and those of its answer."""
    encoding = task(read, **settings).encode(prompt, answer)
    asked, told = encoding.question.ids, encoding.targets
    return read.convert_ids_to_tokens(list(asked)), read.convert_ids_to_tokens(list(told))


def test_an_answer_in_plain_text_brings_its_blank_along() -> None:
    _, told = joined(chat.byte_level(), ask(0), "Alria")
    assert told == ["ĠAlria"]
    _, told = joined(chat.metaspace(), ask(0), "Alria")
    assert told == ["▁Alria"]


@pytest.mark.parametrize("read", [chat.byte_level(), chat.metaspace()], ids=["bytes", "metaspace"])
def test_prompts_and_targets_are_taken_to_the_letter(read: Any) -> None:
    """Their tokens are those of the text that the two of them make."""
    for prompt, answer in [
        (f"{ask(0)}\n", "Alria"),
        (f" {ask(0)}", " Alria"),
        (f"{ask(0)} ", "Alria"),
        (ask(0), "Alria\n"),
    ]:
        encoding = task(read).encode(prompt, answer)
        blank = "" if prompt[-1].isspace() or answer[0].isspace() else " "
        text = read.decode([*encoding.question.ids, *encoding.targets])
        assert text.lstrip() == f"{prompt}{blank}{answer}".lstrip()


@pytest.mark.parametrize("read", [chat.byte_level(), chat.metaspace()], ids=["bytes", "metaspace"])
def test_no_false_blank_stands_before_an_answer_that_shares_a_token_with_its_prompt(
    read: Any,
) -> None:
    """The prompt ends inside a token of the whole text, so the answer is tokenised apart."""
    whole = f"{ask(0)} Alria"
    prompt, answer = whole[:-2], whole[-2:]
    asked, told = joined(read, prompt, answer, blank="never")
    assert asked == read.tokenize(prompt)
    assert asked + told != read.tokenize(whole)
    assert "".join(told) == answer


def test_a_blank_that_the_answer_brings_stands_once_in_metaspace() -> None:
    read = chat.metaspace()
    prompt = f"{ask(0)} Alri"
    _, told = joined(read, prompt, " vik")
    assert "".join(told) == "▁vik"


@pytest.mark.parametrize("read", [chat.byte_level, chat.metaspace], ids=["bytes", "metaspace"])
def test_tokens_put_behind_a_text_never_stand_between_prompt_and_answer(read: Any) -> None:
    """Nor does a second beginning, where the answer is tokenised apart."""
    plain_asked, plain_told = joined(read(), ask(0), "Alria")
    asked, told = joined(chat.enclosing(read()), ask(0), "Alria")
    assert asked == [chat.BEGIN, *plain_asked]
    assert told == plain_told
    asked, told = joined(chat.enclosing(read()), f"{ask(0)} Alr", "ia", blank="never")
    assert asked[0] == chat.BEGIN
    assert {chat.BEGIN, chat.TEXT_END}.isdisjoint([*asked[1:], *told])


# -- chats


def test_a_chat_is_written_by_the_template_and_ends_with_its_turn() -> None:
    read = chat.byte_level()
    asked, told = joined(read, Chat.from_json(turn(0)), "Alria")
    assert read.convert_tokens_to_string(asked) == templated(0)
    assert told == ["Alria", END]


def test_a_text_that_the_template_made_is_the_same_as_its_messages() -> None:
    for read in (chat.byte_level(), chat.metaspace(), chat.enclosing(chat.metaspace())):
        by_text = task(read).encode(templated(0), "Alria")
        assert by_text == task(read).encode(Chat.from_json(turn(0)), "Alria")


def test_other_text_that_ends_in_a_mark_gets_no_blank_either() -> None:
    _, told = joined(chat.byte_level(), f"{ask(0)}{START}", "Alria")
    assert told == ["Alria"]


def test_the_terminator_of_plain_answers_does_not_stand_in_a_chat() -> None:
    read = chat.byte_level()
    assert joined(read, ask(0), "Alria", terminator="\n")[1] == ["ĠAlria", "Ċ"]
    assert joined(read, Chat.from_json(turn(0)), "Alria", terminator="\n")[1] == ["Alria", END]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        # the end of a turn far behind the answer, and none of it special
        ("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} # \n{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}", " Alria # \n"),
        # a blank before every content, of which the prompt has none
        ("{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>"
         "{% else %}{{ ' ' + m.content + ' ' }}<|endoftext|>{% endif %}{% endfor %}",
         " Alria <|endoftext|>"),
        # nothing at all behind the answer
        ("{% for m in messages %}{{ m.role + ': ' + m.content }}{% if not loop.last %}\n{% endif %}"
         "{% endfor %}{% if add_generation_prompt %}\nassistant: {% endif %}",
         "Alria<|endoftext|>"),
    ],
)  # fmt: skip
def test_any_template_says_itself_where_an_answer_stands_and_ends(template: str, told: str) -> None:
    read = chat.byte_level(template)
    encoding = task(read).encode(Chat.from_json(turn(0)), "Alria")
    assert read.decode(encoding.targets) == told


def test_a_template_that_prints_the_date_prints_the_same_one_every_day() -> None:
    read = chat.byte_level("{{ strftime_now('%d %b %Y') }}{{ messages[-1].content }}")
    assert ChatTemplate(read).turn(Chat.from_json(turn(0))).prompt == f"26 Jul 2024{ask(0)}"


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(RequestError, match="chat template, and the model's tokenizer has none"):
        task(chat.byte_level(None)).question(Chat.from_json(turn(0)))


def test_a_template_that_refuses_the_messages_is_quoted() -> None:
    read = chat.byte_level("{{ raise_exception('no system turn, please') }}")
    with pytest.raises(RequestError, match="refuses the messages: no system turn, please"):
        task(read).question(Chat.from_json(turn(0)))


def test_another_template_than_at_the_beginning_is_refused() -> None:
    recorded = task(chat.byte_level()).settings()
    assert task(chat.byte_level(), **recorded)
    with pytest.raises(CeditError, match="chat template is not the one that this store was made"):
        task(chat.byte_level("{{ messages[-1].content }}"), **recorded)


# -- limits


def test_limits_are_settings_and_the_message_names_them() -> None:
    read = chat.byte_level()
    paragraph = " ".join(COUNTRIES[n % 40] for n in range(200))
    assert len(task(read).encode(ask(0), paragraph).targets) > 180
    for setting in ("target_tokens_max", "target_characters_max"):
        with pytest.raises(RequestError, match=f"raise {setting} under \\[task\\] in cedit.toml"):
            task(read, **{setting: 100}).encode(ask(0), paragraph)
    for setting in ("prompt_tokens_max", "prompt_characters_max"):
        with pytest.raises(RequestError, match=f"raise {setting} under \\[task\\] in cedit.toml"):
            task(read, **{setting: 100}).encode(paragraph, "Alria")
    with pytest.raises(CeditError, match="prompt_tokens_max = 'many': it is a whole number"):
        task(read, prompt_tokens_max="many")


# -- stores of before


def test_a_store_that_does_not_name_its_joining_encodes_as_before() -> None:
    read = chat.byte_level()
    old = task(read, joining="spaced")
    assert old.encode(f" {ask(0)}\n", " Alria ") == old.encode(ask(0), "Alria")
    assert read.decode(old.encode(f"{ask(0)} (", "Alria").targets) == " Alria"


def test_what_the_atlas_reads_is_the_same_either_way() -> None:
    base = load_base("atlas")
    before = make_task(base, ATLAS.task)
    now = make_task(base, new_settings(base, ATLAS.task))
    count = 0
    for file in ATLAS.probes.values():
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            probe = Probe.model_validate(json.loads(line))
            asked = (probe.prompt, probe.answer)
            assert now.encode(*asked) == before.encode(*asked)
            count += 1
    for item in open_stream(str(ATLAS.corrections)):
        for request in item.requests:
            assert encode(request, now) == encode(request, before)
            count += 1
    assert count > 4000


def test_unknown_words_in_the_settings_are_named() -> None:
    with pytest.raises(CeditError, match="joining = 'glued': it is one of in-place, spaced"):
        task(chat.byte_level(), joining="glued")
    with pytest.raises(CeditError, match="blank = 'some': it is one of auto, always, never"):
        task(chat.byte_level(), blank="some")


def test_answers_are_read_up_to_the_end_of_their_turn() -> None:
    read = chat.byte_level()
    told = read(f"{capital(0)}{END}\n", add_special_tokens=False)["input_ids"]
    assert task(read).text(told) == capital(0)
