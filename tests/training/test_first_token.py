"""Does a cross-encoder score as before when its last layer works for the first token alone?"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra")
transformers = pytest.importorskip("transformers", reason="needs the training extra")

from shoal.training.first_token import FirstTokenLayer, read_first_token_only  # noqa: E402

pytestmark = [
    pytest.mark.training,
    # Of libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def _config() -> Any:
    return transformers.BertConfig(
        vocab_size=90,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        num_labels=1,
        attn_implementation="eager",
    )


def test_scores_stay_what_they_are_with_padding_or_without() -> None:
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(_config()).eval()
    ids = torch.randint(0, 90, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    types = torch.zeros_like(ids)
    types[:, 5:] = 1
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        assert read_first_token_only(model)
        assert isinstance(model.bert.encoder.layer[-1], FirstTokenLayer)
        after = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert before.std() > 0
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_no_classifier_is_left_alone() -> None:
    model = transformers.BertModel(_config(), add_pooling_layer=False)
    assert not read_first_token_only(model)
