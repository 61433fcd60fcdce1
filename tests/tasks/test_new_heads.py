"""What the last layers of new tasks start from, beside those of pre-training."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import nn

from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.answer import QuestionAnsweringModel
from bertsmith.tasks.classify import SequenceClassifier
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.tag import TokenClassificationModel

WIDTH = 400
NEW_HEADS: dict[str, Callable[[Encoder], nn.Module]] = {
    "classification": lambda encoder: SequenceClassifier(encoder, 5),
    "choice": lambda encoder: SequenceClassifier(encoder, 1, of_choices=True),
    "tagging": lambda encoder: TokenClassificationModel(encoder, 5),
    "answering": QuestionAnsweringModel,
}


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(50, WIDTH, 1, 4, 32, max_position_embeddings=16))


def last_layer(model: nn.Module) -> nn.Linear:
    (found,) = (part for name, part in model.named_modules() if name.endswith(".out"))
    assert isinstance(found, nn.Linear)
    return found


@pytest.mark.parametrize("task", NEW_HEADS)
def test_a_new_task_starts_from_outputs_that_deviate_as_what_is_put_in(task: str) -> None:
    last = last_layer(NEW_HEADS[task](encoder()))
    weights = last.weight.detach().flatten().numpy()
    assert stats.kstest(weights, stats.norm(0, WIDTH**-0.5).cdf).pvalue > 0.01
    assert not last.bias.any()
    outputs = last(torch.randn(2000, WIDTH)).detach()
    assert float(outputs.std()) == pytest.approx(1, rel=0.1)


def test_pretraining_starts_from_bert_s_own_weights() -> None:
    last = last_layer(PretrainingModel(encoder(), pairs=True))
    weights = last.weight.detach().flatten().numpy()
    assert stats.kstest(weights, stats.truncnorm(-2, 2, scale=0.02).cdf).pvalue > 0.01
