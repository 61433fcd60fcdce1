"""What pre-training trains: the encoder and a head for each objective.

Shape letters: T tokens, S sequences, D hidden width.
"""

from torch import Tensor, nn

from bertsmith.errors import CorpusError
from bertsmith.model.batch import PackedBatch
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import PooledHead, VocabularyHead


class PretrainingModel(nn.Module):
    """The encoder with the vocabulary head, and the pooled head where sentences are paired."""

    def __init__(self, encoder: Encoder, *, pairs: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary = VocabularyHead(encoder.config, encoder.token_embedding)
        self.pooled = PooledHead(encoder.config, 2) if pairs else None
        if self.pooled is not None:
            self.pooled.dropout = 0.0  # run_pretraining.py of google-research/bert and /albert have none there

    def pair_logits(self, hidden_TD: Tensor, inputs: PackedBatch) -> Tensor:
        """[S, 2] logits of "B is next" and "B is random".

        Raises:
            CorpusError: this model was trained without next sentence prediction.
        """
        if self.pooled is None:
            raise CorpusError("this model has no next-sentence head; pre-train with --objective mlm+nsp to get one.")
        logits_S2: Tensor = self.pooled(hidden_TD, inputs)
        return logits_S2
