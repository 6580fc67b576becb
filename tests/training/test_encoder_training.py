"""Does an encoder learn, go on after a break as if there had been none, and become a bundle?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra")
transformers = pytest.importorskip("transformers", reason="needs the training extra")
pytest.importorskip("sentence_transformers", reason="needs the training extra")

from safetensors.torch import load_file  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    Normalize,
    Pooling,
    Transformer,
)
from shoal.bundle import EncoderModel, load_bundle  # noqa: E402
from shoal.training.augmentation import first_sentence  # noqa: E402
from shoal.training.contrastive import (  # noqa: E402
    ContrastiveLoss,
    LossState,
    Temperature,
    make_loss,
)
from shoal.training.dual_encoder import (  # noqa: E402
    TrainingError,
    check,
    load_model,
    make_trainer,
    table,
    train_encoder,
)
from shoal.training.export import ExportError, export_encoder  # noqa: E402
from shoal.training.mining import MiningSettings, mine  # noqa: E402
from shoal.training.momentum import MomentumQueue  # noqa: E402
from shoal.training.pairs import Pair  # noqa: E402
from shoal.training.settings import EncoderSettings, SettingsError, read_settings  # noqa: E402

pytestmark = [
    pytest.mark.training,
    # Of libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TOKENIZER = (
    Path(__file__).resolve().parents[2] / "deploy/bundles/all-minilm-l6-v2-int8/tokenizer.json"
)
THINGS = [
    *("ale", "bread", "cloth", "dye", "glass", "honey", "ink", "jam"),
    *("knives", "lace", "maps", "nails", "oil", "paint", "rope", "salt"),
]
MAKERS = ["brewer", "baker", "weaver", "dyer", "blower", "keeper", "clerk", "cook", "smith", "lady"]
PAIRS = [
    Pair(f"{maker} of {thing}", f"In this place a {maker} has {thing} to sell.", f"{maker}{thing}")
    for maker in MAKERS
    for thing in THINGS
]
TRAIN, DEV = [pair for at, pair in enumerate(PAIRS) if at % 5], PAIRS[::5]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of random weights, in sentence-transformers' layout."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30_522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER),
        model_max_length=64,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, "mean"), Normalize()], device="cpu"
    )
    model.save_pretrained(str(folder / "whole"), create_model_card=False)
    return folder / "whole"


def settings_of(weights: Path, **changes: Any) -> EncoderSettings:
    common = {
        "weights": str(weights),
        "steps": 12,
        "batch": 8,
        "max_tokens": 16,
        "rate": 5e-3,
        "freeze_embeddings": False,
        "check_every": 6,
        "dev_queries": 10,
        "dev_passages": 30,
        "threads": 1,
    }
    return read_settings(None, common | {name.replace("__", "."): v for name, v in changes.items()})


def weights_in(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


def test_a_few_steps_lower_the_loss(weights: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []
    out = tmp_path / "out"
    found = train_encoder(
        TRAIN,
        DEV,
        out,
        settings_of(weights, steps=40, check_every=40),
        report=lambda step, doing: seen.append((step, doing)),
    )
    curves = json.loads((out / "curves.json").read_text())
    losses = [value for _, value in curves["loss"]]
    assert found.steps == len(losses) == 40
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert found.after["ndcg@10"] > found.before["ndcg@10"]
    assert [step for step, _ in curves["held-out recall@10"]] == [0, 40]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert ("loss" in seen[1][1], seen[-1][0]) == (True, 40)
    assert not (out / "checkpoints").exists()
    # The weights read as much as before, though training cut its texts.
    assert SentenceTransformer(str(out), device="cpu").max_seq_length == 64


ALL_AT_ONCE = {
    "temperature__schedule": "learnable",
    "queue__size": 24,
    "dropout": 0.1,
    "augmentation__word_dropout": 0.2,
}


def test_training_goes_on_as_if_unbroken(weights: Path, tmp_path: Path) -> None:
    settings = settings_of(weights, **ALL_AT_ONCE)
    whole = train_encoder(TRAIN, DEV, tmp_path / "whole", settings)
    # Cut off two steps after a checkpoint: those are done again.
    train_encoder(TRAIN, DEV, tmp_path / "broken", settings, stop_at=8)
    with pytest.raises(TrainingError, match="--resume"):
        train_encoder(TRAIN, DEV, tmp_path / "broken", settings)
    with pytest.raises(TrainingError, match="other settings"):
        train_encoder(TRAIN, DEV, tmp_path / "broken", settings_of(weights, steps=13), resume=True)
    for pairs, dev in ((TRAIN[1:], DEV), (TRAIN[::-1], DEV), (TRAIN, DEV[1:])):
        with pytest.raises(TrainingError, match="begun with other records"):
            train_encoder(pairs, dev, tmp_path / "broken", settings, resume=True)
    with pytest.raises(TrainingError, match="begun with --workers 1"):
        check(TRAIN, DEV, tmp_path / "broken", settings, resume=True, workers=2)
    resumed = train_encoder(TRAIN, DEV, tmp_path / "broken", settings, resume=True)
    assert resumed == whole
    expected, actual = weights_in(tmp_path / "whole"), weights_in(tmp_path / "broken")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    for name in ("curves.json", "training.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "broken" / name).read_text()


def test_a_passage_and_what_was_cut_from_it_are_never_in_one_batch(
    weights: Path, tmp_path: Path
) -> None:
    sentences = "It counts the malt in store. It prints a report for neighbours every day."
    pairs = [replace(pair, positive=f"{pair.positive} {sentences}") for pair in TRAIN]
    # Each passage is a mined negative of the record before, too.
    pairs = [
        replace(pair, negatives=(other.positive,))
        for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True)
    ]
    settings = settings_of(
        weights, negatives=1, augmentation__first_sentences=1.0, augmentation__inverse_cloze=1.0
    )
    model, _ = load_model(settings)
    trainer = make_trainer(model, pairs, DEV, tmp_path, settings)
    records = trainer.train_dataset
    assert records.column_names == ["anchor", "positive", "negative_0"]
    assert len(records) == 3 * len(pairs)
    wholes = {pair.negatives[0]: pair.positive for pair in pairs}
    batches = list(trainer.get_train_dataloader().batch_sampler)
    assert len(batches) > 10
    for batch in batches:
        rows = [records[each] for each in batch]
        made_from = [wholes[row["negative_0"]] for row in rows]
        assert len(set(made_from)) == len(rows)
        # Neither a whole passage nor a mined one is a negative of its own part.
        assert not set(made_from) & {row["negative_0"] for row in rows}
    parts = [each for pair in pairs for each in (pair, first_sentence(pair)) if each]
    with pytest.raises(TrainingError, match=r"256 records .* of 128 passages, .* batch of 200"):
        table(parts, settings.model_copy(update={"batch": 200}))


def test_the_trainer_reads_heavier_records_more_often(weights: Path) -> None:
    heavy = replace(TRAIN[0], weight=3.0)
    anchors = table([heavy, *TRAIN[1:20]], settings_of(weights)).to_dict()["anchor"]
    counts = [anchors.count(pair.query) for pair in TRAIN[:20]]
    assert counts[0] >= 2.5 * np.mean(counts[1:])
    assert min(counts) >= 1


def test_another_seed_is_another_training(weights: Path, tmp_path: Path) -> None:
    losses = [
        train_encoder(
            TRAIN, DEV, tmp_path / str(seed), settings_of(weights, steps=3, seed=seed)
        ).loss
        for seed in (1, 2)
    ]
    assert losses[0] != losses[1]


def _temperatures(out: Path) -> list[float]:
    curves = json.loads((out / "curves.json").read_text())
    return [value for _, value in curves["temperature"]]


def test_the_temperature_is_learnt(weights: Path, tmp_path: Path) -> None:
    changes = {"temperature__schedule": "learnable", "temperature__rate": 0.05}
    train_encoder(TRAIN, DEV, tmp_path / "out", settings_of(weights, **changes))
    found = _temperatures(tmp_path / "out")
    assert found[0] == pytest.approx(0.05, rel=0.2)
    assert len(set(found)) > 6
    assert abs(found[-1] - 0.05) > 0.005


def test_the_temperature_follows_its_schedule(weights: Path, tmp_path: Path) -> None:
    train_encoder(
        TRAIN, DEV, tmp_path / "out", settings_of(weights, temperature__schedule="cosine")
    )
    found = _temperatures(tmp_path / "out")
    assert (found[0], found[-1]) == (pytest.approx(0.05), pytest.approx(0.02))
    assert found == sorted(found, reverse=True)


def test_a_learnt_temperature_has_a_floor(weights: Path) -> None:
    temperature = Temperature("learnable", 0.05, 0.02)
    with torch.no_grad():
        temperature.log_scale.fill_(50.0)
    LossState(ContrastiveLoss(load_model(settings_of(weights))[0], temperature)).on_step_end(
        None, None, None
    )
    assert temperature.value() == pytest.approx(0.01)
    # And it does not stick there.
    temperature.scale().backward()
    assert temperature.log_scale.grad.item() == pytest.approx(100.0)


def features(model: SentenceTransformer, texts: list[str]) -> dict[str, Any]:
    return dict(model.preprocess(texts))


def test_the_queue_holds_the_last_passages(weights: Path) -> None:
    model, _ = load_model(settings_of(weights))
    queue = MomentumQueue(model, size=5, momentum=0.5)
    batches = [[f"passage {letter} {at}" for at in range(3)] for letter in "abc"]
    start = model[0].auto_model.embeddings.word_embeddings.weight.detach().clone()
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight.add_(1.0)
    for batch in batches:
        last = queue.remember(features(model, batch))
        with torch.no_grad():
            assert torch.allclose(
                queue.encoder(features(model, batch))["sentence_embedding"], last, atol=1e-5
            )
        queue.follow(model)
    assert len(queue.keys()) == 5
    own = queue.encoder[0].auto_model.embeddings.word_embeddings.weight
    # Half of the way in each of three steps.
    assert torch.allclose(own, start + 1.0 - 0.5**3, atol=1e-5)
    assert torch.allclose(queue.keys()[2:], last, atol=1e-5)
    # What is right for a question of this batch is no wrong passage for it.
    queue.remember(features(model, [batches[2][0], "another"]))
    assert len(queue.keys()) == 4


def test_the_queue_adds_wrong_passages_to_the_loss(weights: Path) -> None:
    model, _ = load_model(settings_of(weights))
    model.train()
    queue = MomentumQueue(model, size=16, momentum=0.9)
    plain, _ = make_loss(model, Temperature("fixed", 0.05, 0.02))
    queued, inner = make_loss(model, Temperature("fixed", 0.05, 0.02), queue=queue)
    columns = [[pair.query for pair in TRAIN[:4]], [pair.positive for pair in TRAIN[:4]]]
    batch = [features(model, column) for column in columns]
    assert queued(batch, None).item() == pytest.approx(plain(batch, None).item())
    queue.follow(model)
    queue.remember(features(model, [pair.positive for pair in TRAIN[20:28]]))
    queue.follow(model)
    assert len(inner.queue.keys()) == 12
    loss = queued(batch, None)
    assert loss.item() > plain(batch, None).item()
    loss.backward()
    assert all(each.grad is None for each in queue.encoder.parameters())
    model.eval()
    assert queued(batch, None).item() == pytest.approx(plain(batch, None).item())


def test_right_and_wrong_in_the_queue_are_of_one_encoder(weights: Path) -> None:
    model, _ = load_model(settings_of(weights))
    queue = MomentumQueue(model, size=16, momentum=0.9)
    queue.remember(features(model, [pair.positive for pair in TRAIN[20:28]]))
    queue.follow(model)
    # The trained encoder has gone on since.
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.05 * torch.randn_like(each))
    model.train()
    plain, _ = make_loss(model, Temperature("fixed", 0.05, 0.02))
    queued, _ = make_loss(model, Temperature("fixed", 0.05, 0.02), queue=queue)
    columns = [[pair.query for pair in TRAIN[:4]], [pair.positive for pair in TRAIN[:4]]]
    batch = [features(model, column) for column in columns]
    with torch.no_grad():
        asked = model(dict(batch[0]))["sentence_embedding"]
        right = queue.encoder(dict(batch[1]))["sentence_embedding"]
    scores = asked @ torch.cat([right, queue.keys()]).T / 0.05
    over_queue = torch.nn.functional.cross_entropy(scores, torch.arange(4)).item()
    expected = (plain(batch, None).item() + over_queue) / 2
    assert queued(batch, None).item() == pytest.approx(expected, rel=1e-4)


def test_cached_gradients_are_those_of_the_whole_batch(weights: Path) -> None:
    batch = [[pair.query for pair in TRAIN[:6]], [pair.positive for pair in TRAIN[:6]]]
    gradients = []
    for cached in (None, 2):
        model, _ = load_model(settings_of(weights))
        temperature = Temperature("learnable", 0.05, 0.02)
        loss, _ = make_loss(model, temperature, cached_batch=cached, matryoshka=(32, 8))
        loss([features(model, column) for column in batch], None).backward()
        layer = model[0].auto_model.encoder.layer[0].attention.self.query.weight
        gradients.append((layer.grad.clone(), temperature.log_scale.grad.clone()))
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-6)


def test_mined_passages_are_wrong_and_near(weights: Path, tmp_path: Path) -> None:
    model, _ = load_model(settings_of(weights))
    found = mine(TRAIN, model, MiningSettings(negatives=2, first_rank=0, last_rank=20, margin=0.0))
    assert len(found) > 20
    texts = {pair.positive for pair in TRAIN}
    for pair in found:
        assert len(pair.negatives) == 2
        assert pair.positive not in pair.negatives
        assert set(pair.negatives) <= texts
        vectors = model.encode([pair.query, pair.positive, *pair.negatives])
        right, *wrong = vectors[1:] @ vectors[0]
        assert max(wrong) <= right + 1e-5
    settings = settings_of(weights, negatives=2, steps=4)
    assert train_encoder(found, DEV, tmp_path / "out", settings).steps == 4


def test_vectors_can_be_cut_and_exported(weights: Path, tmp_path: Path) -> None:
    settings = settings_of(
        weights,
        steps=30,
        matryoshka=[8],
        query_prefix="ask: ",
        passage_prefix="tell: ",
        cached_batch=4,
        temperature__schedule="learnable",
    )
    out = tmp_path / "out"
    train_encoder(TRAIN, DEV, out, settings)
    texts = [pair.positive for pair in PAIRS[:40]]
    lowest = {}
    for precision in ("fp32", "fp16", "int8"):
        card = export_encoder(
            str(out), tmp_path / precision, name="tiny", texts=texts, precision=precision
        )
        assert card.agreement is not None
        assert (card.precision, card.agreement.texts) == (precision, 40)
        lowest[precision] = card.agreement.lowest
        assert (card.query_prefix, card.passage_prefix) == ("ask: ", "tell: ")
        assert card.max_length == 64
    assert lowest["fp32"] > 0.99999
    assert lowest["fp16"] > 0.999
    assert lowest["int8"] > 0.9
    size = {name: (tmp_path / name / "model.onnx").stat().st_size for name in lowest}
    assert size["fp16"] < 0.6 * size["fp32"]
    cut = export_encoder(
        str(out), tmp_path / "cut", name="cut", texts=texts, precision="fp32", dimension=8
    )
    assert (cut.dimension, cut.agreement and cut.agreement.lowest > 0.99999) == (8, True)
    model = EncoderModel(load_bundle(tmp_path / "cut"))
    passages = model.encode([pair.positive for pair in TRAIN], "passage")
    queries = model.encode([pair.query for pair in TRAIN], "query")
    assert passages.shape == (len(TRAIN), 8)
    ranks = (queries @ passages.T > (queries * passages).sum(axis=1)[:, None]).sum(axis=1)
    # By chance it would be among the first ten for one in twelve.
    assert (ranks < 10).mean() > 0.5
    with pytest.raises(ExportError, match="32 dimensions, not 64"):
        export_encoder(str(out), tmp_path / "no", name="no", texts=texts, dimension=64)


def test_fewer_layers_are_kept(weights: Path, tmp_path: Path) -> None:
    train_encoder(TRAIN, DEV, tmp_path / "out", settings_of(weights, layers=1, steps=2))
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 1
    with pytest.raises(TrainingError, match="the weights have 2"):
        train_encoder(TRAIN, DEV, tmp_path / "more", settings_of(weights, layers=3))


def test_what_cannot_be_trained_is_refused(weights: Path, tmp_path: Path) -> None:
    settings = settings_of(weights)
    with pytest.raises(TrainingError, match="both sides, such as brewerbread"):
        train_encoder(TRAIN, [TRAIN[0]], tmp_path / "a", settings)
    with pytest.raises(TrainingError, match="no held-out"):
        train_encoder(TRAIN, [], tmp_path / "b", settings)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train_encoder(TRAIN, DEV, tmp_path / "c", settings, resume=True)
    with pytest.raises(TrainingError, match="0 records with 2 negatives"):
        train_encoder(TRAIN, DEV, tmp_path / "d", settings_of(weights, negatives=2))
    assert not list((tmp_path / "d").iterdir())
    with pytest.raises(TrainingError, match="neither a folder with a config"):
        train_encoder(TRAIN, DEV, tmp_path / "d", settings_of(tmp_path / "none"))
    with pytest.raises(TrainingError, match="32 dimensions"):
        train_encoder(TRAIN, DEV, tmp_path / "e", settings_of(weights, matryoshka=[64]))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"stepz": 3}, "stepz: Extra inputs"),
        ({"queue.size": 10, "cached_batch": 4}, "choose one"),
        ({"temperature.start": 0}, "temperature.start: Input should be greater"),
        ({"augmentation.synonyms": 0.5}, "a thesaurus"),
        ({"matryoshka": [4]}, "8 and more"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        read_settings(None, changes)


def test_settings_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("steps: 7\ntemperature: {schedule: learnable}\n")
    found = read_settings(path, {"temperature.start": 0.1, "queue.size": 64})
    assert (found.steps, found.temperature.schedule, found.temperature.start) == (
        7,
        "learnable",
        0.1,
    )
    assert found.queue.size == 64
    path.write_text("- steps\n")
    with pytest.raises(SettingsError, match=r"settings\.yaml: a list of"):
        read_settings(path)
