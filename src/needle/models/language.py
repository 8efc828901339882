"""Recurrent language models."""

from __future__ import annotations

from needle import nn
from needle.tensor import Tensor

State = tuple[Tensor, Tensor]


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM layers and a linear map to the vocabulary.

    Source: W. Zaremba, I. Sutskever, O. Vinyals, "Recurrent Neural Network Regularization", 2014.

    Args:
        vocabulary: number of tokens.
        embedding: width of the embedding.
        hidden: width of the LSTM.
        layers: number of LSTM layers.
        dropout: probability of dropping a unit of the embedding and between layers.

    Example:
        >>> model = ndl.models.LSTMLanguageModel(65, embedding=16, hidden=32)
        >>> logits, state = model(ndl.zeros((2, 7), dtype="int64"))
        >>> logits.shape
        (2, 7, 65)
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int = 128,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            embedding,
            hidden,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            batch_first=True,
        )
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Predict the next token at each place.

        Args:
            tokens: [batch, time] integers.
            state: what an earlier call returned, to continue a text; None starts with zeros.

        Returns:
            Logits [batch, time, vocabulary], and the state after the last token.
        """
        x = self.dropout(self.embedding(tokens))
        y, state = self.lstm(x, state)
        return self.head(self.dropout(y)), state
