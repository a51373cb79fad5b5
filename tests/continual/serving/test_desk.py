"""Answers of a desk: as the model gives them alone, at one state each, whatever comes between."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from continual.errors import CeditError, ContextExceeded, RequestError
from continual.prompts import Chat
from continual.serving.asks import LENGTH, STOP
from continual.serving.desk import Busy, DeskClosed
from continual.session import Session
from store import UnknownRevision
from tests import tiny_chat
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.continual.serving.conftest import MakeDesk, asked
from tests.tiny_memories import WordScope

TOKENS = 6


def greedy(session: Session, prompt: str, count: int = TOKENS) -> str:
    """The likeliest tokens by plain forward passes over everything read so far."""
    read = session.tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = read.shape[1]
    with torch.no_grad():
        for _ in range(count):
            token = session.model(input_ids=read).logits[0, -1].argmax()
            read = torch.cat([read, token.view(1, 1)], 1)
    text: str = session.tokenizer.decode(read[0, start:], skip_special_tokens=True)
    return text


def words(text: str) -> list[str]:
    return text.split()


def corrected(session: Session, country: int, editor: str = "tpatcher") -> str:
    """Correct a capital, and return the request's id."""
    (step,) = session.apply([language.correction(country)], editor=editor)
    assert step.outcomes[0].outcome == "applied"
    return step.outcomes[0].id


def test_an_answer_is_what_plain_passes_give(bare: Session, desk_of: MakeDesk) -> None:
    expected = {c: greedy(bare, language.ask(c)) for c in range(6)}
    desk = desk_of(bare)
    heard = {c: asked(desk, language.ask(c), tokens_max=TOKENS) for c in expected}
    for country, hearer in heard.items():
        (answer,) = hearer.wait().answers
        assert words(answer.text) == words(expected[country])
        assert answer.text == hearer.text
        assert (answer.finish, answer.tokens) == (LENGTH, TOKENS)


def test_asks_in_line_are_answered_together_as_alone(bare: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(bare, starts=False)
    sampled = {"settings": {"temperature": 1.0, "seed": 5}, "tokens_max": TOKENS}
    together = [
        asked(desk, language.ask(1), **sampled),
        asked(desk, language.ask(2), tokens_max=2),
        asked(desk, language.ask(1), count=2, **sampled),
        asked(desk, f"{language.ask(1)} {language.CAPITALS[0]}", tokens_max=3),
    ]
    desk.start()
    first, second, third, _ = (hearer.wait() for hearer in together)
    assert [answer.tokens for answer in second.answers] == [2]
    assert first.answers[0].text == third.answers[0].text != third.answers[1].text
    alone = asked(desk, language.ask(1), **sampled).wait()
    assert alone.answers == first.answers
    assert first.prompt_tokens == len(language.ask(1).split())


def test_chances_are_the_models_own(bare: Session, desk_of: MakeDesk) -> None:
    prompt = language.ask(3)
    read = bare.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = bare.model(input_ids=read).logits[0, -1].log_softmax(-1)
    (answer,) = asked(desk_of(bare), prompt, tokens_max=1, chances=3).wait().answers
    (chance,) = answer.chances
    values, tokens = logprobs.topk(3)
    assert [text for text, _ in chance.likeliest] == [bare.tokenizer.decode([t]) for t in tokens]
    assert [value for _, value in chance.likeliest] == pytest.approx(values.tolist(), abs=1e-4)
    assert chance.logprob == chance.likeliest[0][1]


def test_an_answer_ends_at_a_stop_text(knowing: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(knowing)
    whole = asked(desk, language.ask(4), tokens_max=TOKENS).wait().answers[0].text
    stop = words(whole)[2]
    hearer = asked(desk, language.ask(4), tokens_max=TOKENS, stops=(stop,))
    (answer,) = hearer.wait().answers
    assert answer.finish == STOP
    assert answer.text == whole[: whole.index(stop)] == hearer.text


def test_a_chat_ends_with_the_turn(made: Make, chat_model: Path, desk_of: MakeDesk) -> None:
    desk = desk_of(made(chat_model))
    (answer,) = asked(desk, Chat.from_json(tiny_chat.turn(2))).wait().answers
    assert (answer.text, answer.finish) == (language.capital(2), STOP)


def test_a_revision_is_asked_by_name(knowing: Session, desk_of: MakeDesk) -> None:
    request = corrected(knowing, 1)
    corrected(knowing, 2)
    knowing.tag("two")
    desk = desk_of(knowing)
    told = language.correction(1)["target_new"]
    expected = {"base": language.capital(1), "@1": told, "two": told, "head~1": told, "head": told}
    for name, text in expected.items():
        answered = asked(desk, language.ask(1), revision=name, tokens_max=1, explains=True).wait()
        assert words(answered.answers[0].text) == [text]
        revision = knowing.store.revision(name)
        assert answered.state.fingerprint == revision.fingerprint
        spoke = [edit.request for token in answered.answers[0].spoken for edit in token.edits]
        assert spoke == ([] if name == "base" else [request])
    corrected_later = desk.do(lambda session: corrected(session, 3)).result()
    assert knowing.store.head.body["requests"][0]["id"] == corrected_later
    with pytest.raises(UnknownRevision):
        asked(desk, language.ask(1), revision="nowhere").wait()


def test_an_edit_is_put_on_between_answers_and_never_under_one(
    knowing: Session, desk_of: MakeDesk
) -> None:
    desk = desk_of(knowing)
    countries = [30, 31, 32, 33, 34, 35]
    heard, done = [], []
    for country in countries:
        for _ in range(4):
            heard.append((country, asked(desk, language.ask(country), tokens_max=3)))
        done.append(desk.do(lambda session, c=country: corrected(session, c)))
        heard += [(c, asked(desk, language.ask(c), tokens_max=3)) for c in countries]
    answers = [(country, hearer.wait()) for country, hearer in heard]
    assert all(future.result() for future in done)
    assert all(len(hearer.states) == 1 for _, hearer in heard)
    states = [answered.state for _, answered in answers]
    assert [state.seq for state in states] == sorted(state.seq for state in states)
    assert len({state.fingerprint for state in states}) == len(countries) + 1
    desk.close()
    for country, answered in answers:
        # Each answer is, to the letter, what its state answers when nothing else is going on.
        knowing.stand_at(answered.state.revision)
        assert answered.state.fingerprint == knowing.edited.fingerprint
        assert words(answered.answers[0].text) == words(greedy(knowing, language.ask(country), 3))


def test_work_waits_for_the_answer_before_it(knowing: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(knowing)
    order: list[str] = []
    hearer = asked(desk, language.ask(1), tokens_max=20)
    hearer.on_piece = lambda: order.append("piece")
    desk.do(lambda _: order.append("work")).result()
    assert hearer.answer is not None
    assert order == ["piece"] * len(hearer.pieces) + ["work"]


def test_a_record_that_was_read_speaks_at_every_token(
    made: Make, reading_model: Path, scope: WordScope, desk_of: MakeDesk
) -> None:
    session = made(reading_model)
    request = corrected(session, 3, editor="serac")
    desk = desk_of(session)
    told = asked(desk, language.ask(3), tokens_max=1, explains=True).wait()
    assert words(told.answers[0].text) == [language.correction(3)["target_new"]]
    (token,) = told.answers[0].spoken
    assert [(edit.request, edit.kind) for edit in token.edits] == [(request, "memory")]
    other = asked(desk, language.ask(7), tokens_max=1, explains=True).wait()
    assert other.answers[0].spoken == ()


@pytest.mark.parametrize(
    ("editor", "kind", "tables"),
    [("grace", "codebook", {}), ("lookup", "lookup", {"clamp_norm_factor": 4.0, "steps_max": 80})],
)
def test_the_row_that_opened_is_told_with_its_request(
    knowing: Session, desk_of: MakeDesk, editor: str, kind: str, tables: dict[str, float]
) -> None:
    requests = {}
    for country in (1, 2):
        records, table = [language.correction(country)], {editor: tables}
        (step,) = knowing.apply(records, editor=editor, editors=table)
        requests[country] = step.outcomes[0].id
    desk = desk_of(knowing)
    for country, request in requests.items():
        told = asked(desk, language.ask(country), tokens_max=1, explains=True).wait()
        (answer,) = told.answers
        assert words(answer.text) == [language.correction(country)["target_new"]]
        tokens = [*answer.spoken_in_prompt, *answer.spoken]
        assert {(edit.request, edit.kind) for token in tokens for edit in token.edits} == {
            (request, kind)
        }
        assert all(0 < edit.activation <= 1 for token in tokens for edit in token.edits)
        said = [token.text.strip() for token in answer.spoken_in_prompt]
        assert said == [language.ask(country).split()[t.place] for t in answer.spoken_in_prompt]
    other = asked(desk, language.ask(7), tokens_max=1, explains=True).wait()
    assert (other.answers[0].spoken, other.answers[0].spoken_in_prompt) == ((), ())
    knowing_one = asked(desk, language.ask(2), revision="@1", tokens_max=1, explains=True).wait()
    assert knowing_one.answers[0].spoken == ()


def test_edits_in_the_weights_are_counted(knowing: Session, desk_of: MakeDesk) -> None:
    corrected(knowing, 2, editor="rome")
    answered = asked(desk_of(knowing), language.ask(2), tokens_max=1, explains=True).wait()
    assert answered.in_weights == 1
    assert answered.answers[0].spoken == ()


def test_an_ask_that_cannot_be_answered_says_why(bare: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(bare)
    with pytest.raises(ContextExceeded, match="more than the 48 that the model reads"):
        asked(desk, "the " * 60).wait()
    with pytest.raises(RequestError, match="chat template"):
        asked(desk, Chat.asking("the capital")).wait()
    assert asked(desk, language.ask(1), tokens_max=1).wait().answers[0].tokens == 1


def test_a_cancelled_answer_ends_early(bare: Session, desk_of: MakeDesk) -> None:
    from continual.serving.asks import Ask
    from tests.continual.serving.conftest import Remembering

    desk, hearer = desk_of(bare), Remembering()
    ask = Ask(language.ask(1), hearer, tokens_max=30)
    hearer.on_piece = ask.cancelled.set
    desk.ask(ask)
    assert hearer.wait().answers[0].tokens < 30


def test_a_full_line_refuses_and_a_closed_desk_too(bare: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(bare, starts=False, waiting_max=2)
    waiting = [asked(desk, language.ask(c)) for c in range(2)]
    assert not desk.has_room
    with pytest.raises(Busy):
        asked(desk, language.ask(3))
    work = desk.do(lambda _: None)
    desk.close()
    for hearer in waiting:
        with pytest.raises(DeskClosed):
            hearer.wait()
    with pytest.raises(DeskClosed):
        work.result()
    with pytest.raises(DeskClosed):
        asked(desk, language.ask(1))


def test_work_that_fails_tells_its_caller_and_no_one_else(bare: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(bare)

    def fail(_: Session) -> None:
        raise CeditError("no")

    with pytest.raises(CeditError, match="no"):
        desk.do(fail).result()
    assert desk.fault is None
    assert asked(desk, language.ask(1), tokens_max=1).wait().answers[0].tokens == 1


def test_a_receipt_leads_back_to_the_answer(bare: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(bare)
    from continual.serving.asks import Ask
    from tests.continual.serving.conftest import Remembering

    hearer = Remembering()
    ask = Ask(language.ask(1), hearer, tokens_max=2)
    desk.ask(ask)
    answered = hearer.wait()
    receipt = desk.receipts.find(f"cmpl-{ask.id}")
    assert receipt is not None
    assert (receipt.prompt, receipt.answer) == (language.ask(1), answered.answers[0].text)
    assert receipt.fingerprint == answered.state.fingerprint
    assert desk.receipts.find("cmpl-nothing") is None


def test_a_store_of_another_task_is_refused(made: Make, models: dict[str, Path]) -> None:
    from continual.serving.desk import Desk

    session = made(models["classification"], task={"name": "classification"})
    with pytest.raises(CeditError, match="classification cannot be served"):
        Desk(session)


def test_many_threads_may_ask_at_once(bare: Session, desk_of: MakeDesk) -> None:
    desk = desk_of(bare)
    texts: dict[int, set[str]] = {c: set() for c in range(4)}

    def ask_all() -> None:
        for country in texts:
            answered = asked(desk, language.ask(country), tokens_max=2).wait()
            texts[country].add(answered.answers[0].text)

    threads = [threading.Thread(target=ask_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(found) == 1 for found in texts.values())


def test_asks_of_one_length_are_answered_together_whoever_stands_between(
    bare: Session, desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continual.serving import desk as desks

    batches: list[list[int]] = []
    generate = desks.generate

    def counted(edited: object, rows: list[object], tokens_max: int) -> None:
        batches.append([row.index for row in rows])  # type: ignore[attr-defined]
        generate(edited, rows, tokens_max)  # type: ignore[arg-type]

    monkeypatch.setattr(desks, "generate", counted)
    desk = desk_of(bare, starts=False, rows_max=3)
    longer = f"{language.ask(2)} {language.CAPITALS[0]}"
    prompts = [language.ask(1), longer, language.ask(3), longer, language.ask(4), language.ask(5)]
    heard = [asked(desk, prompt, tokens_max=1) for prompt in prompts]
    work = desk.do(lambda _: list(batches))
    late = asked(desk, language.ask(6), tokens_max=1)
    desk.start()
    assert work.result() == [[0, 0, 0], [0, 0], [0]]  # 1, 3 and 4; the longer ones; 5
    texts = {p: hearer.wait().answers[0].text for p, hearer in zip(prompts, heard, strict=True)}
    assert late.wait().answers[0].tokens == 1
    assert batches[3:] == [[0]]
    assert texts == {p: asked(desk, p, tokens_max=1).wait().answers[0].text for p in prompts}
