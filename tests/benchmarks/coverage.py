"""How often intervals over classes hold the truth, simulated: python -m tests.benchmarks.coverage

Recalls of classes are drawn from beta distributions that vary as those of the shipped runs do: at
a mean of .65 their standard deviation is .16 to .19, a third of √(p(1 − p)). Each has 20 queries.
"""

import numpy as np

from sobook.statistics import class_interval, compare_classes
from tests.test_statistics import results


def coverage(mean: float, classes: int, draws: int, seed: int = 0) -> tuple[float, float]:
    """Of the interval of a recall, and of that of a difference that is 0."""
    rng, spread = np.random.default_rng(seed), 0.35 * (mean * (1 - mean)) ** 0.5
    total = mean * (1 - mean) / spread**2 - 1
    held, held_difference, labels = [], [], np.repeat(np.arange(classes), 20)
    for _ in range(draws):
        recall = rng.beta(mean * total, (1 - mean) * total, classes)
        first, second = rng.random((2, len(labels))) < recall[labels]
        hits = np.bincount(labels, weights=first)
        low, high = class_interval(hits, np.bincount(labels).astype(float))
        held.append(low <= mean <= high)
        compared = compare_classes(results(first, labels), results(second, labels))
        held_difference.append(compared.low <= 0 <= compared.high)
    return float(np.mean(held)), float(np.mean(held_difference))


def main() -> None:
    print("mean  classes  recall  difference")
    for mean in (0.5, 0.9):
        for classes in (2, 3, 4, 6, 10, 19, 20):
            held, held_difference = coverage(mean, classes, 2000 if classes < 20 else 200)
            print(f"{mean:4.1f}  {classes:7d}  {held:6.3f}  {held_difference:10.3f}", flush=True)


if __name__ == "__main__":
    main()
