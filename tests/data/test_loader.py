"""Batches: their plan, their augmentation, and the threads that make them."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sobook.data import loader, pixels
from sobook.data.image_sets import ImageSet
from tests.data.conftest import save


class TestTrainingBatches:
    def make(self, some_images, **options):
        source = pixels.decode(some_images, 20, progress=False)
        settings = {"image_size": 16, "batch_size": 4, **options}
        return loader.TrainingBatches(source, some_images.labels, **settings)

    def test_whole_batches_visit_every_image_at_most_once(self, some_images):
        batches = self.make(some_images, batch_size=5)
        batch, labels = batches[0]
        assert len(batches) == 2 and len(set(batches.plan.ravel())) == 10
        assert batch.shape == (5, 3, 16, 16) and batch.dtype == torch.uint8
        assert labels.dtype == torch.int64

    def test_batch_depends_on_seed_epoch_and_number_alone(self, some_images):
        once, again = (self.make(some_images, seed=3, epoch=2) for _ in range(2))
        torch.manual_seed(99)
        once[0], once[1]  # reading others first changes nothing
        torch.testing.assert_close(once[2][0], again[2][0], rtol=0, atol=0)
        for changed in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}):
            assert not torch.equal(self.make(some_images, **changed)[2][0], again[2][0])

    def test_torch_generator_is_left_alone(self, some_images):
        batches = self.make(some_images)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        batches[1]
        torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)

    @pytest.mark.filterwarnings("ignore:.*kept as JPEG")
    @pytest.mark.parametrize("as_jpeg", [False, True])
    def test_equal_to_the_transforms_of_torchvision(self, some_images, as_jpeg):
        from torchvision.transforms import InterpolationMode, v2

        budget = 0 if as_jpeg else pixels.RAW_BUDGET
        source = pixels.decode(some_images, 20, budget=budget, progress=False)
        assert source.as_jpeg == as_jpeg
        batches = loader.TrainingBatches(
            source, some_images.labels, image_size=16, batch_size=12, seed=3, epoch=2
        )
        way = v2.Compose(
            [
                v2.RandomResizedCrop(16, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
            ]
        )
        torch.manual_seed(loader.mix_seeds(3, 2, 0))
        whole = [torch.from_numpy(source[row].copy()).permute(2, 0, 1) for row in batches.plan[0]]
        expected = torch.stack([way(image) for image in whole])
        torch.testing.assert_close(batches[0][0], expected, rtol=0, atol=0)

    def test_a_reader_may_stop_early_and_nothing_stays_behind(self, some_images):
        usual = torch.get_num_threads()
        reading = loader.training_loader(self.make(some_images, batch_size=2), workers=2)
        next(reading)
        reading.close()
        assert not any("ThreadPool" in thread.name for thread in threading.enumerate())
        assert torch.get_num_threads() == usual

    @pytest.mark.parametrize("workers", [0, 1, 5])
    def test_batches_do_not_depend_on_workers_or_start(self, some_images, workers):
        batches = self.make(some_images)
        loaded = list(loader.training_loader(batches, workers=workers, start=1))
        assert len(loaded) == 2
        for number, (batch, labels) in enumerate(loaded, start=1):
            torch.testing.assert_close(batch, batches[number][0], rtol=0, atol=0)
            torch.testing.assert_close(labels, batches[number][1])

    def test_classes_are_found_by_one_sort(self):
        """The slow twin looks for each class among all labels."""
        labels = np.random.default_rng(1).choice([3, 5, 8, 9], 40)
        rng, members = np.random.default_rng(0), [np.flatnonzero(labels == k) for k in (3, 5, 8, 9)]
        expected = [
            rng.choice(members[k], 2, replace=False)
            for _ in range(10)
            for k in rng.choice(4, 2, replace=False)
        ]
        plan = loader.batch_plan(np.random.default_rng(0), labels, 4, 2)
        np.testing.assert_array_equal(plan, np.concatenate(expected).reshape(10, 4))

    def test_balanced_batches(self, some_images):
        batches = self.make(some_images, images_per_class=2)
        for row in batches.plan:
            _, counts = np.unique(some_images.labels[row], return_counts=True)
            assert list(counts) == [2, 2] and len(set(row)) == 4

    def test_small_classes_repeat_their_images(self, some_images):
        assert self.make(some_images, images_per_class=4, batch_size=8).plan.shape == (1, 8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 13}, "batch_size is 13.*only 12 training images"),
            ({"images_per_class": 3}, "multiple of 3"),
            ({"images_per_class": 2, "batch_size": 10}, "at most 8"),
        ],
    )
    def test_impossible_batches(self, some_images, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(some_images, **options)


def test_evaluation_transform_equals_torchvision(tmp_path, rng):
    """Short side 256 → center 224 in proportion, against torchvision's Resize and CenterCrop."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    array = rng.integers(0, 255, (90, 131, 3), dtype=np.uint8)
    path = save(tmp_path / "one.png", array)
    one = ImageSet((path,), np.array([0]), ("a",), "folder", "test")
    source = pixels.decode(one, loader.evaluation_short_side(64), progress=False)
    (batch,) = loader.evaluation_batches(source, 64, 8)
    torchvision_way = Compose([Resize(73, InterpolationMode.BICUBIC), CenterCrop(64)])
    expected = np.asarray(torchvision_way(Image.fromarray(array)))
    np.testing.assert_array_equal(batch[0].permute(1, 2, 0).numpy(), expected)
