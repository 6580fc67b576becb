"""What can be set of a broker?"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BrokerSettings(BaseModel):
    """Settings of a broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_concurrent: int = Field(default=1024, ge=1)
    """Searches that may be under way at once; more are refused with OVERLOADED. At 64 callers a
    core answers about a thousand vector queries a second: this is about a second's work."""
    default_budget_s: float = Field(default=10.0, gt=0)
    """Seconds that a caller gets who set no deadline."""
    rerank_candidates: int = Field(default=50, ge=1, le=200)
    """Candidates to rerank when a request does not say. The cross-encoder reads as many of them as
    its bundle's card says, the best eight of the one that ships; all are judged by the company that
    they keep. On held-out questions fifty are better than twenty where several passages are
    right, and as good where one is."""
    lexical_weight: float = Field(default=0.4, ge=0, le=1)
    """Weight of the words in a search by text that does not say, beside that of the vectors; 0:
    words are not looked at. Chosen on Debian's package descriptions: see `shoal.broker.fusion`."""
    hybrid_candidates: int = Field(default=50, ge=1, le=1000)
    """Candidates of either kind that are fused when a request does not say. More are not better."""
    rerank_s: float = Field(default=5.0, gt=0)
    """Seconds that a search waits for the reranker at most; the order before it is its answer then.
    Ten times what twenty candidates take on one busy core: longer, and the reranker hangs,
    or has more work than it will ever do."""
    coalesce_count: int = Field(default=64, ge=1, le=256)
    """Most queries in one call to an encoder, a shard server or a reranker."""
    hedge_ratio: float = Field(default=0.05, ge=0, le=1)
    """Hedged calls per call, over time: 5% more load buys off the slowest 5% of waits."""
    straggler_s: float = Field(default=0.5, ge=0)
    """Seconds that a search waits for the last shard servers once others have answered; never more
    than half of what remains to the deadline. What has not answered then is left out."""
    restart_s: float = Field(default=3.0, ge=0)
    """Seconds from a shard server's first failure for which searches wait for its restart instead,
    within the same half: a server that was killed is back in about two, and a complete answer a
    little later is worth more than a part of one. Once they are over, nobody waits: an outage
    costs each search a few seconds once, and not for as long as it lasts."""
    probe_interval_s: float = Field(default=0.25, gt=0)
    """Seconds between two looks at a shard server's states: how stale a cached answer can be."""
    drift_sample_count: int = Field(default=64, ge=0, le=1024)
    """Questions of each index that are drawn between two sendings, to measure drift; 0: none."""
    drift_flush_s: float = Field(default=30.0, gt=0)
    """Seconds between two sendings of drawn questions to the writer: 100 KB of 384 dimensions."""
    redis_url: str | None = None
    """Cache of hot queries: redis://, rediss:// or unix:// URL. None: no cache."""
    redis_timeout_s: float = Field(default=0.025, gt=0)
    """Seconds that a look into the cache may take; computing most queries takes less than more."""
    cache_ttl_s: int = Field(default=300, ge=1)
    """Seconds that an answer or a vector is kept at most."""
    cache_value_bytes: int = Field(default=256 * 1024, ge=1024)
    """Largest answer that is cached."""
