"""The tasks with a memory, picture by picture in numpy, gradients against differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from pytorch_metric_learning.reducers import DoNothingReducer

from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import ManifestError
from lmk.embed.train.contrastive_tasks import ContrastTask, NeighboursTask, RepulsionTask
from lmk.embed.train.distillation import TeacherVectors
from lmk.embed.train.memory_bank import Memory
from lmk.embed.train.task_config import Classes, Contrast, Neighbours, Repulsion
from lmk.embed.train.tasks import ClassTask, Task, class_codes

DIM = 6
LABELS = [("b",), (), ("a",), ("b",), (), ("a",), ("b",), (), ("a",), ()]
CODES = class_codes(LABELS, background=False)[1]
BATCH = np.array([0, 3, 2, 2, 1, 1, 4, 7])  # a picture of "a" twice, one without a label twice
UNREADABLE = 9
TEACHERS = ({"model": "one", "sizes": [48]},)


@pytest.fixture
def vectors() -> np.ndarray:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(len(CODES), DIM)).astype(np.float32))
    vectors[UNREADABLE] = 0
    return vectors


@pytest.fixture
def memory(vectors: np.ndarray) -> Memory:
    return Memory(torch.from_numpy(vectors), 0.5)


@pytest.fixture
def embeddings() -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.normal(0, 3, (len(BATCH), DIM))).float()


def slopes_agree(task: Task, embeddings: torch.Tensor, targets: torch.Tensor) -> None:
    """The gradient of the sum against central differences, in all components."""
    leaf = embeddings.clone().requires_grad_()
    task(leaf, targets).sum().backward()
    step = 1e-2
    for place in np.ndindex(*embeddings.shape):
        moved = [embeddings.clone(), embeddings.clone()]
        moved[0][place] += step
        moved[1][place] -= step
        with torch.no_grad():
            up, down = (task(each, targets).double().sum().item() for each in moved)
        assert leaf.grad[place].item() == pytest.approx((up - down) / (2 * step), abs=5e-3)


class TestMemory:
    def test_what_was_seen_is_mixed_in(self, vectors: np.ndarray) -> None:
        rng = np.random.default_rng(2)
        seen = rng.normal(0, 5, (3, DIM)).astype(np.float32)
        other = Memory(torch.from_numpy(3 * vectors), 0.25)
        other.update(torch.tensor([4, 0, 4]), torch.from_numpy(seen))
        units = unit_rows(seen)
        expected = vectors.copy()
        expected[4] = 0.25 * vectors[4] + 0.75 * (units[0] + units[2]) / 2
        expected[0] = 0.25 * vectors[0] + 0.75 * units[1]
        expected[[0, 4]] = unit_rows(expected[[0, 4]])
        np.testing.assert_allclose(other.vectors.numpy(), expected, atol=1e-6)

    def test_unreadable_pictures_are_not_known_before_they_are_seen(self, memory: Memory) -> None:
        assert (~memory.known).nonzero().flatten().tolist() == [UNREADABLE]
        kept = memory.vectors.clone()
        memory.update(torch.tensor([UNREADABLE]), torch.ones(1, DIM))
        assert memory.known.all()
        memory.set(kept)
        assert not memory.known[UNREADABLE] and torch.equal(memory.vectors, kept)


class TestContrast:
    def test_against_numpy(
        self, memory: Memory, vectors: np.ndarray, embeddings: torch.Tensor
    ) -> None:
        task = ContrastTask(Contrast(task="contrast", temperature=0.2), CODES, memory)
        targets = task.targets(BATCH)
        own = unit_rows(embeddings.numpy()).astype(np.float64)
        names = [CODES[i] if CODES[i] >= 0 else 100 + i for i in range(len(CODES))]
        for i, loss in enumerate(task(embeddings, targets).numpy()):
            others = [(vectors[j], names[j]) for j in range(len(CODES)) if j != UNREADABLE]
            others += [(own[j], names[BATCH[j]]) for j in range(len(BATCH)) if j != i]
            logits = np.array([own[i] @ vector / 0.2 for vector, _ in others])
            same = np.array([name == names[BATCH[i]] for _, name in others])
            expected = np.log(np.exp(logits).sum()) - logits[same].mean()
            assert loss == pytest.approx(expected, rel=1e-4)
        assert task.weights(targets).tolist() == [1.0] * len(BATCH)

    def test_it_is_the_librarys_where_all_are_known(
        self, memory: Memory, embeddings: torch.Tensor
    ) -> None:
        """SupConLoss with memory and batch as its references, without the picture itself."""
        memory.update(torch.tensor([UNREADABLE]), torch.ones(1, DIM))
        task = ContrastTask(Contrast(task="contrast", temperature=0.1), CODES, memory)
        names = torch.from_numpy(np.where(CODES < 0, np.arange(len(CODES)) + 100, CODES))
        labels, numbers = names[BATCH], torch.arange(len(BATCH))
        same = labels[:, None] == torch.cat([names, labels])
        itself = torch.zeros_like(same)
        itself[numbers, len(names) + numbers] = True
        pairs = (*(same & ~itself).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
        loss = SupConLoss(temperature=0.1, reducer=DoNothingReducer())
        references = torch.cat([memory.vectors, embeddings])
        theirs = loss(
            embeddings, labels, pairs, ref_emb=references, ref_labels=torch.cat([names, labels])
        )
        ours = task(embeddings, task.targets(BATCH))
        torch.testing.assert_close(ours, theirs["loss"]["losses"], rtol=1e-4, atol=1e-4)

    def test_gradients(self, memory: Memory, embeddings: torch.Tensor) -> None:
        task = ContrastTask(Contrast(task="contrast", temperature=0.5), CODES, memory)
        slopes_agree(task, embeddings, task.targets(BATCH))

    def test_repeats(self, memory: Memory) -> None:
        task = ContrastTask(Contrast(task="contrast"), CODES, memory)
        assert task.repeats("natural").tolist() == [1.0] * len(CODES)
        balanced = task.repeats("balanced")
        assert balanced[CODES == 0].sum() == balanced[CODES == 1].sum()


class TestNeighbours:
    SETTINGS = Neighbours(task="neighbours", teachers=TEACHERS, temperature=0.3)

    @pytest.fixture
    def teacher(self) -> TeacherVectors:
        rng = np.random.default_rng(4)
        known = np.ones(len(CODES), dtype=bool)
        known[[2, 4]] = False
        vectors = unit_rows(rng.normal(size=(len(CODES), DIM)).astype(np.float32))
        vectors[~known] = 0
        return TeacherVectors(vectors.astype(np.float16), known)

    def test_against_numpy(
        self,
        memory: Memory,
        vectors: np.ndarray,
        embeddings: torch.Tensor,
        teacher: TeacherVectors,
    ) -> None:
        """Over the unlabelled pictures that both know, 1 and 7, but for the picture itself."""
        teacher.known[4] = True
        teacher.vectors[4] = np.float16(1 / np.sqrt(DIM))
        task = NeighboursTask(self.SETTINGS, CODES, teacher, memory)
        targets = task.targets(BATCH)
        assert task.weights(targets).tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
        own = unit_rows(embeddings.numpy()).astype(np.float64)
        theirs = teacher.vectors.astype(np.float64)

        def softmax(cosines: list[float]) -> np.ndarray:
            powers = np.exp(np.array(cosines) / 0.3)
            return powers / powers.sum()

        for i, loss in enumerate(task(embeddings, targets).numpy()):
            others = [j for j in (1, 4, 7) if j != BATCH[i]]
            t = softmax([theirs[BATCH[i]] @ theirs[j] for j in others])
            s = softmax([own[i] @ vectors[j] for j in others])
            assert loss == pytest.approx((t * np.log(t / s)).sum(), rel=1e-3, abs=1e-6)
        assert task.repeats("natural").tolist() == teacher.known.astype(float).tolist()

    def test_gradients(
        self, memory: Memory, embeddings: torch.Tensor, teacher: TeacherVectors
    ) -> None:
        task = NeighboursTask(self.SETTINGS, CODES, teacher, memory)
        slopes_agree(task, embeddings, task.targets(BATCH))

    def test_too_few_without_a_label(self, memory: Memory, teacher: TeacherVectors) -> None:
        codes = CODES.copy()
        codes[codes < 0] = 0
        with pytest.raises(ManifestError, match="0 pictures without a label are too few"):
            NeighboursTask(self.SETTINGS, codes, teacher, memory)


class TestRepulsion:
    SETTINGS = Repulsion(task="repulsion", scale=10.0, margin=0.3)

    def test_against_numpy(self, embeddings: torch.Tensor) -> None:
        centres = np.random.default_rng(5).normal(0, 2, (DIM, 3)).astype(np.float32)
        task = RepulsionTask(self.SETTINGS, CODES, lambda: torch.from_numpy(centres))
        targets = task.targets(BATCH)
        assert task.weights(targets).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        own = unit_rows(embeddings.numpy()).astype(np.float64)
        cosines = own @ unit_rows(np.ascontiguousarray(centres.T)).T
        nearest = np.log(np.exp(10 * cosines).sum(axis=1)) / 10
        expected = np.log1p(np.exp(10 * (nearest - 0.3))) / 10
        np.testing.assert_allclose(task(embeddings, targets).numpy(), expected, rtol=1e-4)
        slopes_agree(task, embeddings, targets)
        assert task.repeats("natural").tolist() == [1.0] * len(CODES)

    @pytest.mark.parametrize("loss", ["arcface", "subcenter", "cosface"])
    def test_the_centres_are_those_of_the_classes(
        self, loss: str, embeddings: torch.Tensor
    ) -> None:
        """And learn by it."""
        classes = ClassTask(Classes(task="classes", loss=loss), LABELS, DIM)
        task = RepulsionTask(self.SETTINGS, CODES, classes.centres)
        assert classes.centres().shape == (DIM, 2 * (3 if loss == "subcenter" else 1))
        task(embeddings, task.targets(BATCH)).sum().backward()
        (weights,) = classes.parameters()
        assert weights.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("loss", "dynamic"), [("arcface", None), ("cosface", None), ("arcface", {"form": "rank"})]
)
def test_centres_start_at_the_means(
    loss: str, dynamic: dict[str, str] | None, vectors: np.ndarray
) -> None:
    make: Callable[..., Classes] = Classes
    settings = make(task="classes", loss=loss, start="means", dynamic_margin=dynamic)
    task = ClassTask(settings, LABELS, DIM)
    task.start_from(torch.from_numpy(vectors))
    means = np.stack([vectors[c == CODES].mean(axis=0) for c in (0, 1)])
    got = task.centres().detach().numpy().T
    np.testing.assert_allclose(got, unit_rows(means), atol=1e-6)
    assert all(parameter.requires_grad for parameter in task.parameters())
