"""Which record wins an input: by one threshold, and by a scope that was trained."""

import json

import pytest
import torch

from continual.effects.records import Record
from continual.errors import ScopeError
from continual.memory.encoder import SentenceEncoder
from continual.memory.head import ScopeHead
from continual.memory.scope import ThresholdScope
from continual.memory.trained import EMBEDDED, TrainedScope
from continual.memory.training import ScopeTraining, are_rivals, train_scope, wordings
from continual.requests import Request

_NAMES = (
    "Ostrava Kelmin Dorvath Pelluria Quintara Maskelyn Brendova Tirconel Zamboria Ulthane "
    "Wexmoor Fenwick Gorlitz Hestoria Ivandale Jorvik Kasparov Lumenara Mordaunt Nestoria"
)
NAMES = _NAMES.split()
ASKED = {
    "place.capital": ("The capital of {} is", "Which city is the capital of {}?"),
    "place.language": ("The language of {} is", "What do people speak in {}?"),
}


def requests():
    made = []
    for place, name in enumerate(NAMES):
        for relation, (prompt, rephrase) in ASKED.items():
            (other,) = (texts for key, texts in ASKED.items() if key != relation)
            made.append(
                Request(
                    prompt=prompt.format(name),
                    target_new="new",
                    subject=name,
                    relation=relation,
                    rephrases=(rephrase.format(name),),
                    locality=[
                        {"prompt": other[1].format(name), "answer": "a"},
                        {"prompt": prompt.format(NAMES[place - 1][::-1].title()), "answer": "b"},
                    ],
                )
            )
    return made


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained(minilm):
    return train_scope(requests(), minilm, generator(), ScopeTraining(epochs=20))


def records_of(scope, given):
    return scope.records([Record(r.id, r.prompt, r.target_new, r.subject) for r in given])


def winner(scope, text, records):
    scores = scope.scores(scope.queries([text]), records, [(0, r) for r in range(len(records))])
    return int(scores.argmax()) if scores.max() >= scope.threshold else None


def scopes(minilm):
    return [ThresholdScope(minilm), TrainedScope.embedded(minilm)]


def test_a_threshold_decides_by_the_cosine(minilm):
    scope = ThresholdScope(minilm, threshold=0.8)
    records = scope.records([Record("a", "The capital of Peru is", "Lima", "Peru")])
    queries = scope.queries(["The capital of Peru is", "Peru's capital is", "He plays the drums"])
    scores = scope.scores(queries, records, [(0, 0), (1, 0), (2, 0)])
    assert scores[0] == pytest.approx(1) and scores[0] > scores[1] > 0.8 > scores[2] >= 0
    assert scope.fingerprint == minilm.fingerprint


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_a_threshold_outside_its_range_is_refused(minilm, threshold):
    with pytest.raises(ScopeError, match="threshold"):
        ThresholdScope(minilm, threshold=threshold)


def test_a_scope_tells_relations_of_one_subject_apart_after_training(trained):
    scope, report = trained
    given = requests()[:12]
    records = records_of(scope, given)
    for place, request in enumerate(given):
        assert winner(scope, request.rephrases[0], records) == place
    assert winner(scope, "The capital of Norway is", records) is None
    assert winner(scope, "Bananas are yellow", records) is None
    assert report.f1 > 0.9 and report.precision > 0.9 and report.recall > 0.9
    assert sum(b.count for b in report.reliability) == report.pairs > 0


def test_the_same_generator_trains_the_same_scope(trained, minilm):
    again, report = train_scope(requests(), minilm, generator(), ScopeTraining(epochs=20))
    assert again.fingerprint == trained[0].fingerprint and report == trained[1]


def test_a_scope_is_not_trained_on_almost_nothing(minilm):
    with pytest.raises(ScopeError, match="at least 20"):
        train_scope(requests()[:5], minilm, generator())


def test_a_pair_scores_the_same_whatever_stands_beside_it(minilm):
    given = requests()
    texts = [r.rephrases[0] for r in given] + ["Shelf life. The capital of Jorvik is", "Hello"]
    for scope in scopes(minilm):
        records, queries = records_of(scope, given), scope.queries(texts)
        pairs = [(q, r) for q in range(len(texts)) for r in range(len(given))]
        together = scope.scores(queries, records, pairs)
        shuffled = torch.randperm(len(pairs), generator=generator()).tolist()
        among = scope.scores(queries, records, [pairs[i] for i in shuffled])
        assert torch.equal(among, together[shuffled])
        for i in shuffled[:40]:
            q, r = pairs[i]
            alone = scope.scores(scope.queries([texts[q]]), records_of(scope, [given[r]]), [(0, 0)])
            assert torch.equal(alone, together[i : i + 1])


def test_scores_are_chances(minilm):
    for scope in scopes(minilm):
        records = records_of(scope, requests()[:5])
        queries = scope.queries(["", "?", "The capital of Ostrava is", "ß 東京 é"])
        scores = scope.scores(queries, records, [(q, r) for q in range(4) for r in range(5)])
        assert scores.dtype == torch.float32 and scores.shape == (20,)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scope.scores(queries, records, []).shape == (0,)


def test_the_embedded_scope_takes_records_without_a_subject(minilm):
    scope = TrainedScope.embedded(minilm)
    records = scope.records(
        [Record("a", "The capital of Australia is", "Canberra"), Record("b", "who won?", "nobody")]
    )
    assert winner(scope, "What is the capital of Australia?", records) == 0
    assert winner(scope, "The capital of Austria is", records) is None


def test_a_saved_scope_is_the_same(trained, tmp_path, minilm):
    scope = trained[0]
    scope.save(tmp_path / "scope.safetensors")
    loaded = TrainedScope.load(tmp_path / "scope.safetensors", minilm)
    assert loaded.fingerprint == scope.fingerprint
    assert (loaded.threshold, loaded.candidates) == (scope.threshold, scope.candidates)
    records, queries = records_of(scope, requests()[:3]), scope.queries(["The language of Kelmin"])
    pairs = [(0, 0), (0, 1), (0, 2)]
    assert torch.equal(
        loaded.scores(queries, records, pairs), scope.scores(queries, records, pairs)
    )


def test_the_fingerprint_is_of_weights_threshold_and_candidates(trained, minilm):
    scope = trained[0]
    moved = dict(scope.head.weights) | {"out_bias": scope.head.weights["out_bias"] + 1e-3}
    others = [
        TrainedScope(minilm, ScopeHead(moved), scope.threshold, scope.candidates),
        TrainedScope(minilm, scope.head, scope.threshold / 2, scope.candidates),
        TrainedScope(minilm, scope.head, scope.threshold, scope.candidates + 1),
    ]
    assert len({scope.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_scope_is_not_used_with_another_encoder(tiny):
    with pytest.raises(ScopeError, match="was trained on the encoder"):
        TrainedScope.embedded(tiny)


@pytest.mark.parametrize("spoil", [lambda d: d[: len(d) // 2], lambda d: b"{}" + d, lambda d: b""])
def test_a_file_that_is_no_scope_is_refused(tmp_path, minilm, spoil):
    path = tmp_path / "scope.safetensors"
    path.write_bytes(spoil(EMBEDDED.read_bytes()))
    with pytest.raises(ScopeError, match="can't be read as a trained scope"):
        TrainedScope.load(path, minilm)
    with pytest.raises(ScopeError, match="can't be read"):
        TrainedScope.load(tmp_path / "nothing", minilm)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("out_weight", lambda w: w[:-1]),
        ("mean", lambda w: w * torch.nan),
        ("projection", lambda w: w.flatten()),
        ("hidden_bias", None),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained, name, change):
    weights = dict(trained[0].head.weights)
    weights[name] = weights[name] if change is None else change(weights[name])
    if change is None:
        del weights[name]
    with pytest.raises(ValueError, match=name):
        ScopeHead(weights)


def test_the_report_is_json(trained):
    report = json.loads(json.dumps(trained[1].to_json()))
    assert len(report["reliability"]) == 10 and 0 <= report["calibration_error"] < 0.1


def test_requests_on_one_subject_are_rivals_only_if_their_relations_differ():
    capital, language = requests()[:2]
    unnamed = capital.model_copy(update={"relation": None, "prompt": "Ostrava, led from"})
    assert are_rivals(capital, language)
    assert not are_rivals(capital, unnamed)
    assert are_rivals(capital, requests()[2])


def test_borrowed_wordings_are_in_scope_only_of_their_own_relation():
    given = requests()
    own = {text for r in given for text in (r.prompt, *r.rephrases)}
    borrowed = list(wordings(given, generator(), swaps=5))[len(given) * 4 :]
    assert len(borrowed) == len(given) * 10
    for wording in borrowed:
        request = given[wording.request]
        assert request.subject in wording.text and wording.text in own
        asks = [t.format(request.subject) for t in ASKED[request.relation]]
        assert wording.in_scope == (wording.text in asks)


def test_a_scope_over_another_encoder_is_trained_the_same_way(tiny):
    scope, report = train_scope(requests(), tiny, generator(), ScopeTraining(epochs=1))
    assert scope.head.width == tiny.width and report.pairs > 0
    assert isinstance(scope.encoder, SentenceEncoder)
