"""The reranker: scores of query and passage. Router (`server`), core (`core`), `backend`."""
