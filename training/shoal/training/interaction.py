"""What does the reranker's network compute?

A few layers of a pretrained transformer read question and passage together. From there a
classifier on the first token is the usual way; in the few hundred steps that a processor can
afford it learns next to nothing, as it must discover from noise that words of one side stand on
the other. Here that is built in, and training only weighs it: each token of the question looks for
itself in the passage, once as the very same token and once by the cosine of what the transformer
made of it, and the tokens' findings are averaged by how much each token says. After Xiong et al.
2017 (K-NRM, arXiv:1706.06613) and Khattab and Zaharia 2020 (ColBERT, arXiv:2004.12832), with both
sides read jointly.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

INTERACTION_DIMENSION: Final = 128
# BERT's uncased vocabulary: special tokens end at 998, single characters stand up to 1995, and
# words follow by falling frequency in its corpus, so that a token's number is its rarity.
FIRST_CHARACTER: Final = 999
FIRST_WORD: Final = 1996
_SEPARATOR: Final = 102
_START: Final = 101


def rarity_of_tokens(vocabulary: int) -> Tensor:
    """How much a token says, from its place in BERT's vocabulary: float32 [vocabulary], 0 to 1."""
    numbers = torch.arange(vocabulary, dtype=torch.float32)
    words = torch.log1p((numbers - FIRST_WORD).clamp(min=0.0))
    rarity = words / words.max()
    rarity[:FIRST_WORD] = 0.2
    rarity[:FIRST_CHARACTER] = 0.0
    return rarity


class InteractionReranker(nn.Module):  # type: ignore[misc]
    """Scores pairs: input ids, attention mask, token types [pairs, tokens] to logits [pairs, 1]."""

    def __init__(self, transformer: Any) -> None:
        """transformer: BERT-like, its last hidden state is read. Changed by training."""
        super().__init__()
        hidden = transformer.config.hidden_size
        self.transformer = transformer
        self.project = nn.Linear(hidden, INTERACTION_DIMENSION)
        self.weigh = nn.Linear(hidden, 1)
        self.findings = nn.Linear(3, 1, bias=False)
        self.first = nn.Linear(hidden, 1, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("rarity", rarity_of_tokens(transformer.config.vocab_size))
        nn.init.zeros_(self.weigh.weight)
        nn.init.constant_(self.weigh.bias, -1.5)
        nn.init.zeros_(self.first.weight)
        with torch.no_grad():
            self.findings.weight.copy_(torch.tensor([[0.6, 0.6, 0.1]]))
            # The passage's segment starts out as the question's: sentence encoders are trained on
            # one segment only, and the same word should look the same on both sides.
            types = transformer.embeddings.token_type_embeddings.weight
            types[1].copy_(types[0])

    def start_projection(self, hidden: Tensor) -> None:
        """Set the projection to the principal components of hidden states [tokens, hidden]."""
        mean = hidden.mean(dim=0)
        _, _, directions = torch.linalg.svd(hidden - mean, full_matrices=False)
        with torch.no_grad():
            self.project.weight.copy_(directions[:INTERACTION_DIMENSION])
            self.project.bias.copy_(-directions[:INTERACTION_DIMENSION] @ mean)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Score pairs. A question without tokens scores what its first token alone gives."""
        hidden = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        said = (attention_mask * (input_ids != _SEPARATOR) * (input_ids != _START)).to(hidden.dtype)
        passage = said * token_type_ids
        question = said * (1 - token_type_ids)
        same = (input_ids[:, :, None] == input_ids[:, None, :]).to(hidden.dtype) * passage[:, None]
        directions = nn.functional.normalize(self.project(hidden), dim=-1)
        cosines = directions @ directions.transpose(1, 2) - 2.0 * (1.0 - passage[:, None])
        found = torch.stack(
            [
                same.amax(dim=2),
                cosines.amax(dim=2).clamp(min=0.0),  # An empty passage has nothing but masks.
                torch.log1p(same.sum(dim=2)),
            ],
            dim=-1,
        )
        weights = question * nn.functional.softplus(
            self.weigh(hidden)[..., 0] + 3.0 * self.rarity[input_ids]
        )
        total = (weights * self.findings(found)[..., 0]).sum(dim=1)
        mean = total / weights.sum(dim=1).clamp(min=1e-6)
        return self.log_scale.exp() * mean[:, None] + self.first(hidden[:, 0])
