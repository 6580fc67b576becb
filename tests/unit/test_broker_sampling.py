"""Does a broker draw questions evenly, few of them, and none that should not be kept?"""

from random import Random

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from shoal.broker.answer_tokens import MAX_SHOWN, AnswerTokens, BadTokenError
from shoal.broker.config import BrokerSettings
from shoal.broker.replicas import Chooser
from shoal.broker.routes import IndexRoute
from shoal.broker.sampling import QuerySampler
from shoal.broker.targets import Targets
from shoal.internal.v1.feedback_pb2 import ReadSigningKeysResponse, SigningKey
from shoal.v1.search_pb2 import Hit, SearchResponse


def route(**fields):
    return IndexRoute("docs", "uid", 2, "e@1", Timestamp(), 3, 1, (), **fields)


def vector(number):
    return np.array([number, 0], np.float32).tobytes()


def test_every_question_is_as_likely_to_be_drawn():
    counts = np.zeros(100)
    for seed in range(400):
        sampler = QuerySampler(
            BrokerSettings(drift_sample_count=10), Targets(Chooser(lambda: 0.0)), Random(seed)
        )
        for number in range(100):
            sampler.offer(route(), str(number), vector(number), SearchResponse())
        (reservoir,) = sampler._reservoirs.values()
        assert (reservoir.asked_count, len(reservoir.kept)) == (100, 10)
        counts[[int(each.text) for each in reservoir.kept]] += 1
    # 40 of each are expected; six deviations of a binomial are 36.
    assert np.abs(counts - 40).max() < 36


def test_nothing_is_drawn_of_what_should_not_be_kept():
    sampler = QuerySampler(BrokerSettings(), Targets(Chooser(lambda: 0.0)))
    sampler.offer(route(feedback_disabled=True), "q", vector(1), SearchResponse())
    sampler.offer(route(), "q", b"", SearchResponse())
    assert sampler._reservoirs == {}
    none = QuerySampler(BrokerSettings(drift_sample_count=0), Targets(Chooser(lambda: 0.0)))
    none.offer(route(), "q", vector(1), SearchResponse())
    assert none._reservoirs == {}
    hits = [Hit(dense_score=0.25), Hit(dense_score=0.75)]
    sampler.offer(route(), "x" * 9999, vector(1), SearchResponse(hits=hits))
    (reservoir,) = sampler._reservoirs.values()
    assert reservoir.kept[0].best_score == 0.75
    assert len(reservoir.kept[0].text) == 512


def keys(*names, answer_s=3600.0):
    return ReadSigningKeysResponse(
        keys=[SigningKey(id=name.encode(), key=name.encode() * 8) for name in names],
        answer_s=answer_s,
    )


def refusal(tokens, token):
    try:
        tokens.read(token)
    except BadTokenError as error:
        return str(error)
    return ""


def test_tokens_outlive_a_rotation_of_keys_but_not_two_nor_their_time():
    now_s = [1000.0]
    tokens = AnswerTokens(lambda: now_s[0])
    answer = SearchResponse(hits=[Hit(document_id=f"d{at}", passage=at) for at in range(200)])
    assert tokens.make("q", answer, route(), ()) == b""
    tokens.follow(keys("key1"))
    token = tokens.make("q", answer, route(), ("r@1",))
    tokens.follow(keys("key2", "key1"))
    read = tokens.read(token)
    assert (read.query, read.index_uid, read.index_version) == ("q", "uid", 3)
    assert (read.encoder_model, read.reranker_model) == ("e@1", "")
    assert [each.passage for each in read.hits] == list(range(MAX_SHOWN))
    assert tokens.make("q", answer, route(), ())[1:5] == b"key2"
    now_s[0] += 3601
    assert "feedback is taken for 1" in refusal(tokens, token)
    tokens.follow(keys("key3", "key2"))
    assert "not known any more" in refusal(tokens, token)
    # What cannot become a pair for training has no token.
    assert tokens.make("", answer, route(), ()) == b""
    assert tokens.make("é" * 2049, answer, route(), ()) == b""
    assert tokens.make("q", answer, route(feedback_disabled=True), ()) == b""


def test_an_answer_of_several_spaces_names_the_models_that_had_a_part_in_it():
    tokens = AnswerTokens()
    tokens.follow(keys("key1"))
    answer = SearchResponse()
    for model, shards in (("a@1", 2), ("b@1", 0), ("c@1", 1)):
        space = answer.spaces.add(encoder_model=model)
        space.coverage.shards_searched = shards
    assert tokens.read(tokens.make("q", answer, route(), ())).encoder_model == "a@1,c@1"


def test_a_reranked_answer_names_the_reranker():
    tokens = AnswerTokens()
    tokens.follow(keys("key1"))
    answer = SearchResponse(hits=[Hit(document_id="u"), Hit(document_id="d", rerank_score=0.5)])
    assert tokens.read(tokens.make("q", answer, route(), ("r@1",))).reranker_model == "r@1"
