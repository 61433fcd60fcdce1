"""What the verb `finetune` can be told, whatever the task."""

from dataclasses import dataclass

from bertsmith.errors import SettingsError
from bertsmith.model.resize import Extension
from bertsmith.tasks.run_settings import RunSettings, check_seed
from bertsmith.training.schedule import Budget


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RunSettings):
    """What to start from, what to learn, and how long; what the data looks like is for the task's own settings."""

    model: str
    """A BERT-like folder, a run's folder, a Hub id; or "size:mini" for random weights, with a tokenizer."""
    train: str
    """Labelled training data: CSV, TSV, JSONL, Parquet, hub:NAME, or what else the task reads."""
    dev: str | None = None
    """Data that picks the best checkpoint; by default a share of the training data."""
    test: str | None = None
    """Data that is only evaluated once, at the end."""
    dev_share: float = 0.1
    """Share of the training texts that is held back when there is no dev; 0: no evaluation, the last weights."""
    max_train_examples: int | None = None
    """Learn from this many of the training rows, chosen by hash; by default from all."""
    tokenizer: str | None = None
    """A tokenizer folder or vocab.txt; by default the model's own."""
    layers: int | None = None
    """How many layers: fewer of the model's, spread evenly, or its stack repeated; by default as many as it has."""
    extend_positions: Extension | None = None
    """Make the table of positions longer where max_length needs it: by copies (tile), or drawn out (interpolate)."""
    freeze: int | None = None
    """Leave the embeddings and this many layers above them as they are, 0 or more; by default all is trained."""
    reinit_layers: int | None = None
    """Start this many of the highest layers, and the head with its pooler, from initial weights; by default none."""
    lora: int | None = None
    """Leave the encoder as it is, and train matrices of this rank beside its own, such as 8 (LoRA); by default train
    all."""
    lora_alpha: float | None = None
    """What the product of these matrices weighs, over its rank; by default twice the rank."""
    adapt: str | None = None
    """First go on with pre-training on the texts of the training rows, for so long ("3 epochs", "10m"); by default
    no."""
    teacher: str | None = None
    """A model fine-tuned for the same task and labels, whose answers are learnt too, or several: A,B; by default
    none."""
    distill_weight: float = 0.5
    """Weight of the teacher's answers in the loss, in [0, 1]; the labels have the rest."""
    temperature: float = 2.0
    """Softens the probabilities of teacher and student alike, where one learns from the other."""
    r_drop: float | None = None
    """Weight of the divergence of two passes with other dropout masks, such as 1 (R-Drop); by default one pass."""
    adversarial: float | None = None
    """Learn also from word embeddings moved against the model, by this share of their length, such as 0.01."""
    adversarial_steps: int = 1
    """Move them in so many steps, each from where the last one led (PGD) and a further pass; 1 is FGM."""
    mixup: float | None = None
    """Mix the vectors of two texts, and their losses, by a weight from Beta(mixup, mixup), such as 0.2; by default
    no."""
    augment_delete: float = 0.0
    """Delete each word of a training example with this probability, anew in every epoch, such as 0.1; 0: none."""
    augment_swap: float = 0.0
    """Let each word change places with the next one with this probability, in the same way; 0: none."""
    augment_model: str | None = None
    """Replace words by what this model with masks, such as a run of pretrain, expects in their place; by default
    none."""
    augment_replace: float = 0.1
    """Replace each word with this probability, where there is augment_model."""
    augment_variants: int = 4
    """How many such replacements are made of each row before the training, one of which an epoch draws."""
    augment_share: float = 0.5
    """How many of the examples an epoch changes, in (0, 1]; it shows the others as they are."""
    epochs: float | None = None
    """Passes over the training data; by default by the task and the number of rows, more of few."""
    learning_rate: float | None = None
    """Peak of the schedule; by default by the width of the model, higher for small ones, ten times that with lora."""
    layer_decay: float | None = None
    """The learning rate of each layer is that of the layer above times this, such as 0.9; by default all have the
    same."""
    seeds: int = 1
    """Run so many times, with the seeds seed, seed + 1, ..., each in its own folder; the best on dev is the model."""
    search: int | None = None
    """Try so many learning rates, batch sizes and numbers of epochs (Optuna), and take the best on dev; by default
    no."""
    folds: int | None = None
    """Cut the training rows into so many parts, and score each by a model that learns from the others; by default
    no."""
    fold_column: str | None = None
    """The same, with the folds that this column of the training data says; by default no."""
    jobs: int = 1
    """With seeds, search or folds: so many runs at a time, each a process with its share of the cores, or a GPU."""
    evaluate_every: str = "1 epoch"
    """How often dev is evaluated: "1 epoch", "500 steps", "10%"; the end always is."""
    early_stopping: int | None = None
    """Stop after this many evaluations in a row without a new best; by default never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and not 1e-4 <= self.epochs < float("inf"):
            raise SettingsError(f"epochs must be at least 0.0001, not {self.epochs}.")
        if not 0 <= self.dev_share < 1:
            raise SettingsError(f"dev_share must be in [0, 1), not {self.dev_share}.")
        if self.max_train_examples is not None and self.max_train_examples < 1:
            raise SettingsError(f"max_train_examples must be at least 1, not {self.max_train_examples}.")
        if self.layers is not None and self.layers < 1:
            raise SettingsError(f"layers must be at least 1, not {self.layers}.")
        if self.freeze is not None and self.freeze < 0:
            raise SettingsError(f"freeze must be at least 0, not {self.freeze}.")
        if self.reinit_layers is not None and self.reinit_layers < 1:
            raise SettingsError(f"reinit_layers must be at least 1, not {self.reinit_layers}.")
        if self.lora is not None and self.lora < 1:
            raise SettingsError(f"lora must be at least 1, not {self.lora}.")
        if self.lora_alpha is not None and (self.lora is None or not 0 < self.lora_alpha < float("inf")):
            raise SettingsError(f"lora_alpha is {self.lora_alpha}; it must be positive, and goes with lora.")
        if self.lora is not None and (self.freeze is not None or self.reinit_layers is not None):
            raise SettingsError("lora leaves all of the encoder as it is: it does not go with freeze or reinit_layers.")
        if self.lora is not None and self.optimizer == "muon":
            raise SettingsError("lora and optimizer muon do not go together: muon is for whole matrices.")
        if self.adapt is not None and Budget.parse(self.adapt, "adapt").unit == "share":
            raise SettingsError(f'adapt "{self.adapt}" is a share of itself; give a time or a number.')
        if self.seeds < 1:
            raise SettingsError(f"seeds must be at least 1, not {self.seeds}.")
        check_seed(self.seed + self.seeds - 1)
        if self.seeds > 1 and self.dev is None and self.dev_share == 0:
            raise SettingsError("seeds: the best is chosen on dev, and there is none. Give dev, or dev_share above 0.")
        if self.search is not None and self.search < 1:
            raise SettingsError(f"search must be at least 1, not {self.search}.")
        if self.search is not None and self.learning_rate is not None and not self.learning_rate > 0:
            raise SettingsError(f"learning_rate is {self.learning_rate}; search goes around it: it must be positive.")
        if self.search is not None and self.seeds > 1:
            raise SettingsError("search and seeds are both several runs: search first, then run the best with seeds.")
        if self.search is not None and self.dev is None and self.dev_share == 0:
            raise SettingsError("search: the best is chosen on dev, and there is none. Give dev, or dev_share above 0.")
        if self.early_stopping is not None and self.dev is None and self.dev_share == 0:
            raise SettingsError("early_stopping goes by dev, and there is none. Give dev, or dev_share above 0.")
        self._check_folds()
        if self.jobs < 1:
            raise SettingsError(f"jobs must be at least 1, not {self.jobs}.")
        if self.jobs > 1 and self.seeds == 1 and self.search is None and not self.is_folded:
            raise SettingsError("jobs are runs at the same time, and there is one. Ask for seeds, search or folds.")
        if not 0 <= self.distill_weight <= 1:
            raise SettingsError(f"distill_weight must be in [0, 1], not {self.distill_weight}.")
        for name in ("r_drop", "adversarial", "mixup"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SettingsError(f"{name} must be positive, not {value}.")
        if self.adversarial_steps < 1:
            raise SettingsError(f"adversarial_steps must be at least 1, not {self.adversarial_steps}.")
        if self.adversarial is None and self.is_given("adversarial_steps"):
            raise SettingsError("adversarial_steps is how adversarial goes: give it as well.")
        if self.adversarial is not None and self.shard_weights:
            raise SettingsError("adversarial goes back through weights that shard_weights has let go: choose one.")
        if self.r_drop is not None and self.teacher is not None:
            raise SettingsError("r_drop and teacher both say what the answers should be: choose one.")
        if self.r_drop is not None and self.dropout == 0:
            raise SettingsError("r_drop compares passes with different dropout, and dropout is 0.")
        self._check_augmentation()
        if not 0 < self.temperature < float("inf"):
            raise SettingsError(f"temperature must be positive, not {self.temperature}.")
        for name in ("distill_weight", "temperature"):
            if self.teacher is None and self.is_given(name):
                raise SettingsError(f"{name} is of what a teacher says: give teacher.")

    @property
    def settled(self) -> tuple[float, float]:
        """(epochs, learning_rate) of a run, for which data and model have said what was left to them."""
        assert self.epochs is not None and self.learning_rate is not None
        return self.epochs, self.learning_rate

    @property
    def is_folded(self) -> bool:
        """Whether the training rows are scored in parts."""
        return self.folds is not None or self.fold_column is not None

    def at_once(self, ranks: int) -> int:
        """Examples that go through the model together, where so many ranks share a batch."""
        return min(-(-self.batch_size // ranks), self.micro_batch_size or self.batch_size)

    def check_mixup(self, ranks: int) -> None:
        """Refuse to mix texts with themselves.

        Raises:
            SettingsError: mixup, and texts that go through the model one by one.
        """
        if self.mixup is not None and self.at_once(ranks) == 1:
            raise SettingsError(
                "mixup mixes the texts of a micro-batch, and here each has one: give a larger batch_size or "
                "micro_batch_size."
            )

    @property
    def is_augmented(self) -> bool:
        """Whether training examples are changed."""
        return self.augment_delete > 0 or self.augment_swap > 0 or self.augment_model is not None

    def _check_augmentation(self) -> None:
        for name in ("r_drop", "adversarial", "teacher"):
            if self.mixup is not None and getattr(self, name) is not None:
                raise SettingsError(
                    f"mixup has answers for mixtures of texts, and {name} asks about texts: choose one."
                )
        self.check_mixup(ranks=1)
        for name in ("augment_delete", "augment_swap", "augment_replace"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{name} must be in [0, 1), not {getattr(self, name)}.")
        if not 0 < self.augment_share <= 1:
            raise SettingsError(f"augment_share must be in (0, 1], not {self.augment_share}.")
        if self.augment_variants < 1:
            raise SettingsError(f"augment_variants must be at least 1, not {self.augment_variants}.")
        for name in ("augment_replace", "augment_variants"):
            if self.augment_model is None and self.is_given(name):
                raise SettingsError(f"{name} says how words are replaced, and goes with augment_model.")
        if not self.is_augmented and self.is_given("augment_share"):
            raise SettingsError(
                "augment_share is of the examples that are changed: give augment_delete, augment_swap or augment_model."
            )

    def _check_folds(self) -> None:
        if self.folds is not None and self.folds < 2:
            raise SettingsError(f"folds must be at least 2, not {self.folds}.")
        if self.folds is not None and self.fold_column is not None:
            raise SettingsError("folds are cut by us, or said by fold_column: choose one.")
        if self.is_folded and self.test is not None:
            raise SettingsError("folds: each part of the training data is the test of one run; give no other test.")
        if self.is_folded and self.adapt is not None:
            raise SettingsError("folds: adapt would learn from the texts that are to be scored. Leave it out.")
        if self.is_folded and (self.seeds > 1 or self.search is not None):
            raise SettingsError("folds, seeds and search are all several runs: choose one.")
