"""The encoder: text to unit vectors. Router (`server`), core (`core`), backend (`backend`)."""
